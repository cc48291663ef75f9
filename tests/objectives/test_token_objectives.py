"""Token objectives against their scalar oracles, their stated relations, and the ends of the range."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
import oracles_token as oracle
from lossmith import ObjectiveInputError, list_losses
from lossmith.engines import DenseTokenStatistics
from lossmith.objectives import (
    confidence_penalty_loss,
    cross_entropy_loss,
    deft_loss,
    dft_loss,
    dice_loss,
    entropy_adaptive_loss,
    focal_loss,
    generalized_cross_entropy_loss,
    generalized_dice_loss,
    get_record,
    mile_loss,
    poly1_loss,
    self_adjusting_dice_loss,
    tailr_loss,
    unlikelihood_loss,
    z_loss_loss,
)
from scalar_oracles import finite_difference, probs

Settings = dict[str, float]

CASES: list[tuple[str, Settings]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.3}),
    ("focal", {}),
    ("focal", {"gamma": 0.4}),
    ("focal", {"gamma": 5.0}),
    ("self_adjusting_dice", {}),
    ("self_adjusting_dice", {"alpha": 0.3, "gamma": 0.5}),
    ("self_adjusting_dice", {"alpha": 2.5, "gamma": 0.0}),
    ("self_adjusting_dice", {"alpha": 0.0, "gamma": 0.2}),
    ("poly1", {}),
    ("poly1", {"epsilon": -0.8}),
    ("generalized_cross_entropy", {}),
    ("generalized_cross_entropy", {"q": 1.0}),
    ("generalized_cross_entropy", {"q": 8.0}),
    ("unlikelihood", {}),
    ("confidence_penalty", {}),
    ("confidence_penalty", {"coefficient": 1.7}),
    ("z_loss", {}),
    ("z_loss", {"coefficient": 0.6}),
]
HELD_CASES: list[tuple[str, Settings]] = [
    ("dft", {}),
    ("entropy_adaptive", {}),
    ("entropy_adaptive", {"alpha": 2.5, "normalizer": 3.0}),
    ("entropy_adaptive", {"alpha": 0.5, "normalizer": 0.7}),
    ("entropy_adaptive", {"alpha": 0.01}),
    ("entropy_adaptive", {"alpha": 1.3, "normalizer": 2.9957, "truncated": True}),
    ("deft", {}),
    ("tailr", {}),
    ("tailr", {"gamma": 0.3}),
    ("tailr", {"gamma": 0.6, "min_weight": 0.25}),
]
LABELS = [0, 6, 2, 2, 5, 1, 3, 6, 4]


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logits(rows: int = 9, *, spread: float = 2.0, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, 7, generator=generator, dtype=torch.float64) + 0.4


def _losses(name: str, logits: Tensor, labels: list[int], **settings: float) -> Tensor:
    record = get_record(name)
    return record.function(**DenseTokenStatistics(logits, torch.tensor(labels)).get(record.reads), **settings)


def _slopes(name: str, logits: Tensor, labels: list[int], **settings: float) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(_losses(name, leaf, labels, **settings).sum(), leaf)[0]


def _close(got: Tensor, wanted: list[float]) -> None:
    assert_close(got, _double(wanted), rtol=1e-12, atol=0)


def _close_slopes(got: Tensor, total: Callable[[list[list[float]]], float], rows: list[list[float]]) -> None:
    assert_close(got, _double(finite_difference(total, rows)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_value_and_gradient_of_the_oracle(name: str, settings: Settings) -> None:
    logits, function = _logits(), oracle.ROWWISE[name]

    def losses(rows: list[list[float]]) -> list[float]:
        return [function(row, y, **settings) for row, y in zip(rows, LABELS, strict=True)]

    _close(_losses(name, logits, LABELS, **settings), losses(logits.tolist()))
    slopes = _slopes(name, logits, LABELS, **settings)
    _close_slopes(slopes, lambda rows: math.fsum(losses(rows)), logits.tolist())


@pytest.mark.parametrize(("name", "settings"), HELD_CASES)
def test_value_and_gradient_of_the_oracle_with_its_weight_held(name: str, settings: Settings) -> None:
    logits, function = _logits(), oracle.HELD[name]
    held = logits.tolist()

    def losses(rows: list[list[float]]) -> list[float]:
        return [function(row, y, h, **settings) for row, y, h in zip(rows, LABELS, held, strict=True)]

    _close(_losses(name, logits, LABELS, **settings), losses(held))
    slopes = _slopes(name, logits, LABELS, **settings)
    _close_slopes(slopes, lambda rows: math.fsum(losses(rows)), held)


def test_the_truncated_entropy_is_that_of_the_20_most_probable_classes() -> None:
    logits = 2 * torch.randn(4, 31, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels, rows = torch.tensor([3, 30, 0, 11]), logits.tolist()
    settings = {"alpha": 1.5, "normalizer": 2.9957, "truncated": True}
    losses = lossmith.loss("entropy_adaptive", **settings)(logits, labels, reduction="none")
    oracle_losses = [
        oracle.HELD["entropy_adaptive"](row, y, row, **settings) for row, y in zip(rows, labels.tolist(), strict=True)
    ]
    _close(losses, oracle_losses)
    whole = lossmith.loss("entropy_adaptive", alpha=1.5, normalizer=2.9957)(logits, labels, reduction="none")
    assert float((whole / losses - 1).abs().min()) > 0.01


def test_label_smoothing_keeps_its_digits_far_from_zero() -> None:
    row = torch.tensor([[0.0, 0.0], [0.0, 1.0]]) + 1e4
    loss = lossmith.loss("cross_entropy", label_smoothing=0.9)(row, torch.tensor([0, 1]), reduction="none")
    exact = [math.log(2), math.log1p(math.exp(-1)) + 0.45]
    assert_close(loss, torch.tensor(exact), rtol=3e-7, atol=0)


def test_entropies_near_zero_are_taken_as_they_are() -> None:
    """A row that is nearly certain has an entropy of 1e-6, not of its rounding; below 0 it counts as 0."""
    logps, entropy = _double([-0.7, -2.0, -0.1]), _double([4e-3, 1e-6, -1e-9])
    _close(entropy_adaptive_loss(logps, entropy, entropy + 1), [0.7 * 4e-3, 2.0 * 1e-6, 0.0])


@pytest.mark.parametrize("gamma", [1.0, 0.4, 3.0])
def test_mile_shares_its_mean_weight(gamma: float) -> None:
    logits = _logits()
    rows = logits.tolist()
    _close(_losses("mile", logits, LABELS, gamma=gamma), oracle.mile(rows, LABELS, rows, gamma))
    _close_slopes(
        _slopes("mile", logits, LABELS, gamma=gamma),
        lambda moved: math.fsum(oracle.mile(moved, LABELS, rows, gamma)),
        rows,
    )
    assert get_record("mile").batch_coupled


def test_every_token_objective_has_a_case() -> None:
    covered = {name for name, _ in CASES + HELD_CASES} | {"mile"}
    assert covered == {str(record) for record in list_losses("token")}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("focal", {"gamma": 0.0}),
        ("poly1", {"epsilon": 0.0}),
        ("entropy_adaptive", {"alpha": 0.0, "normalizer": 3.0}),
        ("tailr", {"gamma": 0.0}),
        ("tailr", {"gamma": 0.8, "min_weight": 1.0}),
        ("mile", {"gamma": 0.0}),
        ("confidence_penalty", {"coefficient": 0.0}),
    ],
)
def test_equals_cross_entropy(name: str, settings: Settings) -> None:
    logits = _logits()
    assert_close(_losses(name, logits, LABELS, **settings), _losses("cross_entropy", logits, LABELS))
    assert_close(_slopes(name, logits, LABELS, **settings), _slopes("cross_entropy", logits, LABELS))


def test_generalized_cross_entropy_tends_to_cross_entropy_and_counts_down_to_one_minus_p() -> None:
    logits = _logits()
    wanted = _losses("cross_entropy", logits, LABELS)
    for q in (1e-9, 1e-30):
        assert_close(_losses("generalized_cross_entropy", logits, LABELS, q=q), wanted, rtol=1e-8, atol=0)
        slopes = _slopes("generalized_cross_entropy", logits, LABELS, q=q)
        assert_close(slopes, _slopes("cross_entropy", logits, LABELS), rtol=1e-7, atol=0)
    # 1 - 0.5^(1e-9) is 0 in float32 when formed by subtraction.
    assert_close(generalized_cross_entropy_loss(torch.tensor([0.5]).log(), q=1e-9), torch.tensor([math.log(2)]))
    by_difference = (_losses("poly1", logits, LABELS, epsilon=2.5) - wanted) / 2.5
    assert_close(_losses("generalized_cross_entropy", logits, LABELS, q=1.0), by_difference)
    # -p^k: its gradient is k times ours.
    leaf = logits.clone().requires_grad_()
    power = -DenseTokenStatistics(leaf, torch.tensor(LABELS)).token_logps.exp().pow(8)
    slopes = torch.autograd.grad(power.sum(), leaf)[0]
    assert_close(8 * _slopes("generalized_cross_entropy", logits, LABELS, q=8.0), slopes)


def test_relations_of_dft() -> None:
    logits = _logits()
    assert_close(_losses("tailr", logits, LABELS, gamma=1.0), _losses("dft", logits, LABELS))
    assert_close(_slopes("tailr", logits, LABELS, gamma=1.0), _slopes("dft", logits, LABELS))
    assert_close(_slopes("generalized_cross_entropy", logits, LABELS, q=1.0), _slopes("dft", logits, LABELS))
    assert not torch.allclose(
        _losses("generalized_cross_entropy", logits, LABELS, q=1.0), _losses("dft", logits, LABELS), rtol=0.01
    )


def test_deft_is_generalized_cross_entropy_with_q_per_token() -> None:
    logits = _logits()
    losses, slopes = _losses("deft", logits, LABELS), _slopes("deft", logits, LABELS)
    for i, row in enumerate(logits):
        concentration = math.fsum(p * p for p in probs(row.tolist()))
        one = (logits[i : i + 1], LABELS[i : i + 1])
        assert_close(_losses("generalized_cross_entropy", *one, q=concentration)[0], losses[i])
        assert_close(_slopes("generalized_cross_entropy", *one, q=concentration)[0], slopes[i])
    spread = torch.zeros(1, 5000, dtype=torch.float64)
    assert_close(_losses("deft", spread, [3]), _losses("cross_entropy", spread, [3]), rtol=1e-3, atol=0)


def test_self_adjusting_dice_is_dice_of_one_token() -> None:
    logps = _double([-0.1, -0.7, -3.0])
    ours = self_adjusting_dice_loss(logps, alpha=0.0, gamma=0.0)
    for i in range(3):
        region = (logps[i : i + 1], torch.tensor([0]), logps[i : i + 1].exp())
        assert_close(dice_loss(*region, smooth=0.0), ours[i])
        assert_close(generalized_dice_loss(*region), ours[i])
    assert_close(ours, (1 - logps.exp()) / (1 + logps.exp()))


@pytest.mark.parametrize(("alpha", "best"), [(1.0, 1 / 2), (0.1, 1 / 1.1), (3.0, 1 / 4)])
def test_self_adjusting_dice_is_minimal_at_one_over_one_plus_alpha(alpha: float, best: float) -> None:
    logps = _double([best - 0.01, best, best + 0.01]).log().requires_grad_()
    losses = self_adjusting_dice_loss(logps, alpha=alpha)
    below, at, above = torch.autograd.grad(losses.sum(), logps)[0].tolist()
    assert below < -1e-4
    assert abs(at) < 1e-12
    assert above > 1e-4
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]


def test_unlikelihood_mirrors_cross_entropy_on_two_classes() -> None:
    logits = _logits()[:, :2]
    assert_close(_losses("unlikelihood", logits, [0] * 9), _losses("cross_entropy", logits, [1] * 9))


def test_only_z_loss_sees_a_shift_of_the_logits() -> None:
    logits = _logits()
    for record in list_losses("token"):
        same = torch.allclose(
            _losses(record.name, logits, LABELS), _losses(record.name, logits + 3.0, LABELS), rtol=1e-9
        )
        assert same is (record.name != "z_loss"), record.name
    wanted = 2 * 1e-4 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1)
    assert_close(_slopes("z_loss", logits, LABELS), wanted)


def test_known_values() -> None:
    half, log2 = _double([0.5]).log(), math.log(2)
    assert_close(poly1_loss(half), _double([log2 + 0.5]))
    assert_close(self_adjusting_dice_loss(half), _double([1 / 3]))
    assert_close(self_adjusting_dice_loss(_double([0.0, -800.0]), gamma=3.0), _double([1 / 4, 1 / 4]))
    assert_close(generalized_cross_entropy_loss(half, q=1.0), _double([0.5]))
    assert_close(generalized_cross_entropy_loss(_double([-1e5]), q=0.7), _double([1 / 0.7]))
    assert_close(dft_loss(half), _double([log2 / 2]))
    assert_close(dft_loss(_double([-1.0])), _double([1 / math.e]))
    assert_close(deft_loss(half, half), _double([2 - math.sqrt(2)]))
    assert_close(deft_loss(half, _double([0.0])), _double([0.5]))
    assert_close(tailr_loss(half, gamma=1.0), _double([log2 / 2]))
    assert_close(tailr_loss(_double([1e-5]).log()), _double([math.log(1e5) / (2 - 1e-5)]))
    assert_close(mile_loss(half, _double([1.3]), gamma=2.0), _double([log2]))
    assert_close(mile_loss(_double([-1.0, -2.0]), _double([1.3, 1.3]), gamma=7.0), _double([1.0, 2.0]))
    assert_close(z_loss_loss(_double([-10.0])), _double([0.01]))
    assert_close(unlikelihood_loss(half), _double([log2]))
    uniform, log5 = torch.full((1, 5), 3.1, dtype=torch.float64), math.log(5)
    assert_close(_losses("cross_entropy", uniform, [2], label_smoothing=0.4), _double([log5]))
    assert_close(_losses("entropy_adaptive", uniform, [2]), _double([log5**2]))
    assert_close(_losses("entropy_adaptive", uniform, [2], normalizer=log5), _double([log5]))
    assert_close(_losses("confidence_penalty", uniform, [2], coefficient=0.4), _double([0.6 * log5]))


def test_weights_of_mile_average_to_one() -> None:
    weights = mile_loss(torch.full((6,), -1.0, dtype=torch.float64), _double([0.0, 0.3, 1.0, 2.0, 4.0, 9.0]), gamma=2.0)
    assert_close(weights.mean(), _double(1.0))
    assert bool((weights.diff() > 0).all())


NAMED: list[tuple[str, Settings]] = [*CASES, *HELD_CASES, ("mile", {}), ("mile", {"gamma": 200.0})]
NO_LABEL_PULL = ("unlikelihood", "z_loss", "self_adjusting_dice", "confidence_penalty")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "settings"), NAMED)
def test_finite_at_the_ends(name: str, settings: Settings, dtype: torch.dtype) -> None:
    """Logits of +-1e4 on and off the label: finite losses and slopes, and the label's slope of the right sign."""
    base = torch.zeros(9, 7)
    gaps = [0.0, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4, 9.9, -9.9]
    for i, gap in enumerate(gaps):
        base[i, LABELS[i]] = gap
    for logits in (base.to(dtype), (base + 1e4).to(dtype), (base - 1e4).to(dtype)):
        losses, slopes = _losses(name, logits, LABELS, **settings), _slopes(name, logits, LABELS, **settings)
        assert losses.dtype == dtype
        assert bool(losses.isfinite().all())
        assert bool(slopes.isfinite().all())
        of_label = slopes[range(9), LABELS]
        if name not in NO_LABEL_PULL:
            assert bool((losses >= 0).all())
            if "label_smoothing" not in settings:
                assert bool((of_label <= 0).all())
            # Where p is 1/7 every one of them still learns.
            assert of_label[0] < 0
        if name == "unlikelihood":
            assert bool((of_label >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_unlikelihood_where_p_rounds_to_one(dtype: torch.dtype) -> None:
    for gap, size in ((30.0, 23), (1e4, 7)):
        logits = torch.zeros(1, size, dtype=dtype)
        logits[0, 4] = gap
        assert_close(_losses("unlikelihood", logits, [4]), torch.tensor([gap - math.log(size - 1)], dtype=dtype))
        # The statistic itself rounds log-probabilities of -1e4 to 1e-3 in float32.
        assert_close(_slopes("unlikelihood", logits, [4])[0, 4], torch.tensor(1.0, dtype=dtype), rtol=1e-3, atol=0)


def test_unlikelihood_of_the_only_possible_class_is_zero() -> None:
    logits = _double([[0.5, -math.inf, -math.inf], [0.5, 1.5, 0.0]]).requires_grad_()
    losses = _losses("unlikelihood", logits, [0, 1])
    assert losses[0].item() == 0.0
    assert losses[1].item() > 0.5
    slopes = torch.autograd.grad(losses.sum(), logits)[0]
    assert torch.equal(slopes[0], _double([0.0, 0.0, 0.0]))
    assert float(slopes[1, 1]) > 0.5


def test_single_precision_keeps_the_digits_near_one() -> None:
    """At p = 1 - 1e-9, which rounds to 1 in float32, the losses are not 0 but 1e-9 times what theory says."""
    logps = torch.tensor([-1e-9])
    one = torch.tensor([1e-9])
    assert_close(poly1_loss(logps, epsilon=2.0), 3 * one, rtol=1e-6, atol=0)
    assert_close(generalized_cross_entropy_loss(logps, q=3.0), one, rtol=1e-6, atol=0)
    assert_close(focal_loss(logps, gamma=1.0), one * one, rtol=1e-6, atol=0)
    assert_close(self_adjusting_dice_loss(logps, alpha=0.0), one / 3, rtol=1e-6, atol=0)
    assert_close(deft_loss(logps, torch.tensor([-1e-9])), one, rtol=1e-6, atol=0)


def test_log_probabilities_of_minus_1e5() -> None:
    for dtype in (torch.float32, torch.float64):
        logps = torch.tensor([-1e5, -104.0, -90.0], dtype=dtype, requires_grad=True)
        none = torch.zeros(3, dtype=dtype)
        for losses in (
            dft_loss(logps),
            tailr_loss(logps),
            tailr_loss(logps, gamma=0.0),
            tailr_loss(logps, gamma=1.0),
            deft_loss(logps, none),
            deft_loss(logps, none - 1e5),
            generalized_cross_entropy_loss(logps, q=20.0),
            self_adjusting_dice_loss(logps, alpha=0.2),
            focal_loss(logps, gamma=0.2),
            entropy_adaptive_loss(logps, none, none, alpha=0.5),
            entropy_adaptive_loss(logps, none - 1e-9, none, alpha=0.5),
            mile_loss(logps, none + 12, gamma=500.0),
        ):
            assert bool(losses.isfinite().all())
            assert bool(torch.autograd.grad(losses.sum(), logps)[0].isfinite().all())
    assert_close(tailr_loss(logps, gamma=0.0), -logps)
    assert_close(deft_loss(logps, none - 1e5), -logps)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.999, 1.0, 1.5])
