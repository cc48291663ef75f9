"""Small models, data of uneven lengths and the cases that `rank_worker.py` runs on one rank and on several."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

VOCAB, HIDDEN, CLASSES, STEPS, ROWS = 61, 16, 3, 3, 8
LEARNING_RATE = 0.02
SPLITS = {1: {"8x1": (8, 1), "4x2": (4, 2)}, 2: {"4x1": (4, 1), "2x2": (2, 2)}}
"""By number of ranks: name -> rows of a micro-batch on a rank, micro-batches of a step."""
EVALUATED = 11
"""Rows of the evaluation set: no multiple of batch times ranks."""


def causal(kind: str = "LlamaForCausalLM", **settings: Any) -> nn.Module:
    """A Llama whose logits are not all alike."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    return _spread(getattr(transformers, kind)(config))


def tied() -> nn.Module:
    """Input and output embedding are one matrix."""
    return causal(tie_word_embeddings=True)


def adapted() -> nn.Module:
    """LoRA on attention and on the head."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(causal(), config)


def classifier() -> nn.Module:
    """A BERT that classifies texts."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _spread(transformers.BertForSequenceClassification(config))


def deep_classifier() -> nn.Module:
    """A Llama that classifies texts."""
    return causal("LlamaForSequenceClassification", num_labels=CLASSES)


def _spread(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model


def texts(silent: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Rows of tokens of uneven lengths, some without labels."""
    draw = torch.Generator().manual_seed(11)
    rows = []
    for place in range(STEPS * ROWS):
        length = int(torch.randint(4, 12, (), generator=draw))
        tokens = torch.randint(3, VOCAB, (length,), generator=draw)
        labels = tokens.masked_fill(torch.rand(length, generator=draw) < 0.4, -100)
        if place in silent:
            labels = torch.full_like(labels, -100)
        rows.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    return rows


def classes(silent: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The same rows with a class each."""
    return [
        {**row, "labels": torch.tensor(-100 if place in silent else (place * place) % CLASSES)}
        for place, row in enumerate(texts())
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch, padded to its own longest row."""
    padding = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.stack([row[name] for row in rows])
        if rows[0][name].ndim == 0
        else nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in padding.items()
    }


@dataclass(frozen=True)
class Case:
    """A loss, a model, data, and how it is trained."""

    loss: str
    model: Callable[[], nn.Module] = causal
    rows: Callable[..., list[dict[str, Any]]] = texts
    silent: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """For `lossmith.loss`."""
    trainer: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    accumulated: bool = True
    """Whether k micro-batches are one batch."""
    wrappers: tuple[str, ...] = ("ddp", "fsdp2")


SILENT = (4, 5, 6, 7, 10, 11, 14, 15, 18, 19)
"""Under 4x1 all rows of rank 1 in the first step, under 2x2 both its micro-batches in the second, one in the third."""

JOINT = "0.4*cross_entropy + 0.6*soft_triple"
SIZES = {"num_classes": CLASSES, "embedding_dim": HIDDEN}

CASES = {
    "cross_entropy": Case("cross_entropy"),
    "focal tied": Case("focal", tied),
    "mixed sum": Case("0.6*cross_entropy + 0.4*lovasz_softmax", settings={"gather": True}, accumulated=False),
    "lora": Case("cross_entropy", adapted),
    "region": Case("lovasz_softmax", settings={"gather": True}, accumulated=False),
    "region tied": Case("dice", tied, settings={"gather": True}, accumulated=False),
    "region of a sequence": Case("generalized_dice", settings={"region": "sequence"}),
    "checkpointing": Case("focal", arguments={"gradient_checkpointing": True}),
    "silent": Case("cross_entropy", silent=SILENT),
    "average of sequences": Case("cross_entropy", trainer={"average": "sequence"}),
    "joint": Case(JOINT, classifier, classes, silent=(5, 13), arguments={"learning_rate": 1e-3}, wrappers=("ddp",)),
    "metric": Case(
        "0.5*cross_entropy + 0.5*supcon", deep_classifier, classes, settings={"gather": True}, accumulated=False
    ),
    "classifier": Case("focal", deep_classifier, classes, silent=SILENT),
}


RESUMED = (("joint", "ddp"), ("cross_entropy", "fsdp2"))
"""Case and wrapper that are also resumed from a checkpoint."""

BY_HAND: dict[str, tuple[str, dict[str, Any], bool, Callable[[], nn.Module]]] = {
    "row-local, root": ("focal", {}, False, causal),
    "row-local, unit": ("focal", {}, True, causal),
    "row-local, tied": ("focal", {}, False, tied),
    "recomputed, root": ("lovasz_softmax", {"gather": True}, False, causal),
    "recomputed, unit": ("lovasz_softmax", {"gather": True}, True, causal),
    "recomputed, tied": ("lovasz_softmax", {"gather": True}, False, tied),
}
"""Loss, its settings, whether the head is a unit of its own, model."""
