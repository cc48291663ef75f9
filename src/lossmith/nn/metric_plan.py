"""Which plan computes a metric loss, and why no other."""

import torch

from lossmith._typing import Tensor
from lossmith.objectives import ObjectiveRecord


def choose_plan(
    record: ObjectiveRecord,
    *,
    in_chunks: bool,
    chunks: int,
    needs_grad: bool,
    weights: object,
    num_items: object,
    reduction: str,
) -> tuple[str, str]:
    """Name of the plan, and why no other.

    Args:
        record: The objective.
        in_chunks: Whether its anchors may come in chunks.
        chunks: How many chunks there are.
        needs_grad: Whether embeddings or proxies need a gradient.
        weights: As given to the call.
        num_items: As given to the call.
        reduction: As given to the call.
    """
    if not in_chunks:
        return "dense", f"'{record.name}' needs the table of all rows at once."
    if chunks <= 1:
        return "dense", "The tables of all rows fit the chunk budget together."
    if not (needs_grad and torch.is_grad_enabled()):
        return "forward only", "No gradient is wanted, so each chunk's tables are made once."
    again = ", so each chunk's tables are made again in the backward pass."
    if reduction == "none":
        return "recompute", "With reduction 'none' the slope of each loss is not known yet" + again
    if any(isinstance(value, Tensor) and value.requires_grad for value in (weights, num_items)):
        return "recompute", "The weights or `num_items` need a gradient, which needs every loss" + again
    if weights is not None and record.item != "anchor":
        return "recompute", f"Weights belong to {record.item}s, which are counted as they come" + again
    return "gradient in forward", (
        "The losses of an anchor need its own row only and are added up with constant weights, so each chunk's "
        "gradient is formed while its tables are there."
    )
