"""Pair preference objectives against scalar oracles: values, slopes, extremes, errors."""

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
from lossmith.objectives import apo_down_loss, get_record, orpo_loss
from oracles_preference import Pair
from preference_inputs import COUPLED, SHIFT, VARIANTS, make_pairs, statistics_of, tensor
from scalar_oracles import finite_difference

CASES = [(name, settings) for name, settings in VARIANTS.items() for settings in [{}, *settings]]
COUPLED_CASES = [(name, settings) for name, settings in COUPLED.items() for settings in [{}, *settings]]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def _id(value: object) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults" if isinstance(value, dict) else None


each = pytest.mark.parametrize(("name", "settings"), CASES, ids=_id)
each_coupled = pytest.mark.parametrize(("name", "settings"), COUPLED_CASES, ids=_id)
every_name = pytest.mark.parametrize("name", [*VARIANTS, *COUPLED])


def expected_of(name: str, settings: dict[str, Any]) -> tuple[Callable[[Pair], float], Callable[[Pair], Any]]:
    extra = {"shift": SHIFT} if name == "bco_pair" else {}
    value, slopes = getattr(oracle, name), getattr(oracle, f"{name}_slopes")
    return lambda p: value(p, **settings, **extra), lambda p: slopes(p, **settings, **extra)


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
        (name, {"label_smoothing": value}, rf"`label_smoothing` must be in [\[(]0, 0.5\), got {value}")
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
