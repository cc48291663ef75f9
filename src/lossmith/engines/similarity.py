"""Rows of similarities or distances of a batch to its candidates or proxies, all at once or a part of the anchors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.products import transposed_product
from lossmith.errors import ObjectiveInputError

TABLES = 10
"""Tables of a chunk's anchors x candidates that an objective and its derivative make at a time, at most: counted in
float32, masks included, 5.4 for the proxy losses, 7 for supcon, 9.3 for circle. A chunk's tables fit the budget
together."""
TABLE_BYTES = 2**30
"""Largest table (or list of pairs or triplets) that is made where an objective needs all of it at once; an objective
makes some eight of that size, forward and backward."""

COPIES = 5
"""Copies of the proxies that the graph of an objective with proxies makes (their norms, their gradient): with fewer
than `COPIES / TABLES * dim` anchors a chunk's tables are smaller than those, so it saves no memory and costs time."""

IGNORED = -100
_BLOCK = 4096


@dataclass(frozen=True)
class AnchorRows(ABC):
    """Anchors, and others that each of them is compared with: all that an anchor's losses depend on is its own row."""

    anchors: Float[Tensor, "anchors dim"]
    labels: Int[Tensor, " anchors"]

    @property
    @abstractmethod
    def others(self) -> Tensor:
        """Vectors that the anchors are compared with; the last axis is that of the anchors."""

    @property
    def width(self) -> int:
        """Entries of one row of a table."""
        return math.prod(self.others.shape[:-1])

    @abstractmethod
    def statistics(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """What an objective reads, for all anchors at once."""

    @abstractmethod
    def with_vectors(self, anchors: Tensor, others: Tensor) -> "AnchorRows":
        """The same rows with other vectors."""

    @abstractmethod
    def part(self, chunk: slice) -> "AnchorRows":
        """Consecutive anchors, compared with the same others."""

    @abstractmethod
    def add_gradients(self, names: tuple[str, ...], loss: "ChunkLoss", into: "Gradients") -> tuple[Tensor, int]:
        """Add the gradients of `loss` of the statistics; its value and number of items."""


ChunkLoss = Callable[[dict[str, Tensor]], tuple[Tensor, int]]
"""From statistics to a scalar and to how many items it is of."""
Gradients = tuple[Tensor | None, Tensor | None]
"""Places where gradients of anchors and of others add up; None where none is wanted."""


@dataclass(frozen=True)
class SimilarityRows(AnchorRows):
    """Embeddings and labels of anchors, and of the candidates that they are compared with.

    A candidate labelled -100 is neither of the anchor's class nor of another one: an empty place of a memory.

    Args:
        anchors: Rows that a loss is computed for, L2-normalised or not.
        labels: Their classes.
        candidates: Rows that they are compared with; they hold the anchors themselves from `own_start` on.
        candidate_labels: Their classes.
        own_start: Place of the first anchor among the candidates.
    """

    candidates: Float[Tensor, "candidates dim"]
    candidate_labels: Int[Tensor, " candidates"]
    own_start: int = 0

    @property
    def others(self) -> Tensor:
        """The candidates."""
        return self.candidates

    @property
    def positive_counts(self) -> Int[Tensor, " anchors"]:
        """How many other rows of its class each anchor is compared with; no table is made."""
        return positive_counts(self.labels, self.candidate_labels)

    def statistics(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The named tables."""
        made: dict[str, Tensor] = {}
        if "similarities" in names:
            graph = torch.is_grad_enabled() and (self.anchors.requires_grad or self.candidates.requires_grad)
            # The faster product has no derivative.
            product = torch.nn.functional.linear if graph else transposed_product
            made["similarities"] = product(self.anchors, self.candidates)
        if "distances" in names:
            # From the differences, not from products: near rows keep their digits. The gradient at distance 0 is 0.
            mode = "donot_use_mm_for_euclid_dist"
            made["distances"] = torch.cdist(self.anchors, self.candidates, compute_mode=mode)
        if "same" in names or "different" in names:
            same, different = self._masks()
            made.update({name: mask for name, mask in (("same", same), ("different", different)) if name in names})
        return {name: made[name] for name in names}

    def with_vectors(self, anchors: Tensor, others: Tensor) -> "SimilarityRows":
        """The same rows with other vectors."""
        return replace(self, anchors=anchors, candidates=others)

    def part(self, chunk: slice) -> "SimilarityRows":
        """Consecutive anchors, compared with the same candidates."""
        start = self.own_start + chunk.start
        return replace(self, anchors=self.anchors[chunk], labels=self.labels[chunk], own_start=start)

    def add_gradients(self, names: tuple[str, ...], loss: ChunkLoss, into: Gradients) -> tuple[Tensor, int]:
        """Similarities are the leaf: their gradient goes on by two products that add up in place."""
        if "distances" in names:
            return _add_gradients_of_vectors(self, names, loss, into)
        statistics = self.statistics(names)
        leaf = statistics["similarities"].requires_grad_()
        value, items = loss(statistics)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, leaf)
            of_anchors, of_candidates = into
            if of_anchors is not None:
                _add_product(of_anchors, slope, self.candidates.T)
            if of_candidates is not None:
                _add_product(of_candidates, slope.T, self.anchors.T)
        return value.detach(), items

    def _masks(self) -> tuple[Bool[Tensor, "anchors candidates"], Bool[Tensor, "anchors candidates"]]:
        same = self.labels[:, None] == self.candidate_labels[None, :]
        different = ~same
        different &= (self.candidate_labels != IGNORED)[None, :]
        same.diagonal(self.own_start).fill_(False)
        return same, different


def positive_counts(
    labels: Int[Tensor, " anchors"], candidate_labels: Int[Tensor, " candidates"]
) -> Int[Tensor, " anchors"]:
    """How many other rows of its class each anchor has among candidates that hold it."""
    classes, counts = candidate_labels[candidate_labels != IGNORED].unique(return_counts=True)
    return counts[torch.searchsorted(classes, labels)] - 1


@dataclass(frozen=True)
class ProxyRows(AnchorRows):
    """Embeddings and labels of anchors, and the proxies of all classes that they are compared with.

    For an objective that makes its own table of anchors x classes (x centres) and whose items do not depend on each
    other.

    Args:
        anchors: Embeddings that a loss is computed for.
        labels: Their classes.
        proxies: One vector, or several centres, per class.
    """

    proxies: Float[Tensor, "classes *centers dim"]

    @property
    def others(self) -> Tensor:
        """The proxies."""
        return self.proxies

    def statistics(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The vectors and labels themselves."""
        made = {"embeddings": self.anchors, "labels": self.labels, "proxies": self.proxies}
        return {name: made[name] for name in names}

    def with_vectors(self, anchors: Tensor, others: Tensor) -> "ProxyRows":
        """The same rows with other vectors."""
        return replace(self, anchors=anchors, proxies=others)

    def part(self, chunk: slice) -> "ProxyRows":
        """Consecutive anchors, compared with the same proxies."""
        return replace(self, anchors=self.anchors[chunk], labels=self.labels[chunk])

    def add_gradients(self, names: tuple[str, ...], loss: ChunkLoss, into: Gradients) -> tuple[Tensor, int]:
        """By autograd through whatever table the objective makes."""
        return _add_gradients_of_vectors(self, names, loss, into)


def _add_product(place: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right.T` to `place`."""
    if place.device.type != "cpu":
        place.addmm_(left, right.T)
        return
    # In blocks: a new tensor above 32 MiB is new memory each time, whose page faults cost more than the product.
    for start in range(0, len(place), _BLOCK):
        block = slice(start, start + _BLOCK)
        place[block] += transposed_product(left[block], right)


def _add_gradients_of_vectors(
    rows: AnchorRows, names: tuple[str, ...], loss: ChunkLoss, into: Gradients
) -> tuple[Tensor, int]:
    places = [place for place in into if place is not None]
    anchors, others = (
        vectors.detach().requires_grad_(place is not None)
        for vectors, place in zip((rows.anchors, rows.others), into, strict=True)
    )
    value, items = loss(rows.with_vectors(anchors, others).statistics(names))
    if value.requires_grad:
        leaves = [leaf for leaf in (anchors, others) if leaf.requires_grad]
        for place, slope in zip(places, torch.autograd.grad(value, leaves, allow_unused=True), strict=True):
            if slope is not None:
                place.add_(slope)
    return value.detach(), items


def check_table(
    name: str, entries: int, element_size: int, *, what: str, anchors: int, advice: str | None = None
) -> None:
    """Refuse what cannot fit.

    Raises:
        ObjectiveInputError: If `entries` of `element_size` bytes are more than `TABLE_BYTES`.
    """
    if entries * element_size > TABLE_BYTES:
        size = f"{entries * element_size / 2**30:.1f} GiB at once, where {TABLE_BYTES / 2**30:.0f} GiB is the most"
        advice = advice or (
            "Give smaller batches or fewer rows per class (`PKBatchSampler`), or use a loss that keeps one number per "
            "row, such as supcon."
        )
        raise ObjectiveInputError(f"'{name}' compares {entries:,} {what} of {anchors:,} embeddings, {size}. {advice}")
