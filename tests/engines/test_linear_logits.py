"""Every loss on linear logits, by every engine, against logits that exist: values and gradients."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from linear_cases import (
    HIDDEN,
    LOSSES,
    NAMES,
    REGION,
    TOKENS,
    VOCAB,
    Case,
    draw,
    of,
    run,
    small_tiles,
    upstream_for,
)
from lossmith.engines.tiles import ChunkedPass

SHAPES = {
    "weight alone": {"bias": False, "ignored": False},
    "bias": {},
    "scale": {"scale": 0.37},
    "soft-cap": {"softcap": 2.5},
    "scale and soft-cap": {"scale": -1.7, "softcap": 1.5, "bias": False},
}
PLANS = {"gradient in forward": {"reduction": "mean"}, "sum": {"reduction": "sum"}, "recompute": {"reduction": "none"}}


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles():
        yield


def _agree(found: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]], *, atol: float = 1e-12) -> None:
    for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        assert_close(one, other, rtol=1e-10, atol=atol)


def test_chunks_and_tiles_do_not_divide_the_sizes() -> None:
    case = draw()
    plan = lossmith.loss("cross_entropy").plan(case.fresh().linear(), case.labels)
    assert (plan.items, plan.chunks) == (32, 5)
    work = ChunkedPass(linear=case.linear(), places=None, classes=case.labels, reads=frozenset())
    for kept in (True, False):
        rows, columns = work.tile_shape(kept=kept)
        assert TOKENS % rows
        assert VOCAB % columns
        assert len(work.row_chunks(rows)) > 2
        assert len(work.column_tiles(columns)) > 3


@pytest.mark.parametrize("text", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_loss_equals_the_one_on_logits(text: str, shape: str) -> None:
    case = draw(**SHAPES[shape])
    for call in PLANS.values():
        wanted = run(text, case, None, **call)
        for impl in ("chunked", "dense"):
            _agree(run(text, case, impl, **call), wanted)
    if shape == "bias":
        _agree(run(text, case, "auto"), run(text, case, None))


@pytest.mark.parametrize("text", NAMES)
def test_tied_weights_add_up(text: str) -> None:
    case, ids = draw(), torch.arange(TOKENS) * 7 % VOCAB

    def slopes(impl: str | None, **call: str) -> tuple[Tensor, list[Tensor]]:
        weight = case.weight.clone().requires_grad_()
        value = of(lossmith.loss(text), replace(case, hidden=torch.tanh(weight[ids]), weight=weight), impl, **call)
        return value, list(torch.autograd.grad(value, [weight], upstream_for(value)))

    for reduction in ("mean", "none"):
        _agree(slopes("chunked", reduction=reduction), slopes(None, reduction=reduction))


# Special rows and sizes.


def _certain(case: Case, gap: float) -> Case:
    """The label's score exceeds the others' by about `gap`."""
    labels = case.labels.masked_fill(case.labels == -100, 1)
    return replace(case, hidden=gap / (0.36 * HIDDEN) * case.weight[labels], bias=None)


def _masked() -> Case:
    case = draw()
    assert case.bias is not None
    # Whole tiles of classes that cannot be are among them.
    labels = torch.where((case.labels >= 20) & (case.labels < 36), 19, case.labels)
    absent = [c for c in range(VOCAB) if c not in labels.tolist()]
    bias = case.bias.index_fill(0, torch.tensor(absent[::2]), -torch.inf)
    bias[20:36] = -torch.inf
    return replace(case, bias=bias, labels=labels)


def _only(place: int, value: float, others: float, size: int) -> Tensor:
    return torch.full((size,), others).index_fill(0, torch.tensor(place), value)


SPECIAL = {
    "one row": lambda: draw(1, ignored=False),
    "one row that counts": lambda: replace(
        draw(), labels=torch.full((TOKENS,), -100).index_fill(0, torch.tensor(9), 4)
    ),
    "one class": lambda: replace(draw(vocab=1), labels=draw(vocab=1).labels.clamp(max=0)),
    "two classes": lambda: draw(vocab=2),
    "masked classes": _masked,
    "masked but the label": lambda: replace(
        draw(),
        labels=torch.full((TOKENS,), 3),
        bias=torch.full((VOCAB,), -torch.inf).index_fill(0, torch.tensor(3), 0.5),
    ),
    "near 1": lambda: _certain(draw(), 40.0),
    "near 0": lambda: _certain(draw(), -40.0),
    "logits of 1e4": lambda: replace(draw(), hidden=4e3 * draw().hidden),
    "far from 0": lambda: replace(draw(), bias=draw().bias + 1e4),
    "all equal": lambda: replace(draw(), weight=torch.zeros(VOCAB, HIDDEN, dtype=torch.float64), bias=None),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("text", [*NAMES, "cross_entropy(label_smoothing=0.2)"])
def test_special_rows_and_sizes(text: str, special: str) -> None:
    if "smoothing" in text and special.startswith("masked"):
        pytest.skip("A class that cannot be has an infinite smoothed loss.")
    case = SPECIAL[special]()
    columns = len(case.weight)
    with small_tiles(columns=columns):
        for reduction in ("mean", "none"):
            found, wanted = (run(text, case, impl, reduction=reduction) for impl in ("chunked", None))
            if special in ("all equal", "near 1") and text == "lovasz_softmax":
                # Equal errors may be sorted either way.
                found, wanted = (found[0], []), (wanted[0], [])
            # A saturated row's gradient is the rounding of a product with hidden states of 1e4.
            _agree(found, wanted, atol=max(1e-12, 1e-14 * float(case.hidden.abs().max())))


@pytest.mark.parametrize("text", [*LOSSES, "0.5*focal + 2*dice"])
def test_nothing_counts(text: str) -> None:
    case = replace(draw(), labels=torch.full((TOKENS,), -100))
    case = replace(case, hidden=case.hidden.index_fill(0, torch.tensor([2, 5]), torch.nan))
    for reduction in ("mean", "sum") if "+" in text else ("mean", "sum", "none"):
        value, slopes = run(text, case, reduction=reduction)
        assert bool((value == 0).all())
        for slope, part in zip(slopes, case.parts, strict=True):
            assert slope.shape[-1] == part.shape[-1]
            assert bool((slope == 0).all())


def test_no_rows_at_all() -> None:
    case = draw(1, ignored=False)
    case = replace(case, hidden=case.hidden[:0], labels=case.labels[:0])
    for text in ("cross_entropy", "lovasz_softmax"):
        value, slopes = run(text, case)
        assert value == 0
        assert not any(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("text", NAMES)
def test_rows_that_do_not_count_may_hold_anything(text: str) -> None:
    case = draw()
    spoilt = case.hidden.clone()
    spoilt[case.labels == -100] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300] + [0.0] * 15).double()
    for reduction in ("mean", "none"):
        wanted = run(text, case, reduction=reduction)
        value, slopes = run(text, replace(case, hidden=spoilt), reduction=reduction)
        assert torch.equal(value, wanted[0])
        for one, other in zip(slopes, wanted[1], strict=True):
            assert torch.equal(one, other)
        assert bool((slopes[0][case.labels == -100] == 0).all())


def test_any_axes_before_the_last() -> None:
    case = draw(24, ignored=True)
    wide = replace(case, hidden=case.hidden.reshape(2, 3, 4, -1), labels=case.labels.reshape(2, 3, 4))
    for text in ("focal", "dice"):
        found, wanted = run(text, wide), run(text, case)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1][0].flatten(0, 2), wanted[1][0])
    losses = of(lossmith.loss("focal"), wide, "chunked", reduction="none")
    assert losses.shape == (2, 3, 4)


def test_operands_need_not_be_contiguous() -> None:
    case = draw()
    strided = replace(
        case, hidden=case.hidden.T.contiguous().T, weight=torch.stack([case.weight, case.weight], dim=2)[..., 1]
    )
    for text in ("cross_entropy", "z_loss", "dice"):
        for reduction in ("mean", "none"):
            own = replace(strided, hidden=strided.hidden.requires_grad_(), weight=strided.weight.requires_grad_())
            value = of(lossmith.loss(text), own, "chunked", reduction=reduction)
            slopes = torch.autograd.grad(value, [own.hidden, own.weight], upstream_for(value))
            _agree((value, list(slopes)), (lambda r: (r[0], r[1][:2]))(run(text, case, None, reduction=reduction)))


# Error budgets: no worse than plain torch in the same dtype, and one rounding.


def _errors(text: str, dtype: torch.dtype, **call: str) -> dict[str, list[float]]:
    """Of the value and each gradient: root mean square error of chunked and of plain torch, in roundings."""
    squares: dict[str, list[Tensor]] = {}
    for seed in range(4):
        case = draw(seed=10 * seed).to(dtype)
        exact = run(text, case.to(torch.float64), None, **call)
        for impl in ("chunked", "dense"):
            found = run(text, case, impl, **call)
            names = ("value", "hidden", "weight", "bias")
            for name, own, true in zip(names, (found[0], *found[1]), (exact[0], *exact[1]), strict=True):
                assert own.dtype == (torch.float32 if name == "value" else dtype)
                rounding = torch.finfo(own.dtype).eps / 2 * true.abs().max()
                squares.setdefault(f"{name} {impl}", []).append(((own.double() - true) / rounding).square().mean())
    return {name: float(torch.stack(values).mean().sqrt()) for name, values in squares.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("text", LOSSES)
def test_error_is_within_the_budget(text: str, dtype: torch.dtype) -> None:
    for reduction in ("mean",) if text in REGION else ("mean", "none"):
        errors = _errors(text, dtype, reduction=reduction)
        for name in ("value", "hidden", "weight", "bias"):
            own, plain = errors[f"{name} chunked"], errors[f"{name} dense"]
            assert own <= plain + 1, f"{name} ({reduction}): {own:.3g} > {plain:.3g} + 1 roundings"
