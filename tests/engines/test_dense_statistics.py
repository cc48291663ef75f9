"""Every statistic of the dense engine against scalar loops, at the ends of its range too."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import scalar_oracles as oracle
from lossmith.engines import DenseRegionStatistics, DenseTokenStatistics
from lossmith.objectives import VOCABULARY

TOKEN = {
    "token_logps": lambda row, y: oracle.log_probs(row)[y],
    "entropy": lambda row, y: oracle.entropy(row),
    "top_20_entropy": lambda row, y: oracle.entropy(sorted(row)[-20:]),
    "mean_class_logps": lambda row, y: math.fsum(oracle.log_probs(row)) / len(row),
    "log_normalizer": lambda row, y: oracle.log_sum_exp(row),
    "mean_logits": lambda row, y: math.fsum(row) / len(row),
    "log_sum_sq_probs": lambda row, y: math.log(math.fsum(p * p for p in oracle.probs(row))),
    "max_logps": lambda row, y: max(oracle.log_probs(row)),
    "complement_logps": lambda row, y: oracle.complement_logp(row, y),
}
CONSTANT = "top_20_entropy"
"""Has no gradient."""
SHIFT_FREE = [name for name in TOKEN if name not in ("log_normalizer", "mean_logits")]


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logits(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_engine_serves_the_whole_vocabulary() -> None:
    assert set(TOKEN) == set(VOCABULARY["token"])
    for name in VOCABULARY["region"]:
        assert hasattr(DenseRegionStatistics, name) or name == "class_ids"


@pytest.mark.parametrize("name", TOKEN)
def test_token_statistic_and_its_gradient(name: str) -> None:
    logits, labels = _logits(5, 6).requires_grad_(), torch.tensor([0, 5, 2, 2, 4])
    values = DenseTokenStatistics(logits, labels).get((name,))[name]
    expected = [TOKEN[name](row, y) for row, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert_close(values, _double(expected), rtol=1e-13, atol=1e-15)
    if name == CONSTANT:
        assert not values.requires_grad
        return
    # A random upstream gradient: a uniform one hides scaling mistakes.
    upstream = [0.3, -1.7, 0.9, 2.2, -0.4]

    def total(rows: list[list[float]]) -> float:
        return math.fsum(u * TOKEN[name](row, y) for u, row, y in zip(upstream, rows, labels.tolist(), strict=True))

    slopes = torch.autograd.grad(values, logits, grad_outputs=_double(upstream))[0]
    assert_close(slopes, _double(oracle.finite_difference(total, logits.tolist())), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", TOKEN)
def test_ties(name: str) -> None:
    rows = [[1.5, 1.5, -2.0, 1.5], [0.25, 0.25, 0.25, 0.25]]
    values = DenseTokenStatistics(_double(rows), torch.tensor([1, 3])).get((name,))[name]
    assert_close(values, _double([TOKEN[name](row, y) for row, y in zip(rows, (1, 3), strict=True)]))


def test_top_20_entropy_leaves_the_rest_of_a_long_row_out() -> None:
    logits = _logits(3, 33)
    values = DenseTokenStatistics(logits, torch.tensor([0, 1, 2])).top_20_entropy
    assert_close(values, _double([oracle.entropy(sorted(row)[-20:]) for row in logits.tolist()]), rtol=1e-13, atol=0)


def test_max_logps_shares_its_gradient_between_ties() -> None:
    logits = _double([[2.0, 2.0, 0.0]]).requires_grad_()
    slopes = torch.autograd.grad(DenseTokenStatistics(logits, torch.tensor([2])).max_logps.sum(), logits)[0]
    probs = oracle.probs([2.0, 2.0, 0.0])
    assert_close(slopes, _double([[0.5 - probs[0], 0.5 - probs[1], -probs[2]]]))


def test_one_class() -> None:
    logits = _double([[3.5], [-2.0]]).requires_grad_()
    found = DenseTokenStatistics(logits, torch.tensor([0, 0])).get(VOCABULARY["token"])
    expected = {name: [0.0, 0.0] for name in TOKEN} | {"log_normalizer": [3.5, -2.0], "mean_logits": [3.5, -2.0]}
    expected["complement_logps"] = [-math.inf, -math.inf]
    for name, values in found.items():
        assert_close(values, _double(expected[name]), msg=name)
        if name == CONSTANT:
            continue
        slopes = torch.autograd.grad(values.sum(), logits, retain_graph=True)[0]
        assert_close(slopes, torch.full_like(logits, float(name in ("log_normalizer", "mean_logits"))), msg=name)


@pytest.mark.parametrize("name", [name for name in TOKEN if name not in ("mean_logits", "mean_class_logps")])
def test_masked_vocabulary(name: str) -> None:
    """Logits of -inf are classes that cannot be: statistics are those of the row without them."""
    full = [[0.7, -math.inf, 1.9, -math.inf, -0.3], [-math.inf, 2.0, 0.5, 0.1, -math.inf]]
    kept = [[0.7, 1.9, -0.3], [2.0, 0.5, 0.1]]
    logits, cut = _double(full).requires_grad_(), _double(kept).requires_grad_()
    values = DenseTokenStatistics(logits, torch.tensor([2, 1])).get((name,))[name]
    wanted = DenseTokenStatistics(cut, torch.tensor([1, 0])).get((name,))[name]
    assert_close(values, wanted)
    if name == CONSTANT:
        return
    slopes = torch.autograd.grad(values.sum(), logits)[0]
    assert_close(slopes[torch.isfinite(logits)], torch.autograd.grad(wanted.sum(), cut)[0].flatten())
    assert bool((slopes[torch.isinf(logits)] == 0).all())


def test_masked_vocabulary_of_a_region() -> None:
    logits = _double([[0.7, -math.inf, 1.9], [-math.inf, 2.0, 0.5], [0.1, 0.2, -math.inf]]).requires_grad_()
    statistics = DenseRegionStatistics(logits, torch.tensor([2, 1, 0]))
    for values in (statistics.class_probs, statistics.class_mass, statistics.token_logps):
        assert bool(torch.isfinite(values).all())
        slopes = torch.autograd.grad((values * 1.3).sum(), logits, retain_graph=True)[0]
        assert bool(torch.isfinite(slopes).all())
    assert statistics.class_probs[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complement_is_exact_where_the_label_is_certain(dtype: torch.dtype) -> None:
    """At a gap of 30 in float32, p rounds to 1: log1p(-p) is -inf with a NaN gradient where -26.9 and -1 are right."""
    row = [30.0] + [0.0] * 22
    logits = torch.tensor([row], dtype=dtype, requires_grad=True)
    value = DenseTokenStatistics(logits, torch.tensor([0])).complement_logps
    assert value.item() == pytest.approx(math.log(22) - 30, rel=1e-7)
    assert value.item() == pytest.approx(oracle.complement_logp(row, 0), rel=1e-7)
    slope = torch.autograd.grad(value.sum(), logits)[0]
    assert slope[0, 0].item() == pytest.approx(-1.0, rel=1e-6)
    assert_close(slope[0, 1:], torch.full((22,), 1 / 22, dtype=dtype))


@pytest.mark.parametrize("name", SHIFT_FREE)
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_lose_no_digits(name: str, shift: float) -> None:
    rows = torch.tensor([[0.5, -1.25, 2.0, 0.25], [1.0, 1.5, -0.5, 0.0]])
    labels = torch.tensor([2, 3])
    near = DenseTokenStatistics(rows, labels).get((name,))[name]
    # These rows stay exact in float32 after the shift (multiples of 1/64 below 2^14).
    far = DenseTokenStatistics(rows + shift, labels).get((name,))[name]
    assert_close(far, near, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TOKEN)
def test_extreme_gaps_are_finite(name: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    for labels in ([0, 0, 0], [1, 2, 0]):
        values = DenseTokenStatistics(logits, torch.tensor(labels)).get((name,))[name]
        assert bool(torch.isfinite(values).all())
        if name != CONSTANT:
            assert bool(torch.isfinite(torch.autograd.grad(values.sum(), logits)[0]).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_up_and_double_stays(dtype: torch.dtype) -> None:
    logits, labels = _logits(5, 6), torch.tensor([0, 5, 2, 2, 4])
    half = logits.to(dtype)
    for engine, served in ((DenseTokenStatistics, VOCABULARY["token"]), (DenseRegionStatistics, VOCABULARY["region"])):
        for name in served:
            value, raised = engine(half, labels).get((name,))[name], engine(half.float(), labels).get((name,))[name]
            assert torch.equal(value, raised), name
            assert name == "class_ids" or value.dtype == torch.float32
            assert name == "class_ids" or engine(logits, labels).get((name,))[name].dtype == torch.float64


def test_region_statistics() -> None:
    logits, labels = _logits(6, 7).requires_grad_(), torch.tensor([5, 1, 5, 6, 1, 5])
    statistics = DenseRegionStatistics(logits, labels)
    assert statistics.present.tolist() == [1, 5, 6]
    assert statistics.class_ids.tolist() == [1, 0, 1, 2, 0, 1]
    rows = [oracle.probs(row) for row in logits.tolist()]
    assert_close(statistics.class_probs, _double([[row[c] for c in (1, 5, 6)] for row in rows]), rtol=1e-13, atol=0)
    assert_close(statistics.class_mass, _double([math.fsum(row[c] for row in rows) for c in (1, 5, 6)]))
    assert_close(
        statistics.token_logps, _double([math.log(row[y]) for row, y in zip(rows, labels.tolist(), strict=True)])
    )
    upstream = _logits(6, 3)
    weights = upstream.tolist()

    def total(moved: list[list[float]]) -> float:
        return math.fsum(
            u * oracle.probs(row)[c]
            for row, us in zip(moved, weights, strict=True)
            for u, c in zip(us, (1, 5, 6), strict=True)
        )

    slopes = torch.autograd.grad(statistics.class_probs, logits, grad_outputs=upstream)[0]
    assert_close(slopes, _double(oracle.finite_difference(total, logits.tolist())), rtol=1e-7, atol=1e-9)


def test_only_what_is_asked_for_is_computed() -> None:
    statistics = DenseTokenStatistics(_logits(3, 4), torch.tensor([0, 1, 2]))
    assert list(statistics.get(("entropy", "token_logps"))) == ["entropy", "token_logps"]
    assert "complement_logps" not in vars(statistics)
    assert "log_normalizer" not in vars(statistics)
