"""Triton kernels: sums over the vocabulary of tiles of scores, and the derivative with respect to the scores.

A name ends with its axes: T rows (tokens), V classes (vocabulary), D hidden, S splits of the classes, R blocks of rows,
C blocks of classes. A tile is BLOCK_T x BLOCK_V scores, made by one loop over D that keeps its sum in float32
(float64 for float64). A pointer that is None is a setting or a sum that nobody asked for; its code is not compiled.

Both kernels make scores by `_scores` with the same blocks, so the second one finds again, to the last bit, the highest
scores that the first one found.

Importing this module needs the `triton` package. With TRITON_INTERPRET=1 set before triton is first imported the
kernels run on a CPU, for tests.
"""

from typing import no_type_check

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e4)
"""exp(-1e4) is 0 in every dtype; a product of 0 with anything above it is 0 and not NaN."""
GROUP = tl.constexpr(16)
"""Blocks of rows that run side by side over the same classes, so that a tile of the weight is read from the cache."""


# `no_type_check` keeps run-time type checkers away from functions that Python never calls.
@triton.jit
@no_type_check
def _place(count_R, count) -> tl.tuple:
    """Block of rows and number among the `count` others of this program, rows first within a group."""
    program = tl.program_id(0)
    group = program // (GROUP * count)
    rows = tl.minimum(count_R - group * GROUP, GROUP)
    inside = program % (GROUP * count)
    return group * GROUP + inside % rows, inside // rows


@triton.jit
@no_type_check
def _tanh(x) -> tl.tensor:
    """tanh, to a few roundings near 0 too, where 1 - 2 / (exp(2x) + 1) cancels."""
    magnitude = tl.abs(x)
    # expm1(y) = (u - 1) y / log(u) with u = exp(y) is right even where exp is not: both factors see the same u.
    small = -2 * tl.minimum(magnitude, 0.5)
    exponential = tl.exp(small)
    log = tl.where(exponential == 1, 1.0, tl.log(exponential))
    less_one = tl.where(exponential == 1, small, (exponential - 1) * small / log)
    decayed = tl.exp(-2 * magnitude)
    value = tl.where(magnitude < 0.5, -less_one / (less_one + 2), (1 - decayed) / (1 + decayed))
    return tl.where(x < 0, -value, value)


@triton.jit
@no_type_check
def _capped(x, softcap) -> tl.tensor:
    """The scores under the soft-cap; as they are where there is none."""
    if softcap is not None:
        cap = tl.load(softcap)
        x = _tanh(x / cap) * cap
    return x


