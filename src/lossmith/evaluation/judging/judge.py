"""A judge: whom to ask, how, and what came of many questions to it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lossmith.errors import ConfigurationError, JudgeError
from lossmith.evaluation.judging.asking import Asked, Backoff, OnCall, ask
from lossmith.evaluation.judging.budget import Budget
from lossmith.evaluation.judging.cache import CallCache
from lossmith.evaluation.judging.calls import JudgeCall, Outcome, Reply, Sampling
from lossmith.evaluation.judging.endpoint import Endpoint
from lossmith.evaluation.judging.verdicts import Verdict

GIVES_UP_AFTER = 20
"""A judge whose first so many replies, those in the store among them, all lack a verdict is not asked further."""


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """One question to a judge, and how its reply is read."""

    id: str
    """Of the question that the answer answers."""
    part: str
    """Which of its questions this is, such as `turn 1` or `A first`."""
    category: str
    """Kind of the question; empty where there are none."""
    call: JudgeCall
    """What is asked."""
    read: Callable[[Reply], Verdict]
    """How the reply is read."""
    checked: bool
    """Whether the reply must repeat a check word."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of one question."""

    id: str
    """Of the question that the answer answers."""
    part: str
    """Which of its questions this is."""
    category: str
    """Kind of the question."""
    value: float | None
    """The verdict; None where there is none."""
    problem: str
    """Why there is none, in words; `not asked` where the asking ended before."""
    by_logprobs: bool
    """Whether the value is a probability of the judge."""
    reply: str
    """What the judge wrote."""
    key: str
    """Of the call in the cache."""
    asked: bool
    """Whether the judge was asked, now or before."""
    checked: bool
    """Whether the reply must repeat a check word."""


class NoVerdictError(JudgeError):
    """A judge replied, and gave no verdict in the asked format even once."""

    def __init__(self, said: str):
        super().__init__(said)
        self.judgements: tuple[Judgement, ...] = ()
        """What came of every question, without a verdict; those that were not reached say so."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of many questions."""

    judgements: tuple[Judgement, ...]
    """In the order of the questions."""
    stopped: str
    """Why not all were asked, in words; empty where they were."""
    sent: int
    """Requests that went to the endpoint now."""
    tokens: int
    """Tokens that they cost."""
    stored: int
    """Replies that were read from the store."""

    def of(self, name: str) -> list[Judgement]:
        """The judgements of one question."""
        return self._by_id.get(name, [])

    @cached_property
    def _by_id(self) -> dict[str, list[Judgement]]:
        found: dict[str, list[Judgement]] = {}
        for one in self.judgements:
            found.setdefault(one.id, []).append(one)
        return found

    @property
    def problems(self) -> dict[str, int]:
        """Why verdicts are missing among those asked, with how often, the most frequent first."""
        counted = Counter(one.problem for one in self.judgements if one.asked and one.value is None)
        return dict(counted.most_common())

    @property
    def missing(self) -> int:
        """Questions that were asked and have no verdict."""
        return sum(self.problems.values())

    @property
    def not_asked(self) -> int:
        """Questions that the asking did not reach."""
        return sum(not one.asked for one in self.judgements)


