"""Tune every loss alike before comparing: within each block, on its training rows alone, with the same trials."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lossmith._extras import require
from lossmith.errors import EvidenceError, TrainingDivergedError
from lossmith.evidence import EvidenceStore, RunRecord, check_writable, metric_style
from lossmith.evidence.folders import write_atomically
from lossmith.studies.comparison import Listener, Study, forget_failed, open_setting, read_study, run_all
from lossmith.studies.run import Progress, run_block
from lossmith.studies.tuning_config import TuningConfig, make_tuning_config
from lossmith.studies.tuning_space import Value, tuned

if TYPE_CHECKING:
    from lossmith.studies.classification import ClassificationSetting
    from lossmith.studies.tuning_folds import Fold
    from lossmith.studies.tuning_search import Trial

UNTUNED = "untuned"
"""Folder, within the results, of the same study without tuning: what the gain of tuning is measured against."""
SETTINGS_FILE = "tuning.json"


class TuningListener(Listener, Protocol):
    """Who is told how a tuning goes on."""

    def trial_began(self, number: int, trials: int) -> None:
        """A trial of the present run begins; numbers count from 0."""

    def trial_ended(self, number: int, trial: "Trial") -> None:
        """That trial has ended and is kept."""


@dataclass(frozen=True)
class Tuning:
    """A comparison of tuned losses, and the same without tuning."""

    config: TuningConfig
    study: Study
    """Every loss with the setting that was best within the block; `record.config["tuned"]` tells which, and why."""
    untuned: Study
    """Every loss as it was written, on the same blocks."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader must know before believing the comparison."""
        config = self.config
        return (
            *self.study.notices,
            f"Every loss was tuned within each seed, by {config.trials} trials over {config.inner_folds} folds of that "
            f"seed's own training rows, and tested once with the best of them; `tune.html` tells what that changed.",
        )


def tune(config: TuningConfig, folder: Path, *, listener: TuningListener, retry_failed: bool = False) -> Tuning:
    """Run what is missing of a tuning and summarise all of it.

    For every block and loss a search on the block's training rows finds the best setting; with it the loss is trained
    on all of these rows and tested once. The same loss as it was written is tested too. What is finished, trials
    included, is kept however the process ends; several processes may share one folder as in `compare`.

    Args:
        config: What to compare and how to tune it.
        folder: Results folder; continued if it holds this tuning, refused if it holds another study.
        listener: Is told of progress.
        retry_failed: Test failed runs once more; trials are not repeated.

    Raises:
        LossmithError: Before any training, if something cannot be used.
        MissingExtraError: If Optuna is not installed.
    """
    require("optuna", extra="tune", purpose="tune losses")
    from lossmith.studies.classification import ClassificationSetting
    from lossmith.studies.tuning_folds import inner_folds

    setting = open_setting(config.study)
    assert isinstance(setting, ClassificationSetting), "a tuning is of classification"
    folds = {seed: inner_folds(setting, seed, config.inner_folds) for seed in config.study.blocks}
    check_writable(folder)
    plan = [(text, seed) for seed in config.study.blocks for text in config.study.all_losses]
    settings = config.study.settings()
    own = config.own | {"inner_metric": config.objective}
    with EvidenceStore(folder) as store, EvidenceStore(folder / UNTUNED) as untuned:
        store.open_study(identity=setting.identity() | {"tuning": own}, config=settings)
        untuned.open_study(identity=setting.identity(), config=settings)
        write_atomically(folder / SETTINGS_FILE, json.dumps(config.settings(), indent=2) + "\n")
        if retry_failed:
            forget_failed(untuned, plan)
            forget_failed(store, plan)

        def run(text: str, seed: int, attempts: int) -> RunRecord:
            block = _Block(config, setting, folds[seed], text, seed, listener)
            return block.run(store, untuned, attempts)

        run_all(run, store, plan, listener)
        untuned.sync_result_files()
        return Tuning(config, read_study(store, config.study), read_study(untuned, config.study))


def is_tuning(folder: Path) -> bool:
    """Whether a results folder is of a tuning."""
    return (folder / SETTINGS_FILE).is_file()


def open_tuning(folder: Path) -> Tuning:
    """The tuning that a results folder holds, without training anything.

    Raises:
        EvidenceError: If the folder holds none.
        ConfigurationError: If its settings are of another version.
    """
    config = read_tuning_config(folder)
    with EvidenceStore(folder, create=False) as store, EvidenceStore(folder / UNTUNED, create=False) as untuned:
        return Tuning(config, read_study(store, config.study), read_study(untuned, config.study))


