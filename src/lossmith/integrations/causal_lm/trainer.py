"""Trainers of completion studies: any loss at the output embedding, and the released mix on built logits."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from lossmith.errors import TrainingDivergedError
from lossmith.integrations.causal_lm.released import ReleasedMix
from lossmith.integrations.recorder import Recorder
from lossmith.integrations.transformers import LossTrainer
from lossmith.nn import IGNORE_INDEX, LossModule


class Curves:
    """Keeps the objective and the plain NLL of every logged step, and stops at a loss that is no number."""

    _trainer: Any

    def keep_curves(
        self, on_step: Callable[[int, int], None] | None, measure: Callable[[int, int], None] | None
    ) -> None:
        """Begin; called once, after the Trainer is made.

        Args:
            on_step: Called after every optimiser step with (step, planned steps).
            measure: The same, off the clock.
        """
        trainer: Any = self
        self.curves: dict[str, list[list[float]]] = {"train_objective": [], "train_nll": []}
        self.training_seconds = 0.0
        self._recent: list[float] = []
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Recorder(self, on_step=on_step, measure=measure))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer; the means since the last log become points of the curves."""
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        step = float(self.state.global_step)  # pyright: ignore[reportAttributeAccessIssue]
        for curve, name in (("train_objective", "loss"), ("train_nll", "nll")):
            if name in logs:
                self.curves[curve].append([step, float(logs[name])])

    def check_finite(self, value: Tensor, micro_batches: int) -> None:
        """Note the loss of a micro-batch.

        Raises:
            TrainingDivergedError: If it is no number.
        """
        objective = float(value.detach()) * micro_batches
        if not math.isfinite(objective):
            step = self.state.global_step + 1  # pyright: ignore[reportAttributeAccessIssue]
            raise TrainingDivergedError(step, [*self._recent[-4:], objective])
        self._recent = [*self._recent[-3:], objective]

    def end_step(self) -> None:
        """Points of the curves are made when the Trainer logs."""


class CompletionTrainer(Curves, LossTrainer):
    """`LossTrainer` for studies of completions.

    Args:
        on_step: Called after every optimiser step with (step, planned steps).
        measure: The same, off the clock.
        **kwargs: As for `LossTrainer`.
    """

    def __init__(
        self,
        *,
        on_step: Callable[[int, int], None] | None = None,
        measure: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_curves(on_step, measure)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in `LossTrainer`; a loss that is no number ends training."""
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.check_finite(found[0] if isinstance(found, tuple) else found, self._micro_batches)
        return found


class ReleasedTrainer(Curves, Trainer):
    """transformers' Trainer with the released mix of losses: masked rows zeroed, logits built, means per micro-batch.

    For showing what the released behaviour does; `CompletionTrainer` is the exact one.

    Args:
        loss: A composition whose terms without a scope read all labels, those with `[answer]` the answer's.
        on_step: Called after every optimiser step with (step, planned steps).
        measure: The same, off the clock.
        **kwargs: As for the Trainer.
    """

    def __init__(
        self,
        *,
        loss: str | LossModule,
        on_step: Callable[[int, int], None] | None = None,
        measure: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.loss = ReleasedMix(str(loss))
        # The loss is a mean over its own micro-batch, which the Trainer divides by their number.
        self.model_accepts_loss_kwargs = False
        self._nll: list[Tensor] = []
        self.keep_curves(on_step, measure)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The released mix on one micro-batch."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        value = self.loss.on_batch(outputs.logits, inputs)
        if model.training:
            self.check_finite(value, 1)
            with torch.no_grad():
                labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
                self._nll.append(F.cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten()))
        return (value, outputs) if return_outputs else value

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the plain NLL since the last log."""
        if "loss" in logs and self._nll:
            logs["nll"] = float(torch.stack(self._nll).mean())
            self._nll.clear()
        super().log(logs, *args, **kwargs)
