"""A tiny random Llama, its LoRA, a word-level tokenizer and padded completions: what references are computed from."""

import warnings
from typing import Any

import torch
from torch import Tensor

WORDS = 59


def llama(*, dtype: torch.dtype = torch.float64, seed: int = 3, **settings: Any) -> Any:
    """Two layers of width 16; weights large enough that predictions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    described = {
        "vocab_size": WORDS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        **settings,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**described)).to(dtype).eval()


def lora(model: Any, **settings: Any) -> Any:
    """LoRA on queries and values, with a copy of the output embedding to train, unless settings say otherwise."""
    from peft import LoraConfig, get_peft_model

    described = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"], **settings}
    torch.manual_seed(11)
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, LoraConfig(**described)).eval()


def shake(model: Any, *, seed: int = 5) -> None:
    """Move every weight that trains, so that no adapter is neutral any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)


def completions(*, left: bool = False) -> dict[str, Tensor]:
    """Five rows of uneven length, padded on one side; row 3 has no token that counts, row 4 counts from the start."""
    generator = torch.Generator().manual_seed(8)
    lengths, prompts = [9, 6, 8, 5, 7], [4, 2, 7, 5, 0]
    width = max(lengths)
    batch = {name: torch.zeros(5, width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((5, width), -100)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        ids = torch.randint(1, WORDS, (length,), generator=generator)
        place = slice(width - length, width) if left else slice(0, length)
        batch["input_ids"][row, place] = ids
        batch["attention_mask"][row, place] = 1
        batch["labels"][row, place] = torch.where(torch.arange(length) >= prompt, ids, -100)
    return batch


def tokenizer(*, words: int = WORDS, template: str | None = "{{ messages }}", **special: str) -> Any:
    """Word-level, on the tokenizers backend."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({f"w{number}": number for number in range(words)}, unk_token="w0"))
    backend.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"unk_token": "w0", "pad_token": "w1", "eos_token": "w2", **special}
    )
    made.chat_template = template
    return made
