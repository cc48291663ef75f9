"""The one form in which preferences reach a study: prompts, the better and the worse answer, provenance."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lossmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """What was said."""


Prompt = str | tuple[Message, ...]
"""A text that an answer continues as it stands, or a chat that ends with the user's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt, an answer, and another answer that is worse."""

    id: str
    """Name of the row, for messages and reports."""
    prompt: Prompt
    """What both answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    chosen_score: float | None = None
    """What the data say of the better answer, where they say it; the higher the better."""
    rejected_score: float | None = None
    """The same of the worse one."""


@dataclass(frozen=True, kw_only=True)
class PreferenceTask:
    """Pairs of answers with fixed splits.

    Raises:
        DataError: If `train` or `test` is empty.

    Example:
        >>> pair = Pair(id="1", prompt="1+1=", chosen="2", rejected="3")
        >>> task = PreferenceTask(name="sums", train=(pair,), test=(pair,))
        >>> len(task.train), len(task.fingerprint)
        (1, 64)
    """

    name: str
    """Short name: a known one, or the stem of the file."""
    train: tuple[Pair, ...]
    """Pairs to train on, in file order."""
    validation: tuple[Pair, ...] = ()
    """Pairs for learning curves; empty where the data bring none."""
    test: tuple[Pair, ...] = ()
    """Pairs for the final metrics, in file order."""
    source: str = ""
    """Where the rows come from: repository and commit, hub id, or path."""
    licence: str = ""
    """Licence of the data."""
    attribution: str = ""
    """Whom to cite."""
    warnings: tuple[str, ...] = ()
    """Sentences about the data that a report must repeat."""
    fingerprint: str = field(init=False)
    """SHA-256, in hex, over all rows of all splits in order; names, paths and scores do not enter."""

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, pairs in splits.items():
            if not pairs and split != "validation":
                raise DataError(f"Task '{self.name}' has no pair in `{split}`: give it at least one.")
        rows = {
            split: ([written(pair.prompt), pair.chosen, pair.rejected] for pair in splits[split]) for split in splits
        }
        object.__setattr__(self, "fingerprint", fingerprint_of(rows))


def chat(prompt: Prompt) -> tuple[Message, ...]:
    """The prompt as a chat: a text is one turn of the user.

    Example:
        >>> chat("Who?")
        (Message(role='user', content='Who?'),)
    """
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def as_messages(prompt: tuple[Message, ...]) -> list[dict[str, str]]:
    """A chat as chat templates and TRL take it."""
    return [{"role": message.role, "content": message.content} for message in prompt]


def prompt_text(prompt: Prompt) -> str:
    """All of a prompt in one text, for reports and for telling prompts apart."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def written(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON takes it."""
    return prompt if isinstance(prompt, str) else as_messages(prompt)


def fingerprint_of(splits: Mapping[str, Iterable[object]]) -> str:
    """SHA-256, in hex, of the splits written as one JSON line per row, each split under its name."""
    digest = hashlib.sha256()
    for split, rows in splits.items():
        digest.update(f"{split}\n".encode())
        for row in rows:
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
