"""Ask a judge many calls at once: from the store where it can be, with retries, within a budget, stoppable."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lossmith.errors import ConfigurationError, JudgeError
from lossmith.evaluation.judging.budget import Budget, BudgetSpent
from lossmith.evaluation.judging.cache import CallCache
from lossmith.evaluation.judging.calls import JudgeCall, Outcome, Reply, distinct
from lossmith.evaluation.judging.endpoint import MOST_ADAPTATIONS, Adapted, CallRefused, Endpoint, Passing, Refused

OnCall = Callable[[int, int], None]
"""Called with the calls that are done and all there are."""

FAILURES_IN_A_ROW = 5
"""So many calls that failed for good, without one that succeeded in between, end the asking.

Calls that the endpoint refuses for their own length or contents say nothing of the others and do not count.
"""

LONGEST_WAIT_S = 300.0
"""An endpoint that asks to wait longer is not waited for."""

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How often and how long apart a call is tried.

    Raises:
        ConfigurationError: For a number out of its range.
    """

    tries: int = 6
    """Most tries of a call, >= 1."""
    first_s: float = 1.0
    """Wait before the second try, in seconds, >= 0; doubled each time."""
    longest_s: float = 60.0
    """No wait is longer, unless the endpoint asks for it."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigurationError(f"`tries` must be >= 1, got {self.tries}.")
        if not 0 <= self.first_s <= self.longest_s:
            raise ConfigurationError(f"`first_s` must be in [0, {self.longest_s}], got {self.first_s}.")

    def wait_s(self, tried: int, asked_s: float | None, draw: float) -> float:
        """Seconds before the next try: exponential with jitter, and never less than the endpoint asks for.

        Args:
            tried: Tries so far, >= 1.
            asked_s: What the endpoint asks for, if it does.
            draw: Uniform in [0, 1).

        Example:
            >>> Backoff().wait_s(3, None, 0.0), Backoff().wait_s(1, 7.0, 0.0)
            (2.0, 7.0)
        """
        grown = min(self.longest_s, self.first_s * 2 ** (tried - 1))
        jittered = grown * (0.5 + 0.5 * draw)
        # Those who were told the same second must not come back in the same one.
        return jittered if asked_s is None else max(jittered, asked_s + 0.25 * draw * min(asked_s, 1.0))


@dataclass(kw_only=True)
class Asked:
    """What became of many calls."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the key of the call; a call that was not reached has none."""
    stopped: str = ""
    """Why not all were asked, in words; empty where they were."""
    sent: int = 0
    """Requests that went to the endpoint, repeated tries included."""
    tokens: int = 0
    """Tokens that they cost."""


