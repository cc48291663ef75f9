"""Live progress of a discovery in the terminal."""

import time
from collections.abc import Callable
from typing import final

from rich.console import Console
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from lossmith.report.bars import ConsoleBar

EVERY_S = 20.0
"""Between two lines where it is no terminal."""


@final
class RaceProgress(ConsoleBar):
    """A bar for the evaluations of a rung; a line now and then where it is no terminal.

    Args:
        console: Where to draw.
        clock: Seconds from anywhere.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, TimeRemainingColumn(), disable=not console.is_terminal)
        self._clock = clock
        self._name, self._begun_with, self._said_at = "", 0, 0.0
        self._paced_at, self._paced_with = 0.0, 0
        self._task = self._bar.add_task("", total=None)

    def moved(self, name: str, done: int, of: int) -> None:
        """So many evaluations of what is measured are done."""
        now = self._clock()
        if name != self._name:
            self._name, self._begun_with, self._said_at = name, done, now
            self._paced_at, self._paced_with = now, done
            self._bar.reset(self._task, total=of, completed=done, description=escape(name))
        self._bar.update(self._task, completed=done)
        paced = done > self._paced_with > self._begun_with
        if done > self._paced_with == self._begun_with:
            # The first one may read a model and train a reward, which says nothing of the others.
            self._paced_at, self._paced_with = now, done
        if self.console.is_terminal or now - self._said_at < EVERY_S or done == self._begun_with or done >= of:
            return
        self._said_at = now
        left = f", about {(now - self._paced_at) / (done - self._paced_with) * (of - done):.0f} s left" if paced else ""
        self.console.print(f"{name}: {done} of {of} evaluations{left}", markup=False, highlight=False, soft_wrap=True)
