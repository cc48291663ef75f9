"""Statistics as formulas of a row's sums: against scalar loops over the row, and where digits are easily lost."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import scalar_oracles as oracle
from lossmith.engines import DenseTokenStatistics
from lossmith.engines.row_sums import SUMS_READ, RowSums, SumStatistics, sums_read
from lossmith.objectives import VOCABULARY

ROWS = [
    ([0.3, -1.2, 2.5, 0.7, -0.4], 2),
    ([0.3, -1.2, 2.5, 0.7, -0.4], 1),
    ([1.5, 1.5, -2.0, 1.5], 2),
    ([7.0, 7.0], 1),
    ([50.0, 0.0, 1.0], 0),
    ([-50.0, 0.0, 1.0], 0),
    ([float(n % 7) / 3 for n in range(33)], 5),
]
BY_LOOP = {
    "token_logps": lambda row, y: oracle.log_probs(row)[y],
    "complement_logps": oracle.complement_logp,
    "log_normalizer": lambda row, y: oracle.log_sum_exp(row),
    "entropy": lambda row, y: oracle.entropy(row),
    "log_sum_sq_probs": lambda row, y: math.log(math.fsum(p * p for p in oracle.probs(row))),
    "mean_logits": lambda row, y: math.fsum(row) / len(row),
    "mean_class_logps": lambda row, y: math.fsum(oracle.log_probs(row)) / len(row),
    "max_logps": lambda row, y: max(oracle.log_probs(row)),
    "top_20_entropy": lambda row, y: oracle.entropy(sorted(row)[-20:]),
}


def _sums(rows: list[list[float]], labels: list[int]) -> RowSums:
    """The definitions of the module's head, by loops."""
    columns: dict[str, list[float]] = {
        name: [] for name in ("own", "m", "total", "tilted", "squares", "centered", "plain", "n")
    }
    tops = []
    for row, y in zip(rows, labels, strict=True):
        others = [z for k, z in enumerate(row) if k != y]
        m = max(others)
        columns["own"].append(row[y])
        columns["m"].append(m)
        columns["total"].append(math.fsum(math.exp(z - m) for z in others))
        columns["tilted"].append(math.fsum(math.exp(z - m) * (z - m) for z in others))
        columns["squares"].append(math.fsum(math.exp(2 * (z - m)) for z in others))
        columns["centered"].append(math.fsum(z - m for z in others))
        columns["plain"].append(math.fsum(others))
        columns["n"].append(float(others.count(m)))
        tops.append(sorted(others)[-20:])
    own, m, total, tilted, squares, centered, plain, n = (
        torch.tensor(v, dtype=torch.float64) for v in columns.values()
    )
    return RowSums(
        label_scores=own,
        maximum=m,
        total=total,
        tilted=tilted,
        squares=squares,
        centered=centered,
        plain=plain,
        highest=torch.zeros_like(total),
        ties=n,
        top=torch.tensor(tops, dtype=torch.float64),
    )


def test_every_statistic_is_a_formula_of_the_sums() -> None:
    assert set(BY_LOOP) == set(SUMS_READ) == set(VOCABULARY["token"])
    for row, y in ROWS:
        found = SumStatistics(_sums([row], [y]), len(row)).get(tuple(BY_LOOP))
        for name, formula in BY_LOOP.items():
            assert found[name].item() == pytest.approx(formula(row, y), rel=1e-12, abs=1e-13), (name, row, y)


@pytest.mark.parametrize("name", [name for name in BY_LOOP if name != "top_20_entropy"])
@pytest.mark.parametrize("place", range(len(ROWS)))
def test_derivatives_of_the_sums_are_those_of_the_row(name: str, place: int) -> None:
    """The chain rule through the sums' own definitions gives the dense gradient, with the maximum held constant."""
    row, y = ROWS[place]
    logits = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([k for k in range(len(row)) if k != y])
    others = logits[:, kept]
    m = others.detach().amax(1)
    above = others - m[:, None]
    sums = RowSums(
        label_scores=logits[:, y],
        maximum=m,
        total=above.exp().sum(1),
        tilted=(above.exp() * above).sum(1),
        squares=above.exp().square().sum(1),
        centered=above.sum(1),
        plain=others.sum(1),
        highest=above.amax(1),
        ties=(above == 0).sum(1).double(),
    )
    value = getattr(SumStatistics(sums, len(row)), name)
    dense = getattr(DenseTokenStatistics(logits, torch.tensor([y])), name)
    found, wanted = (torch.autograd.grad(one.sum(), logits)[0] for one in (value, dense))
    assert_close(found, wanted, rtol=1e-11, atol=1e-13)


