"""Poles and gaps within the reach: what divides, and what takes a logarithm or a root, looked at along the margin.

A candidate is refused only where its own value or gradient is seen to break down at points of the line.
"""

import numpy as np

from lossmith.discovery.checks import points
from lossmith.discovery.program import Node, order
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import evaluate, value_and_gradients

OFFSETS = (1e-2, 1e-4, 1e-6)
"""Distances from a suspect at which the gradient is read, in nats."""
GROWTH = 50.0
"""Of the gradient per offset: a logarithm's is 100 times larger a hundred times closer, a root's ten times."""
_NOTHING = 1e-12
_SUSPECTS = 12
_GOLDEN = (5**0.5 - 1) / 2


def breakdown(root: Node) -> tuple[float, str] | None:
    """A margin at which value or gradient is not finite, or has a pole, and which; None where none was seen.

    Args:
        root: Of a preference program, without hyper-parameters.
    """
    guards = _guards(root)
    if not guards:
        return None
    coupled = any(node.op in ("mean_batch", "var_batch", "std_batch", "mean_masked") for node in order(root))
    line = points.reach_line(coupled)
    value, gradients = _at(root, line, coupled)
    broken = np.flatnonzero(~np.isfinite(value))
    if len(broken):
        return float(line[broken[0]]), "value is not finite"
    broken = np.flatnonzero(~np.isfinite(gradients))
    if len(broken):
        return float(line[broken[0]]), "gradient is not finite"
    suspects: list[float] = []
    for guard in guards:
        suspects += _lowest_places(guard, line, coupled)
    return _broken_near(root, np.array(suspects), coupled) if suspects else None


class _Guard:
    """An argument that must stay above 0 (logarithm, root) or away from it (division)."""

    def __init__(self, node: Node, shift: float, either: bool):
        self.node, self.shift, self.either = node, shift, either

    def at(self, margins: Array, coupled: bool) -> Array:
        value = evaluate(self.node, points.reach_pairs(margins, coupled).inputs) + self.shift
        shape = (len(margins), 4) if coupled else (1, len(margins))
        value = np.broadcast_to(value[..., 0] if np.ndim(value) else value, shape)
        value = value[:, 0] if coupled else value[0]
        return np.abs(value) if self.either else value


def _guards(root: Node) -> list[_Guard]:
    found: list[_Guard] = []
    moving: set[Node] = set()
    for node in order(root):
        if node.op == "input" or not moving.isdisjoint(node.args):
            moving.add(node)
        if node.op == "div" and node.args[1] in moving:
            found.append(_Guard(node.args[1], 0.0, True))
        elif node.op in ("log", "sqrt", "log1p") and node.args[0] in moving:
            found.append(_Guard(node.args[0], 1.0 if node.op == "log1p" else 0.0, False))
        elif node.op == "pow" and node.args[0] in moving and isinstance(node.args[1].value, float):
            exponent = node.args[1].value
            if exponent < 0 or not exponent.is_integer():
                found.append(_Guard(node.args[0], 0.0, exponent.is_integer()))
    return found


def _at(root: Node, margins: Array, coupled: bool) -> tuple[Array, Array]:
    """Values, and the larger of the two gradients, one per margin."""
    where = points.reach_pairs(margins, coupled)
    value, gradients = value_and_gradients(root, where.inputs, where.trained)
    shape = where.inputs["chosen_logps"].shape
    with np.errstate(all="ignore"):
        slopes = [np.abs(np.broadcast_to(gradient, shape)) for gradient in gradients.values()]
        steepest = np.maximum.reduce([*slopes, np.zeros(shape)])
        value = np.broadcast_to(value, shape)
    return (value[:, 0, 0], steepest[:, 0, 0]) if coupled else (value[0, :, 0], steepest[0, :, 0])


def _lowest_places(guard: _Guard, line: Array, coupled: bool) -> list[float]:
    """Margins between the points of the line at which a guard may come to 0: its low points, followed down."""
    value = guard.at(line, coupled)
    low = np.flatnonzero((value[2:-2] <= value[1:-3]) & (value[2:-2] <= value[3:-1])) + 2
    # Where the sides, drawn on, stay above 0, so does the point between them.
    left = value[low - 1] - 1.5 * (value[low - 2] - value[low - 1])
    right = value[low + 1] - 1.5 * (value[low + 2] - value[low + 1])
    with np.errstate(all="ignore"):
        low = low[np.minimum(left, right) <= 0]
    if not len(low):
        return []
    low = low[np.argsort(value[low], kind="stable")[:_SUSPECTS]]
    start, end = line[low - 1].copy(), line[low + 1].copy()
    for _ in range(70):
        one, other = end - _GOLDEN * (end - start), start + _GOLDEN * (end - start)
        first = guard.at(one, coupled) <= guard.at(other, coupled)
        start, end = np.where(first, start, one), np.where(first, other, end)
    place = (start + end) / 2
    reached = guard.at(place, coupled) <= _NOTHING * np.maximum(value[low - 1], value[low + 1])
    return place[reached].tolist()


def _broken_near(root: Node, suspects: Array, coupled: bool) -> tuple[float, str] | None:
    margins = np.concatenate([suspects + sign * offset for offset in OFFSETS for sign in (1, -1)])
    value, slopes = _at(root, margins, coupled)
    value, slopes = value.reshape(len(OFFSETS), 2, -1), slopes.reshape(len(OFFSETS), 2, -1)
    gaps = np.flatnonzero(~np.isfinite(value).all((0, 1)) | ~np.isfinite(slopes).all((0, 1)))
    if len(gaps):
        return float(suspects[gaps[0]]), "value or gradient is not finite"
    highest = slopes.max(1)
    with np.errstate(all="ignore"):
        poles = np.flatnonzero((highest[1:] >= GROWTH * highest[:-1]).all(0) & (highest[-1] > 0))
    return (float(suspects[poles[0]]), "gradient has a pole") if len(poles) else None
