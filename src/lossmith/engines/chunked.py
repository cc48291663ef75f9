"""The chunked engine: sums over the vocabulary, and their gradients, in tiles of rows and classes that never make the
logits. Pure torch, so it runs on every device.

Shapes: a tile is `rows` x `columns` of scores; `linear.hidden` is [tokens, hidden] here, and only its rows at `places`,
those that count, are ever multiplied.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lossmith._numerics import at_least_float32
from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.budget import rows_within_budget
from lossmith.engines.linear_logits import LinearLogits
from lossmith.engines.products import transposed_product
from lossmith.engines.row_sums import TOP, RowSums, SumStatistics
from lossmith.errors import ObjectiveInputError

_TILE_BYTES = {"cpu": 2**22, "cuda": 2**27, "mps": 2**26}
"""A tile is read some five times between two products: on a CPU it should stay in the cache."""
_TILE_ROWS = {"cpu": 512, "cuda": 4096, "mps": 1024}
_FLOOR = -1e4
"""exp(-1e4) is 0 in every dtype; a product of 0 with anything above it is 0 and not NaN."""

ALWAYS = ("label_scores", "total")
"""Sums with a gradient that every statistic reads."""
OPTIONAL_SUMS = ("tilted", "squares", "centered", "highest")
"""Sums that are computed only when a statistic reads them, in the order of the autograd function's outputs."""


@dataclass(frozen=True, kw_only=True)
class ColumnRequest:
    """Classes of one region whose scores, or whose probability summed over its rows, are wanted too."""

    rows: Int[Tensor, " region"]
    """The region's rows among those that count, ascending."""
    columns: Int[Tensor, " classes"]
    """Class ids, ascending."""
    mass: bool = False
    """Whether only the sum of probabilities over the rows is wanted."""