def test_the_value_does_not_depend_on_the_maximum() -> None:
    """It is a constant to autograd for that reason."""
    row, y = ROWS[0]
    sums = _sums([row], [y])
    moved = 0.75
    shrink, m = math.exp(-moved), sums.maximum + moved
    assert sums.tilted is not None
    assert sums.squares is not None
    assert sums.centered is not None
    other = RowSums(
        label_scores=sums.label_scores,
        maximum=m,
        total=sums.total * shrink,
        tilted=(sums.tilted - moved * sums.total) * shrink,
        squares=sums.squares * shrink**2,
        centered=sums.centered - moved * 4,
        plain=sums.plain,
    )
    names = tuple(name for name in SUMS_READ if name not in ("max_logps", "top_20_entropy"))
    wanted = SumStatistics(sums, 5).get(names)
    for name, value in SumStatistics(other, 5).get(names).items():
        assert_close(value, wanted[name], rtol=1e-13, atol=1e-15, msg=name)


@pytest.mark.parametrize("gap", [20.0, 30.0, 60.0])
def test_no_digit_is_lost_near_0_and_1_in_float32(gap: float) -> None:
    one = torch.ones(2)
    sums = RowSums(label_scores=torch.tensor([gap, -gap]), maximum=0 * one, total=22 * one)
    found = SumStatistics(sums, 23)
    row = [gap] + [0.0] * 22, [-gap] + [0.0] * 22
    for place in (0, 1):
        true = oracle.log_probs(row[place])[0], oracle.complement_logp(row[place], 0)
        assert found.complement_logps[place].item() == pytest.approx(true[1], rel=2e-7)
        small = -math.log1p(22 * math.exp(-gap)) + 0.0
        assert found.token_logps[place].item() == pytest.approx(small if place == 0 else true[0], rel=2e-6)


def test_a_row_without_another_possible_class() -> None:
    nothing = torch.zeros(1, dtype=torch.float64)
    own = torch.tensor([3.5], dtype=torch.float64, requires_grad=True)
    sums = RowSums(
        label_scores=own,
        maximum=nothing - torch.inf,
        total=nothing,
        tilted=nothing,
        squares=nothing,
        highest=nothing,
        ties=nothing,
        top=torch.empty(1, 0, dtype=torch.float64),
    )
    expected = {
        "token_logps": (0.0, 0.0),
        "complement_logps": (-math.inf, 0.0),
        "log_normalizer": (3.5, 1.0),
        "entropy": (0.0, 0.0),
        "log_sum_sq_probs": (0.0, 0.0),
        "max_logps": (0.0, 0.0),
        "top_20_entropy": (0.0, None),
    }
    for name, value in SumStatistics(sums, 1).get(tuple(expected)).items():
        wanted, slope = expected[name]
        assert value.item() == wanted, name
        if slope is not None:
            found = torch.autograd.grad(value.sum(), own, retain_graph=True, allow_unused=True)[0]
            assert found is None or found.item() == slope, name


def test_a_contrastive_row_leaves_its_own_place_out() -> None:
    """log_total + maximum is the log-sum-exp over the others, whatever stands at the own place."""
    rows, labels = [[0.4, 9.0, -1.0], [0.4, 9.0, -1.0]], [1, 0]
    sums = _sums(rows, labels)
    others = sums.maximum + sums.total.log()
    for value, row, y in zip(others.tolist(), rows, labels, strict=True):
        assert value == pytest.approx(oracle.log_sum_exp([z for k, z in enumerate(row) if k != y]), rel=1e-13)


def test_only_what_a_statistic_reads_is_asked_for() -> None:
    assert sums_read(["token_logps", "complement_logps", "log_normalizer"]) == frozenset()
    assert sums_read(["entropy", "mean_logits", "mean_class_logps"]) == {"tilted", "plain", "centered"}
    for name, reads in SUMS_READ.items():
        full = _sums([ROWS[0][0]], [1]).present()
        wanted = {"label_scores", "maximum", "total", *reads} | ({"ties"} if "highest" in reads else set())
        assert getattr(SumStatistics(RowSums(**{k: v for k, v in full.items() if k in wanted}), 5), name).shape == (1,)


def test_rows_of_the_sums() -> None:
    sums = _sums([ROWS[0][0], ROWS[1][0]], [2, 1])
    second = sums.rows(torch.tensor([1]))
    assert list(second.present()) == list(sums.present())
    for name, value in second.present().items():
        assert torch.equal(value, sums.present()[name][1:])
    assert torch.equal(sums.rows(slice(0, 1)).total, sums.total[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_sums(dtype: torch.dtype) -> None:
    full: dict[str, Tensor] = {name: value.to(dtype) for name, value in _sums([ROWS[0][0]], [1]).present().items()}
    for value in SumStatistics(RowSums(**full), 5).get(tuple(SUMS_READ)).values():
        assert value.dtype == dtype
