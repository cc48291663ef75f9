"""Who may run a run, and who may open a database: locks between processes that die with their holder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from lossmith.errors import EvidenceError
from lossmith.evidence.folders import cannot_write, run_slug


class RunIsTaken(EvidenceError):
    """Another process or thread is at this run."""


class RunClaim:
    """The right to run one (loss, seed), until `release`, the end of the `with` block, or the end of the process.

    The lock is the operating system's, so SIGKILL frees it too; the empty lock file stays and means nothing. A child
    that was forked without exec shares it and holds it as long as it lives.
    """

    def __init__(self, folder: Path, loss: str, seed: int):
        """Claim at once, without waiting.

        Raises:
            RunIsTaken: If another process or thread, or another claim of this one, holds the run.
        """
        path = folder / "locks" / f"{run_slug(loss)}.seed-{seed}.lock"
        # Not thread-local: a claim taken here may be released by the thread that ends the run.
        self._lock = FileLock(path, thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunIsTaken(f"Another process is running '{loss}', seed {seed}, in `{folder}`.") from None
        except OSError as error:
            raise cannot_write(path, error) from error

    def release(self) -> None:
        """Give the run back; a second call does nothing."""
        self._lock.release()

    def __enter__(self) -> "RunClaim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def set_up_alone(opened: Path, *, lock: Path, timeout_s: float) -> Iterator[None]:
    """Let one process or thread at a time open a SQLite file.

    Two that switch a new file to WAL at once get "database is locked" in spite of the busy timeout.

    Args:
        opened: What is opened, for the messages.
        lock: The lock's own file; made with its folder, and left there empty.
        timeout_s: How long to wait for the others, in seconds.

    Raises:
        EvidenceError: If another process does not end to open it, or the lock cannot be written.
    """
    alone = FileLock(lock, timeout=timeout_s)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        alone.acquire()
    except Timeout:
        raise EvidenceError(f"`{opened}` is being opened by another process that does not end.") from None
    except OSError as error:
        raise cannot_write(opened, error) from error
    try:
        yield
    finally:
        alone.release()
