"""Replies of judges on disk, by the content of the call: what is stored is never asked again."""

import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lossmith.errors import EvidenceError
from lossmith.evaluation.judging.calls import Reply
from lossmith.evidence.claims import set_up_alone
from lossmith.evidence.folders import cannot_write

SCHEMA_VERSION = 1
"""`PRAGMA user_version` of the files that this code reads and writes."""

_BUSY_TIMEOUT_S = 30.0
_PLACES_AT_ONCE = 500


class CallCache:
    """A SQLite file in WAL mode. Threads share one object, processes one file.

    A reply is committed before anyone sees it, so a kill loses the calls that are under way and no other. Holds replies
    only: neither addresses nor keys of endpoints.

    Args:
        path: The file; made with its folder where it is not there.

    Raises:
        EvidenceError: If it cannot be read or written, or is no such file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        with set_up_alone(path, lock=path.with_name(f".{path.name}.lock"), timeout_s=_BUSY_TIMEOUT_S):
            # Threads share the connection under the lock.
            self._database = self._explained(
                lambda: sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            )
            try:
                self._explained(self._prepare)
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> "CallCache":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def get(self, key: str) -> Reply | None:
        """The stored reply to a call, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The stored replies among some calls."""
        wanted, found = list(keys), {}
        for start in range(0, len(wanted), _PLACES_AT_ONCE):
            part = wanted[start : start + _PLACES_AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._run(f"SELECT key, reply FROM call WHERE key IN ({marks})", part)
            found |= {key: self._read(key, text) for key, text in rows}
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply; where another process was first, its reply stays."""
        self._run("INSERT OR IGNORE INTO call (key, reply) VALUES (?, ?)", [key, reply.to_json()])

    def _prepare(self) -> None:
        # NORMAL: commits outlive a kill of the process; a power cut may take the last ones, never the file.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("BEGIN IMMEDIATE")
        found = self._database.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, SCHEMA_VERSION):
            raise EvidenceError(f"`{self.path}` was written by another version of lossmith: choose another --cache.")
        if found == 0:
            self._database.execute("CREATE TABLE call (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._database.execute("COMMIT")

    def _run(self, statement: str, values: list[str]) -> list[Any]:
        with self._lock:
            return self._explained(lambda: self._database.execute(statement, values).fetchall())

    def _read(self, key: str, text: str) -> Reply:
        try:
            return Reply.from_json(text)
        except (ValueError, KeyError, TypeError) as error:
            raise EvidenceError(
                f"`{self.path}` holds a reply that cannot be read (call {key[:12]}): choose another --cache."
            ) from error

    def _explained(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except sqlite3.DatabaseError as error:
            raise EvidenceError(
                f"`{self.path}` cannot be used as the store of replies ({error}): choose another --cache."
            ) from error
        except OSError as error:
            raise cannot_write(self.path, error) from error
