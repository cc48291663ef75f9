"""From one loss per item to what the caller asked for: normalisation is algebra."""

import math
from typing import Literal

import torch

from lossmith._checks import check_one_of
from lossmith._debug import debugging
from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError

Reduction = Literal["none", "sum", "mean"]
NumItems = int | float | Tensor


def reduce_loss(
    losses: Tensor,
    valid: Tensor,
    *,
    weights: Tensor | None = None,
    num_items: NumItems | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Weigh and reduce one loss per item.

    Args:
        losses: One loss per item, any shape, 0 where ignored.
        valid: Bool, the shape of `losses`; True = the item counts.
        weights: One weight per item, the shape of `losses`; None counts every item once.
        num_items: What "mean" divides by instead of the number of valid items (or the sum of their weights):
            with gradient accumulation or several devices only the trainer knows the true number. 0 is accepted
            where nothing is valid.
        reduction: "none" (one value per item, 0 where ignored), "sum" or "mean".

    Returns:
        A scalar, or `losses.shape` for "none". Where nothing is valid: 0 that keeps its graph.

    Raises:
        ObjectiveInputError: For an unknown reduction, weights of another shape, a `num_items` that is not > 0
            or that nothing divides by, or negative weights under "mean" without `num_items`.
    """
    check_one_of("reduction", reduction, ("none", "sum", "mean"))
    if num_items is not None and reduction != "mean":
        raise ObjectiveInputError(f"`num_items` is the divisor of reduction 'mean', got it with '{reduction}'.")
    if weights is not None:
        losses, weights = _weigh(losses, valid, weights, needs_positive=reduction == "mean" and num_items is None)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / _divisor(valid, weights, num_items, total)


def own_divisor(valid: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What "mean" divides by where the caller does not say: items that count, or the sum of their weights; 1 for 0.

    Raises:
        ObjectiveInputError: For weights of another shape or negative ones.
    """
    like = valid.to(dtype)
    if weights is not None and weights.shape == valid.shape and (weights.device.type == "cpu" or debugging()):
        counting = weights.detach()[valid]
        if not bool(torch.isfinite(counting).all()):
            raise ObjectiveInputError("`weights` must be finite where their labels count.")
    return _divisor(
        valid, None if weights is None else _weigh(like, valid, weights, needs_positive=True)[1], None, like
    )


def check_weights_shape(weights: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ObjectiveInputError` unless there is one weight per item."""
    if tuple(weights.shape) != tuple(shape):
        raise ObjectiveInputError(
            f"`weights` must have one entry per item, {tuple(shape)}, got {tuple(weights.shape)}."
        )


def _weigh(losses: Tensor, valid: Tensor, weights: Tensor, *, needs_positive: bool) -> tuple[Tensor, Tensor]:
    check_weights_shape(weights, losses.shape)
    # An ignored item may carry any weight, NaN included: it is removed, not multiplied.
    weights = torch.where(valid, weights.to(losses.dtype), torch.zeros_like(losses))
    if needs_positive and (weights.device.type == "cpu" or debugging()) and bool((weights < 0).any()):
        raise ObjectiveInputError(
            "Negative `weights` with reduction 'mean' need `num_items`: their sum is no number of items."
        )
    return losses * weights, weights


def _divisor(valid: Tensor, weights: Tensor | None, num_items: NumItems | None, total: Tensor) -> Tensor:
    if num_items is None:
        count = valid.sum() if weights is None else weights.sum()
        count = count.to(total.dtype)
        # Nothing valid: the total is 0 with its graph, and 0/1 keeps both.
        return torch.where(count == 0, torch.ones_like(count), count)
    return _given_divisor(num_items, valid, total)


def _given_divisor(num_items: NumItems, valid: Tensor, total: Tensor) -> Tensor:
    if isinstance(num_items, Tensor) and num_items.numel() != 1:
        raise ObjectiveInputError(f"`num_items` must be one number, got a tensor of shape {tuple(num_items.shape)}.")
    if not isinstance(num_items, Tensor | int | float):
        raise ObjectiveInputError(f"`num_items` must be a number, got {type(num_items).__name__}.")
    if not isinstance(num_items, Tensor) or num_items.device.type == "cpu" or debugging():
        count = float(num_items.detach() if isinstance(num_items, Tensor) else num_items)
        if not (math.isfinite(count) and count >= 0) or (count == 0 and bool(valid.any())):
            raise ObjectiveInputError(f"`num_items` must be > 0, got {count:g}.")
    divisor = torch.as_tensor(num_items, device=total.device, dtype=total.dtype).reshape(())
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
