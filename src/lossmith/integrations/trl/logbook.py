"""What is noted from step to step and read when a trainer logs: means, shares of the gradient, the alarm."""

import warnings
from collections.abc import Callable, Mapping

import torch

from lossmith._typing import Tensor
from lossmith.errors import LossmithWarning
from lossmith.integrations.transformers.figures import gradient_squares
from lossmith.integrations.trl.meters import DISPLACEMENT_NATS, Meter, Sums, finished

OverRanks = Callable[[Tensor], Tensor]
"""Adds a tensor up over the ranks."""


class Logbook:
    """Notes of the steps since the last log."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._squares: dict[str, Tensor] = {}
        self._warned = False
        self._tokens: Tensor | float = 0.0

    def see(self, tokens: Tensor) -> None:
        """Count the tokens of a micro-batch, prompts included."""
        self._tokens = self._tokens + tokens

    def add(self, sums: Sums) -> None:
        """Sums and counts of a micro-batch."""
        self._meter.add(sums)

    def note_shares(self, parts: Mapping[str, Tensor], hidden: Tensor) -> None:
        """Squared norms of the gradients of a loss's terms with respect to the last hidden states.

        They add up over rows, so that micro-batches and ranks give the norms of the whole batch.
        """
        if not hidden.requires_grad:
            return
        for name, square in gradient_squares(parts, hidden).items():
            self._squares[name] = self._squares[name] + square if name in self._squares else square

    def read(self, over_ranks: OverRanks) -> dict[str, float]:
        """Means over all rows and ranks since the last reading, and shares of the gradient norm."""
        logs = finished(self._meter.means(over_ranks)) | self._shares(over_ranks)
        logs |= {"num_tokens": float(over_ranks(torch.as_tensor(self._tokens)))}
        if logs.get("displacement/alarm") and not self._warned:
            self._warned = True
            warnings.warn(
                f"The good completions lose likelihood while margins grow: their log-ratio to the reference is "
                f"{logs['displacement/chosen']:.2f} nats (the alarm rings below -{DISPLACEMENT_NATS:g}). Lower the "
                f"learning rate, raise beta, or add (more of) a term on their tokens, as in 'dpo + 0.1*cross_entropy'.",
                LossmithWarning,
                stacklevel=3,
            )
        return logs

    def _shares(self, over_ranks: OverRanks) -> dict[str, float]:
        if not self._squares:
            return {}
        names = list(self._squares)
        norms = over_ranks(torch.stack([self._squares[name] for name in names])).sqrt()
        self._squares.clear()
        shares = norms / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
        return {f"gradient_share/{name}": share for name, share in zip(names, shares.tolist(), strict=True)}
