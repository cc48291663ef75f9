"""Poles and gaps within the reach: what divides, and what takes a logarithm or a root, along the margin and the sum.

A candidate is refused only where its own value or gradient is seen to break down at points of the line.
"""

from dataclasses import dataclass

import numpy as np

from lossmith.discovery.checks import points
from lossmith.discovery.identity.probes import Probes
from lossmith.discovery.program import Node, order
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import evaluate, value_and_gradients

OFFSETS = (1e-2, 1e-4, 1e-6)
"""Distances from a suspect at which the gradient is read, in nats."""
GROWTH = 50.0
"""Of the gradient per offset: a logarithm's is 100 times larger a hundred times closer, a root's ten times."""
_NOTHING = 1e-12
_SUSPECTS = 12
_SOME = np.array([-531.3, -77.7, -9.1, -0.3, 0.4, 11.3, 63.7, 411.9])
"""Places of a line at which is seen whether something depends on it at all."""
_GOLDEN = (5**0.5 - 1) / 2


def breakdown(root: Node) -> tuple[float, str, str] | None:
    """Where value or gradient is not finite, or has a pole, which, and along what; None where none was seen.

    Args:
        root: Of a preference program, without hyper-parameters.
    """
    guards = _guards(root)
    if not guards:
        return None
    coupled = any(node.op in ("mean_batch", "var_batch", "std_batch", "mean_masked") for node in order(root))
    for line in (Line(coupled), Line(coupled, together=True)):
        found = _along(root, guards, line)
        if found is not None:
            return (*found, "a sum of log-ratios" if line.together else "a margin")
    return None


def _along(root: Node, guards: "list[_Guard]", line: "Line") -> tuple[float, str] | None:
    places = points.reach_line(line.coupled)
    if line.together:
        guards = [guard for guard in guards if guard.moves(line)]
        if not guards:
            return None
    value, gradients = line.at(root, places)
    broken = np.flatnonzero(~np.isfinite(value))
    if len(broken):
        return float(places[broken[0]]), "value is not finite"
    broken = np.flatnonzero(~np.isfinite(gradients))
    if len(broken):
        return float(places[broken[0]]), "gradient is not finite"
    suspects: list[float] = []
    for guard in guards:
        suspects += _lowest_places(guard, places, line)
    return _broken_near(root, np.array(suspects), line) if suspects else None


@dataclass(frozen=True)
class Line:
    """A line through the reach: along the margin of a pair, or with both completions moving together."""

    coupled: bool
    together: bool = False

    def pairs(self, places: Array) -> Probes:
        """Pairs at places of the line."""
        return points.reach_pairs(places, self.coupled, self.together)

    def at(self, root: Node, places: Array) -> tuple[Array, Array]:
        """Values, and the larger of the two gradients, one per place."""
        where = self.pairs(places)
        value, gradients = value_and_gradients(root, where.inputs, where.trained)
        shape = where.inputs["chosen_logps"].shape
        with np.errstate(all="ignore"):
            slopes = [np.abs(np.broadcast_to(gradient, shape)) for gradient in gradients.values()]
            steepest = np.maximum.reduce([*slopes, np.zeros(shape)])
            value = np.broadcast_to(value, shape)
        return (value[:, 0, 0], steepest[:, 0, 0]) if self.coupled else (value[0, :, 0], steepest[0, :, 0])


class _Guard:
    """An argument that must stay above 0 (logarithm, root) or away from it (division)."""

    def __init__(self, node: Node, shift: float, either: bool):
        self.node, self.shift, self.either = node, shift, either

    def at(self, places: Array, line: Line) -> Array:
        value = evaluate(self.node, line.pairs(places).inputs) + self.shift
        shape = (len(places), 4) if line.coupled else (1, len(places))
        value = np.broadcast_to(value[..., 0] if np.ndim(value) else value, shape)
        value = value[:, 0] if line.coupled else value[0]
        return np.abs(value) if self.either else value

    def moves(self, line: Line) -> bool:
        value = self.at(_SOME, line)
        with np.errstate(all="ignore"):
            return not float(np.ptp(value)) <= _NOTHING * float(np.abs(value).max())


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


def _lowest_places(guard: _Guard, places: Array, line: Line) -> list[float]:
    """Places between the points of the line at which a guard may come to 0: its low points, followed down."""
    value = guard.at(places, line)
    low = np.flatnonzero((value[2:-2] <= value[1:-3]) & (value[2:-2] <= value[3:-1])) + 2
    # Where the sides, drawn on, stay above 0, so does the point between them.
    with np.errstate(all="ignore"):
        left = value[low - 1] - 1.5 * (value[low - 2] - value[low - 1])
        right = value[low + 1] - 1.5 * (value[low + 2] - value[low + 1])
        low = low[np.minimum(left, right) <= 0]
    if not len(low):
        return []
    low = low[np.argsort(value[low], kind="stable")[:_SUSPECTS]]
    start, end = places[low - 1].copy(), places[low + 1].copy()
    for _ in range(70):
        one, other = end - _GOLDEN * (end - start), start + _GOLDEN * (end - start)
        first = guard.at(one, line) <= guard.at(other, line)
        start, end = np.where(first, start, one), np.where(first, other, end)
    place = (start + end) / 2
    reached = guard.at(place, line) <= _NOTHING * np.maximum(value[low - 1], value[low + 1])
    return place[reached].tolist()


def _broken_near(root: Node, suspects: Array, line: Line) -> tuple[float, str] | None:
    places = np.concatenate([suspects + sign * offset for offset in OFFSETS for sign in (1, -1)])
    value, slopes = line.at(root, places)
    value, slopes = value.reshape(len(OFFSETS), 2, -1), slopes.reshape(len(OFFSETS), 2, -1)
    gaps = np.flatnonzero(~np.isfinite(value).all((0, 1)) | ~np.isfinite(slopes).all((0, 1)))
    if len(gaps):
        return float(suspects[gaps[0]]), "value or gradient is not finite"
    highest = slopes.max(1)
    with np.errstate(all="ignore"):
        poles = np.flatnonzero((highest[1:] >= GROWTH * highest[:-1]).all(0) & (highest[-1] > 0))
    return (float(suspects[poles[0]]), "gradient has a pole") if len(poles) else None
