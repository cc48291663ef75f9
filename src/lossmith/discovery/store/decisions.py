"""Decisions and claims as rows."""

from collections.abc import Sequence

from lossmith.discovery.race.confirmation import Claim
from lossmith.discovery.race.halving import RETESTED, Decision
from lossmith.discovery.store.database import Database

_COLUMNS = ("step", "rung", "program", "kind", "rank", "lower", "mean", "sd", "blocks")


class Decisions:
    """What was decided in one run."""

    def __init__(self, database: Database):
        self._database = database

    def save(self, decisions: Sequence[Decision]) -> None:
        """Keep decisions for good."""
        with self._database.transaction() as connection:
            connection.executemany(
                f"INSERT INTO decision ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})",
                [tuple(getattr(each, column) for column in _COLUMNS) for each in decisions],
            )

    def all(self, *, step: int | None = None, rung: str | None = None) -> list[Decision]:
        """Decisions by round, rung and rank; those of a round or rung where one is named."""
        wanted = {"step": step, "rung": rung}
        named = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in named) or "1"
        rows = self._database.rows(
            f"SELECT {', '.join(_COLUMNS)} FROM decision WHERE {where} ORDER BY step, rung, kind, rank", named.values()
        )
        return [Decision(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    def elites(self, step: int) -> list[Decision]:
        """The elites after a round, best first; none before the first."""
        return [each for each in self.all(step=step) if each.kind == "elite"]

    def last_elites(self, step: int, rounds: int) -> list[Decision]:
        """The elites after the play-off of step `step`, or after the last of `rounds` rounds where there was none."""
        return self.elites(step) or self.elites(rounds - 1)

    def retested(self, step: int) -> list[Decision]:
        """Elites and challengers after a round, best first."""
        return [each for kind in RETESTED for each in self.all(step=step) if each.kind == kind]

    def save_claims(self, claims: Sequence[Claim]) -> None:
        """Keep the result of the confirmation."""
        with self._database.transaction() as connection:
            for claim in claims:
                connection.execute(
                    "INSERT INTO verdict VALUES (?, ?, ?, ?, ?)",
                    (claim.program, claim.rank, claim.p_value, claim.p_holm, claim.announced),
                )
                for result in claim.grounds:
                    found, floor = result.comparison, result.floor
                    numbers = (
                        (None, None, None, None, 0)
                        if found is None
                        else (found.difference, found.low, found.high, found.p_value, found.blocks)
                    )
                    connection.execute(
                        "INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            claim.program,
                            result.ground,
                            result.unseen,
                            *numbers,
                            None if floor is None else (floor.high - floor.low) / 2,
                        ),
                    )

    def announced(self) -> list[str]:
        """Programs that the run announces, best first."""
        return [row[0] for row in self._database.rows("SELECT program FROM verdict WHERE announced ORDER BY rank")]
