"""Rows of similarities or distances of a batch to its candidates, all at once or in chunks that are made twice."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.errors import ObjectiveInputError

CHUNK_ENTRIES = 40 * 2**20
"""Entries of one table of a chunk of rows; an objective makes some ten tables at a time. A table of bools of this size
is larger than 32 MiB: glibc keeps freed blocks up to that size and reuses them badly, so that with smaller chunks
memory grew with the square of the rows after all (2,752 MiB for supcon at 32,768 rows with chunks of 16 * 2**20)."""
TABLE_BYTES = 2**30
"""Largest table (or list of pairs or triplets) that is made where an objective needs all of it at once; an objective
makes some eight of that size, forward and backward."""

IGNORED = -100


@dataclass(frozen=True)
class SimilarityRows:
    """Embeddings and labels of anchors, and of the candidates that they are compared with.

    A candidate labelled -100 is neither of the anchor's class nor of another one: an empty place of a memory.

    Args:
        anchors: Rows that a loss is computed for, L2-normalised or not.
        labels: Their classes.
        candidates: Rows that they are compared with; they hold the anchors themselves from `own_start` on.
        candidate_labels: Their classes.
        own_start: Place of the first anchor among the candidates.
    """

    anchors: Float[Tensor, "anchors dim"]
    labels: Int[Tensor, " anchors"]
    candidates: Float[Tensor, "candidates dim"]
    candidate_labels: Int[Tensor, " candidates"]
    own_start: int = 0

    @property
    def positive_counts(self) -> Int[Tensor, " anchors"]:
        """How many other rows of its class each anchor is compared with; no table is made."""
        counted = self.candidate_labels[self.candidate_labels != IGNORED]
        classes, counts = counted.unique(return_counts=True)
        return counts[torch.searchsorted(classes, self.labels)] - 1

    def statistics(self, names: tuple[str, ...], start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        """The named tables, for anchors `start` to `stop`."""
        anchors, labels, candidates = self.anchors[start:stop], self.labels[start:stop], self.candidates
        made: dict[str, Tensor] = {}
        if "similarities" in names:
            made["similarities"] = anchors @ candidates.T
        if "distances" in names:
            # From the differences, not from products: near rows keep their digits. The gradient at distance 0 is 0.
            made["distances"] = torch.cdist(anchors, candidates, compute_mode="donot_use_mm_for_euclid_dist")
        if "same" in names or "different" in names:
            same, different = self._masks(labels, start)
            made.update({name: mask for name, mask in (("same", same), ("different", different)) if name in names})
        return {name: made[name] for name in names}

    def _masks(
        self, labels: Int[Tensor, " rows"], start: int
    ) -> tuple[Bool[Tensor, "rows candidates"], Bool[Tensor, "rows candidates"]]:
        equal = labels[:, None] == self.candidate_labels[None, :]
        columns = torch.arange(len(self.candidates), device=labels.device)
        own = columns[None, :] == (self.own_start + start + torch.arange(len(labels), device=labels.device))[:, None]
        return equal & ~own, ~equal & (self.candidate_labels != IGNORED)[None, :]


def apply_by_rows(
    function: Callable[[dict[str, Tensor]], Tensor], rows: SimilarityRows, names: tuple[str, ...]
) -> Tensor:
    """`function` of the tables of all anchors, in chunks of anchors where the tables would be large.

    Each chunk's tables are made again in the backward pass instead of kept, so memory grows with the number of
    candidates and not with its square.
    """
    size = max(CHUNK_ENTRIES // max(len(rows.candidates), 1), 1)
    if len(rows.anchors) <= size:
        return function(rows.statistics(names))

    def chunk(anchors: Tensor, candidates: Tensor, start: int) -> Tensor:
        part = SimilarityRows(
            anchors,
            rows.labels[start : start + size],
            candidates,
            rows.candidate_labels,
            rows.own_start + start,
        )
        return function(part.statistics(names))

    values = []
    for start in range(0, len(rows.anchors), size):
        part = rows.anchors[start : start + size]
        value = checkpoint(chunk, part, rows.candidates, start, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(value, Tensor)
        values.append(value)
    return torch.cat(values)


def check_table(name: str, entries: int, element_size: int, *, what: str, anchors: int) -> None:
    """Refuse what cannot fit.

    Raises:
        ObjectiveInputError: If `entries` of `element_size` bytes are more than `TABLE_BYTES`.
    """
    if entries * element_size > TABLE_BYTES:
        size = f"{entries * element_size / 2**30:.1f} GiB at once, where {TABLE_BYTES / 2**30:.0f} GiB is the most"
        raise ObjectiveInputError(
            f"'{name}' compares {entries:,} {what} of {anchors:,} embeddings, {size}. Give smaller batches or "
            f"fewer rows per class (`PKBatchSampler`), or use a loss that keeps one number per row, such as supcon."
        )
