"""`load_preference_task` and `load_unpaired_task`: preferences from the package, a file, a folder or the hub."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lossmith.errors import DataError
from lossmith.tasks._fields import RawRow
from lossmith.tasks._preference_sources import (
    HUB,
    PreferenceRows,
    columns_of,
    complete_splits,
    find_rows,
    named_record,
)
from lossmith.tasks._sources import read_items
from lossmith.tasks.preference import Pair, PreferenceTask
from lossmith.tasks.preference_facts import rated_warnings, task_warnings
from lossmith.tasks.preference_layouts import known_layout, layout_of, pair_reader, read_rated
from lossmith.tasks.tldr import TLDR, check_post
from lossmith.tasks.unpaired import RATED_COLUMNS, Rated, UnpairedTask, unpair

Item = TypeVar("Item", Pair, Rated)


def load_preference_task(
    name_or_path: str | os.PathLike[str], *, data: str = "shipped", test_fraction: float = 0.2, split_seed: int = 0
) -> PreferenceTask:
    """Load pairs of answers, the better and the worse, in whatever known layout they come.

    The layout is told by the columns (`preference_layouts.py` lists them). One file is split here by prompt; where the
    data bring no validation rows, a tenth of the prompts of train, drawn with seed 42, become validation: prompts that
    differ only in case or white space stay on one side. Pairs with identical answers prefer nothing and are left out.
    That, cuts, repeats, contradictions and empty answers are said in the task's `warnings`, with counts.

    Args:
        name_or_path: A known name (`list_preference_tasks()`); a file (JSON lines, JSON, CSV, TSV, plain or .gz, or
            parquet); a folder with train, test and perhaps validation files; or "hub:owner/name".
        data: Where the rows of a known name are: "shipped" for those in the package; "hub" or "hub:owner/name" for a
            data set there; or a folder.
        test_fraction: Share, in (0, 1), of the different prompts of one file that becomes test.
        split_seed: Seed of that split, >= 0.

    Raises:
        ConfigurationError: If the name is unknown, or a setting is wrong or has nothing to act on.
        DataError: If the data cannot be had or used, or are unpaired (`load_unpaired_task` reads those); the message
            says where and what to do.

    Example:
        >>> task = load_preference_task("polite_pairs")
        >>> len(task.train), task.test[1].rejected
        (876, 'The project was basically forced through by the manager.')
    """
    settings = {"data": data, "test_fraction": test_fraction, "split_seed": split_seed}
    found, splits, notes = _load(name_or_path, settings, read_pairs)
    return PreferenceTask(
        name=found.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        warnings=(*notes, *task_warnings(splits)),
        **found.about(),
    )


def load_unpaired_task(
    name_or_path: str | os.PathLike[str], *, data: str = "shipped", test_fraction: float = 0.2, split_seed: int = 0
) -> UnpairedTask:
    """Load rated answers, each good or bad, as kto and bco train on; of pairs the chosen are good, the rejected bad.

    Everything else is as in `load_preference_task`.

    Raises:
        ConfigurationError: If the name is unknown, or a setting is wrong or has nothing to act on.
        DataError: If the data cannot be had or used, or train has answers of one kind only.

    Example:
        >>> task = load_unpaired_task("pandalm")
        >>> len(task.train), [row.label for row in task.train[:2]]
        (1212, [True, False])
    """
    settings = {"data": data, "test_fraction": test_fraction, "split_seed": split_seed}
    found, splits, notes = _load(name_or_path, settings, read_rated_rows)
    return UnpairedTask(
        name=found.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        warnings=(*notes, *rated_warnings(splits)),
        **found.about(),
    )


def is_preference_task(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a name or path holds preferences, paired or not; of a file only the columns are read.

    Example:
        >>> is_preference_task("pandalm"), is_preference_task("gsm8k")
        (True, False)
    """
    name = os.fspath(name_or_path)
    return named_record(name) is not None or name.startswith(HUB) or layout_of(columns_of(name)) is not None


def is_unpaired_task(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a path holds unpaired rows (`prompt`, `completion`, `label`); of a file only the columns are read."""
    name = os.fspath(name_or_path)
    return named_record(name) is None and layout_of(columns_of(name)) == "ratings"


def read_pairs(split: str, rows: Sequence[RawRow]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pairs of the rows of one split, in file order, and sentences on what was left out.

    Raises:
        DataError: If the rows are of no layout of pairs, or one cannot be used.
    """
    where = rows[0].where
    layout = known_layout(where, tuple(rows[0].values))
    if layout == "ratings":
        raise DataError(
            f"{where} holds unpaired rows ({RATED_COLUMNS}), and pairs are needed, with `chosen` and `rejected`: "
            "`load_unpaired_task` reads unpaired rows, and kto and bco train on them."
        )
    has_prompt = any(row.values.get("prompt") is not None for row in rows)
    return read_items(split, rows, pair_reader(layout, has_prompt=has_prompt))


def read_rated_rows(split: str, rows: Sequence[RawRow]) -> tuple[tuple[Rated, ...], tuple[str, ...]]:
    """Rated answers of the rows of one split, in file order, of pairs two each, and sentences on what was left out.

    Raises:
        DataError: If the rows are of no layout, or one cannot be used.
    """
    if known_layout(rows[0].where, tuple(rows[0].values)) == "ratings":
        return read_items(split, rows, read_rated)
    pairs, notes = read_pairs(split, rows)
    return unpair(pairs), notes


def _load(
    name_or_path: str | os.PathLike[str],
    settings: Mapping[str, Any],
    read: Callable[[str, Sequence[RawRow]], tuple[tuple[Item, ...], tuple[str, ...]]],
) -> tuple[PreferenceRows, dict[str, tuple[Item, ...]], tuple[str, ...]]:
    """What is known of the rows, the rows of all three splits, and sentences on what was moved, left out and cut."""
    found = find_rows(name_or_path, settings)
    splits: dict[str, tuple[Item, ...]] = {}
    notes = found.notes
    for split, rows in found.raw.items():
        splits[split], said = read(split, rows)
        notes = (*notes, *said)
        if not splits[split]:
            raise DataError(f"{rows[0].where} must have a row that can be used, got none: {' '.join(said)}")
        if found.name == TLDR.name:
            for row in splits[split]:
                check_post(row)
    splits, cuts = complete_splits(splits, settings)
    return found, splits, (*notes, *cuts)