def read_tuning_config(folder: Path) -> TuningConfig:
    """The settings of the tuning that a results folder holds; raises as `open_tuning`."""
    if not is_tuning(folder):
        raise EvidenceError(f"`{folder}` holds no tuning: there is no `{SETTINGS_FILE}` in it.")
    values = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    return make_tuning_config(values, place=str(folder))


@dataclass(frozen=True)
class _Block:
    """One loss on one block: its search, and its two tests."""

    config: TuningConfig
    setting: "ClassificationSetting"
    folds: "list[Fold]"
    text: str
    seed: int
    listener: TuningListener

    def run(self, store: EvidenceStore, untuned: EvidenceStore, attempts: int) -> RunRecord:
        """The record of the tuned loss; that of the untuned one is put into its own store."""
        from lossmith.studies.tuning_search import best_of

        folder = store.result_path(self.text, self.seed).parent
        trials = self._search(folder)
        plain = self._untuned(untuned)
        place = best_of(trials, higher_is_better=self._higher_is_better)
        if place is None:
            reason = f"None of {len(trials)} trials finished: training was not finite in any of them."
            empty: dict[str, Any] = {"metrics": {}, "curves": {}, "predictions": [], "scores": {}}
            record = dataclasses.replace(plain, status="failed", error=reason, attempts=attempts, **empty)
            return self._told(record, trials, place, self.text)
        setting, text = self._with(trials[place].values)
        if place == 0:
            # The same run, bit for bit.
            return self._told(dataclasses.replace(plain, attempts=attempts), trials, place, text)
        progress = self._share(len(trials) + 1, len(trials) + 2)
        record = run_block(setting, text, self.seed, folder / "trainer", attempts=attempts, progress=progress)
        return self._told(dataclasses.replace(record, loss=self.text), trials, place, text)

    @property
    def _higher_is_better(self) -> bool:
        return metric_style(self.config.objective).higher_is_better

    def _search(self, folder: Path) -> "list[Trial]":
        from lossmith.studies.tuning_search import search

        space = self.config.spaces[self.text]
        moved = {"trial": 0, "trials": self.config.trials if space else 1}

        def on_trial(number: int, trial: "Trial | None") -> None:
            moved["trial"] = number
            if trial is None:
                self.listener.trial_began(number, moved["trials"])
            else:
                self.listener.trial_ended(number, trial)

        def objective(values: Mapping[str, Value]) -> Iterator[float]:
            setting, text = self._with(values)
            for place, fold in enumerate(self.folds):
                progress = self._share(moved["trial"], moved["trials"] + 2, place, len(self.folds))
                yield self._score(setting, text, fold, folder / "inner", progress)

        try:
            return search(
                folder / "trials.log",
                space,
                objective,
                trials=self.config.trials,
                folds=len(self.folds),
                key=(self.seed, self.text),
                higher_is_better=self._higher_is_better,
                on_trial=on_trial,
            )
        finally:
            shutil.rmtree(folder / "inner", ignore_errors=True)

    def _score(
        self, setting: "ClassificationSetting", text: str, fold: "Fold", workspace: Path, progress: Progress
    ) -> float:
        from lossmith.studies.tuning_folds import inner_setting

        record = run_block(inner_setting(setting, fold), text, self.seed, workspace, progress=progress)
        if record.status == "failed":
            raise TrainingDivergedError(0, [])
        return record.metrics[self.config.objective]

    def _untuned(self, store: EvidenceStore) -> RunRecord:
        if (found := store.get(self.text, self.seed)) is not None:
            return found
        trials = self.config.trials if self.config.spaces[self.text] else 1
        record = run_block(
            self.setting,
            self.text,
            self.seed,
            store.result_path(self.text, self.seed).parent / "trainer",
            attempts=store.begin(self.text, self.seed),
            progress=self._share(trials, trials + 2),
        )
        store.finish(record)
        return record

    def _with(self, values: Mapping[str, Value]) -> "tuple[ClassificationSetting, str]":
        config, text = tuned(self.setting.config, self.text, values)
        return dataclasses.replace(self.setting, config=config), text

    def _share(self, done: int, of: int, part: int = 0, parts: int = 1) -> Progress:
        """Moves the run from the share that is done; of trials and two tests, each counts alike."""
        return lambda share: self.listener.run_moved((done + (part + share) / parts) / of)

    def _told(self, record: RunRecord, trials: "list[Trial]", place: int | None, text: str) -> RunRecord:
        """The record with how it came about."""
        found = {
            "loss": text,
            "trial": place,
            "values": trials[place].values if place is not None else {},
            "trials": [trial.to_dict() for trial in trials],
            "seconds": sum(trial.seconds for trial in trials),
            "space": {part.name: part.described() for part in self.config.spaces[self.text]},
            "metric": self.config.objective,
            "folds": len(self.folds),
        }
        return dataclasses.replace(record, config=record.config | {"tuned": found})
