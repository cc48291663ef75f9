"""The triton engine: the sums of the chunked engine and their gradients by Triton kernels, for NVIDIA GPUs.

One kernel multiplies and sums without writing scores. In the backward pass another one makes the scores again and
writes their derivative, a block of rows x classes within the chunk budget and rounded as the operands are, which two
plain matrix products turn into gradients. Nothing is added up in an order that changes from run to run.

The 20 highest scores (`top`) come from the chunked engine, by one more product. What regions ask for needs the scores
of present classes only: narrow products, whose gradients are added to those of the whole vocabulary.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import torch

from lossmith._numerics import full_precision
from lossmith._typing import Float, Int, Tensor
from lossmith.engines.budget import rows_within_budget
from lossmith.engines.gradients import Gradients, RowSlopes, _add
from lossmith.engines.products import transposed_product
from lossmith.engines.row_sums import RowSums, SumStatistics
from lossmith.engines.tiles import ChunkedPass, ColumnRequest, OnlineSums
from lossmith.errors import ObjectiveInputError

_CHUNK_ROWS = 8192
"""Rows of one block of derivatives: enough for the weight's gradient to be one product."""
_COLUMN_STEP = 2048
"""Columns of a block are a multiple of this: whole splits, and rows that start at aligned addresses."""
_PARTIAL_SUMS = ("tilted", "squares", "centered", "plain", "ties")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Shape of one program's tile, and how it is run."""

    rows: int
    columns: int
    inner: int
    per_split: int
    """Blocks of classes that one program sums over."""
    warps: int
    stages: int


_BLOCKS = {
    2: Blocks(rows=128, columns=256, inner=64, per_split=8, warps=8, stages=3),
    4: Blocks(rows=64, columns=64, inner=32, per_split=16, warps=4, stages=2),
    8: Blocks(rows=32, columns=32, inner=16, per_split=32, warps=4, stages=2),
}
"""By bytes of an operand."""


def check_available(device: torch.device) -> ModuleType:
    """The kernels, or a sentence that says why they cannot run.

    Raises:
        ObjectiveInputError: Without the `triton` package, or on a device that it has no code for.
    """
    try:
        kernels = import_module("lossmith.engines.triton_kernels")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ObjectiveInputError(
            "impl='triton' needs the `triton` package, which is not installed: pip install triton, or use "
            "impl='chunked'."
        ) from error
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise ObjectiveInputError(
            f"impl='triton' needs a CUDA device, got {device}: use impl='chunked', or set TRITON_INTERPRET=1 before "
            f"triton is imported, to try the kernels on a CPU."
        )
    return kernels


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Kernels run on the current device, which need not be this one."""
    with full_precision(device), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def forward_sums(work: ChunkedPass) -> tuple[RowSums, list[Tensor]]:
    """Sums of every row, and what each column request asks for."""
    kernels = check_available(work.linear.device)
    rows, columns = tile_shape(work)
    with _on(work.linear.device):
        parts = []
        for chunk in work.row_chunks(rows):
            hidden = work.hidden_rows(chunk)
            of_tiles = [
                _partial_sums(kernels, work, chunk, tile, hidden, work.weight_tile(tile))
                for tile in work.column_tiles(columns)
            ]
            parts.append(_combine({name: torch.cat([part[name] for part in of_tiles]) for name in of_tiles[0]}))
        sums = RowSums(**{name: torch.cat([part.present()[name] for part in parts]) for name in parts[0].present()})
        if "top" in work.reads:
            sums = replace(sums, top=_top(replace(work, reads=frozenset({"top"}), requests=())))
        return sums, [_Narrow(kernels, work, request).value(sums) for request in work.requests]


def backward_sums(
    work: ChunkedPass,
    sums: RowSums,
    slopes: RowSlopes,
    upstream: Sequence[Tensor | None],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias from the derivatives of the sums and of the column requests."""
    kernels = check_available(work.linear.device)
    with _on(work.linear.device):
        narrow = []
        for request, given in zip(work.requests, upstream, strict=True):
            if given is not None and len(request.rows):
                region = _Narrow(kernels, work, request)
                slopes = region.backward(sums, slopes, given, wanted)
                narrow.append(region)
        gradients = Gradients(work, wanted, by_tile=True)
        rows, columns = tile_shape(work)
        chunks = work.row_chunks(rows)
        inputs = [_RowInputs.of(work, sums.rows(c), slopes.map(lambda s, c=c: s[c])) for c in chunks]
        for tile in work.column_tiles(columns):
            _add_tile(kernels, work, tile, list(zip(chunks, inputs, strict=True)), gradients, narrow)
        for region in narrow:
            region.add_to_rows(gradients)
        return gradients.finish()


