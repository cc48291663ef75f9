"""What a tuning found out about each loss: which parameters matter, how much, and what tuning is worth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from lossmith._extras import require
from lossmith.evidence import PairedComparison, RunRecord, metric_style, paired_t
from lossmith.studies.tuning import Tuning
from lossmith.studies.tuning_space import Parameter, Value

FEWEST = 10
"""Trials from which on importances are worth a number."""
TOP = 0.25
"""Share of the best trials whose values are set against all: the importance of getting among them."""


@dataclass(frozen=True, kw_only=True)
class TrialPoint:
    """One trial of one block, as a picture shows it."""

    seed: int
    """The block."""
    values: dict[str, Value]
    """Parameter -> value."""
    gain: float
    """Its metric minus that of the untuned trial, over the folds that it came to."""
    finished: bool
    """Whether it came to all folds."""
    chosen: bool
    """Whether the block was tested with it."""


@dataclass(frozen=True, kw_only=True)
class ParameterSensitivity:
    """One parameter of one loss."""

    name: str
    """A setting, `b`, or `loss.hyperparameter`."""
    space: dict[str, Any]
    """Where it was searched, and its untuned value."""
    chosen: dict[int, Value]
    """Block -> the value that it was tested with."""
    importance: float | None
    """Share of the importance for getting among the best trials; shares sum to 1. None with too few trials."""
    low: float | None
    """Least share with one block left out; None with one block."""
    high: float | None
    """Largest share with one block left out; None with one block."""


@dataclass(frozen=True, kw_only=True)
class LossSensitivity:
    """What the trials of one loss say together."""

    loss: str
    """The loss as it was written."""
    trials: int
    """Trials of all blocks."""
    pruned: int
    """Those that were stopped early."""
    failed: int
    """Those whose training was not finite."""
    seconds: float
    """Mean wall time of a block's search."""
    untuned: float | None
    """Mean over blocks of the untuned trial's metric, over the inner folds."""
    middle: float | None
    """Mean over blocks of the median of the finished trials."""
    best: float | None
    """Mean over blocks of the best trial: optimistic, since it was chosen for being best."""
    spread: tuple[float, float, float] | None
    """Gain over the untuned trial of the trial at 10%, 50% and 90% of all; None without a point."""
    changed: int
    """Blocks in which something else than the untuned setting was chosen."""
    gain: PairedComparison | None
    """On the test: tuned minus untuned, paired by block; None without a pair."""
    parameters: tuple[ParameterSensitivity, ...]
    """In the order of the space."""
    points: tuple[TrialPoint, ...]
    """All trials that can be set against the untuned one of their block."""


def sensitivity(tuning: Tuning) -> tuple[LossSensitivity, ...]:
    """One per loss, in the order of the study, from the records alone.

    Raises:
        MissingExtraError: If Optuna, which computes importances, is not installed.
    """
    return tuple(_of_loss(tuning, loss) for loss in tuning.config.study.all_losses)


def gains(trials: Sequence[dict[str, Any]]) -> list[float | None]:
    """Each trial's metric minus that of the first, on the folds that both came to; None where there are none.

    A pruned trial and a finished one are comparable so, and the levels of blocks are taken out.

    Example:
        >>> gains([{"folds": [0.5, 0.7]}, {"folds": [0.25]}, {"folds": []}])
        [0.0, -0.25, None]
    """
    first = trials[0]["folds"] if trials else []
    pairs = [list(zip(trial["folds"], first, strict=False)) for trial in trials]
    return [fmean(mine - untuned for mine, untuned in pair) if pair else None for pair in pairs]


