"""Turn the cells of a user's file into texts and labels, or say which rows stand in the way."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import DataError
from lossmith.tasks._tables import read_table


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row of a file."""

    text: str
    """The text, unchanged."""
    label: str
    """The label in writing: 3 is "3", true is "True"; white space around it is dropped."""
    label_name: str | None
    """Name of the label, None where the file has no such column."""


def read_rows(path: Path, text_column: str, label_column: str) -> list[Row]:
    """Read the rows of one file, in file order.

    Args:
        path: A file that `read_table` reads.
        text_column: Column of the texts: strings with something in them.
        label_column: Column of the labels: all strings, all integers (3.0 counts as 3) or all booleans. A column of
            that name followed by `_name`, where there is one, holds the names of the labels.

    Raises:
        DataError: If a column is missing, a text or label is missing or of a wrong type, or the file cannot be read.
    """
    name_column = f"{label_column}_name"
    table = read_table(path, (text_column, label_column, name_column))
    for argument, column in (("text_column", text_column), ("label_column", label_column)):
        if column not in table.columns:
            raise DataError(
                f"`{path}` has no column '{column}' (`{argument}`).{did_you_mean(column, table.column_names)} "
                f"Its columns: {_quote(table.column_names)}."
            )
    texts = _texts(path, text_column, table.columns[text_column])
    labels = _labels(path, label_column, table.columns[label_column])
    names = table.columns.get(name_column)
    label_names = [None] * len(texts) if names is None else ["" if n is None else str(n).strip() for n in names]
    return [Row(*cells) for cells in zip(texts, labels, label_names, strict=True)]


def order_labels(labels: set[str]) -> tuple[str, ...]:
    """Labels in the order of their class ids: numerically where all are integers, else by code point.

    Example:
        >>> order_labels({"10", "9", "-1"}), order_labels({"10", "9", "b"})
        (('-1', '9', '10'), ('10', '9', 'b'))
    """
    if all(_is_plain_integer(label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def name_labels(where: str, rows: Sequence[Row], ordered: Sequence[str], label_column: str) -> tuple[str, ...]:
    """Name of each label in `ordered`: from the name column where a file has one, else the label itself.

    Raises:
        DataError: If a label has no name or several, or two labels share one.
    """
    found: dict[str, set[str]] = {label: set() for label in ordered}
    for row in rows:
        if row.label_name is not None:
            found[row.label].add(row.label_name)
    if not any(found.values()):
        return tuple(ordered)
    advice = f"correct or remove the column '{label_column}_name'"
    for label, names in found.items():
        if len(names) != 1 or "" in names:
            raise DataError(f"`{where}` must give label '{label}' one name, got {sorted(names)}: {advice}.")
    named = tuple(names.pop() for names in found.values())
    if len(set(named)) < len(named):
        raise DataError(f"`{where}` must give each label its own name, got {list(named)}: {advice}.")
    return named


def list_rows(rows: Sequence[int], shown: int = 5) -> str:
    """0-based row indices as a reader counts them: from 1, the first few.

    Example:
        >>> list_rows([0, 3]), list_rows(range(9), shown=3)
        ('row 1, 4', 'row 1, 2, 3 and 6 more')
    """
    listed = ", ".join(str(row + 1) for row in rows[:shown])
    return f"row {listed}" + (f" and {len(rows) - shown} more" if len(rows) > shown else "")


def _quote(names: Sequence[str], shown: int = 20) -> str:
    # A file without a header has its first texts for column names: keep the sentence short.
    listed = ", ".join(reprlib.repr(name) for name in names[:shown])
    return listed + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _texts(path: Path, column: str, values: list[Any]) -> list[str]:
    _check_present(path, column, "text", values)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"`{path}` column '{column}' must hold strings, got {type(value).__name__} in {list_rows([row])}."
            )
    _check_encodable(path, column, values)
    return values


def _labels(path: Path, column: str, values: list[Any]) -> list[str]:
    _check_present(path, column, "label", values)
    kinds: dict[str, int] = {}
    labels = []
    for row, value in enumerate(values):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int):
            raise DataError(
                f"`{path}` column '{column}' must hold strings, integers or booleans, "
                f"got {reprlib.repr(value)} ({type(value).__name__}) in {list_rows([row])}."
            )
        kinds.setdefault(type(value).__name__, row)
        labels.append(str(value).strip())
    if len(kinds) > 1:
        mixed = ", ".join(f"{kind} ({list_rows([row])})" for kind, row in kinds.items())
        raise DataError(f"`{path}` column '{column}' must hold labels of one type, got {mixed}.")
    _check_encodable(path, column, labels)
    return labels


def _check_present(path: Path, column: str, what: str, values: list[Any]) -> None:
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"`{path}` must have a {what} in every row of column '{column}', got {len(missing)} of {len(values)} "
            f"without ({list_rows(missing)}; row 1 is the first after a header): fill or remove them."
        )


def _check_encodable(path: Path, column: str, values: list[str]) -> None:
    broken = [row for row, value in enumerate(values) if not is_encodable(value)]
    if broken:
        raise DataError(
            f"`{path}` column '{column}' must hold valid Unicode, got half of a surrogate pair in {list_rows(broken)}."
        )


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_encodable(text: str) -> bool:
    """Whether a text is valid Unicode: JSON can hold half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_plain_integer(label: str) -> bool:
    digits = label.removeprefix("-")
    canonical = digits == "0" or not digits.startswith("0")
    return digits.isascii() and digits.isdigit() and canonical and len(digits) < 20 and label != "-0"
