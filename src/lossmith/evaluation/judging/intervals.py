"""Means over judged questions with bootstrap intervals over the questions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lossmith.errors import EvidenceError

_RESAMPLES = 2000
_CELLS = 4_000_000  # weights held at a time


@dataclass(frozen=True, kw_only=True)
class Level:
    """A mean with its interval."""

    mean: float
    """The mean; nan where nothing counts."""
    low: float
    """2.5% quantile of the means over questions drawn again; nan for fewer than two questions."""
    high: float
    """97.5% quantile."""
    questions: int
    """Questions that count."""

    def shown(self, *, scale: float = 1.0, decimals: int = 2) -> str:
        """The mean and its interval.

        Example:
            >>> Level(mean=0.5, low=0.41, high=0.59, questions=80).shown(scale=100, decimals=1)
            '50.0 [41.0, 59.0]'
        """
        if math.isnan(self.mean):
            return "no verdict"
        mean, low, high = (f"{value * scale:.{decimals}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


def level(scores: Sequence[Sequence[float]], *, seed: int = 0) -> Level:
    """Mean over all scores of all questions, with a bootstrap interval over the questions.

    The scores of one question are drawn together: its turns and repeats are no independent evidence.

    Args:
        scores: For each question its scores; questions without one do not count.
        seed: Of the resampling.
    """
    kept = [own for own in scores if len(own)]
    if not kept:
        return Level(mean=math.nan, low=math.nan, high=math.nan, questions=0)
    sums, counts = np.array([sum(own) for own in kept], dtype=float), np.array([len(own) for own in kept], dtype=float)
    if not np.isfinite(sums).all():
        raise EvidenceError("`scores` must be finite.")
    mean = float(sums.sum() / counts.sum())
    if len(kept) == 1:
        return Level(mean=mean, low=math.nan, high=math.nan, questions=1)
    low, high = np.quantile(_resampled(sums, counts, seed), [0.025, 0.975])
    return Level(mean=mean, low=float(low), high=float(high), questions=len(kept))


def draws(questions: int, *, seed: int, resamples: int = _RESAMPLES) -> Iterator[np.ndarray]:
    """Batches of how often each question is drawn: arrays `resamples questions`."""
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // questions)
    for start in range(0, resamples, step):
        yield generator.multinomial(questions, np.full(questions, 1 / questions), size=min(step, resamples - start))


def _resampled(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    return np.concatenate([(drawn @ sums) / (drawn @ counts) for drawn in draws(len(sums), seed=seed)])
