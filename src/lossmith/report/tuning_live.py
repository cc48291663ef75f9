"""Live progress of a tuning in the terminal: a bar over trials, and one line per finished run."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lossmith.evidence import RunRecord, format_value

if TYPE_CHECKING:
    from lossmith.studies.tuning_search import Trial


class TuningProgress:
    """A `TuningListener` that draws on a console; plain lines where it is no terminal.

    Args:
        console: Where to draw.
        metric: The metric to show of a finished run.
        objective: The metric that trials are scored by.
        trials: Trials of a run.
    """

    def __init__(self, console: Console, *, metric: str, objective: str, trials: int):
        self.console, self.metric, self.objective, self.trials = console, metric, objective, trials
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._planned = self._ended = 0
        self._run = self._last = ""

    def __enter__(self) -> "TuningProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def study_began(self, planned: int, finished: int) -> None:
        """Open the bar and say what is done already."""
        self._planned, self._ended = planned, finished
        if finished:
            self.console.print(f"{finished} of {planned} runs are done already and are not repeated.")
        self._task = self._bar.add_task("", total=planned * self.trials)
        self._moved(0)

    def run_began(self, loss: str, seed: int) -> None:
        """Name the run on the bar."""
        self._run, self._last = f"{escape(loss)}, seed {seed}", ""
        self._moved(0)

    def run_moved(self, share: float) -> None:
        """Nothing: the bar counts trials."""

    def trial_began(self, number: int, trials: int) -> None:
        """Move the bar; trials that an earlier process made are done."""
        self._moved(number)

    def trial_ended(self, number: int, trial: "Trial") -> None:
        """Show how the trial did."""
        score = "" if trial.score is None else f" {format_value(trial.score, self.objective)}"
        self._last = f"  (trial {number} {trial.state}{score})"
        self._moved(number + 1)

    def run_ended(self, record: RunRecord) -> None:
        """One line for the run."""
        self._ended += 1
        self._moved(0)
        found = record.config["tuned"]
        if record.status == "failed":
            result = f"[red]failed[/]: {escape(record.error or '')}"
        else:
            chosen = "as written" if found["trial"] == 0 else f"trial {found['trial']}"
            value = format_value(record.metrics[self.metric], self.metric)
            result = f"{self.metric} {value}  ({chosen}, {found['seconds']:.0f} s of search)"
        self.console.print(
            f"[{self._ended:>{len(str(self._planned))}}/{self._planned}] seed {record.seed}  {escape(record.loss)}: "
            f"{result}",
            highlight=False,
            soft_wrap=True,
        )

    def waiting(self, loss: str, seed: int) -> None:
        """Say that another process holds what is left."""
        self._run, self._last = f"waiting for another process: {escape(loss)}, seed {seed}", ""
        self._moved(0)

    def _moved(self, trials: int) -> None:
        if self._task is not None:
            done = self._ended * self.trials + min(trials, self.trials)
            self._bar.update(self._task, completed=done, description=f"{self._run}{self._last}")
