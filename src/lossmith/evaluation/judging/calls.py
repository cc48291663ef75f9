"""What is asked of a judge and what it replies: plain data, identified by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossmith.errors import ConfigurationError

TEMPLATE_TOKENS = 256
"""Room for the system prompt and the marks that an endpoint's chat template adds."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a judge writes its reply.

    Raises:
        ConfigurationError: For a number out of its range.
    """

    temperature: float | None = 0.0
    """Divides the scores before a token is drawn, in [0, 2]; None leaves it to the endpoint (some models take none)."""
    max_tokens: int = 2048
    """Most tokens of a reply, >= 1."""
    seed: int | None = None
    """Of the endpoint's draws, where it has one."""
    top_logprobs: int = 0
    """Log-probabilities of so many alternatives per token are asked for, in [0, 20]; 0 asks for none."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ConfigurationError(f"`temperature` must be in [0, 2], got {self.temperature}.")
        if self.max_tokens < 1:
            raise ConfigurationError(f"`reply_tokens` must be >= 1, got {self.max_tokens}.")
        if not 0 <= self.top_logprobs <= 20:
            raise ConfigurationError(f"`top_logprobs` must be in [0, 20], got {self.top_logprobs}.")


@dataclass(frozen=True, kw_only=True)
class JudgeCall:
    """One question to a judge. Two calls with one key are the same call, whichever address answers them."""

    model: str
    """Name of the judge at its endpoint."""
    messages: tuple[tuple[str, str], ...]
    """Role and content of each message."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the reply is drawn."""
    prompt: str
    """Name and version of the prompt, such as `mt-bench/single-v1`."""
    repeat: int = 0
    """Number of the repetition, >= 0: the same question asked once more is another call."""
    schema: str = ""
    """JSON schema that the reply must keep to, where the endpoint can force it; empty for free text."""

    @property
    def key(self) -> str:
        """SHA-256, in hex, over all of the call; neither the address nor the key of the endpoint enters."""
        # Calls without a schema keep the keys that they had before there were any.
        forced = {"schema": self.schema} if self.schema else {}
        return digest(
            {
                "model": self.model,
                "messages": self.messages,
                "sampling": vars(self.sampling),
                "prompt": self.prompt,
                "repeat": self.repeat,
                **forced,
            }
        )

    @property
    def most_tokens(self) -> int:
        """No fewer tokens than the call can cost: one per byte of text, and room for what a chat template adds."""
        written = sum(len(content.encode("utf-8", "replace")) + 16 for _, content in self.messages)
        return written + len(self.schema) + TEMPLATE_TOKENS + self.sampling.max_tokens


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """One token of a reply, with the alternatives that the judge weighed there."""

    text: str
    """The token."""
    alternatives: tuple[tuple[str, float], ...]
    """Tokens and their log-probabilities, in nats."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge wrote."""

    text: str
    """All of it."""
    finish: str = "stop"
    """Why it ended: `stop`, or `length` where it was cut off."""
    prompt_tokens: int = 0
    """Tokens that were read, as the endpoint counts them."""
    reply_tokens: int = 0
    """Tokens that were written."""
    counted: bool = True
    """Whether the endpoint counted the tokens; otherwise the budget takes the most that the call can cost."""
    tokens: tuple[TokenChoice, ...] = ()
    """The reply by token, where log-probabilities were asked for and given."""

    def to_json(self) -> str:
        """The reply as JSON, for the cache."""
        values = {**vars(self), "tokens": [[token.text, token.alternatives] for token in self.tokens]}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Reply":
        """The reply that `to_json` wrote."""
        values = json.loads(text)
        values["tokens"] = tuple(
            TokenChoice(text=token, alternatives=tuple((word, value) for word, value in alternatives))
            for token, alternatives in values["tokens"]
        )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a call."""

    reply: Reply | None
    """What the judge wrote; None where there is no reply."""
    problem: str = ""
    """Why there is none, in words."""
    stored: bool = False
    """Whether it was read from the cache and cost nothing."""
    refused: bool = False
    """Whether the endpoint refused this very call, and would again."""


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of values as canonical JSON."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def distinct(calls: Sequence[JudgeCall]) -> dict[str, JudgeCall]:
    """The calls by key, each once, in order."""
    return {call.key: call for call in calls}
