"""A proposer that says what it was told to say: for tests, canaries and hand-written lists."""

from collections.abc import Sequence
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal


class ScriptedProposer:
    """Hands out a fixed list in order, then nothing."""

    def __init__(self, proposals: Sequence[Proposal], *, name: str = "scripted", cost: Cost = ZERO):
        self.name = name
        self.heard: list[Event] = []
        self._proposals = tuple(proposals)
        self._cost = cost
        self._next = 0

    def expected_cost(self, n: int) -> Cost:
        """The same for every call."""
        return self._cost

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` of the list."""
        chosen = self._proposals[self._next : self._next + n]
        self._next += len(chosen)
        return Batch(proposals=chosen, cost=self._cost)

    def observe(self, events: Sequence[Event]) -> None:
        """Keep them for the test to read."""
        self.heard.extend(events)

    def state(self) -> dict[str, Any]:
        """How far the list is used."""
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where that state was."""
        self._next = int(state["next"])
