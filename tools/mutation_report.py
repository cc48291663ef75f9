"""What came of the mutations: a summary for the terminal and a page."""

import subprocess
from collections import Counter
from dataclasses import dataclass
from datetime import date

from mutations import Mutation


@dataclass(frozen=True)
class Outcome:
    """One mutation and what the tests made of it."""

    mutation: Mutation
    how: str
    """`killed`, `timeout`, `crash` or `survived`."""
    family: str
    reason: str
    """Why it changes nothing, where it is listed as equivalent."""
    by: str | None = None
    """The test that failed first."""

    @property
    def function(self) -> str:
        """Name of the changed function."""
        return self.mutation.function

    @property
    def place(self) -> str:
        """File, line and function."""
        return f"{self.mutation.file}:{self.mutation.line} {self.mutation.function}"


class Summary:
    """Counts over all outcomes."""

    def __init__(self, outcomes: list[Outcome], seconds: float, commit: str = ""):
        self.outcomes = sorted(outcomes, key=lambda one: (one.family, one.mutation.file, one.mutation.line))
        self.seconds = seconds
        self.commit = commit
        self.planted = len(outcomes)
        self.survivors = [one for one in self.outcomes if one.how == "survived"]
        self.wrongly_listed = [one for one in self.outcomes if one.how != "survived" and one.reason]

    @property
    def share(self) -> float:
        """Killed among all that were planted, the equivalent ones included."""
        return 1 - len(self.survivors) / self.planted if self.planted else 0.0

    @property
    def share_of_real(self) -> float:
        """Killed among those that are not listed as equivalent."""
        real = self.planted - sum(bool(one.reason) for one in self.survivors)
        return 1 - sum(not one.reason for one in self.survivors) / real if real else 0.0

    def rows(self, by: str) -> list[tuple[str, int, int, int, int]]:
        """Per family or kind: planted, killed, equivalent survivors, other survivors; the total last."""
        groups: dict[str, list[Outcome]] = {}
        for one in self.outcomes:
            groups.setdefault(one.family if by == "family" else one.mutation.kind, []).append(one)
        found = [(name, *_counts(members)) for name, members in sorted(groups.items())]
        return [*found, ("all", *_counts(self.outcomes))]

    def text(self) -> str:
        """A table, the survivors and the two shares, for a terminal."""
        lines = [f"{'family':<12} planted  killed  equivalent  survived"]
        lines += [f"{n:<12} {a:>7} {b:>7} {c:>11} {d:>9}" for n, a, b, c, d in self.rows("family")]
        for one in self.survivors:
            lines.append(f"{'equivalent' if one.reason else 'SURVIVED'}: {one.place}: {one.mutation.text}")
        for one in self.wrongly_listed:
            lines.append(f"listed as equivalent, but {one.how} by {one.by}: {one.place}: {one.mutation.text}")
        lines.append(
            f"Killed {self.share:.2%} of {self.planted} ({self.share_of_real:.2%} of those that change a result) in "
            f"{self.seconds:.0f} s."
        )
        return "\n".join(lines)

    def markdown(self, command: str) -> str:
        """The page of `docs/`."""
        ways = Counter(one.how for one in self.outcomes)
        lines = [
            "# Mutation check of the objectives",
            "",
            "Generated; do not edit. `tools/mutate.py` plants one small mistake at a time in an objective or a helper",
            "of one (a flipped sign, a dropped term, factor, clamp or `.detach()`, a constant or default 1% off,",
            "swapped bounds, an inverted comparison) and runs the tests that reach the function until one fails.",
            "Error texts and the checks of hyper-parameters are not mutated. Left out of the runs: tests that draw at",
            "random (hypothesis) and tests that compile.",
            "",
            f"- Command: `{command}`",
            f"- Date: {date.today().isoformat()}, commit {self.commit}, {self.seconds / 60:.0f} minutes",
            f"- Killed: **{self.share:.2%}** of {self.planted}; **{self.share_of_real:.2%}** of those that are not",
            f"  listed as equivalent. {ways['timeout']} of the killed ran out of time, {ways['crash']} crashed.",
            "",
        ]
        for by in ("family", "kind"):
            lines += [f"| {by} | planted | killed | equivalent | other survivors |", "|---|---:|---:|---:|---:|"]
            lines += [f"| {' | '.join(map(str, row))} |" for row in self.rows(by)]
            lines.append("")
        lines += ["## Survivors", ""]
        if not self.survivors:
            lines.append("None.")
        else:
            lines += ["| place | mutation | reason |", "|---|---|---|"]
        for one in self.survivors:
            text = one.mutation.text.replace("|", "\\|")
            lines.append(f"| {one.place} | `{text}` | {one.reason or 'not seen by any test'} |")
        return "\n".join(lines) + "\n"


def current_commit() -> str:
    """The commit of the tree, and whether it has been edited since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    edited = git("status", "--porcelain", "--", "src/lossmith/objectives", "src/lossmith/_numerics.py", "tests")
    return git("rev-parse", "--short", "HEAD") + (" with edits" if edited else "")


def _counts(outcomes: list[Outcome]) -> tuple[int, int, int, int]:
    survived = [one for one in outcomes if one.how == "survived"]
    equivalent = sum(bool(one.reason) for one in survived)
    return len(outcomes), len(outcomes) - len(survived), equivalent, len(survived) - equivalent
