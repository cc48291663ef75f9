"""The strength at which a published loss is closest to a candidate: grids name too few of them.

A search over a fixed ladder of strengths, whose gradients are kept, then a few steps of Gauss and Newton.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lossmith.discovery.identity.beyond import beyond
from lossmith.discovery.identity.fingerprint import DUPLICATE, NEIGHBOUR, Fingerprint
from lossmith.discovery.identity.known import FIRST, Known
from lossmith.discovery.identity.probes import Probes, probes
from lossmith.discovery.program.arrays import Array

RATIO = math.log(1.1)
"""Logarithm of the step of the ladder."""
REACH, REACH_OF_CONTROLS = 30.0, 1000.0
"""How many times the loss's own default: at the ends most losses are one straight line, which has no name."""
_HALF_A_STEP = 0.015
"""Distance of a loss to itself half a step of the ladder off, at most (DPO: 0.01)."""
_JUMPS = (8, 4, 2, 1)
_POLISHED = 4
_EXACT = 1e-10
_ASTRAY = math.log(1.5)
"""How far off a strength may be that the probes do not tell from its neighbours, as a logarithm."""
_GOLDEN = (5**0.5 - 1) / 2
_NARROWED = 16
"""Steps of the golden section: to less than a thousandth of the strength."""


def closest_strength(known: Known, found: Fingerprint, *, worth: float = math.inf) -> tuple[Known, Fingerprint] | None:
    """The loss at the strength that fits best, and its fingerprint there; None where it has no strength.

    Args:
        known: Where the search starts, a place of the atlas.
        found: What is to be named.
        worth: What cannot come below this distance is not fitted to the end.
    """
    if known.strength is None:
        return None
    points = probes(found.family, found.seed)
    ends = _ends(known)
    rung = min(max(round(math.log(known.settings[known.strength]) / RATIO), ends[0]), ends[1])
    best = _distance(known, rung, found)
    for jump in _JUMPS:
        rung, best = _walk(known, rung, best, jump, found, ends)
    # The best place may lie half a step away.
    if not best < worth + _HALF_A_STEP:
        return None
    strength, distance = math.exp(rung * RATIO), best
    if best < NEIGHBOUR:
        strength, distance = _polished(known, rung, best, found, points)
    # The digits of a strength that fits no better than its neighbours would say nothing.
    strength = float(f"{strength:.6g}" if distance < DUPLICATE else f"{strength:.2g}")
    named = known.at(strength)
    print = named.fingerprint(points)
    return None if print is None else (named, print)


def strength_beyond(
    known: Known, found: Fingerprint, elsewhere: Callable[[Probes], Fingerprint | None]
) -> Known | None:
    """A control at the strength that fits best beyond the probes; None where the probes themselves say which it is.

    A strong loss is a step at every probe point, whatever its strength: the points beyond have smaller margins.

    Args:
        known: Where the search starts, at a distance below `DUPLICATE`.
        found: What is to be named, at the probes.
        elsewhere: Its fingerprint at other points.
    """
    name, points = known.strength, probes(found.family, found.seed)
    if name is None or known.record.name not in FIRST.values():
        return None
    here = known.settings[name]
    around = (known.at(here * way).fingerprint(points) for way in (math.exp(RATIO), math.exp(-RATIO)))
    if all(print is None or found.distance(print) >= DUPLICATE for print in around):
        return None
    pairs = [(where, mine) for where in beyond(found.family) if (mine := elsewhere(where)) is not None]

    def apart(place: float) -> float:
        other = known.at(math.exp(place))
        prints = ((mine, other.fingerprint(where)) for where, mine in pairs)
        return max((mine.distance(print) for mine, print in prints if print is not None), default=math.inf)

    # Another strength of one loss is close by: 90.9 in place of 100 is at 0.004. What is farther is another loss.
    if apart(math.log(here)) >= NEIGHBOUR:
        return None
    first, last = _ends(known)
    # The reach ends between two rungs: its end must not be left out.
    start = max(math.log(here) - _ASTRAY, (first - 1) * RATIO)
    end = min(math.log(here) + _ASTRAY, (last + 1) * RATIO)
    low, high = end - _GOLDEN * (end - start), start + _GOLDEN * (end - start)
    at_low, at_high = apart(low), apart(high)
    for _ in range(_NARROWED):
        if at_low <= at_high:
            end, high, at_high = high, low, at_low
            low = end - _GOLDEN * (end - start)
            at_low = apart(low)
        else:
            start, low, at_low = low, high, at_high
            high = start + _GOLDEN * (end - start)
            at_high = apart(high)
    return known.at(float(f"{math.exp((start + end) / 2):.4g}"))


def _ends(known: Known) -> tuple[int, int]:
    """First and last rung of the ladder."""
    default = math.log(known.record.hyperparameters[known.strength or ""])
    reach = math.log(REACH_OF_CONTROLS if known.record.name in FIRST.values() else REACH)
    return math.ceil((default - reach) / RATIO), math.floor((default + reach) / RATIO)


def _walk(
    known: Known, rung: int, best: float, jump: int, found: Fingerprint, ends: tuple[int, int]
) -> tuple[int, float]:
    for way in (jump, -jump):
        moved = False
        while ends[0] <= rung + way <= ends[1] and (there := _distance(known, rung + way, found)) < best:
            rung, best, moved = rung + way, there, True
        if moved:
            break
    return rung, best


def _polished(known: Known, rung: int, best: float, found: Fingerprint, points: Probes) -> tuple[float, float]:
    place, vector = rung * RATIO, _ladder(known, rung, found.family, found.seed)
    above, below = (_ladder(known, rung + way, found.family, found.seed) for way in (1, -1))
    if vector is None or above is None or below is None:
        return math.exp(place), best
    slope = (above - below) / (2 * RATIO)
    for _ in range(_POLISHED):
        size = float(slope @ slope)
        step = float((found.vector - vector) @ slope) / size if size > 0 else 0.0
        step = min(max(step, -RATIO), RATIO)
        if abs(step) < 1e-9 or best < _EXACT:
            break
        print = known.at(math.exp(place + step)).fingerprint(points)
        if print is None or not (distance := found.distance(print)) < best:
            break
        slope = (print.vector - vector) / step
        place, vector, best = place + step, print.vector, distance
    return math.exp(place), best


def _distance(known: Known, rung: int, found: Fingerprint) -> float:
    vector = _ladder(known, rung, found.family, found.seed)
    return math.inf if vector is None else float(np.linalg.norm(vector - found.vector))


def _ladder(known: Known, rung: int, family: str, seed: int) -> Array | None:
    return _on_the_ladder(_Key(known), rung, family, seed)


class _Key:
    """A known loss but for its strength, as a key."""

    def __init__(self, known: Known):
        self.known, self.kind = known, known.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.kind == other.kind


@lru_cache(maxsize=8192)
def _on_the_ladder(key: _Key, rung: int, family: str, seed: int) -> Array | None:
    print = key.known.at(math.exp(rung * RATIO)).fingerprint(probes(family, seed))
    return None if print is None else print.vector
