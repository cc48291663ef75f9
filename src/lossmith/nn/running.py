"""A mean over everything that was seen so far, in `state_dict`."""

from collections.abc import Callable
from typing import final

import torch
from torch import nn

from lossmith._typing import Float, Tensor


@final
class RunningMean(nn.Module):
    """Mean of all values given to `observe`; 0 before the first."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, values: Float[Tensor, "*shape"]) -> None:
        """Take the values in."""
        self.total = self.total + values.sum().to(self.total.dtype)
        self.count = self.count + values.numel()

    def mean(self, like: Tensor) -> Float[Tensor, ""]:
        """The mean so far, without a graph, in the dtype of `like`."""
        return (self.total / self.count.clamp(min=1)).to(like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMean":
        super()._apply(fn, recurse)
        # A loss cast to half precision keeps the sum of many steps exact; MPS has no float64.
        self.total = self.total.to(torch.float32 if self.total.device.type == "mps" else torch.float64)
        return self
