"""Small numerical pieces that keep losses exact at the ends of their range."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lossmith._typing import Float, Tensor


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast off: inside it a matrix product of float32 rows would be rounded to half precision."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision goes up to float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def safe_pow(base: Float[Tensor, "*shape"], exponent: float) -> Float[Tensor, "*shape"]:
    """`base ** exponent` for base >= 0 whose gradient at base 0 is 0, never inf or NaN.

    Plain `pow` has an infinite derivative at 0 for exponents below one, and the NaN that this makes downstream
    (inf * 0) would reach every parameter.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> safe_pow(x, 0.5).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    if exponent == 0:
        return torch.ones_like(base)
    positive = base > 0
    inside = torch.where(positive, base, torch.ones_like(base))
    return torch.where(positive, inside.pow(exponent), torch.zeros_like(base))


def masked_logsumexp(
    scores: Float[Tensor, "rows columns"], keep: Tensor, *, floor: float = -1e30
) -> Float[Tensor, " rows"]:
    """Log-sum-exp over the columns where `keep` is true; rows that keep nothing give `floor` with zero gradient."""
    return torch.logsumexp(scores.masked_fill(~keep, floor), dim=-1)


def safe_sqrt(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`sqrt(x)` for x >= 0 whose gradient at 0 is 0, never inf or NaN.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> safe_sqrt(x).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    return safe_pow(x, 0.5)
