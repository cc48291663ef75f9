"""Rows of a task's splits from the package or from a folder, in whatever layout they were published."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, RawRow, RawSplits
from lossmith.tasks._shipped import CompletionRecord, PreferenceRecord, shipped_rows
from lossmith.tasks._tables import clear_read_errors, read_table, table_suffix

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Words in the names of files that say which split they hold."""

ID_FIELDS = ("id", "ID", "ind")
"""Fields that name a row."""

# One format of a file that a folder holds in several: those that keep lists first.
_PREFERRED = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


Item = TypeVar("Item")


def shipped_splits(record: CompletionRecord | PreferenceRecord) -> RawSplits:
    """Rows that travel inside the package."""
    return {
        split: [
            RawRow(f"`{record.name}/{split}.jsonl.gz`", row, values)
            for row, values in enumerate(shipped_rows(record.name, split), start=1)
        ]
        for split in SPLIT_WORDS
    }


def folder_splits(
    folder: Path,
    layout: str,
    *,
    test_from_validation: bool = False,
    names: Mapping[str, str] | None = None,
    needs_test: bool = True,
) -> RawSplits:
    """Rows of the train, validation and test files of a folder.

    A file belongs to the split whose word its name is (`train.jsonl.gz`, `dev.json`) or, where there is none such,
    holds (`hellaswag_val.jsonl`, `train-00000-of-00002.parquet`, whose parts are joined). Of one name in several
    formats JSON is read before parquet and CSV.

    Args:
        folder: Where the files are.
        layout: What each row must hold, for messages.
        test_from_validation: Whether a validation file may stand in for a missing test file.
        names: What its publishers call a split (`{"train": "train_prefs"}`); files so named count before all others.
        needs_test: Whether there must be a test file; else train may stand alone.

    Raises:
        DataError: If the folder, train or test is missing, a split has several files, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder `{folder}` (looked from `{Path.cwd()}`).")
    files = data_files(folder)
    called = names or {}
    found = {split: _files_of(folder, files, words, called.get(split)) for split, words in SPLIT_WORDS.items()}
    for split in ("train", "test") if needs_test else ("train",):
        if not found[split] and not (split == "test" and test_from_validation and found["validation"]):
            there = ", ".join(path.name for path in files) or "no data file"
            raise DataError(
                f"`{folder}` must have a {split} file ({split}.jsonl, .json, .csv or .parquet; plain or .gz), got "
                f"{there}. Each row with {layout}."
            )
    return {split: [row for path in paths for row in file_rows(path)] for split, paths in found.items() if paths}


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that `read_table` reads, by name.

    Raises:
        DataError: If it cannot be read.
    """
    with clear_read_errors(folder):
        return sorted(path for path in folder.iterdir() if path.is_file() and table_suffix(path) is not None)


def file_rows(path: Path) -> list[RawRow]:
    """All rows of one file.

    Raises:
        DataError: If it is not there, of another format, or has no row.
    """
    table = read_table(path)
    columns = table.columns.items()
    return [
        RawRow(f"`{path}`", row + 1, {name: column[row] for name, column in columns}) for row in range(table.num_rows)
    ]


def read_items(
    split: str, rows: Sequence[RawRow], read: Callable[[Fields], Item | None]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """What `read` makes of the rows of one split, in file order, without the None, and sentences on what it noted."""
    notes: Counter[str] = Counter()
    items: list[Item] = []
    for number, raw in enumerate(rows):
        named = next((raw.values[name] for name in ID_FIELDS if raw.values.get(name) is not None), f"{split}:{number}")
        item = read(Fields(raw.where, raw.row, str(named), raw.values, notes))
        if item is not None:
            items.append(item)
    return tuple(items), tuple(f"{count} of {len(rows)} {split} rows {note}." for note, count in notes.items())


def _files_of(folder: Path, files: list[Path], words: tuple[str, ...], called: str | None) -> list[Path]:
    named = [path for path in files if called is not None and _SHARD.sub("", _stem(path)) == called]
    exact = named or [path for path in files if _stem(path) in words]
    found = exact or [path for path in files if set(words) & set(re.split(r"[^a-z]+", _stem(path)))]
    by_stem: dict[str, list[Path]] = {}
    for path in found:
        by_stem.setdefault(_SHARD.sub("", _stem(path)), []).append(path)
    if len(by_stem) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"`{folder}` must have one {words[0]} file, got {listed}: keep one of them there.")
    best = min((_PREFERRED.index(table_suffix(path) or "") for path in found), default=0)
    same = [path for path in found if table_suffix(path) == _PREFERRED[best]]
    return same if all(_SHARD.search(_stem(path)) for path in same) else same[:1]


def _stem(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rsplit(".", 1)[0]