@dataclass(kw_only=True)
class Judge:
    """A model at an endpoint, with its store, budget and settings.

    Raises:
        ConfigurationError: If `repeats` or `reply_tokens` is below 1, there are several repeats at temperature 0, or
            the judge has no name.
    """

    model: str
    """Its name at the endpoint."""
    endpoint: Endpoint
    """Where it is."""
    cache: CallCache
    """Where its replies are stored."""
    budget: Budget = field(default_factory=Budget)
    """What may be spent."""
    concurrency: int = 8
    """Calls that are under way at once."""
    backoff: Backoff = field(default_factory=Backoff)
    """Tries and waits."""
    temperature: float | None = 0.0
    """Of its replies; None leaves it to the endpoint."""
    reply_tokens: int | None = None
    """Room for a reply; None takes what the prompt needs."""
    repeats: int = 1
    """How often everything is asked; the verdicts of a question are averaged."""
    logprobs: bool = True
    """Whether comparisons ask for log-probabilities."""
    on_call: OnCall | None = None
    """Progress."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigurationError(f"`repeats` must be >= 1, got {self.repeats}.")
        if self.repeats > 1 and self.temperature == 0:
            raise ConfigurationError(
                f"`repeats` is {self.repeats} and `temperature` 0, at which the judge repeats itself: give a "
                f"temperature such as 0.7, or one repeat."
            )
        if self.reply_tokens is not None and self.reply_tokens < 1:
            raise ConfigurationError(f"`reply_tokens` must be >= 1, got {self.reply_tokens}.")
        if not self.model:
            raise ConfigurationError("`model` must name the judge at the endpoint, got nothing.")

    def sampling(self, reply_tokens: int, *, logprobs: bool = False) -> Sampling:
        """How it replies to a prompt that needs so many tokens."""
        return Sampling(
            temperature=self.temperature,
            max_tokens=reply_tokens if self.reply_tokens is None else self.reply_tokens,
            top_logprobs=5 if logprobs and self.logprobs else 0,
        )

    def ask(self, questions: Sequence[Inquiry]) -> Judged:
        """Ask everything that is not stored, and read the verdicts.

        Raises:
            JudgeError: If the endpoint refuses.
            NoVerdictError: If the judge never answers in the asked format; carries its replies.
        """
        readers = {question.call.key: question.read for question in questions}
        stored = self.cache.get_many(readers)
        seen = Counter(readers[key](reply).value is not None for key, reply in stored.items())

        def give_up_on(key: str, reply: Reply) -> None:
            if not seen[True] and seen[False] >= GIVES_UP_AFTER:
                raise _never(self.model, seen[False], readers[key](reply), reply)

        def check(key: str, reply: Reply) -> None:
            seen[readers[key](reply).value is not None] += 1
            give_up_on(key, reply)

        try:
            if stored:
                give_up_on(*list(stored.items())[-1])
            asked = ask(
                [question.call for question in questions],
                endpoint=self.endpoint,
                cache=self.cache,
                budget=self.budget,
                concurrency=self.concurrency,
                backoff=self.backoff,
                on_call=self.on_call,
                on_reply=check,
            )
            return judged(self.model, questions, asked)
        except NoVerdictError as error:
            stored = self.cache.get_many(readers)
            found = {key: Outcome(reply=reply, stored=True) for key, reply in stored.items()}
            error.judgements = tuple(_judgement(question, Asked(outcomes=found)) for question in questions)
            raise


def judged(model: str, questions: Sequence[Inquiry], asked: Asked) -> Judged:
    """Read the verdicts of what was asked.

    Raises:
        NoVerdictError: If there are replies and not one verdict.
    """
    judgements = tuple(_judgement(question, asked) for question in questions)
    replied = [(q, asked.outcomes[q.call.key].reply) for q in questions if q.call.key in asked.outcomes]
    replies = [(question, reply) for question, reply in replied if reply is not None]
    if replies and all(one.value is None for one in judgements):
        question, reply = replies[-1]
        raise _never(model, len(replies), question.read(reply), reply)
    return Judged(
        judgements=judgements,
        stopped=asked.stopped,
        sent=asked.sent,
        tokens=asked.tokens,
        stored=sum(outcome.stored for outcome in asked.outcomes.values()),
    )


def _judgement(question: Inquiry, asked: Asked) -> Judgement:
    key = question.call.key
    outcome = asked.outcomes.get(key)
    reply = outcome.reply if outcome else None
    if outcome is None:
        verdict = Verdict(value=None, problem="not asked")
    elif reply is None:
        verdict = Verdict(value=None, problem=outcome.problem)
    else:
        verdict = question.read(reply)
    return Judgement(
        id=question.id,
        part=question.part,
        category=question.category,
        value=verdict.value,
        problem=verdict.problem,
        by_logprobs=verdict.by_logprobs,
        reply=reply.text if reply else "",
        key=key,
        asked=outcome is not None,
        checked=question.checked,
    )


def _never(model: str, count: int, verdict: Verdict, reply: Reply) -> NoVerdictError:
    shown = " ".join(reply.text.split())
    start = f"{shown[:80]}..." if len(shown) > 80 else shown
    return NoVerdictError(
        f"The judge '{model}' gave no verdict in the asked format in any of {count} replies (the last one: "
        f"{verdict.problem}, '{start}'): choose a judge that keeps to a format. The replies are stored."
    )
