"""One search with Optuna: a fixed number of trials over a few folds each, kept in a file, exact after any kill."""

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from lossmith.errors import EvidenceError, TrainingDivergedError
from lossmith.evidence.folders import cannot_write
from lossmith.studies.tuning_space import Parameter, Value

Objective = Callable[[Mapping[str, Value]], Iterator[float]]
"""Scores a choice of values on one fold after the other; raises `TrainingDivergedError` where training does."""
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of the trials that the budget pays for; what a kill left is done again."""
STARTUP = 4
"""Trials of any search that are not chosen by earlier ones, the untuned one among them; a third where that is more."""
LOSER, MIDDLING = 25, 50
"""Percentile of earlier trials on the same folds below which a trial stops: after one fold, and after more."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One choice of values and how it did."""

    values: dict[str, Value]
    """Parameter -> value."""
    state: Literal["finished", "pruned", "failed"]
    """Whether it was scored on every fold, was stopped after some, or its training was not finite."""
    folds: list[float] = field(default_factory=list)
    """The metric on each fold that it came to."""
    seconds: float = 0.0
    """Wall time."""

    @property
    def score(self) -> float | None:
        """Mean over all folds; None where it did not come to all of them."""
        return fmean(self.folds) if self.state == "finished" else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def search(
    file: Path,
    space: Sequence[Parameter],
    objective: Objective,
    *,
    trials: int,
    folds: int,
    key: tuple[int, str],
    higher_is_better: bool,
    on_trial: Callable[[int, Trial | None], None] = lambda number, trial: None,
) -> list[Trial]:
    """Run what is missing of a search, and return all of its trials in order, the untuned one first.

    Every trial is proposed from the block, the trial's place and what came before alone, so a search that was killed
    and continued proposes what an undisturbed one does. Start-up trials draw each parameter by its name: losses that
    share it, with one range, try the same values of it in the same places. One process at a time may hold `file`.

    Args:
        file: Optuna's journal; made if it is not there.
        space: What is tuned; with nothing in it the untuned trial is the only one.
        objective: Scores a choice of values.
        trials: How many trials there are in the end.
        folds: How many folds `objective` scores.
        key: Block and loss.
        higher_is_better: Direction of the metric.
        on_trial: Told of the trial that begins, and again with it when it has ended.

    Raises:
        EvidenceError: If the file cannot be used.
    """
    wanted = trials if space else 1
    with _study(file, key, higher_is_better) as study:
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)
        while (done := len(study.get_trials(deepcopy=False, states=COUNTED))) < wanted:
            on_trial(done, None)
            startup = max(STARTUP, wanted // 3)
            study.sampler = optuna.samplers.TPESampler(seed=_seed(key[0], done), n_startup_trials=startup)
            if done < startup and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.enqueue_trial({part.name: _at_startup(part, key[0], done) for part in space})
            _run(study, {part.name: distribution(part) for part in space}, objective, folds)
            on_trial(done, _told(study.get_trials(deepcopy=False, states=COUNTED)[-1]))
        return [_told(trial) for trial in study.get_trials(deepcopy=False, states=COUNTED)]


def best_of(trials: Sequence[Trial], *, higher_is_better: bool) -> int | None:
    """Place of the best finished trial, the earliest of equals, so that only something better replaces the untuned.

    Example:
        >>> best_of([Trial(values={}, state="finished", folds=[score]) for score in (0.5, 0.7, 0.7)],
        ...         higher_is_better=True)
        1
    """
    sign = 1 if higher_is_better else -1
    scores = {place: sign * trial.score for place, trial in enumerate(trials) if trial.score is not None}
    return max(scores, key=scores.__getitem__) if scores else None


class FoldPruner(optuna.pruners.BasePruner):
    """Stops a trial whose mean over its folds is below that of most trials, pruned ones included, on the same folds.

    Optuna's median pruner compares the best value that a trial reported, and with trials that were finished, which are
    the better ones. Few rows make the first fold a poor judge: it stops clear losers only.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop; see Optuna."""
        step = trial.last_step
        assert step is not None
        others = study.get_trials(deepcopy=False, states=COUNTED)
        values = [other.intermediate_values[step] for other in others if step in other.intermediate_values]
        if len(values) < STARTUP:
            return False
        percentile = LOSER if step == 0 else MIDDLING
        mine = trial.intermediate_values[step]
        if study.direction == optuna.study.StudyDirection.MAXIMIZE:
            return bool(mine < np.percentile(values, percentile))
        return bool(mine > np.percentile(values, 100 - percentile))


def _run(study: optuna.Study, distributions: dict[str, BaseDistribution], objective: Objective, folds: int) -> None:
    begun = time.perf_counter()
    trial = study.ask(distributions)
    scores: list[float] = []
    state = TrialState.COMPLETE
    try:
        for fold, score in enumerate(objective(trial.params)):
            if not math.isfinite(score):
                raise TrainingDivergedError(0, scores)
            scores.append(score)
            trial.report(fmean(scores), fold)
            if fold + 1 < folds and trial.should_prune():
                state = TrialState.PRUNED
                break
    except TrainingDivergedError:
        # Without a value Optuna takes a pruned trial for the worst there is.
        state, scores = TrialState.PRUNED, []
        trial.set_user_attr("failed", True)
    trial.set_user_attr("folds", scores)
    trial.set_user_attr("seconds", time.perf_counter() - begun)
    study.tell(trial, fmean(scores) if state == TrialState.COMPLETE else None, state=state)


def _told(trial: FrozenTrial) -> Trial:
    ended = "finished" if trial.state == TrialState.COMPLETE else "pruned"
    return Trial(
        values=dict(trial.params),
        state="failed" if trial.user_attrs.get("failed") else ended,
        folds=list(trial.user_attrs["folds"]),
        seconds=trial.user_attrs["seconds"],
    )


def distribution(part: Parameter) -> BaseDistribution:
    """Where Optuna looks for a parameter."""
    if part.choices:
        return CategoricalDistribution(part.choices)
    if part.whole:
        return IntDistribution(int(part.low), int(part.high), log=part.log)
    return FloatDistribution(part.low, part.high, log=part.log)


def _at_startup(part: Parameter, block: int, place: int) -> Value:
    """The untuned value first, then draws that depend on nothing but the block, the place and the parameter."""
    if place == 0:
        return part.untuned
    sampler = optuna.samplers.RandomSampler(seed=_seed(block, place, zlib.crc32(part.name.encode())))
    return optuna.create_study(sampler=sampler).ask({part.name: distribution(part)}).params[part.name]


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@contextlib.contextmanager
def _study(file: Path, key: tuple[int, str], higher_is_better: bool) -> Iterator[optuna.Study]:
    """The study in `file`."""
    with quiet():
        yield optuna.create_study(
            storage=_opened(file),
            study_name=f"{key[1]}, seed {key[0]}",
            direction="maximize" if higher_is_better else "minimize",
            pruner=FoldPruner(),
            load_if_exists=True,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log, whose level is one for the whole process."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _opened(file: Path) -> optuna.storages.BaseStorage:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _mend(file)
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))
    except OSError as error:
        raise cannot_write(file, error) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # A line that is no entry of Optuna's.
        raise EvidenceError(f"The trials in `{file}` cannot be read: remove the file to begin again.") from error


def _mend(file: Path) -> None:
    """Drop what a kill left: a lock that nobody holds, and the part of a line that nothing could be appended to."""
    Path(f"{file}.lock").unlink(missing_ok=True)
    if file.is_file():
        with file.open("rb+") as lines:
            lines.truncate(lines.read().rfind(b"\n") + 1)
