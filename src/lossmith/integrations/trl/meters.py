"""What preference training logs: sums and counts of rows, so that no value depends on how rows were batched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lossmith._typing import Tensor

Rows = Mapping[str, Tensor]
"""Statistics by name, one entry per pair or completion, without gradient."""

Sums = dict[str, tuple[Tensor, Tensor]]
"""Metric -> its sum and its count."""

DISPLACEMENT_NATS = 1.0
"""The alarm rings where good completions have become less than 1/e times as likely as under the reference."""


@dataclass(frozen=True)
class Reward:
    """The reward that a loss gives implicitly to a completion: beta times a log-ratio, per token for some losses."""

    beta: float
    per_token: bool
    """Whether the loss compares averages over tokens, as `simpo`, `orpo` and `dpo_length_normalized` do."""
    relative: bool
    """Whether there is a reference; without one the log-probability stands in the place of the log-ratio."""

    def of(self, logps: Tensor, ref_logps: Tensor | None, lengths: Tensor) -> Tensor:
        """Rewards [rows] in nats (per token where the loss averages)."""
        gained = logps if ref_logps is None else logps - ref_logps
        return self.beta * (gained / lengths.clamp(min=1) if self.per_token else gained)


def pair_sums(rows: Rows, reward: Reward) -> Sums:
    """Sums over pairs that count: those whose completions both have a token.

    Args:
        rows: `chosen_logps`, `rejected_logps`, `chosen_lengths`, `rejected_lengths`, `entropy` (summed over the tokens
            of both) and, with a reference, `ref_chosen_logps` and `ref_rejected_logps`, each [pairs].
        reward: How rewards are made.
    """
    valid = (rows["chosen_lengths"] > 0) & (rows["rejected_lengths"] > 0)
    pairs = valid.sum()
    chosen, rejected = (
        reward.of(rows[f"{side}_logps"], rows.get(f"ref_{side}_logps"), rows[f"{side}_lengths"])
        for side in ("chosen", "rejected")
    )
    sums: Sums = {
        "nll": (-_over(rows["chosen_logps"], valid), _over(rows["chosen_lengths"], valid)),
        "entropy": (_over(rows["entropy"], valid), _over(rows["chosen_lengths"] + rows["rejected_lengths"], valid)),
        "logps/chosen": (_over(rows["chosen_logps"], valid), pairs),
        "logps/rejected": (_over(rows["rejected_logps"], valid), pairs),
        "rewards/chosen": (_over(chosen, valid), pairs),
        "rewards/rejected": (_over(rejected, valid), pairs),
        "rewards/margins": (_over(chosen - rejected, valid), pairs),
        # A tie is half right, as in lossmith.objectives.preference_accuracy.
        "rewards/accuracies": (_over(((chosen - rejected).sign() + 1) / 2, valid), pairs),
    }
    if reward.relative:
        sums["displacement/chosen"] = (_over(rows["chosen_logps"] - rows["ref_chosen_logps"], valid), pairs)
    return sums


def completion_sums(rows: Rows, reward: Reward) -> Sums:
    """Sums over completions with a token.

    Args:
        rows: `logps`, `ref_logps`, `lengths`, `entropy` (summed over the tokens) and `desirable`, each [completions].
        reward: How rewards are made.
    """
    valid = rows["lengths"] > 0
    good, bad = valid & rows["desirable"], valid & ~rows["desirable"]
    gained = rows["logps"] - rows["ref_logps"]
    rewards = reward.of(rows["logps"], rows["ref_logps"], rows["lengths"])
    right = torch.where(rows["desirable"], rewards.sign(), -rewards.sign())
    return {
        "nll": (-_over(rows["logps"], good), _over(rows["lengths"], good)),
        "entropy": (_over(rows["entropy"], valid), _over(rows["lengths"], valid)),
        "logps/chosen": (_over(rows["logps"], good), good.sum()),
        "logps/rejected": (_over(rows["logps"], bad), bad.sum()),
        "rewards/chosen": (_over(rewards, good), good.sum()),
        "rewards/rejected": (_over(rewards, bad), bad.sum()),
        "rewards/accuracies": (_over((right + 1) / 2, valid), valid.sum()),
        "displacement/chosen": (_over(gained, good), good.sum()),
    }


def finished(values: Mapping[str, float]) -> dict[str, float]:
    """Means, and what follows from them: the margin of unpaired completions and the displacement alarm."""
    logs = dict(values)
    if "rewards/margins" not in logs and {"rewards/chosen", "rewards/rejected"} <= set(logs):
        logs["rewards/margins"] = logs["rewards/chosen"] - logs["rewards/rejected"]
    if "displacement/chosen" in logs and "rewards/margins" in logs:
        fell = logs["displacement/chosen"] < -DISPLACEMENT_NATS
        logs["displacement/alarm"] = float(fell and logs["rewards/margins"] > 0)
    return logs


@dataclass
class Meter:
    """Sums and counts since the last log; means over all rows, micro-batches and ranks."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Take a micro-batch in."""
        for name, (total, count) in sums.items():
            both = torch.stack([wide(total.detach()), wide(count)])
            self.sums[name] = both + self.sums[name] if name in self.sums else both

    def means(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by name, those of nothing left out; the sums start again from nothing.

        Args:
            over_ranks: Adds a tensor up over the ranks.
        """
        if not self.sums:
            return {}
        names = list(self.sums)
        totals = over_ranks(torch.stack([self.sums[name] for name in names])).tolist()
        self.sums.clear()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


def _over(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of the values that count: a whole evaluation set may add up here."""
    return wide(torch.where(valid, values, torch.zeros_like(values))).sum()


def wide(values: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return values.double() if values.device.type != "mps" else values.float()
