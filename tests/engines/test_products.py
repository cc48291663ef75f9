"""Products of a CPU: oneDNN's are no less exact than torch's own, whatever the layout of their factors."""

import pytest
import torch
from torch.testing import assert_close

from lossmith.engines import products
from lossmith.engines.products import transposed_product


def _factors(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, inner, generator=generator), torch.randn(columns, inner, generator=generator)


def _error(product: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double().T
    return float((product.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("inner", [300, 576, 2048, 5000])
def test_rounding_does_not_grow_with_the_inner_axis(inner: int) -> None:
    left, right = _factors(96, inner, 160)
    assert _error(transposed_product(left, right), left, right) <= 1.6 * _error(left @ right.T, left, right)


@pytest.mark.parametrize("layout", ["rows", "transposed", "columns of a wider one", "every second column"])
@pytest.mark.parametrize("side", [0, 1])
def test_factors_of_any_layout(layout: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = list(_factors(128, 400, 130))
    own = factors[side]
    factors[side] = {
        "rows": own,
        "transposed": own.T.contiguous().T,
        "columns of a wider one": torch.cat([own, own], 1)[:, :400],
        "every second column": own.repeat_interleave(2, 1)[:, ::2],
    }[layout]
    seen: list[torch.Tensor] = []
    packed = products._packed

    def spy(part: torch.Tensor) -> torch.Tensor:
        seen.append(packed(part))
        return seen[-1]

    monkeypatch.setattr(products, "_packed", spy)
    assert_close(transposed_product(*factors), factors[0] @ factors[1].T, rtol=1e-5, atol=1e-4)
    # What is neither rows in a row nor columns in a row falls to a loop that is 600 times slower.
    assert len(seen) == 4
    assert all(part.is_contiguous() or part.T.is_contiguous() for part in seen)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_onednn_it_is_torchs_own() -> None:
    left, right = _factors(128, 400, 130)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(transposed_product(left, right), left @ right.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_up_before_the_product(dtype: torch.dtype) -> None:
    left, right = (part.to(dtype) for part in _factors(40, 50, 30))
    product = transposed_product(left, right)
    assert product.dtype == torch.float32
    assert_close(product, left.float() @ right.float().T, rtol=1e-5, atol=1e-5)
    assert transposed_product(left.double(), right.double()).dtype == torch.float64
