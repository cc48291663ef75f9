"""A run of a study inside transformers' Trainer: its clock, its progress, and what is measured on the way."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback


class Recorded(Protocol):
    """A trainer that keeps curves and a clock."""

    training_seconds: float

    def end_step(self) -> None:
        """An optimiser step is done."""


class Recorder(TrainerCallback):
    """Ends steps and epochs: curves, progress, and a clock that stands still while something is measured.

    Args:
        trainer: Whose steps these are.
        on_step: Called after every optimiser step with (step, planned steps).
        on_epoch: Called after every epoch with the trainer and the step, off the clock.
        measure: Called after every optimiser step with (step, planned steps), off the clock.
    """

    def __init__(
        self,
        trainer: Recorded,
        *,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[[Any, int], None] | None = None,
        measure: Callable[[int, int], None] | None = None,
    ):
        self.trainer, self.on_step, self.on_epoch, self.measure = trainer, on_step, on_epoch, measure
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A point of the curves, the progress, and the user's measurement."""
        self.trainer.end_step()
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)
        if self.measure is not None:
            self._stop()
            self.measure(state.global_step, state.max_steps)
            self._since = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The user's measurement."""
        self._stop()
        if self.on_epoch is not None:
            self.on_epoch(self.trainer, state.global_step)
        self._since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._stop()

    def _stop(self) -> None:
        self.trainer.training_seconds += time.perf_counter() - self._since
