"""What all live progress in the terminal shares: a bar on a console, and a line per finished run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

from lossmith.evidence import RunRecord, format_value


class ConsoleBar:
    """Bars that are drawn inside `with` and leave nothing behind.

    Args:
        console: Where to draw.
        columns: What stands behind the bar and its count.
        count: Whether how many of how many stands behind the bar.
        disable: Draw nothing.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, count: bool = True, disable: bool = False):
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            *([MofNCompleteColumn()] if count else []),
            *columns,
            console=console,
            transient=True,
            disable=disable,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


class StudyBar(ConsoleBar):
    """A bar of a study, which counts its runs and says how each ended; `metric` is the one to show."""

    def __init__(self, console: Console, metric: str, *columns: ProgressColumn):
        super().__init__(console, *columns)
        self.metric = metric
        self._planned = self._ended = 0

    def _begin(self, planned: int, finished: int) -> None:
        self._planned, self._ended = planned, finished
        if finished:
            self.console.print(f"{finished} of {planned} runs are done already and are not repeated.")

    def _say(self, record: RunRecord, behind: str, *, always: str = "") -> None:
        """One line for a run that ended: its metric and what is `behind`, or why it failed, and `always` more."""
        if record.status == "failed":
            result = f"[red]failed[/]: {escape(record.error or '')}"
        else:
            result = f"{self.metric} {format_value(record.metrics[self.metric], self.metric)}{behind}"
        self.console.print(
            f"[{self._ended:>{len(str(self._planned))}}/{self._planned}] seed {record.seed}  {escape(record.loss)}: "
            f"{result}{always}",
            highlight=False,
            soft_wrap=True,
        )


def run_name(loss: str, seed: int) -> str:
    """A run on the bar."""
    return f"{escape(loss)}, seed {seed}"


def waiting_for(loss: str, seed: int) -> str:
    """A run that another process holds."""
    return f"waiting for another process: {run_name(loss, seed)}"
