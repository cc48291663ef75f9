"""Compare losses: every loss on every block, each run finished once, however often the study is stopped."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lossmith.errors import LossmithWarning
from lossmith.evidence import EvidenceStore, RunIsTaken, RunRecord, StudySummary, check_writable, summarize
from lossmith.integrations.models import load_classifier, resolve_model, token_limit
from lossmith.studies.config import StudyConfig, make_config
from lossmith.studies.run import (
    Setting,
    build_loss,
    check_runs,
    pick_device,
    pick_max_length,
    run_block,
)
from lossmith.tasks import ClassificationTask, draw_shots, load_task

POLL_SECONDS = 1.0
"""How often a run that another process holds is looked at again."""


class Listener(Protocol):
    """Who is told how a study goes on; every method may do nothing."""

    def study_began(self, planned: int, finished: int) -> None:
        """`planned` runs in all, of which `finished` are done already."""

    def run_began(self, loss: str, seed: int) -> None:
        """A run starts here and now."""

    def run_moved(self, share: float) -> None:
        """The present run is done to this share, 0 to 1."""

    def run_ended(self, record: RunRecord) -> None:
        """A run has finished or failed and is stored."""

    def waiting(self, loss: str, seed: int) -> None:
        """The last runs are held by another process."""


@dataclass(frozen=True)
class Study:
    """A finished comparison."""

    config: StudyConfig
    records: tuple[RunRecord, ...]
    summary: StudySummary
    others: int = 0
    """Runs in the results folder of losses or seeds that the configuration does not list."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader must know before believing the summary."""
        noticed = dict.fromkeys(notice for record in self.records for notice in record.config.get("notices", []))
        if self.others:
            noticed[
                f"The results folder holds {self.others} more runs, of losses or seeds that are not listed here: they "
                f"are not shown, and Holm's correction does not count their losses."
            ] = None
        return tuple(noticed)

    @property
    def attribution(self) -> str:
        """Whose data these are and under which licence."""
        return str(self.records[0].config.get("attribution", "")) if self.records else ""


def load_study_task(config: StudyConfig) -> ClassificationTask:
    """The task of a study's settings."""
    defaults = StudyConfig.model_fields
    names = ("text_column", "label_column", "split_seed", "test_fraction")
    # Only what differs is passed on: the loader refuses settings that have nothing to act on.
    given = {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name].default}
    return load_task(config.task, **given)


def open_setting(config: StudyConfig) -> Setting:
    """Load what all runs share, and find every mistake that can be found before training.

    Warns of what the task noticed, such as texts that stand in both training and test data.

    Raises:
        LossmithError: If the task, model, device, shots or a loss cannot be used.
    """
    for text in config.all_losses:
        build_loss(text, 0, {"num_classes": 2, "embedding_dim": 2})
    task = load_study_task(config)
    for notice in task.warnings:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    for seed in config.blocks:
        draw_shots(task, seed=seed, shots_per_class=config.shots, shots_total=config.shots_total)
    model = resolve_model(config.model)
    network, tokenizer = load_classifier(model, task.label_names)
    max_length = pick_max_length(config.max_length, token_limit(network, tokenizer))
    setting = Setting(config, task, model, pick_device(config.device), max_length)
    check_runs(setting)
    return setting


def identity_of(setting: Setting) -> dict[str, Any]:
    """What all runs of one results folder share: settings, data and weights by content, and the kind of device."""
    return setting.config.identity() | {
        "task": setting.task.name,
        "task_fingerprint": setting.task.fingerprint,
        "model": setting.config.model,
        "model_fingerprint": setting.model.fingerprint,
        "device": setting.device.type,
        "max_length": setting.max_length,
    }


def compare(config: StudyConfig, folder: Path, *, listener: Listener, retry_failed: bool = False) -> Study:
    """Run what is missing of a comparison and summarise all of it.

    Several processes may call this on one folder at once: each run is held by one of them, and a run whose holder
    dies is taken over.

    Args:
        config: What to compare.
        folder: Results folder; continued if it holds this study, refused if it holds another.
        listener: Is told of progress.
        retry_failed: Run the failed ones once more.

    Raises:
        LossmithError: Before any training, if something cannot be used.
    """
    setting = open_setting(config)
    check_writable(folder)
    plan = [(text, seed) for seed in config.blocks for text in config.all_losses]
    with EvidenceStore(folder) as store:
        store.open_study(identity=identity_of(setting), config=config.settings())
        if retry_failed:
            _forget_failed(store, plan)
        done = [pair for pair in plan if store.get(*pair) is not None]
        listener.study_began(len(plan), len(done))
        _run_all(setting, store, [pair for pair in plan if pair not in done], listener)
        store.sync_result_files()
        return read_study(store, config)


def _run_all(setting: Setting, store: EvidenceStore, missing: list[tuple[str, int]], listener: Listener) -> None:
    taken = list(_run_free(setting, store, missing, listener))
    while taken:
        listener.waiting(*taken[0])
        time.sleep(POLL_SECONDS)
        taken = list(_run_free(setting, store, taken, listener))


def _run_free(
    setting: Setting, store: EvidenceStore, pairs: list[tuple[str, int]], listener: Listener
) -> Iterator[tuple[str, int]]:
    """Run the pairs that nobody holds; yields those that another process holds."""
    for text, seed in pairs:
        try:
            claim = store.claim(text, seed)
        except RunIsTaken:
            yield text, seed
            continue
        with claim:
            if (record := store.get(text, seed)) is None:
                listener.run_began(text, seed)
                attempts = store.begin(text, seed)
                workspace = store.result_path(text, seed).parent / "trainer"
                record = run_block(setting, text, seed, workspace, attempts=attempts, progress=listener.run_moved)
                store.finish(record)
            listener.run_ended(record)


def _forget_failed(store: EvidenceStore, plan: list[tuple[str, int]]) -> None:
    for text, seed in plan:
        record = store.get(text, seed)
        if record is not None and record.status == "failed":
            with store.claim(text, seed):
                store.forget(text, seed)


def read_study(store: EvidenceStore, config: StudyConfig) -> Study:
    """Records and summary of a study, from its store alone."""
    wanted = {(text, seed) for text in config.all_losses for seed in config.blocks}
    everything = store.records()
    records = tuple(record for record in everything if (record.loss, record.seed) in wanted)
    others = len(everything) - len(records)
    summary = summarize(
        records, losses=config.all_losses, baseline=config.baseline, metric=config.metric, seeds=config.blocks
    )
    return Study(config, records, summary, others)


def open_results(folder: Path) -> Study:
    """The study that a results folder holds, without training anything.

    Raises:
        EvidenceError: If the folder holds none.
        ConfigurationError: If its settings are of another version.
    """
    with EvidenceStore(folder, create=False) as store:
        return read_study(store, make_config(store.study(), place=str(folder)))
