"""What the discovered objectives are made of: three losses of a margin, and two statistics of a batch."""

import math

import torch.nn.functional as F

from lossmith._typing import Float, Tensor

FORMS = ("released", "discovered")
DISCOVERY_BETA = 0.05
"""Beta of the search; the corrected code divides by it to keep the shapes that the search saw."""
LARGEST_EXPONENT = 50.0
"""Where the exponential goes over into its tangent; exp(88.8) overflows float32."""


def logistic(x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """`-log sigmoid(x)`."""
    return -F.logsigmoid(x)


def hinge(x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """`max(0, 1 - x)`."""
    return F.relu(1 - x)


def exp_or_tangent(exponent: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """`e^exponent`, continued beyond 50 by its tangent there: the slope keeps its sign and nothing overflows."""
    beyond = F.relu(exponent - LARGEST_EXPONENT)
    return exponent.clamp(max=LARGEST_EXPONENT).exp() + math.exp(LARGEST_EXPONENT) * beyond


def batch_gauge(rho: Float[Tensor, " pairs"], beta: float, form: str) -> Float[Tensor, " pairs"]:
    """The margin as the statistics of the batch read it: bare, or in the unit of the search (`beta * rho / 0.05`)."""
    return rho * (beta / DISCOVERY_BETA) if form == "released" else rho


def batch_variance(values: Float[Tensor, " pairs"]) -> Float[Tensor, ""]:
    """Variance over the batch with divisor n - 1; 0 with gradient 0 where there is one value or none."""
    return (values - values.mean()).square().sum() / max(values.numel() - 1, 1)
