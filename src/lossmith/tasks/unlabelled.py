"""Texts to be classified, from a file whose labels may be missing or from lines."""

import codecs
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._rows import _quote, _texts, text_pair, unnamed_column, unread_text
from lossmith.tasks._tables import read_table

USUAL = {"text_column": "text", "label_column": "label"}
"""The columns that are read where none is named."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Rows of a file, in file order."""

    texts: list[str]
    """The texts, or the first ones of pairs, unchanged."""
    pairs: list[str] | None
    """The second texts; None where a row has one."""
    labels: list[str | None] | None
    """Name of each row's class, None in a row without; None where the file has no such column."""
    unread: str | None = None
    """Another column of texts that was left out."""


def read_texts(
    path: Path,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    usual: Mapping[str, str] | None = None,
) -> Texts:
    """Read the texts of a CSV, TSV, JSONL (each plain or .gz) or parquet file, and their labels where it has them.

    Args:
        path: The file.
        text_column: Column of the texts; of pairs the column of the first. None takes the usual one, else `text`.
        text_pair_column: Column of the second texts. None takes the usual one, where there is one.
        label_column: Column of the labels, whose names come from the column of that name followed by `_name`, where
            there is one. None takes the usual one, else `label`, if it is in the file.
        usual: Argument -> the column that is read where none is named, such as the one that a model was trained on.

    Raises:
        ConfigurationError: If two of the columns are one.
        DataError: If a column is missing, a text is missing or no string, or the file cannot be read or has no row.
    """
    given = {"text_column": text_column, "text_pair_column": text_pair_column, "label_column": label_column}
    typed = {name: column for name, column in given.items() if column is not None}
    wanted = {**USUAL, **(usual or {}), **typed}
    labelled = wanted["label_column"]
    if label_column is None:
        # Labels that nobody asked for are no duty of the file, and no text is one.
        del wanted["label_column"]
        labelled = None if labelled in wanted.values() else labelled
    _check_different(wanted)
    label_columns = [] if labelled is None else [f"{labelled}_name", labelled]
    table = read_table(path, (*wanted.values(), *label_columns))
    for name, column in wanted.items():
        if column not in table.columns:
            raise _missing_column(path, name, column, table.column_names, wanted=wanted, typed=name in typed)
    there = next((table.columns[name] for name in label_columns if name in table.columns), None)
    text, pair = wanted["text_column"], wanted.get("text_pair_column")
    return Texts(
        texts=_texts(path, text, table.columns[text]),
        pairs=None if pair is None else _texts(path, pair, table.columns[pair]),
        labels=None if there is None else [_label(value) for value in there],
        unread=None if pair is not None else unread_text(table.column_names, text, labelled),
    )


def lines_of(content: bytes, where: str = "standard input") -> Texts:
    r"""One text per line, LF or CRLF, in UTF-8.

    Args:
        content: The lines; a last one may lack its end.
        where: What they are called in messages.

    Raises:
        DataError: If there is none, one is empty, or they are not UTF-8.

    Example:
        >>> lines_of("fine\r\nbad\n".encode()).texts
        ['fine', 'bad']
    """
    try:
        # Not splitlines(): U+2028 and its like may stand inside a text.
        lines = content.removeprefix(codecs.BOM_UTF8).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} must be UTF-8, got byte 0x{content[error.start]:02x} in line {line}.") from error
    texts = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not texts:
        raise DataError(f"{where} must hold one text a line, got nothing.")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"{where} must hold one text a line, got an empty line {number}: remove it.")
    return Texts(texts=texts, pairs=None, labels=None)


def _check_different(wanted: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, column in wanted.items():
        if column in seen:
            raise ConfigurationError(f"`{seen[column]}` and `{_flag(name)}` must differ, got '{column}' for both.")
        seen[column] = _flag(name)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _missing_column(
    path: Path, name: str, column: str, names: tuple[str, ...], *, wanted: Mapping[str, str], typed: bool
) -> DataError:
    found, setting = text_pair(names), _flag(name)
    if name == "text_column" and "text_pair_column" not in wanted and found is not None:
        return DataError(
            f"`{path}` has no column '{column}' (`{setting}`) but two columns of texts, '{found[0]}' and '{found[1]}': "
            f"name one of them with `--text-column`, or, for a model of pairs, the second with `--text-pair-column`."
        )
    if not typed:
        return unnamed_column(path, column, f"`{setting} NAME`", names)
    return DataError(
        f"`{path}` has no column '{column}' (`{setting}`).{did_you_mean(column, names)} Its columns: {_quote(names)}."
    )


def _label(value: Any) -> str | None:
    """A label as tasks write it: 3.0 is "3"; white space around it is dropped."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
