"""The three matrix products of a linear map, each in the fastest exact form that the device has."""

import torch

from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor

_ONEDNN_FLOPS = 2**22
"""Below this many multiplications the set-up of a oneDNN product costs more than it saves."""


def transposed_product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "columns inner"]) -> Tensor:
    """`left @ right.T`, summed in at least float32 and returned so.

    torch sends float32 products on a CPU to MKL, which on AMD takes its AVX2 path. oneDNN, which torch also carries,
    takes AVX-512: 400 against 200 GFLOPS on two cores of an EPYC 9005 for 320 x 576 by 576 x 2,048.
    """
    if left.device.type == "cuda" and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    left, right = at_least_float32(left), at_least_float32(right)
    if _suits_onednn(left, right):
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return torch.mm(left, right.T)


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.device.type == "cpu"
        and left.dtype == torch.float32
        and left.shape[0] * left.shape[1] * right.shape[0] >= _ONEDNN_FLOPS
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
