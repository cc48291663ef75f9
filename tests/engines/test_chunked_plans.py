"""What `loss.plan` says is what happens; and both plans under everything that autograd may do with a loss."""

import gc
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from linear_cases import HIDDEN, LOSSES, VOCAB, Case, Probe, draw, normal, of, run, small_tiles, upstream_for
from lossmith import ObjectiveInputError
from lossmith.engines import tiles

IN_FORWARD = {"reduction": "mean"}
AGAIN = {"reduction": "none"}
CALLS = [pytest.param(IN_FORWARD, id="in forward"), pytest.param(AGAIN, id="recompute")]
PLANS = ["cross_entropy(label_smoothing=0.1)", "confidence_penalty", "mile", "dice", "lovasz_softmax"]
"""A loss of every kind: two of rows, two plans by `reduction`; coupled rows; a mass; columns."""
SMOOTH = [
    "cross_entropy(label_smoothing=0.1)",
    "confidence_penalty - 2*z_loss(coefficient=0.1)",
    "unlikelihood",
    "dice",
]
"""Without constants inside, so that differences of values are gradients."""


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles():
        yield


def _freeze(case: Case, *frozen: str) -> Case:
    own = case.fresh()
    for name in frozen:
        getattr(own, name).requires_grad_(False)
    return own


# What the plan says, and what happens.

ROW, MEAN = r"Each row's loss is its own", {"reduction": "mean"}
EXPECTED: dict[str, tuple[str, Any, str, int, str]] = {
    "mean": ("focal", lambda case: MEAN, "gradient in forward", 3, ROW),
    "sum": ("focal", lambda case: {"reduction": "sum"}, "gradient in forward", 3, ROW),
    "weights": ("focal", lambda case: {"weights": case.labels.double().abs()}, "gradient in forward", 3, ROW),
    "num_items": ("focal", lambda case: {"num_items": 100}, "gradient in forward", 3, ROW),
    "entropy": ("confidence_penalty", lambda case: MEAN, "gradient in forward", 3, ROW),
    "a sum of rows": ("focal - 0.1*z_loss", lambda case: MEAN, "gradient in forward", 3, ROW),
    "none": ("focal", lambda case: {"reduction": "none"}, "recompute", 4, r"^Reduction 'none' leaves open"),
    "region": ("dice", lambda case: MEAN, "recompute", 4, r"^'dice' couples the rows of a batch"),
    "columns": ("lovasz_softmax", lambda case: MEAN, "recompute", 4, r"^'lovasz_softmax' couples the rows of a batch"),
    "coupled": ("mile", lambda case: MEAN, "recompute", 4, r"^'mile' couples the rows of the batch"),
    "a sum with a region": ("focal + 2*dice", lambda case: MEAN, "recompute", 4, r"^'dice' couples the rows"),
    "weights with a gradient": (
        "focal",
        lambda case: {"weights": torch.ones(len(case.labels), dtype=torch.float64, requires_grad=True)},
        "recompute",
        4,
        r"^Weights or `num_items` want a gradient too",
    ),
}


def _check(text: str, case: Case, call: dict[str, Any], name: str, products: int, reason: str = "", **by: str) -> None:
    """The plan's words, and the products that forward and backward make together."""
    module = lossmith.loss(text)
    linear = case.linear(**by)
    plan = module.plan(linear, case.labels, **call)
    assert (plan.name, plan.products) == (name, products), str(plan)
    assert plan.items == int((case.labels != -100).sum())
    if reason:
        assert re.search(reason, plan.reason), plan.reason
    with Probe() as probe:
        value = module(linear, case.labels, **call)
        if value.requires_grad:
            value.backward(upstream_for(value))
    # Narrow products with a region's classes come on top.
    extra = 1.0 if "dice" in text else 0.0
    assert products <= probe.products(case) < products + 1e-9 + extra, str(plan)


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_plan_is_what_happens(kind: str) -> None:
    text, call, name, products, reason = EXPECTED[kind]
    case = draw().fresh()
    _check(text, case, call(case), name, products, reason)


