"""The answer to one candidate."""

from dataclasses import dataclass
from typing import Any

from lossmith.discovery.identity import Nearest
from lossmith.discovery.program import Program


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a candidate may be trained, and why not; `str()` is one sentence."""

    accepted: bool
    category: str
    """`ok`, `duplicate-of-NAME`, or what is wrong: `syntax`, `too-large`, `non-ascii`, `signature`, `forbidden`,
    `bad-type`, `shape`, `nonfinite`, `no-grad`, `zero-grad`, `wrong-sign`, `impure`, `not-equivariant`,
    `grad-mismatch`, `usage` (of `check` itself), `internal`."""
    reason: str
    """One sentence for people; never a part of the candidate's comments."""
    line: int | None = None
    """Line of the source, where one is to blame."""
    flags: tuple[str, ...] = ()
    """Properties that forbid nothing: `batch-coupled`, `detach`, `non-monotone`, `bounded`, `known:NAME` ..."""
    nearest: Nearest | None = None
    """Closest published loss; None where there are no gradients to compare."""
    program: Program | None = None
    """The compiled candidate, also where a check refuses it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the program as its one-line formula."""
        from lossmith.discovery.program import one_line

        near = self.nearest
        return {
            "accepted": self.accepted,
            "category": self.category,
            "reason": self.reason,
            "line": self.line,
            "flags": list(self.flags),
            "nearest": None
            if near is None
            else {"name": near.name, "distance": near.distance, "loss": near.loss, "scale": near.scale},
            "formula": None if self.program is None else one_line(self.program),
            "key": None if self.program is None else self.program.key,
        }

    def __str__(self) -> str:
        place = "" if self.line is None else f" (line {self.line})"
        word = "accepted" if self.accepted else f"rejected, {self.category}{place}"
        return f"{word}: {self.reason}"