@dataclass(frozen=True, kw_only=True)
class ChunkedPass:
    """What is wanted of which rows; the two plans below carry it out."""

    linear: LinearLogits
    """Its `hidden` has two axes."""
    places: Int[Tensor, " rows"] | None
    """Rows of `hidden` that count; None where all do."""
    classes: Int[Tensor, " rows"]
    """Label of each row that counts."""
    reads: frozenset[str]
    """Optional sums that are wanted: `tilted`, `squares`, `centered`, `highest`, `top`."""
    requests: tuple[ColumnRequest, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows count."""
        return len(self.classes)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of scores and sums."""
        return self.linear.dtype

    def tile_shape(self, *, kept: bool) -> tuple[int, int]:
        """Rows and columns of a tile; with `kept` all columns of its rows are held at a time.

        Raises:
            ObjectiveInputError: If the budget does not hold one row.
        """
        device, columns = self.linear.device, self.linear.weight.shape[0]
        budget_rows = rows_within_budget(columns, self.dtype, device)
        kind = device.type if device.type in _TILE_BYTES else "cpu"
        most = budget_rows if kept else _TILE_ROWS[kind]
        rows = max(math.ceil(self.num_rows / max(math.ceil(self.num_rows / most), 1)), 1)
        entries = _TILE_BYTES[kind] // self.dtype.itemsize
        if not kept:
            entries = min(entries, budget_rows * columns)
        return rows, max(min(entries // rows, columns), 1) if entries >= rows else 1

    def row_chunks(self, rows: int) -> list[slice]:
        """Consecutive chunks of the rows that count."""
        return [slice(start, min(start + rows, self.num_rows)) for start in range(0, self.num_rows, rows)]

    def column_tiles(self, columns: int) -> list[slice]:
        """Consecutive tiles of this rank's classes."""
        own = self.linear.weight.shape[0]
        return [slice(start, min(start + columns, own)) for start in range(0, own, columns)]

    # Operands. Half precision goes up before the product on a CPU, and inside it on a GPU.

    def operand(self, part: Tensor) -> Tensor:
        """A factor of a product, rounded as autocast asks."""
        part = part if self.linear.operand_dtype is None else part.to(self.linear.operand_dtype)
        return part if part.device.type == "cuda" else at_least_float32(part)

    def hidden_rows(self, chunk: slice) -> Float[Tensor, "rows hidden"]:
        """Hidden states of a chunk of the rows that count."""
        hidden = self.linear.hidden.detach()
        return self.operand(hidden[chunk] if self.places is None else hidden.index_select(0, self.places[chunk]))

    def weight_tile(self, tile: slice) -> Float[Tensor, "columns hidden"]:
        """Rows of the output matrix."""
        return self.operand(self.linear.weight.detach()[tile])

    def scores(self, hidden: Tensor, weight: Tensor, tile: slice | Tensor) -> Float[Tensor, "rows columns"]:
        """Scores of a tile, in a tensor of its own."""
        scores = transposed_product(hidden, weight)
        if self.linear.bias is not None:
            scores += self.linear.bias.detach()[tile].to(scores.dtype)
        if self.linear.scale != 1:
            scores *= self.linear.scale
        if self.linear.softcap is not None:
            scores.div_(self.linear.softcap).tanh_().mul_(self.linear.softcap)
        return scores

    def own_place(self, chunk: slice, tile: slice) -> tuple[Bool[Tensor, "rows 1"], Int[Tensor, "rows 1"]]:
        """Whether the label of each row lies in a tile, and in which column of it (any, where it does not)."""
        column = self.classes[chunk, None] - (self.linear.vocab_start + tile.start)
        width = tile.stop - tile.start
        return (column >= 0) & (column < width), column.clamp(0, width - 1)

    @property
    def keeps_scores(self) -> bool:
        """Whether a gradient needs scores beside their exponentials."""
        return self.linear.softcap is not None or bool(self.reads & {"tilted", "highest"})


class OnlineSums:
    """Sums over the vocabulary of a chunk of rows, tile by tile: the online log-sum-exp and its relatives."""

    def __init__(self, work: ChunkedPass, rows: int):
        self._work = work
        nothing = torch.zeros(rows, dtype=work.dtype, device=work.linear.device)
        self.label_scores = nothing
        self.maximum = torch.full_like(nothing, -torch.inf)
        self.reference = nothing
        """`maximum`, 0 where that is -inf: what exponentials are relative to."""
        self.total = nothing
        self.tilted = self.squares = self.centered = self.ties = nothing
        self.seen = nothing
        self.top = nothing.new_empty(rows, 0)

    def add(
        self,
        scores: Float[Tensor, "rows columns"],
        inside: Bool[Tensor, "rows 1"],
        column: Int[Tensor, "rows 1"],
        place: Float[Tensor, "rows columns"] | None = None,
    ) -> None:
        """Take in a tile of scores, which is used up.

        In `place`, where there is one, it leaves exponentials relative to `reference`, or scores less it where those
        are kept.

        The label's own place has probability 0 there.
        """
        reads = self._work.reads
        own = scores.gather(1, column)
        self.label_scores = torch.where(inside.squeeze(1), own.squeeze(1), self.label_scores)
        scores.scatter_(1, column, own.masked_fill(inside, -torch.inf))
        highest = scores.amax(1)
        if "highest" in reads:
            here = (scores == highest[:, None]).sum(1).to(scores.dtype)
            kept = torch.where(highest > self.maximum, 0.0, self.ties)
            self.ties = kept + torch.where(highest >= self.maximum, here, 0.0)
        if "top" in reads:
            top = torch.cat([self.top, scores.topk(min(TOP, scores.shape[1]), dim=1).values], dim=1)
            self.top = top.topk(min(TOP, top.shape[1]), dim=1).values
        decay = self._raise_to(highest)
        scores = torch.sub(scores, self.reference[:, None], out=scores if place is None else place)
        if "centered" in reads:
            # Without the label's place, whose -inf would swallow the sum.
            places = scores.scatter(1, column, scores.gather(1, column).masked_fill(inside, 0.0))
            self.centered = self.centered + places.sum(1)
            self.seen = self.seen + scores.shape[1] - inside.squeeze(1).to(scores.dtype)
        exponentials = scores.exp() if self._work.keeps_scores else scores.exp_()
        self.total = self.total * decay + exponentials.sum(1)
        if "tilted" in reads:
            self.tilted = self.tilted * decay + scores.clamp(min=_FLOOR).mul_(exponentials).sum(1)
        if "squares" in reads:
            self.squares = self.squares * decay**2 + exponentials.square().sum(1)

    def _raise_to(self, highest: Tensor) -> Tensor:
        """Make everything relative to the maximum of what was seen and `highest`; by how much old sums shrink."""
        before = self.reference
        decay = self.maximum
        self.maximum = torch.maximum(self.maximum, highest)
        self.reference = self.maximum.masked_fill(self.maximum == -torch.inf, 0.0)
        decay = (decay - self.reference).exp()
        self.tilted = self.tilted + self.total * (before - self.reference)
        self.centered = self.centered + self.seen * (before - self.reference)
        return decay

    def finish(self) -> RowSums:
        """The sums, those of all ranks where a group shares the vocabulary."""
        if self._work.linear.group is not None:
            self._combine_over_ranks(self._work.linear.group)
        optional: dict[str, Tensor | None] = {
            name: getattr(self, name) for name in ("tilted", "squares", "centered", "top") if name in self._work.reads
        }
        if "highest" in self._work.reads:
            optional |= {"highest": torch.zeros_like(self.total), "ties": self.ties}
        return RowSums(label_scores=self.label_scores, maximum=self.maximum, total=self.total, **optional)

    def _combine_over_ranks(self, group: Any) -> None:
        reads = self._work.reads
        own = self.maximum
        highest = own.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        decay = self._raise_to(highest)
        self.ties = torch.where(own == highest, self.ties, 0.0)
        shrunk = [self.label_scores, self.total * decay, self.tilted * decay, self.squares * decay**2]
        sums = torch.stack([*shrunk, self.centered, self.ties])
        dist.all_reduce(sums, group=group)
        self.label_scores, self.total, self.tilted, self.squares, self.centered, self.ties = sums.unbind()
        if "top" in reads:
            width = torch.tensor([self.top.shape[1]], device=self.top.device)
            dist.all_reduce(width, dist.ReduceOp.MAX, group=group)
            padded = torch.nn.functional.pad(self.top, (0, int(width) - self.top.shape[1]), value=-math.inf)
            parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, padded, group=group)
            top = torch.cat(parts, dim=1)
            self.top = top.topk(min(TOP, top.shape[1]), dim=1).values


@dataclass(frozen=True, kw_only=True)
class RowSlopes:
    """Derivative of the loss with respect to the sums of each row; None where it does not depend on one."""

    total: Float[Tensor, " rows"]
    label_scores: Float[Tensor, " rows"]
    tilted: Float[Tensor, " rows"] | None = None
    squares: Float[Tensor, " rows"] | None = None
    centered: Float[Tensor, " rows"] | None = None
    highest: Float[Tensor, " rows"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "RowSlopes":
        """The same with every derivative changed."""
        named = {name: getattr(self, name) for name in (*ALWAYS, *OPTIONAL_SUMS)}
        return RowSlopes(**{name: None if value is None else change(value) for name, value in named.items()})


class TileGradient:
    """Derivative with respect to the scores of tiles of one chunk of rows, from the derivatives of its sums.

    Args:
        work: What the tiles belong to.
        sums: Sums of the chunk's rows.
        slopes: Derivatives of the loss with respect to them.
    """

    def __init__(self, work: ChunkedPass, sums: RowSums, slopes: RowSlopes):
        self._work = work
        self._sums = sums
        self.reference = sums.maximum.masked_fill(sums.maximum == -torch.inf, 0.0)
        # The scale is a factor of every derivative; with a soft-cap it joins that one's.
        scale = work.linear.scale
        self._slopes = slopes.map(lambda slope: scale * slope) if scale != 1 and not work.linear.softcap else slopes

    def __call__(
        self,
        tile: Float[Tensor, "rows columns"],
        shift: Float[Tensor, " rows"] | None,
        inside: Bool[Tensor, "rows 1"],
        column: Int[Tensor, "rows 1"],
        regions: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Float[Tensor, "rows columns"]:
        """The derivative with respect to `scale * (hidden @ weight.T + bias)` before scale; uses `tile` up.

        Args:
            tile: Exponentials, or scores where those are kept, as `OnlineSums.add` left them.
            shift: What they are relative to, less the final `reference`; None where that is the same.
            inside: Whether the label of each row lies in the tile.
            column: In which column of it.
            regions: Adds what regions ask for, given the derivative and the exponentials.
        """
        kept = self._work.keeps_scores
        if kept and shift is not None:
            tile.add_(shift[:, None])
        decay = None if kept or shift is None else shift.exp()
        exponentials = tile.exp() if kept else tile
        gradient = self._of_others(tile, exponentials, decay, reuse=regions is None)
        label = gradient.gather(1, column).masked_scatter(inside, self._slopes.label_scores[inside.squeeze(1)])
        gradient.scatter_(1, column, label)
        if regions is not None:
            regions(gradient, exponentials)
        return self._through_softcap(gradient, tile, inside, column)

    def _of_others(self, tile: Tensor, exponentials: Tensor, decay: Tensor | None, *, reuse: bool) -> Tensor:
        slopes, sums = self._slopes, self._sums
        slope = slopes.total[:, None] if decay is None else (slopes.total * decay)[:, None]
        if slopes.tilted is not None:
            slope = tile.clamp(min=_FLOOR).add_(1).mul_(slopes.tilted[:, None]).add_(slope)
        if slopes.squares is not None:
            square = 2 * slopes.squares if decay is None else 2 * slopes.squares * decay**2
            slope = slope + exponentials * square[:, None]
        gradient = exponentials.mul_(slope) if reuse else exponentials * slope
        if slopes.centered is not None:
            gradient.add_(slopes.centered[:, None])
        if slopes.highest is not None:
            assert sums.ties is not None
            share = slopes.highest / sums.ties.clamp(min=1)
            gradient.add_((tile == 0).to(gradient.dtype).mul_(share[:, None]))
        return gradient

    def _through_softcap(self, gradient: Tensor, tile: Tensor, inside: Tensor, column: Tensor) -> Tensor:
        softcap = self._work.linear.softcap
        if softcap is None:
            return gradient
        own = (self._sums.label_scores - self.reference)[:, None]
        tile.scatter_(1, column, torch.where(inside, own, tile.gather(1, column)))
        share = tile.add_(self.reference[:, None]).div_(softcap)
        return gradient.mul_(share.square_().neg_().add_(1).mul_(self._work.linear.scale))


class Gradients:
    """Gradients of hidden states, weight and bias as they add up over tiles, in at least float32.

    Args:
        work: What they are for.
        wanted: Whether each of hidden, weight and bias needs one.
        by_tile: Whether all rows of a tile come before the next tile (`whole_tile`); then only that tile's part of the
            weight's gradient is held in float32.
    """

    def __init__(self, work: ChunkedPass, wanted: tuple[bool, bool, bool], *, by_tile: bool = False):
        self._work = work
        linear = work.linear
        dtypes = [work.dtype, linear.weight.dtype if by_tile else work.dtype, work.dtype]
        shapes = [(work.num_rows, linear.hidden.shape[1]), linear.weight.shape, linear.weight.shape[:1]]
        self._tile: Tensor | None = None
        self.hidden, self.weight, self.bias = (
            torch.empty(shape, dtype=dtype, device=linear.device) if want else None
            for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
        )

    def add(self, chunk: slice, tile: slice, gradient: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add what one tile gives, from the derivative with respect to its scores."""
        operand = gradient.to(hidden.dtype)
        if self.hidden is not None:
            _add(self.hidden[chunk], transposed_product(operand, weight.T), first=tile.start == 0)
        if self.weight is not None:
            target = self.weight[tile] if self._tile is None else self._tile
            _add(target, transposed_product(operand.T, hidden.T), first=chunk.start == 0)
        if self.bias is not None:
            _add(self.bias[tile], gradient.sum(0), first=chunk.start == 0)

    @contextmanager
    def whole_tile(self, tile: slice) -> Iterator[None]:
        """All chunks of rows of one tile come inside this."""
        if self.weight is not None:
            self._tile = self.weight.new_empty(self.weight[tile].shape, dtype=self._work.dtype)
        yield
        if self.weight is not None and self._tile is not None:
            self.weight[tile] = self._tile

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of all rows of hidden (0 where a row does not count), of the weight and of the bias."""
        linear, hidden = self._work.linear, self.hidden
        if hidden is not None:
            if linear.group is not None:
                dist.all_reduce(hidden, group=linear.group)
            if self._work.places is not None:
                rows = hidden.new_zeros(linear.hidden.shape)
                hidden = rows.index_copy_(0, self._work.places, hidden)
        return hidden, self.weight, self.bias


def _add(place: Tensor, part: Tensor, *, first: bool) -> None:
    # The first part is written and not added: nobody needs to fill a weight's gradient with zeros before.
    place.copy_(part) if first else place.add_(part)


def _fit(gradients: tuple[Tensor | None, ...], parts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Gradients in the dtype of what they are for."""
    return [
        None if gradient is None or part is None else gradient.to(part.dtype)
        for gradient, part in zip(gradients, parts, strict=True)
    ]


# Plan one: the gradient is formed in the forward pass. Three products.


def loss_and_gradients(
    work: ChunkedPass,
    names: tuple[str, ...],
    chunk_loss: Callable[[dict[str, Tensor], slice], Tensor],
    wanted: tuple[bool, bool, bool],
) -> tuple[Float[Tensor, ""], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """The sum of a row-local loss and its gradients, chunk by chunk of rows.

    Args:
        work: The rows.
        names: Statistics that the loss reads.
        chunk_loss: From the statistics of a chunk, and the chunk, to its share of the loss, a scalar.
        wanted: Whether hidden, weight and bias each need a gradient.
    """
    rows, columns = work.tile_shape(kept=True)
    tiles = work.column_tiles(columns)
    gradients = Gradients(work, wanted)
    loss = torch.zeros((), dtype=work.dtype, device=work.linear.device)
    # One block for all chunks: tiles that come and go as tensors of their own leave holes in a CPU's heap.
    kept = torch.empty(rows * work.linear.weight.shape[0], dtype=work.dtype, device=work.linear.device)
    for chunk in work.row_chunks(rows):
        hidden = work.hidden_rows(chunk)
        online = OnlineSums(work, len(hidden))
        places = _split(kept, len(hidden), tiles)
        references = []
        for tile, place in zip(tiles, places, strict=True):
            scores = work.scores(hidden, work.weight_tile(tile), tile)
            online.add(scores, *work.own_place(chunk, tile), place)
            references.append(online.reference)
        sums = online.finish()
        part, slopes = _slopes_of(sums, lambda sums, chunk=chunk: chunk_loss(_statistics(work, sums, names), chunk))
        loss += part
        tile_gradient = TileGradient(work, sums, slopes)
        for tile, place, reference in zip(tiles, places, references, strict=True):
            shift = reference - tile_gradient.reference
            gradient = tile_gradient(place, shift, *work.own_place(chunk, tile))
            gradients.add(chunk, tile, gradient, hidden, work.weight_tile(tile))
    return loss, gradients.finish()


def _split(block: Tensor, rows: int, tiles: list[slice]) -> list[Tensor]:
    """The block as one contiguous table of `rows` per tile."""
    return [block[rows * tile.start : rows * tile.stop].view(rows, -1) for tile in tiles]


def _statistics(work: ChunkedPass, sums: RowSums, names: tuple[str, ...]) -> dict[str, Tensor]:
    return SumStatistics(sums, work.linear.vocab).get(names)


def _slopes_of(sums: RowSums, function: Callable[[RowSums], Tensor]) -> tuple[Tensor, RowSlopes]:
    """A scalar function of the sums and its derivative, by autograd on vectors."""
    present = sums.present()
    names = [name for name in (*ALWAYS, *OPTIONAL_SUMS) if name in present]
    with torch.enable_grad():
        leaves = {name: present[name].detach().requires_grad_() for name in names}
        value = function(replace(sums, **leaves))
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else ()
    found: dict[str, Tensor | None] = dict(zip(names, slopes, strict=bool(slopes)))
    for name in ALWAYS:
        if found.get(name) is None:
            found[name] = torch.zeros_like(sums.total)
    return value.detach(), RowSlopes(**found)


class GradientInForward(torch.autograd.Function):
    """The loss, whose gradients are there before anyone asks; asked a second time it makes them again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        work: ChunkedPass,
        names: tuple[str, ...],
        chunk_loss: Callable[[dict[str, Tensor], slice], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.work, ctx.names, ctx.chunk_loss = work, names, chunk_loss
        loss, gradients = loss_and_gradients(work, names, chunk_loss, ctx.needs_input_grad[:3])
        # float16 keeps float32 until the upstream gradient, a loss scale, is known: small ones would be 0 by then.
        halves = torch.float16 in (hidden.dtype, weight.dtype)
        ctx.gradients = gradients if halves else _fit(gradients, (hidden, weight, bias))
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            loss = ctx.chunk_loss(_statistics(ctx.work, _differentiable_sums(ctx.work, parts), ctx.names), slice(None))
            return (*_differentiate((loss,), parts, upstream), None, None, None)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = loss_and_gradients(ctx.work, ctx.names, ctx.chunk_loss, ctx.needs_input_grad[:3])
        # In place: nobody else holds them, and the copy of a weight's gradient is as large as the weight.
        scaled = tuple(None if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients)
        return (*_fit(scaled, parts), None, None, None)


# Plan two: scores are made again in the backward pass. Four products.


def forward_sums(work: ChunkedPass) -> tuple[RowSums, list[Tensor]]:
    """Sums of every row, and what each column request asks for."""
    rows, columns = work.tile_shape(kept=False)
    chunks, tiles = work.row_chunks(rows), work.column_tiles(columns)
    regions = [RegionColumns(work, request, chunks, tiles) for request in work.requests]
    parts: list[RowSums] = []
    for number, chunk in enumerate(chunks):
        hidden = work.hidden_rows(chunk)
        online = OnlineSums(work, len(hidden))
        for index, tile in enumerate(tiles):
            scores = work.scores(hidden, work.weight_tile(tile), tile)
            for region in regions:
                region.pick(number, index, scores)
            online.add(scores, *work.own_place(chunk, tile))
        sums = online.finish()
        for region in regions:
            region.finish_chunk(number, sums)
        parts.append(sums)
    joined = {name: torch.cat([part.present()[name] for part in parts]) for name in parts[0].present()}
    return RowSums(**joined), [region.value for region in regions]


def backward_sums(
    work: ChunkedPass,
    sums: RowSums,
    slopes: RowSlopes,
    upstream: Sequence[Tensor | None],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias from the derivatives of the sums and of the column requests."""
    rows, columns = work.tile_shape(kept=False)
    chunks, tiles = work.row_chunks(rows), work.column_tiles(columns)
    gradients = Gradients(work, wanted, by_tile=True)
    regions = []
    for request, given in zip(work.requests, upstream, strict=True):
        if given is not None:
            regions.append(RegionColumns(work, request, chunks, tiles, upstream=given))
            slopes = regions[-1].correct(slopes, sums)
    of_rows = [TileGradient(work, sums.rows(chunk), slopes.map(lambda s, chunk=chunk: s[chunk])) for chunk in chunks]
    # Tiles outside, so that the weight's gradient is added up in one tile of float32.
    for index, tile in enumerate(tiles):
        weight = work.weight_tile(tile)
        with gradients.whole_tile(tile):
            for number, (chunk, tile_gradient) in enumerate(zip(chunks, of_rows, strict=True)):
                hidden = work.hidden_rows(chunk)
                inside, column = work.own_place(chunk, tile)
                scores = work.scores(hidden, weight, tile)
                scores.scatter_(1, column, scores.gather(1, column).masked_fill(inside, -torch.inf))
                scores.sub_(tile_gradient.reference[:, None])
                if not work.keeps_scores:
                    scores.exp_()
                add = partial(_add_regions, regions, number, index) if regions else None
                gradient = tile_gradient(scores, None, inside, column, add)
                gradients.add(chunk, tile, gradient, hidden, weight)
    return gradients.finish()


def _add_regions(
    regions: list["RegionColumns"], number: int, index: int, gradient: Tensor, exponentials: Tensor
) -> None:
    for region in regions:
        region.add_gradient(number, index, gradient, exponentials)


class RegionColumns:
    """The scores of a region's classes, or their probabilities summed over its rows, as tiles pass by.

    Args:
        work: The pass.
        request: The region.
        chunks: Chunks of rows of the pass.
        tiles: Tiles of classes.
        upstream: In the backward pass, the derivative of what the region asked for.
    """

    def __init__(
        self,
        work: ChunkedPass,
        request: ColumnRequest,
        chunks: list[slice],
        tiles: list[slice],
        upstream: Tensor | None = None,
    ):
        self._work, self._request, self._upstream = work, request, upstream
        self._columns = request.columns - work.linear.vocab_start
        self._row_parts = _overlaps(request.rows, chunks)
        self._column_parts = _overlaps(self._columns, tiles)
        self._chunks, self._tiles = chunks, tiles
        self._share = torch.zeros(0)
        """1 / sum of exponentials of each row of the region, in the backward pass of a mass."""
        shape = (len(request.columns),) if request.mass else (len(request.rows), len(request.columns))
        self.value = torch.zeros(shape, dtype=work.dtype, device=work.linear.device)
        """Scores less the row's `maximum`, or masses."""
        self._picked = torch.zeros(0)

    def _places(self, number: int, index: int) -> tuple[Tensor | None, Tensor] | None:
        """Rows (None for all) and columns of a tile that are the region's, if any are."""
        rows, columns = self._row_parts[number], self._column_parts[index]
        if rows.start == rows.stop or columns.start == columns.stop:
            return None
        chunk = self._chunks[number]
        whole = rows.stop - rows.start == chunk.stop - chunk.start
        local = None if whole else self._request.rows[rows] - chunk.start
        return local, self._columns[columns] - self._tiles[index].start

    def pick(self, number: int, index: int, scores: Tensor) -> None:
        """Take the region's scores out of a tile."""
        rows = self._row_parts[number]
        if index == 0:
            self._picked = self.value.new_zeros(rows.stop - rows.start, len(self._columns))
        places = self._places(number, index)
        if places is not None:
            own = scores if places[0] is None else scores.index_select(0, places[0])
            self._picked[:, self._column_parts[index]] = own.index_select(1, places[1])

    def finish_chunk(self, number: int, sums: RowSums) -> None:
        """All tiles of a chunk have passed, its sums are known."""
        rows = self._row_parts[number]
        if rows.start == rows.stop:
            return
        if self._work.linear.group is not None:
            dist.all_reduce(self._picked, group=self._work.linear.group)
        own = sums.rows(self._request.rows[rows] - self._chunks[number].start)
        above = self._picked - own.maximum.masked_fill(own.maximum == -torch.inf, 0.0)[:, None]
        if self._request.mass:
            normalizer = SumStatistics(own, self._work.linear.vocab).log_normalizer_above_maximum
            self.value += (above - normalizer[:, None]).exp().sum(0)
        else:
            self.value[rows] = above

    def correct(self, slopes: RowSlopes, sums: RowSums) -> RowSlopes:
        """The derivatives of the sums with what a mass adds: it also depends on every row's normaliser."""
        if not self._request.mass:
            return slopes
        assert self._upstream is not None
        work, rows = self._work, self._request.rows
        statistics = SumStatistics(sums.rows(rows), work.linear.vocab)
        self._share = (-statistics.log_normalizer_above_maximum).exp()
        # Mean of the upstream derivative under each row's probabilities of the region's classes.
        mean = torch.cat([self._mean_upstream(chunk, part, sums) for chunk, part in self._parts()])
        label = self._upstream[torch.searchsorted(self._request.columns, work.classes[rows])]
        total = slopes.total.index_add(0, rows, -mean * self._share)
        labels = slopes.label_scores.index_add(0, rows, statistics.token_logps.exp() * (label - mean))
        return replace(slopes, total=total, label_scores=labels)

    def _parts(self) -> list[tuple[slice, slice]]:
        pairs = zip(self._chunks, self._row_parts, strict=True)
        return [(chunk, part) for chunk, part in pairs if part.start < part.stop]

    def _mean_upstream(self, chunk: slice, part: slice, sums: RowSums) -> Tensor:
        """One narrow product makes the scores of the region's classes again."""
        work, upstream = self._work, self._upstream
        assert upstream is not None
        rows = self._request.rows[part]
        hidden = work.hidden_rows(chunk).index_select(0, rows - chunk.start)
        own = (self._columns >= 0) & (self._columns < work.linear.weight.shape[0])
        columns = self._columns[own]
        maximum = sums.maximum[rows]
        reference = maximum.masked_fill(maximum == -torch.inf, 0.0)[:, None]
        weight = work.operand(work.linear.weight.detach().index_select(0, columns))
        above = work.scores(hidden, weight, columns) - reference
        mean = (above.exp() * self._share[part][:, None]) @ upstream[own]
        if work.linear.group is not None:
            dist.all_reduce(mean, group=work.linear.group)
        return mean

    def add_gradient(self, number: int, index: int, gradient: Tensor, exponentials: Tensor) -> None:
        """Add to the derivative of a tile's scores what the region asks of its columns."""
        places = self._places(number, index)
        if places is None:
            return
        rows, columns = self._row_parts[number], self._column_parts[index]
        local, own = places
        assert self._upstream is not None
        if self._request.mass:
            scale = self._share[rows][:, None]
            part = exponentials if local is None else exponentials.index_select(0, local)
            change = part.index_select(1, own) * self._upstream[columns] * scale
        else:
            change = self._upstream[rows, columns]
        change = self._scaled(change)
        if local is None:
            gradient.index_add_(1, own, change)
        else:
            gradient.index_copy_(0, local, gradient.index_select(0, local).index_add_(1, own, change))

    def _scaled(self, change: Tensor) -> Tensor:
        linear = self._work.linear
        return change if linear.scale == 1 or linear.softcap is not None else change * linear.scale


def _overlaps(ascending: Int[Tensor, " values"], parts: list[slice]) -> list[slice]:
    """Where the values that fall into each of consecutive parts lie."""
    edges = torch.tensor([part.start for part in parts] + [parts[-1].stop], device=ascending.device)
    places = torch.searchsorted(ascending, edges).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(places)]


class RecomputedSums(torch.autograd.Function):
    """The sums of every row as differentiable vectors, then what each column request asks for."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: ChunkedPass) -> tuple[Tensor, ...]:
        sums, regions = forward_sums(work)
        named = sums.present()
        ctx.names = tuple(named)
        ctx.work = work
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(named[name] for name in ("maximum", "ties", "top") if name in named))
        ctx.save_for_backward(hidden, weight, bias, *named.values())
        return (*named.values(), *regions)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *values = ctx.saved_tensors
        parts = (hidden, weight, bias)
        if torch.is_grad_enabled():
            sums = _differentiable_sums(ctx.work, parts)
            outputs = [*(getattr(sums, name) for name in ctx.names), *_differentiable_columns(ctx.work, parts, sums)]
            return (*_differentiate(outputs, parts, upstream), None)
        sums = RowSums(**dict(zip(ctx.names, values, strict=True)))
        given = dict(zip(ctx.names, upstream, strict=False))
        slopes = {name: given.get(name) for name in (*ALWAYS, *OPTIONAL_SUMS)}
        for name in ALWAYS:
            slopes[name] = torch.zeros_like(sums.total) if slopes[name] is None else slopes[name]
        regions = upstream[len(ctx.names) :]
        gradients = backward_sums(ctx.work, sums, RowSlopes(**slopes), regions, ctx.needs_input_grad[:3])
        return (*_fit(gradients, parts), None)


# Derivatives of derivatives: the logits are built after all, since every one of them would be kept.


def _differentiable_scores(work: ChunkedPass, parts: tuple[Tensor, ...]) -> Tensor:
    if work.linear.group is not None:
        raise ObjectiveInputError("Second derivatives are not available where a `group` shares the vocabulary.")
    hidden = parts[0] if work.places is None else parts[0].index_select(0, work.places)
    linear = work.linear
    return LinearLogits(hidden, parts[1], parts[2], linear.scale, linear.softcap, impl="dense").dense()


def _differentiable_sums(work: ChunkedPass, parts: tuple[Tensor, ...]) -> RowSums:
    """The sums as a plain function of the parts, for as many derivatives as wanted."""
    scores = _differentiable_scores(work, parts)
    column = work.classes[:, None]
    others = scores.scatter(1, column, -torch.inf)
    highest = others.amax(1)
    maximum = highest.detach()
    above = others - maximum.masked_fill(maximum == -torch.inf, 0.0)[:, None]
    total = above.exp()
    finite = above.masked_fill(above == -torch.inf, 0.0)
    known: dict[str, Tensor] = {
        "tilted": (total * finite).sum(1),
        "squares": total.square().sum(1),
        "centered": above.scatter(1, column, 0.0).sum(1),
        "highest": highest - maximum,
        "ties": (others == maximum[:, None]).sum(1).to(scores.dtype),
        "top": others.detach().topk(min(TOP, others.shape[1]), dim=1).values,
    }
    names = [*work.reads, *(["ties"] if "highest" in work.reads else [])]
    own = scores.gather(1, column).squeeze(1)
    return RowSums(label_scores=own, maximum=maximum, total=total.sum(1), **{name: known[name] for name in names})


def _differentiable_columns(work: ChunkedPass, parts: tuple[Tensor, ...], sums: RowSums) -> list[Tensor]:
    values = []
    for request in work.requests:
        columns = _differentiable_scores(work, parts).index_select(1, request.columns).index_select(0, request.rows)
        own = sums.rows(request.rows)
        above = columns - own.maximum.masked_fill(own.maximum == -torch.inf, 0.0)[:, None]
        if request.mass:
            normalizer = SumStatistics(own, work.linear.vocab).log_normalizer_above_maximum
            above = (above - normalizer[:, None]).exp().sum(0)
        values.append(above)
    return values


def _differentiate(
    outputs: Sequence[Tensor], parts: tuple[Tensor, ...], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    pairs = [(out, up) for out, up in zip(outputs, upstream, strict=True) if up is not None and out.requires_grad]
    wanted = [part for part in parts if part is not None and part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [up for _, up in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if part is not None and part.requires_grad else None for part in parts]
