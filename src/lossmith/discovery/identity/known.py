"""One published loss at one place of its hyper-parameters: its text, how simple it is, and its gradients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lossmith.discovery.identity.fingerprint import Fingerprint, of_gradients
from lossmith.discovery.identity.probes import Probes
from lossmith.errors import ObjectiveInputError
from lossmith.objectives import ObjectiveRecord

FIRST = {"preference": "dpo", "token": "cross_entropy", "metric": "supcon"}
"""Family -> the loss that names a tie, and that a run has for its control."""
STRENGTHS = ("beta", "temperature", "scale")
"""Hyper-parameters that say how strong a loss is, and not which one."""


@dataclass(frozen=True, eq=False)
class Known:
    """A loss of the library with its settings."""

    record: ObjectiveRecord
    settings: dict[str, Any]

    @property
    def strength(self) -> str | None:
        """Name of the setting that says how strong it is, if there is one."""
        return next((name for name in STRENGTHS if name in self.settings), None)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Name and settings but for the strength: what a change of strength leaves as it is."""
        return (self.record.name, *((name, value) for name, value in self.settings.items() if name != self.strength))

    @property
    def slow(self) -> bool:
        """Whether its gradients are taken batch by batch, which costs milliseconds."""
        return self.record.family == "metric" or self.record.batch_coupled

    def at(self, strength: float) -> "Known":
        """The same loss at another strength."""
        assert self.strength is not None
        return Known(self.record, {**self.settings, self.strength: strength})

    @property
    def text(self) -> str:
        """As `lossmith.loss` takes it, without what is at its default."""
        changed = {name: value for name, value in self.settings.items() if value != self.record.hyperparameters[name]}
        inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"{self.record.name}({inside})" if inside else self.record.name

    @property
    def rank(self) -> float:
        """Number of settings away from the default, the strength not counted; the smaller one names a tie."""
        changed = [
            name
            for name, value in self.settings.items()
            if name != self.strength and value != self.record.hyperparameters[name]
        ]
        return len(changed) + (0.0 if self.record.name in FIRST.values() else 0.5)

    def fingerprint(self, points: Probes) -> Fingerprint | None:
        """Its gradients at probe points; None where the settings contradict each other or nothing is finite."""
        try:
            flows = self._gradients(points)
        except ObjectiveInputError:
            # A contradictory place of the grid: `tau` in the discovered form, smoothing of 0 in `exo_pair`.
            return None
        return of_gradients(points.family, points.seed, points.chained(flows))

    def _gradients(self, points: Probes) -> dict[str, Any]:
        record = self.record
        batches = len(next(iter(points.inputs.values())))
        wanted = [name for name in record.reads if name in points.trained]
        parts = [points.tensors(batch) for batch in range(batches)] if self.slow else [points.joined()]
        collected: dict[str, list[Any]] = {name: [] for name in wanted}
        for given in parts:
            leaves = {name: given[name].requires_grad_() if name in wanted else given[name] for name in record.reads}
            losses = record.function(**leaves, **self.settings)
            slopes = torch.autograd.grad(losses.sum(), [leaves[name] for name in wanted], allow_unused=True)
            for name, slope in zip(wanted, slopes, strict=True):
                collected[name].append((torch.zeros_like(leaves[name]) if slope is None else slope).numpy())
        shape = points.inputs[points.trained[0]].shape
        return {
            name: np.concatenate([part.ravel() for part in parts]).reshape(shape) for name, parts in collected.items()
        }
