"""Batches in which every class has several rows, as in-batch metric losses need them."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch.utils.data import Sampler

from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError


@final
class PKBatchSampler(Sampler[list[int]]):
    """Batches of P classes with K rows each, new ones on every pass over the sampler.

    Each class hands out its rows in a shuffled order, and again when they run out; only a class with fewer than K rows
    repeats some within a batch, and a class with a single row is left out: it would be its own positive. Classes take
    turns in a shuffled order, so over a pass every class comes equally often (once more or less). For
    `torch.utils.data.DataLoader(dataset, batch_sampler=...)`.

    Args:
        labels: Class of every row of the data set; rows labelled -100 are never drawn.
        classes_per_batch: P, >= 1, at most the number of classes with two rows or more.
        samples_per_class: K, >= 2: with one row per class no anchor has a positive.
        num_batches: Batches of an epoch; None for as many as the rows fill.
        seed: Seed of the draws. The first pass is epoch 0 and each further one the next; `set_epoch` names it.

    Raises:
        ObjectiveInputError: For labels that are no flat list of integers, or more classes per batch than there are.

    Example:
        >>> sampler = PKBatchSampler([0, 0, 0, 1, 1, 2, 2, 2], classes_per_batch=2, samples_per_class=2, seed=0)
        >>> [sorted({[0, 0, 0, 1, 1, 2, 2, 2][i] for i in batch}) for batch in sampler]
        [[0, 2], [1, 2]]
    """

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        num_batches: int | None = None,
        seed: int = 0,
    ):
        given = torch.as_tensor(labels)
        if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool or given.numel() == 0:
            raise ObjectiveInputError(
                f"`labels` must be a flat list of class ids, got {given.dtype} of shape {tuple(given.shape)}."
            )
        rows = {int(c): (given == c).nonzero().flatten() for c in given[given != -100].unique()}
        self.rows = {c: places for c, places in rows.items() if len(places) > 1}
        _check_count("classes_per_batch", classes_per_batch, 1)
        _check_count("samples_per_class", samples_per_class, 2)
        if classes_per_batch > len(self.rows):
            raise ObjectiveInputError(
                f"`classes_per_batch` must be at most the number of classes with two rows or more, {len(self.rows)}, "
                f"got {classes_per_batch}."
            )
        if num_batches is not None:
            _check_count("num_batches", num_batches, 1)
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        counted = sum(len(rows) for rows in self.rows.values())
        self.num_batches = num_batches or max(counted // (classes_per_batch * samples_per_class), 1)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch on the next pass; a resumed run names the epoch that it continues."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # Here, not in `_draw`: a generator would first run, and count its pass, when its first batch is asked for.
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._draw(epoch)

    def _draw(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        left: dict[int, list[int]] = {c: [] for c in self.rows}
        turns: list[int] = []
        for _ in range(self.num_batches):
            batch: list[int] = []
            chosen: list[int] = []
            while len(chosen) < self.classes_per_batch:
                if not turns:
                    turns = _shuffled(list(self.rows), generator)
                # A class that this batch has already waits for the next one.
                place = next((i for i, c in enumerate(turns) if c not in chosen), None)
                if place is None:
                    turns += [c for c in _shuffled(list(self.rows), generator) if c not in turns]
                    continue
                chosen.append(turns.pop(place))
            for c in chosen:
                while len(left[c]) < self.samples_per_class:
                    fresh, waiting = _shuffled(self.rows[c].tolist(), generator), set(left[c])
                    # Rows that wait already go to the end of the new turn: not twice in one batch.
                    left[c] += sorted(fresh, key=waiting.__contains__)
                batch += left[c][: self.samples_per_class]
                left[c] = left[c][self.samples_per_class :]
            yield batch


def _shuffled(values: list[int], generator: torch.Generator) -> list[int]:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ObjectiveInputError(f"`{name}` must be an int >= {least}, got {value}.")
