"""The gate of real runs: compiler, checks and identity behind one `check`, with the run's own secret probes."""

from typing import Any

from lossmith.discovery.checks import Memory, Verdict, check
from lossmith.discovery.draws import draw_seed
from lossmith.discovery.program import Program, from_json
from lossmith.discovery.proposers.base import ProgramLike, Proposal


class Admission:
    """See `Gate`.

    Args:
        family: `preference`, `token` or `metric`.
        seed: Of the run: a second set of probe points is drawn from it, which no candidate can be written for.
        against: `control` or `library`: which published losses a candidate may not repeat.
    """

    def __init__(self, family: str, seed: int, *, against: str = "control"):
        self.family = family
        self._against = against
        self._memory = Memory(family, secret_seed=draw_seed(seed, 0, "secret-probes") or 1)

    def check(self, proposal: Proposal) -> Verdict:
        """The verdict on a program, or on a text that is compiled and never executed."""
        given = proposal.program if proposal.program is not None else proposal.source
        return check(given, self.family, signature=proposal.signature, against=self._against, memory=self._memory)

    def remember(self, name: str, program: ProgramLike) -> None:
        """Others may be duplicates of it from now on."""
        assert isinstance(program, Program)
        self._memory.add(name, program)

    def from_json(self, payload: Any) -> Program:
        """The program of a stored row."""
        return from_json(payload)
