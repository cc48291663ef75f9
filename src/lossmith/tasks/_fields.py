"""One row of a task's data, in whatever layout it came: named fields, and errors that say where."""

import ast
import json
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lossmith._checks import did_you_mean
from lossmith.errors import DataError
from lossmith.tasks._rows import is_encodable


class RawRow(NamedTuple):
    """One row as it came."""

    where: str
    """File or hub data set."""
    row: int
    """Its number there, from 1."""
    values: dict[str, Any]
    """Value by field name."""


RawSplits = dict[str, list[RawRow]]
"""Rows by split: train, test, and validation where there is one."""


@dataclass(frozen=True)
class Fields:
    """The fields of one row; None counts as absent."""

    where: str
    """File or hub data set, for messages."""
    row: int
    """Its number there, from 1."""
    id: str
    """Its name in the data, or split and number."""
    values: Mapping[str, Any]
    """Value by field name."""
    notes: Counter[str] = field(default_factory=Counter)
    """How many rows have which peculiarity; shared by the rows of a split."""

    def has(self, name: str) -> bool:
        """Whether the row has a value for `name`."""
        return self.values.get(name) is not None

    def value(self, *names: str) -> Any:
        """The value of the first of `names` that the row has.

        Raises:
            DataError: If it has none of them; the message names file, row, fields and those that are there.
        """
        for name in names:
            if self.has(name):
                return self.values[name]
        there = [name for name in self.values if self.has(name)]
        wanted = " or ".join(f"`{name}`" for name in names)
        empty = next((name for name in names if name in self.values), None)
        if empty is not None:
            raise DataError(f"{self} must have a value in field `{empty}`, got null.")
        raise DataError(
            f"{self} has no field {wanted}.{did_you_mean(names[0], there)} "
            f"Its fields: {', '.join(there[:20]) or 'none'}{', ...' if len(there) > 20 else ''}."
        )

    def text(self, *names: str) -> str:
        """Like `value`, as text, unchanged; numbers are written out.

        Raises:
            DataError: If the field is absent, empty, or neither text nor a number.
        """
        found = self.value(*names)
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise DataError(
                f"{self} must have text in field {_among(names)}, got {reprlib.repr(found)} ({type(found).__name__})."
            )
        text = str(found)
        if not text.strip():
            raise DataError(f"{self} has nothing in field {_among(names)}: fill it in or remove the row.")
        if not is_encodable(text):
            raise DataError(f"{self} must have valid Unicode in field {_among(names)}, got half of a surrogate pair.")
        return text

    def texts(self, *names: str) -> tuple[str, ...]:
        """Like `value`, as a list of texts; a CSV cell may hold the list as JSON or as Python writes it.

        Raises:
            DataError: If the field is absent or no list of texts.
        """
        found = listed(self.value(*names))
        if not isinstance(found, list | tuple) or not found or not all(isinstance(item, str) for item in found):
            raise DataError(f"{self} must have a list of texts in field {_among(names)}, got {reprlib.repr(found)}.")
        return tuple(found)

    def note(self, sentence: str) -> None:
        """Count this row under a sentence that completes "3 of 10 train rows ..."."""
        self.notes[sentence] += 1

    def __str__(self) -> str:
        return f"{self.where} row {self.row}"


def listed(value: Any) -> Any:
    """A list or mapping that a CSV cell holds in writing, read; anything else unchanged.

    Example:
        >>> listed("['a', 'b']"), listed('["a"]'), listed("[no list")
        (['a', 'b'], ['a'], '[no list')
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def _among(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)
