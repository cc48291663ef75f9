"""A language model that proposes: asked through the judges' endpoint, store and budget, and counted.

Replies are stored before they are used, by the content of the call. So a run that was killed after a reply and before
its round asks nothing twice, and its ledger counts the reply once, as that of an undisturbed run does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.rungs.base import InfrastructureError
from lossmith.errors import ConfigurationError, JudgeError
from lossmith.evaluation.judging import Backoff, Budget, CallCache, Endpoint, JudgeCall, Outcome, Reply, Sampling, ask

KEY_VARIABLES = ("LOSSMITH_DISCOVER_API_KEY", "OPENAI_API_KEY")
"""Where the key is looked for, in order; it is read from nowhere else and kept nowhere."""
MOST_PROMPT = 32_000
"""Characters of all messages of a call; facts beyond are left out."""


def open_endpoint(base_url: str, *, timeout_s: float = 300.0) -> Endpoint:
    """The address of a model that proposes; close it by `with`.

    Raises:
        ConfigurationError: For an address that cannot be used, or no key for one that is not local.
        MissingExtraError: If `openai` is not installed.
    """
    return Endpoint(
        base_url,
        timeout_s=timeout_s,
        key_variables=KEY_VARIABLES,
        purpose="ask a model for candidates",
        extra="discover",
    )


@dataclass(kw_only=True)
class Model:
    """Whom to ask, how, and what it costs.

    Raises:
        ConfigurationError: If the model has no name, or a price or `max_tokens` is out of range.
    """

    model: str
    """Its name at the endpoint."""
    endpoint: Endpoint
    cache: CallCache
    """Where replies are stored; a file in the run's folder."""
    temperature: float | None = 1.0
    """None leaves it to the endpoint: some models take none."""
    max_tokens: int = 4096
    """Most tokens of a reply."""
    backoff: Backoff = field(default_factory=Backoff)
    concurrency: int = 4
    usd_per_million_read: float = 0.0
    usd_per_million_written: float = 0.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigurationError("`model` must name a model of the endpoint, got ''.")
        if min(self.usd_per_million_read, self.usd_per_million_written) < 0:
            raise ConfigurationError("Prices must be >= 0 dollars per million tokens.")
        self.sampling(0)

    def sampling(self, seed: int) -> Sampling:
        """How a reply is drawn."""
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens, seed=seed)

    def call(self, messages: Sequence[tuple[str, str]], *, prompt: str, seed: int, schema: str = "") -> JudgeCall:
        """One question."""
        return JudgeCall(
            model=self.model, messages=tuple(messages), sampling=self.sampling(seed), prompt=prompt, schema=schema
        )

    def most(self, calls: int) -> Cost:
        """The most that so many calls can cost, a token per character of a prompt; `ask` never exceeds it."""
        read, written = calls * (MOST_PROMPT + 1024), calls * self.max_tokens
        return self._cost(read, written)

    def ask(self, calls: Sequence[JudgeCall], *, within: Cost | None = None) -> tuple[list[Reply | None], Cost]:
        """The replies in the order of the calls, None where the model or its host declines, and what they cost.

        As many calls are made at once as fit with the most that each can cost, then as many of the others as what the
        replies have left allows. So which calls are made follows from the calls and their replies, however they are
        scheduled, and is the same where some of the replies are stored already.

        Args:
            calls: What to ask.
            within: Most money and tokens, stored replies counted; what does not fit has no reply.

        Raises:
            InfrastructureError: If the endpoint cannot be reached, refuses everything, or fails at one of the calls.
        """
        replies: list[Reply | None] = []
        cost = Cost()
        while len(replies) < len(calls):
            wave, spare = self._wave(calls[len(replies) :], within, cost)
            if not wave:
                break
            found, spent = self._ask(wave, spare)
            replies += found
            cost = cost + spent
        return replies + [None] * (len(calls) - len(replies)), cost

    def fits(self, call: JudgeCall, within: Cost, spent: Cost = ZERO) -> bool:
        """Whether the most that a call can cost is left."""
        needed = spent + self._most_of(call)
        return needed.tokens <= within.tokens and needed.money_usd <= within.money_usd * (1 + 1e-9)

    def _most_of(self, call: JudgeCall) -> Cost:
        return self._cost(call.most_tokens - call.sampling.max_tokens, call.sampling.max_tokens)

    def _wave(self, calls: Sequence[JudgeCall], within: Cost | None, cost: Cost) -> tuple[list[JudgeCall], int | None]:
        """The first calls that fit together after `cost`, and the tokens that failed tries may take beside them."""
        if within is None:
            return list(calls), None
        wave: list[JudgeCall] = []
        for call in calls:
            if not self.fits(call, within, cost):
                break
            wave, cost = [*wave, call], cost + self._most_of(call)
        spare = within.tokens - cost.tokens
        dearest = max(self.usd_per_million_read, self.usd_per_million_written) / 1e6
        if dearest:
            spare = min(spare, (within.money_usd - cost.money_usd) / dearest)
        return wave, max(0, int(spare))

    def _ask(self, calls: Sequence[JudgeCall], spare: int | None) -> tuple[list[Reply | None], Cost]:
        most = None
        if spare is not None:
            stored = self.cache.get_many(call.key for call in calls)
            # What is stored is not asked, and 1 is the least that a budget can be.
            most = max(1, spare + sum(call.most_tokens for call in calls if call.key not in stored))
        try:
            asked = ask(
                calls,
                endpoint=self.endpoint,
                cache=self.cache,
                budget=Budget(max_tokens=most),
                concurrency=self.concurrency,
                backoff=self.backoff,
            )
        except JudgeError as error:
            raise InfrastructureError(str(error).replace("The judge at", "The model at")) from None
        outcomes = [asked.outcomes.get(call.key) for call in calls]
        for outcome in outcomes:
            if outcome is not None and outcome.reply is None and not outcome.refused:
                # A reply that a time-out swallowed is no refusal: the same call is made again when the run goes on.
                raise InfrastructureError(f"The model at {self.endpoint.base_url} failed with {outcome.problem}.")
        cost, paid = Cost(), 0
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome is not None and outcome.reply is not None:
                cost = cost + self._cost(*tokens_of(call, outcome.reply))
                paid += 0 if outcome.stored else sum(tokens_of(call, outcome.reply))
        # Tries that failed after the endpoint may have worked for them.
        cost = cost + self._cost(max(asked.tokens - paid, 0), 0)
        return [None if outcome is None else _reply(outcome) for outcome in outcomes], cost

    def _cost(self, read: float, written: float) -> Cost:
        money = (read * self.usd_per_million_read + written * self.usd_per_million_written) / 1e6
        return Cost(money_usd=money, tokens=read + written)


def tokens_of(call: JudgeCall, reply: Reply) -> tuple[int, int]:
    """Tokens read and written; the most that it can be where the endpoint does not count."""
    if reply.counted:
        return reply.prompt_tokens, reply.reply_tokens
    return call.most_tokens - call.sampling.max_tokens, call.sampling.max_tokens


def _reply(outcome: Outcome) -> Reply | None:
    return outcome.reply if outcome.reply is not None and outcome.reply.text.strip() else None


def cut(text: str, most: int) -> str:
    """The text, cut at a line where it is too long."""
    if len(text) <= most:
        return text
    return text[:most].rsplit("\n", 1)[0] + "\n..."
