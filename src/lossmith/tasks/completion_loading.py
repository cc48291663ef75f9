"""`load_completion_task`: a known name or a task file, from the package, a folder or the hub, in one form."""

import os
from pathlib import Path

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._choices import LABEL_FIELDS
from lossmith.tasks._fields import RawSplits
from lossmith.tasks._places import splits_from, with_labelled_test
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks._sources import read_items, shipped_splits
from lossmith.tasks._splits import cut_notice, cut_validation
from lossmith.tasks.completion import CompletionTask, Kind, Problem
from lossmith.tasks.own_completion import is_task_file, is_yaml, load_own_task, own_kind
from lossmith.tasks.registry import COMPLETION_LOADERS, list_completion_tasks


def load_completion_task(name_or_path: str | os.PathLike[str], *, data: str = "shipped") -> CompletionTask:
    """Load a task whose answers a causal language model writes.

    Where the published test rows have no answers, the validation rows serve as test; where the data bring no
    validation rows (or these serve as test), 10% of train, drawn with seed 42, become validation. Both are said in
    the task's `warnings`, as is how many rows were left out and why.

    Args:
        name_or_path: A known name (`list_completion_tasks()`), or a task file (`.yaml`; `own_completion.py` lists its
            keys), which names its own data.
        data: "shipped" for the rows in the package; "hub" for the task's data set on the hub or "hub:owner/name" for
            another of the same layout; or a folder with train, test and perhaps validation files, in the normal form
            or as published.

    Raises:
        ConfigurationError: If the name is unknown, or `data` has nothing to act on.
        DataError: If the data cannot be had or used; the message says where and what to do.

    Example:
        >>> task = load_completion_task("gsm8k")
        >>> task.kind, len(task.test), task.train[0].target
        ('math', 1319, '<<48/2=24>> <<48+24=72>> #### 72')
    """
    if is_yaml(name_or_path):
        if data != "shipped":
            raise ConfigurationError(
                f"The task file `{name_or_path}` names its own data, got `data={data}`: leave it out."
            )
        return load_own_task(Path(name_or_path))
    record = _record(str(name_or_path))
    if data == "shipped":
        if record.split_sizes is None:
            raise DataError(
                f"The rows of '{record}' are not shipped, since their licence is not clear: load them with `data=hub`, "
                f"or with `data=FOLDER`, a folder with train, validation and test files, each row with {record.layout}."
            )
        raw, source = shipped_splits(record), record.source
    else:
        raw, source = splits_from(record, data)
    raw, warnings = _complete(record, raw)
    splits: dict[str, tuple[Problem, ...]] = {}
    for split, rows in raw.items():
        splits[split], notes = read_items(split, rows, COMPLETION_LOADERS[record])
        warnings = (*warnings, *notes)
    return CompletionTask(
        name=record.name,
        kind=record.kind,
        instruction=record.instruction,
        source=source,
        licence=record.licence,
        attribution=record.citation,
        warnings=warnings,
        **splits,
    )


def is_completion_task(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a known task, or of a YAML file that holds a task (a mapping with the key `prompt`).

    Example:
        >>> is_completion_task("gsm8k"), is_completion_task("mr")
        (True, False)
    """
    return any(str(record) == str(name_or_path) for record in COMPLETION_LOADERS) or is_task_file(name_or_path)


def completion_kind(name_or_path: str | os.PathLike[str]) -> Kind:
    """What an answer of a task is, without reading its rows.

    Raises:
        ConfigurationError: If the name is unknown.
        DataError: If a task file cannot be read.

    Example:
        >>> completion_kind("svamp"), completion_kind("qasc")
        ('math', 'choice')
    """
    if is_yaml(name_or_path):
        return own_kind(Path(name_or_path))
    return _record(str(name_or_path)).kind


def _record(name: str) -> CompletionRecord:
    known = [str(record) for record in list_completion_tasks()]
    for record in list_completion_tasks():
        if record.name == name:
            return record
    raise ConfigurationError(
        f"No completion task named '{name[:80]}'.{did_you_mean(name, known)} Known: {', '.join(known)}; or give a path "
        "to a task file (.yaml with `prompt`, `target` and `data`)."
    )


def _complete(record: CompletionRecord, raw: RawSplits) -> tuple[RawSplits, tuple[str, ...]]:
    """All three splits: validation for a test without answers, a part of train for a missing validation."""
    raw, warnings = with_labelled_test(record, raw, LABEL_FIELDS, "answers")
    train, validation = raw["train"], raw.get("validation")
    if validation is None and len(train) > 1:
        kept, cut = cut_validation(len(train))
        train, validation = [train[row] for row in kept], [train[row] for row in cut]
        warnings = (*warnings, cut_notice(len(cut)))
    return {"train": train, "validation": validation or [], "test": raw.get("test") or []}, warnings
