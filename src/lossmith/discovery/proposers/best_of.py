"""Best of N: independent samples of a model or of the grammar, without any feedback; the race picks the best.

What a search gains over this arm at equal cost is what its feedback is worth.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposer


class BestOfProposer:
    """Asks another proposer as if every call were the first one of a run.

    Args:
        inner: Its own object, with a name of its own: draws are by name, so one that is shared with another arm would
            repeat that arm's proposals.
        name: Of this arm.
    """

    def __init__(self, inner: Proposer, *, name: str = "best-of"):
        self.name = name
        self._inner = inner

    def expected_cost(self, n: int) -> Cost:
        """That of the inner proposer."""
        return self._inner.expected_cost(n)

    def propose(self, context: Context, n: int) -> Batch:
        """`n` samples: neither the elites nor the failures nor what the run knows is told."""
        blind = replace(context, elites=(), failures={}, seen=frozenset())
        batch = self._inner.propose(blind, n)
        own = tuple(replace(each, proposer=self.name, parents=()) for each in batch.proposals)
        return Batch(proposals=own, cost=batch.cost)

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is passed on."""

    def state(self) -> dict[str, Any]:
        """The inner proposer's."""
        return {"inner": self._inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inner proposer's."""
        self._inner.restore(state["inner"])