def _add_tile(
    kernels: ModuleType,
    work: ChunkedPass,
    tile: slice,
    rows: list[tuple[slice, "_RowInputs"]],
    gradients: Gradients,
    narrow: list["_Narrow"],
) -> None:
    """Add what all rows give in one tile of classes."""
    weight, of_weight = work.weight_tile(tile), None
    for chunk, inputs in rows:
        hidden = work.hidden_rows(chunk)
        gradient, bias, live = _score_gradient(kernels, work, chunk, tile, hidden, weight, inputs)
        factor = weight
        if live is not None:
            gradient, factor = gradient.index_select(1, live), weight.index_select(0, live)
        if gradients.hidden is not None:
            _add(gradients.hidden[chunk], transposed_product(gradient, factor.T), first=tile.start == 0)
        if gradients.weight is not None:
            part = transposed_product(gradient.T, hidden.T)
            if live is not None:
                part = part.new_zeros(weight.shape).index_copy_(0, live, part)
            of_weight = part if of_weight is None else of_weight.add_(part)
        if gradients.bias is not None and bias is not None:
            _add(gradients.bias[tile], bias.sum(0), first=chunk.start == 0)
    if gradients.weight is not None and of_weight is not None:
        for region in narrow:
            region.add_to_weight(of_weight, tile)
        # Rounded to the weight's dtype once, here.
        gradients.weight[tile] = of_weight


def _top(work: ChunkedPass) -> Float[Tensor, "rows top"]:
    """The highest scores of every row, by the chunked engine's sums."""
    rows, columns = work.tile_shape(kept=False)
    parts = []
    for chunk in work.row_chunks(rows):
        hidden = work.hidden_rows(chunk)
        online = OnlineSums(work, len(hidden))
        for tile in work.column_tiles(columns):
            online.add(work.scores(hidden, work.weight_tile(tile), tile), *work.own_place(chunk, tile))
        parts.append(online.top)
    return torch.cat(parts)


