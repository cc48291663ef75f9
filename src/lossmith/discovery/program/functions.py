"""What the operators compute on tensors where torch alone would not do; exported losses import four of these."""

import torch

from lossmith._numerics import safe_sqrt
from lossmith._typing import Tensor


def var_batch(values: Tensor) -> Tensor:
    """Variance over the batch with divisor n - 1; 0 with gradient 0 where there is one value or none."""
    return (values - values.mean()).square().sum() / max(values.numel() - 1, 1)


def std_batch(values: Tensor) -> Tensor:
    """Root of `var_batch`; 0 with gradient 0 where nothing varies; no epsilon, so z/std of one pair is not finite.

    Example:
        >>> std_batch(torch.tensor([1.0, 3.0])), std_batch(torch.tensor([5.0]))
        (tensor(1.4142), tensor(0.))
    """
    return safe_sqrt(var_batch(values))


def mean_masked(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where `mask` is True; 0 with gradient 0 where it never is."""
    # Zeros, not a product with the mask: a non-finite value outside must not reach the gradient.
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum(-1) / mask.sum(-1).clamp(min=1)


def number(value: Tensor | float, like: Tensor) -> Tensor:
    """A plain number as a tensor without axes, of the type and on the device of `like`; a tensor as it is.

    Example:
        >>> number(0.5, torch.ones(3, dtype=torch.float64))
        tensor(0.5000, dtype=torch.float64)
    """
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)


def maximum(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """The larger one, where either may be a plain number."""
    if isinstance(a, Tensor):
        return torch.maximum(a, b if isinstance(b, Tensor) else torch.full_like(a, b))
    return torch.maximum(torch.full_like(b, a), b) if isinstance(b, Tensor) else max(a, b)


def minimum(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """The smaller one, where either may be a plain number."""
    if isinstance(a, Tensor):
        return torch.minimum(a, b if isinstance(b, Tensor) else torch.full_like(a, b))
    return torch.minimum(torch.full_like(b, a), b) if isinstance(b, Tensor) else min(a, b)


def clamp(values: Tensor | float, low: float, high: float) -> Tensor | float:
    """Values kept in [low, high], either of which may be infinite."""
    if isinstance(values, Tensor):
        return values.clamp(None if low == -torch.inf else low, None if high == torch.inf else high)
    return min(max(values, low), high)


def power(values: Tensor | float, exponent: float) -> Tensor | float:
    """`values ** exponent`; NaN instead of a complex number for a negative plain one."""
    if isinstance(values, Tensor):
        return values.pow(exponent)
    return float(torch.tensor(values, dtype=torch.float64).pow(exponent))


def divide(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """`a / b`; plain numbers divide as tensors do, without an exception at 0."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a / b
    return float(torch.tensor(a, dtype=torch.float64) / b)


def logical_and(a: Tensor | bool, b: Tensor | bool) -> Tensor | bool:
    """Both."""
    return a & b


def logical_or(a: Tensor | bool, b: Tensor | bool) -> Tensor | bool:
    """Either."""
    return a | b


def logical_not(a: Tensor | bool) -> Tensor | bool:
    """The opposite."""
    return ~a if isinstance(a, Tensor) else not a


def choose(mask: Tensor | bool, a: Tensor | float, b: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    """`a` where the mask is True, else `b`."""
    if not isinstance(mask, Tensor):
        picked, other = (a, b) if mask else (b, a)
        if not isinstance(other, Tensor):
            return picked
        # Whatever is picked has the axes of both.
        return torch.broadcast_tensors(number(picked, other), other)[0]
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        # torch takes two plain numbers for float32, whatever the inputs are.
        return torch.where(mask, torch.full((), a, dtype=dtype, device=mask.device), b)
    return torch.where(mask, a, b)


def to_float(mask: Tensor | bool, dtype: torch.dtype) -> Tensor | float:
    """1.0 where True, else 0.0, in the type of the inputs."""
    return mask.to(dtype) if isinstance(mask, Tensor) else float(mask)
