"""The gate of a real run: compiler, checks and fingerprints, with the programs of the run as known ones."""

from typing import Any

from lossmith.discovery.checks import Memory, Verdict, check
from lossmith.discovery.draws import draw_seed
from lossmith.discovery.program import Program
from lossmith.discovery.proposers.base import ProgramLike, Proposal


class LibraryGate:
    """Admits what passes `lossmith.discovery.check` and is none of the run's programs, also at secret probe points."""

    def __init__(self, family: str = "preference", *, run_seed: int, against: str = "control", direction: bool = True):
        """Begin with no program known.

        Args:
            family: `preference`, `token` or `metric`.
            run_seed: Draws the secret probe points, which no proposer can aim at.
            against: As in `check`.
            direction: As in `check`.
        """
        self.family = family
        self._against, self._direction = against, direction
        self._memory = Memory(family, secret_seed=draw_seed(run_seed, 0, "probes"))

    def check(self, proposal: Proposal) -> Verdict:
        """The verdict of `lossmith.discovery.check`."""
        return check(
            proposal.source if proposal.program is None else proposal.program,
            self.family,
            signature=proposal.signature,
            against=self._against,
            direction=self._direction,
            memory=self._memory,
        )

    def remember(self, name: str, program: ProgramLike) -> None:
        """Take a program among those of which others are duplicates."""
        assert isinstance(program, Program)
        self._memory.add(name, program)

    def from_json(self, payload: Any) -> Program:
        """The program that `to_json` wrote."""
        return Program.from_json(payload)
