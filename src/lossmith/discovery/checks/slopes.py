"""Whether the gradient that autograd gives is the slope of the value."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lossmith.discovery.checks import points
from lossmith.discovery.checks.battery import Candidate, tensors_of
from lossmith.discovery.identity.probes import anchor_points, anchor_rows, token_logits, token_points
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import evaluate

STEP, SLOPE_ERROR = 1e-4, 1e-3
Moved = tuple[dict[str, Array], dict[str, Array], dict[str, Array]]
"""How fast every trained input moves, and all inputs a step ahead and a step behind."""


def slopes_agree(candidate: Candidate) -> tuple[str, str] | None:
    """The gradient that autograd gives is the slope of the value."""
    family = candidate.program.family
    trained = [name for name in candidate.program.inputs if name in points.ordinary(family).trained]
    moves, *sides = moved(family)
    ahead, behind = (evaluate(candidate.program.literal_root, side) for side in sides)
    good, batches = 0, len(moves[trained[0]])
    for batch in range(batches):
        slopes = autograd_slopes(candidate, batch, trained)
        parts = [slopes[name] * moves[name][batch].reshape(slopes[name].shape) for name in trained]
        got, size = sum(float(part.sum()) for part in parts), sum(float(np.abs(part).sum()) for part in parts)
        wanted = float((ahead[batch] - behind[batch]).sum()) / (2 * STEP)
        noise = 1e-14 * float(np.abs(ahead[batch]).sum()) / STEP
        good += abs(got - wanted) <= SLOPE_ERROR * size + noise
    # A jump or a kink may lie between two of the points, not in most batches.
    if good * 2 > batches:
        return None
    return "grad-mismatch", f"Its gradient is not the slope of its value in {batches - good} of {batches} batches."


def autograd_slopes(candidate: Candidate, batch: int, trained: list[str]) -> dict[str, Any]:
    """Gradients by torch at one batch of the probe points."""
    given = tensors_of(candidate, batch)
    leaves = [given[name].requires_grad_() for name in trained]
    slopes = torch.autograd.grad(candidate.function(**given).sum(), leaves, allow_unused=True)
    return {
        name: (torch.zeros_like(leaf) if slope is None else slope).numpy()
        for name, leaf, slope in zip(trained, [leaf.detach() for leaf in leaves], slopes, strict=True)
    }


@lru_cache(maxsize=4)
def moved(family: str) -> Moved:
    """The probe points as the model moves: log-probabilities each for itself, statistics by logits, tables by rows.

    What belongs together stays so: a label that leads still leads by exactly nothing.
    """
    random = np.random.Generator(np.random.Philox(key=11))
    return {"preference": _moved_pairs, "token": _moved_tokens, "metric": _moved_anchors}[family](random)


def _moved_pairs(random: np.random.Generator) -> Moved:
    where = points.ordinary("preference")
    moves = {name: random.standard_normal(where.inputs[name].shape) for name in where.trained}
    ahead, behind = (
        {**where.inputs, **{name: where.inputs[name] + step * move for name, move in moves.items()}}
        for step in (STEP, -STEP)
    )
    return moves, ahead, behind


def _moved_tokens(random: np.random.Generator) -> Moved:
    where = points.ordinary("token")
    logits, labels = token_logits()
    way = random.standard_normal(tuple(logits.shape))
    batches = len(where.inputs["token_logps"])
    by_logit = way.reshape(where.jacobians["token_logps"].shape)
    moves = {name: (slope * by_logit).sum(-1, keepdims=True) for name, slope in where.jacobians.items()}
    ahead, behind = (
        dict(token_points(logits + torch.as_tensor(step * way), labels, batches).inputs) for step in (STEP, -STEP)
    )
    for side in (ahead, behind):
        # What is constant by definition stays where it was.
        side.update({name: where.inputs[name] for name, move in moves.items() if not move.any()})
    return moves, ahead, behind


def _moved_anchors(random: np.random.Generator) -> Moved:
    where = points.ordinary("metric")
    rows, labels = anchor_rows()
    way = random.standard_normal(rows.shape)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit = rows / length
    turn = (way - unit * (unit * way).sum(-1, keepdims=True)) / length
    slope = turn @ np.swapaxes(unit, 1, 2)
    slope = slope + np.swapaxes(slope, 1, 2)
    # A row is as close to itself as before, and its distance of 0 has no slope.
    own = np.eye(rows.shape[1], dtype=bool)
    slope = np.where(own, 0.0, slope)
    moves = {"similarities": slope, "distances": -slope / np.where(own, 1.0, where.inputs["distances"])}
    ahead, behind = (dict(anchor_points(rows + step * way, labels).inputs) for step in (STEP, -STEP))
    for side in (ahead, behind):
        side.update({name: np.where(own, where.inputs[name], side[name]) for name in moves})
    return moves, ahead, behind
