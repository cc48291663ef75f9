"""Causal language models that write answers: loading, encoding, training with any loss, generation, likelihoods."""

from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.encoding import EncodedSet, PromptFormat, encode
from lossmith.integrations.causal_lm.generation import Generated, generate, generate_ids
from lossmith.integrations.causal_lm.likelihood import completion_nll, option_logps
from lossmith.integrations.causal_lm.loading import add_lora, load_causal_lm, save_causal_lm
from lossmith.integrations.causal_lm.released import ReleasedMix

__all__ = [
    "CompletionCollator",
    "EncodedSet",
    "Generated",
    "PromptFormat",
    "ReleasedMix",
    "add_lora",
    "completion_nll",
    "encode",
    "generate",
    "generate_ids",
    "load_causal_lm",
    "option_logps",
    "save_causal_lm",
]
