"""Rows of a named task from where `data` says: a folder or the hub."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import RawRow, RawSplits
from lossmith.tasks._hub import hub_splits
from lossmith.tasks._originals import original_splits
from lossmith.tasks._shipped import ClassificationRecord, Record
from lossmith.tasks._sources import folder_splits


def splits_from(record: Record, data: str, *, needs_test: bool = True) -> tuple[RawSplits, str]:
    """Rows by split, and where they are from.

    Args:
        record: The task.
        data: "hub" for its data set there, "hub:owner/name" for another of the same layout, or a folder: with the files
            that its authors published where it has one of them, else with train and test files.
        needs_test: Whether there must be test rows; else train may stand alone.

    Raises:
        DataError: If there is no such folder or data set, or its rows cannot be read.
    """
    if data == "hub" or data.startswith("hub:"):
        return hub_splits(record, data.removeprefix("hub").removeprefix(":") or record.hub, needs_test=needs_test)
    folder = Path(data).expanduser()
    if not data.strip() or not os.path.exists(folder):
        raise DataError(
            f"`data` must be 'shipped', 'hub', 'hub:owner/name' or a folder, got {data[:200]!r}, which is none (looked "
            f"from `{Path.cwd()}`)."
        )
    published = original_splits(folder, record.originals) if isinstance(record, ClassificationRecord) else None
    if published is not None:
        return published, str(folder)
    names = dict(getattr(record, "split_names", ()))
    hidden = record.hidden_test
    raw = folder_splits(folder, record.layout, test_from_validation=hidden, names=names, needs_test=needs_test)
    return raw, str(folder)


def with_labelled_test(
    record: Record, raw: RawSplits, label_fields: Sequence[str], what: str
) -> tuple[RawSplits, tuple[str, ...]]:
    """Validation in place of a test without labels, where a task's test rows are published so, and the notice of it.

    Args:
        record: The task.
        raw: Its rows.
        label_fields: Fields that hold a label.
        what: What the rows lack then: "answers" or "labels".

    Raises:
        DataError: If there are no validation rows either.
    """
    test = raw.get("test")
    if not record.hidden_test or (test is not None and any(_is_labelled(row.values, label_fields) for row in test)):
        return raw, ()
    if not raw.get("validation"):
        raise DataError(
            f"The test rows of '{record}' from {_where(test or raw['train'])} have no {what}, so there must be "
            "validation rows to test on: add a validation file."
        )
    moved = {"train": raw["train"], "test": raw["validation"]}
    count = len(raw["validation"])
    return moved, (f"The {count} test rows are the data's validation rows: their test rows have no {what}.",)


def _is_labelled(values: dict[str, Any], label_fields: Sequence[str]) -> bool:
    return any(values.get(name) is not None and str(values[name]).strip() not in ("", "-1") for name in label_fields)


def _where(rows: Sequence[RawRow]) -> str:
    return rows[0].where if rows else "no file"
