"""What the checks of an objective found."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of one objective."""

    name: str
    """One of `lossmith.testing.CHECKS`."""
    outcome: Outcome
    detail: str = ""
    """What was expected and what came, why it was skipped, or a remark on what passed."""

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, kw_only=True)
class ObjectiveReport:
    """All checks of one objective, in the order in which they ran; `str()` is one line per check."""

    name: str
    """Registry name of the objective."""
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that found a broken rule."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        return "\n".join([f"'{self.name}'", *(f"  {check}" for check in self.checks)])
