"""The one form in which every classification data set reaches a study: texts, class ids, names and provenance."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lossmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of texts, and its class."""

    text: str
    """The text as it was published, neither stripped nor lower-cased; of a pair the first."""
    label: int
    """Class id: an index into the task's `label_names`."""
    pair: str | None = None
    """The second text of a pair, as published."""


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """A single-label classification task with fixed splits.

    Raises:
        DataError: If there are fewer than two classes, two classes of one name, a label outside
            [0, number of classes), a class without a row in `train`, or pairs in some rows but not in all.

    Example:
        >>> task = ClassificationTask(
        ...     name="mood", label_names=("bad", "good"), train=(Example("no", 0), Example("yes", 1)),
        ... )
        >>> task.num_classes, task.fingerprint[:8]
        (2, '1790e46a')
    """

    name: str
    """Short name: a shipped one, or the stem of the file or folder."""
    label_names: tuple[str, ...]
    """Name of each class id."""
    train: tuple[Example, ...]
    """Rows to draw shots from, in file order; every class occurs."""
    validation: tuple[Example, ...] = ()
    """Rows for learning curves; empty where the data bring none."""
    test: tuple[Example, ...] = ()
    """Rows for the final metrics, in file order."""
    source: str = ""
    """Where the rows come from: repository and commit, or the path."""
    licence: str = ""
    """Licence of the data."""
    attribution: str = ""
    """Whom to cite."""
    warnings: tuple[str, ...] = ()
    """Sentences about the data that a report must repeat, such as test texts that also occur in train."""
    fold_of: str = ""
    """Fingerprint of the whole task where this is one of its folds, else empty."""
    fingerprint: str = field(init=False)
    """SHA-256, in hex, over texts and label of all rows of all splits in order; names and paths do not enter."""

    def __post_init__(self) -> None:
        rows = (*self.train, *self.validation, *self.test)
        _check_classes(self.name, self.label_names, self.train, rows)
        _check_pairs(self.name, rows)
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        object.__setattr__(self, "fingerprint", fingerprint_of(splits))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.label_names)

    @property
    def has_pairs(self) -> bool:
        """Whether each row has two texts."""
        return self.train[0].pair is not None


def rows_per_class(examples: Sequence[Example], num_classes: int) -> list[int]:
    """How many examples each class id has; one count per class.

    Example:
        >>> rows_per_class([Example("a", 2), Example("b", 0), Example("c", 2)], num_classes=3)
        [1, 0, 2]
    """
    counts = [0] * num_classes
    for example in examples:
        counts[example.label] += 1
    return counts


def fingerprint_of(splits: dict[str, tuple[Example, ...]]) -> str:
    """SHA-256, in hex, of the splits written as one JSON line per row, each split under its name.

    A line is [text, label], of a pair [text, label, pair].
    """
    digest = hashlib.sha256()
    for split, examples in splits.items():
        digest.update(f"{split}\n".encode())
        for example in examples:
            pair = [] if example.pair is None else [example.pair]
            digest.update(json.dumps([example.text, example.label, *pair]).encode() + b"\n")
    return digest.hexdigest()


def _check_classes(
    name: str, label_names: tuple[str, ...], train: tuple[Example, ...], examples: tuple[Example, ...]
) -> None:
    if len(label_names) < 2:
        raise DataError(f"Task '{name}' must have at least 2 classes, got {list(label_names)}.")
    if len(set(label_names)) < len(label_names):
        raise DataError(f"Task '{name}' must have a different name for each class, got {list(label_names)}.")
    for example in examples:
        if not 0 <= example.label < len(label_names):
            raise DataError(
                f"Task '{name}' has {len(label_names)} classes, so labels must be 0 to {len(label_names) - 1}, "
                f"got {example.label}."
            )
    counts = rows_per_class(train, len(label_names))
    if 0 in counts:
        raise DataError(f"Task '{name}' has no row of class '{label_names[counts.index(0)]}' in `train`.")


def _check_pairs(name: str, examples: Sequence[Example]) -> None:
    paired = sum(example.pair is not None for example in examples)
    if 0 < paired < len(examples):
        raise DataError(
            f"Task '{name}' must have a second text in every row or in none, got one in {paired} of {len(examples)} "
            "rows: add the missing ones or remove those rows."
        )
