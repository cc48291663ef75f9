"""A mean over everything that was seen so far, in `state_dict`."""

from collections.abc import Callable
from typing import final

import torch
from torch import nn

from lossmith._typing import Float, Tensor


@final
class RunningMean(nn.Module):
    """Mean of all values given to `observe`; 0 before the first. It stays float32 where its loss is cast to half."""

    average: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, values: Float[Tensor, "*shape"]) -> None:
        """Take the values in."""
        self.count = self.count + values.numel()
        # The mean moves towards the new values by their share: no sum grows until it swallows them.
        step = (values.to(self.average.dtype) - self.average).sum() / self.count.clamp(min=1)
        self.average = self.average + step

    def mean(self, like: Tensor) -> Float[Tensor, ""]:
        """The mean so far, without a graph, in the dtype of `like`."""
        return self.average.to(like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMean":
        exact = self.average
        super()._apply(fn, recurse)
        self.average = exact.to(self.average.device) if self.average.element_size() < 4 else self.average
        return self
