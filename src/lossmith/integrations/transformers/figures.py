"""What is logged beside a loss: plain NLL, entropy, shares of the gradient; exact means over an evaluation set."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lossmith.nn import LossModule

AddUp = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks."""


class TrainingFigures:
    """Sums and counts since the last log, as quotients when they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._shares: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Values of a figure that is averaged over all its items."""
        total = values.detach().double().sum() if values.device.type != "mps" else values.detach().sum()
        self._sums[name].append(torch.stack([total, total.new_tensor(values.numel())]))

    def add_gradients(self, squares: Mapping[str, Tensor]) -> None:
        """Squared norm of each term's gradient in one micro-batch."""
        for name, square in squares.items():
            self._shares[name].append(square)

    def take(self, add_up: AddUp) -> dict[str, float]:
        """The figures, over all ranks; then start anew."""
        found: dict[str, float] = {}
        for name in sorted(self._sums):
            total, count = add_up(torch.stack(self._sums[name]).sum(0)).tolist()
            if count:
                found[name] = total / count
        norms = {
            name: float(add_up(torch.stack(squares).sum())) ** 0.5 for name, squares in sorted(self._shares.items())
        }
        whole = sum(norms.values())
        found |= {f"gradient_share/{name}": norm / whole for name, norm in norms.items() if whole > 0}
        self._sums.clear()
        self._shares.clear()
        return found


class EvaluationFigures:
    """Sums and counts over an evaluation set: means that do not depend on how it was cut into batches."""

    def __init__(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._figures: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], figures: Mapping[str, Tensor]) -> None:
        """Take a batch in.

        Args:
            terms: By name of a term of the loss, sum and count over all ranks, [2].
            figures: The same of what is logged beside the loss.
        """
        for kept, given in ((self._terms, terms), (self._figures, figures)):
            for name, sums in given.items():
                total = sums.detach().cpu().double()
                kept[name] = kept[name] + total if name in kept else total

    def take(self) -> dict[str, float]:
        """The loss (the sum of its terms, each divided by its own items) and the figures; then start anew."""
        terms = [float(total / count) if count > 0 else 0.0 for total, count in self._terms.values()]
        found = {"loss": sum(terms)} if terms else {}
        found |= {name: float(total / count) for name, (total, count) in self._figures.items() if count > 0}
        self.__init__()
        return found


def gradient_squares(parts: Mapping[str, Tensor], shared: Tensor) -> dict[str, Tensor]:
    """Squared norm of the gradient of each part with respect to what all are computed from."""
    squares = {}
    for name, part in parts.items():
        (gradient,) = torch.autograd.grad(part, shared, retain_graph=True, allow_unused=True)
        squares[name] = shared.new_zeros(()) if gradient is None else gradient.detach().float().square().sum()
    return squares


def has_terms(loss: LossModule) -> bool:
    """Whether it is a sum of several terms."""
    return len(getattr(loss, "terms", ())) > 1


def logs_next(args: Any, state: Any) -> bool:
    """Whether transformers' Trainer is going to log after the optimiser step under way."""
    step, strategy = state.global_step + 1, args.logging_strategy
    if strategy == "steps":
        return step % max(state.logging_steps, 1) == 0 or (args.logging_first_step and step == 1)
    if strategy != "epoch":
        return False
    if step >= state.max_steps:
        return True
    if not state.epoch:
        return state.max_steps <= state.num_train_epochs
    # Steps are equally long but for a shorter one at the end of an epoch.
    after = state.epoch * step / state.global_step
    return math.floor(after + 1e-6) > math.floor(state.epoch + 1e-6)
