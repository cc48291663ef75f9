"""The base layer: reduction, checks of what callers give, numerical pieces."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lossmith import LossmithError, ObjectiveInputError
from lossmith._checks import (
    check_finite,
    check_label_range,
    check_labels,
    check_not_negative,
    check_one_of,
    check_positive,
    check_same_device,
    check_unit_interval,
    did_you_mean,
)
from lossmith._numerics import at_least_float32, masked_logsumexp, safe_pow
from lossmith._reduce import reduce_loss
from lossmith.errors import TrainingDivergedError


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOSSES = [2.0, 0.0, 5.0, 0.25]
VALID = torch.tensor([True, False, True, True])
WEIGHTS = [3.0, math.nan, 0.5, 2.0]


def test_reductions() -> None:
    losses = _double(LOSSES)
    assert_close(reduce_loss(losses, VALID), _double(7.25 / 3))
    assert_close(reduce_loss(losses, VALID, reduction="sum"), _double(7.25))
    assert torch.equal(reduce_loss(losses, VALID, reduction="none"), losses)
    assert_close(reduce_loss(losses, VALID, num_items=11), _double(7.25 / 11))
    assert_close(reduce_loss(losses, VALID, num_items=torch.tensor(11)), _double(7.25 / 11))
    assert_close(reduce_loss(losses, VALID, num_items=torch.tensor([11.0])), _double(7.25 / 11))


def test_weighted_reductions_remove_ignored_items_whatever_their_weight() -> None:
    losses, weights = _double(LOSSES), _double(WEIGHTS)
    assert_close(reduce_loss(losses, VALID, weights=weights), _double((6 + 2.5 + 0.5) / 5.5))
    assert_close(reduce_loss(losses, VALID, weights=weights, reduction="sum"), _double(9.0))
    assert_close(reduce_loss(losses, VALID, weights=weights, reduction="none"), _double([6.0, 0.0, 2.5, 0.5]))
    assert_close(reduce_loss(losses, VALID, weights=weights, num_items=4), _double(9.0 / 4))


def test_negative_weights_need_a_divisor_under_mean() -> None:
    losses, weights = _double(LOSSES), _double([1.0, -9.0, -2.0, 1.0])
    with pytest.raises(ObjectiveInputError, match=r"^Negative `weights` with reduction 'mean' need `num_items`"):
        reduce_loss(losses, VALID, weights=weights)
    assert_close(reduce_loss(losses, VALID, weights=weights, num_items=3), _double(-7.75 / 3))
    assert_close(reduce_loss(losses, VALID, weights=weights, reduction="sum"), _double(-7.75))
    # A negative weight on an ignored item is no weight at all.
    assert_close(reduce_loss(losses, VALID, weights=_double([1.0, -9.0, 1.0, 1.0])), _double(7.25 / 3))


@pytest.mark.parametrize("num_items", [None, 0, 5, torch.tensor(0), torch.tensor(5)])
def test_nothing_valid_is_a_zero_with_its_graph(num_items) -> None:
    losses = torch.zeros(4, requires_grad=True)
    nothing = torch.zeros(4, dtype=torch.bool)
    for weights in (None, torch.full((4,), math.nan)):
        loss = reduce_loss(losses * 3, nothing, weights=weights, num_items=num_items)
        assert loss.detach().item() == 0
        assert bool(torch.isfinite(torch.autograd.grad(loss, losses)[0]).all())


@pytest.mark.parametrize(
    ("num_items", "message"),
    [
        (0, "`num_items` must be > 0, got 0."),
        (-3, "`num_items` must be > 0, got -3."),
        (math.nan, "`num_items` must be > 0, got nan."),
        (math.inf, "`num_items` must be > 0, got inf."),
        (torch.tensor(0), "`num_items` must be > 0, got 0."),
        (torch.tensor(-2.5), "`num_items` must be > 0, got -2.5."),
        (torch.tensor([1, 2, 3]), "`num_items` must be one number, got a tensor of shape (3,)."),
    ],
)
def test_a_divisor_that_is_none(num_items, message: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        reduce_loss(_double(LOSSES), VALID, num_items=num_items)
    assert str(caught.value) == message


def test_settings_that_contradict() -> None:
    with pytest.raises(ObjectiveInputError, match=r"^`reduction` must be one of 'none', 'sum', 'mean', got 'avg'.$"):
        reduce_loss(_double(LOSSES), VALID, reduction="avg")
    with pytest.raises(ObjectiveInputError, match=r"^`num_items` is the divisor of reduction 'mean', got"):
        reduce_loss(_double(LOSSES), VALID, num_items=3, reduction="sum")
    with pytest.raises(ObjectiveInputError, match=r"^`weights` must have one entry per item, \(4,\), got \(1,\).$"):
        reduce_loss(_double(LOSSES), VALID, weights=_double([1.0]))


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans(), st.floats(0, 4)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_chunks_over_one_divisor_add_up(items: list[tuple[float, bool, float]], size: int) -> None:
    values, valid, weights = zip(*items, strict=True)
    losses = _double([v if keep else 0.0 for v, keep in zip(values, valid, strict=True)])
    keep, share = torch.tensor(valid), _double(weights)
    whole = reduce_loss(losses, keep, weights=share, num_items=7)
    chunks = zip(losses.split(size), keep.split(size), share.split(size), strict=True)
    parts = [reduce_loss(part, ok, weights=w, num_items=7) for part, ok, w in chunks]
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0, 2.0, 4 / 3])
def test_safe_pow(exponent: float) -> None:
    base = _double([0.0, 0.5, 3.0]).requires_grad_()
    value = safe_pow(base, exponent)
    assert_close(value[1:], _double([0.5**exponent, 3.0**exponent]))
    assert value[0].item() == (1.0 if exponent == 0 else 0.0)
    if exponent > 0:
        slopes = torch.autograd.grad(value.sum(), base)[0]
        assert_close(slopes, _double([0.0, exponent * 0.5 ** (exponent - 1), exponent * 3.0 ** (exponent - 1)]))


def test_masked_logsumexp() -> None:
    scores = _double([[1.0, math.log(2.0), 7.0], [1.0, 2.0, 3.0]]).requires_grad_()
    keep = torch.tensor([[False, True, True], [False, False, False]])
    value = masked_logsumexp(scores, keep)
    assert_close(value, _double([math.log(2 + math.exp(7.0)), -1e30]))
    slopes = torch.autograd.grad(value.sum(), scores)[0]
    assert slopes[0, 0].item() == 0
    assert torch.equal(slopes[1], torch.zeros(3, dtype=torch.float64))


def test_half_goes_up_and_double_stays() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert at_least_float32(_double([1.0])).dtype == torch.float64


@pytest.mark.parametrize(
    ("check", "good", "bad", "message"),
    [
        (check_positive, 0.1, 0.0, "`beta` must be > 0, got 0.0."),
        (check_positive, 5, math.inf, "`beta` must be > 0, got inf."),
        (check_not_negative, 0, -0.5, "`beta` must be >= 0, got -0.5."),
        (check_not_negative, 2, math.nan, "`beta` must be >= 0, got nan."),
        (check_unit_interval, 0, 1, "`beta` must be in [0, 1), got 1."),
        (check_unit_interval, 0.99, -1e-9, "`beta` must be in [0, 1), got -1e-09."),
        (check_finite, -7, math.nan, "`beta` must be a finite number, got nan."),
    ],
)
def test_checks_of_numbers(check, good: float, bad: float, message: str) -> None:
    check("beta", good)
    with pytest.raises(ObjectiveInputError) as caught:
        check("beta", bad)
    assert str(caught.value) == message


def test_checks_of_words_and_labels() -> None:
    check_one_of("form", "released", ("released", "published"))
    with pytest.raises(ObjectiveInputError, match=r"^`form` must be one of 'released', 'published', got 'x'.$"):
        check_one_of("form", "x", ("released", "published"))
    labels = torch.tensor([0, 2, -100])
    check_labels(labels, (3,), scores="logits")
    for wrong in (labels.double(), labels.bool()):
        with pytest.raises(ObjectiveInputError, match=r"^`labels` must be integers \(class ids\), got torch"):
            check_labels(wrong, (3,), scores="logits")
    with pytest.raises(ObjectiveInputError, match=r"one entry per row of `logits`, \(3, 1\), got \(3,\)"):
        check_labels(labels, (3, 1), scores="logits")
    check_label_range(labels, 3, size_name="vocab", ignore_index=-100)
    check_label_range(labels[2:], 0, size_name="vocab", ignore_index=-100)
    with pytest.raises(ObjectiveInputError, match=r"^`labels` reach 2 but `vocab` is 2.$"):
        check_label_range(labels, 2, size_name="vocab", ignore_index=-100)
    with pytest.raises(ObjectiveInputError, match=r"Is the tokenizer larger than the output layer\?$"):
        check_label_range(torch.tensor([32000]), 32000, size_name="vocab", ignore_index=-100)
    with pytest.raises(ObjectiveInputError, match=r"^`labels` must be >= 0 \(or -100 to ignore a row\), got -1.$"):
        check_label_range(torch.tensor([-1, 4]), 9, size_name="vocab", ignore_index=-100)
    with pytest.raises(ObjectiveInputError, match=r"^All inputs must be on one device, got `a` on cpu, `b` on meta.$"):
        check_same_device(a=labels, b=labels.to("meta"))


def test_nearest_names_and_errors() -> None:
    assert did_you_mean("nothing_like_it", ["focal"]) == ""
    assert issubclass(ObjectiveInputError, ValueError)
    assert issubclass(ObjectiveInputError, LossmithError)
    assert "at step 7; the last losses were [1, nan]" in str(TrainingDivergedError(7, [1.0, math.nan]))
