"""The evidence store: every run of a study in one SQLite file, and a readable copy of each beside it.

The database is the truth. A run is in it whole or not at all; `result.json` is written after the commit and can always
be written again.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from lossmith.errors import EvidenceError
from lossmith.evidence.claims import RunClaim, set_up_alone
from lossmith.evidence.folders import cannot_write, run_slug, write_atomically
from lossmith.evidence.records import RunRecord
from lossmith.evidence.serialisation import (
    differing_settings,
    fingerprint,
    readable,
    record_from_json,
    record_to_json,
    settings_from_json,
    settings_to_json,
)

SCHEMA_VERSION = 1
"""`PRAGMA user_version` of the stores that this code reads and writes."""

STORE_FILE = "evidence.sqlite"
_BUSY_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE study (
    id INTEGER PRIMARY KEY CHECK (id = 1), fingerprint TEXT NOT NULL, identity TEXT NOT NULL, config TEXT NOT NULL
);
CREATE TABLE run (
    loss TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT NOT NULL CHECK (status IN ('finished', 'failed')),
    accuracy REAL, train_seconds REAL NOT NULL, error TEXT, record TEXT NOT NULL, PRIMARY KEY (loss, seed)
);
CREATE TABLE attempt (
    loss TEXT NOT NULL, seed INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (loss, seed)
);
"""


