"""Statistics over data sets: ranks, Friedman's test, Nemenyi's critical difference, signed ranks, mean differences.

After Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 1-30, with one departure: a
loss is compared with the baseline by Wilcoxon's signed ranks of their differences and not by their mean ranks, since
what mean ranks say of two losses depends on which others are in the table (Benavoli, Corani and Mangili 2016, "Should
We Really Use Post-Hoc Tests Based on Mean-Ranks?", JMLR 17).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from lossmith.errors import EvidenceError
from lossmith.evidence.statistics import Values

SMALLEST_TABLE = 3
"""Data sets, and losses, below which Friedman's test and Nemenyi's difference are not computed."""

_DIGITS = 12  # means that differ behind this digit are ties: they are sums of equal numbers in another order


@dataclass(frozen=True, kw_only=True)
class FriedmanTest:
    """Whether the losses' ranks over data sets differ by more than chance."""

    chi_square: float
    """Friedman's statistic, corrected for ties."""
    chi_square_p: float
    """Its p by the chi-square distribution, which is too careful with few data sets."""
    f: float
    """The correction of Iman and Davenport, (N-1) chi2 / (N (k-1) - chi2); inf where all data sets agree."""
    degrees: tuple[int, int]
    """Degrees of freedom of `f`: k-1 and (k-1)(N-1)."""
    p_value: float
    """By the F distribution; where all data sets agree, the share of the orders that agree as much."""
    agreement: float
    """Kendall's W: 0 where data sets rank at random, 1 where all rank alike."""


@dataclass(frozen=True, kw_only=True)
class Nemenyi:
    """All pairs of losses by their average ranks."""

    significance: float
    """The level of `critical_difference`, over all pairs at once."""
    critical_difference: float
    """Average ranks that are further apart differ at that level."""
    p_values: dict[tuple[str, str], float]
    """Pair of losses, in the order given, -> p over all pairs at once."""
    groups: tuple[tuple[str, ...], ...]
    """Largest sets of losses within the critical difference, best first; sets of one are left out."""


@dataclass(frozen=True, kw_only=True)
class BlockInterval:
    """The mean difference over data sets where these data sets are all that is asked about."""

    difference: float
    """Mean over data sets of the mean over blocks."""
    low: float
    """Lower end; nan where a data set has one block."""
    high: float
    """Upper end; nan where a data set has one block."""
    degrees: float
    """Degrees of freedom after Welch and Satterthwaite; nan where a data set has one block."""


@dataclass(frozen=True, kw_only=True)
class SignedRanks:
    """Wilcoxon's test that differences lie around 0."""

    positive: float
    """Sum of the ranks of the positive differences."""
    negative: float
    """Sum of the ranks of the negative differences."""
    p_value: float
    """Two-sided and exact, also with ties."""


def ranks(values: Values, *, higher_is_better: bool = True) -> list[float]:
    """Ranks of losses on one data set: 1 is the best, ties share their mean.

    Example:
        >>> ranks([0.58, 0.64, 0.61, 0.64])
        [4.0, 1.5, 3.0, 1.5]
    """
    rounded = _rounded(values)
    return stats.rankdata(-rounded if higher_is_better else rounded).tolist()


def friedman(table: Sequence[Sequence[float]]) -> FriedmanTest:
    r"""Friedman's test on ranks, a row per data set, with the F of Iman and Davenport.

    Raises:
        EvidenceError: If there are fewer than three data sets or losses, or the rows differ in length.
    """
    rows = np.asarray(table, dtype=float)
    if rows.ndim != 2 or min(rows.shape) < SMALLEST_TABLE or not np.isfinite(rows).all():
        raise EvidenceError(
            f"`table` must be finite ranks of at least {SMALLEST_TABLE} losses on {SMALLEST_TABLE} data sets, got "
            f"{rows.shape}."
        )
    datasets, losses = rows.shape
    degrees = (losses - 1, (losses - 1) * (datasets - 1))
    most = float(datasets * (losses - 1))
    if not np.ptp(rows, axis=1).any():  # every loss ties with every other everywhere
        return FriedmanTest(chi_square=0.0, chi_square_p=1.0, f=0.0, degrees=degrees, p_value=1.0, agreement=0.0)
    found = stats.friedmanchisquare(*rows.T)
    chi_square = min(float(found.statistic), most)
    if most - chi_square < 1e-9 * most:
        f, p_value = math.inf, _share_of_orders(rows)
    else:
        f = (datasets - 1) * chi_square / (most - chi_square)
        p_value = float(stats.f.sf(f, *degrees))
    return FriedmanTest(
        chi_square=chi_square,
        chi_square_p=float(found.pvalue),
        f=f,
        degrees=degrees,
        p_value=p_value,
        agreement=chi_square / most,
    )


def critical_difference(losses: int, datasets: int, *, significance: float = 0.05) -> float:
    r"""Nemenyi's $q_\alpha \sqrt{k(k+1) / 6N}$, with $q_\alpha$ of the studentized range over $\sqrt 2$.

    Example:
        >>> f"{critical_difference(4, 14):.2f} {critical_difference(4, 14, significance=0.1):.2f}"
        '1.25 1.12'
    """
    q = float(stats.studentized_range.ppf(1 - significance, losses, math.inf)) / math.sqrt(2)
    return q * rank_error(losses, datasets)


