"""Live progress of one training in the terminal."""

import time
from typing import final

from rich.console import Console
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from lossmith.report.bars import ConsoleBar

TENTHS = 10


@final
class ShareProgress(ConsoleBar):
    """A bar for the share that is done, with the time left; a line for each tenth where it is no terminal.

    Args:
        console: Where to draw.
        name: Of what is done.
    """

    def __init__(self, console: Console, name: str):
        super().__init__(console, TimeRemainingColumn(), count=False, disable=not console.is_terminal)
        self._name, self._said, self._began = name, 0, 0.0
        self._task = self._bar.add_task(escape(name), total=1.0)

    def moved(self, share: float) -> None:
        """So much is done, in [0, 1]; the first call starts the clock."""
        self._bar.update(self._task, completed=share)
        now = time.monotonic()
        if not self._began:
            self._began = now
        tenth = int(TENTHS * share + 1e-9)
        if self.console.is_terminal or tenth <= self._said:
            return
        self._said = tenth
        left = (now - self._began) * (1 - share) / share
        self.console.print(
            f"{self._name}: {share:.0%} done, about {left:.0f} s left", markup=False, highlight=False, soft_wrap=True
        )