def tile_shape(work: ChunkedPass) -> tuple[int, int]:
    """Rows and columns of a block of derivatives.

    Raises:
        ObjectiveInputError: If the budget does not hold one row.
    """
    columns = work.linear.weight.shape[0]
    entries = rows_within_budget(columns, work.dtype, work.linear.device) * columns
    most = min(_CHUNK_ROWS, entries)
    rows = max(math.ceil(work.num_rows / max(math.ceil(work.num_rows / most), 1)), 1)
    wide = entries // rows
    return rows, min(wide // _COLUMN_STEP * _COLUMN_STEP or wide, columns)


def _blocks(work: ChunkedPass, operand_bytes: int) -> Blocks:
    """The same in both passes: the highest score of a row is found again only where it is made the same way."""
    own = _BLOCKS[operand_bytes]
    # Compiled for an H100 or H200, a soft-cap on 256 columns spills 2.4 kB of registers a thread, on 128 some 130 B.
    return replace(own, columns=own.columns // 2) if own.columns > 128 and work.linear.softcap is not None else own


class _Launch:
    """What both kernels are given: the operands of a tile, its labels and its blocks."""

    def __init__(self, work: ChunkedPass, chunk: slice, tile: slice, hidden: Tensor, weight: Tensor):
        linear = work.linear
        # The kernels step over rows only.
        hidden, weight = (part if part.stride(1) == 1 else part.contiguous() for part in (hidden, weight))
        bias = None if linear.bias is None else linear.bias.detach()[tile].contiguous()
        scale = None if linear.scale == 1 else linear.scale
        self.blocks = _blocks(work, hidden.element_size())
        self.rows, self.columns = len(hidden), len(weight)
        self.operands = (hidden, weight, bias, _constant(work, scale), _constant(work, linear.softcap))
        self.labels = work.classes[chunk] - tile.start
        self.sizes = (self.rows, self.columns, hidden.stride(0), weight.stride(0))
        self._width = hidden.shape[1]
        self.row_blocks = math.ceil(self.rows / self.blocks.rows)
        self.column_blocks = math.ceil(self.columns / self.blocks.columns)

    @property
    def options(self) -> dict[str, int]:
        """Compile-time settings of both kernels."""
        own = self.blocks
        shape = {"BLOCK_T": own.rows, "BLOCK_V": own.columns, "BLOCK_D": own.inner, "WIDTH": self._width}
        return {**shape, "num_warps": own.warps, "num_stages": own.stages}


def _constant(work: ChunkedPass, value: float | None) -> Tensor | None:
    """A number in memory: as an argument it would be rounded to float32, as a compile-time value compiled anew."""
    return None if value is None else torch.full((1,), value, dtype=work.dtype, device=work.linear.device)


def _partial_sums(
    kernels: ModuleType, work: ChunkedPass, chunk: slice, tile: slice, hidden: Tensor, weight: Tensor
) -> dict[str, Float[Tensor, "splits rows"]]:
    """Sums of a chunk of rows over each split of a tile's classes."""
    launch = _Launch(work, chunk, tile, hidden, weight)
    splits = math.ceil(launch.column_blocks / launch.blocks.per_split)
    reads = work.reads | ({"ties"} if "highest" in work.reads else frozenset())
    names = ["label_scores", "maximum", "total", *(name for name in _PARTIAL_SUMS if name in reads)]
    sums = {name: torch.empty(splits, launch.rows, dtype=work.dtype, device=hidden.device) for name in names}
    kernels.row_sums_kernel[(launch.row_blocks * splits,)](
        *launch.operands,
        launch.labels,
        *(sums.get(name) for name in ("label_scores", "maximum", "total", *_PARTIAL_SUMS)),
        *launch.sizes,
        BLOCKS_PER_SPLIT=launch.blocks.per_split,
        **launch.options,
    )
    starts = torch.arange(splits, device=hidden.device)[:, None] * launch.blocks.per_split * launch.blocks.columns
    ends = (starts + launch.blocks.per_split * launch.blocks.columns).clamp(max=launch.columns)
    inside = (launch.labels >= starts) & (launch.labels < ends)
    sums["seen"] = (ends - starts - inside.long()).to(work.dtype)
    return sums


def _reference(sums: RowSums) -> Float[Tensor, " rows"]:
    """What exponentials are relative to."""
    return sums.maximum.masked_fill(sums.maximum == -torch.inf, 0.0)


def _combine(parts: dict[str, Float[Tensor, "splits rows"]]) -> RowSums:
    """Sums over all splits, made relative to the highest of their maxima."""
    maximum = parts["maximum"].amax(0)
    reference = maximum.masked_fill(maximum == -torch.inf, 0.0)
    decay = (parts["maximum"] - reference).exp()
    shift = parts["maximum"].masked_fill(parts["maximum"] == -torch.inf, 0.0) - reference
    sums = {"maximum": maximum, "label_scores": parts["label_scores"].sum(0), "total": (parts["total"] * decay).sum(0)}
    if "tilted" in parts:
        sums["tilted"] = ((parts["tilted"] + parts["total"] * shift) * decay).sum(0)
    if "squares" in parts:
        sums["squares"] = (parts["squares"] * decay**2).sum(0)
    if "centered" in parts:
        sums["centered"] = (parts["centered"] + parts["seen"] * shift).sum(0)
    if "plain" in parts:
        sums["plain"] = parts["plain"].sum(0)
    if "ties" in parts:
        sums["highest"] = torch.zeros_like(maximum)
        sums["ties"] = torch.where(parts["maximum"] == maximum, parts["ties"], 0.0).sum(0)
    return RowSums(**sums)


@dataclass(frozen=True, kw_only=True)
class _RowInputs:
    """What the backward kernel reads of each row of a chunk."""

    vectors: tuple[Tensor | None, ...]
    skip_below: Tensor | None
    """None where nothing is left out."""

    @staticmethod
    def of(work: ChunkedPass, sums: RowSums, slopes: RowSlopes) -> "_RowInputs":
        tie = None
        if slopes.highest is not None:
            assert sums.ties is not None
            tie = slopes.highest / sums.ties.clamp(min=1)
        # A derivative that is the same for every class has no tile in which it is tiny.
        skips = work.linear.skip_below > 0 and slopes.uniform is None
        normalizer = SumStatistics(sums, work.linear.vocab).log_normalizer_above_maximum if skips else None
        vectors = (
            _reference(sums),
            slopes.total,
            slopes.label_scores,
            slopes.tilted,
            slopes.squares,
            slopes.uniform,
            tie,
            None if normalizer is None else (-normalizer).exp(),
        )
        return _RowInputs(
            vectors=tuple(None if vector is None else vector.contiguous() for vector in vectors),
            skip_below=_constant(work, work.linear.skip_below) if skips else None,
        )


def _score_gradient(
    kernels: ModuleType,
    work: ChunkedPass,
    chunk: slice,
    tile: slice,
    hidden: Tensor,
    weight: Tensor,
    inputs: _RowInputs,
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "blocks columns"] | None, Int[Tensor, " live"] | None]:
    """Derivative of a tile's scores, its sums over blocks of rows, and the columns that were not left out."""
    launch = _Launch(work, chunk, tile, hidden, weight)
    gradient = hidden.new_empty(launch.rows, launch.columns)
    bias = live = None
    if work.linear.bias is not None:
        bias = torch.empty(launch.row_blocks, launch.columns, dtype=work.dtype, device=hidden.device)
    if inputs.skip_below is not None:
        live = torch.empty(launch.row_blocks, launch.column_blocks, dtype=torch.int32, device=hidden.device)
    kernels.score_gradient_kernel[(launch.row_blocks * launch.column_blocks,)](
        *launch.operands,
        launch.labels,
        *inputs.vectors,
        inputs.skip_below,
        gradient,
        bias,
        live,
        *launch.sizes,
        **launch.options,
    )
    if live is not None:
        columns = live.amax(0).repeat_interleave(launch.blocks.columns)[: launch.columns]
        live = columns.nonzero().squeeze(1)
    return gradient, bias, live


class _Narrow:
    """One region's classes as a vocabulary of their own: what the region asks of their scores, and its gradients."""

    def __init__(self, kernels: ModuleType, work: ChunkedPass, request: ColumnRequest):
        linear = copy.copy(work.linear)
        linear.weight = linear.weight.detach().index_select(0, request.columns)
        linear.bias = None if linear.bias is None else linear.bias.detach().index_select(0, request.columns)
        linear.vocab = len(request.columns)
        self._kernels = kernels
        self._rows, self._columns, self._mass = request.rows, request.columns, request.mass
        self._work = ChunkedPass(
            linear=linear,
            places=request.rows if work.places is None else work.places[request.rows],
            classes=torch.searchsorted(request.columns, work.classes[request.rows]),
            reads=frozenset(),
        )
        self._chunks = self._work.row_chunks(self._work.tile_shape(kept=True)[0])
        self._tile = slice(0, linear.vocab)
        self._gradients = Gradients(self._work, (False, False, False))

    def _above(self, chunk: slice, hidden: Tensor, weight: Tensor, sums: RowSums) -> Float[Tensor, "rows classes"]:
        """Scores less the row's maximum.

        By a kernel: another product would round them otherwise than in the sums that they are divided by.
        """
        launch = _Launch(self._work, chunk, self._tile, hidden, weight)
        scores = hidden.new_empty(launch.rows, launch.columns, dtype=self._work.dtype)
        self._kernels.scores_kernel[(launch.row_blocks * launch.column_blocks,)](
            *launch.operands, scores, *launch.sizes, **launch.options
        )
        return scores.sub_(_reference(sums)[chunk, None])

    def value(self, sums: RowSums) -> Tensor:
        """The scores less the row's maximum, or the probabilities summed over the region's rows."""
        own, weight = sums.rows(self._rows), self._work.weight_tile(self._tile)
        normalizer = SumStatistics(own, self._work.linear.vocab).log_normalizer_above_maximum
        value = own.total.new_zeros(len(self._columns)) if self._mass else None
        parts = []
        for chunk in self._chunks:
            above = self._above(chunk, self._work.hidden_rows(chunk), weight, own)
            if value is None:
                parts.append(above)
            else:
                value += (above - normalizer[chunk, None]).exp_().sum(0)
        if value is not None:
            return value
        return torch.cat(parts) if parts else own.total.new_zeros(0, len(self._columns))

    def backward(
        self, sums: RowSums, slopes: RowSlopes, upstream: Tensor, wanted: tuple[bool, bool, bool]
    ) -> RowSlopes:
        """Form the gradients of the region's own scores; the slopes with what a mass adds to them."""
        work, own, weight = self._work, sums.rows(self._rows), self._work.weight_tile(self._tile)
        statistics = SumStatistics(own, work.linear.vocab)
        share = (-statistics.log_normalizer_above_maximum).exp()
        self._gradients = Gradients(work, wanted)
        of_others = []
        for chunk in self._chunks:
            hidden = work.hidden_rows(chunk)
            above = self._above(chunk, hidden, weight, own)
            if self._mass:
                gradient = (above.exp() * share[chunk, None]).mul_(upstream)
                gradient.scatter_(1, work.classes[chunk, None], 0.0)
                of_others.append(gradient.sum(1))
            else:
                gradient = upstream[chunk].clone()
            gradient *= work.linear.scale
            if work.linear.softcap is not None:
                scores = above.add_(_reference(own)[chunk, None])
                gradient *= 1 - (scores / work.linear.softcap).square_()
            self._gradients.add(chunk, self._tile, gradient, hidden, weight)
        if not self._mass:
            return slopes
        # Through the normaliser a mass depends on every class: that part, and the label's, is the kernel's.
        others, label, upstream_label = torch.cat(of_others), statistics.token_logps.exp(), upstream[work.classes]
        of_total = -(others + label * upstream_label) * share
        of_label = label * (statistics.complement_logps.exp() * upstream_label - others)
        return replace(
            slopes,
            total=slopes.total.index_add(0, self._rows, of_total),
            label_scores=slopes.label_scores.index_add(0, self._rows, of_label),
        )

    def add_to_weight(self, total: Float[Tensor, "columns hidden"], tile: slice) -> None:
        """Add the region's part to the gradient of one tile of the weight."""
        if self._gradients.weight is not None:
            here = ((self._columns >= tile.start) & (self._columns < tile.stop)).nonzero().squeeze(1)
            total.index_add_(0, self._columns[here] - tile.start, self._gradients.weight[here])

    def add_to_rows(self, gradients: Gradients) -> None:
        """Add the region's part to the gradients of hidden states and bias."""
        if gradients.hidden is not None and self._gradients.hidden is not None:
            gradients.hidden.index_add_(0, self._rows, self._gradients.hidden)
        if gradients.bias is not None and self._gradients.bias is not None:
            gradients.bias.index_add_(0, self._columns, self._gradients.bias)
