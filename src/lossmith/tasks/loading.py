"""`load_task`: a shipped name, one's own file, or a folder of train and test files, in one form."""

import os
from collections.abc import Sequence
from pathlib import Path

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._rows import Row, list_rows, name_labels, order_labels, read_rows
from lossmith.tasks._splits import split_rows, text_key
from lossmith.tasks._tables import clear_read_errors, table_suffix
from lossmith.tasks.classification import ClassificationTask, Example
from lossmith.tasks.registry import LOADERS, list_completion_tasks, list_tasks


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    label_column: str = "label",
    split_seed: int = 0,
    test_fraction: float = 0.2,
) -> ClassificationTask:
    """Load a shipped task, or one's own data.

    Class ids follow the sorted labels (numerically where all are integers); their names come from the column
    `<label_column>_name` where there is one. Texts such as "NA" or "007" stay as they are written.

    Args:
        name_or_path: A shipped name (`list_tasks()`; it wins over a folder of that name: write `./mr` for the folder);
            or one CSV, TSV, JSONL (each plain or .gz) or parquet file, UTF-8, which is split here; or a folder with
            `train.*`, `test.*` and perhaps `validation.*` of these formats.
        text_column: Column of the texts.
        label_column: Column of the labels: strings, integers or booleans.
        split_seed: >= 0. Seed of the split of one file. Rows whose texts differ only in case or white space stay on one
            side; both sides get every class. The split depends on the order of the rows.
        test_fraction: Share, in (0, 1), of the different texts of one file that becomes the test set.

    Raises:
        ConfigurationError: If the name is unknown or a setting is wrong or has nothing to act on.
        DataError: If the path is not there or the data cannot be used as they are.

    Example:
        >>> task = load_task("cr")
        >>> task.label_names, len(task.train), task.test[0].label
        (('negative', 'positive'), 1360, 1)
    """
    columns = {"text_column": text_column, "label_column": label_column}
    splitting = {"split_seed": split_seed, "test_fraction": test_fraction}
    _check_settings(text_column, label_column, split_seed, test_fraction)
    for record, load in LOADERS.items():
        if str(record) == str(name_or_path):
            _check_unused(f"The shipped task '{record}' has fixed columns and splits", {**columns, **splitting})
            return load()
    path = _existing_path(os.fspath(name_or_path))
    if path.is_dir():
        _check_unused(f"The folder `{path}` brings its own splits", splitting)
        return _load_folder(path, **columns)
    return _load_file(path, **columns, split_seed=split_seed, test_fraction=test_fraction)


def _load_file(
    path: Path, *, text_column: str, label_column: str, split_seed: int, test_fraction: float
) -> ClassificationTask:
    rows = read_rows(path, text_column, label_column)
    ordered = _at_least_two(path, label_column, rows)
    label_names = name_labels(str(path), rows, ordered, label_column)
    examples = _encode(rows, ordered)
    texts, labels = [row.text for row in rows], [example.label for example in examples]
    train, test = split_rows(texts, labels, label_names, seed=split_seed, test_fraction=test_fraction)
    name = path.name.removesuffix(".gz").removesuffix(".GZ")
    return _own_task(
        path,
        Path(name).stem,
        label_names,
        {"train": tuple(examples[row] for row in train), "test": tuple(examples[row] for row in test)},
        _contradictions(examples),
    )


def _load_folder(folder: Path, *, text_column: str, label_column: str) -> ClassificationTask:
    paths = _split_files(folder)
    rows = {split: read_rows(path, text_column, label_column) for split, path in paths.items()}
    ordered = _at_least_two(paths["train"], label_column, rows["train"])
    for split in rows:
        _check_known_labels(paths[split], label_column, rows[split], ordered)
    label_names = name_labels(str(folder), [row for part in rows.values() for row in part], ordered, label_column)
    splits = {split: tuple(_encode(part, ordered)) for split, part in rows.items()}
    warnings = (*_repeats(splits), *_contradictions([example for part in splits.values() for example in part]))
    return _own_task(folder, folder.resolve().name, label_names, splits, warnings)


