"""Tiny causal language models, ragged rows, collators that pad or pack them, and one step of a Trainer over them."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

VOCAB, HIDDEN = 61, 16
TOLERANCE = 1e-6
"""Of the norm of the whole gradient, in float32."""
IGNORED = -100

DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What most decoder configurations call their sizes."""

Row = dict[str, list[int]]
Gradients = dict[str, Tensor]


def causal_model(kind: str = "Llama", *, seed: int = 0, **settings: Any) -> Any:
    """A random model in evaluation mode whose logits differ enough for every term of a loss to matter."""
    sizes = {"GPT2": gpt2_sizes(), "GPTJ": {**gpt2_sizes(), "rotary_dim": 4}, "OPT": opt_sizes()}.get(kind, DECODER)
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **settings})
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(seed)
    return spread_out(getattr(transformers, name)(config)).eval()


def spread_out(model: Any, spread: float = 0.3) -> Any:
    """The model with larger random weights: logits differ, and the gradient of every part is far from zero."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=float("norm" in name or "ln_" in name), std=spread)
    return model


def gpt2_sizes() -> dict[str, Any]:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 64, **ends, **drops}


def opt_sizes() -> dict[str, Any]:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"vocab_size": VOCAB, "hidden_size": HIDDEN, "ffn_dim": 32, "num_hidden_layers": 2, "dropout": 0.0,
            "num_attention_heads": 2, "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 64, **ends}  # fmt: skip


def ragged_rows(lengths: Sequence[int] = (5, 9, 12, 4, 7, 10, 6, 11), *, seed: int = 0) -> list[Row]:
    """Rows of token ids; the first third of the labels of each is a prompt, the fourth row is nothing else."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        prompt = length if number == 3 else length // 3
        answer = [int(place % 3 != number % 3) for place in range(length)]
        labels = [IGNORED] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "labels": labels, "answer_mask": answer, "attention_mask": [1] * length})
    return rows


PADDING = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0, "answer_mask": 0}


def padded(side: str = "right", *names: str) -> Callable[[list[Row]], dict[str, Tensor]]:
    """A collator that pads."""

    def collate(rows: list[Row]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows) + 1
        batch = {}
        for name in ("input_ids", "labels", "attention_mask", *names):
            filled = [(row[name], [PADDING[name]] * (width - len(row[name]))) for row in rows]
            batch[name] = torch.tensor([pad + own if side == "left" else own + pad for own, pad in filled])
        return batch

    return collate


def packed(*names: str) -> Callable[[list[Row]], dict[str, Tensor]]:
    """A collator that puts all rows behind each other; position ids tell where one begins."""

    def collate(rows: list[Row]) -> dict[str, Tensor]:
        joined = {name: [entry for row in rows for entry in row[name]] for name in ("input_ids", "labels", *names)}
        joined["position_ids"] = [place for row in rows for place in range(len(row["input_ids"]))]
        return {name: torch.tensor([entries]) for name, entries in joined.items()}

    return collate


def targets_of(row: Row) -> list[int]:
    """Labels of a row that is alone, shifted: written out here once more."""
    return [*row["labels"][1:], IGNORED]


def gradients(model: nn.Module) -> Gradients:
    """A copy of every gradient."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: Gradients, expected: Gradients) -> float:
    """The largest difference of one parameter's gradient, as a share of the norm of the whole."""
    assert found.keys() == expected.keys()
    whole = math.sqrt(sum(float(value.double().square().sum()) for value in expected.values()))
    assert whole > 0
    return max(float((found[name] - expected[name]).norm()) for name in expected) / whole


@contextmanager
def quick_trainers() -> Iterator[None]:
    """The Trainer collects garbage before it trains: without what is here to stay that takes no time.

    On one thread: a second one has nothing to do at these sizes, and on a busy machine the first would wait for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


class Recorder(TrainerCallback):
    """Gradients of every optimiser step."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.steps: list[Gradients] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(gradients(self.module))


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    known = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "report_to": "none",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "seed": 0,
    }
    return TrainingArguments(str(folder), **{**known, **settings})


def log_entry(trainer: Any, key: str = "loss") -> dict[str, float]:
    """The first log that has this figure."""
    return next(entry for entry in trainer.state.log_history if key in entry)


@torch.no_grad()
def label_rows(model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[list[float], int, int]]]:
    """For each row, run alone, the logits in double precision and label of each place that counts, and that place."""
    model = model.eval()
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().tolist()
        targets = targets_of(dict(row))
        found.append([(logits[t], y, t) for t, y in enumerate(targets) if y != IGNORED])
    return found