class EvidenceStore:
    """The runs of one study in one folder; one object per thread, any number of processes."""

    def __init__(self, folder: str | Path, *, create: bool = True):
        """Open `folder/evidence.sqlite`.

        Args:
            folder: Results folder.
            create: Make the folder and an empty store where there is none; False to read what others made.

        Raises:
            EvidenceError: If there is no store, it cannot be read or written, or another version made it.
        """
        self.folder = Path(folder)
        self.path = self.folder / STORE_FILE
        if not create and not self.path.is_file():
            raise EvidenceError(f"`{self.folder}` holds no study: there is no `{self.path.name}` in it.")
        lock = self.folder / "locks" / "store.lock"
        with set_up_alone(self.folder, lock=lock, timeout_s=_BUSY_TIMEOUT_S), self._explained():
            self._database = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> "EvidenceStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; nothing waits to be written."""
        self._database.close()

    def open_study(self, *, identity: dict[str, Any], config: dict[str, Any]) -> None:
        """Say which study this folder is for: write it the first time, agree with it ever after.

        Args:
            identity: Settings that every run of the folder must share.
            config: All settings. Those outside `identity`, such as the list of losses, may change, and the last ones
                are kept.

        Raises:
            EvidenceError: If the folder holds a study with another identity; names what differs.
        """
        mark, stored, everything = fingerprint(identity), settings_to_json(identity), settings_to_json(config)
        with self._transaction() as database:
            row = database.execute("SELECT fingerprint, identity FROM study").fetchone()
            if row is None:
                database.execute("INSERT INTO study VALUES (1, ?, ?, ?)", (mark, stored, everything))
            elif row[0] == mark:
                database.execute("UPDATE study SET config = ?", (everything,))
            else:
                different = differing_settings(settings_from_json(row[1]), settings_from_json(stored))
                raise EvidenceError(
                    f"`{self.folder}` holds a study with other settings ({'; '.join(different)}): "
                    "choose another --out, or the same settings."
                )

    def study(self) -> dict[str, Any]:
        """The settings that `open_study` last kept.

        Raises:
            EvidenceError: If no study was opened in this folder.
        """
        with self._explained():
            row = self._database.execute("SELECT config FROM study").fetchone()
        if row is None:
            raise EvidenceError(f"`{self.folder}` holds no study yet.")
        return settings_from_json(row[0])

    def begin(self, loss: str, seed: int) -> int:
        """Count one more attempt at a run and return its number, from 1.

        Raises:
            EvidenceError: If the run is done.
        """
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM run WHERE loss = ? AND seed = ?", (loss, seed)).fetchone():
                raise self._already_done(loss, seed)
            database.execute(
                "INSERT INTO attempt VALUES (?, ?, 1) ON CONFLICT (loss, seed) DO UPDATE SET count = count + 1",
                (loss, seed),
            )
            row = database.execute("SELECT count FROM attempt WHERE loss = ? AND seed = ?", (loss, seed)).fetchone()
        return row[0]

    def finish(self, record: RunRecord) -> None:
        """Keep a finished or failed run, for good, and then write its `result.json`.

        Raises:
            EvidenceError: If the run is already there, or cannot be written.
        """
        text = record_to_json(record)
        values = (record.metrics.get("accuracy"), record.train_seconds, record.error, text)
        try:
            with self._transaction() as database:
                database.execute(
                    "INSERT INTO run (loss, seed, status, accuracy, train_seconds, error, record) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (record.loss, record.seed, record.status, *values),
                )
        except sqlite3.IntegrityError as error:
            if self.get(record.loss, record.seed) is None:
                raise EvidenceError(
                    f"The run of '{record.loss}', seed {record.seed}, breaks a rule: {error}."
                ) from None
            raise self._already_done(record.loss, record.seed) from None
        write_atomically(self.result_path(record.loss, record.seed), readable(text) + "\n")

    def get(self, loss: str, seed: int) -> RunRecord | None:
        """The finished or failed run, or None where it is still to be done."""
        with self._explained():
            row = self._database.execute("SELECT record FROM run WHERE loss = ? AND seed = ?", (loss, seed)).fetchone()
        return None if row is None else record_from_json(row[0])

    def records(self) -> list[RunRecord]:
        """All runs, by loss and seed."""
        with self._explained():
            rows = self._database.execute("SELECT record FROM run ORDER BY loss, seed").fetchall()
        return [record_from_json(row[0]) for row in rows]

    def forget(self, loss: str, seed: int) -> None:
        """Delete a run, so that it is done again; its attempts stay counted."""
        # The file first: killed in between, the row is still there and `sync_result_files` restores the file.
        try:
            self.result_path(loss, seed).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        with self._transaction() as database:
            database.execute("DELETE FROM run WHERE loss = ? AND seed = ?", (loss, seed))

    def claim(self, loss: str, seed: int) -> RunClaim:
        """Take the right to run this (loss, seed), without waiting; ask `get` again once it is held.

        Raises:
            RunIsTaken: If another process or thread holds it.
        """
        return RunClaim(self.folder, loss, seed)

    def result_path(self, loss: str, seed: int) -> Path:
        """Where the readable copy of a run is: `runs/<loss>/seed-<seed>/result.json`."""
        return self.folder / "runs" / run_slug(loss) / f"seed-{seed}" / "result.json"

    def sync_result_files(self) -> list[Path]:
        """Write every `result.json` that is missing or differs from the database, as after a kill; return which."""
        written = []
        for record in self.records():
            path = self.result_path(record.loss, record.seed)
            text = readable(record_to_json(record)) + "\n"
            if not path.is_file() or path.read_bytes() != text.encode():
                write_atomically(path, text)
                written.append(path)
        return written

    def _prepare(self) -> None:
        """Set up the connection, and the tables where there are none."""
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != SCHEMA_VERSION and (version or tables):
            raise EvidenceError(
                f"`{self.path}` has schema version {version} and this lossmith reads version {SCHEMA_VERSION}: "
                "use the lossmith that made it, or another --out."
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        # WAL with NORMAL survives SIGKILL but may lose the last commits in a power cut. A run takes seconds to
        # hours and its commit milliseconds, so every commit waits for the disk.
        self._database.execute("PRAGMA synchronous = FULL")
        if not version:
            self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write, all or nothing."""
        with self._explained():
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Database errors in one sentence; `IntegrityError` passes, for it is about the row."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise EvidenceError(f"The evidence store `{self.path}` cannot be used: {error}.") from error

    def _already_done(self, loss: str, seed: int) -> EvidenceError:
        return EvidenceError(f"The run of '{loss}', seed {seed}, is already in `{self.folder}`: forget it first.")
