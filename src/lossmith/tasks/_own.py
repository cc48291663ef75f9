"""One's own labelled texts: one file, which is split here, or a folder that brings its splits."""

from collections.abc import Sequence
from pathlib import Path

from lossmith.errors import DataError
from lossmith.tasks._notices import contradictions, key_of, repeats
from lossmith.tasks._rows import Columns, Row, list_rows, name_labels, order_labels, read_rows
from lossmith.tasks._splits import split_rows
from lossmith.tasks._tables import clear_read_errors, table_suffix
from lossmith.tasks.classification import ClassificationTask, Example


def load_file(path: Path, columns: Columns, *, split_seed: int, test_fraction: float) -> ClassificationTask:
    """A task from one file; there is no validation split."""
    rows, unread = read_rows(path, columns)
    ordered = _at_least_two(path, columns.label, rows)
    label_names = name_labels(str(path), rows, ordered, columns.label)
    examples = _encode(rows, ordered)
    keys, labels = [key_of(example) for example in examples], [example.label for example in examples]
    train, test = split_rows(keys, labels, label_names, seed=split_seed, test_fraction=test_fraction)
    name = path.name.removesuffix(".gz").removesuffix(".GZ")
    return _own_task(
        path,
        Path(name).stem,
        label_names,
        {"train": tuple(examples[row] for row in train), "test": tuple(examples[row] for row in test)},
        (*unread, *contradictions(examples)),
    )


def load_folder(folder: Path, columns: Columns) -> ClassificationTask:
    """A task from a folder with train, test and perhaps validation files."""
    paths = _split_files(folder)
    found = {split: read_rows(path, columns) for split, path in paths.items()}
    rows = {split: part for split, (part, _) in found.items()}
    ordered = _at_least_two(paths["train"], columns.label, rows["train"])
    for split in rows:
        _check_known_labels(paths[split], columns.label, rows[split], ordered)
    label_names = name_labels(str(folder), [row for part in rows.values() for row in part], ordered, columns.label)
    splits = {split: tuple(_encode(part, ordered)) for split, part in rows.items()}
    warnings = (
        *dict.fromkeys(notice for _, unread in found.values() for notice in unread),
        *repeats(splits),
        *contradictions([example for part in splits.values() for example in part]),
    )
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
        train=splits["train"],
        validation=splits.get("validation", ()),
        test=splits["test"],
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
    return [Example(row.text, ids[row.label], row.pair) for row in rows]