def importances(
    points: Sequence[TrialPoint], space: Sequence[Parameter], *, higher_is_better: bool
) -> dict[str, float] | None:
    """Parameter -> its share in getting among the best trials (PED-ANOVA); None with too few trials or no difference.

    Watanabe, Bansal and Hutter 2023, https://arxiv.org/abs/2304.10255, over the trials of all blocks.
    """
    if len(points) < FEWEST or len({point.gain for point in points}) == 1:
        return None
    optuna = require("optuna", extra="tune", purpose="compute importances")
    from lossmith.studies.tuning_search import distribution, quiet

    where = {part.name: distribution(part) for part in space}
    with quiet():
        study = optuna.create_study(direction="maximize" if higher_is_better else "minimize")
        study.add_trials(
            [optuna.trial.create_trial(params=point.values, distributions=where, value=point.gain) for point in points]
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {part.name: float(found.get(part.name, 0.0)) for part in space}


def _of_loss(tuning: Tuning, loss: str) -> LossSensitivity:
    records = [record for record in tuning.study.records if record.loss == loss]
    style = metric_style(tuning.config.objective)
    searches = {record.seed: record.config["tuned"] for record in records}
    states = Counter(trial["state"] for found in searches.values() for trial in found["trials"])
    points = tuple(point for seed, found in searches.items() for point in _points(seed, found))
    scores = [_scores(found["trials"]) for found in searches.values()]
    pick = max if style.higher_is_better else min
    return LossSensitivity(
        loss=loss,
        trials=states.total(),
        pruned=states["pruned"],
        failed=states["failed"],
        seconds=fmean(found["seconds"] for found in searches.values()) if searches else 0.0,
        untuned=_mean([block[0] for block in scores if 0 in block]),
        middle=_mean([median(block.values()) for block in scores if block]),
        best=_mean([pick(block.values()) for block in scores if block]),
        spread=_spread([point.gain for point in points]),
        changed=sum(found["trial"] not in (0, None) for found in searches.values()),
        gain=_test_gain(tuning, loss, records),
        parameters=_parameters(tuning, loss, searches, points, higher_is_better=style.higher_is_better),
        points=points,
    )


def _points(seed: int, found: dict[str, Any]) -> list[TrialPoint]:
    trials = found["trials"]
    return [
        TrialPoint(
            seed=seed,
            values=trial["values"],
            gain=gain,
            finished=trial["state"] == "finished",
            chosen=place == found["trial"],
        )
        for place, (trial, gain) in enumerate(zip(trials, gains(trials), strict=True))
        if gain is not None
    ]


def _scores(trials: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Place -> mean over all folds, of the finished trials."""
    return {place: fmean(trial["folds"]) for place, trial in enumerate(trials) if trial["state"] == "finished"}


def _parameters(
    tuning: Tuning,
    loss: str,
    searches: dict[int, dict[str, Any]],
    points: Sequence[TrialPoint],
    *,
    higher_is_better: bool,
) -> tuple[ParameterSensitivity, ...]:
    space = tuning.config.spaces[loss]
    whole = importances(points, space, higher_is_better=higher_is_better) or {}
    parts = [
        importances([p for p in points if p.seed != seed], space, higher_is_better=higher_is_better)
        for seed in searches
        if len(searches) > 1
    ]
    return tuple(
        ParameterSensitivity(
            name=part.name,
            space=part.described(),
            chosen={seed: found["values"][part.name] for seed, found in searches.items() if found["values"]},
            importance=whole.get(part.name),
            low=min((left[part.name] for left in parts if left), default=None),
            high=max((left[part.name] for left in parts if left), default=None),
        )
        for part in space
    )


def _test_gain(tuning: Tuning, loss: str, records: Sequence[RunRecord]) -> PairedComparison | None:
    metric = tuning.config.study.metric
    before = {
        record.seed: record.metrics[metric]
        for record in tuning.untuned.records
        if record.loss == loss and record.status == "finished"
    }
    after = {record.seed: record.metrics[metric] for record in records if record.status == "finished"}
    shared = [seed for seed in after if seed in before]
    if not shared:
        return None
    return paired_t(
        [before[seed] for seed in shared],
        [after[seed] for seed in shared],
        higher_is_better=metric_style(metric).higher_is_better,
    )


def _spread(found: Sequence[float]) -> tuple[float, float, float] | None:
    if not found:
        return None
    low, middle, high = np.percentile(found, [10, 50, 90]).tolist()
    return low, middle, high


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