@triton.jit
@no_type_check
def _scores(
    hidden_TD,
    weight_VD,
    bias_V,
    scale,
    row_T,
    column_V,
    hidden_stride,
    weight_stride,
    accumulator: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """One tile of scores before the soft-cap; rows and columns must lie inside."""
    inner_D = tl.arange(0, BLOCK_D)
    hidden_at_TD = hidden_TD + row_T[:, None].to(tl.int64) * hidden_stride + inner_D[None, :]
    weight_at_DV = weight_VD + column_V[None, :].to(tl.int64) * weight_stride + inner_D[:, None]
    scores_TV = tl.zeros([row_T.shape[0], column_V.shape[0]], accumulator)
    for start in range(0, WIDTH, BLOCK_D):
        there_D = inner_D < WIDTH - start
        hidden = tl.load(hidden_at_TD + start, mask=there_D[None, :], other=0.0)
        weight = tl.load(weight_at_DV + start, mask=there_D[:, None], other=0.0)
        # "ieee": float32 stays float32; the default would round it to TensorFloat-32.
        scores_TV = tl.dot(hidden, weight, scores_TV, input_precision="ieee", out_dtype=accumulator)
    if bias_V is not None:
        scores_TV += tl.load(bias_V + column_V).to(accumulator)[None, :]
    if scale is not None:
        scores_TV *= tl.load(scale)
    return scores_TV


@triton.jit
@no_type_check
def row_sums_kernel(
    hidden_TD,
    weight_VD,
    bias_V,
    scale,
    softcap,
    label_T,
    label_scores_ST,
    maximum_ST,
    total_ST,
    tilted_ST,
    squares_ST,
    centered_ST,
    plain_ST,
    ties_ST,
    rows,
    columns,
    hidden_stride,
    weight_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCKS_PER_SPLIT: tl.constexpr,
) -> None:
    """Sums of one block of rows over one split of the classes: the online log-sum-exp and its relatives.

    They are relative to `maximum`, the highest score of the split but the label's (0 where that is -inf), and leave the
    label out.
    """
    blocks = tl.cdiv(columns, BLOCK_V)
    block_T, split = _place(tl.cdiv(rows, BLOCK_T), tl.cdiv(blocks, BLOCKS_PER_SPLIT))
    row_T = block_T * BLOCK_T + tl.arange(0, BLOCK_T)
    there_T = row_T < rows
    row_inside_T = tl.minimum(row_T, rows - 1)
    own_T = tl.load(label_T + row_inside_T)
    accumulator: tl.constexpr = total_ST.dtype.element_ty

    maximum_T = tl.full([BLOCK_T], float("-inf"), accumulator)
    reference_T = tl.zeros([BLOCK_T], accumulator)
    label_score_T = tl.zeros([BLOCK_T], accumulator)
    total_T = tl.zeros([BLOCK_T], accumulator)
    tilted_T = tl.zeros([BLOCK_T], accumulator)
    squares_T = tl.zeros([BLOCK_T], accumulator)
    centered_T = tl.zeros([BLOCK_T], accumulator)
    plain_T = tl.zeros([BLOCK_T], accumulator)
    seen_T = tl.zeros([BLOCK_T], accumulator)
    ties_T = tl.zeros([BLOCK_T], accumulator)

    first = split * BLOCKS_PER_SPLIT
    for block in range(BLOCKS_PER_SPLIT):
        column_V = (first + block) * BLOCK_V + tl.arange(0, BLOCK_V)
        scores_TV = _scores(
            hidden_TD,
            weight_VD,
            bias_V,
            scale,
            row_inside_T,
            tl.minimum(column_V, columns - 1),
            hidden_stride,
            weight_stride,
            accumulator,
            BLOCK_D,
            WIDTH,
        )
        scores_TV = _capped(scores_TV, softcap)
        # A label of the next tile may name a column past the end of this one.
        inside_V = (column_V < columns)[None, :]
        label_TV = inside_V & (column_V[None, :] == own_T[:, None])
        other_TV = inside_V & (column_V[None, :] != own_T[:, None])
        label_score_T += tl.sum(tl.where(label_TV, scores_TV, 0.0), 1)
        others_TV = tl.where(other_TV, scores_TV, float("-inf"))
        highest_T = tl.max(others_TV, 1)
        if ties_ST is not None:
            here_T = tl.sum((other_TV & (others_TV == highest_T[:, None])).to(accumulator), 1)
            ties_T = tl.where(highest_T > maximum_T, 0.0, ties_T) + tl.where(highest_T >= maximum_T, here_T, 0.0)

        # Make everything relative to the raised maximum.
        raised_T = tl.maximum(maximum_T, highest_T)
        raised_reference_T = tl.where(raised_T == float("-inf"), 0.0, raised_T)
        decay_T = tl.exp(maximum_T - raised_reference_T)
        shift_T = reference_T - raised_reference_T
        maximum_T = raised_T
        reference_T = raised_reference_T

        above_TV = others_TV - reference_T[:, None]
        exponential_TV = tl.exp(above_TV)
        if tilted_ST is not None:
            tilted_T = (tilted_T + total_T * shift_T) * decay_T
            tilted_T += tl.sum(tl.maximum(above_TV, FLOOR) * exponential_TV, 1)
        if squares_ST is not None:
            squares_T = squares_T * decay_T * decay_T + tl.sum(exponential_TV * exponential_TV, 1)
        if plain_ST is not None:
            plain_T += tl.sum(tl.where(other_TV, scores_TV, 0.0), 1)
        if centered_ST is not None:
            centered_T += seen_T * shift_T + tl.sum(tl.where(other_TV, above_TV, 0.0), 1)
            seen_T += tl.sum(other_TV.to(accumulator), 1)
        total_T = total_T * decay_T + tl.sum(exponential_TV, 1)

    at_T = split * rows + row_T
    tl.store(label_scores_ST + at_T, label_score_T, mask=there_T)
    tl.store(maximum_ST + at_T, maximum_T, mask=there_T)
    tl.store(total_ST + at_T, total_T, mask=there_T)
    if tilted_ST is not None:
        tl.store(tilted_ST + at_T, tilted_T, mask=there_T)
    if squares_ST is not None:
        tl.store(squares_ST + at_T, squares_T, mask=there_T)
    if centered_ST is not None:
        tl.store(centered_ST + at_T, centered_T, mask=there_T)
    if plain_ST is not None:
        tl.store(plain_ST + at_T, plain_T, mask=there_T)
    if ties_ST is not None:
        tl.store(ties_ST + at_T, ties_T, mask=there_T)


@triton.jit
@no_type_check
def score_gradient_kernel(
    hidden_TD,
    weight_VD,
    bias_V,
    scale,
    softcap,
    label_T,
    reference_T,
    total_slope_T,
    label_slope_T,
    tilted_slope_T,
    squares_slope_T,
    uniform_slope_T,
    tie_slope_T,
    probability_T,
    skip_below,
    gradient_TV,
    bias_gradient_RV,
    live_RC,
    rows,
    columns,
    hidden_stride,
    weight_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Derivative with respect to one tile of scores before soft-cap and scale, from those of the sums of its rows.

    With `live_RC` a tile is left out, and says so there, in which no class has a probability of `skip_below`, no label
    lies and, with `tie_slope_T`, no highest score; `probability_T` is the probability of a class at `reference_T`.
    """
    blocks_V = tl.cdiv(columns, BLOCK_V)
    block_T, block_V = _place(tl.cdiv(rows, BLOCK_T), blocks_V)
    row_T = block_T * BLOCK_T + tl.arange(0, BLOCK_T)
    there_T = row_T < rows
    row_inside_T = tl.minimum(row_T, rows - 1)
    own_T = tl.load(label_T + row_inside_T)
    accumulator: tl.constexpr = total_slope_T.dtype.element_ty
    column_V = block_V * BLOCK_V + tl.arange(0, BLOCK_V)
    uncapped_TV = _scores(
        hidden_TD,
        weight_VD,
        bias_V,
        scale,
        row_inside_T,
        tl.minimum(column_V, columns - 1),
        hidden_stride,
        weight_stride,
        accumulator,
        BLOCK_D,
        WIDTH,
    )
    scores_TV = _capped(uncapped_TV, softcap)
    label_TV = column_V[None, :] == own_T[:, None]
    others_TV = tl.where(label_TV, float("-inf"), scores_TV)
    reference = tl.load(reference_T + row_inside_T)
    above_TV = others_TV - reference[:, None]
    exponential_TV = tl.exp(above_TV)

    slope_TV = tl.load(total_slope_T + row_inside_T)[:, None]
    if tilted_slope_T is not None:
        slope_TV = slope_TV + (tl.maximum(above_TV, FLOOR) + 1) * tl.load(tilted_slope_T + row_inside_T)[:, None]
    if squares_slope_T is not None:
        slope_TV = slope_TV + 2 * exponential_TV * tl.load(squares_slope_T + row_inside_T)[:, None]
    derivative_TV = exponential_TV * slope_TV
    if uniform_slope_T is not None:
        derivative_TV += tl.load(uniform_slope_T + row_inside_T)[:, None]
    highest_TV = others_TV == reference[:, None]
    if tie_slope_T is not None:
        derivative_TV += tl.where(highest_TV, tl.load(tie_slope_T + row_inside_T)[:, None], 0.0)
    derivative_TV = tl.where(label_TV, tl.load(label_slope_T + row_inside_T)[:, None], derivative_TV)
    if softcap is not None:
        # 1 - tanh(x)^2 = 4 exp(-2x) / (1 + exp(-2x))^2, which does not cancel where tanh(x) is almost 1.
        decayed_TV = tl.exp(-2 * tl.abs(uncapped_TV / tl.load(softcap)))
        derivative_TV *= 4 * decayed_TV / ((1 + decayed_TV) * (1 + decayed_TV))
    if scale is not None:
        derivative_TV *= tl.load(scale)

    there_TV = there_T[:, None] & (column_V < columns)[None, :]
    if live_RC is not None:
        needed_TV = label_TV | (exponential_TV * tl.load(probability_T + row_inside_T)[:, None] >= tl.load(skip_below))
        if tie_slope_T is not None:
            needed_TV = needed_TV | highest_TV
        live = tl.max(tl.max((needed_TV & there_TV).to(tl.int32), 1), 0)
        derivative_TV = derivative_TV * live
        tl.store(live_RC + block_T * blocks_V + block_V, live)
    at_TV = row_T[:, None].to(tl.int64) * columns + column_V[None, :]
    tl.store(gradient_TV + at_TV, derivative_TV.to(gradient_TV.dtype.element_ty), mask=there_TV)
    if bias_gradient_RV is not None:
        sums_V = tl.sum(tl.where(there_TV, derivative_TV, 0.0), 0)
        tl.store(bias_gradient_RV + block_T.to(tl.int64) * columns + column_V, sums_V, mask=column_V < columns)


@triton.jit
@no_type_check
def scores_kernel(
    hidden_TD,
    weight_VD,
    bias_V,
    scale,
    softcap,
    scores_TV,
    rows,
    columns,
    hidden_stride,
    weight_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """One tile of scores, for the few classes whose scores are wanted themselves, rounded as in the kernels above."""
    block_T, block_V = _place(tl.cdiv(rows, BLOCK_T), tl.cdiv(columns, BLOCK_V))
    row_T = block_T * BLOCK_T + tl.arange(0, BLOCK_T)
    column_V = block_V * BLOCK_V + tl.arange(0, BLOCK_V)
    tile_TV = _scores(
        hidden_TD,
        weight_VD,
        bias_V,
        scale,
        tl.minimum(row_T, rows - 1),
        tl.minimum(column_V, columns - 1),
        hidden_stride,
        weight_stride,
        scores_TV.dtype.element_ty,
        BLOCK_D,
        WIDTH,
    )
    there_TV = (row_T < rows)[:, None] & (column_V < columns)[None, :]
    at_TV = row_T[:, None].to(tl.int64) * columns + column_V[None, :]
    tl.store(scores_TV + at_TV, _capped(tile_TV, softcap), mask=there_TV)


INTERPRETED = not isinstance(row_sums_kernel, triton.runtime.JITFunction)
"""Whether the kernels run in Triton's interpreter, on any device."""
