"""The one form in which a task for causal language models reaches a study: prompts, targets, options, provenance."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lossmith._extras import require
from lossmith.errors import ConfigurationError, DataError

Kind = Literal["math", "choice", "text"]
"""What an answer is: a number after worked steps, the letter of an option, or a text."""

DRAW_STREAM = 7003
"""Keeps the generator of draws apart from other uses of the same seed."""

Row = TypeVar("Row")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the options of a choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One prompt and what should follow it."""

    id: str
    """Name of the row, for messages and reports."""
    prompt: str
    """What a base model reads, up to where the target begins: `Question: ...\\nAnswer: `."""
    question: str
    """What a chat model is asked: the prompt without its frame, options and context included."""
    target: str
    """What should follow, without the end-of-sequence token."""
    answer: str
    """The final answer within the target: a number in digits, a letter, or the whole target."""
    options: tuple[str, ...] = ()
    """Texts one of which follows the prompt (the letters of a choice); empty where the answer is free."""
    label: int | None = None
    """Index into `options` of the right one."""


@dataclass(frozen=True, kw_only=True)
class CompletionTask:
    """A task whose answers a causal language model writes, with fixed splits.

    Raises:
        DataError: If `train` or `test` is empty, or a problem has an empty prompt or target, or a label outside its
            options.

    Example:
        >>> row = Problem(id="1", prompt="1+1? ", question="1+1?", target="<<1+1=2>> #### 2", answer="2")
        >>> task = CompletionTask(name="sums", kind="math", train=(row,), test=(row,))
        >>> task.fingerprint[:8], task.warnings
        ('18dea55d', ('1 of 1 test problems repeat a prompt of train.',))
    """

    name: str
    """Short name: a shipped one, or the stem of the task file."""
    kind: Kind
    """What an answer is."""
    train: tuple[Problem, ...]
    """Rows to train on, in file order."""
    validation: tuple[Problem, ...] = ()
    """Rows for learning curves; empty where the data bring none."""
    test: tuple[Problem, ...] = ()
    """Rows for the final metrics, in file order."""
    instruction: str = ""
    """What a chat model is told before its question: the form that its answer must have."""
    source: str = ""
    """Where the rows come from: repository and commit, hub id, or path."""
    licence: str = ""
    """Licence of the data."""
    attribution: str = ""
    """Whom to cite."""
    warnings: tuple[str, ...] = ()
    """Sentences about the data that a report must repeat."""
    fingerprint: str = field(init=False)
    """SHA-256, in hex, over kind, instruction and all rows of all splits in order; names and paths do not enter."""

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, problems in splits.items():
            if not problems and split != "validation":
                raise DataError(f"Task '{self.name}' has no row in `{split}`: give it at least one.")
            for problem in problems:
                _check_problem(self.name, split, problem)
        object.__setattr__(self, "fingerprint", fingerprint_of(self.kind, self.instruction, splits))
        object.__setattr__(self, "warnings", (*self.warnings, *_repeats(splits)))


def letters(count: int) -> tuple[str, ...]:
    """Letters of the options of a choice, from A.

    Example:
        >>> letters(3)
        ('A', 'B', 'C')
    """
    return tuple(LETTERS[:count])


def fingerprint_of(kind: str, instruction: str, splits: dict[str, tuple[Problem, ...]]) -> str:
    """SHA-256, in hex, of the splits written as one JSON line per row, each split under its name."""
    digest = hashlib.sha256(f"{kind}\n{json.dumps(instruction)}\n".encode())
    for split, problems in splits.items():
        digest.update(f"{split}\n".encode())
        for row in problems:
            line = [row.prompt, row.question, row.target, row.answer, list(row.options), row.label]
            digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _check_problem(task: str, split: str, problem: Problem) -> None:
    where = f"Task '{task}', {split} row '{problem.id}'"
    if not problem.prompt.strip() or not problem.target.strip():
        empty = "prompt" if not problem.prompt.strip() else "target"
        raise DataError(f"{where}, has an empty {empty}: fill it in or remove the row.")
    if problem.options and (problem.label is None or not 0 <= problem.label < len(problem.options)):
        raise DataError(
            f"{where}, has {len(problem.options)} options, so `label` must be 0 to {len(problem.options) - 1}, got "
            f"{problem.label}."
        )


def _repeats(splits: dict[str, tuple[Problem, ...]]) -> tuple[str, ...]:
    found = []
    for split in ("train", "validation"):
        seen = {_key(problem) for problem in splits[split]}
        count = sum(_key(problem) in seen for problem in splits["test"])
        if count:
            found.append(f"{count} of {len(splits['test'])} test problems repeat a prompt of {split}.")
    return tuple(found)


def _key(problem: Problem) -> str:
    return " ".join(problem.prompt.casefold().split())


def pairs(problems: Sequence[Problem]) -> list[tuple[str, str, str]]:
    """Prompt, question and target of each problem, as encoders take them."""
    return [(problem.prompt, problem.question, problem.target) for problem in problems]


def draw_problems(problems: Sequence[Row], count: int | None, *, seed: int) -> tuple[Row, ...]:
    """Draw problems without replacement, in drawn order; under one seed fewer are the first of more.

    Args:
        problems: Where they come from.
        count: How many, >= 1, or None for all of them in their own order.
        seed: >= 0.

    Raises:
        ConfigurationError: If `count` or `seed` is out of range.
        DataError: If there are fewer problems than `count`.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value is not None and (isinstance(value, bool) or value < least):
            raise ConfigurationError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if count is None:
        return tuple(problems)
    if count > len(problems):
        raise DataError(f"There are {len(problems)} problems, `count` wants {count}: ask for at most {len(problems)}.")
    np = require("numpy", extra="train", purpose="draw problems")
    order = np.random.Generator(np.random.PCG64([seed, DRAW_STREAM])).permutation(len(problems))
    return tuple(problems[row] for row in order[:count])
