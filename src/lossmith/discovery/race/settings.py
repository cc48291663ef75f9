"""How a race is run: numbers only, kept with the run."""

from dataclasses import asdict, dataclass
from typing import Any

from lossmith.errors import ConfigurationError

PLAYOFF_LEGS = 2
"""Of the play-off: all that were re-tested, then the elites among them."""


@dataclass(frozen=True, kw_only=True)
class RaceSettings:
    """One race. Everything but `rounds` decides what a row says, and cannot change once a run has begun."""

    candidates: int = 24
    """Admitted candidates a round."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """New blocks a round on each rung, cheapest rung first."""
    keep: float = 1 / 3
    """Share of a rung's candidates that goes on to the next."""
    elites: int = 4
    """Best candidates so far by lower bound, re-tested in every new block."""
    challengers: int = 2
    """Best of the others by upper bound, re-tested in every new block of the last rung."""
    playoff_blocks: int = 0
    """Blocks in each leg of the play-off that elites and challengers run on the last rung when the search is over."""
    audit_share: float = 0.05
    """Chance of a rejected candidate to go on anyway, so that a rung's wrong rejections are known."""
    caution: float = 1.0
    """Posterior standard deviations below the mean at which candidates are compared."""
    finalists: int = 3
    """Elites that are confirmed."""
    confirmation_blocks: int = 12
    """Fresh blocks on each ground of the confirmation."""
    significance: float = 0.05
    """Two-sided level of the claim over all finalists together, after Holm: the wrong ones "better" are half of it."""
    rounds: int | None = None
    """Rounds of the search; None for as many as the budget allows."""
    calls: int = 4
    """Times that a proposer is asked within a round while too few candidates are admitted."""

    def __post_init__(self):
        whole = {"candidates": 1, "elites": 1, "finalists": 1, "confirmation_blocks": 5, "calls": 1}
        for name, least in whole.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"`{name}` must be >= {least}, got {getattr(self, name)}.")
        if not self.blocks or min(self.blocks) < 1:
            raise ConfigurationError(f"`blocks` must hold a number >= 1 for each rung, got {self.blocks}.")
        if not (0 < self.keep <= 1 and 0 <= self.audit_share <= 1 and 0 < self.significance < 1):
            raise ConfigurationError(
                "`keep` and `significance` must be above 0 and `audit_share` at least 0, all at most 1, "
                f"got {self.keep}, {self.significance}, {self.audit_share}."
            )
        for name in ("challengers", "playoff_blocks"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"`{name}` must be >= 0, got {getattr(self, name)}.")
        if self.caution < 0:
            raise ConfigurationError(f"`caution` must be >= 0, got {self.caution}.")
        if self.rounds is not None and self.rounds < 1:
            raise ConfigurationError(f"`rounds` must be >= 1 or None, got {self.rounds}.")

    def identity(self) -> dict[str, Any]:
        """What must not change within a run."""
        values = asdict(self)
        values["blocks"] = list(self.blocks)
        values.pop("rounds")
        return values
