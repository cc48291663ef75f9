"""Data of one text column with its classes, and class-balanced batches of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

from lossmith.errors import ConfigurationError
from lossmith.integrations.sentence_transformers.loss import several_columns
from lossmith.nn import IGNORE_INDEX, PKBatchSampler

LABEL_COLUMNS = ("label", "labels", "score", "scores")
"""Where sentence-transformers looks for labels, in this order."""


@dataclass(frozen=True)
class PKBatches:
    """Class-balanced batches: `SentenceTransformerTrainingArguments(batch_sampler=PKBatches())`.

    A batch holds P classes with K rows each, drawn by `lossmith.nn.PKBatchSampler`. The batch size is the one of the
    training arguments: P is that over `samples_per_class`, but at most the classes with two rows or more; K is the
    batch size over P, but at most the rows of the largest class. So two classes in batches of 32 have 16 rows each.

    Args:
        samples_per_class: Least K, >= 2.
    """

    samples_per_class: int = 4

    def __call__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> "PKBatchesOfDataset":
        """The batch sampler of one data set, as the trainer asks for it.

        Raises:
            ConfigurationError: If no batch of two classes with `samples_per_class` rows each can be made.
        """
        column = _label_column(dataset, valid_label_columns or LABEL_COLUMNS, "class-balanced batches")
        labels = _class_ids(dataset, column)
        rows = [count for label, count in Counter(labels).items() if count > 1 and label != IGNORE_INDEX]
        if self.samples_per_class < 2 or batch_size < 2 * self.samples_per_class:
            raise ConfigurationError(
                f"`samples_per_class` must be >= 2 and at most half a batch, got {self.samples_per_class} in "
                f"batches of {batch_size}."
            )
        if len(rows) < 2:
            raise ConfigurationError(
                f"Class-balanced batches need at least two classes with two rows or more, `{column}` has {len(rows)}."
            )
        classes = min(batch_size // self.samples_per_class, len(rows))
        each = min(batch_size // classes, max(rows))
        sampler = PKBatchSampler(labels, classes_per_batch=classes, samples_per_class=each, seed=seed)
        return PKBatchesOfDataset(dataset, sampler)


@final
class PKBatchesOfDataset(DefaultBatchSampler):
    """`lossmith.nn.PKBatchSampler` in the form that the trainer's data loaders expect."""

    def __init__(self, dataset: Dataset, sampler: PKBatchSampler):
        # All batches are equally large, so that every rank draws equally many once the rest is dropped.
        size = sampler.classes_per_batch * sampler.samples_per_class
        super().__init__(dataset, batch_size=size, drop_last=True)
        self.balanced = sampler

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch on the next pass."""
        self.balanced.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.balanced)

    def __len__(self) -> int:
        return len(self.balanced)


def count_classes(given: Mapping[str, Any], loss: object) -> int | None:
    """Number of classes of all data, by the name of their argument, after checking their columns."""
    highest = None
    for name, data in given.items():
        if data is None:
            continue
        if not isinstance(data, Dataset):
            raise ConfigurationError(
                f"`{name}` must be one datasets.Dataset with a text column and a `label` column, got "
                f"{type(data).__name__}."
            )
        column = _label_column(data, LABEL_COLUMNS, f"'{loss}'")
        texts = [other for other in data.column_names if other != column]
        if len(texts) != 1:
            raise ConfigurationError(several_columns(loss, f"the text columns {texts} in `{name}`"))
        counted = [label for label in _class_ids(data, column) if label != IGNORE_INDEX]
        named = getattr(data.features[column], "num_classes", 0)
        highest = max([highest or 0, named, *(label + 1 for label in counted)])
    return highest


def _label_column(dataset: Dataset, columns: Sequence[str], what: str) -> str:
    found = next((column for column in columns if column in dataset.column_names), None)
    if found is None:
        raise ConfigurationError(
            f"{what} needs a `label` column with the class of each sentence, the data have {dataset.column_names}."
        )
    return found


def _class_ids(dataset: Dataset, column: str) -> list[int]:
    labels = list(dataset[column])
    wrong = next((label for label in labels if isinstance(label, bool) or not isinstance(label, int)), None)
    if wrong is not None or None in labels:
        raise ConfigurationError(
            f"`{column}` must hold class ids (integers), got {wrong!r}: "
            f"dataset.class_encode_column('{column}') makes them."
        )
    low = min((label for label in labels if label != IGNORE_INDEX), default=0)
    if low < 0:
        raise ConfigurationError(f"`{column}` must be >= 0 (or {IGNORE_INDEX} to ignore a row), got {low}.")
    return labels
