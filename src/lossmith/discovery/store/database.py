"""The database of a run: one file in WAL mode, one process that writes it, and a dump that two repetitions share."""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lossmith.discovery.store.schema import SCHEMA, SCHEMA_VERSION, VOLATILE
from lossmith.errors import EvidenceError
from lossmith.evidence import check_writable
from lossmith.evidence.folders import cannot_write
from lossmith.evidence.serialisation import differing_settings, fingerprint, settings_from_json, settings_to_json

_BUSY_TIMEOUT_S = 30.0
_NO_WRITING = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""What SQLite says of a file in WAL mode where it cannot make the files beside it."""
FILE_NAME = "discovery.sqlite"


class Database:
    """Opened to write by one process at a time, to read by any number."""

    def __init__(self, folder: str | Path | None, *, read_only: bool = False):
        """Open `folder/discovery.sqlite`, made where there is none; None for a database in memory.

        Raises:
            EvidenceError: If another process writes it, another version made it, or it cannot be read or written.
        """
        self.folder = None if folder is None else Path(folder)
        self.path = ":memory:" if self.folder is None else str(self.folder / FILE_NAME)
        self.owner = uuid.uuid4().hex
        self._lock: FileLock | None = None
        self._session: int | None = None
        self._began = time.monotonic()
        self._earlier_seconds = 0.0
        if self.folder is not None and read_only and not (self.folder / FILE_NAME).is_file():
            raise EvidenceError(f"`{self.folder}` holds no discovery run: there is no `{FILE_NAME}` in it.")
        if self.folder is not None and not read_only:
            check_writable(self.folder)
            self._lock = self._alone(self.folder)
        try:
            with self._explained():
                # A worker thread never touches it: the engine's thread alone reads and writes.
                self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
                try:
                    self._prepare(read_only)
                except sqlite3.OperationalError as error:
                    if not read_only or error.sqlite_errorcode & 0xFF not in _NO_WRITING:
                        raise
                    self._connection.close()
                    self._connection = self._unchanging()
                    self._prepare(read_only)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others write it."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write, all or nothing; one that is opened within another belongs to it."""
        with self._explained():
            if self._connection.in_transaction:
                yield self._connection
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer to a query."""
        with self._explained():
            return self._connection.execute(query, tuple(values)).fetchall()

    def open_run(self, *, identity: dict[str, Any], settings: dict[str, Any]) -> bool:
        """Say which run this is: write it the first time and return True, agree with it ever after.

        Args:
            identity: Settings on which any row depends.
            settings: All settings; those outside `identity`, such as the budget, may change, and the last are kept.

        Raises:
            EvidenceError: If the folder holds another run; names what differs.
        """
        mark, stored, everything = fingerprint(identity), settings_to_json(identity), settings_to_json(settings)
        with self.transaction() as connection:
            row = connection.execute("SELECT fingerprint, identity FROM run").fetchone()
            if row is None:
                connection.execute("INSERT INTO run VALUES (1, ?, ?, ?)", (mark, stored, everything))
            elif row[0] == mark:
                connection.execute("UPDATE run SET settings = ?", (everything,))
            else:
                before = settings_from_json(row[1])
                different = differing_settings(before, settings_from_json(stored))
                families = [each for each in different if each.startswith("`family`")]
                # Another family changes nearly everything with it.
                different = families or [*different[:3], *([f"and {len(different) - 3} more"] if different[3:] else [])]
                raise EvidenceError(
                    f"`{self.folder}` holds a run with other settings ({'; '.join(different)}): "
                    "choose another --out, or the same settings."
                )
        return row is None

    def settings(self) -> dict[str, Any]:
        """The settings of the run; empty where none was opened."""
        found = self.rows("SELECT settings FROM run")
        return settings_from_json(found[0][0]) if found else {}

    def open_session(self) -> None:
        """Begin to count the time of this process, after that of those before it."""
        self._earlier_seconds = float(self.rows("SELECT COALESCE(SUM(seconds), 0) FROM session")[0][0])
        self._began = time.monotonic()
        with self.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO session (owner, started_at, seconds) VALUES (?, ?, 0)", (self.owner, now())
            )
            self._session = cursor.lastrowid

    def touch(self, ended: str | None = None) -> None:
        """Note how long this session lasts, and how it ended; a kill loses what came after the last touch."""
        if self._session is None:
            return
        with self.transaction() as connection:
            connection.execute(
                "UPDATE session SET seconds = ?, ended = ? WHERE id = ?",
                (time.monotonic() - self._began, ended, self._session),
            )

    def wall_seconds(self) -> float:
        """Seconds of all sessions, this one's until now."""
        return self._earlier_seconds + (0.0 if self._session is None else time.monotonic() - self._began)

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table, in an order that does not depend on when it was written.

        Left out are times, attempt counts and what kills cost: two repetitions of a run have equal dumps, however often
        one of them was killed.
        """
        tables = [row[0] for row in self.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        found = {}
        for table in tables:
            if table == "session" or table.startswith("sqlite_"):
                continue
            columns = [row[1] for row in self.rows(f"PRAGMA table_info({table})")]
            kept = [column for column in columns if column not in VOLATILE.get(table, ())]
            names = ", ".join(f'"{column}"' for column in kept)
            found[table] = sorted(self.rows(f"SELECT {names} FROM {table}"), key=repr)
        return found

    def _prepare(self, read_only: bool) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != SCHEMA_VERSION and (version or tables or read_only):
            raise EvidenceError(
                f"`{self.path}` has schema version {version} and this lossmith reads version {SCHEMA_VERSION}: "
                "use the lossmith that made it, or another --out."
            )
        if read_only:
            self._connection.execute("PRAGMA query_only = ON")
            return
        self._connection.execute("PRAGMA journal_mode = WAL")
        # Every commit waits for the disk: it takes milliseconds, an evaluation up to minutes.
        self._connection.execute("PRAGMA synchronous = FULL")
        if not version:
            self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")

    def _unchanging(self) -> sqlite3.Connection:
        """Open a file where none can be made beside it, as on read-only media: nobody can change it meanwhile.

        Raises:
            EvidenceError: If a run was killed and its last rows are still in the log beside the file.
        """
        assert self.folder is not None
        log = self.folder / f"{FILE_NAME}-wal"
        if log.is_file() and log.stat().st_size:
            raise EvidenceError(
                f"`{log}` holds rows that are not in the database yet, and `{self.folder}` cannot be written: copy the "
                "folder to where it can be, and read it there."
            )
        address = f"{Path(self.path).resolve().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(address, timeout=_BUSY_TIMEOUT_S, isolation_level=None, uri=True)

    def _alone(self, folder: Path) -> FileLock:
        # The lock is the operating system's: it dies with its process, so a lease whose owner does not hold it is free.
        lock = FileLock(folder / "engine.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise EvidenceError(f"Another process runs the discovery in `{folder}`; one at a time may.") from None
        except OSError as error:
            raise cannot_write(folder, error) from error
        return lock

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise EvidenceError(f"The database `{self.path}` cannot be used: {error}.") from error


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def storable(text: str | None, limit: int = 16_000) -> str | None:
    r"""Text that SQLite takes, whatever a model wrote: no lone surrogates, and not longer than `limit`.

    Example:
        >>> storable("a" + chr(0xD800)), storable("abcdef", limit=3)
        ('a\\ud800', 'abc')
    """
    return None if text is None else text[:limit].encode("utf-8", "backslashreplace").decode("utf-8")


def to_text(value: Any) -> str:
    """Canonical JSON of a stored value; refuses what has none, such as NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
