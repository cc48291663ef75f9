"""Two losses compared test example by test example: McNemar's test per seed, and one test over all seeds.

Every seed is tested on the same examples, so pooling the seeds' discordant pairs would count each example several times
over. The test over all seeds adds up an example's differences first and flips the sign of the sum: with one seed and
0/1 scores that is McNemar's exact test. It speaks of the models of these seeds and generalises over examples only, so
it stands beside the paired t over seeds, which decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lossmith.errors import EvidenceError

_RESAMPLES = 9_999
_CELLS = 2_000_000  # signs held at a time by scipy: 16 MB of float64


@dataclass(frozen=True, kw_only=True)
class SeedDiscordance:
    """Two models of one seed on the same test examples."""

    seed: int
    """The block."""
    gained: int
    """Examples on which the candidate scores better."""
    lost: int
    """Examples on which it scores worse."""
    p_value: float | None
    """Two-sided p of McNemar's exact test; None where scores are not all 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class ExampleComparison:
    """A candidate against a baseline on the same test examples, over seeds."""

    gained: int
    """Examples on which the candidate scores better, its seeds added up."""
    lost: int
    """Examples on which it scores worse, its seeds added up."""
    per_seed: tuple[SeedDiscordance, ...]
    """The same seed by seed, in the order given."""
    p_value: float
    """Two-sided p of the sign-flip test over examples; exact for 0/1 scores, at least 2e-4 for others."""
    examples: int
    """Test examples."""
    blocks: int
    """Seeds."""


def compare_examples(
    baseline_scores: np.ndarray,
    candidate_scores: np.ndarray,
    *,
    seeds: Sequence[int],
    higher_is_better: bool = True,
    seed: int = 0,
) -> ExampleComparison:
    """Compare two losses by example, each example's seeds taken together.

    Args:
        baseline_scores: Score of the baseline, `blocks examples`; 0 or 1 for right and wrong answers.
        candidate_scores: The same for the candidate, aligned in both axes.
        seeds: Seed of each block.
        higher_is_better: Which differences are gains.
        seed: Seed of the resampling, which scores other than 0 and 1 need.

    Raises:
        EvidenceError: If the shapes differ, are not `blocks examples`, or are empty, `seeds` does not name each block,
            or a score is not finite.

    Example:
        >>> before, after = np.array([[0, 0, 0, 0, 1, 1]]), np.array([[1, 1, 1, 1, 1, 0]])
        >>> found = compare_examples(before, after, seeds=[7])
        >>> found.gained, found.lost, round(found.p_value, 3)
        (4, 1, 0.375)
    """
    before, after = _checked(baseline_scores, candidate_scores, seeds)
    differences = (after - before) * (1 if higher_is_better else -1)
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    summed = differences.sum(axis=0)
    summed[np.abs(summed) < 1e-12] = 0  # 0.1 + 0.2 - 0.3: fractions that cancel leave their last bits
    return ExampleComparison(
        gained=int((summed > 0).sum()),
        lost=int((summed < 0).sum()),
        per_seed=tuple(_discordance(*pair, binary=binary) for pair in zip(seeds, differences, strict=True)),
        p_value=_exact_sign_flip(summed) if binary else _resampled_sign_flip(summed, seed),
        examples=differences.shape[1],
        blocks=differences.shape[0],
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: the discordant examples fall to either side like a fair coin.

    Example:
        >>> mcnemar(4, 1), mcnemar(0, 0)
        (0.375, 1.0)
    """
    if gained < 0 or lost < 0:
        raise EvidenceError(f"`gained` and `lost` must be counts >= 0, got {gained} and {lost}.")
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _discordance(seed: int, differences: np.ndarray, *, binary: bool) -> SeedDiscordance:
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return SeedDiscordance(seed=seed, gained=gained, lost=lost, p_value=mcnemar(gained, lost) if binary else None)


def _exact_sign_flip(summed: np.ndarray) -> float:
    """Two-sided p of the sum of whole numbers whose signs are fair coins.

    The numbers of one magnitude m keep their plus a binomial number of times, so the weight that keeps its plus is a
    sum of such binomials, one per magnitude, and the distribution is exact without listing sign patterns.
    """
    weights = np.abs(summed).astype(int)
    probabilities = np.ones(1)
    for magnitude in np.unique(weights[weights > 0]):
        count = int((weights == magnitude).sum())
        kept = np.zeros(count * magnitude + 1)
        kept[::magnitude] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        probabilities = np.convolve(probabilities, kept)
    sums = 2 * np.arange(probabilities.size) - int(weights.sum())
    return min(float(probabilities[np.abs(sums) >= abs(int(summed.sum()))].sum()), 1.0)


def _resampled_sign_flip(summed: np.ndarray, seed: int) -> float:
    """The same for any numbers: exact while scipy can list the sign patterns, else by seeded draws."""
    moved = summed[summed != 0]  # a zero has no sign to flip
    if moved.size < 2:  # scipy wants two observations; either sign is as likely
        return 1.0
    result = stats.permutation_test(
        (moved,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _CELLS // moved.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _checked(
    baseline_scores: np.ndarray, candidate_scores: np.ndarray, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(baseline_scores, dtype=float), np.asarray(candidate_scores, dtype=float)
    if before.shape != after.shape or before.ndim != 2 or not before.size:
        raise EvidenceError(
            "Shapes must be equal and hold blocks x examples, got "
            f"`baseline_scores` {before.shape}, `candidate_scores` {after.shape}."
        )
    if len(seeds) != before.shape[0]:
        raise EvidenceError(f"`seeds` must name each of the {before.shape[0]} blocks, got {list(seeds)}.")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise EvidenceError("`baseline_scores` and `candidate_scores` must hold finite numbers.")
    return before, after
