"""Pairs, completions, a tiny model and oracles on dense logits: what the tests of the TRL trainers share."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import DPOConfig, KTOConfig

from reference_inputs import tokenizer

PAD, EOS = 57, 58

OF_OTHERS = (
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
"""What transformers 5.23 says of TRL's and PEFT's own code."""


def words() -> Any:
    """One word, one token; no special token is the beginning of another word."""
    return tokenizer(template=None, pad_token=f"w{PAD}", eos_token=f"w{EOS}")


def _text(draw: random.Random, low: int, high: int) -> str:
    # A blank at the end, so that the end of sequence that TRL appends is a word of its own.
    return "".join(f"w{draw.randrange(1, PAD)} " for _ in range(draw.randint(low, high)))


def pairs(count: int = 8, seed: int = 0) -> Dataset:
    """Pairs of uneven lengths."""
    draw = random.Random(seed)
    rows = [
        {"prompt": _text(draw, 2, 5), "chosen": _text(draw, 1, 7), "rejected": _text(draw, 1, 7)} for _ in range(count)
    ]
    return Dataset.from_list(rows)


def completions(count: int = 8, seed: int = 0) -> Dataset:
    """Unpaired completions of uneven lengths; three of eight are desirable."""
    draw = random.Random(seed)
    return Dataset.from_list(
        [
            {"prompt": _text(draw, 2, 5), "completion": _text(draw, 1, 7), "label": row % 8 in (0, 3, 4)}
            for row in range(count)
        ]
    )


def configuration(kind: type, folder: Any, **settings: Any) -> DPOConfig | KTOConfig:
    """Plain SGD without clipping, one step, rows in their order."""
    described = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        **settings,
    }
    return kind(**described)


class Gradients(TrainerCallback):
    """The gradients of every optimiser step, by parameter."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Gradients are the same, relative to the norm of all."""
    norm = torch.sqrt(sum(grad.double().square().sum() for grad in wanted.values()))
    assert norm > 1e-3
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        error = float((found[name].double() - grad.double()).norm() / norm)
        assert error <= tolerance, f"{name}: {error:.2e} of the gradient norm"


def gradients_of(model: Any, value: Tensor) -> dict[str, Tensor]:
    """By parameter, of a value that was computed by hand."""
    model.zero_grad()
    value.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def tokens_of(text: str) -> list[int]:
    """Word-level ids: `w17` is 17."""
    return [int(word[1:]) for word in text.split()]


def token_scores(model: Any, prompt: str, completion: str) -> Tensor:
    """Log-probability of each token of a completion and its end, from dense logits of this row alone."""
    given, answer = tokens_of(prompt), [*tokens_of(completion), EOS]
    logits = model(input_ids=torch.tensor([given + answer])).logits[0]
    logs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return torch.stack([logs[len(given) + place - 1, token] for place, token in enumerate(answer)])


Scores = dict[str, list[Tensor]]


def pair_scores(model: Any, data: Dataset) -> Scores:
    """Token scores of the chosen and rejected completions of each pair."""
    return {side: [token_scores(model, row["prompt"], row[side]) for row in data] for side in ("chosen", "rejected")}


def pair_inputs(model: Any, reference: Any, data: Dataset) -> dict[str, Tensor]:
    """Inputs of preference losses; the reference is rounded as TRL's collator rounds it."""
    policy = pair_scores(model, data)
    given = {f"{side}_logps": torch.stack([s.sum() for s in scores]) for side, scores in policy.items()}
    with torch.no_grad():
        for side, scores in pair_scores(reference, data).items():
            given[f"ref_{side}_logps"] = torch.stack([s.sum() for s in scores]).float()
    return given | {f"{side}_lengths": torch.tensor([len(s) for s in policy[side]]) for side in policy}


def good_logits(model: Any, texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Dense logits and targets of the tokens of some completions."""
    rows, targets = [], []
    for prompt, completion in texts:
        given, answer = tokens_of(prompt), [*tokens_of(completion), EOS]
        rows.append(model(input_ids=torch.tensor([given + answer])).logits[0, len(given) - 1 : -1])
        targets += answer
    return torch.cat(rows), torch.tensor(targets)


def dpo_by_hand(model: Any, reference: Any, data: Dataset, beta: float = 0.1) -> Tensor:
    """Mean over pairs of -log sigmoid(beta * margin of log-ratios)."""
    given = pair_inputs(model, reference, data)
    chosen = given["chosen_logps"] - given["ref_chosen_logps"]
    return -F.logsigmoid(beta * (chosen - given["rejected_logps"] + given["ref_rejected_logps"])).mean()


def nll_by_hand(model: Any, texts: list[tuple[str, str]]) -> Tensor:
    """Mean over tokens."""
    return -torch.cat([token_scores(model, *text) for text in texts]).mean()
