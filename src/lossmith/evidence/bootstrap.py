"""The bootstrap over blocks and test examples, which stands beside the paired t and never decides."""

from dataclasses import dataclass

import numpy as np

from lossmith.errors import EvidenceError

BLOCKS_FOR_AN_INTERVAL = 10
"""From this many blocks on the bootstrap over blocks is called an interval."""

_BOOTSTRAP_CELLS = 4_000_000  # weights held at a time: 32 MB of float64


@dataclass(frozen=True, kw_only=True)
class BootstrapRange:
    """Where the mean difference falls when blocks and test examples are drawn again."""

    low: float
    """2.5% quantile of the resampled mean differences."""
    high: float
    """97.5% quantile of the resampled mean differences."""
    blocks: int
    """Blocks that were resampled."""

    @property
    def label(self) -> str:
        """What the range may be called: resampling few blocks gives ranges that are too narrow."""
        if self.blocks >= BLOCKS_FOR_AN_INTERVAL:
            return "95% bootstrap interval"
        noun = "block" if self.blocks == 1 else "blocks"
        return f"bootstrap range ({self.blocks} {noun}: not a 95% interval)"


def bootstrap_blocks_and_examples(
    baseline_scores: np.ndarray, candidate_scores: np.ndarray, *, seed: int, resamples: int = 2000
) -> BootstrapRange:
    """Range of the mean difference when both the blocks and the test examples are drawn again.

    All blocks share one test set, so each replicate draws its examples once, for all blocks and both losses.

    Args:
        baseline_scores: Score of the baseline per block and example, `blocks examples`, 0 or 1 for accuracy.
        candidate_scores: The same for the candidate, aligned in both axes.
        seed: Seed of the resampling.
        resamples: Number of replicates.

    Raises:
        EvidenceError: If the shapes differ, are not `blocks examples`, or are empty, or a score is not finite.
    """
    if resamples < 1:
        raise EvidenceError(f"`resamples` must be at least 1, got {resamples}.")
    if baseline_scores.shape != candidate_scores.shape or baseline_scores.ndim != 2 or not baseline_scores.size:
        raise EvidenceError(
            "Shapes must be equal and hold blocks x examples, got "
            f"`baseline_scores` {baseline_scores.shape}, `candidate_scores` {candidate_scores.shape}."
        )
    differences = candidate_scores.astype(float) - baseline_scores.astype(float)
    if not np.isfinite(differences).all():
        raise EvidenceError("`baseline_scores` and `candidate_scores` must hold finite scores.")
    replicates = _resampled_means(differences, np.random.default_rng(seed), resamples)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return BootstrapRange(low=float(low), high=float(high), blocks=differences.shape[0])


def _resampled_means(differences: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Mean difference of each replicate; counts of draws are weights, so a replicate is two products."""
    blocks, examples = differences.shape
    step = max(1, _BOOTSTRAP_CELLS // examples)
    means = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        block_counts = generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=size)
        example_counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=size)
        means.append(((block_counts @ differences) * example_counts).sum(axis=1) / (blocks * examples))
    return np.concatenate(means)
