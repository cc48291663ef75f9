"""Paired statistics over blocks: interval, tests, Holm's correction and noise floor.

A block is a seed that fixes everything but the loss, so two losses are compared by their difference within each block.
The paired t decides; the sign-flip test and the bootstrap stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from lossmith.errors import EvidenceError

Values = Sequence[float | int] | np.ndarray
"""One number per block, in the same order of blocks for every loss."""

_SIGN_FLIP_RESAMPLES = 9_999  # scipy enumerates while 2**n is at most this: exact up to 13 blocks


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """A candidate against a baseline on the same blocks."""

    difference: float
    """Mean over blocks of candidate minus baseline, in the metric's own unit."""
    low: float
    """Lower end of the t interval; nan with one block."""
    high: float
    """Upper end of the t interval; nan with one block."""
    p_value: float
    """Two-sided p of the paired t; nan with one block, the sign-flip p where the differences have no spread."""
    wins: int
    """Blocks where the candidate is better."""
    losses: int
    """Blocks where the candidate is worse."""
    ties: int
    """Blocks where both are equal."""
    blocks: int
    """Pairs compared."""
    sign_flip_p: float
    """Two-sided p of the sign-flip test; never decides a verdict."""
    sign_flip_smallest_p: float
    """The smallest p which that test can reach with so many blocks."""


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """One loss against itself on other blocks: what a difference looks like when there is none."""

    blocks: int
    """Finished blocks of the loss."""
    sd: float
    """Standard deviation over blocks (n - 1); nan with one block."""
    mean_difference: float
    """Mean absolute difference between two different blocks; nan with one block."""
    max_difference: float
    """Largest absolute difference between two blocks; nan with one block."""
    half_width: float
    """Half-width of the 95% interval for the difference of two means over `blocks` different blocks each, unpaired."""


def paired_t(
    baseline: Values, candidate: Values, *, confidence: float = 0.95, higher_is_better: bool = True
) -> PairedComparison:
    """Compare a candidate with a baseline, block by block, by the paired t.

    Two cases have no t. If all differences are zero the interval is [0, 0] and p is 1. If all are the same other number
    the interval is [d, d] and p is that of the sign-flip test: a metric that counts examples can repeat a difference
    by chance, so an infinite t proves nothing.

    Args:
        baseline: Metric of the baseline, one value per block.
        candidate: Metric of the candidate, aligned with `baseline`.
        confidence: Level of the interval, between 0 and 1.
        higher_is_better: Which differences are wins.

    Raises:
        EvidenceError: If the lengths differ, there is no block, or a value is not finite.

    Example:
        >>> result = paired_t([0.50, 0.52, 0.51], [0.55, 0.56, 0.57])
        >>> f"{result.difference:.3f} [{result.low:.3f}, {result.high:.3f}], p = {result.p_value:.3f}"
        '0.050 [0.025, 0.075], p = 0.013'
    """
    if not 0 < confidence < 1:
        raise EvidenceError(f"`confidence` must be between 0 and 1, got {confidence}.")
    before, after = _checked("baseline", baseline), _checked("candidate", candidate)
    if before.size != after.size:
        raise EvidenceError(f"Lengths must be equal, got `baseline` {before.size}, `candidate` {after.size}.")
    differences = after - before
    flip_p = sign_flip_test(differences)
    low, high, p_value = _t_interval(before, after, confidence, flip_p)
    gains = differences if higher_is_better else -differences
    return PairedComparison(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        ties=int((gains == 0).sum()),
        blocks=differences.size,
        sign_flip_p=flip_p,
        sign_flip_smallest_p=smallest_sign_flip_p(differences.size),
    )


def sign_flip_test(differences: Values, *, seed: int = 0) -> float:
    """Two-sided p of the mean difference when every block's sign could as well be the other one.

    Exact up to 13 blocks; from 14 on 9,999 draws seeded by `seed`.

    Example:
        >>> sign_flip_test([0.02, 0.05, 0.01, 0.03, 0.04])
        0.0625
    """
    values = _checked("differences", differences)
    if values.size == 1:  # scipy wants two observations; either sign is as likely
        return 1.0
    result = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_SIGN_FLIP_RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return max(float(result.pvalue), smallest_sign_flip_p(values.size))


def smallest_sign_flip_p(blocks: int) -> float:
    """The smallest two-sided p that `sign_flip_test` can return: 2 / 2**n, which is 0.0625 at five blocks."""
    return max(2.0 / 2**blocks, 2.0 / (_SIGN_FLIP_RESAMPLES + 1))


def holm(p_values: Values) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    The k-th smallest of m is multiplied by m - k + 1, made monotone, and capped at 1. A nan (a loss without a test)
    stays nan and does not count as a test.

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")])
        [0.03, 0.06, 0.06, nan]
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise EvidenceError(f"`p_values` must be a list of numbers between 0 and 1, got {values.tolist()}.")
    tested = np.flatnonzero(~np.isnan(values))
    ascending = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(ascending.size, 0, -1)
    adjusted = np.full(values.size, math.nan)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(factors * values[ascending]), 1.0)
    return adjusted.tolist()


def noise_floor(baseline_values: Values) -> NoiseFloor:
    r"""How far the baseline is from itself on other blocks.

    The half-width is $t_{0.975, n-1} \, s \sqrt{2/n}$: the mean of n further blocks of the
    same loss lies within it of this mean in 95% of repetitions.

    Example:
        >>> floor = noise_floor([0.50, 0.54, 0.52])
        >>> f"{floor.sd:.3f} {floor.mean_difference:.4f} {floor.max_difference:.2f} {floor.half_width:.4f}"
        '0.020 0.0267 0.04 0.0703'
    """
    values = _checked("baseline_values", baseline_values)
    n = values.size
    if n == 1:
        return NoiseFloor(blocks=1, sd=math.nan, mean_difference=math.nan, max_difference=math.nan, half_width=math.nan)
    sd = float(values.std(ddof=1))
    distances = [abs(float(a - b)) for a, b in combinations(values, 2)]
    return NoiseFloor(
        blocks=n,
        sd=sd,
        mean_difference=sum(distances) / len(distances),
        max_difference=max(distances),
        half_width=float(stats.t.ppf(0.975, n - 1)) * sd * math.sqrt(2 / n),
    )


def _t_interval(before: np.ndarray, after: np.ndarray, confidence: float, flip_p: float) -> tuple[float, float, float]:
    """Low, high and p of the paired t, with the cases that have no t."""
    differences = after - before
    if differences.size == 1:
        return math.nan, math.nan, math.nan
    # 0.6 - 0.5 and 0.7 - 0.6 differ in the last bits only; scipy would warn and return a t of 1e15.
    rounding = 1e-12 * max(float(np.abs(before).max()), float(np.abs(after).max()))
    if np.ptp(differences) <= rounding:
        constant = float(differences.mean())
        return (0.0, 0.0, 1.0) if abs(constant) <= rounding else (constant, constant, flip_p)
    result = stats.ttest_rel(after, before)
    interval = result.confidence_interval(confidence)
    return float(interval.low), float(interval.high), float(result.pvalue)


def _checked(name: str, values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise EvidenceError(f"`{name}` must hold one finite number per block, got {array.tolist()}.")
    return array