def test_self_adjusting_dice_slope_at_certainty(alpha: float) -> None:
    logps = _double([0.0, -1e-300]).requires_grad_()
    slope = torch.autograd.grad(self_adjusting_dice_loss(logps, alpha=alpha).sum(), logps)[0]
    # d/dp of (1-f)/(f+2) at p = 1 for alpha = 0, 0 below alpha = 1 by definition, +3/4 at alpha = 1, 0 above.
    assert_close(slope[0], _double({0.0: -1 / 3, 1.0: 3 / 4}.get(alpha, 0.0)), msg=str(slope))
    assert bool(slope.isfinite().all())


def test_gradients_do_not_flow_through_weights() -> None:
    entropy, logps = _double([0.4, 2.0]).requires_grad_(), _double([-1.0, -0.2]).requires_grad_()
    for losses in (
        entropy_adaptive_loss(logps, entropy, entropy),
        mile_loss(logps, entropy),
        deft_loss(logps, -entropy),
    ):
        assert torch.autograd.grad(losses.sum(), entropy, allow_unused=True)[0] is None
    through = torch.autograd.grad(confidence_penalty_loss(logps, entropy, coefficient=0.3).sum(), entropy)[0]
    assert_close(through, _double([-0.3, -0.3]))


def test_statistics_that_a_zero_hyperparameter_does_not_read() -> None:
    logps, ones = _double([-1.0, -0.2]), _double([1.0, 1.0])
    unread = {
        "cross_entropy": {"label_smoothing": 0.0},
        "entropy_adaptive": {"alpha": 0.0},
        "mile": {"gamma": 0.0},
        "confidence_penalty": {"coefficient": 0.0},
    }
    for name, settings in unread.items():
        record = get_record(name)
        assert set(settings) <= set(record.needed_when.values())
        statistics: dict[str, Any] = {n: logps if n == "token_logps" else ones * math.nan for n in record.reads}
        assert_close(record.function(**statistics, **settings), -logps)
    needing = {str(r) for r in list_losses("token") if r.needed_when}
    assert needing == set(unread)


