"""Dice-type objectives against their scalar oracles, their relations, and exactness at the ends of the range."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import oracles_region as oracle
from lossmith import ObjectiveInputError, list_losses
from lossmith.engines import DenseRegionStatistics
from lossmith.objectives import (
    dice_loss,
    focal_tversky_loss,
    generalized_cross_entropy_loss,
    generalized_dice_loss,
    get_record,
    jaccard_loss,
    lovasz_softmax_loss,
    tversky_loss,
)
from scalar_oracles import finite_difference

Settings = dict[str, float]

CASES: list[tuple[str, Settings]] = [
    ("dice", {}),
    ("dice", {"smooth": 0.0}),
    ("dice", {"smooth": 3.5}),
    ("jaccard", {}),
    ("jaccard", {"smooth": 0.2}),
    ("tversky", {}),
    ("tversky", {"alpha": 0.9, "beta": 0.2, "smooth": 0.0}),
    ("focal_tversky", {}),
    ("focal_tversky", {"alpha": 0.6, "beta": 1.4, "smooth": 0.3, "gamma": 0.5}),
    ("generalized_dice", {}),
    ("generalized_dice", {"smooth": 0.7}),
]
NAMES = sorted(oracle.REGION)
LABELS = [0, 2, 2, 5, 2, 0, 2, 5, 2, 6]


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logits(rows: int = 10, *, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, 7, generator=generator, dtype=torch.float64)


def _loss(name: str, logits: Tensor, labels: list[int], **settings: object) -> Tensor:
    record = get_record(name)
    statistics = DenseRegionStatistics(logits, torch.tensor(labels, dtype=torch.int64)).get(record.reads)
    return record.function(**statistics, **settings)


def _slopes(name: str, logits: Tensor, labels: list[int], **settings: object) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(_loss(name, leaf, labels, **settings), leaf)[0]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_value_and_gradient_of_the_oracle(name: str, settings: Settings) -> None:
    logits, function = _logits(), oracle.REGION[name]
    rows = logits.tolist()
    assert_close(
        _loss(name, logits, LABELS, **settings), _double(function(rows, LABELS, **settings)), rtol=1e-12, atol=0
    )
    wanted = finite_difference(lambda moved: function(moved, LABELS, **settings), rows)
    assert_close(_slopes(name, logits, LABELS, **settings), _double(wanted), rtol=1e-6, atol=1e-10)


def test_every_region_objective_has_a_case_and_reads_no_matrix() -> None:
    assert {str(r) for r in list_losses("region")} == {*NAMES, "lovasz_softmax"}
    for name in NAMES:
        record = get_record(name)
        assert record.reads == ("token_logps", "class_ids", "class_mass")
        assert record.batch_coupled
    assert get_record("gdice") is get_record("generalized_dice")


@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_released_generalized_dice(smooth: float) -> None:
    """With absent classes it is about -1e-20 and trains nothing; without them it is a Dice overlap."""
    logits, function = _logits(), oracle.released_dice
    settings = {"form": "released", "smooth": smooth}
    rows = logits.tolist()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        loss = _loss("generalized_dice", logits.to(dtype), LABELS, **settings)
        wanted = torch.tensor(function(rows, LABELS, smooth), dtype=dtype)
        assert_close(loss, wanted, rtol=tolerance, atol=0)
        assert -1e-19 < loss.item() < -1e-22
        slopes = _slopes("generalized_dice", logits.to(dtype), LABELS, **settings)
        assert 0 < float(slopes.abs().max()) < 1e-19
        # Finite differences of 1e-20 need a scale: the oracle's value times 1e20.
        wanted = finite_difference(lambda moved: 1e20 * function(moved, LABELS, smooth), rows)
        assert_close(slopes.double() * 1e20, _double(wanted), rtol=max(1e-6, tolerance), atol=1e-6)
        assert float(_slopes("generalized_dice", logits.to(dtype), LABELS).abs().max()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_released_generalized_dice_where_no_class_is_absent(dtype: torch.dtype) -> None:
    """The rounding of the mass that is left, times 1e20, must not count as an absent class."""
    labels = [0, 3, 1, 2, 4, 5, 6, 6, 6, 2]
    for seed in range(5):
        logits = _logits(seed=seed)
        loss = _loss("generalized_dice", logits.to(dtype), labels, form="released")
        wanted = oracle.released_dice(logits.tolist(), labels)
        assert_close(loss, torch.tensor(wanted, dtype=dtype), rtol=1e-5 if dtype == torch.float32 else 1e-9, atol=0)
        published = _loss("generalized_dice", logits.to(dtype), labels)
        assert_close(loss, published - 1)
        slopes = _slopes("generalized_dice", logits.to(dtype), labels, form="released")
        assert_close(slopes, _slopes("generalized_dice", logits.to(dtype), labels))


def test_released_generalized_dice_weighs_a_class_by_its_count_plus_1e_10() -> None:
    own, ids = _double([0.3, 0.6]).log(), torch.tensor([0, 1])
    weight = 1 / (1 + 1e-10) ** 2
    loss = generalized_dice_loss(own, ids, _double([0.5, 0.9]), form="released")
    # 0.6 of the probability is on absent classes, whose weight is 1e20.
    expected = -2 * weight * 0.9 / (0.6e20 + weight * 3.4)
    assert_close(loss, _double(expected), rtol=2e-13, atol=0)
    smoothed = generalized_dice_loss(own, ids, _double([1.1, 0.9]), form="released", smooth=0.7)
    assert_close(smoothed, _double(-2 * (weight * 0.9 + 0.7) / (weight * 4.0 + 0.7)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_mass_within_the_rounding_of_the_tokens_is_not_absent(dtype: torch.dtype) -> None:
    """The rounding of a sum grows with its terms; 1024 tokens at p = 1/2, 8 or 32 roundings of their sum short."""
    tokens, rounding = 1024, torch.finfo(dtype).eps
    own, ids = torch.full((tokens,), 0.5, dtype=dtype).log(), torch.zeros(tokens, dtype=torch.int64)
    for short, expected in ((0, -1 / 2), (8, -1 / 2), (32, 0.0)):
        mass = torch.tensor([tokens * (1 - short * rounding)], dtype=dtype)
        loss = generalized_dice_loss(own, ids, mass, form="released")
        assert_close(loss, torch.tensor(expected, dtype=dtype), rtol=1e-4, atol=1e-9)


def test_a_class_whose_mass_rounds_below_its_hits_is_still_pulled() -> None:
    mass = _double([0.9 - 1e-9]).requires_grad_()
    loss = dice_loss(_double([0.4, 0.5]).log(), torch.tensor([0, 0]), mass)
    # (missed + leaked) / (hits + leaked + count + 1) at missed = 1.1, hits = 0.9, leaked = 0.
    assert_close(loss, _double(1.1 / 3.9), rtol=1e-13, atol=0)
    assert_close(torch.autograd.grad(loss, mass)[0], _double([(3.9 - 1.1) / 3.9**2]), rtol=1e-13, atol=0)


def test_relations_between_them() -> None:
    logits = _logits()

    def same(one: tuple[str, Settings], other: tuple[str, Settings], labels: list[int] = LABELS) -> None:
        assert_close(_loss(one[0], logits, labels, **one[1]), _loss(other[0], logits, labels, **other[1]))
        assert_close(_slopes(one[0], logits, labels, **one[1]), _slopes(other[0], logits, labels, **other[1]))

    same(("tversky", {"alpha": 0.5, "beta": 0.5, "smooth": 0.6}), ("dice", {"smooth": 1.2}))
    same(("tversky", {"alpha": 1.0, "beta": 1.0, "smooth": 0.6}), ("jaccard", {"smooth": 0.6}))
    same(("focal_tversky", {"gamma": 1.0, "alpha": 0.4}), ("tversky", {"alpha": 0.4}))
    same(("generalized_dice", {}), ("dice", {"smooth": 0.0}), [3] * 10)
    one_class = _loss("dice", logits, [3] * 10, smooth=0.0)
    assert_close(_loss("jaccard", logits, [3] * 10, smooth=0.0), 2 * one_class / (1 + one_class))
    assert not torch.allclose(_loss("generalized_dice", logits, LABELS), _loss("dice", logits, LABELS, smooth=0.0))


def test_jaccard_is_lovasz_where_predictions_are_hard() -> None:
    predicted = torch.tensor([0, 2, 0, 5, 2, 0, 5, 5, 2, 2])
    hard = 1e4 * torch.nn.functional.one_hot(predicted, 7).double()
    assert_close(_loss("jaccard", hard, LABELS, smooth=0.0), _loss("lovasz_softmax", hard, LABELS))
    assert float(_loss("jaccard", hard, LABELS, smooth=0.0)) > 0.1
    soft = _logits()
    assert not torch.allclose(_loss("jaccard", soft, LABELS, smooth=0.0), _loss("lovasz_softmax", soft, LABELS))


def test_known_values_of_one_token() -> None:
    p = 0.37
    one = (_double([p]).log(), torch.tensor([0]), _double([p]))
    assert_close(dice_loss(*one), _double((1 - p) / (2 + p)))
    assert_close(jaccard_loss(*one), _double((1 - p) / 2))
    assert_close(generalized_dice_loss(*one), _double((1 - p) / (1 + p)))
    tversky = 0.7 * (1 - p) / (p + 0.7 * (1 - p) + 1)
    assert_close(tversky_loss(*one), _double(tversky))
    assert_close(focal_tversky_loss(*one), _double(tversky**0.75))
    assert_close(lovasz_softmax_loss(_double([[p]]), one[1]), generalized_cross_entropy_loss(one[0], q=1.0)[0])
    certain = (_double([0.0, 0.0]), torch.tensor([0, 0]), _double([2.0]))
    assert_close(generalized_dice_loss(*certain, form="released"), _double(-1.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_downhill_raises_the_labels_probability(name: str) -> None:
    logits = _logits()
    slopes = _slopes(name, logits, LABELS)
    before = DenseRegionStatistics(logits, torch.tensor(LABELS)).token_logps.exp().sum()
    after = DenseRegionStatistics(logits - 0.1 * slopes, torch.tensor(LABELS)).token_logps.exp().sum()
    assert after > before
    assert _loss(name, logits - 0.1 * slopes, LABELS) < _loss(name, logits, LABELS)
    # Every token of a class gains by more of its own label and less of another present class.
    assert bool((slopes[range(10), LABELS] < 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "settings"), [*CASES, ("generalized_dice", {"form": "released"})])
def test_finite_at_the_ends(name: str, settings: Settings, dtype: torch.dtype) -> None:
    right = torch.nn.functional.one_hot(torch.tensor(LABELS), 7).to(dtype)
    for scale in (0.0, 30.0, 1e4, -30.0, -1e4):
        for offset in (0.0, 1e4, -1e4):
            loss = _loss(name, scale * right + offset, LABELS, **settings)
            slopes = _slopes(name, scale * right + offset, LABELS, **settings)
            assert loss.dtype == dtype
            assert bool(loss.isfinite())
            assert bool(slopes.isfinite().all())
            if settings.get("form") == "released":
                assert -1 <= loss.item() <= 0
            else:
                assert 0 <= loss.item() <= 1
                if scale == 0.0:
                    assert bool((slopes[range(10), LABELS] < 0).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_perfect_prediction_is_zero_with_zero_gradient(name: str, dtype: torch.dtype) -> None:
    logits = 1e4 * torch.nn.functional.one_hot(torch.tensor(LABELS), 7).to(dtype)
    assert float(_loss(name, logits, LABELS)) == 0.0
    assert_close(_slopes(name, logits, LABELS), torch.zeros_like(logits), rtol=0, atol=0)
    logps = torch.zeros(4, dtype=dtype, requires_grad=True)
    mass = torch.tensor([3.0, 1.0], dtype=dtype, requires_grad=True)
    loss = get_record(name).function(logps, torch.tensor([0, 0, 1, 0]), mass)
    assert loss.item() == 0.0
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(loss, [logps, mass]))


def test_single_precision_keeps_the_digits_near_one() -> None:
    """Missed probability 1e-9 a token: 1 - 2I/(M+N) rounds to 0 in float32, the sum of what is missed does not."""
    logps = torch.full((4,), -1e-9)
    ids, mass = torch.tensor([0, 1, 0, 0]), torch.tensor([3.0, 1.0])
    assert_close(dice_loss(logps, ids, mass, smooth=0.0), torch.tensor(0.5e-9), rtol=1e-6, atol=0)
    assert_close(jaccard_loss(logps, ids, mass, smooth=0.0), torch.tensor(1e-9), rtol=1e-6, atol=0)
    assert_close(tversky_loss(logps, ids, mass, smooth=0.0), torch.tensor(0.7e-9), rtol=1e-6, atol=0)
    assert_close(generalized_dice_loss(logps, ids, mass), torch.tensor(0.5e-9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_makes_nothing_negative(name: str) -> None:
    """The mass of a class may round below the sum over its own tokens."""
    logps = torch.zeros(3, dtype=torch.float64).requires_grad_()
    mass = _double([2.0 - 1e-13, 1.0 - 1e-13]).requires_grad_()
    loss = get_record(name).function(logps, torch.tensor([0, 1, 0]), mass)
    assert loss.item() == 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = 20 * torch.randn(10, 7, generator=generator) + 40 * torch.nn.functional.one_hot(
            torch.tensor(LABELS), 7
        )
        assert float(_loss(name, logits, LABELS)) >= 0.0


@pytest.mark.parametrize(("name", "settings"), [*[(name, {}) for name in NAMES], ("gdice", {"form": "released"})])
def test_an_empty_region_is_zero_and_keeps_its_graph(name: str, settings: dict[str, str]) -> None:
    logits = torch.zeros(0, 7, dtype=torch.float64, requires_grad=True)
    loss = _loss(name, logits, [], **settings)
    assert loss.shape == ()
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_zero_of_an_empty_region_hangs_on_every_statistic(name: str) -> None:
    leaves = [torch.zeros(0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = get_record(name).function(leaves[0], torch.zeros(0, dtype=torch.int64), leaves[1])
    assert [slope.shape for slope in torch.autograd.grad(loss, leaves)] == [(0,), (0,)]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_probability_lost_to_nothing(name: str, settings: Settings) -> None:
    """Log-probabilities of -1e5: the loss is at its largest and finite, with gradient exactly 0 as e^-1e5 has."""
    logps = torch.full((3,), -1e5, requires_grad=True)
    mass = torch.tensor([0.0, 0.0], requires_grad=True)
    loss = get_record(name).function(logps, torch.tensor([0, 1, 0]), mass, **settings)
    slopes = torch.autograd.grad(loss, [logps, mass])
    assert bool(loss.isfinite())
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    if settings.get("smooth") == 0.0:
        assert loss.item() == 1.0


def _half() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalized_dice_loss(*_half(), smooth=-1.0), "`smooth` must be >= 0, got -1.0."),
        (lambda: generalized_dice_loss(*_half(), classes="all"), "`classes` must be one of 'present', got 'all'."),
        (
            lambda: generalized_dice_loss(*_half(), form="new"),
            "`form` must be one of 'published', 'released', got 'new'.",
        ),
        (lambda: dice_loss(*_half(), smooth=-1.0), "`smooth` must be >= 0, got -1.0."),
        (lambda: jaccard_loss(*_half(), smooth=-1.0), "`smooth` must be >= 0, got -1.0."),
        (lambda: tversky_loss(*_half(), alpha=-0.1), "`alpha` must be >= 0, got -0.1."),
        (lambda: tversky_loss(*_half(), beta=0.0), "`beta` must be > 0, got 0.0."),
        (lambda: tversky_loss(*_half(), smooth=math.inf), "`smooth` must be >= 0, got inf."),
        (lambda: focal_tversky_loss(*_half(), gamma=0.0), "`gamma` must be > 0, got 0.0."),
        (lambda: focal_tversky_loss(*_half(), beta=-0.1), "`beta` must be > 0, got -0.1."),
    ],
)
def test_a_hyperparameter_out_of_range(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        call()
    assert message in str(caught.value)
