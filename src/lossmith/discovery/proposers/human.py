"""A folder where people put candidates: files of Python that are read, compiled and raced, never run.

Each content is proposed once. A file that is added or changed while the run goes on is taken at the next call.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import MAX_BYTES
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal
from lossmith.errors import ConfigurationError

DISCOPOP_SUFFIX = ".discopop.py"
"""Ending of the files that use the names of Lu et al. 2024 and `self.beta`."""


class HumanProposer:
    """Proposes the `.py` files of a folder, in the order of their names.

    Args:
        folder: Where the files are; nothing in it is written, moved or run.
        name: Of the arm.

    Raises:
        ConfigurationError: If there is no such folder.
    """

    def __init__(self, folder: str | Path, *, name: str = "human"):
        self.name, self.folder = name, Path(folder)
        if not self.folder.is_dir():
            raise ConfigurationError(f"`{self.folder}` must be a folder with candidates in .py files.")
        self._proposed: set[str] = set()

    def expected_cost(self, n: int) -> Cost:
        """Nothing: people are not paid here."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` contents that were not proposed yet."""
        found: list[Proposal] = []
        for path in sorted(self.folder.glob("*.py")):
            if len(found) == n:
                break
            content = _content(path)
            if content is None:
                continue
            mark = hashlib.sha256(content).hexdigest()[:32]
            if mark in self._proposed:
                continue
            self._proposed.add(mark)
            signature = "discopop" if path.name.endswith(DISCOPOP_SUFFIX) else "native"
            # What is no UTF-8 becomes a character that the compiler refuses as non-ASCII.
            source = content.decode("utf-8", "replace")
            found.append(Proposal(proposer=self.name, source=source, signature=signature, name=path.name[:-3]))
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """People read the report."""

    def state(self) -> dict[str, Any]:
        """Digests of what was proposed."""
        return {"proposed": sorted(self._proposed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was proposed."""
        self._proposed = set(map(str, state["proposed"]))


def _content(path: Path) -> bytes | None:
    """What a file holds, cut just beyond the limit of the compiler; None where it is no file or cannot be read."""
    try:
        # A pipe would never end, and a device may do anything.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        return None
