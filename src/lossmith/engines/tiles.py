"""Tiles of rows and classes: what a pass over the vocabulary is cut into, and the sums that pass by.

Shapes: a tile is `rows` x `columns` of scores; `linear.hidden` is [tokens, hidden] here, and only its rows at `places`,
those that count, are ever multiplied.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lossmith._numerics import at_least_float32
from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.budget import rows_within_budget
from lossmith.engines.linear_logits import LinearLogits
from lossmith.engines.products import transposed_product
from lossmith.engines.row_sums import TOP, RowSums

_TILE_BYTES = {"cpu": 2**22, "cuda": 2**27, "mps": 2**26}
"""A tile is read some five times between two products: on a CPU it should stay in the cache."""
_TILE_ROWS = {"cpu": 512, "cuda": 4096, "mps": 1024}
FLOOR = -1e4
"""exp(-1e4) is 0 in every dtype; a product of 0 with anything above it is 0 and not NaN."""

ALWAYS = ("label_scores", "total")
"""Sums with a gradient that every statistic reads."""
OPTIONAL_SUMS = ("tilted", "squares", "centered", "plain", "highest")
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
    """Optional sums that are wanted: `tilted`, `squares`, `centered`, `plain`, `highest`, `top`."""
    requests: tuple[ColumnRequest, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows count."""
        return len(self.classes)

    @property
    def needs(self) -> frozenset[str]:
        """Names of all sums that are computed."""
        return self.reads | {*ALWAYS, "maximum"} | ({"ties"} if "highest" in self.reads else frozenset())

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
        # Ranks that share a vocabulary talk once per chunk of rows: the largest slice decides for all of them.
        budget_rows = rows_within_budget(self.linear.largest_slice, self.dtype, device)
        kind = device.type if device.type in _TILE_BYTES else "cpu"
        entries = _TILE_BYTES[kind] // self.dtype.itemsize
        if not kept:
            entries = min(entries, budget_rows * self.linear.largest_slice)
        most = budget_rows if kept else min(_TILE_ROWS[kind], entries)
        rows = max(math.ceil(self.num_rows / max(math.ceil(self.num_rows / most), 1)), 1)
        return rows, min(max(entries // rows, 1), columns)

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
        self.tilted = self.squares = self.centered = self.plain = self.ties = nothing
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
        if "plain" in reads:
            self.plain = self.plain + scores.scatter(1, column, own.masked_fill(inside, 0.0)).sum(1)
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
            self.tilted = self.tilted * decay + scores.clamp(min=FLOOR).mul_(exponentials).sum(1)
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
            name: getattr(self, name)
            for name in ("tilted", "squares", "centered", "plain", "top")
            if name in self._work.reads
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
        sums = torch.stack([*shrunk, self.centered, self.plain, self.ties])
        dist.all_reduce(sums, group=group)
        self.label_scores, self.total, self.tilted, self.squares, *others = sums.unbind()
        self.centered, self.plain, self.ties = others
        if "top" in reads:
            width = torch.tensor([self.top.shape[1]], device=self.top.device)
            dist.all_reduce(width, dist.ReduceOp.MAX, group=group)
            padded = torch.nn.functional.pad(self.top, (0, int(width) - self.top.shape[1]), value=-math.inf)
            parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, padded, group=group)
            top = torch.cat(parts, dim=1)
            self.top = top.topk(min(TOP, top.shape[1]), dim=1).values
