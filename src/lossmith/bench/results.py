"""What a benchmark found, as JSON: raw seconds, machine, versions; no path of the machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from lossmith.bench.cases import Case
from lossmith.bench.contestants import Contestant
from lossmith.bench.machine import commit, machine, versions
from lossmith.bench.run import Benchmark, Row
from lossmith.bench.timing import Ratio, paired_ratio
from lossmith.errors import EvidenceError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Results:
    """Rows, and where they come from."""

    command: str
    date: str
    commit: str | None
    complete: bool
    """False where the benchmark was stopped."""
    machine: dict[str, str | int]
    versions: dict[str, str | None]
    rows: list[Row]

    def cases(self) -> list[Case]:
        """Each case once, in order."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def of(self, case: Case) -> list[Row]:
        """The rows of one case."""
        return [row for row in self.rows if row.case == case]

    def find(self, case: Case, contestant: Contestant) -> Row | None:
        """The row of one contestant on one case."""
        return next((row for row in self.of(case) if row.contestant == contestant), None)

    def baseline(self, case: Case) -> Row | None:
        """The row that ratios are against: the first measured competitor, or else the first measured row."""
        timed = [row for row in self.of(case) if row.seconds]
        return next((row for row in timed if not row.contestant.own), timed[0] if timed else None)

    def to_json(self) -> str:
        """The whole as JSON."""
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The results that `to_json` wrote.

        Raises:
            EvidenceError: For anything else.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            schema = values.pop("schema")
            if schema != SCHEMA:
                raise EvidenceError(f"These results have schema {schema}; this version reads schema {SCHEMA}.")
            rows = [
                Row(**row | {"case": Case(**row["case"]), "contestant": Contestant(**row["contestant"])})
                for row in values.pop("rows")
            ]
            return cls(rows=rows, **values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvidenceError(f"These are no results of a benchmark: {error}.") from error


def time_ratio(row: Row | None, other: Row | None) -> Ratio | None:
    """How long one row takes for each second of the other."""
    return None if row is None or other is None else paired_ratio(row.seconds, other.seconds)


def memory_ratio(row: Row | None, other: Row | None) -> float | None:
    """Peak memory beyond inputs and gradients of one row as a multiple of the other's."""
    if row is None or other is None or row.peak_bytes is None or not other.peak_bytes:
        return None
    return row.peak_bytes / other.peak_bytes


def results_of(benchmark: Benchmark, *, command: str) -> Results:
    """What a benchmark found so far, here and now."""
    return Results(
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=commit(),
        complete=benchmark.complete,
        machine=machine(benchmark.rows[0].case.device),
        versions=versions(),
        rows=benchmark.rows,
    )


def provenance_lines(results: Results) -> Sequence[str]:
    """Machine and versions as two sentences."""
    facts = results.machine
    name = f"{facts['card']} on {facts['processor']}" if "card" in facts else facts["processor"]
    installed = [f"{name} {version}" for name, version in results.versions.items() if version]
    missing = [name for name, version in results.versions.items() if not version]
    return (
        f"{name} ({facts['instructions']}), {facts['cores']} cores, {facts['threads']} threads, {facts['system']}; "
        f"{results.date}.",
        ", ".join(installed) + (f"; not installed: {', '.join(missing)}" if missing else "") + ".",
    )
