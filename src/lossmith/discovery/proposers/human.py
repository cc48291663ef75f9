"""A folder where people put candidates: files of Python that are read, compiled and raced, never run.

Each content is proposed once under each signature. A file that is added or changed while the run goes on is taken at
the next call. What was not proposed, and what could not be read, is said when a session ends.
"""

import hashlib
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import MAX_BYTES
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal
from lossmith.errors import ConfigurationError, LossmithWarning

DISCOPOP_SUFFIX = ".discopop.py"
"""Ending of the files that use the names of Lu et al. 2024 and `self.beta`."""

MOST_NAMED = 8
"""Files that a sentence names."""


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
        if not self._paths():
            warnings.warn(
                f"`{self.folder}` holds no .py file yet: those that are put there while the run goes on are taken.",
                LossmithWarning,
                stacklevel=2,
            )
        self._proposed: set[str] = set()

    def expected_cost(self, n: int) -> Cost:
        """Nothing: people are not paid here."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` contents that were not proposed yet."""
        found: list[Proposal] = []
        for path, content, mark in self._waiting():
            if len(found) == n:
                break
            self._proposed.add(mark)
            signature = "discopop" if path.name.endswith(DISCOPOP_SUFFIX) else "native"
            # What is no UTF-8 becomes a character that the compiler refuses as non-ASCII.
            source = content.decode("utf-8", "replace")
            found.append(Proposal(proposer=self.name, source=source, signature=signature, name=path.name[:-3]))
        return Batch(proposals=tuple(found))

    def waiting(self) -> int:
        """Contents that were not proposed yet."""
        return sum(1 for _ in self._waiting())

    def untried(self) -> list[str]:
        """The files that were not proposed, and those that could not be read, with the reason."""
        sentences = []
        names = [path.name for path, _, _ in self._waiting()]
        if names:
            count = "1 file" if len(names) == 1 else f"{len(names)} files"
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            sentences.append(
                f"Not tried: {count} of `{self.folder}` ({', '.join(names[:MOST_NAMED])}{more}); what waits comes "
                "first where the run goes on, or in another run."
            )
        for path in self._paths():
            content = _content(path)
            if isinstance(content, str):
                sentences.append(f"Not tried: `{path.name}` of `{self.folder}` cannot be read: {content}.")
        return sentences

    def _waiting(self) -> Iterator[tuple[Path, bytes, str]]:
        """Path, content and digest of each file with a content that was not proposed, in order, each content once."""
        seen = set(self._proposed)
        for path in self._paths():
            content = _content(path)
            if isinstance(content, str):
                continue
            # The same text means another loss under the names of the paper.
            paper = b"discopop\0" if path.name.endswith(DISCOPOP_SUFFIX) else b""
            mark = hashlib.sha256(paper + content).hexdigest()[:32]
            if mark not in seen:
                seen.add(mark)
                yield path, content, mark

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.py"))

    def observe(self, events: Sequence[Event]) -> None:
        """People read the report."""

    def state(self) -> dict[str, Any]:
        """Digests of what was proposed."""
        return {"proposed": sorted(self._proposed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was proposed."""
        self._proposed = set(map(str, state["proposed"]))


def _content(path: Path) -> bytes | str:
    """What a file holds, cut just beyond the limit of the compiler; as text why it cannot be read."""
    try:
        # A pipe would never end, and a device may do anything.
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is no ordinary file"
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        return error.strerror or str(error)
