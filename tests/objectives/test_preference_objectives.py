"""Pair preference objectives against scalar oracles: values, slopes, limits, extremes, errors."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import oracles_preference as oracle
from library import plain
from lossmith.errors import ObjectiveInputError
from lossmith.objectives import (
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    bco_pair_loss,
    cdpo_loss,
    cpo_loss,
    dpo_length_normalized_loss,
    dpo_loss,
    dpop_loss,
    exo_pair_loss,
    get_record,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    kto_loss,
    kto_pair_loss,
    nca_pair_loss,
    orpo_loss,
    preference_accuracy,
    robust_dpo_loss,
    simpo_loss,
    sppo_hard_loss,
)
from oracles_preference import Pair
from scalar_oracles import finite_difference

SHIFT = 0.37
"""Reward shift of the tests; what `bco_pair` must not read without `running_delta`."""

# Name -> hyper-parameters to try beside the defaults; the first half of the names has one loss per pair alone.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpo": [{"beta": 0.05}, {"beta": 0.7}],
    "cdpo": [{"beta": 0.3, "label_smoothing": 0.23}, {"label_smoothing": 0.0}],
    "robust_dpo": [{"beta": 0.3, "label_smoothing": 0.23}, {"label_smoothing": 0.0}],
    "hinge": [{"beta": 0.03}, {"beta": 0.6}],
    "ipo": [{"beta": 0.4}, {"beta": 0.3, "average": True}],
    "exo_pair": [{"beta": 0.2, "label_smoothing": 0.17}],
    "dpop": [{"beta": 0.02, "coefficient": 3.5}, {"coefficient": 0.0}],
    "dpo_length_normalized": [{"beta": 4.0}],
    "nca_pair": [{"beta": 0.04}],
    "bco_pair": [{"beta": 0.04}, {"beta": 0.2, "running_delta": True}],
    "sppo_hard": [{"beta": 0.04}],
    "apo_zero": [{"beta": 0.04}],
    "apo_down": [{"beta": 0.04}],
    "simpo": [{"beta": 1.3, "gamma": 0.4}, {"gamma": 0.0}],
    "orpo": [{"coefficient": 1.7}, {"coefficient": 0.0}],
    "cpo": [{"beta": 0.3, "nll_coefficient": 0.6}, {"nll_coefficient": 0.0}],
}
COUPLED: dict[str, list[dict[str, Any]]] = {
    "aot": [{"beta": 0.3, "label_smoothing": 0.23}],
    "aot_unpaired": [{"beta": 0.3, "label_smoothing": 0.23}],
    "kto_pair": [{"beta": 0.3}, {"beta": 0.3, "detach_kl": False}],
}
CASES = [(name, settings) for name, settings in VARIANTS.items() for settings in [{}, *settings]]
COUPLED_CASES = [(name, settings) for name, settings in COUPLED.items() for settings in [{}, *settings]]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def _id(value: object) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults" if isinstance(value, dict) else None


each = pytest.mark.parametrize(("name", "settings"), CASES, ids=_id)
each_coupled = pytest.mark.parametrize(("name", "settings"), COUPLED_CASES, ids=_id)
every_name = pytest.mark.parametrize("name", [*VARIANTS, *COUPLED])


def make_pairs(count: int = 9, seed: int = 0) -> list[Pair]:
    """Uneven pairs: some won, some lost, some chosen completions below their reference, no two lengths alike."""
    generator = torch.Generator().manual_seed(seed)
    policy = -5 - 55 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    reference = policy + 9 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    lengths = torch.randint(3, 40, (count, 2), generator=generator).double()
    return [Pair(*map(float, row)) for row in torch.cat([policy, reference, lengths], 1)]


def statistics_of(name: str, pairs: list[Pair], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    columns = {
        "chosen_logps": [p.chosen for p in pairs],
        "rejected_logps": [p.rejected for p in pairs],
        "ref_chosen_logps": [p.ref_chosen for p in pairs],
        "ref_rejected_logps": [p.ref_rejected for p in pairs],
        "chosen_lengths": [p.chosen_length for p in pairs],
        "rejected_lengths": [p.rejected_length for p in pairs],
        "reward_shift": SHIFT,
    }
    read = {key: torch.tensor(columns[key], dtype=dtype) for key in get_record(name).reads}
    for key in ("chosen_logps", "rejected_logps"):
        read[key].requires_grad_()
    return read


def expected_of(name: str, settings: dict[str, Any]) -> tuple[Callable[[Pair], float], Callable[[Pair], Any]]:
    extra = {"shift": SHIFT} if name == "bco_pair" else {}
    value, slopes = getattr(oracle, name), getattr(oracle, f"{name}_slopes")
    return lambda p: value(p, **settings, **extra), lambda p: slopes(p, **settings, **extra)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@each
def test_values_and_slopes_match_the_oracle(name: str, settings: dict[str, Any]) -> None:
    pairs, upstream = make_pairs(), torch.linspace(-1.3, 2.1, 9, dtype=torch.float64)
    statistics = statistics_of(name, pairs)
    value, slopes = expected_of(name, settings)

    losses = get_record(name).function(**statistics, **settings)

    assert_close(losses, tensor([value(p) for p in pairs]), rtol=1e-12, atol=1e-16)
    leaves = [statistics["chosen_logps"], statistics["rejected_logps"]]
    found = torch.autograd.grad(losses, leaves, upstream)
    wanted = tensor([slopes(p) for p in pairs]) * upstream[:, None]
    assert_close(torch.stack(found, 1), wanted, rtol=1e-11, atol=1e-17)


@each
def test_the_oracle_slopes_are_those_of_the_oracle_values(name: str, settings: dict[str, Any]) -> None:
    value, slopes = expected_of(name, settings)
    for pair in make_pairs(4, seed=1):
        numeric = finite_difference(
            lambda rows, pair=pair: value(dataclasses.replace(pair, chosen=rows[0][0], rejected=rows[0][1])),
            [[pair.chosen, pair.rejected]],
            step=1e-3,
        )
        assert numeric[0] == pytest.approx(list(slopes(pair)), rel=1e-7, abs=1e-9)


@each_coupled
def test_values_and_gradients_of_batch_coupled_objectives(name: str, settings: dict[str, Any]) -> None:
    pairs = make_pairs(7, seed=6)
    statistics = statistics_of(name, pairs)
    batch = getattr(oracle, name)
    count = 14 if name == "kto_pair" else 7
    upstream = torch.linspace(-1.3, 2.1, count, dtype=torch.float64)
    held = {}
    if name == "kto_pair":
        means = [max(0.0, math.fsum(side) / 7) for side in ([p.c for p in pairs], [p.r for p in pairs])]
        assert min(means) > 0.5, "a clamped mean could not show that it is detached"
        held = {"held": tuple(means)}

    losses = get_record(name).function(**statistics, **settings)

    assert get_record(name).batch_coupled
    assert_close(losses, tensor(batch(pairs, **settings)), rtol=1e-12, atol=1e-16)

    def total(rows: list[list[float]]) -> float:
        moved = [dataclasses.replace(p, chosen=a, rejected=b) for p, (a, b) in zip(pairs, rows, strict=True)]
        return math.fsum(w * v for w, v in zip(upstream.tolist(), batch(moved, **settings, **held), strict=True))

    numeric = finite_difference(total, [[p.chosen, p.rejected] for p in pairs], step=1e-3)
    found = torch.autograd.grad(losses, [statistics["chosen_logps"], statistics["rejected_logps"]], upstream)
    assert_close(torch.stack(found, 1), tensor(numeric), rtol=1e-7, atol=1e-10)


# The log-ratios of both sides: won and lost by 2 to 2 million nats; every shape of loss has somewhere to saturate.
FAR = [(0.0, 0.0), (2.0, -1.0), (-2.0, 1.0)] + [
    (a * far, b * far)
    for far in (40.0, 170.0, 800.0, 1e4, 1e6)
    for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.5, -0.5), (-0.5, 0.5), (1, 1), (-1, -1))
]


@DTYPES
@each
def test_extreme_log_ratios(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    with_reference = "ref_chosen_logps" in get_record(name).reads
    if with_reference:
        pairs = [Pair(-1e5, -1e5, -1e5 - c, -1e5 - r, 5.0, 3.0) for c, r in FAR]
    else:
        far = (1e-9, 1e-4, 0.5, 40.0, 170.0, 800.0, 1e5)
        pairs = [Pair(-c, -r, 0.0, 0.0, 1.0, n) for c in far for r in far for n in (1.0, 7.0)]
    statistics = statistics_of(name, pairs, dtype)
    value, slopes = expected_of(name, settings)

    losses = get_record(name).function(**statistics, **settings)
    found = torch.autograd.grad(losses.sum(), [statistics["chosen_logps"], statistics["rejected_logps"]])

    wanted, pulls = tensor([value(p) for p in pairs]), tensor([slopes(p) for p in pairs])
    close, slack, tiny = (4e-5, 1e-6, 1e-36) if dtype is torch.float32 else (1e-10, 1e-14, 1e-306)
    # Where two terms of size one cancel, the sum is as exact as they are; everything else is exact to the last digits.
    assert_close(losses.double(), wanted, rtol=close, atol=slack if name in ("exo_pair", "orpo") else tiny)
    got = torch.stack(found, 1).double()
    floor = slack if name == "apo_down" else tiny
    assert_close(got, pulls, rtol=close, atol=floor)
    felt = pulls.abs() > floor
    assert torch.equal(got.sign()[felt], pulls.sign()[felt]), "a slope has vanished or turned"


@pytest.mark.parametrize("name", ["exo_pair", "apo_zero", "apo_down", "kto_pair"])
@pytest.mark.parametrize("x", [-80.0, -30.0, -17.5, 17.5, 30.0, 80.0])
def test_saturating_slopes_survive_in_float32(name: str, x: float) -> None:
    pair = Pair(x - 3.0, -3.0, -3.0, -3.0)
    statistics = statistics_of(name, [pair], torch.float32)
    losses = get_record(name).function(**statistics, beta=1.0)
    slope = torch.autograd.grad(losses.sum(), statistics["chosen_logps"])[0]
    if name == "kto_pair":
        wanted = oracle.kto_slope(x, True, 0.0, beta=1.0)
    else:
        wanted = getattr(oracle, f"{name}_slopes")(pair, beta=1.0)[0]
    if name == "apo_down":  # at r = 0 the two terms of the chosen side cancel; the rejected side shows the slope
        slope = torch.autograd.grad(
            get_record(name).function(**statistics, beta=1.0).sum(), statistics["rejected_logps"]
        )[0]
        wanted = oracle.apo_down_slopes(pair, beta=1.0)[1]
    assert slope.item() != 0
    assert slope.item() == pytest.approx(wanted, rel=2e-5)


@DTYPES
def test_orpo_where_probabilities_round_to_one(dtype: torch.dtype) -> None:
    near = (0.0, 1e-12, 1e-9, 2e-7, 1e-6, 1e-3, 2.0, 1e5)
    pairs = [Pair(-a, -b) for a in near for b in near]
    statistics = statistics_of("orpo", pairs, dtype)
    losses = orpo_loss(**statistics)
    found = torch.stack(torch.autograd.grad(losses.sum(), list(statistics.values())[:2]), 1)
    assert losses.isfinite().all()
    assert found.isfinite().all()
    close = 2e-5 if dtype is torch.float32 else 1e-9
    assert_close(losses.double(), tensor([oracle.orpo(p) for p in pairs]), rtol=close, atol=1e-18)
    assert_close(found.double(), tensor([oracle.orpo_slopes(p) for p in pairs]), rtol=close, atol=1e-18)
    lost = [i for i, p in enumerate(pairs) if p.rejected > -1e-6 and p.chosen <= -1e-3]
    assert (found[lost, 1] > 1).all(), "a rejected completion of probability 1 must be pushed down"
    assert (found[:, 0] <= -1).all()


def test_orpo_survives_a_mean_just_above_zero() -> None:
    above = torch.tensor([2e-6], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    losses = orpo_loss(above, above, one, one)
    slope = torch.autograd.grad(losses.sum(), above)[0]
    assert losses.isfinite().all()
    assert slope.isfinite().all()


LOST = Pair(-40.0, -20.0, -30.0, -32.0, 10.0, 10.0)


@pytest.mark.parametrize("name", [*(n for n in VARIANTS if n != "apo_down"), *COUPLED])
def test_a_lost_pair_is_pulled_the_right_way(name: str) -> None:
    statistics = statistics_of(name, [LOST])
    losses = get_record(name).function(**statistics)
    up, down = torch.autograd.grad(losses.sum(), [statistics["chosen_logps"], statistics["rejected_logps"]])
    assert up.item() < 0 < down.item()


def test_apo_down_lowers_both_sides() -> None:
    statistics = statistics_of("apo_down", [dataclasses.replace(LOST, chosen=-29.0)])
    losses = apo_down_loss(**statistics)
    chosen, rejected = torch.autograd.grad(losses.sum(), [statistics["chosen_logps"], statistics["rejected_logps"]])
    assert 0 < chosen.item() < rejected.item()


def test_known_values_where_policy_and_reference_agree() -> None:
    log2, same = math.log(2), [Pair(p.chosen, p.rejected, p.chosen, p.rejected, 4.0, 9.0) for p in make_pairs(3)]
    wanted = {
        "dpo": log2,
        "cdpo": log2,
        "robust_dpo": log2,
        "hinge": 1.0,
        "ipo": 25.0,
        "exo_pair": -log2 - 0.5 * math.log(0.001 * 0.999),
        "dpop": log2,
        "dpo_length_normalized": log2,
        "nca_pair": 2 * log2,
        "bco_pair": 2 * log2,
        "sppo_hard": 50.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "aot": log2,
        "kto_pair": 0.5,
    }
    for name, value in wanted.items():
        losses = get_record(name).function(**statistics_of(name, same))
        assert_close(losses, torch.full_like(losses, value), rtol=1e-14, atol=0, msg=name)


def test_known_values_without_reference() -> None:
    a, b = tensor([-5.0, -30.0]), tensor([-10.0, -9.0])
    four, eight = tensor([4.0, 4.0]), tensor([8.0, 8.0])
    assert_close(simpo_loss(a, 2 * a - 4.0, four, eight, beta=2.0, gamma=1.0), tensor([math.log(2)] * 2))
    assert_close(orpo_loss(a, 2 * a, four, eight, coefficient=0.3), -a / 4 + 0.3 * math.log(2))
    assert_close(cpo_loss(b, b, four, nll_coefficient=0.3), math.log(2) - 0.3 * b / 4)


def test_where_the_bounded_losses_are_smallest() -> None:
    zero, e, beta = tensor([0.0]), 0.2, 0.5
    best = tensor([math.log((1 - e) / e) / beta]).requires_grad_()
    entropy = -(e * math.log(e) + (1 - e) * math.log(1 - e))
    for function, least in ((cdpo_loss, entropy), (exo_pair_loss, 0.0)):
        losses = function(best, zero, zero, zero, beta=beta, label_smoothing=e)
        assert losses.item() == pytest.approx(least, abs=1e-15)
        assert torch.autograd.grad(losses.sum(), best)[0].item() == pytest.approx(0, abs=1e-15)
    held = tensor([math.log(2) / beta]).requires_grad_()
    slope = torch.autograd.grad(nca_pair_loss(held, zero, zero, zero, beta=beta).sum(), held)[0]
    assert slope.item() == pytest.approx(0, abs=1e-15)
    far = exo_pair_loss(tensor([-1e4]), zero, zero, zero, label_smoothing=e)
    assert far.item() == pytest.approx(-math.log(e), rel=1e-12)


def test_robust_dpo_falls_without_end() -> None:
    zero = tensor([0.0])
    losses = robust_dpo_loss(tensor([1e6]), zero, zero, zero, beta=0.5, label_smoothing=0.2)
    assert losses.item() == pytest.approx(-0.2 / 0.6 * 0.5e6, rel=1e-12)


def test_kinks_have_slope_zero_on_the_flat_side() -> None:
    zero = tensor([0.0])
    at = tensor([10.0]).requires_grad_()
    assert torch.autograd.grad(hinge_loss(at, zero, zero, zero).sum(), at)[0].item() == 0
    at = tensor([0.0]).requires_grad_()
    assert torch.autograd.grad(dpop_loss(at, zero, zero, zero).sum(), at)[0].item() == pytest.approx(-0.05)


def _pairs(seed: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    columns = statistics_of("ipo", make_pairs(8, seed))
    values = [value.detach() for value in columns.values()]
    return values[:4], values[4], values[5]


def test_label_noise_of_zero_is_dpo() -> None:
    four, _, _ = _pairs()
    wanted = dpo_loss(*four, beta=0.3)
    for function in (cdpo_loss, robust_dpo_loss):
        assert_close(function(*four, beta=0.3, label_smoothing=0.0), wanted, rtol=1e-15, atol=0)
    assert_close(dpop_loss(*four, beta=0.3, coefficient=0.0), wanted, rtol=1e-15, atol=0)


def test_robust_dpo_is_dpo_on_average_over_the_flips() -> None:
    (chosen, rejected, ref_chosen, ref_rejected), _, _ = _pairs()
    e = 0.2
    kept = robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, label_smoothing=e)
    flipped = robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, label_smoothing=e)
    assert_close((1 - e) * kept + e * flipped, dpo_loss(chosen, rejected, ref_chosen, ref_rejected), rtol=1e-12, atol=0)


def test_dpop_is_dpo_where_no_chosen_log_ratio_is_negative() -> None:
    four, _, _ = _pairs()
    up = four[0] >= four[2]
    assert 0 < int(up.sum()) < len(up)
    same = dpop_loss(*four) == dpo_loss(*four)
    assert torch.equal(same, up)


def test_hinge_and_dpo_slopes_agree_on_pairs_lost_by_far() -> None:
    zero, slopes = tensor([0.0]), []
    for function in (hinge_loss, dpo_loss):
        lost = tensor([-1e3]).requires_grad_()
        slopes.append(torch.autograd.grad(function(lost, zero, zero, zero, beta=0.3).sum(), lost)[0].item())
    assert slopes == pytest.approx([-0.3, -0.3], rel=1e-12)


def test_cdpo_and_exo_have_one_minimum_but_differ() -> None:
    four, _, _ = _pairs()
    assert not torch.isclose(cdpo_loss(*four, label_smoothing=0.2), exo_pair_loss(*four, label_smoothing=0.2)).any()


def test_length_normalised_relations() -> None:
    four, chosen_lengths, rejected_lengths = _pairs()
    one, six = torch.ones_like(chosen_lengths), torch.full_like(chosen_lengths, 6.0)
    assert_close(dpo_length_normalized_loss(*four, one, one, beta=0.3), dpo_loss(*four, beta=0.3))
    assert_close(dpo_length_normalized_loss(*four, six, six, beta=0.3), dpo_loss(*four, beta=0.05))
    assert_close(ipo_loss(*four, one, one, average=True), ipo_loss(*four, one, one))
    zero = torch.zeros_like(one)
    free = four[0], four[1], chosen_lengths, rejected_lengths
    wanted = dpo_length_normalized_loss(four[0], four[1], zero, zero, *free[2:], beta=2.0)
    assert_close(simpo_loss(*free, gamma=0.0), wanted)
    summed = cpo_loss(*free[:3], beta=0.3, nll_coefficient=0.0)
    assert_close(summed, dpo_loss(four[0], four[1], zero, zero, beta=0.3))
    assert_close(summed, simpo_loss(four[0], four[1], one, one, beta=0.3, gamma=0.0))
    assert_close(orpo_loss(*free, coefficient=0.0), -four[0] / chosen_lengths)


def test_sppo_hard_is_bounded_by_ipo_and_meets_it_on_mirrored_sides() -> None:
    four, one, _ = _pairs()
    bound = ipo_loss(*four, one, one, beta=0.1) / 2
    assert (sppo_hard_loss(*four, beta=0.2) > bound).all()
    c, zero = four[0], torch.zeros_like(one)
    mirrored = c, -c, zero, zero
    assert_close(sppo_hard_loss(*mirrored, beta=0.2), ipo_loss(*mirrored, one, one, beta=0.1) / 2)


def test_sides_are_sums_of_unpaired_losses() -> None:
    four, _, _ = _pairs()
    good, bad = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    chosen, rejected = (four[0], four[2], good), (four[1], four[3], bad)
    zero, shift = tensor(0.0), tensor(0.4)
    assert_close(apo_zero_loss(*four), kto_loss(*chosen, zero) + kto_loss(*rejected, zero))
    paired = bco_pair_loss(*four, shift, running_delta=True)
    assert_close(paired, bco_loss(*chosen, shift) + bco_loss(*rejected, shift))
    means = [(four[i] - four[i + 2]).mean().clamp(min=0) for i in (0, 1)]
    assert max(means) > 0
    assert_close(kto_pair_loss(*four), torch.cat([kto_loss(*chosen, means[1]), kto_loss(*rejected, means[0])]))
    low = four[0] - 100, four[1] - 100, *four[2:]
    assert_close(kto_pair_loss(*low).unflatten(0, (2, 8)).sum(0), apo_zero_loss(*low))


def test_bco_pair_is_never_below_dpo() -> None:
    for seed in range(3):
        four, _, _ = _pairs(seed)
        for shift in (-3.0, 0.0, 1.0):
            assert (bco_pair_loss(*four, tensor(shift), running_delta=True) > dpo_loss(*four)).all()


def test_second_term_of_apo_down_is_the_bounded_dpo() -> None:
    four, _, _ = _pairs()
    first = torch.sigmoid(0.1 * (four[0] - four[2]))
    assert_close(apo_down_loss(*four) - first, -torch.expm1(-dpo_loss(*four)))


def test_sorting_relations() -> None:
    four, _, _ = _pairs()
    one_pair = [value[:1] for value in four]
    for function in (aot_loss, aot_unpaired_loss):
        assert_close(function(*one_pair, label_smoothing=0.2), cdpo_loss(*one_pair, label_smoothing=0.2))
        assert function(*four, label_smoothing=0.2).mean() < cdpo_loss(*four, label_smoothing=0.2).mean()
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        assert_close(function(*(value[order] for value in four)), function(*four), rtol=0, atol=0)
    rising = torch.arange(8.0, dtype=torch.float64)
    alike = four[1] + rising, four[1], four[3] + 0.3 * rising, four[3]
    assert_close(aot_loss(*alike), dpo_loss(*alike))
    alike = four[2] + rising, four[3] + 0.3 * rising, four[2], four[3]
    assert_close(aot_unpaired_loss(*alike), dpo_loss(*alike))


@pytest.mark.parametrize(("name", "settings"), [("ipo", {}), ("cpo", {"nll_coefficient": 0.0}), ("bco_pair", {})])
def test_what_is_not_needed_is_not_read(name: str, settings: dict[str, Any]) -> None:
    record = get_record(name)
    statistics = statistics_of(name, make_pairs())
    before = record.function(**statistics, **settings)
    unread = {key: torch.full_like(statistics[key], math.nan) for key in record.needed_when}
    assert unread
    assert torch.equal(record.function(**statistics | unread, **settings), before)


@every_name
def test_records_are_consistent(name: str) -> None:
    record = get_record(name)
    assert record.family == "preference"
    assert record.item == ("completion" if name == "kto_pair" else "pair")
    assert record.batch_coupled == (name in COUPLED)
    assert set(record.needed_when) <= set(record.reads)
    assert set(record.needed_when.values()) <= set(record.hyperparameters)
    for setting, other in record.instead.items():
        assert setting not in record.hyperparameters
        assert setting in get_record(other).hyperparameters
    text = inspect.getdoc(record.function) or ""
    places = [text.find(f"\n{section}:\n") for section in ("Source", "Use when", "Relatives", "Elsewhere", "Example")]
    assert min(places) > 0
    assert places == sorted(places)


def test_slic_is_hinge() -> None:
    assert get_record("slic") is get_record("hinge")


@every_name
def test_half_precision_goes_up_and_nothing_comes_from_no_pairs(name: str) -> None:
    record = get_record(name)
    rounded = {key: value.detach().bfloat16() for key, value in statistics_of(name, make_pairs()).items()}
    got = record.function(**rounded)
    assert got.dtype == torch.float32
    assert torch.equal(got, record.function(**{key: value.float() for key, value in rounded.items()}))
    empty = statistics_of(name, [])
    losses = record.function(**empty)
    assert losses.shape == (0,)
    losses.sum().backward()


def test_constants_get_no_gradient() -> None:
    four, _, _ = _pairs()
    shift = tensor(0.4).requires_grad_()
    losses = bco_pair_loss(four[0].requires_grad_(), *four[1:], shift, running_delta=True)
    assert torch.autograd.grad(losses.sum(), shift, allow_unused=True)[0] is None


def test_everything_compiles_whole() -> None:
    names = [*VARIANTS, *COUPLED]
    functions = [plain(get_record(name).function) for name in names]
    given = [list(statistics_of(name, make_pairs()).values()) for name in names]

    def all_of_them(inputs: list[list[Tensor]]) -> Tensor:
        return torch.cat([function(*values) for function, values in zip(functions, inputs, strict=True)])

    compiled = torch.compile(all_of_them, fullgraph=True, backend="aot_eager")
    eager, traced = all_of_them(given), compiled(given)
    assert_close(traced, eager, rtol=1e-13, atol=1e-15)
    upstream = torch.linspace(-1, 2, len(eager), dtype=torch.float64)
    leaves = [values[i] for values in given for i in (0, 1)]
    for got, wanted in zip(
        torch.autograd.grad(traced, leaves, upstream), torch.autograd.grad(eager, leaves, upstream), strict=True
    ):
        assert_close(got, wanted, rtol=1e-12, atol=1e-15)


BAD = [
    *(
        (name, {"beta": value}, f"`beta` must be > 0, got {value}")
        for name in [*VARIANTS, *COUPLED]
        if name != "orpo"
        for value in (0.0, -0.1)
    ),
    *(
        (name, {"label_smoothing": value}, rf"`label_smoothing` must be in \[0, 0.5\), got {value}")
        for name in ("cdpo", "robust_dpo", "exo_pair", "aot", "aot_unpaired")
        for value in (-0.1, 0.5, math.nan)
    ),
    ("exo_pair", {"label_smoothing": 0.0}, "must be in .*got 0, whose logarithm .* such as 0.001 or use `dpo`"),
    ("dpop", {"coefficient": -1.0}, "`coefficient` must be >= 0, got -1.0"),
    ("orpo", {"coefficient": -1.0}, "`coefficient` must be >= 0, got -1.0"),
    ("simpo", {"gamma": -1.0}, "`gamma` must be >= 0, got -1.0"),
    ("cpo", {"nll_coefficient": -1.0}, "`nll_coefficient` must be >= 0, got -1.0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_wrong_hyperparameters_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        get_record(name).function(**statistics_of(name, make_pairs(2)), **settings)


def test_logged_quantities() -> None:
    (chosen, rejected, ref_chosen, ref_rejected), _, _ = _pairs()
    rewards = implicit_rewards(chosen.requires_grad_(), ref_chosen, beta=0.3)
    assert not rewards.requires_grad
    assert_close(rewards, 0.3 * (chosen - ref_chosen).detach())
    margins = rewards - implicit_rewards(rejected, ref_rejected, beta=0.3)
    accuracy = preference_accuracy(chosen, rejected, ref_chosen, ref_rejected)
    assert not accuracy.requires_grad
    assert accuracy.item() == sum(m > 0 for m in margins.tolist()) / 8
    assert 0 < accuracy < 1
    assert accuracy != 0.5, "a swapped sign could not show"
    assert preference_accuracy(ref_chosen, ref_rejected, ref_chosen, ref_rejected).item() == 0.5
    with pytest.raises(ObjectiveInputError, match="`beta` must be > 0"):
        implicit_rewards(chosen, ref_chosen, beta=0.0)
