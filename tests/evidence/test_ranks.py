"""Ranks over data sets against published numbers, scalar oracles and scipy."""

import itertools
import math
import statistics

import pytest
from scipy import stats
from test_paired_statistics import t_quantile

from lossmith.errors import EvidenceError
from lossmith.evidence import block_interval, critical_difference, friedman, nemenyi, signed_rank_test
from lossmith.evidence.ranks import rank_error, ranks, smallest_signed_rank_p

# Demsar 2006, JMLR 7, table 6: AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on fourteen UCI data sets. On the thirteenth
# the paper prints .975 for both of the last and ranks them 2 and 3; a further digit stands for what it rounded away.
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975],
    [0.957, 0.978, 0.946, 0.970],
]
TABLE = [ranks(row) for row in DEMSAR]
AVERAGE = [statistics.fmean(column) for column in zip(*TABLE, strict=True)]


def test_average_ranks_are_those_of_the_paper():
    assert pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4) == AVERAGE


def test_friedman_is_the_paper_up_to_its_missing_correction_for_ties():
    # The paper's chi-square is 9.28 and F 3.69, without the correction: one data set ties four losses (4**3 - 4 = 60),
    # three tie two (6 each), so the statistic is divided by 1 - 78 / (14 * (4**3 - 4)).
    result = friedman(TABLE)
    uncorrected = result.chi_square * (1 - 78 / (14 * 60))
    assert uncorrected == pytest.approx(9.28, abs=5e-3)
    assert 13 * uncorrected / (14 * 3 - uncorrected) == pytest.approx(3.69, abs=5e-3)
    assert result.chi_square == pytest.approx(stats.friedmanchisquare(*zip(*DEMSAR, strict=True)).statistic)
    assert result.f == pytest.approx(13 * result.chi_square / (42 - result.chi_square))
    assert result.degrees == (3, 39)
    assert result.p_value == pytest.approx(stats.f.sf(result.f, 3, 39))
    assert result.agreement == pytest.approx(result.chi_square / 42)


def test_friedman_without_ties_is_the_formula():
    table = [[1, 2, 3, 4], [2, 1, 4, 3], [1, 3, 2, 4], [4, 1, 2, 3], [1, 2, 4, 3]]
    means = [sum(row[j] for row in table) / 5 for j in range(4)]
    chi_square = 12 * 5 / (4 * 5) * (sum(mean**2 for mean in means) - 4 * 5**2 / 4)
    result = friedman(table)
    assert result.chi_square == pytest.approx(chi_square)
    assert result.f == pytest.approx(4 * chi_square / (5 * 3 - chi_square))
    assert result.degrees == (3, 12)


def test_f_of_friedman_is_the_f_of_an_analysis_of_variance_on_ranks():
    # Iman and Davenport 1980: two-way analysis of variance on ranks, where rows have no variance.
    n, k = len(TABLE), 4
    between = n * sum((mean - 2.5) ** 2 for mean in AVERAGE)
    within = sum((rank - 2.5) ** 2 for row in TABLE for rank in row) - between
    assert friedman(TABLE).f == pytest.approx((between / (k - 1)) / (within / ((k - 1) * (n - 1))))


def test_full_agreement_has_the_exact_p_of_its_orders():
    result = friedman([[1, 2, 3]] * 4)
    assert (result.f, result.agreement) == (math.inf, pytest.approx(1.0))
    assert result.p_value == pytest.approx(1 / 6**3)
    assert friedman([[1.5, 1.5, 3]] * 3).p_value == pytest.approx(1 / 3**2)


def test_losses_that_tie_everywhere_show_nothing():
    assert (friedman([[2, 2, 2]] * 3).f, friedman([[2, 2, 2]] * 3).p_value) == (0.0, 1.0)


@pytest.mark.parametrize("table", [[[1, 2], [2, 1], [1, 2]], [[1, 2, 3], [3, 2, 1]]])
def test_friedman_refuses_too_few_losses_or_data_sets(table):
    with pytest.raises(EvidenceError, match="at least 3 losses on 3 data sets"):
        friedman(table)


@pytest.mark.parametrize(
    ("losses", "five", "ten"),
    [
        (2, 1.960, 1.645), (3, 2.343, 2.052), (4, 2.569, 2.291), (5, 2.728, 2.459), (6, 2.850, 2.589),
        (7, 2.949, 2.693), (8, 3.031, 2.780), (9, 3.102, 2.855), (10, 3.164, 2.920),
    ],
)  # fmt: skip
def test_critical_values_are_those_of_the_papers_table(losses, five, ten):
    # Demsar's table 5(a) gives q, the difference over the standard error of two ranks; some last digits differ by one.
    width = math.sqrt(losses * (losses + 1) / 6 / 14)
    assert critical_difference(losses, 14) / width == pytest.approx(five, abs=1.5e-3)
    assert critical_difference(losses, 14, significance=0.1) / width == pytest.approx(ten, abs=1.5e-3)


def test_nemenyi_decides_as_the_paper_does():
    names = ("c45", "m", "cf", "m_cf")
    averages = dict(zip(names, AVERAGE, strict=True))
    five, ten = nemenyi(averages, 14), nemenyi(averages, 14, significance=0.1)
    assert (five.critical_difference, ten.critical_difference) == pytest.approx((1.25, 1.12), abs=5e-3)
    # Section 3.2.2: nothing can be told apart at .05, and at .10 C4.5 is worse than C4.5+m and C4.5+m+cf.
    assert five.groups == (("m_cf", "m", "cf", "c45"),)
    assert ten.groups == (("m_cf", "m", "cf"), ("cf", "c45"))
    assert {pair for pair, p in ten.p_values.items() if p < 0.1} == {("c45", "m"), ("c45", "m_cf")}
    assert five.p_values == ten.p_values


