"""Columns of a region among the tiles of a pass: scores of the classes that are present in it, or their masses."""

import itertools
from dataclasses import replace

import torch
import torch.distributed as dist

from lossmith._typing import Int, Tensor
from lossmith.engines.gradients import RowSlopes
from lossmith.engines.row_sums import RowSums, SumStatistics
from lossmith.engines.tiles import ChunkedPass, ColumnRequest


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
