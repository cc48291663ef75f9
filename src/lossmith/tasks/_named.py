"""A named classification task: shipped, from a folder or from the hub, with its classes in their published order."""

import os
import reprlib
from collections.abc import Callable, Sequence

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, RawSplits
from lossmith.tasks._notices import contradictions, key_of, repeats
from lossmith.tasks._originals import UNSPLIT
from lossmith.tasks._places import splits_from, with_labelled_test
from lossmith.tasks._rows import text_pair
from lossmith.tasks._shipped import ClassificationRecord, load_shipped
from lossmith.tasks._sources import read_items
from lossmith.tasks._splits import split_rows
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class

TEXT_FIELDS = ("text", "sentence")
"""Fields that may hold the text of a row."""

PAIR_FIELDS = (("text_a", "sentence1", "text1"), ("text_b", "sentence2", "text2"))
"""Fields that may hold the first and the second text of a pair."""

Splits = dict[str, tuple[Example, ...]]


def load_named(
    record: ClassificationRecord, data: str, *, split_seed: int, test_fraction: float
) -> tuple[ClassificationTask, bool]:
    """The task from where `data` says, and whether its rows brought no split and were split here.

    Args:
        record: The task.
        data: "shipped", or what `splits_from` takes.
        split_seed: Seed of the split of rows that bring none.
        test_fraction: Share of their different texts that becomes the test set.

    Raises:
        DataError: If the rows cannot be had or used.
    """
    if data == "shipped":
        if record.split_sizes is None:
            raise DataError(_not_shipped(record))
        return load_shipped(record), False
    raw, source = splits_from(record, data)
    brings_none = UNSPLIT in raw
    raw, warnings = with_labelled_test(record, raw, record.class_fields, "labels")
    label_names = record.label_names or load_shipped(record).label_names
    splits = _read_splits(record, raw, label_names)
    if brings_none:
        splits = _divide(splits[UNSPLIT], label_names, split_seed, test_fraction)
    _check_train(record, source, splits["train"], label_names)
    everything = [example for part in splits.values() for example in part]
    task = ClassificationTask(
        name=record.name,
        label_names=label_names,
        source=source,
        licence=record.licence,
        attribution=record.citation,
        warnings=(*warnings, *repeats(splits), *contradictions(everything)),
        train=splits["train"],
        validation=splits.get("validation", ()),
        test=splits["test"],
    )
    return task, brings_none


def _read_splits(record: ClassificationRecord, raw: RawSplits, label_names: tuple[str, ...]) -> Splits:
    class_of = _class_reader(record, label_names)
    # read_items gives notes too, but no row of a classification task has any.
    return {
        name: read_items(name, rows, lambda fields: _read_example(record, class_of, fields))[0]
        for name, rows in raw.items()
    }


def _divide(rows: tuple[Example, ...], label_names: tuple[str, ...], split_seed: int, test_fraction: float) -> Splits:
    keys, labels = [key_of(row) for row in rows], [row.label for row in rows]
    train, test = split_rows(keys, labels, label_names, seed=split_seed, test_fraction=test_fraction)
    return {"train": tuple(rows[row] for row in train), "test": tuple(rows[row] for row in test)}


def _read_example(record: ClassificationRecord, class_of: Callable[[Fields], int], fields: Fields) -> Example:
    if record.pairs:
        first, second = PAIR_FIELDS
        return Example(fields.text(*first), class_of(fields), fields.text(*second))
    if not any(fields.has(name) for name in TEXT_FIELDS):
        found = text_pair([name for name in fields.values if fields.has(name)])
        if found is not None:
            raise DataError(
                f"{fields} has two texts, `{found[0]}` and `{found[1]}`, but '{record}' has one a row: give rows with "
                f"{record.layout}."
            )
    return Example(fields.text(*TEXT_FIELDS), class_of(fields))


def _class_reader(record: ClassificationRecord, label_names: Sequence[str]) -> Callable[[Fields], int]:
    ids = {name.casefold(): index for index, name in enumerate(label_names)}
    ids |= {other.casefold(): ids[name.casefold()] for other, name in record.aliases}
    if record.numbered:
        ids |= {str(index): index for index in range(len(label_names))}

    def class_of(fields: Fields) -> int:
        value = fields.value(*record.class_fields)
        written = str(value).strip().casefold()
        if isinstance(value, bool) or written not in ids:
            field = next(name for name in record.class_fields if fields.has(name))
            shown = ", ".join(label_names[:6]) + (f" and {len(label_names) - 6} more" if len(label_names) > 6 else "")
            number = " (publishers number these classes differently)" if written.isdigit() else ""
            raise DataError(
                f"{fields} must have a class of '{record}' in field `{field}` ({shown}), got "
                f"{reprlib.repr(value)}{number}: give rows with {record.layout}."
            )
        return ids[written]

    return class_of


def _check_train(
    record: ClassificationRecord, source: str, train: Sequence[Example], label_names: Sequence[str]
) -> None:
    counts = rows_per_class(train, len(label_names))
    missing = [f"'{name}'" for name, count in zip(label_names, counts, strict=True) if count == 0]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"The train rows of '{record}' from `{source}` must hold all its {len(label_names)} classes, got none of "
            f"{', '.join(missing[:5])}{more}: add rows of them."
        )


def _not_shipped(record: ClassificationRecord) -> str:
    here = f" (`./{record}` is the folder of that name here.)" if os.path.isdir(record.name) else ""
    return (
        f"The rows of '{record}' are not shipped (licence: {record.licence}): load them with `data=hub` "
        f"({record.hub}), or with `data=FOLDER`, a folder with train and test files, each row with "
        f"{record.layout}.{here}"
    )
