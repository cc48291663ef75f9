"""Doing jobs: evaluations in worker threads, while this thread alone writes what becomes of them."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass

from lossmith.discovery.attempts import Apart, Attempt
from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import HarnessError, Rung
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.jobs import LEASE_SECONDS, Job, Jobs
from lossmith.discovery.store.ledger import Ledger
from lossmith.errors import LossmithError

FAILURES_OF_A_JOB = 3
"""So often the machine may fail at one job before the job is given up, unscored."""
FAILURES_IN_A_ROW = 6
"""So often it may fail at whatever it tries before the control is tried, which stops the run where it fails too."""


class MachineOut(LossmithError):
    """The machine fails at everything, or at the control: the run stops, and can go on later."""


@dataclass(kw_only=True)
class Workshop:
    """All that jobs need, and how they are done."""

    database: Database
    jobs: Jobs
    ledger: Ledger
    rungs: Mapping[str, Rung]
    find: Callable[[str], ProgramLike]
    """Key -> program."""
    control: str
    workers: int
    """Threads; 0 evaluates in this one, without heartbeats."""
    price: Callable[[Rung], Cost]
    """What an evaluation is expected to take."""
    moved: Callable[[str, int, int], None] = lambda name, done, of: None
    """Is told what is measured, how many of its evaluations are done, and of how many."""
    in_a_row: int = 0

    def __post_init__(self) -> None:
        self._apart = Apart(self.rungs)

    def close(self) -> None:
        """End what is still evaluated apart."""
        self._apart.close()

    def do(self, step: int, jobs: Sequence[Job], *, keep_back: Cost, name: str = "evaluations") -> None:
        """Do all jobs that are not done yet; what is running is always ended and kept before an error is raised.

        Args:
            step: The round, for the queue.
            jobs: In the order in which they are begun.
            keep_back: What must be left over after each of them.
            name: Of all of them, for who waits.

        Raises:
            BudgetExhausted: If a job does not fit beside `keep_back`.
            HarnessError: If our own code broke.
            MachineOut: If the machine did.
        """
        waiting, stopped = deque(self.jobs.unfinished(jobs)), None
        if not waiting:
            return
        self.jobs.enqueue(step, jobs)
        self.moved(name, len(jobs) - len(waiting), len(jobs))
        with ThreadPoolExecutor(self.workers) if self.workers else nullcontext() as pool:
            running: dict[Future[Attempt], tuple[Job, Cost]] = {}
            while running or (waiting and stopped is None):
                try:
                    while waiting and stopped is None and len(running) < max(1, self.workers):
                        self._begin(waiting, running, pool, keep_back)
                    for future in self._ended(running):
                        job, reserved = running.pop(future)
                        if not self._keep(job, reserved, future.result()):
                            waiting.append(job)
                        self.moved(name, len(jobs) - len(waiting) - len(running), len(jobs))
                except LossmithError as error:
                    stopped = stopped or error
                except BaseException:
                    # The pool waits for its threads: an evaluation that hangs must not hold an interrupt back.
                    self._apart.close()
                    raise
        if stopped is not None:
            raise stopped

    def _begin(
        self,
        waiting: deque[Job],
        running: dict[Future[Attempt], tuple[Job, Cost]],
        pool: ThreadPoolExecutor | None,
        keep_back: Cost,
    ) -> None:
        job = waiting[0]
        rung = self.rungs[job.rung]
        price = self.price(rung)
        self.ledger.check(price + keep_back)
        with self.database.transaction():
            if not self.jobs.lease(job):
                raise HarnessError(f"Another owner holds a lease on `{job.entry}` though this process owns the run.")
            self.ledger.reserve(job.entry, f"rung/{job.rung}/{job.block.split}", price)
        waiting.popleft()
        program = self.find(job.program)
        if pool is None:
            future: Future[Attempt] = Future()
            future.set_result(self._apart.attempt(rung, program, job, self._mean_seconds(rung)))
        else:
            future = pool.submit(self._apart.attempt, rung, program, job, self._mean_seconds(rung))
        running[future] = (job, price)

    def _ended(self, running: dict[Future[Attempt], tuple[Job, Cost]]) -> list[Future[Attempt]]:
        """Those that ended, in the order in which they began; renews the leases of the others while it waits."""
        while running:
            done, _ = wait(running, timeout=LEASE_SECONDS / 4, return_when=FIRST_COMPLETED)
            if done:
                return [future for future in running if future in done]
            self.jobs.heartbeat(job for job, _ in running.values())
        return []

    def _keep(self, job: Job, reserved: Cost, found: Attempt) -> bool:
        """Write what became of a job; False where it must be done again."""
        self.in_a_row = self.in_a_row + 1 if found.status == "infrastructure_error" else 0
        is_control, failures = job.program == self.control, 0
        # A control that broke is no result: the run stops, and does it again when it goes on.
        again = found.status == "harness" or (is_control and found.status != "ok")
        machine_is_out, actual = False, spent(found)
        if again or found.status == "infrastructure_error":
            with self.database.transaction():
                failures = self.jobs.give_back(job, found.error)
                self.ledger.settle(job.entry, reserved, actual)
                self.database.touch()
            reserved, actual = ZERO, ZERO
            if failures >= FAILURES_OF_A_JOB or self.in_a_row >= FAILURES_IN_A_ROW:
                machine_is_out = found.status == "infrastructure_error" and self._is_out(job)
            again = again or machine_is_out or failures < FAILURES_OF_A_JOB
        if not again:
            with self.database.transaction():
                self.jobs.finish(job, found.status, found.metrics, error=found.error, seconds=found.seconds)
                self.ledger.settle(job.entry, reserved, actual + Cost(jobs=1.0))
                self.database.touch()
        if found.status == "ok":
            self.ledger.learn(job.rung, spent(found))
        where = f"rung `{job.rung}`, block {job.block.index}"
        if machine_is_out:
            raise MachineOut(f"The machine fails again and again, last on {where}: {found.error}")
        if found.status == "harness":
            raise HarnessError(f"Our own code broke on {where}: {found.error}")
        if is_control and found.status == "candidate_error":
            raise HarnessError(f"The control itself failed on {where}: {found.error}")
        return not again

    def _is_out(self, job: Job) -> bool:
        """Whether the machine fails at the control too: what fails at one program only is not the machine."""
        self.in_a_row = 0
        rung = self.rungs[job.rung]
        found = self._apart.attempt(rung, self.find(self.control), job, self._mean_seconds(rung))
        with self.database.transaction():
            self.ledger.settle(job.entry, ZERO, spent(found))
        return found.status == "infrastructure_error"

    def _mean_seconds(self, rung: Rung) -> float | None:
        known = self.ledger.measured(rung.name)
        return None if known is None else known.wall_seconds


def spent(found: Attempt) -> Cost:
    """What an attempt took."""
    metrics = found.metrics
    if metrics is None:
        return Cost(device_seconds=found.seconds, wall_seconds=found.seconds)
    device = found.seconds if metrics.device_seconds is None else metrics.device_seconds
    return Cost(money_usd=metrics.money_usd, tokens=metrics.tokens, device_seconds=device, wall_seconds=found.seconds)
