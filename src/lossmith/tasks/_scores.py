"""Scores of the two answers of a row, and which of two is the chosen one."""

import math
import reprlib
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, listed

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("reward_chosen", "reward_rejected"),
)

_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read_scores(fields: Fields) -> tuple[float | None, float | None]:
    """What a row says of the chosen and of the rejected answer, None where it says nothing.

    Raises:
        DataError: If it is no finite number.
    """
    for names in _SCORES:
        if any(fields.has(name) for name in names):
            chosen, rejected = (read_score(fields, name, fields.values.get(name)) for name in names)
            return chosen, rejected
    return None, None


def read_score(fields: Fields, name: str, value: Any) -> float | None:
    """A score as a number; None and an empty CSV cell are none.

    Raises:
        DataError: If it is no finite number.
    """
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{fields} must have a finite number in field `{name}`, got {reprlib.repr(value)}.")
    return number


def two_of(fields: Fields, name: str) -> list[Any]:
    """The two items of a list field.

    Raises:
        DataError: If there are not two.
    """
    found = listed(fields.value(name))
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise DataError(f"{fields} must have a list of two in field `{name}`, got {reprlib.repr(found)}.")
    return list(found)


def read_choice(fields: Fields, name: str) -> int:
    """Index, 0 or 1, of the chosen one of two.

    Raises:
        DataError: If it is neither.
    """
    value = fields.value(name)
    if not isinstance(value, bool) and str(value).strip() in ("0", "1", "0.0", "1.0"):
        return int(float(value))
    raise DataError(f"{fields} must have 0 or 1 in field `{name}`, the index of the better answer, got {value!r:.80}.")


def read_label(fields: Fields, name: str) -> bool:
    """Whether an answer is good: true or false, 1 or 0, as values or in writing.

    Raises:
        DataError: If it is anything else.
    """
    value = fields.value(name)
    found = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if found is None:
        raise DataError(f"{fields} must have true or false in field `{name}`, got {reprlib.repr(value)}.")
    return found
