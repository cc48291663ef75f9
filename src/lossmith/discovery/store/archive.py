"""What a run knows of its programs, proposals, rounds, decisions and claims."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.store.database import Database, storable, to_text


@dataclass(frozen=True, kw_only=True)
class StoredProgram:
    """One program of the run."""

    key: str
    role: str
    """`control`, `canary` or `candidate`."""
    name: str
    proposer: str
    step: int
    call: int
    position: int
    payload: Any
    """What `to_json` returned."""


@dataclass(frozen=True, kw_only=True)
class StoredProposal:
    """One proposal and its verdict."""

    step: int
    call: int
    position: int
    proposer: str
    kind: str
    """`admitted`, `duplicate` or `rejected`."""
    category: str
    reason: str = ""
    line: int | None = None
    key: str | None = None
    name: str = ""
    note: str = ""
    source: str | None = None
    parents: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    nearest: str | None = None
    distance: float | None = None


class Archive:
    """Reads and writes everything but jobs and money."""

    def __init__(self, database: Database):
        self._database = database

    def add_program(self, program: StoredProgram) -> None:
        """Keep a program; one that is known stays as it is."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO program VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    program.key,
                    program.role,
                    storable(program.name, 200),
                    storable(program.proposer, 200),
                    program.step,
                    program.call,
                    program.position,
                    to_text(program.payload),
                ),
            )

    def programs(self) -> list[StoredProgram]:
        """All programs in the order in which they came."""
        rows = self._database.rows(
            "SELECT key, role, name, proposer, step, call, position, payload FROM program "
            "ORDER BY step, call, position, key"
        )
        names = ("key", "role", "name", "proposer", "step", "call", "position")
        return [StoredProgram(**dict(zip(names, row[:-1], strict=True)), payload=json.loads(row[-1])) for row in rows]

    def save_call(
        self,
        step: int,
        call: int,
        *,
        asked: int,
        proposals: Sequence[StoredProposal],
        cost: Cost,
        state: dict[str, Any],
    ) -> None:
        """Keep the answer to one call of `propose` with all verdicts, and the proposer's state after it."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO call VALUES (?, ?, ?, ?, ?, ?)",
                (step, call, asked, len(proposals), to_text(cost.to_dict()), to_text(state)),
            )
            for each in proposals:
                connection.execute(
                    "INSERT INTO proposal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        each.step,
                        each.call,
                        each.position,
                        storable(each.proposer, 200),
                        each.kind,
                        storable(each.category, 200),
                        storable(each.reason, 2000),
                        each.line,
                        each.key,
                        storable(each.name, 200),
                        storable(each.note, 4000),
                        storable(each.source),
                        to_text(list(each.parents)),
                        to_text(list(each.flags)),
                        storable(each.nearest, 200),
                        each.distance,
                    ),
                )

    def proposals(self, step: int | None = None) -> list[StoredProposal]:
        """All proposals, or those of one round, in order."""
        where, values = ("", ()) if step is None else ("WHERE step = ?", (step,))
        names = (
            "step, call, position, proposer, kind, category, reason, line, key, name, note, source, parents, flags, "
            "nearest, distance"
        )
        rows = self._database.rows(f"SELECT {names} FROM proposal {where} ORDER BY step, call, position", values)
        found = []
        for row in rows:
            fields = dict(zip(names.split(", "), row, strict=True))
            fields |= {name: tuple(json.loads(fields[name])) for name in ("parents", "flags")}
            found.append(StoredProposal(**fields))
        return found

    def calls(self, step: int) -> list[tuple[int, Cost]]:
        """Number of proposals and cost of each call of a round."""
        rows = self._database.rows("SELECT returned, cost FROM call WHERE step = ? ORDER BY call", (step,))
        return [(returned, Cost(**json.loads(cost))) for returned, cost in rows]

    def failures(self) -> dict[str, int]:
        """Category of rejection -> how often it came."""
        rows = self._database.rows(
            "SELECT category, COUNT(*) FROM proposal WHERE kind = 'rejected' GROUP BY category ORDER BY category"
        )
        return dict(rows)

    def set_stage(self, step: int, name: str, detail: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        """Note that a part of a round is done."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO stage VALUES (?, ?, ?, ?)",
                (step, name, to_text(detail), None if state is None else to_text(state)),
            )

    def stage(self, step: int, name: str) -> dict[str, Any] | None:
        """What was noted of a part of a round; None where it is not done."""
        rows = self._database.rows("SELECT detail FROM stage WHERE step = ? AND name = ?", (step, name))
        return json.loads(rows[0][0]) if rows else None

    def find_stage(self, name: str) -> tuple[int, dict[str, Any]] | None:
        """The last round that has a stage, and what was noted."""
        rows = self._database.rows("SELECT step, detail FROM stage WHERE name = ? ORDER BY step DESC LIMIT 1", (name,))
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def last_state(self) -> dict[str, Any] | None:
        """The newest state of the proposer: after the last call, or after it was told what came of a round."""
        rows = self._database.rows(
            # A round is observed after all of its calls.
            "SELECT state FROM (SELECT step, call AS place, state FROM call UNION ALL "
            "SELECT step, 1000000000, state FROM stage WHERE state IS NOT NULL) ORDER BY step DESC, place DESC LIMIT 1"
        )
        return json.loads(rows[0][0]) if rows else None
