"""Compare losses: every loss on every block, each run finished once, however often the study is stopped."""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lossmith.evidence import EvidenceStore, RunIsTaken, RunRecord, StudySummary, check_writable, summarize
from lossmith.evidence.chance import chance_notices
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import SharedConfig, StudyConfig
from lossmith.studies.preference_config import AnswerFields
from lossmith.studies.recipes import make_config
from lossmith.studies.run import Setting, run_block
from lossmith.studies.sentiment_config import SentimentConfig

POLL_SECONDS = 1.0
"""How often a run that another process holds is looked at again."""
Run = Callable[[str, int, int], RunRecord]
"""Makes the record of a loss on a seed; the third argument counts the attempts."""


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

    config: SharedConfig
    records: tuple[RunRecord, ...]
    summary: StudySummary
    others: int = 0
    """Runs in the results folder of losses or seeds that the configuration does not list."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader must know before believing the summary."""
        noticed = dict.fromkeys(notice for record in self.records for notice in record.config.get("notices", []))
        if isinstance(self.config, StudyConfig):
            noticed |= dict.fromkeys(chance_notices(self.records, self.config.all_losses))
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


def open_setting(config: SharedConfig) -> Setting:
    """Load what all runs of a study share, and find every mistake that can be found before training.

    Raises:
        LossmithError: If the task, model, device, rows or a loss cannot be used.
    """
    if isinstance(config, CompletionConfig):
        from lossmith.studies.completion import open_completion

        setting: Setting = open_completion(config)
    elif isinstance(config, SentimentConfig):
        from lossmith.studies.sentiment import open_sentiment

        setting = open_sentiment(config)
    elif isinstance(config, AnswerFields):
        from lossmith.studies.preference_opening import open_preference

        setting = open_preference(config)
    else:
        from lossmith.studies.classification import open_classification

        assert isinstance(config, StudyConfig)
        setting = open_classification(config)
    setting.check()
    return setting


def compare(config: SharedConfig, folder: Path, *, listener: Listener, retry_failed: bool = False) -> Study:
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
        store.open_study(identity=setting.identity(), config=config.settings())
        if retry_failed:
            forget_failed(store, plan)

        def run(text: str, seed: int, attempts: int) -> RunRecord:
            workspace = store.result_path(text, seed).parent / "trainer"
            return run_block(setting, text, seed, workspace, attempts=attempts, progress=listener.run_moved)

        run_all(run, store, plan, listener)
        return read_study(store, config)


def run_all(run: Run, store: EvidenceStore, plan: list[tuple[str, int]], listener: Listener) -> None:
    """Make every record of a plan that the store lacks, each in one process at a time; waits for those of others."""
    done = [pair for pair in plan if store.get(*pair) is not None]
    listener.study_began(len(plan), len(done))
    with light_collections(), noticed_interrupts() as interrupts:
        taken = list(_run_free(run, store, [pair for pair in plan if pair not in done], listener, interrupts))
        while taken:
            listener.waiting(*taken[0])
            time.sleep(POLL_SECONDS)
            taken = list(_run_free(run, store, taken, listener, interrupts))
    store.sync_result_files()


def _run_free(
    run: Run, store: EvidenceStore, pairs: list[tuple[str, int]], listener: Listener, interrupts: list[int]
) -> Iterator[tuple[str, int]]:
    """Run the pairs that nobody holds; yields those that another process holds."""
    for text, seed in pairs:
        if interrupts:
            raise KeyboardInterrupt
        try:
            claim = store.claim(text, seed)
        except RunIsTaken:
            yield text, seed
            continue
        with claim:
            if (record := store.get(text, seed)) is None:
                listener.run_began(text, seed)
                record = run(text, seed, store.begin(text, seed))
                store.finish(record)
            listener.run_ended(record)


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[list[int]]:
    """Inside, the signals that ask for an end are written down beside what they do.

    Python drops a KeyboardInterrupt that is raised within a destructor or a garbage collection, of which the end of a
    training is full: a Ctrl-C that came then is obeyed before the next run.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        before[number](number, frame)

    # Where nobody raises at a signal (it is ignored, or ends the process) nothing can be dropped.
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def light_collections() -> Iterator[None]:
    """Inside, garbage is looked for among new objects alone.

    Every training ends with a collection over all imported modules: of a tiny run it takes four fifths, and a study has
    hundreds of runs.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def forget_failed(store: EvidenceStore, plan: list[tuple[str, int]]) -> None:
    """Delete the failed runs of a plan, so that they are done again."""
    for text, seed in plan:
        record = store.get(text, seed)
        if record is not None and record.status == "failed":
            with store.claim(text, seed):
                store.forget(text, seed)


def read_study(store: EvidenceStore, config: SharedConfig) -> Study:
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