@pytest.mark.parametrize(
    ("frozen", "reduction", "products"),
    [
        (("weight",), "mean", 2),
        (("hidden",), "mean", 2),
        (("weight",), "none", 3),
        (("hidden",), "none", 3),
        (("hidden", "weight"), "mean", 1),
        (("hidden", "weight"), "none", 2),
        (("bias",), "mean", 3),
    ],
)
def test_frozen_parts_take_no_product(frozen: tuple[str, ...], reduction: str, products: int) -> None:
    name = "gradient in forward" if reduction == "mean" else "recompute"
    case = draw()
    own = _freeze(case, *frozen)
    _check("focal", own, {"reduction": reduction}, name, products)
    wanted = dict(zip(("hidden", "weight", "bias"), run("focal", case, None, reduction=reduction)[1], strict=True))
    for part, slope in wanted.items():
        grad = getattr(own, part).grad
        if part in frozen:
            assert grad is None
        else:
            assert_close(grad, slope, rtol=1e-10, atol=1e-12)


def test_without_gradients_there_is_one_product() -> None:
    case = draw()
    for text in ("focal", "dice"):
        _check(text, case, {}, "forward only", 1, r"^Neither hidden states nor the output matrix ask for a gradient")
        own = case.fresh()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                _check(text, own, {}, "forward only", 1)
                value = of(lossmith.loss(text), own, "chunked")
            assert not value.requires_grad
            assert_close(value, run(text, case, None)[0], rtol=1e-10, atol=0)


def test_where_no_row_counts_there_is_no_product() -> None:
    case = replace(draw(), labels=torch.full((37,), -100)).fresh()
    plan = lossmith.loss("focal").plan(case.linear(), case.labels)
    assert (plan.items, plan.products, plan.scratch_bytes) == (0, 0, 0)
    assert plan.reason == "No row counts."
    with Probe() as probe:
        of(lossmith.loss("focal"), case, "chunked").backward()
    assert probe.multiplications == 0


def test_plans_of_logits_that_exist() -> None:
    case = draw().fresh()
    module = lossmith.loss("focal + dice")
    plan = module.plan(case.logits(), case.labels)
    assert (plan.engine, plan.name, plan.products, plan.items) == ("dense", "dense", 0, 32)
    whole = replace(case, labels=case.labels.clamp(min=0))
    _check("focal", whole, {}, "dense", 3, r"builds the logits", impl="dense")
    with torch.no_grad():
        _check("focal", whole, {}, "dense", 1, impl="dense")


def test_chunks_and_scratch_come_from_the_budget() -> None:
    case = draw(bias=False, ignored=False).to(torch.float32).fresh()
    module = lossmith.loss("focal")
    for rows, chunks in ((1, 37), (2, 19), (10, 4), (37, 1), (1000, 1)):
        lossmith.set_chunk_budget(rows * VOCAB * 4)
        plan = module.plan(case.linear(), case.labels)
        assert plan.chunks == chunks
        assert plan.scratch_bytes <= rows * VOCAB * 4
        again = module.plan(case.linear(), case.labels, reduction="none")
        assert again.scratch_bytes <= rows * VOCAB * 4
    lossmith.set_chunk_budget(None)
    assert module.plan(case.linear(), case.labels).chunks == 1


def test_the_plan_computes_nothing_and_refuses_what_a_call_refuses() -> None:
    case = draw().fresh()
    with Probe() as probe:
        for text in LOSSES:
            lossmith.loss(text).plan(case.sequences.linear(), case.sequences.labels)
    assert probe.multiplications == 0
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`labels` must have one entry per row"):
        lossmith.loss("focal").plan(case.linear(), case.labels[:5])
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`reduction` must be one of"):
        lossmith.loss("focal").plan(case.linear(), case.labels, reduction="average")


# Autograd.


def _small(**settings: Any) -> Case:
    return draw(6, hidden=3, vocab=5, **settings).fresh()


