"""What several proposers share: dice from the run's draws, programs among what they are told, a bounded memory."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from lossmith.discovery.program import Program, ProgramError, from_json, to_json
from lossmith.discovery.proposers.base import Context, ProgramLike, Proposal, Standing
from lossmith.errors import EvidenceError

Sieve = Callable[[Program], str | None]
"""A name for what a program does, equal for programs that do the same; None where its checks would refuse it."""
MAX_SIZE = 80
"""Nodes of a program that a proposer builds, written out; the margin of log-ratios alone has seven."""


def dice_of(context: Context, purpose: str) -> random.Random:
    """Dice for thousands of cheap draws, seeded by one draw of the run: the same again when the call is repeated."""
    return random.Random(int(context.draw(purpose).integers(2**63)))


def to_program(value: object, family: str) -> Program | None:
    """The value where it is a program of that family: a run may hold others, such as simulated ones."""
    return value if isinstance(value, Program) and value.family == family else None


def programs_of(standings: Iterable[Standing], family: str) -> list[Program]:
    """The programs of some standings, in their order."""
    found = (to_program(each.program, family) for each in standings)
    return [program for program in found if program is not None]


def stored(program: Program) -> str:
    """The program as text for a state."""
    return to_json(program)


def read_stored(text: object, family: str) -> Program:
    """The program of a state.

    Raises:
        EvidenceError: If it is none: the state is of something else.
    """
    try:
        program = from_json(text) if isinstance(text, str) else None
    except ProgramError:
        program = None
    if program is None or program.family != family:
        raise EvidenceError("The stored state of a proposer holds no program of this family: it is of another run.")
    return program


@dataclass
class Novelty:
    """Says once of each program whether it is new: by exact identity, then by what the sieve says that it does."""

    seen: set[str]
    """Keys that are known."""
    behaviours: set[str]
    """Names of the sieve that are known."""
    sieve: Sieve | None = None

    @classmethod
    def of(cls, context: Context, sieve: Sieve | None = None, known: Iterable[Program] = ()) -> "Novelty":
        """What the run knows; what `known` programs do counts as known too."""
        found = cls(set(context.seen), set(), sieve)
        for program in known:
            found.seen.add(program.key)
            name = None if sieve is None else sieve(program)
            if name is not None:
                found.behaviours.add(name)
        return found

    def admit(self, program: Program) -> bool:
        """Whether it is new; it is known from now on."""
        if program.root.size > MAX_SIZE or program.key in self.seen:
            return False
        self.seen.add(program.key)
        if self.sieve is None:
            return True
        name = self.sieve(program)
        if name is None or name in self.behaviours:
            return False
        self.behaviours.add(name)
        return True


def proposal(proposer: str, program: Program, parents: Iterable[Program] = (), *, note: str = "") -> Proposal:
    """A program as a proposal."""
    keys = tuple(dict.fromkeys(parent.key for parent in parents))
    return Proposal(proposer=proposer, program=candidate(program), parents=keys, note=note)


def candidate(program: Program) -> ProgramLike:
    """The program as the engine sees it; its key is computed when it is first asked for, which the protocol forbids."""
    return cast(ProgramLike, program)