def test_p_of_a_pair_at_the_critical_difference_is_the_level():
    width = critical_difference(3, 7)
    result = nemenyi({"a": 1.0, "b": 1.0 + width / 2, "c": 1.0 + width}, 7)
    assert result.p_values["a", "c"] == pytest.approx(0.05, abs=1e-6)
    assert result.p_values["a", "b"] > 0.05


def test_groups_are_the_largest_runs_within_the_width():
    width = critical_difference(4, 10)
    result = nemenyi({"d": 1 + 2.5 * width, "a": 1.0, "c": 1 + 1.4 * width, "b": 1 + 0.6 * width}, 10)
    assert result.groups == (("a", "b"), ("b", "c"))


def test_z_of_average_ranks_is_the_papers():
    # Section 3.2.2, against C4.5: standard error .488, z 2.416, 2.342 and .512.
    error = rank_error(4, 14)
    assert error == pytest.approx(0.488, abs=5e-4)
    assert [(AVERAGE[0] - AVERAGE[j]) / error for j in (3, 1, 2)] == pytest.approx([2.416, 2.342, 0.512], abs=3e-3)


def enumerated(differences):
    """Two-sided p of the signed ranks by all signs, with ranks counted by hand."""
    sizes = [abs(d) for d in differences if d]
    places = [sum(s < size for s in sizes) + (sum(s == size for s in sizes) + 1) / 2 for size in sizes]
    seen = sum(place for place, d in zip(places, [d for d in differences if d], strict=True) if d > 0)
    middle = sum(places) / 2
    every = itertools.product((0, 1), repeat=len(places))
    sums = [sum(p for p, up in zip(places, signs, strict=True) if up) for signs in every]
    return sum(abs(s - middle) >= abs(seen - middle) - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [0.25, 0.5, -0.125, 0.75, 1.0, 0.0625, 2.0],
        [0.25, 0.25, -0.25, 0.75, 0.75, -0.5, 0.0],
        [-0.25, -0.5, -0.125, -0.75],
        [0.5, -0.5],
    ],
)
def test_signed_ranks_are_all_signs_counted(differences):
    assert signed_rank_test(differences).p_value == pytest.approx(enumerated(differences))
    negated = signed_rank_test([-d for d in differences])
    assert negated.p_value == signed_rank_test(differences).p_value
    assert negated.negative == signed_rank_test(differences).positive


def test_signed_ranks_are_scipys_where_nothing_ties():
    differences = [0.021, -0.004, 0.033, 0.012, 0.055, -0.017, 0.029, 0.061, 0.002, 0.047, -0.036]
    expected = stats.wilcoxon(differences, method="exact")
    result = signed_rank_test(differences)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert min(result.positive, result.negative) == expected.statistic


def test_signed_ranks_of_the_papers_example():
    # Demsar's table 2, C4.5 against C4.5+m: two data sets tie, R- is 12 with their ranks split and 3 + 7 without.
    result = signed_rank_test([b - a for a, b, *_ in DEMSAR])
    assert result.positive + result.negative == 12 * 13 / 2
    assert result.p_value < 0.05


def test_the_smallest_p_is_reached_by_one_sided_differences():
    for count in (2, 5, 7):
        found = signed_rank_test([0.01 * (i + 1) for i in range(count)]).p_value
        assert found == pytest.approx(smallest_signed_rank_p(count)) == pytest.approx(2 / 2**count)
    assert signed_rank_test([0.0, 0.0]).p_value == 1.0


def test_equal_means_in_another_order_of_summation_tie():
    assert ranks([0.1 + 0.2, 0.3, 0.5]) == [2.5, 2.5, 1.0]
    assert ranks([0.2, 0.4, 0.1], higher_is_better=False) == [2.0, 3.0, 1.0]


def test_block_interval_is_welch_and_satterthwaite_by_hand():
    samples = [[0.01, 0.03, 0.02, 0.05], [0.10, 0.02, 0.06], [-0.01, 0.00]]
    means = [statistics.fmean(s) for s in samples]
    parts = [statistics.variance(s) / len(s) for s in samples]
    degrees = sum(parts) ** 2 / sum(v**2 / (len(s) - 1) for v, s in zip(parts, samples, strict=True))
    result = block_interval(samples)
    assert result.difference == pytest.approx(statistics.fmean(means))
    assert result.degrees == pytest.approx(degrees)
    low, high = (t_quantile(0.025, math.floor(degrees) + i) for i in (1, 0))
    half = (result.high - result.low) / 2
    error = math.sqrt(sum(parts)) / 3
    assert low < half / error < high  # between the neighbouring whole degrees
    assert result.high - result.difference == pytest.approx(half)


def test_block_interval_with_equal_blocks_and_one_variance_is_the_pooled_t():
    # Two data sets with the same spread and n blocks each: 2 (n - 1) degrees, whole, so the oracle's quantile is exact.
    samples = [[0.00, 0.02, 0.04], [0.10, 0.12, 0.14]]
    result = block_interval(samples)
    assert result.degrees == pytest.approx(4)
    assert result.high - result.difference == pytest.approx(
        t_quantile(0.025, 4) * math.sqrt(2 * 0.0004 / 3) / 2, rel=1e-5
    )


def test_block_interval_without_spread_or_with_one_block():
    constant = block_interval([[0.02, 0.02], [0.04, 0.04]])
    assert (constant.low, constant.high) == pytest.approx((0.03, 0.03))
    one = block_interval([[0.02], [0.04, 0.05]])
    assert math.isnan(one.low)
    assert one.difference == pytest.approx(0.0325)
    with pytest.raises(EvidenceError, match="at least one finite number per block"):
        block_interval([[0.1], []])
