"""Two plans for losses of anchors that come in chunks.

`sum_by_rows` forms the gradient of a weighted sum in the forward pass, while a chunk's tables are there;
`apply_by_rows` returns one loss per item and makes the tables again in the backward pass.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lossmith._numerics import full_precision
from lossmith._typing import Float, Int, Tensor
from lossmith.engines.budget import rows_within_budget
from lossmith.engines.similarity import TABLE_BYTES, TABLES, AnchorRows, Gradients
from lossmith.errors import ObjectiveInputError


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
