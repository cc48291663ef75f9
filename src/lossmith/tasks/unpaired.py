"""Unpaired preferences, for kto and bco: answers that are each said to be good or bad."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks.preference import Pair, Prompt, fingerprint_of, written

RATED_COLUMNS = "`prompt`, `completion` and `label`"
"""Columns of unpaired rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A prompt, an answer, and whether it is a good one."""

    id: str
    """Name of the row, for messages and reports."""
    prompt: Prompt
    """What it answers."""
    completion: str
    """The answer."""
    label: bool
    """Whether it is a good one."""


@dataclass(frozen=True, kw_only=True)
class UnpairedTask:
    """Rated answers with fixed splits.

    Raises:
        DataError: If `train` or `test` is empty, or `train` lacks good or bad answers.
    """

    name: str
    """Short name: a known one, or the stem of the file."""
    train: tuple[Rated, ...]
    """Rows to train on, in file order."""
    validation: tuple[Rated, ...] = ()
    """Rows for learning curves; empty where the data bring none."""
    test: tuple[Rated, ...] = ()
    """Rows for the final metrics, in file order."""
    source: str = ""
    """Where the rows come from: repository and commit, hub id, or path."""
    licence: str = ""
    """Licence of the data."""
    attribution: str = ""
    """Whom to cite."""
    warnings: tuple[str, ...] = ()
    """Sentences about the data that a report must repeat."""

    fingerprint: str = field(init=False)
    """SHA-256, in hex, over all rows of all splits in order; names and paths do not enter."""

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            if not getattr(self, split):
                raise DataError(f"Task '{self.name}' has no row in `{split}`: give it at least one.")
        if len({row.label for row in self.train}) < 2:
            kind = "good" if self.train[0].label else "bad"
            raise DataError(
                f"Task '{self.name}' must have good and bad answers in `train`, got {kind} ones only: nothing tells "
                "what to prefer."
            )
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = {split: ([written(row.prompt), row.completion, row.label] for row in splits[split]) for split in splits}
        object.__setattr__(self, "fingerprint", fingerprint_of(rows))


def unpaired_rows(rows: Sequence[Rated]) -> list[dict[str, Any]]:
    """Rated answers as TRL's KTOTrainer takes them: texts, or messages where the prompt is a chat.

    Example:
        >>> unpaired_rows([Rated(id="1", prompt="1+1=", completion="2", label=True)])
        [{'prompt': '1+1=', 'completion': '2', 'label': True}]
    """
    return [
        {
            "prompt": written(row.prompt),
            "completion": row.completion
            if isinstance(row.prompt, str)
            else [{"role": "assistant", "content": row.completion}],
            "label": row.label,
        }
        for row in rows
    ]


def unpair(pairs: Sequence[Pair]) -> tuple[Rated, ...]:
    """Two rated answers of each pair: the chosen one, which is good, then the rejected one, which is bad.

    Example:
        >>> [row.label for row in unpair([Pair(id="1", prompt="1+1=", chosen="2", rejected="3")])]
        [True, False]
    """
    return tuple(
        Rated(id=f"{pair.id}:{side}", prompt=pair.prompt, completion=completion, label=label)
        for pair in pairs
        for side, completion, label in (("chosen", pair.chosen, True), ("rejected", pair.rejected, False))
    )
