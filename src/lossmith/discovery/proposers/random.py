"""Fresh random programs only: what every other proposer must beat at equal cost."""

from collections.abc import Sequence
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Program, ProgramError
from lossmith.discovery.proposers.base import Batch, Context, Event
from lossmith.discovery.proposers.grammar import grammar
from lossmith.discovery.proposers.programs import Novelty, Sieve, dice_of, proposal

TRIES = 60
"""Programs that may be drawn for each that is asked for."""


class RandomProposer:
    """Draws from the typed grammar and learns nothing.

    Args:
        name: Of the arm; its draws depend on it.
        sieve: Leaves out what the checks would refuse; without one only exact duplicates are left out.
    """

    def __init__(self, *, name: str = "random", sieve: Sieve | None = None):
        self.name = name
        self._sieve = sieve

    def expected_cost(self, n: int) -> Cost:
        """Processor time only."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """`n` programs that the run does not know; fewer only where the sieve lets hardly anything through."""
        dice, words, new = dice_of(context, self.name), grammar(context.family), Novelty.of(context, self._sieve)
        found = []
        for _ in range(n * TRIES):
            if len(found) == n:
                break
            try:
                program = Program(context.family, words.ramped(dice))
            except ProgramError:
                continue
            if new.admit(program):
                found.append(proposal(self.name, program))
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is learnt."""

    def state(self) -> dict[str, Any]:
        """Nothing to keep: draws come from their names."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