def _function(text: str, case: Case, impl: str = "chunked", **call: Any) -> Callable[..., Tensor]:
    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return of(lossmith.loss(text), replace(case, hidden=hidden, weight=weight, bias=bias), impl, **call)

    return function


@pytest.mark.parametrize("text", [*SMOOTH, "focal(gamma=0.5)", "lovasz_softmax"])
@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(text: str, call: dict[str, str]) -> None:
    with small_tiles(2, columns=5):
        case = _small(scale=0.7, softcap=1.5)
        assert torch.autograd.gradcheck(_function(text, case, **call), case.parts, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("text", SMOOTH)
@pytest.mark.parametrize("call", CALLS)
def test_derivatives_of_derivatives(text: str, call: dict[str, str]) -> None:
    with small_tiles(2, columns=5):
        case = _small(softcap=2.0)
        assert torch.autograd.gradgradcheck(_function(text, case, **call), case.parts, atol=1e-6)

        def penalty(impl: str) -> list[Tensor]:
            own = case.fresh()
            value = of(lossmith.loss(text), own, impl, **call)
            slopes = torch.autograd.grad(value, own.parts, upstream_for(value), create_graph=True)
            total = value.sum() + torch.stack([slope.square().sum() for slope in slopes]).sum()
            return list(torch.autograd.grad(total, own.parts))

        for one, other in zip(penalty("chunked"), penalty("dense"), strict=True):
            assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("call", CALLS)
def test_backward_again_and_again(text: str, call: dict[str, str]) -> None:
    case = draw()
    own, other = case.fresh(), case.fresh()
    value, wanted = of(lossmith.loss(text), own, "chunked", **call), of(lossmith.loss(text), other, None, **call)
    for turn in range(3):
        upstream = normal(*value.shape, seed=turn)
        found, expected = (
            torch.autograd.grad(one, case.parts, upstream, retain_graph=turn < 2)
            for one, case in ((value, own), (wanted, other))
        )
        for slope, true in zip(found, expected, strict=True):
            assert_close(slope, true, rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, own.parts, upstream)


@pytest.mark.parametrize("call", CALLS)
def test_gradients_handed_out_do_not_change_later(call: dict[str, str]) -> None:
    """A second backward must not scale what the first one gave away."""
    own = draw().fresh()
    value = of(lossmith.loss("focal"), own, "chunked", **call)
    upstream = upstream_for(value)
    first = torch.autograd.grad(value, own.parts, upstream, retain_graph=True)
    kept = [slope.clone() for slope in first]
    second = torch.autograd.grad(value, own.parts, 3 * upstream)
    for slope, before, other in zip(first, kept, second, strict=True):
        assert torch.equal(slope, before)
        assert_close(other, 3 * before, rtol=1e-12, atol=0)
    assert upstream.equal(upstream_for(value))


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("call", CALLS)
def test_only_the_gradient_that_is_asked_for(text: str, call: dict[str, str]) -> None:
    case = draw()
    wanted = run(text, case, None, **call)[1]
    for place in range(3):
        own = case.fresh()
        value = of(lossmith.loss(text), own, "chunked", **call)
        found = torch.autograd.grad(value, [own.parts[place]], upstream_for(value))[0]
        assert_close(found, wanted[place], rtol=1e-10, atol=1e-12)


def test_two_losses_on_the_same_linear_logits() -> None:
    case = draw()
    own, other = case.fresh(), case.fresh()
    linear, logits = own.linear(), other.logits()
    totals = [
        2 * lossmith.loss("focal")(scores, case.labels)
        + lossmith.loss("dice")(scores, case.labels) * lossmith.loss("unlikelihood")(scores, case.labels)
        for scores in (linear, logits)
    ]
    assert_close(totals[0], totals[1], rtol=1e-12, atol=0)
    for one, wanted in zip(
        torch.autograd.grad(totals[0], own.parts), torch.autograd.grad(totals[1], other.parts), strict=True
    ):
        assert_close(one, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("call", CALLS)
def test_gradients_add_up_where_there_are_some(call: dict[str, str]) -> None:
    case = draw()
    own = case.fresh()
    for seed, part in enumerate(own.parts):
        part.grad = normal(*part.shape, seed=40 + seed)
    before = [part.grad.clone() for part in own.parts if part.grad is not None]
    for _ in range(2):
        value = of(lossmith.loss("focal"), own, "chunked", **call)
        value.backward(upstream_for(value))
    for part, start, slope in zip(own.parts, before, run("focal", case, None, **call)[1], strict=True):
        assert_close(part.grad, start + 2 * slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", ["focal", "dice"])
def test_hidden_states_changed_in_place_are_noticed(text: str) -> None:
    for place in range(3):
        own = draw().fresh()
        parts = [part * 1 for part in own.parts]
        value = of(lossmith.loss(text), replace(own, hidden=parts[0], weight=parts[1], bias=parts[2]), "chunked")
        with torch.no_grad():
            parts[place].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_loss_that_is_kept_holds_no_hidden_states(call: dict[str, str], backward: bool) -> None:
    """Before the backward pass autograd holds them, after it nobody does."""
    own = draw().fresh()
    hidden = own.hidden * 1
    held = weakref.ref(hidden)
    value = of(lossmith.loss("focal"), replace(own, hidden=hidden), "chunked", **call)
    if backward:
        value.sum().backward()
    del hidden
    gc.collect()
    assert (held() is None) == backward
    assert value.requires_grad


@pytest.mark.parametrize("text", ["focal", "generalized_dice", "lovasz_softmax"])
def test_second_derivatives_where_hidden_states_are_made_of_the_weight(text: str) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(7, (9,), generator=generator)
    start = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    found = []
    for impl in ("chunked", None):
        weight = start.clone().requires_grad_()
        hidden = torch.tanh(weight[labels.flip(0)])
        logits = hidden @ weight.T if impl is None else lossmith.LinearLogits(hidden, weight, impl=impl)
        (slope,) = torch.autograd.grad(lossmith.loss(text)(logits, labels), weight, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.square().sum(), weight)
        found.append((slope.detach(), curvature))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call", CALLS)
def test_labels_and_weights_that_are_written_over_change_nothing(call: dict[str, str]) -> None:
    own = draw(ignored=False).fresh()
    labels, weights = own.labels.clone(), torch.rand(own.labels.shape, dtype=torch.float64) + 0.5
    loss = lossmith.loss("focal")
    logits = lossmith.LinearLogits(own.hidden, own.weight, own.bias, own.scale, own.softcap)
    value = loss(logits, labels, weights=weights, **call).sum()
    first = torch.autograd.grad(value, own.hidden, retain_graph=True)[0]
    labels.fill_(0)
    if not call:
        weights.fill_(0)
    assert_close(torch.autograd.grad(value, own.hidden)[0], first, rtol=1e-12, atol=0)


def test_a_divisor_may_want_a_gradient() -> None:
    own = draw().fresh()
    slopes = []
    for logits in (lossmith.LinearLogits(own.hidden, own.weight), own.hidden @ own.weight.T):
        divisor = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        loss = lossmith.loss("focal")
        slopes.append(torch.autograd.grad(loss(logits, own.labels, num_items=divisor), divisor)[0])
    assert_close(slopes[0], slopes[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_items": -1}, "`num_items` must be > 0"),
        ({"num_items": 3, "reduction": "sum"}, "`num_items` is the divisor of reduction 'mean'"),
        ({"weights": torch.ones(3)}, "`weights` must have one entry per item"),
        ({"weights": -torch.ones(37)}, "Negative `weights`"),
    ],
)
@pytest.mark.parametrize("text", ["focal", "0.5*focal + 0.5*cross_entropy"])
def test_a_plan_refuses_the_numbers_that_a_call_refuses(text: str, call: dict[str, Any], message: str) -> None:
    own = draw().fresh()
    loss, logits = lossmith.loss(text), lossmith.LinearLogits(own.hidden, own.weight)
    for ask in (loss, loss.plan):
        with pytest.raises(ObjectiveInputError, match=message):
            ask(logits, own.labels, **call)


def test_the_plan_counts_the_table_of_lovasz() -> None:
    own = draw().fresh()
    logits = lossmith.LinearLogits(own.hidden, own.weight)
    rows, classes = int((own.labels >= 0).sum()), len(own.labels[own.labels >= 0].unique())
    plans = [lossmith.loss(text).plan(logits, own.labels) for text in ("lovasz_softmax", "generalized_dice")]
    assert plans[0].scratch_bytes - plans[1].scratch_bytes == rows * classes * 8


@pytest.mark.parametrize("call", CALLS)
def test_one_buffer_of_the_size_of_the_weight(call: dict[str, str]) -> None:
    """It is handed over as the weight's gradient, and not copied; a second one would be the largest thing in memory."""
    own = draw().fresh()
    with Probe() as probe:
        value = of(lossmith.loss("focal"), own, "chunked", **call)
        value.backward(upstream_for(value))
    assert probe.made.count(own.weight.numel()) == 1
    assert own.weight.grad is not None


def test_the_buffer_itself_becomes_the_gradient() -> None:
    own = draw().fresh()
    value = of(lossmith.loss("focal"), own, "chunked")
    place = value.grad_fn.gradients[1].data_ptr()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    value.backward()
    assert own.weight.grad is not None
    assert own.weight.grad.data_ptr() == place


# Precision.


def _rounded(case: Case) -> Case:
    own = case.to(torch.bfloat16).to(torch.float64)
    return replace(own, bias=case.bias)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("text", PLANS)
def test_autocast_rounds_operands_and_nothing_else(text: str, call: dict[str, str], inside: bool) -> None:
    case = draw().to(torch.float32)
    exact = run(text, _rounded(case.to(torch.float64)), None, **call)
    found = {}
    for impl in ("chunked", "dense"):
        own = case.fresh()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = of(lossmith.loss(text), own, impl, **call)
            if inside:
                value.backward(upstream_for(value))
        if not inside:
            value.backward(upstream_for(value))
        found[impl] = [value.detach(), *(part.grad for part in own.parts)]
    for own_part, plain, true in zip(found["chunked"], found["dense"], (exact[0], *exact[1]), strict=True):
        assert own_part.dtype == torch.float32
        errors = [float((one.double() - true).square().mean().sqrt()) for one in (own_part, plain)]
        assert errors[0] <= errors[1] + 2**-24 * float(true.abs().max())
        # Far below bfloat16's 2^-9: products are summed, and kept, in float32.
        assert errors[0] <= 2**-18 * float(true.abs().max())


def test_autocast_takes_operands_of_any_dtype() -> None:
    case = draw().to(torch.float32)
    mixed = replace(case, hidden=case.hidden.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = (run("focal", part) for part in (mixed, case))
    assert_close(one[0], other[0], rtol=1e-6, atol=0)
    assert one[1][0].dtype == torch.bfloat16
    assert one[1][1].dtype == torch.float32
    assert_close(one[1][1], other[1][1], rtol=1e-5, atol=1e-7)


def _tiny_contributions(dtype: torch.dtype) -> Case:
    """One row of large hidden states, then hundreds whose share of the weight's gradient is each below its rounding."""
    tokens = 513
    hidden = normal(1, HIDDEN, seed=1).abs().expand(tokens, HIDDEN) / 256
    hidden = torch.cat([256 * hidden[:1], hidden[1:]])
    weight = 0.05 * normal(VOCAB, HIDDEN, seed=2)
    return Case(hidden=hidden, weight=weight, labels=torch.full((tokens,), 7)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", [{"reduction": "sum"}, {"reduction": "none"}], ids=["in forward", "recompute"])
def test_weight_gradients_of_many_chunks_add_up_in_float32(dtype: torch.dtype, call: dict[str, str]) -> None:
    case = _tiny_contributions(dtype)
    own = case.fresh()
    true = case.to(torch.float64).fresh()
    module = lossmith.loss("cross_entropy")
    of(module, own, "chunked", **call).sum().backward()
    of(module, true, None, **call).sum().backward()
    assert own.weight.grad is not None
    assert true.weight.grad is not None
    assert own.weight.grad.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    error = (own.weight.grad.double() - true.weight.grad).abs()
    assert bool((error <= 1.01 * rounding * true.weight.grad.abs() + 1e-6).all())
    # A sum that is rounded after every chunk is far off here.
    naive = torch.zeros_like(case.weight)
    for chunk in range(0, 513, 4):
        part = replace(case, hidden=case.hidden[chunk : chunk + 4], labels=case.labels[chunk : chunk + 4]).fresh()
        of(module, part, "chunked", reduction="sum").backward()
        assert part.weight.grad is not None
        naive += part.weight.grad
    lost = (naive.double() - true.weight.grad).abs().max()
    assert float(lost) > 8 * rounding * float(true.weight.grad.abs().max())


@pytest.mark.parametrize("text", ["cross_entropy", "mile"])
def test_float16_gradients_survive_a_loss_scale(text: str) -> None:
    """Gradients below float16's smallest number come back when the loss is scaled up, as a gradient scaler does."""
    case = draw().to(torch.float16)
    own, true = case.fresh(), case.to(torch.float64).fresh()
    module = lossmith.loss(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lossmith.errors.LossmithWarning)
        for part, impl in ((own, "chunked"), (true, None)):
            (2.0**26 * of(module, part, impl, num_items=2**30)).backward()
    for one, wanted in zip(own.parts, true.parts, strict=True):
        assert one.grad is not None
        assert wanted.grad is not None
        assert float(wanted.grad.abs().max()) > 2**-6
        assert float(wanted.grad.abs().max()) * 2**-26 < 2**-24, "not below float16 without the scale"
        assert_close(one.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5)


def test_a_float32_bias_beside_half_precision() -> None:
    case = draw().to(torch.bfloat16)
    mixed = replace(case, bias=draw().bias.float())  # pyright: ignore[reportOptionalMemberAccess]
    value, slopes = run("focal", mixed)
    exact = run("focal", mixed.to(torch.float64), None)
    assert slopes[2].dtype == torch.float32
    assert_close(value.double(), exact[0], rtol=1e-5, atol=0)
    assert_close(slopes[2].double(), exact[1][2], rtol=1e-5, atol=1e-7)


# Rows that are multiplied, and tiles.


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("call", CALLS)
def test_only_rows_that_count_are_multiplied(text: str, call: dict[str, str]) -> None:
    for share in (0.0, 0.5, 0.95):
        case = draw(ignored=False)
        keep = torch.rand(37, generator=torch.Generator().manual_seed(3)) >= share
        own = replace(case, labels=case.labels.masked_fill(~keep, -100)).fresh()
        module = lossmith.loss(text)
        plan = module.plan(own.linear(), own.labels, **call)
        assert plan.items == int(keep.sum())
        with Probe() as probe:
            value = of(module, own, "chunked", **call)
            value.backward(upstream_for(value))
        whole = plan.products * plan.items * own.weight.numel()
        assert whole <= probe.multiplications <= whole + (plan.items * own.weight.numel() if text == "dice" else 0)


def test_sizes_of_tiles_change_no_number() -> None:
    for text in PLANS:
        case = draw()
        wanted = run(text, case, None)
        for rows, tile_rows, tile_bytes in ((37, 37, 2**20), (9, 20, 8 * 60), (16, 37, 8 * 37 * 50)):
            lossmith.set_chunk_budget(rows * VOCAB * 8)
            tiles._TILE_ROWS["cpu"], tiles._TILE_BYTES["cpu"] = tile_rows, tile_bytes
            found = run(text, case)
            for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
                assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_one_row_and_one_class_at_a_time() -> None:
    case = draw(5, vocab=6)
    for text in PLANS:
        wanted = run(text, case, None)
        lossmith.set_chunk_budget(6 * 8)
        tiles._TILE_ROWS["cpu"], tiles._TILE_BYTES["cpu"] = 1, 8
        found = run(text, case)
        for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-12)
