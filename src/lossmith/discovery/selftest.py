"""The hostile corpus on the user's own machine: what each source gets, and that none leaves a trace."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from lossmith.discovery.checks import Verdict, check
from lossmith.discovery.compiler import CATEGORIES
from lossmith.discovery.program import one_line, to_latex, to_python
from lossmith.discovery.selftest_watch import Place, baited, listening

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
    """What a source touched and should not have, a sentence each."""

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
            f"{len(self.outcomes)} candidates, {refused} refused, {len(self.outcomes) - refused} accepted; "
            f"{len(wrong)} wrong verdicts, {len(self.traces)} traces. The slowest took {slowest:.0f} ms of processor "
            "time, which is told and not judged: machines differ."
        )
        return (head, *wrong, *self.traces)


def corpus() -> list[dict[str, Any]]:
    """All entries that are shipped, in the order of their files."""
    folder = files("lossmith.discovery") / "data" / "hostile"
    return [
        entry for name in CORPORA for entry in json.loads((folder / name).read_text(encoding="utf-8"))["candidates"]
    ]


def run_corpus() -> CorpusReport:
    """Check every source, each under the eyes of `selftest_watch`."""
    # What is loaded on first use must not count as the first source's time.
    for family in ("preference", "token", "metric"):
        check("", family)
    check("def f(chosen_logps, rejected_logps): return F.softplus(rejected_logps - chosen_logps)")
    outcomes, traces = [], []
    with tempfile.TemporaryDirectory(prefix="lossmith-selftest-") as folder, baited(Path(folder)) as place:
        for entry in corpus():
            before = place.state()
            with listening(place.canary) as events:
                outcome = _outcome(entry, place)
            changed = [f"{what} changed" for what, value in place.state().items() if before[what] != value]
            changed += ["the port had a visitor"] if place.had_visitor() else []
            changed += ["the secret is in its verdict"] if place.secret in _told(outcome.verdict) else []
            outcomes.append(outcome)
            traces += [f"{outcome.name}: {what}." for what in (*changed, *events)]
    return CorpusReport(outcomes=tuple(outcomes), traces=tuple(traces))


def _told(verdict: Verdict) -> str:
    """All that anybody is shown of a candidate."""
    program = "" if verdict.program is None else verdict.program.to_json()
    return json.dumps([verdict.to_dict(), program])


def _outcome(entry: dict[str, Any], place: Place) -> Outcome:
    bait = {"DROP": place.drop, "CANARY": place.canary, "PORT": place.port}
    source = entry["source"]
    for word, thing in bait.items():
        source = source.replace(word, str(thing))
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
