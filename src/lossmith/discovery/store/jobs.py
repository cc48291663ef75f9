"""Evaluations to be done: queued once, leased with a heartbeat, and finished by a row that cannot be doubled."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.discovery.rungs.base import Block, Metrics, Split, Status
from lossmith.discovery.store.database import Database, now, storable, to_text

LEASE_SECONDS = 60.0
"""A lease that is not renewed for so long is free again."""
_KEY = "program = ? AND rung = ? AND split = ? AND block = ? AND seed = ? AND environment = ?"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation: a program on a rung in a block."""

    program: str
    rung: str
    environment: str
    block: Block

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes the evaluation unique: program, rung, split, block, seed, environment."""
        block = self.block
        return (self.program, self.rung, block.split, block.index, block.training_seed, self.environment)

    @property
    def entry(self) -> str:
        """Its name in the ledger."""
        return "job/" + "/".join(str(part) for part in self.key[1:5]) + f"/{self.program}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a job came to."""

    program: str
    block: int
    twin: bool
    status: Status
    fitness: float | None


class Jobs:
    """The queue of one run."""

    def __init__(self, database: Database):
        self._database = database

    def enqueue(self, step: int, jobs: Sequence[Job]) -> None:
        """Queue what is neither queued nor done; submitting again is harmless."""
        with self._database.transaction() as connection:
            for position, job in enumerate(jobs):
                connection.execute(
                    "INSERT INTO job (program, rung, split, block, seed, environment, step, position, twin, state) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued') ON CONFLICT DO NOTHING",
                    (*job.key, step, position, job.block.twin),
                )

    def unfinished(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that have no evaluation yet, in the order given."""
        return [job for job in jobs if not self._database.rows(f"SELECT 1 FROM evaluation WHERE {_KEY}", job.key)]

    def lease(self, job: Job) -> bool:
        """Take the right to do a job; False where another owner holds it or it is done."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "UPDATE job SET state = 'leased', owner = ?, leased_until = ?, attempts = attempts + 1 "
                f"WHERE {_KEY} AND (state = 'queued' OR (state = 'leased' AND leased_until < ?))",
                (self._database.owner, time.time() + LEASE_SECONDS, *job.key, time.time()),
            )
        return cursor.rowcount == 1

    def heartbeat(self, jobs: Iterable[Job]) -> None:
        """Renew the leases of jobs that are being done, and the time of the session."""
        with self._database.transaction() as connection:
            for job in jobs:
                connection.execute(
                    f"UPDATE job SET leased_until = ? WHERE {_KEY} AND owner = ? AND state = 'leased'",
                    (time.time() + LEASE_SECONDS, *job.key, self._database.owner),
                )
            self._database.touch()

    def free_lost(self) -> int:
        """Queue again what earlier sessions had leased: whoever holds the database's lock knows that they are gone."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "UPDATE job SET state = 'queued', owner = NULL, leased_until = NULL "
                "WHERE state = 'leased' AND owner != ?",
                (self._database.owner,),
            )
        return cursor.rowcount

    def finish(self, job: Job, status: Status, metrics: Metrics | None, *, error: str | None, seconds: float) -> None:
        """Keep an evaluation for good; where it is there already, the first one stays."""
        device_seconds = seconds if metrics is None or metrics.device_seconds is None else metrics.device_seconds
        fitness = None if metrics is None else float(metrics.fitness)
        values = to_text({} if metrics is None else dict(metrics.values))
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO evaluation (program, rung, split, block, seed, environment, twin, status, fitness, "
                "metrics, error, device_seconds, wall_seconds, finished_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*job.key, job.block.twin, status, fitness, values, storable(error), device_seconds, seconds, now()),
            )
            connection.execute(
                f"UPDATE job SET state = 'done', owner = NULL, leased_until = NULL WHERE {_KEY}", job.key
            )

    def give_back(self, job: Job, error: str | None = None) -> int:
        """Queue a leased job again and return how often it failed by the machine's fault, this time included."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE job SET state = 'queued', owner = NULL, leased_until = NULL, failures = failures + ?, "
                f"last_error = COALESCE(?, last_error) WHERE {_KEY} AND state = 'leased'",
                (error is not None, storable(error), *job.key),
            )
            row = connection.execute(f"SELECT failures FROM job WHERE {_KEY}", job.key).fetchone()
        return 0 if row is None else int(row[0])

    def abandon(self, step: int) -> int:
        """Take what is still queued of a round out of the queue, and return how many of its jobs are done."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM job WHERE step = ? AND state = 'queued'", (step,))
            row = connection.execute("SELECT COUNT(*) FROM job WHERE step = ? AND state = 'done'", (step,)).fetchone()
        return int(row[0])

    def places(self) -> list[tuple[str, str, Split, int, int, bool]]:
        """Program, rung, split, block, seed and twin of every evaluation."""
        rows = self._database.rows(
            "SELECT program, rung, split, block, seed, twin FROM evaluation ORDER BY rung, split, block, program, seed"
        )
        return [(program, rung, split, block, seed, bool(twin)) for program, rung, split, block, seed, twin in rows]

    def evaluations(
        self, rung: str, environment: str, split: Split, *, before: int | None = None, left_out: range = range(0)
    ) -> list[Evaluation]:
        """All evaluations on a rung, by block; of blocks before `before` where it is given, and not of `left_out`."""
        rows = self._database.rows(
            "SELECT program, block, twin, status, fitness FROM evaluation WHERE rung = ? AND environment = ? "
            "AND split = ? AND block < ? AND NOT (block >= ? AND block < ?) ORDER BY block, program, twin",
            (rung, environment, split, 2**62 if before is None else before, left_out.start, left_out.stop),
        )
        return [
            Evaluation(program=program, block=block, twin=bool(twin), status=status, fitness=fitness)
            for program, block, twin, status, fitness in rows
        ]
