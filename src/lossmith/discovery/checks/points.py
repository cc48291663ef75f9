"""Where the checks look: ordinary batches, one item alone, and the ends of what a family can meet."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lossmith.discovery.identity.probes import VERSION, Probes, anchor_points, probes, token_points
from lossmith.discovery.program.arrays import Array

REACH = 300.0
"""How far a log-probability may be from its reference, in nats, with everything finite in float64."""
SHIFT = 50.0
"""How far all logits of a token may lie from 0; no probability changes by it."""
_STEPS = np.array([-300.0, -120.0, -40.0, -5.0, 0.0, 5.0, 40.0, 120.0, 300.0])
MARGIN_SPREADS = (10.0, 30.0)
"""Standard deviations of the antithetic margins of the direction check, in nats."""
LINE = np.linspace(-59.0, 59.0, 119)
"""Margins of the line along which shapes are read, in nats."""
_LOW = (-420.0, -450.0)
"""References that leave every log-probability of the reach below 0."""
_COMPANIONS = (-4.3, 1.1, 6.7)
_OTHER_SIDE = {
    f"{head}{side}_{tail}": f"{head}{other}_{tail}"
    for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
    for head, tail in (("", "logps"), ("ref_", "logps"), ("", "lengths"))
}
"""What is said of one side -> the same of the other."""
_ASIDE = 1.7
"""Margin of the pairs whose completions move together, in nats."""


@lru_cache(maxsize=8)
def ordinary(family: str) -> Probes:
    """The public probe points."""
    return probes(family)


@lru_cache(maxsize=8)
def alone(family: str) -> Probes:
    """The same points as batches of one item; for tables four batches of one anchor, which has no other row."""
    if family == "metric":
        rows = np.random.Generator(np.random.Philox(key=5)).standard_normal((4, 1, 5))
        return anchor_points(rows, np.zeros(1, dtype=int))
    return _apart(probes(family))


def _apart(points: Probes) -> Probes:
    inputs = {
        name: values if values.shape[1] == 1 else values.reshape(-1, 1, 1) for name, values in points.inputs.items()
    }
    count = max(len(values) for values in inputs.values())
    inputs = {name: values if len(values) == count else np.zeros((count, 1, 1)) for name, values in inputs.items()}
    jacobians = {name: values.reshape(count, 1, -1) for name, values in points.jacobians.items()}
    return Probes(points.family, points.seed, inputs, jacobians)


@lru_cache(maxsize=8)
def far(family: str) -> tuple[Probes, ...]:
    """The ends: every pair of steps from the reference; probabilities that round to 0 and 1; classes without others."""
    if family == "preference":
        return (_far_pairs(),)
    if family == "token":
        sure = torch.tensor([[40.0, 0, 0, 0], [0, 200.0, 0, 1.0], [0, 1.0, 2.0, 30.0], [0.0, 0, 0, 0]])
        return tuple(token_points(sure, torch.tensor(labels), 1) for labels in ([0, 1, 3, 0], [2, 0, 0, 1]))
    rows = np.random.Generator(np.random.Philox(key=6)).standard_normal((2, 6, 5))
    together = np.repeat(rows[:, :1], 6, axis=1) + 1e-3 * rows
    one_class, no_class, mixed = np.zeros(6, dtype=int), np.arange(6), np.array([0, 0, 0, 1, 1, 2])
    return (*(anchor_points(rows, labels) for labels in (one_class, no_class, mixed)), anchor_points(together, mixed))


def _far_pairs() -> Probes:
    size = len(_STEPS)
    shape = (size, size, 1)
    # References this low leave every log-probability below 0, so that 1 - p is defined wherever it is looked at.
    reference = {"chosen": np.full(shape, -420.0), "rejected": np.full(shape, -450.0)}
    inputs: dict[str, Array] = {"reward_shift": np.zeros((size, 1, 1))}
    for side, steps in (("chosen", _STEPS.reshape(-1, 1, 1)), ("rejected", _STEPS.reshape(1, -1, 1))):
        inputs[f"ref_{side}_logps"] = reference[side]
        inputs[f"{side}_logps"] = reference[side] + steps
        inputs[f"{side}_lengths"] = np.full(shape, 350.0)
    return Probes("preference", 0, inputs, {})


@dataclass(frozen=True)
class Edge:
    """A place that ordinary batches do not hold and real ones do."""

    said: str
    """Where it is, as the end of a sentence."""
    reads: tuple[str, ...]
    """Inputs of which a loss must read one to be looked at there."""
    where: Probes


@lru_cache(maxsize=4)
def edges(family: str) -> tuple[Edge, ...]:
    """Completions of one or two tokens; logits that are all low or high; a batch that holds one text twice."""
    if family == "preference":
        return (Edge("for completions of one or two tokens", ("chosen_lengths", "rejected_lengths"), _short_pairs()),)
    if family == "token":
        random = np.random.Generator(np.random.Philox(key=9))
        logits = torch.as_tensor(random.standard_normal((8, 6)) * 1.5)
        # One shift per batch: no probability knows of it.
        shifted = torch.cat([logits - SHIFT, logits + SHIFT])
        where = token_points(shifted, torch.arange(16) % 6, 2)
        return (Edge(f"where all logits are {SHIFT:.0f} lower or higher", ("log_normalizer", "mean_logits"), where),)
    said = "where a batch holds one text twice, under one class"
    reads = ("similarities", "distances")
    return (Edge(said, reads, _twins(1)), Edge(said.replace("one class", "two classes"), reads, _twins(3)))


def _short_pairs() -> Probes:
    """Every two of some lengths, at log-probabilities that one token may have."""
    sides = np.meshgrid(np.array([1.0, 2.0, 80.0]), np.array([1.0, 2.0, 80.0]), np.array([-5.0, 0.3, 5.0]))
    chosen, rejected, moved = (side.reshape(1, -1, 1) for side in sides)
    inputs: dict[str, Array] = {"reward_shift": np.zeros((1, 1, 1))}
    for name, lengths, sign in (("chosen", chosen, 0.5), ("rejected", rejected, -0.5)):
        inputs[f"{name}_lengths"] = lengths
        inputs[f"ref_{name}_logps"] = -6.0 - 1.1 * lengths
        inputs[f"{name}_logps"] = -6.0 - 1.1 * lengths + sign * moved
    return Probes("preference", 0, inputs, {})


def _twins(place: int) -> Probes:
    """A batch whose first row stands at another place too, closer than any rounding."""
    rows = np.random.Generator(np.random.Philox(key=10)).standard_normal((1, 6, 5))
    rows[:, place] = rows[:, 0]
    points = anchor_points(rows, np.array([0, 0, 0, 1, 1, 2]))
    twins = np.zeros((6, 6), dtype=bool)
    twins[[0, place], [place, 0]] = True
    closest = {"similarities": 1.0, "distances": 0.0}
    inputs = {
        name: np.where(twins, closest[name], values) if name in closest else values
        for name, values in points.inputs.items()
    }
    return Probes("metric", 0, inputs, {})


@lru_cache(maxsize=1)
def at_the_reference() -> Probes:
    """Two batches of the same pairs: where the policy is the reference, and hardly away from it."""
    random = np.random.Generator(np.random.Philox(key=12))
    # Multiples of a half, whose differences lose no digit, so that every margin of the first batch is exactly 0.
    references = {side: random.integers(-400, -80, (1, 8, 1)) / 2 for side in ("chosen", "rejected")}
    inputs: dict[str, Array] = {"reward_shift": np.zeros((2, 1, 1))}
    for side, reference in references.items():
        inputs[f"ref_{side}_logps"] = np.concatenate([reference, reference])
        inputs[f"{side}_logps"] = np.concatenate([reference, reference + 0.01 * random.standard_normal((1, 8, 1))])
        inputs[f"{side}_lengths"] = np.repeat(random.integers(20, 200, (1, 8, 1)).astype(np.float64), 2, axis=0)
    return Probes("preference", 0, inputs, {})


def pairs_at(margins: Array, references: tuple[float, float] = (-100.0, -103.0)) -> Probes:
    """Pairs whose log-ratio margin is given, [batches, items, 1]: half of it lifts the chosen completion."""
    shape = margins.shape
    inputs: dict[str, Array] = {"reward_shift": np.zeros((shape[0], 1, 1))}
    for side, sign, reference in (("chosen", 0.5, references[0]), ("rejected", -0.5, references[1])):
        inputs[f"ref_{side}_logps"] = np.full(shape, reference)
        inputs[f"{side}_logps"] = reference + sign * margins
        inputs[f"{side}_lengths"] = np.full(shape, 80.0)
    return Probes("preference", 0, inputs, {})


def reach_pairs(margins: Array, coupled: bool, together: bool = False) -> Probes:
    """Pairs at any margins of the reach: items of one batch, or the first of batches of four for coupled losses.

    Args:
        margins: Of the log-ratios, in nats; sums of both log-ratios if `together`.
        coupled: Whether every pair has a batch of its own.
        together: Whether both completions move the same way.
    """
    moving = margins.reshape(1, -1, 1)
    if coupled:
        rest = np.broadcast_to(np.array(_COMPANIONS).reshape(1, -1, 1), (len(margins), len(_COMPANIONS), 1))
        moving = np.concatenate([margins.reshape(-1, 1, 1), rest], axis=1)
    where = pairs_at(moving, _LOW)
    if together:
        # A margin that is no special one stays while the sum moves.
        where.inputs["chosen_logps"] = _LOW[0] + (moving + _ASIDE) / 2
        where.inputs["rejected_logps"] = _LOW[1] + (moving - _ASIDE) / 2
    return where


@lru_cache(maxsize=2)
def reach_line(coupled: bool) -> Array:
    """Margins over the whole reach, closer where pairs are: a half to 2.5 nats apart, four times that for batches."""
    times = 4 if coupled else 1
    near, far = np.linspace(-60.3, 60.3, 240 // times + 1), np.linspace(60.3, 2 * REACH, 216 // times + 1)[1:]
    return np.concatenate([-far[::-1], near, far])


@lru_cache(maxsize=1)
def antithetic() -> Probes:
    """One batch per spread; its second half is the first with the sides swapped, so every margin has its opposite."""
    half = np.random.Generator(np.random.Philox(key=7)).standard_normal((1, 64, 1))
    return _with_swapped(pairs_at(half * np.array(MARGIN_SPREADS).reshape(-1, 1, 1)).inputs)


def _with_swapped(inputs: dict[str, Array], seed: int = 0) -> Probes:
    """Pairs, then the same pairs with chosen and rejected swapped in all that is said of them."""
    whole: dict[str, Array] = {"reward_shift": inputs["reward_shift"]}
    for name, values in inputs.items():
        if name not in whole:
            whole[name] = np.concatenate([values, inputs[_OTHER_SIDE[name]]], axis=1)
    return Probes("preference", seed, whole, {})


@lru_cache(maxsize=8)
def scattered(seed: int = 0) -> Probes:
    """The same with references, lengths and a shared shift of both sides drawn at random.

    Args:
        seed: 0 for the public points; a run's secret seed for its own.
    """
    random = np.random.Generator(np.random.Philox(key=[VERSION, 2**33 + seed]))
    margins = random.standard_normal((1, 64, 1)) * np.array(MARGIN_SPREADS).reshape(-1, 1, 1)
    shape = margins.shape
    shared = random.standard_normal(shape) * np.array(MARGIN_SPREADS).reshape(-1, 1, 1) / 2
    lengths = np.exp(random.uniform(np.log(20), np.log(400), shape))
    reference = -random.uniform(150, 400, shape)
    inputs: dict[str, Array] = {"reward_shift": np.zeros((shape[0], 1, 1))}
    # Two completions of one prompt are about as long and about as likely.
    for side, sign, apart in (("chosen", 0.5, 0.0), ("rejected", -0.5, random.standard_normal(shape) * 4)):
        inputs[f"ref_{side}_logps"] = reference + apart
        inputs[f"{side}_logps"] = np.minimum(reference + apart + shared + sign * margins, -1.0)
        inputs[f"{side}_lengths"] = np.round(lengths * (random.uniform(0.7, 1.4, shape) if sign < 0 else 1.0))
    return _with_swapped(inputs, seed)


@lru_cache(maxsize=2)
def relabelled(family: str) -> tuple[Probes, Probes]:
    """The same logits, or the same rows, under two labellings that have nothing in common."""
    random = np.random.Generator(np.random.Philox(key=8))
    if family == "token":
        logits = torch.as_tensor(random.standard_normal((32, 12)) * 2)
        labels = torch.as_tensor(random.integers(0, 12, 32))
        return token_points(logits, labels, 2), token_points(logits, (labels + 5) % 12, 2)
    rows = random.standard_normal((2, 9, 5))
    return anchor_points(rows, np.repeat(np.arange(3), 3)), anchor_points(rows, np.tile(np.arange(3), 3))


@lru_cache(maxsize=1)
def line() -> Probes:
    """One pair at each margin of the line; batches of four, so that coupled losses see a batch."""
    moving = LINE.reshape(-1, 1, 1)
    rest = np.broadcast_to(np.array(_COMPANIONS).reshape(1, -1, 1), (len(LINE), len(_COMPANIONS), 1))
    return pairs_at(np.concatenate([moving, rest], axis=1))
