"""Propose again what another run admitted: to race it with other rungs, seeds or data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Program, ProgramError, from_json
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal
from lossmith.discovery.proposers.programs import candidate
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.errors import ConfigurationError, EvidenceError


class ReplayProposer:
    """Hands out the candidates of a run's database, in the order in which they were admitted.

    Args:
        folder: Of the other run; opened to read, once.
        elites_only: Only those that were an elite of some round.
        name: Of the arm.

    Raises:
        EvidenceError: If the folder holds no run, or one whose candidates are no programs.
        ConfigurationError: If there is nothing to replay.
    """

    def __init__(self, folder: str | Path, *, elites_only: bool = False, name: str = "replay"):
        self.name = name
        self._programs = read_candidates(folder, elites_only=elites_only)
        if not self._programs:
            raise ConfigurationError(f"The run in `{folder}` admitted no candidate: there is nothing to replay.")
        self._next = 0

    def expected_cost(self, n: int) -> Cost:
        """Nothing."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` that this run does not know; nothing after the last one."""
        found: list[Proposal] = []
        while len(found) < n and self._next < len(self._programs):
            name, program = self._programs[self._next]
            self._next += 1
            if program.family != context.family:
                raise ConfigurationError(
                    f"A run of family '{context.family}' cannot replay one of family '{program.family}': "
                    "`transplant` carries gates from one to the other."
                )
            if program.key not in context.seen:
                found.append(Proposal(proposer=self.name, program=candidate(program), name=name))
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is learnt."""

    def state(self) -> dict[str, Any]:
        """How far the other run is replayed, and the last candidate of that."""
        return {"next": self._next, "last": self._programs[self._next - 1][1].key if self._next else ""}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            EvidenceError: If the other run is not the one that was replayed so far.
        """
        place = int(state["next"])
        if place > len(self._programs) or (place and self._programs[place - 1][1].key != state["last"]):
            raise EvidenceError("The run that is replayed has changed since: finish it before it is replayed.")
        self._next = place


def read_candidates(folder: str | Path, *, elites_only: bool = False) -> list[tuple[str, Program]]:
    """Name and program of each candidate of a run, in the order of admission.

    Raises:
        EvidenceError: If the folder holds no run, or one whose candidates are no programs.
    """
    found: list[tuple[str, Program]] = []
    with Database(folder, read_only=True) as database:
        wanted = {each.program for each in Decisions(database).all() if each.kind == "elite"} if elites_only else None
        for each in Archive(database).programs():
            if each.role != "candidate" or (wanted is not None and each.key not in wanted):
                continue
            try:
                found.append((each.name, from_json(each.payload)))
            except (ProgramError, TypeError):
                raise EvidenceError(f"Candidate `{each.key}` of the run in `{folder}` is no program.") from None
    return found
