"""What a Trainer does for the parameters of its model, done for those of a loss."""

from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import TrainerCallback

from lossmith.nn import LossModule


class OwnParameters(TrainerCallback):
    """The loss's own parameters are nobody's submodule: the same on all ranks, averaged, and cleared."""

    def __init__(self, loss: LossModule, accelerator: Accelerator):
        self._loss = loss
        self._accelerator = accelerator

    @property
    def _own(self) -> list[nn.Parameter]:
        return list(self._loss.parameters())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every rank begins with the parameters of the first."""
        if self._accelerator.num_processes > 1:
            for parameter in self._own:
                parameter.data.copy_(cast("Tensor", broadcast(parameter.data, from_process=0)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are averaged over ranks, as those of the model are."""
        for parameter in self._own if self._accelerator.num_processes > 1 else []:
            if parameter.grad is not None:
                parameter.grad = cast("Tensor", self._accelerator.reduce(parameter.grad, reduction="mean"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer clears gradients of its model only."""
        self._loss.zero_grad()
