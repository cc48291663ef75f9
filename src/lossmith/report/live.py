"""Live progress of a study in the terminal: a bar with the time left, and one line per finished run."""

import time
from typing import final

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lossmith.evidence import RunRecord
from lossmith.report.bars import ConsoleBar, StudyBar, run_name, waiting_for


@final
class LiveProgress(StudyBar):
    """A `Listener` of studies that draws on a console; plain lines where it is no terminal.

    Args:
        console: Where to draw.
        metric: The metric to show of a finished run.
    """

    def __init__(self, console: Console, metric: str):
        super().__init__(console, metric, TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self._task: TaskID | None = None
        self._here = 0
        self._seconds = 0.0
        self._began = 0.0

    def study_began(self, planned: int, finished: int) -> None:
        """Open the bar and say what is done already."""
        self._begin(planned, finished)
        self._task = self._bar.add_task("", total=planned, completed=finished, left="")

    def run_began(self, loss: str, seed: int) -> None:
        """Name the run on the bar."""
        self._began = time.monotonic()
        self._update(0.0, run_name(loss, seed))

    def run_moved(self, share: float) -> None:
        """Move the bar within the run."""
        self._update(share)

    def run_ended(self, record: RunRecord) -> None:
        """One line for the run."""
        self._here += 1
        self._ended += 1
        if self._began:
            self._seconds += time.monotonic() - self._began
        self._update(0.0)
        left = f"  {self._left(0.0)}" if not self.console.is_terminal else ""
        self._say(record, "", always=f"  ({record.train_seconds:.0f} s of training){left}")

    def waiting(self, loss: str, seed: int) -> None:
        """Say that another process holds what is left."""
        self._update(0.0, waiting_for(loss, seed))

    def _update(self, share: float, description: str | None = None) -> None:
        if self._task is None:
            return
        self._bar.update(self._task, completed=self._ended + share, left=self._left(share))
        if description is not None:
            self._bar.update(self._task, description=description)

    def _left(self, share: float) -> str:
        """Estimate from the runs of this process: mean seconds of a run, the present one by its share."""
        present = time.monotonic() - self._began if share else 0.0
        done = self._here + share
        if done < 0.05:
            return ""
        seconds = (self._seconds + present) / done * (self._planned - self._ended - share)
        if seconds < 1:
            return ""
        minutes, rest = divmod(round(seconds), 60)
        return f"about {minutes} min {rest:02d} s left" if minutes else f"about {rest} s left"


@final
class BatchProgress(ConsoleBar):
    """A bar for each thing that is done in batches, with the time left, drawn on a console.

    Args:
        console: Where to draw; nothing is drawn where it is no terminal.
    """

    def __init__(self, console: Console):
        super().__init__(console, TimeElapsedColumn(), TimeRemainingColumn(), disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def moved(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`, which appears with its first move."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(escape(what), total=total)
        self._bar.update(self._tasks[what], completed=done)
