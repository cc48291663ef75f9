"""The hostile corpus on the user's own machine: what each source gets, and that none leaves a trace."""

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from lossmith.discovery.checks import Verdict, check
from lossmith.discovery.compiler import CATEGORIES
from lossmith.discovery.program import one_line, to_latex, to_python

CORPORA = ("candidates.json", "own.json")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one source of the corpus got."""

    entry: dict[str, Any]
    verdict: Verdict
    milliseconds: float
    problems: tuple[str, ...]
    """Sentences; none where all is as it must be."""

    @property
    def name(self) -> str:
        """Id and what the source tries."""
        return f"{self.entry['id']}: {self.entry['tries']}"


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """The whole corpus."""

    outcomes: tuple[Outcome, ...]
    traces: tuple[str, ...] = field(default=())
    """What the machine shows afterwards and should not."""

    @property
    def passed(self) -> bool:
        """Whether every source got what it must and nothing was touched."""
        return not self.traces and not any(outcome.problems for outcome in self.outcomes)

    @property
    def sentences(self) -> tuple[str, ...]:
        """A summary, then every problem."""
        refused = sum(not outcome.verdict.accepted for outcome in self.outcomes)
        slowest = max(outcome.milliseconds for outcome in self.outcomes)
        wrong = [f"{outcome.name}: {text}" for outcome in self.outcomes for text in outcome.problems]
        head = (
            f"{len(self.outcomes)} candidates, {refused} refused, {len(self.outcomes) - refused} accepted; the slowest "
            f"took {slowest:.0f} ms; {len(wrong)} wrong verdicts, {len(self.traces)} traces."
        )
        return (head, *wrong, *self.traces)


def corpus() -> list[dict[str, Any]]:
    """All entries that are shipped, in the order of their files."""
    folder = files("lossmith.discovery") / "data" / "hostile"
    return [
        entry for name in CORPORA for entry in json.loads((folder / name).read_text(encoding="utf-8"))["candidates"]
    ]


def run_corpus() -> CorpusReport:
    """Check every source with a folder, a file, a port and the environment under watch."""
    # What is loaded on first use must not count as the first source's time.
    for family in ("preference", "token", "metric"):
        check("", family)
    check("def f(chosen_logps, rejected_logps): return F.softplus(rejected_logps - chosen_logps)")
    with tempfile.TemporaryDirectory(prefix="lossmith-selftest-") as place, _listening() as (port, had_visitor):
        drop, canary = Path(place) / "drop", Path(place) / "canary"
        drop.mkdir()
        canary.write_bytes(b"nobody reads this")
        os.utime(canary, ns=(10**18, 10**18))
        before = _state(drop, canary)
        outcomes = tuple(_outcome(entry, drop, canary, port) for entry in corpus())
        traces = [f"{what} changed." for what, value in _state(drop, canary).items() if before[what] != value]
        traces += ["The port had a visitor."] if had_visitor() else []
    return CorpusReport(outcomes=outcomes, traces=tuple(traces))


def _outcome(entry: dict[str, Any], drop: Path, canary: Path, port: int) -> Outcome:
    source = entry["source"].replace("DROP", str(drop)).replace("CANARY", str(canary)).replace("PORT", str(port))
    family = entry.get("family", "preference")
    start = time.process_time()
    verdict = check(source, family, signature=entry.get("signature", "native"))
    spent = 1000 * (time.process_time() - start)
    return Outcome(entry=entry, verdict=verdict, milliseconds=spent, problems=tuple(problems_of(entry, verdict)))


def problems_of(entry: dict[str, Any], verdict: Verdict) -> Iterator[str]:
    """What is not as the entry demands."""
    if not verdict.reason:
        yield "the verdict has no reason."
    if entry["static"] == "reject":
        if verdict.accepted or verdict.category not in (
            *CATEGORIES,
            *([entry["verdict"]] if "verdict" in entry else []),
        ):
            yield f"must be refused by the compiler, got {verdict.category}."
        elif "verdict" in entry and verdict.category != entry["verdict"]:
            yield f"must be refused as {entry['verdict']}, got {verdict.category}."
        return
    if verdict.program is None:
        yield f"must compile, got {verdict.category}: {verdict.reason}"
        return
    if verdict.category != entry["executed"]:
        yield f"must be {entry['executed']}, got {verdict.category}: {verdict.reason}"
    if verdict.accepted != (entry["executed"] == "ok"):
        yield f"accepted is {verdict.accepted}."
    shown = [
        to_python(verdict.program),
        to_latex(verdict.program),
        one_line(verdict.program),
        verdict.program.to_json(),
    ]
    if any("IGNORE" in text for text in (*shown, verdict.reason)):
        yield "its comments or names are shown."


def _state(drop: Path, canary: Path) -> dict[str, Any]:
    status = canary.stat()
    return {
        "The folder": sorted(path.name for path in drop.iterdir()),
        "The file": (status.st_mtime_ns, status.st_size, canary.stat().st_atime_ns),
        "The environment": dict(os.environ),
        "The working folder": os.getcwd(),
        "The number of processes": _children(),
        "The number of threads": threading.active_count(),
    }


def _children() -> int:
    """Processes that this one has started, where the system says so."""
    listing = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    try:
        return len(listing.read_text().split())
    except OSError:
        return 0


@contextmanager
def _listening() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A local port, and whether anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def had_visitor() -> bool:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield server.getsockname()[1], had_visitor
