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
    one_test_set = len({len(values) for values in kept}) == 1 and all(run.labels == runs[0].labels for run in runs)
    if len(kept) < len(runs) or not one_test_set:
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