def ask(
    calls: Sequence[JudgeCall],
    *,
    endpoint: Endpoint,
    cache: CallCache,
    budget: Budget | None = None,
    concurrency: int = 8,
    backoff: Backoff | None = None,
    on_call: OnCall | None = None,
    on_reply: Callable[[str, Reply], None] | None = None,
) -> Asked:
    """Ask what is not stored, store it, and return everything.

    Equal calls are asked once. A reply is stored before it is used, so that whatever ends this process, even a kill,
    costs no more than the calls that were under way.

    Args:
        calls: What to ask.
        endpoint: Whom to ask.
        cache: Where replies are stored.
        budget: Most calls and tokens; None for no limit.
        concurrency: Calls that are under way at once, >= 1.
        backoff: Tries and waits.
        on_call: Progress, called from this thread.
        on_reply: Called from this thread with the key and each reply that was not stored; what it raises ends the
            asking.

    Raises:
        JudgeError: If the endpoint refuses for good, or fails call after call. What was replied is stored.
        ConfigurationError: If `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ConfigurationError(f"`concurrency` must be >= 1, got {concurrency}.")
    wanted = distinct(calls)
    stored = cache.get_many(wanted)
    budget = budget or Budget()
    asked = Asked(outcomes={key: Outcome(reply=reply, stored=True) for key, reply in stored.items()})
    before = budget.calls, budget.tokens
    work = _Work([call for key, call in wanted.items() if key not in stored], endpoint, cache, budget, backoff)
    if on_call is not None:
        on_call(len(stored), len(wanted))
    try:
        for key, outcome in work.run(concurrency):
            asked.outcomes[key] = outcome
            if on_call is not None:
                on_call(len(asked.outcomes), len(wanted))
            if on_reply is not None and outcome.reply is not None and not outcome.stored:
                on_reply(key, outcome.reply)
    finally:
        work.stop.set()
    asked.stopped = work.stopped
    asked.sent, asked.tokens = budget.calls - before[0], budget.tokens - before[1]
    return asked


class _Work:
    """The threads that ask, and what they share."""

    def __init__(
        self, calls: list[JudgeCall], endpoint: Endpoint, cache: CallCache, budget: Budget, backoff: Backoff | None
    ):
        self.stop = threading.Event()
        self.stopped = ""
        self._calls = iter(calls)
        self._next = threading.Lock()
        self._endpoint, self._cache, self._budget = endpoint, cache, budget
        self._backoff = backoff or Backoff()
        self._done: queue.SimpleQueue[tuple[str, Outcome] | BaseException | None] = queue.SimpleQueue()
        self._not_before = 0.0
        # Jitter only: no result depends on it.
        self._random = random.Random()

    def run(self, concurrency: int) -> Iterator[tuple[str, Outcome]]:
        """Outcomes as they come.

        Raises:
            JudgeError: As `ask`.
        """
        # Daemons: an interrupt must not wait for requests that are under way.
        threads = [threading.Thread(target=self._ask_all, name=f"judge-{n}", daemon=True) for n in range(concurrency)]
        for thread in threads:
            thread.start()
        running, failures = len(threads), 0
        while running:
            try:
                found = self._done.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if found is None:
                running -= 1
                continue
            if isinstance(found, BaseException):
                self.stop.set()
                raise found
            yield found
            if found[1].refused:
                continue
            failures = 0 if found[1].reply is not None else failures + 1
            if failures >= FAILURES_IN_A_ROW:
                self.stop.set()
                raise JudgeError(
                    f"The judge at {self._endpoint.base_url} failed {failures} calls in a row, the last one with "
                    f"{found[1].problem}. What was replied is stored; the same command continues."
                )

    def _ask_all(self) -> None:
        try:
            while not self.stop.is_set():
                with self._next:
                    call = next(self._calls, None)
                if call is None:
                    return
                outcome = self._outcome(call)
                if outcome is not None:
                    self._done.put((call.key, outcome))
        except BudgetSpent as error:
            self.stopped = str(error)
            self.stop.set()
        except Refused as error:
            self._done.put(JudgeError(f"{error} What was replied is stored; the same command continues."))
        except BaseException as error:
            self._done.put(error)
        finally:
            self._done.put(None)

    def _outcome(self, call: JudgeCall) -> Outcome | None:
        """What becomes of a call; None where the asking ended first."""
        # Another process may have asked it meanwhile.
        if (stored := self._cache.get(call.key)) is not None:
            return Outcome(reply=stored, stored=True)
        problem = ""
        for tried in range(1, self._backoff.tries + 1):
            if not self._wait_until(self._not_before):
                return None
            try:
                reply = self._paid(call)
            except CallRefused as error:
                return Outcome(reply=None, problem=f"a refusal of this call ({error})", refused=True)
            except Passing as error:
                problem = f"{error} after {tried} {'try' if tried == 1 else 'tries'}"
                if tried == self._backoff.tries:
                    break
                if not self._back_off(error, tried):
                    return None
                continue
            self._cache.put(call.key, reply)
            return Outcome(reply=reply)
        return Outcome(reply=None, problem=problem)

    def _paid(self, call: JudgeCall) -> Reply:
        """One try; a setting that the endpoint refuses is put otherwise at once."""
        for _ in range(MOST_ADAPTATIONS + 1):
            try:
                return self._sent(call)
            except Adapted:
                continue
        raise Refused("The endpoint refuses the settings of the request whichever way they are put.")

    def _sent(self, call: JudgeCall) -> Reply:
        """One request within the budget."""
        most = call.most_tokens
        self._budget.reserve(most)
        cost = most
        try:
            reply = self._endpoint.send(call)
            cost = reply.prompt_tokens + reply.reply_tokens if reply.counted else most
        except Passing as error:
            cost = most if error.maybe_paid else 0
            raise
        except (Adapted, CallRefused, Refused):
            cost = 0
            raise
        finally:
            self._budget.settle(most, cost)
        return reply

    def _back_off(self, error: Passing, tried: int) -> bool:
        if error.wait_s is not None and error.wait_s > LONGEST_WAIT_S:
            raise Refused(f"The endpoint asks to wait {error.wait_s:,.0f} s ({error}): try later.")
        until = time.monotonic() + self._backoff.wait_s(tried, error.wait_s, self._random.random())
        if error.full and error.wait_s is not None:
            # All threads slow down, or the others would be refused one by one.
            self._not_before = max(self._not_before, time.monotonic() + error.wait_s)
        return self._wait_until(until)

    def _wait_until(self, moment: float) -> bool:
        """Wait; False where the asking ended meanwhile."""
        left = moment - time.monotonic()
        return not (self.stop.wait(left) if left > 0 else self.stop.is_set())
