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

_PAIRS = (
    *((f"{stem}_a", f"{stem}_b") for stem in ("text", "sentence", "question", "sent")),
    *((f"{stem}1", f"{stem}2") for stem in ("text", "sentence", "question", "sent", "s")),
    *((f"{stem}_1", f"{stem}_2") for stem in ("text", "sentence", "question", "sent")),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "answer"),
    ("text", "text_pair"),
    ("text", "text2"),
    ("#1 string", "#2 string"),
)
"""Names, in lower case, that published data sets give to two columns of texts."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a file are read."""

    text: str = "text"
    """Column of the texts."""
    label: str = "label"
    """Column of the labels; a column of that name followed by `_name`, where there is one, holds their names."""
    pair: str | None = None
    """Column of the second texts, None where a row has one text."""

    def settings(self) -> dict[str, str]:
        """The columns that a file must have, by the name of the setting."""
        pair = {} if self.pair is None else {"text_pair_column": self.pair}
        return {"text_column": self.text, **pair, "label_column": self.label}


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row of a file."""

    text: str
    """The text, unchanged; of a pair the first."""
    pair: str | None
    """The second text of a pair."""
    label: str
    """The label in writing: 3 is "3", true is "True"; white space around it is dropped."""
    label_name: str | None
    """Name of the label, None where the file has no such column."""


def read_rows(path: Path, columns: Columns) -> tuple[list[Row], tuple[str, ...]]:
    """Read the rows of one file, in file order, and say what of it is left unread.

    Args:
        path: A file that `read_table` reads.
        columns: Texts are strings with something in them; labels are all strings, all integers (3.0 counts as 3) or
            all booleans.

    Raises:
        DataError: If a column is missing, the file has two columns of texts where one is expected, a text or label is
            missing or of a wrong type, or the file cannot be read.
    """
    name_column = f"{columns.label}_name"
    table = read_table(path, (*columns.settings().values(), name_column))
    for setting, column in columns.settings().items():
        if column not in table.columns:
            raise _missing_column(path, setting, column, columns, table.column_names)
    texts = _texts(path, columns.text, table.columns[columns.text])
    pairs = [None] * len(texts) if columns.pair is None else _texts(path, columns.pair, table.columns[columns.pair])
    labels = _labels(path, columns.label, table.columns[columns.label])
    names = table.columns.get(name_column)
    label_names = [None] * len(texts) if names is None else ["" if n is None else str(n).strip() for n in names]
    rows = [Row(*cells) for cells in zip(texts, pairs, labels, label_names, strict=True)]
    return rows, _unread(columns, table.column_names)


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


def text_pair(names: Sequence[str]) -> tuple[str, str] | None:
    """The two columns that are known to hold a pair of texts, as they are written, or None.

    Example:
        >>> text_pair(["id", "Sentence1", "Sentence2"]), text_pair(["id", "text"])
        (('Sentence1', 'Sentence2'), None)
    """
    written = {name.lower(): name for name in names}
    return next(((written[a], written[b]) for a, b in _PAIRS if a in written and b in written), None)


def list_rows(rows: Sequence[int], shown: int = 5) -> str:
    """0-based row indices as a reader counts them: from 1, the first few.

    Example:
        >>> list_rows([0, 3]), list_rows(range(9), shown=3)
        ('row 1, 4', 'row 1, 2, 3 and 6 more')
    """
    listed = ", ".join(str(row + 1) for row in rows[:shown])
    return f"row {listed}" + (f" and {len(rows) - shown} more" if len(rows) > shown else "")


def _missing_column(path: Path, setting: str, column: str, columns: Columns, names: Sequence[str]) -> DataError:
    found = text_pair(names)
    if setting == "text_column" and columns.pair is None and found is not None:
        return DataError(
            f"`{path}` has no column '{column}' (`text_column`) but two columns of texts, '{found[0]}' and "
            f"'{found[1]}': give `text_column={found[0]} text_pair_column={found[1]}`, or one of them as `text_column`."
        )
    if column == Columns().settings().get(setting):
        flag = f"--{setting.replace('_', '-')}"
        return unnamed_column(path, column, f"`{setting}=NAME` (`{flag} NAME`)", names)
    return DataError(
        f"`{path}` has no column '{column}' (`{setting}`).{did_you_mean(column, names)} Its columns: {_quote(names)}."
    )


def unnamed_column(path: Path, column: str, setting: str, names: Sequence[str]) -> DataError:
    """That a file lacks a column which nobody named: no name of its own is a slip of the pen for it.

    Args:
        path: The file.
        column: What is read where no column is named.
        setting: How one is named, as the user types it.
        names: The columns that the file has.
    """
    return DataError(
        f"`{path}` has no column '{column}', which is read where none is named: give {setting}. "
        f"Its columns: {_quote(names)}."
    )


def unread_text(names: Sequence[str], text: str, label: str | None) -> str | None:
    """The other column of a pair of texts that `text` is one column of, unless that is the label.

    Example:
        >>> unread_text(["text", "text2"], "text", None), unread_text(["question", "answer"], "question", "answer")
        ('text2', None)
    """
    found = text_pair(names)
    if found is None or text not in found or label in found:
        return None
    return found[1 - found.index(text)]


def _unread(columns: Columns, names: Sequence[str]) -> tuple[str, ...]:
    other = None if columns.pair is not None else unread_text(names, columns.text, columns.label)
    if other is None:
        return ()
    return (f"The column '{other}' is not read: `text_pair_column={other}` makes it the second text.",)


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
