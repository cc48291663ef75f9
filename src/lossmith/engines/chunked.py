"""The chunked engine: two plans for statistics of logits that are never built. Pure torch, so it runs anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch

from lossmith._numerics import full_precision
from lossmith._typing import Float, Tensor
from lossmith.engines.gradients import Gradients, RowSlopes, TileGradient
from lossmith.engines.regions import RegionColumns
from lossmith.engines.row_sums import RowSums, SumStatistics
from lossmith.engines.second_order import differentiable_columns, differentiable_sums, differentiate, own_parts
from lossmith.engines.tiles import ALWAYS, OPTIONAL_SUMS, ChunkedPass, OnlineSums


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """A pass whose products are not rounded behind its back: a backward pass may stand inside autocast."""

    @wraps(run)
    def exact(work: "ChunkedPass", *args: Any, **kwargs: Any) -> Any:
        with full_precision(work.linear.device):
            return run(work, *args, **kwargs)

    return exact


# Plan one: the gradient is formed in the forward pass. Three products.


@_without_autocast
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
    return value.detach(), RowSlopes.of(dict(zip(names, slopes, strict=bool(slopes))), sums.total)


def _without_parts(work: ChunkedPass) -> ChunkedPass:
    """What a graph keeps of a pass: its tensors are saved by autograd, which frees them and sees that they change."""
    return replace(work, linear=work.linear.with_parts(None, None, None))


def _with_parts(work: ChunkedPass, parts: tuple[Tensor | None, ...]) -> ChunkedPass:
    return replace(work, linear=work.linear.with_parts(*parts))


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
        """The loss; its gradients wait in `ctx`."""
        ctx.save_for_backward(hidden, weight, bias)
        ctx.work, ctx.names, ctx.chunk_loss = _without_parts(work), names, chunk_loss
        loss, gradients = loss_and_gradients(work, names, chunk_loss, ctx.needs_input_grad[:3])
        # float16 keeps float32 until the upstream gradient, a loss scale, is known: small ones would be 0 by then.
        halves = torch.float16 in (hidden.dtype, weight.dtype)
        ctx.gradients = gradients if halves else _fit(gradients, (hidden, weight, bias))
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients times the upstream one."""
        parts = ctx.saved_tensors
        work = _with_parts(ctx.work, parts)
        if torch.is_grad_enabled():
            parts = own_parts(parts)
            loss = ctx.chunk_loss(_statistics(work, differentiable_sums(work, parts), ctx.names), slice(None))
            return (*differentiate((loss,), parts, upstream), None, None, None)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = loss_and_gradients(work, ctx.names, ctx.chunk_loss, ctx.needs_input_grad[:3])
        # In place: nobody else holds them, and the copy of a weight's gradient is as large as the weight.
        if upstream[0].device.type != "cpu" or float(upstream[0]) != 1:
            gradients = tuple(None if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients)
        return (*_fit(gradients, parts), None, None, None)


def _fit(gradients: tuple[Tensor | None, ...], parts: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients in the dtype of what they are for."""
    return tuple(
        None if gradient is None or part is None else gradient.to(part.dtype)
        for gradient, part in zip(gradients, parts, strict=True)
    )


# Plan two: scores are made again in the backward pass. Four products.


def recomputed_sums(work: ChunkedPass) -> tuple[RowSums, list[Tensor]]:
    """Differentiable sums of every row that counts, and what each column request asks for.

    Where no row counts they are empty, and in the graph of hidden states, weight and bias all the same.
    """
    names = [name for name in (*ALWAYS, "maximum", *OPTIONAL_SUMS, "ties", "top") if name in work.needs]
    if work.num_rows == 0:
        nothing = work.linear.zero()
        sizes = [(len(r.columns),) if r.mass else (0, len(r.columns)) for r in work.requests]
        empty = {name: nothing.expand((0, 0) if name == "top" else 0) for name in names}
        return RowSums(**empty), [nothing.expand(size) for size in sizes]
    linear = work.linear
    values = RecomputedSums.apply(linear.hidden, linear.weight, linear.bias, work, tuple(names))
    return RowSums(**dict(zip(names, values, strict=False))), list(values[len(names) :])


@_without_autocast
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


@_without_autocast
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


def _engine(work: ChunkedPass) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward and the backward pass of the engine that was asked for."""
    if work.linear.engine == "triton":
        # Imported here, so that nobody needs Triton who does not ask for it.
        from lossmith.engines import triton

        return triton.forward_sums, triton.backward_sums
    return forward_sums, backward_sums


class RecomputedSums(torch.autograd.Function):
    """The sums of every row as differentiable vectors, then what each column request asks for."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: ChunkedPass, names: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        """The named sums, then the regions' values."""
        forward, _ = _engine(work)
        sums, regions = forward(work)
        named = sums.present()
        ctx.work, ctx.names = _without_parts(work), names
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(named[name] for name in ("maximum", "ties", "top") if name in names))
        ctx.save_for_backward(hidden, weight, bias, *(named[name] for name in names))
        return (*(named[name] for name in names), *regions)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients from the derivatives of the sums and of the regions' values."""
        hidden, weight, bias, *values = ctx.saved_tensors
        parts = (hidden, weight, bias)
        work = _with_parts(ctx.work, parts)
        if torch.is_grad_enabled():
            parts = own_parts(parts)
            sums = differentiable_sums(work, parts)
            outputs = [*(getattr(sums, name) for name in ctx.names), *differentiable_columns(work, parts, sums)]
            return (*differentiate(outputs, parts, upstream), None, None)
        sums = RowSums(**dict(zip(ctx.names, values, strict=True)))
        given = dict(zip(ctx.names, upstream, strict=False))
        slopes = RowSlopes.of(given, sums.total)
        regions = upstream[len(ctx.names) :]
        _, backward = _engine(work)
        gradients = backward(work, sums, slopes, regions, ctx.needs_input_grad[:3])
        return (*_fit(gradients, parts), None, None)