def rank_error(losses: int, datasets: int) -> float:
    """Standard error of the difference of two average ranks where no loss is better than another."""
    return math.sqrt(losses * (losses + 1) / (6 * datasets))


def nemenyi(average_ranks: dict[str, float], datasets: int, *, significance: float = 0.05) -> Nemenyi:
    """All pairs of losses by their average ranks over so many data sets."""
    losses = len(average_ranks)
    error = rank_error(losses, datasets)
    pairs = list(combinations(average_ranks, 2))
    ranges = [math.sqrt(2) * abs(average_ranks[a] - average_ranks[b]) / error for a, b in pairs]
    p_values = [float(stats.studentized_range.sf(spread, losses, math.inf)) for spread in ranges]
    width = critical_difference(losses, datasets, significance=significance)
    return Nemenyi(
        significance=significance,
        critical_difference=width,
        p_values={pair: min(1.0, p) for pair, p in zip(pairs, p_values, strict=True)},
        groups=_groups(average_ranks, width),
    )


def signed_rank_test(differences: Values) -> SignedRanks:
    """Wilcoxon's signed ranks; differences of zero are left out, as Wilcoxon did.

    Example:
        >>> signed_rank_test([0.02, 0.05, 0.01, 0.03, 0.04]).p_value
        0.0625
        >>> signed_rank_test([0.02, -0.02, 0.0, 0.03])
        SignedRanks(positive=4.5, negative=1.5, p_value=0.75)
    """
    values = _rounded(differences)
    values = values[values != 0]
    # Twice the ranks are whole numbers, also where ties share a rank: the distribution of their sum is a convolution.
    doubled = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)
    ways = np.ones(1)
    for rank in doubled:
        ways = np.convolve(ways, np.bincount([0, rank])) / 2
    positive, negative = int(doubled[values > 0].sum()), int(doubled[values < 0].sum())
    # The distribution is symmetric, so the smaller sum has the smaller tail.
    tail = float(ways[: min(positive, negative) + 1].sum())
    return SignedRanks(positive=positive / 2, negative=negative / 2, p_value=min(1.0, 2 * tail))


def smallest_signed_rank_p(datasets: int) -> float:
    """The smallest two-sided p that `signed_rank_test` can return: 2 / 2**N, which is 0.0156 on seven data sets."""
    return 2.0 / 2**datasets


def block_interval(differences: Sequence[Values], *, confidence: float = 0.95) -> BlockInterval:
    r"""The mean over data sets with the interval of its blocks: these data sets are fixed, their blocks a sample.

    With $v_j = s_j^2 / n_j$ of data set $j$ the standard error is $\sqrt{\sum_j v_j} / N$, and the degrees of freedom
    are $(\sum_j v_j)^2 / \sum_j (v_j^2 / (n_j - 1))$.

    Args:
        differences: Per data set, the paired difference in every block.
        confidence: Level of the interval.

    Example:
        >>> found = block_interval([[0.01, 0.03], [0.05, 0.06, 0.07]])
        >>> f"{found.difference:.3f} [{found.low:.3f}, {found.high:.3f}], {found.degrees:.2f} degrees"
        '0.040 [0.010, 0.070], 1.68 degrees'
    """
    samples = [np.asarray(values, dtype=float) for values in differences]
    if not samples or any(not values.size or not np.isfinite(values).all() for values in samples):
        raise EvidenceError("`differences` must hold at least one finite number per block of every data set.")
    mean = float(np.mean([values.mean() for values in samples]))
    if any(values.size == 1 for values in samples):
        return BlockInterval(difference=mean, low=math.nan, high=math.nan, degrees=math.nan)
    # Equal differences differ in their last bits; a spread of 1e-17 is none.
    variances = np.array([values.var(ddof=1) / values.size if np.ptp(_rounded(values)) else 0.0 for values in samples])
    if not variances.any():
        return BlockInterval(difference=mean, low=mean, high=mean, degrees=math.inf)
    degrees = float(variances.sum() ** 2 / sum(v**2 / (x.size - 1) for v, x in zip(variances, samples, strict=True)))
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(variances.sum()) / len(samples)
    return BlockInterval(difference=mean, low=mean - half, high=mean + half, degrees=degrees)


def _groups(average_ranks: dict[str, float], width: float) -> tuple[tuple[str, ...], ...]:
    """Runs of the sorted losses that lie within `width` and in no longer run."""
    order = sorted(average_ranks, key=lambda loss: average_ranks[loss])
    groups: list[tuple[str, ...]] = []
    last = 0
    for start, first in enumerate(order):
        end = start + sum(average_ranks[loss] - average_ranks[first] <= width for loss in order[start:])
        if end > last and end - start > 1:
            groups.append(tuple(order[start:end]))
        last = max(last, end)
    return tuple(groups)


def _share_of_orders(rows: np.ndarray) -> float:
    """The chance that data sets which rank at random all give the first one's order."""
    ties = math.prod(math.factorial(int(count)) for count in np.unique(rows[0], return_counts=True)[1])
    return (ties / math.factorial(rows.shape[1])) ** (len(rows) - 1)


def _rounded(values: Values) -> np.ndarray:
    return np.round(np.asarray(values, dtype=float), _DIGITS)
