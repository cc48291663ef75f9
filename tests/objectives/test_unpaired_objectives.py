"""Unpaired objectives against scalar oracles: values, slopes, constants, extremes, errors."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import oracles_preference as oracle
from library import plain
from lossmith.errors import ObjectiveInputError
from lossmith.objectives import apo_zero_loss, bco_loss, get_record, kto_loss

CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("kto", 1.7, {}),
    ("kto", -0.9, {}),
    ("kto", 0.6, {"beta": 0.3, "desirable_weight": 0.7, "undesirable_weight": 1.9}),
    ("bco", 0.0, {}),
    ("bco", 0.8, {"beta": 0.3}),
    ("bco", -1.2, {"beta": 0.02}),
]
cases = pytest.mark.parametrize(("name", "constant", "settings"), CASES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def make_completions(count: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logps = -5 - 55 * torch.rand(count, generator=generator, dtype=torch.float64)
    ref_logps = logps + 9 * torch.randn(count, generator=generator, dtype=torch.float64)
    return logps.requires_grad_(), ref_logps, torch.arange(count) % 3 > 0


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@cases
def test_values_and_slopes_match_the_oracle(name: str, constant: float, settings: dict[str, Any]) -> None:
    logps, ref_logps, desirable = make_completions()
    given = tensor(constant).requires_grad_()
    upstream = torch.linspace(-1.3, 2.1, 11, dtype=torch.float64)

    losses = get_record(name).function(logps, ref_logps, desirable, given, **settings)

    value, slope = getattr(oracle, name), getattr(oracle, f"{name}_slope")
    rows = list(zip((logps - ref_logps).tolist(), desirable.tolist(), strict=True))
    assert_close(losses, tensor([value(v, good, constant, **settings) for v, good in rows]), rtol=1e-12, atol=0)
    found, untouched = torch.autograd.grad(losses, [logps, given], upstream, allow_unused=True)
    wanted = tensor([slope(v, good, constant, **settings) for v, good in rows]) * upstream
    assert_close(found, wanted, rtol=1e-11, atol=0)
    assert untouched is None, "the constant must get no gradient"


@cases
def test_the_oracle_slopes_are_those_of_the_oracle_values(name: str, constant: float, settings: dict[str, Any]) -> None:
    value, slope, h = getattr(oracle, name), getattr(oracle, f"{name}_slope"), 1e-4
    for v in (-7.0, 0.4, 3.0):
        for good in (True, False):
            above, below = (value(v + step, good, constant, **settings) for step in (h, -h))
            assert (above - below) / (2 * h) == pytest.approx(slope(v, good, constant, **settings), rel=1e-6)


@DTYPES
@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_extreme_log_ratios(name: str, beta: float, dtype: torch.dtype) -> None:
    ratios = [sign * far for far in (0.0, 17.5, 80.0, 700.0, 1e4, 1e6) for sign in (1, -1)]
    both = [(v, good) for v in ratios for good in (True, False)]
    logps = torch.full((len(both),), -1e5, dtype=dtype, requires_grad=True)
    ref_logps = torch.tensor([-1e5 - v for v, _ in both], dtype=dtype)
    desirable = torch.tensor([good for _, good in both])
    losses = get_record(name).function(logps, ref_logps, desirable, torch.tensor(0.0, dtype=dtype), beta=beta)
    found = torch.autograd.grad(losses.sum(), logps)[0].double()
    value, slope = getattr(oracle, name), getattr(oracle, f"{name}_slope")
    close, tiny = (4e-5, 1e-36) if dtype is torch.float32 else (1e-11, 1e-306)
    assert_close(losses.double(), tensor([value(v, good, 0.0, beta) for v, good in both]), rtol=close, atol=tiny)
    wanted = tensor([slope(v, good, 0.0, beta) for v, good in both])
    assert_close(found, wanted, rtol=close, atol=tiny)
    felt = wanted.abs() > tiny
    assert torch.equal(found.sign()[felt], torch.where(desirable, -1.0, 1.0).double()[felt])


def test_known_values() -> None:
    same, desirable = tensor([-10.0, -12.0]), torch.tensor([True, False])
    weighted = kto_loss(same, same, desirable, tensor(0.0), desirable_weight=3.0, undesirable_weight=0.5)
    assert_close(weighted, tensor([1.5, 0.25]))
    at_shift = bco_loss(same + 4.0, same, desirable, tensor(2.0), beta=0.5)
    assert_close(at_shift, tensor([math.log(2)] * 2))


def test_negative_kl_counts_as_zero() -> None:
    completions = make_completions()
    assert torch.equal(kto_loss(*completions, tensor(-3.0)), kto_loss(*completions, tensor(0.0)))
    assert not torch.isclose(kto_loss(*completions, tensor(3.0)), kto_loss(*completions, tensor(0.0))).any()


def test_kto_without_kl_is_the_halves_of_apo_zero() -> None:
    logps, ref_logps, desirable = make_completions()
    zero = torch.zeros_like(ref_logps)
    chosen_only = apo_zero_loss(logps, zero, ref_logps, zero) - 0.5
    rejected_only = apo_zero_loss(zero, logps, zero, ref_logps) - 0.5
    halves = torch.where(desirable, chosen_only, rejected_only)
    assert_close(kto_loss(logps, ref_logps, desirable, tensor(0.0)), halves)


def test_good_and_bad_are_mirror_images() -> None:
    logps, ref_logps, desirable = make_completions()
    for function in (kto_loss, bco_loss):
        mirrored = function(ref_logps, logps, ~desirable, tensor(0.0))
        assert_close(function(logps, ref_logps, desirable, tensor(0.0)), mirrored)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_half_precision_goes_up_and_no_completions_give_nothing(name: str) -> None:
    function = get_record(name).function
    logps, ref_logps, desirable = make_completions()
    half = logps.detach().bfloat16(), ref_logps.bfloat16()
    shift = torch.tensor(0.77).bfloat16()
    got = function(*half, desirable, shift)
    assert got.dtype == torch.float32
    assert torch.equal(got, function(half[0].float(), half[1].float(), desirable, shift.float()))
    empty = torch.zeros(0, requires_grad=True)
    function(empty, empty, torch.zeros(0, dtype=torch.bool), torch.tensor(0.0)).sum().backward()


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_compiles_whole(name: str) -> None:
    function = plain(get_record(name).function)
    logps, ref_logps, desirable = make_completions()
    inputs = logps, ref_logps, desirable, tensor(0.7)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager, traced = function(*inputs), compiled(*inputs)
    assert_close(traced, eager, rtol=1e-13, atol=0)
    wanted = torch.autograd.grad(eager.sum(), logps)[0]
    assert_close(torch.autograd.grad(traced.sum(), logps)[0], wanted, rtol=1e-12, atol=0)


def test_records_are_consistent() -> None:
    assert get_record("bco").batch_coupled
    assert not get_record("kto").batch_coupled
    for name in ("kto", "bco"):
        record = get_record(name)
        assert record.family == "unpaired"
        assert record.item == "completion"
        for setting, other in record.instead.items():
            assert setting not in record.hyperparameters
            assert setting in get_record(other).hyperparameters
        text = inspect.getdoc(record.function) or ""
        places = [text.find(f"\n{part}:\n") for part in ("Source", "Use when", "Relatives", "Elsewhere", "Example")]
        assert min(places) > 0
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kto", {"beta": 0.0}, "`beta` must be > 0, got 0.0"),
        ("bco", {"beta": -0.1}, "`beta` must be > 0, got -0.1"),
        ("kto", {"desirable_weight": -1.0}, "`desirable_weight` must be >= 0, got -1.0"),
        ("kto", {"undesirable_weight": math.inf}, "`undesirable_weight` must be >= 0, got inf"),
    ],
)
def test_wrong_hyperparameters_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        get_record(name).function(*make_completions(), tensor(0.0), **settings)
