"""Load a causal language model with its tokenizer, put LoRA on it, and save what transformers loads."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lossmith.errors import ConfigurationError, ModelError
from lossmith.integrations.models import EMBEDDED, ResolvedModel, quiet_transformers
from lossmith.integrations.saving import give_ordinary_permissions

WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of models end that write text."""


def load_causal_lm(
    model: ResolvedModel, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Model in evaluation mode and tokenizer with an end-of-sequence and a padding token. No remote code is ever run.

    Raises:
        ModelError: If transformers cannot load it as a causal language model, or its tokenizer has no EOS.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(model.location, trust_remote_code=False)
            network: Any = AutoModelForCausalLM.from_pretrained(
                model.location, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().split("\n")[0]
        embedded = ", ".join(name for name in EMBEDDED if "minilm" not in name)
        raise ModelError(
            f"`--model {model.name}` cannot be loaded as a causal language model: {first_line} Give another folder or "
            f"hub id, or {embedded}."
        ) from error
    saved_as = network.config.architectures or []
    if saved_as and not any(name.endswith(WRITERS) for name in saved_as):
        raise ModelError(
            f"`--model {model.name}` is saved as {', '.join(saved_as)}, which writes no text: give a causal language "
            f"model."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of `--model {model.name}` has no end-of-sequence token, so nothing could tell the model "
            f"to stop: set `eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocab = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocab:
        raise ModelError(
            f"The tokenizer of `--model {model.name}` has {len(tokenizer)} tokens and the model {vocab}: they do not "
            f"belong together, or the embeddings were not resized."
        )
    return network.to(device).eval(), tokenizer


def add_lora(
    network: Any,
    *,
    r: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.05,
    target_modules: str | Sequence[str] = "all-linear",
    heads: Sequence[str] = (),
) -> PeftModel:
    """The model with low-rank adapters, https://arxiv.org/abs/2106.09685, drawn from torch's global generator.

    Args:
        network: The model; its own weights are frozen.
        r: Rank, >= 1.
        alpha: Updates are scaled by alpha / r.
        dropout: Dropout before the adapters, in [0, 1).
        target_modules: Names of modules, or "all-linear": every linear map of attention and MLP, whatever the
            architecture calls them, but not the output embedding.
        heads: Names of modules that are fresh and trained whole, as the head of a classifier is.

    Raises:
        ConfigurationError: If PEFT finds no such modules or refuses a setting.
    """
    config = lora_settings(r=r, alpha=alpha, dropout=dropout, target_modules=target_modules, heads=heads)
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks a model for an attribute that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            adapted = get_peft_model(network, config)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The `lora` settings are refused: {str(error).splitlines()[0]}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def lora_settings(
    *,
    r: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.05,
    target_modules: str | Sequence[str] = "all-linear",
    heads: Sequence[str] = (),
) -> LoraConfig:
    """PEFT's settings of the adapters that `add_lora` puts on, with the same arguments.

    Raises:
        ConfigurationError: If PEFT refuses a setting.
    """
    try:
        return LoraConfig(
            r=r,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            bias="none",
            task_type=None if heads else "CAUSAL_LM",
            modules_to_save=list(heads) or None,
        )
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The `lora` settings are refused: {str(error).splitlines()[0]}") from error


def switch_off_dropout(network: Any) -> None:
    """Set every dropout of a model to 0, also what attention takes as a number and no module of its own.

    A policy without it agrees with its reference before the first step, in training mode too. The configuration, and
    so what is saved, stays as it was.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def adapted_modules(network: Any) -> list[str]:
    """The kinds of modules that carry adapters, by the last part of their name, sorted.

    `lm_head` and whatever else a user names is among them.
    """
    found = {path.rpartition(".")[2] for path, module in network.named_modules() if hasattr(module, "lora_A")}
    return sorted(found)


def save_causal_lm(network: Any, tokenizer: Any, folder: Path, *, merge: bool = True) -> None:
    """Write a model that `AutoModelForCausalLM.from_pretrained(folder)` loads.

    Args:
        network: The model; with adapters or not. Merging changes it for good.
        tokenizer: Its tokenizer.
        folder: Where to write.
        merge: Whether to add adapters to the weights; else only the adapters are written, beside the name of the
            model that they belong to.
    """
    with quiet_transformers():
        if merge and isinstance(network, PeftModel):
            network = network.merge_and_unload()
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    give_ordinary_permissions(folder)
