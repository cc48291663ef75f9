"""Live progress of a tuning in the terminal: a bar over trials, and one line per finished run."""

from typing import TYPE_CHECKING, final

from rich.console import Console
from rich.progress import TaskID, TextColumn, TimeElapsedColumn

from lossmith.evidence import RunRecord, format_value
from lossmith.report.bars import StudyBar, run_name, waiting_for

if TYPE_CHECKING:
    from lossmith.studies.tuning_search import Trial


@final
class TuningProgress(StudyBar):
    """A `TuningListener` that draws on a console; plain lines where it is no terminal.

    Args:
        console: Where to draw.
        metric: The metric to show of a finished run.
        objective: The metric that trials are scored by.
        trials: Trials of a run.
    """

    def __init__(self, console: Console, *, metric: str, objective: str, trials: int):
        super().__init__(console, metric, TextColumn("trials"), TimeElapsedColumn())
        self.objective, self.trials = objective, trials
        self._task: TaskID | None = None
        self._run = self._last = ""

    def study_began(self, planned: int, finished: int) -> None:
        """Open the bar and say what is done already."""
        self._begin(planned, finished)
        self._task = self._bar.add_task("", total=planned * self.trials)
        self._moved(0)

    def run_began(self, loss: str, seed: int) -> None:
        """Name the run on the bar."""
        self._run, self._last = run_name(loss, seed), ""
        self._moved(0)

    def run_moved(self, share: float) -> None:
        """Nothing: the bar counts trials."""

    def trial_began(self, number: int, trials: int) -> None:
        """Move the bar; trials that an earlier process made are done."""
        self._moved(number)

    def trial_ended(self, number: int, trial: "Trial") -> None:
        """Show how the trial did."""
        score = "" if trial.score is None else f" {format_value(trial.score, self.objective)}"
        self._last = f"  (trial {number + 1} {trial.state}{score})"
        self._moved(number + 1)

    def run_ended(self, record: RunRecord) -> None:
        """One line for the run."""
        self._ended += 1
        self._moved(0)
        found = record.config["tuned"]
        place = found["trial"]
        chosen = "no trial finished" if place is None else f"trial {place + 1} of {self.trials}"
        if place == 0:
            chosen = "as written"
        self._say(record, f"  ({chosen}, {found['seconds']:.0f} s of search)")

    def waiting(self, loss: str, seed: int) -> None:
        """Say that another process holds what is left."""
        self._run, self._last = waiting_for(loss, seed), ""
        self._moved(0)

    def _moved(self, trials: int) -> None:
        if self._task is not None:
            done = self._ended * self.trials + min(trials, self.trials)
            self._bar.update(self._task, completed=done, description=f"{self._run}{self._last}")
