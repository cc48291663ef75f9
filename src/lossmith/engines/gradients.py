"""From the derivatives of a row's sums to gradients of hidden states, weight and bias, tile by tile."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.products import transposed_product
from lossmith.engines.row_sums import RowSums
from lossmith.engines.tiles import ALWAYS, FLOOR, OPTIONAL_SUMS, ChunkedPass


@dataclass(frozen=True, kw_only=True)
class RowSlopes:
    """Derivative of the loss with respect to the sums of each row; None where it does not depend on one."""

    total: Float[Tensor, " rows"]
    label_scores: Float[Tensor, " rows"]
    tilted: Float[Tensor, " rows"] | None = None
    squares: Float[Tensor, " rows"] | None = None
    uniform: Float[Tensor, " rows"] | None = None
    """Of every score alike: those of `centered` and `plain` together."""
    highest: Float[Tensor, " rows"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "RowSlopes":
        """The same with every derivative changed."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in known.items() if value is not None}
        return RowSlopes(**changed)

    @classmethod
    def of(cls, named: Mapping[str, Tensor | None], like: Tensor) -> "RowSlopes":
        """From derivatives by name, where those of `ALWAYS` that are missing are 0."""
        slopes = {name: torch.zeros_like(like) for name in ALWAYS}
        for name in (*ALWAYS, *OPTIONAL_SUMS):
            slope = named.get(name)
            if slope is None:
                continue
            place = "uniform" if name in ("centered", "plain") else name
            slopes[place] = slope if name in ALWAYS or place not in slopes else slopes[place] + slope
        return cls(**slopes)


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
            slope = tile.clamp(min=FLOOR).add_(1).mul_(slopes.tilted[:, None]).add_(slope)
        if slopes.squares is not None:
            square = 2 * slopes.squares if decay is None else 2 * slopes.squares * decay**2
            slope = slope + exponentials * square[:, None]
        gradient = exponentials.mul_(slope) if reuse else exponentials * slope
        if slopes.uniform is not None:
            gradient.add_(slopes.uniform[:, None])
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
