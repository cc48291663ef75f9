"""What the runs kept of each test example, put side by side for two losses."""

from dataclasses import dataclass

import numpy as np

from lossmith.evidence.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """The metric on each test example, over the seeds where both sides finished."""

    seeds: tuple[int, ...]
    """Those seeds, ascending."""
    baseline: np.ndarray
    """Of the baseline, `seeds examples`."""
    candidate: np.ndarray
    """Of the candidate, `seeds examples`."""


def paired_scores(baseline: dict[int, RunRecord], candidate: dict[int, RunRecord], metric: str) -> PairedScores | None:
    """Scores `blocks examples` of both sides; None where a pair kept none or the test sets differ."""
    done = [{seed for seed, run in side.items() if run.status == "finished"} for side in (baseline, candidate)]
    seeds = sorted(done[0] & done[1])
    runs = [side[seed] for side in (baseline, candidate) for seed in seeds]
    scores = [_scores(run, metric) for run in runs]
    kept = [values for values in scores if values]
    # Folds can have equal labels and yet other texts.
    same_rows = all(
        (run.labels, run.config.get("fold")) == (runs[0].labels, runs[0].config.get("fold")) for run in runs
    )
    if len(kept) < len(runs) or len({len(values) for values in kept}) != 1 or not same_rows:
        return None
    values = np.array(kept, dtype=float)
    return PairedScores(seeds=tuple(seeds), baseline=values[: len(seeds)], candidate=values[len(seeds) :])


def _scores(record: RunRecord, metric: str) -> list[float] | None:
    """The metric on each test example; a classifier's accuracy is in its predictions."""
    if metric in record.scores:
        return record.scores[metric]
    if metric != "accuracy" or len(record.predictions) != len(record.labels):
        return None
    return [float(guess == label) for guess, label in zip(record.predictions, record.labels, strict=True)]
