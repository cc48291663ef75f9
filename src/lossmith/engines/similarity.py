"""Rows of similarities or distances of a batch to its candidates or proxies, all at once or in chunks of anchors.

Chunks come in two plans. `sum_by_rows` forms the gradient of a weighted sum in the forward pass, while a chunk's
tables are there; `apply_by_rows` returns one loss per item and makes the tables again in the backward pass.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lossmith._numerics import full_precision
from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.budget import rows_within_budget
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


def row_chunks(
    anchors: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    tables: Int[Tensor, " anchors"] | None = None,
    least: int = 1,
) -> list[slice]:
    """Consecutive chunks of anchors whose tables fit the budget together; one where all do.

    Args:
        anchors: How many there are.
        width: Entries of one row of a table.
        dtype: Of the entries.
        device: Where they are.
        tables: How many rows of a table an objective makes of each anchor, where that is not one (triplets: one per
            positive).
        least: Anchors that a chunk holds, whatever the budget.

    Raises:
        ObjectiveInputError: If the budget does not hold one row of one table.
    """
    most = max(rows_within_budget(width, dtype, device) // TABLES, least, 1)
    if tables is None:
        size = max(math.ceil(anchors / max(math.ceil(anchors / most), 1)), 1)
        return [slice(start, min(start + size, anchors)) for start in range(0, anchors, size)]
    edges, held = [0], 0
    for place, count in enumerate(tables.clamp(min=1).tolist()):
        if held and held + count > most:
            edges.append(place)
            held = 0
        held += count
    return [slice(start, stop) for start, stop in itertools.pairwise([*edges, anchors]) if start < stop]


@dataclass(frozen=True, kw_only=True)
class RowWork:
    """A row-local objective on rows that come in chunks."""

    rows: AnchorRows
    """Without a graph."""
    names: tuple[str, ...]
    """Statistics that the objective reads."""
    function: Callable[[dict[str, Tensor]], Tensor]
    """The objective: from the statistics of any anchors to their losses, one or several per anchor, in order."""
    chunks: list[slice]

    def losses(self) -> list[Tensor]:
        """Losses of each chunk, without a graph."""
        return [self.function(self.rows.part(chunk).statistics(self.names)) for chunk in self.chunks]

    def gradients(self, weights: Tensor | None, wanted: tuple[bool, bool]) -> tuple[Tensor, int, Gradients]:
        """The sum of all losses, each times its weight, how many there are, and the sum's gradients.

        Args:
            weights: One per loss; None for ones.
            wanted: Whether anchors and others need a gradient.
        """
        vectors = self.rows.anchors, self.rows.others
        of_anchors, of_others = (torch.zeros_like(v) if want else None for v, want in zip(vectors, wanted, strict=True))
        total, count = self.rows.anchors.new_zeros(()), 0
        for chunk in self.chunks:

            def loss(statistics: dict[str, Tensor], place: int = count) -> tuple[Tensor, int]:
                values = self.function(statistics)
                weighted = values if weights is None else values * weights[place : place + len(values)]
                return weighted.sum(), len(values)

            own = None if of_anchors is None else of_anchors[chunk]
            with torch.enable_grad(), full_precision(total.device):
                part, items = self.rows.part(chunk).add_gradients(self.names, loss, (own, of_others))
            total += part
            count += items
        return total, count, (of_anchors, of_others)

    def whole(self, anchors: Tensor, others: Tensor) -> Tensor:
        """All losses at once, for as many derivatives as wanted.

        Raises:
            ObjectiveInputError: If a table of all anchors is larger than `TABLE_BYTES`.
        """
        size = len(anchors) * self.rows.width * anchors.element_size()
        if size > TABLE_BYTES:
            raise ObjectiveInputError(
                f"Second derivatives keep every table of {len(anchors):,} x {self.rows.width:,} entries, "
                f"{size / 2**30:.1f} GiB each, where {TABLE_BYTES / 2**30:.0f} GiB is the most: give smaller batches."
            )
        return self.function(self.rows.with_vectors(anchors, others).statistics(self.names))


def apply_by_rows(
    function: Callable[[dict[str, Tensor]], Tensor],
    rows: AnchorRows,
    names: tuple[str, ...],
    chunks: list[slice],
) -> Tensor:
    """`function` of the statistics of all anchors; each chunk's tables are made again in the backward pass.

    So memory grows with the number of candidates and not with its square. Four products.
    """
    if len(chunks) <= 1:
        return function(rows.statistics(names))
    return _Recomputed.apply(rows.anchors, rows.others, _work(function, rows, names, chunks))


def sum_by_rows(
    function: Callable[[dict[str, Tensor]], Tensor],
    rows: AnchorRows,
    names: tuple[str, ...],
    chunks: list[slice],
    weights: Float[Tensor, " items"] | None,
) -> tuple[Float[Tensor, ""], int]:
    """Sum of the losses of all anchors, each times its weight (without gradient), and how many losses there are.

    The gradient is formed in the forward pass, chunk by chunk: no table outlives its chunk or is made twice. Three
    products.
    """
    total, count = _GradientInForward.apply(rows.anchors, rows.others, _work(function, rows, names, chunks), weights)
    return total, int(count)


def _work(
    function: Callable[[dict[str, Tensor]], Tensor], rows: AnchorRows, names: tuple[str, ...], chunks: list[slice]
) -> RowWork:
    detached = rows.with_vectors(rows.anchors.detach(), rows.others.detach())
    return RowWork(rows=detached, names=names, function=function, chunks=chunks)


class _GradientInForward(torch.autograd.Function):
    """A weighted sum whose gradients are there before anyone asks; asked a second time it makes them again."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, others: Tensor, work: RowWork, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(anchors, others)
        ctx.work, ctx.weights = work, weights
        total, count, ctx.gradients = work.gradients(weights, ctx.needs_input_grad[:2])
        counted = torch.tensor(count)
        ctx.mark_non_differentiable(counted)
        return total, counted

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_differentiate(ctx.work, parts, upstream[0], ctx.weights), None, None)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = ctx.work.gradients(ctx.weights, ctx.needs_input_grad[:2])[2]
        # In place: nobody else holds them.
        return (*(None if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients), None, None)


class _Recomputed(torch.autograd.Function):
    """One loss per item, whose gradients are formed chunk by chunk when they are asked for."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, others: Tensor, work: RowWork) -> Tensor:
        ctx.save_for_backward(anchors, others)
        ctx.work = work
        return torch.cat(work.losses())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_differentiate(ctx.work, parts, upstream[0], None), None)
        return (*ctx.work.gradients(upstream[0], ctx.needs_input_grad[:2])[2], None)


def _differentiate(
    work: RowWork, parts: tuple[Tensor, ...], upstream: Tensor, weights: Tensor | None
) -> list[Tensor | None]:
    """Gradients with a graph of their own; of the losses, or of their weighted sum where `upstream` is one number."""
    # Views: anchors and others may be one tensor, whose whole gradient each of them would get.
    views = tuple(part.view_as(part) for part in parts)
    wanted = [part for part in views if part.requires_grad]
    with full_precision(upstream.device):
        losses = work.whole(*views)
        if weights is not None:
            losses = losses * weights
        output = losses.sum() if upstream.ndim == 0 else losses
        found = iter(torch.autograd.grad(output, wanted, upstream, create_graph=True, allow_unused=True))
    return [next(found) if part.requires_grad else None for part in parts]


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