def _own_task(
    path: Path,
    name: str,
    label_names: tuple[str, ...],
    splits: dict[str, tuple[Example, ...]],
    warnings: tuple[str, ...],
) -> ClassificationTask:
    return ClassificationTask(
        name=name,
        label_names=label_names,
        source=str(path),
        licence="not stated (the user's own data)",
        attribution="not stated (the user's own data)",
        warnings=warnings,
        **splits,
    )


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if name.strip() and os.path.exists(path):  # Path.exists raises on a name that is too long
        return path
    if path.name != name or table_suffix(path) is not None:
        raise DataError(f"There is no file or folder `{name}` (looked from `{Path.cwd()}`).")
    shipped = [str(task) for task in list_tasks()]
    written = [str(task) for task in list_completion_tasks()]
    raise ConfigurationError(
        f"No task named '{name}'.{did_you_mean(name, [*shipped, *written])} Shipped tasks: {', '.join(shipped)}; "
        f"or give a path to a CSV, JSONL or parquet file. With written answers: {', '.join(written)}, or a task file."
    )


def _split_files(folder: Path) -> dict[str, Path]:
    with clear_read_errors(folder):
        files = sorted(path for path in folder.iterdir() if table_suffix(path) is not None)
    found: dict[str, Path] = {}
    for split in ("train", "validation", "test"):
        matching = [path for path in files if path.name.split(".")[0].lower() == split]
        if len(matching) > 1:
            raise DataError(f"`{folder}` must have one {split} file, got {', '.join(path.name for path in matching)}.")
        if matching:
            found[split] = matching[0]
        elif split != "validation":
            there = ", ".join(path.name for path in files) or "no data file"
            raise DataError(
                f"`{folder}` must have a file {split}.csv, .tsv, .jsonl or .parquet, got {there}. "
                "To have one file split, give the path of that file."
            )
    return found


def _at_least_two(path: Path, label_column: str, rows: Sequence[Row]) -> tuple[str, ...]:
    ordered = order_labels({row.label for row in rows})
    if len(ordered) == 1:
        raise DataError(
            f"`{path}` must have at least 2 classes in column '{label_column}', got only '{ordered[0]}' "
            f"in all {len(rows)} rows."
        )
    return ordered


def _check_known_labels(path: Path, label_column: str, rows: Sequence[Row], known: Sequence[str]) -> None:
    in_train = set(known)
    strange = [index for index, row in enumerate(rows) if row.label not in in_train]
    if strange:
        unknown = ", ".join(f"'{label}'" for label in order_labels({rows[index].label for index in strange})[:5])
        raise DataError(
            f"`{path}` must have only labels that occur in train, got {unknown} in column '{label_column}', "
            f"{list_rows(strange)}. Labels in train: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}."
        )


def _encode(rows: Sequence[Row], ordered: Sequence[str]) -> list[Example]:
    ids = {label: index for index, label in enumerate(ordered)}
    return [Example(row.text, ids[row.label]) for row in rows]


def _repeats(splits: dict[str, tuple[Example, ...]]) -> tuple[str, ...]:
    warnings = []
    for split in set(splits) - {"test"}:
        seen = {text_key(example.text) for example in splits[split]}
        count = sum(text_key(example.text) in seen for example in splits["test"])
        if count:
            warnings.append(f"{count} of {len(splits['test'])} test rows repeat a text of {split}.")
    return tuple(sorted(warnings))


def _contradictions(examples: Sequence[Example]) -> tuple[str, ...]:
    labels: dict[str, set[int]] = {}
    for example in examples:
        labels.setdefault(text_key(example.text), set()).add(example.label)
    count = sum(len(found) > 1 for found in labels.values())
    return (f"{count} texts occur with more than one label.",) if count else ()


def _check_settings(text_column: str, label_column: str, split_seed: int, test_fraction: float) -> None:
    if text_column == label_column:
        raise ConfigurationError(f"`text_column` and `label_column` must differ, got '{text_column}' for both.")
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
        raise ConfigurationError(f"`split_seed` must be an integer >= 0, got {split_seed!r}.")
    if not 0 < test_fraction < 1:
        raise ConfigurationError(f"`test_fraction` must be between 0 and 1, got {test_fraction!r}.")


def _check_unused(why: str, settings: dict[str, object]) -> None:
    defaults = load_task.__kwdefaults__ or {}
    for name, value in settings.items():
        if value != defaults[name]:
            raise ConfigurationError(f"{why}, so `{name}` has nothing to act on, got {value!r}: leave it out.")