def test_no_token() -> None:
    for record in list_losses("token"):
        logits = torch.zeros(0, 7, dtype=torch.float64, requires_grad=True)
        statistics = DenseTokenStatistics(logits, torch.zeros(0, dtype=torch.int64)).get(record.reads)
        losses = record.function(**statistics)
        assert losses.shape == (0,)
        assert torch.autograd.grad(losses.sum(), logits)[0].shape == (0, 7)


HALF = torch.tensor([-0.7, -0.3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cross_entropy_loss(HALF, HALF, label_smoothing=1.0),
            "`label_smoothing` must be in [0, 1), got 1.0.",
        ),
        (lambda: focal_loss(HALF, gamma=-0.5), "`gamma` must be >= 0, got -0.5."),
        (lambda: self_adjusting_dice_loss(HALF, alpha=-1.0), "`alpha` must be >= 0, got -1.0."),
        (lambda: self_adjusting_dice_loss(HALF, gamma=-1.0), "`gamma` must be >= 0, got -1.0."),
        (lambda: poly1_loss(HALF, epsilon=-1.5), "`epsilon` must be >= -1, got -1.5."),
        (lambda: poly1_loss(HALF, epsilon=math.nan), "`epsilon` must be >= -1, got nan."),
        (lambda: generalized_cross_entropy_loss(HALF, q=0.0), "`q` must be > 0, got 0.0."),
        (lambda: entropy_adaptive_loss(HALF, HALF, HALF, alpha=-0.1), "`alpha` must be >= 0, got -0.1."),
        (lambda: entropy_adaptive_loss(HALF, HALF, HALF, normalizer=0.0), "`normalizer` must be > 0, got 0.0."),
        (lambda: tailr_loss(HALF, gamma=1.1), "`gamma` must be in [0, 1], got 1.1."),
        (lambda: tailr_loss(HALF, gamma=-0.1), "`gamma` must be in [0, 1], got -0.1."),
        (lambda: tailr_loss(HALF, min_weight=1.1), "`min_weight` must be in [0, 1], got 1.1."),
        (lambda: tailr_loss(HALF, min_weight=math.nan), "`min_weight` must be in [0, 1], got nan."),
        (lambda: mile_loss(HALF, HALF, gamma=-1.0), "`gamma` must be >= 0, got -1.0."),
        (lambda: confidence_penalty_loss(HALF, HALF, coefficient=-0.1), "`coefficient` must be >= 0, got -0.1."),
        (lambda: z_loss_loss(HALF, coefficient=-0.1), "`coefficient` must be >= 0, got -0.1."),
    ],
)
def test_a_hyperparameter_out_of_range(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        call()
    assert str(caught.value) == message
