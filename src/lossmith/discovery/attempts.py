"""One evaluation and how it ended; those that may hang run in a process of their own, which can be ended.

A thread cannot be stopped from outside. A rung with `apart` set is therefore measured in one further process that is
kept from evaluation to evaluation, and ended where an evaluation is far beyond its time, or where the run ends. That
the clock ran out, or that the process died, is the machine's failure and no score: it is tried again, as any other one.
"""

import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from multiprocessing.connection import Connection, Pipe
from typing import Any

from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.proposers.model import KEY_VARIABLES as PROPOSER_KEYS
from lossmith.discovery.rungs.base import EvaluationError, Metrics, Rung, Status
from lossmith.discovery.store.jobs import Job
from lossmith.errors import LossmithWarning
from lossmith.evaluation.judging.addresses import KEY_VARIABLES as JUDGE_KEYS

AT_LEAST_SECONDS = 60.0
"""No evaluation is ended before."""
TIMES_THE_MEAN = 20.0
"""One that takes so many times the mean of those before hangs."""
SECRETS = frozenset((*PROPOSER_KEYS, *JUDGE_KEYS))
"""Variables of the environment that the process of an evaluation does not get: nothing that is trained asks a model."""
_OURS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""What a wrong path in our own code raises: done again it fails again, so it is no failure of the machine."""
_noted: set[str] = set()
_SERVE = "import sys; from lossmith.discovery.attempts import _serve; _serve(int(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one evaluation ended."""

    status: Status
    metrics: Metrics | None
    error: str | None
    seconds: float


def attempt(rung: Rung, program: ProgramLike, job: Job) -> Attempt:
    """Evaluate, and sort what happens into whose fault it is; whatever is not told apart is ours.

    Memory, disks, connections and databases that fail are the machine's, raised as they are or as the cause of one of
    our own errors.
    """
    begun = time.perf_counter()
    status, metrics, error = "ok", None, None
    try:
        metrics = rung.evaluate(program, job.block)
        numbers = [metrics.fitness, *metrics.values.values()]
        if not isfinite(metrics.fitness):
            status, error = "candidate_error", f"The fitness is {metrics.fitness}."
        elif not all(isfinite(number) for number in numbers):
            status, error = "harness", f"The metrics are not finite: {dict(metrics.values)}."
    except EvaluationError as failure:
        status, error = failure.status, str(failure)
    except Exception as failure:
        status = "infrastructure_error" if is_of_the_machine(failure) else "harness"
        error = f"{type(failure).__name__}: {failure}"
    return Attempt(
        status=status,
        metrics=metrics if status == "ok" else None,
        error=error,
        seconds=time.perf_counter() - begun,
    )


def is_of_the_machine(failure: BaseException) -> bool:
    """Whether memory, a disk, a connection or a database failed: trying again may help.

    Example:
        >>> is_of_the_machine(OSError(28, "No space left on device")), is_of_the_machine(FileNotFoundError(2, "x"))
        (True, False)
    """
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, MemoryError | ConnectionError | TimeoutError):
            return True
        # Libraries raise a bare OSError without a number for what they do not find; the system gives one.
        if isinstance(cause, OSError) and not isinstance(cause, _OURS) and not _is_bare(cause):
            return True
        # A statement that SQLite cannot read is ours; a disk, a lock or memory is not.
        if isinstance(cause, sqlite3.OperationalError) and _sqlite_code(cause) != sqlite3.SQLITE_ERROR:
            return True
        cause = cause.__cause__
    return False


def _is_bare(error: OSError) -> bool:
    return type(error) is OSError and error.errno is None


def _sqlite_code(error: sqlite3.Error) -> int | None:
    """The primary code, without what an extended one says beyond."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def environment_without_secrets() -> dict[str, str]:
    """The environment, without the keys of models that are asked."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def patience(mean_seconds: float | None) -> float | None:
    """Seconds after which an evaluation hangs; None, for ever, before the first has shown how long one takes.

    Example:
        >>> patience(None), patience(0.5), patience(30.0)
        (None, 60.0, 600.0)
    """
    return None if mean_seconds is None else max(AT_LEAST_SECONDS, TIMES_THE_MEAN * mean_seconds)


class Apart:
    """A process that evaluates, one job at a time; it is started by the first."""

    def __init__(self, rungs: Mapping[str, Rung]):
        self._rungs = {name: rung for name, rung in rungs.items() if getattr(rung, "apart", False)}
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Any = None
        self._closed = False

    def attempt(self, rung: Rung, program: ProgramLike, job: Job, mean_seconds: float | None) -> Attempt:
        """Evaluate here, or in the process where the rung wants that; no exception but an interrupt leaves it."""
        if rung.name not in self._rungs or os.name != "posix":
            return attempt(rung, program, job)
        with self._one_at_a_time:
            begun, limit = time.perf_counter(), patience(mean_seconds)
            try:
                if self._closed:
                    raise EOFError
                pipe = self._pipe or self._start()
                pipe.send((program, job))
                if pipe.poll(limit):
                    return pipe.recv()
                error = f"timeout: the evaluation was ended after {limit:.0f} s, far beyond the time of others."
            except (EOFError, OSError):
                error = f"The process of the evaluation died ({self._end()})."
            self._end()
            seconds = time.perf_counter() - begun
            return Attempt(status="infrastructure_error", metrics=None, error=error, seconds=seconds)

    def close(self) -> None:
        """End the process, in the middle of an evaluation too."""
        self._closed = True
        if self._process is not None:
            # Whoever waits for it in another thread sees the end of the pipe, and lets go of the lock.
            self._process.kill()
        with self._one_at_a_time:
            self._end()

    def _start(self) -> Any:
        pickled = pickle.dumps(self._rungs)
        self._pipe, theirs = Pipe()
        with theirs:
            # A session of its own: Ctrl-C is for the run, which ends this process itself.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment_without_secrets(),
            )
        self._pipe.send((sys.path, pickled))
        self._pipe.recv()  # the imports are not the evaluation's time
        return self._pipe

    def _end(self) -> str:
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return "it had not begun"
        try:
            return f"exit status {process.wait(1.0)}"
        except subprocess.TimeoutExpired:
            process.kill()
            return f"exit status {process.wait()}"


def _serve(descriptor: int, parent: int) -> None:
    """The process: rungs first, then programs and jobs until the pipe ends."""
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    warnings.showwarning = _note
    with Connection(descriptor) as pipe:
        sys.path[:], pickled = pipe.recv()
        rungs = pickle.loads(pickled)  # noqa: S301 (from the process that started this one)
        pipe.send("ready")
        while True:
            try:
                program, job = pipe.recv()
            except EOFError:
                return
            pipe.send(attempt(rungs[job.rung], program, job))


def _note(message: Warning | str, category: type[Warning], *rest: object) -> None:
    """Our own warnings as one line each, as the commands show them."""
    if issubclass(category, LossmithWarning) and str(message) not in _noted:
        _noted.add(str(message))
        print(f"note: {message}", file=sys.stderr, flush=True)


def _leave_with(parent: int) -> None:
    """A run that is killed leaves nobody behind who holds the device."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
