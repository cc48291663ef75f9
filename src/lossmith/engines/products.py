"""The three matrix products of a linear map, each in the fastest exact form that the device has."""

import math

import torch

from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor

_ONEDNN_FLOPS = 2**22
"""Below this many multiplications the set-up of a oneDNN product costs more than it saves."""
_INNER = 320
"""oneDNN adds up the whole inner axis in one go, MKL in blocks: over 2,048 entries its error is 2.3 times MKL's, over
256 it is the same. So the inner axis comes in blocks of at most this length."""


def transposed_product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "columns inner"]) -> Tensor:
    """`left @ right.T`, summed in at least float32 and returned so.

    torch sends float32 products on a CPU to MKL, which on AMD takes its AVX2 path. oneDNN, which torch also carries,
    takes AVX-512: 400 against 200 GFLOPS on two cores of an EPYC 9005 for 320 x 576 by 576 x 2,048.
    """
    if left.device.type == "cuda" and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    left, right = at_least_float32(left), at_least_float32(right)
    if not _suits_onednn(left, right):
        return torch.mm(left, right.T)
    blocks = math.ceil(left.shape[1] / _INNER)
    if blocks == 1:
        return _onednn(left, right)
    total: Tensor | None = None
    for one, other in zip(left.tensor_split(blocks, 1), right.tensor_split(blocks, 1), strict=True):
        part = _onednn(one, other)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_packed(left), _packed(right), None, "none", [], "")


def _packed(part: Tensor) -> Tensor:
    """The same, its rows or its columns one after the other: on any other layout oneDNN falls to a reference loop, 600
    times slower.
    """
    return part if part.is_contiguous() or part.T.is_contiguous() else part.contiguous()


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.device.type == "cpu"
        and left.dtype == torch.float32
        and left.shape[0] * left.shape[1] * right.shape[0] >= _ONEDNN_FLOPS
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
