"""A limit on what judging may cost, in calls and in tokens, that is never exceeded."""

import threading

from lossmith.errors import ConfigurationError


class BudgetSpent(Exception):
    """The next call would exceed the budget; carries the sentence."""


class Budget:
    """Counts the calls and tokens of one command; replies from the store cost nothing.

    Before a call is sent, the most that it can cost is set aside, and afterwards what it did cost is counted instead. A
    call that does not fit beside those under way waits for them; one that does not fit alone ends the asking.

    Args:
        max_calls: Most requests to the endpoint, repeated tries included, >= 1; None for no limit.
        max_tokens: Most tokens, read and written, >= 1; None for no limit.

    Raises:
        ConfigurationError: If a limit is below 1.
    """

    def __init__(self, *, max_calls: int | None = None, max_tokens: int | None = None):
        for name, value in (("max_calls", max_calls), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise ConfigurationError(f"`{name}` must be >= 1, got {value}.")
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls = 0
        """Requests that were sent."""
        self.tokens = 0
        """Tokens that were paid, or at most paid where the endpoint did not say."""
        self._aside = 0
        self._changed = threading.Condition()

    def reserve(self, most_tokens: int) -> None:
        """Set aside what a call can cost at most, before it is sent.

        Raises:
            BudgetSpent: If it does not fit.
        """
        with self._changed:
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise BudgetSpent(f"the budget of {self.max_calls:,} calls is used up")
            while self.max_tokens is not None and self.tokens + self._aside + most_tokens > self.max_tokens:
                if not self._aside:
                    raise BudgetSpent(
                        f"the budget of {self.max_tokens:,} tokens has {self.max_tokens - self.tokens:,} left, and the "
                        f"next call can cost up to {most_tokens:,}"
                    )
                self._changed.wait()
                if self.max_calls is not None and self.calls >= self.max_calls:
                    raise BudgetSpent(f"the budget of {self.max_calls:,} calls is used up")
            self.calls += 1
            self._aside += most_tokens

    def settle(self, most_tokens: int, tokens: int) -> None:
        """Count what a call did cost in place of what was set aside for it."""
        with self._changed:
            self._aside -= most_tokens
            self.tokens += tokens
            self._changed.notify_all()
