"""Where two losses that agree at the probe points are looked at again before they are called one."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from lossmith.discovery.identity.fingerprint import DUPLICATE, Fingerprint
from lossmith.discovery.identity.probes import (
    CLASSES,
    VERSION,
    Probes,
    anchor_points,
    probes,
    signed_margins,
    token_points,
)
from lossmith.discovery.program.arrays import Array

STEPS = (0.0, 0.02, 0.1, 0.4, 1.5, 5.0, 15.0, 40.0, 75.0, 110.0, 150.0, 200.0, 300.0)
"""How far either log-probability is from its reference, in nats, both ways."""
LONGEST = 2000
"""Tokens of a completion; the shortest has one."""


def same_beyond(
    family: str,
    one: Callable[[Probes], Fingerprint | None],
    other: Callable[[Probes], Fingerprint | None],
    seeds: tuple[int, ...] = (),
) -> bool:
    """Whether two losses agree at the ends, at all lengths, and at the probe points of other seeds.

    Args:
        family: Of both.
        one: Fingerprint of the candidate at given points.
        other: The same of what it is said to repeat.
        seeds: Of further probe points, such as a run's secret ones.
    """
    for points in (*beyond(family), *(probes(family, seed) for seed in seeds)):
        known = other(points)
        # A published loss may end before the reach of candidates does; nothing can be compared there.
        if known is None:
            continue
        mine = one(points)
        if mine is None or mine.distance(known) >= DUPLICATE:
            return False
    return True


@lru_cache(maxsize=8)
def beyond(family: str) -> tuple[Probes, ...]:
    """Points that the public probes do not reach."""
    random = np.random.Generator(np.random.Philox(key=[VERSION, 2**32]))
    if family == "preference":
        return (_far_pairs(random), _all_lengths(random))
    if family == "token":
        scale = np.exp(random.uniform(np.log(0.01), np.log(40), (64, 1)))
        logits = torch.as_tensor(random.standard_normal((64, CLASSES)) * scale)
        labels = torch.as_tensor(random.integers(0, CLASSES, 64))
        labels[::2] = logits.argmax(-1)[::2]
        return (token_points(logits, labels, 4),)
    # As in the probes: three rows of each of three classes, so that sums over them are means but for a factor.
    classes = np.repeat(np.arange(3), 3)
    spread = np.array([0.02, 0.2, 1.0, 5.0]).reshape(-1, 1, 1)
    centres = random.standard_normal((4, 3, 6))
    return (anchor_points(centres[:, classes] + spread * random.standard_normal((4, 9, 6)), classes),)


def _far_pairs(random: np.random.Generator) -> Probes:
    steps = np.array([*(-step for step in STEPS[:0:-1]), *STEPS])
    size = len(steps)
    shape = (size, size, 1)
    # A little apart, so that no pair lies on the kink of a loss, where spellings may differ.
    moved = {
        "chosen": np.clip(steps * random.uniform(0.97, 1.0, size) + 0.013, -300, 300).reshape(-1, 1, 1),
        "rejected": np.clip(steps * random.uniform(0.97, 1.0, size) - 0.007, -300, 300).reshape(1, -1, 1),
    }
    inputs: dict[str, Array] = {"reward_shift": np.zeros((size, 1, 1))}
    for side, reference in (("chosen", -420.0), ("rejected", -450.0)):
        inputs[f"ref_{side}_logps"] = np.full(shape, reference)
        inputs[f"{side}_logps"] = reference + np.broadcast_to(moved[side], shape)
        inputs[f"{side}_lengths"] = np.full(shape, 350.0)
    return Probes("preference", 0, inputs, {})


def _all_lengths(random: np.random.Generator) -> Probes:
    shape = (6, 24, 1)
    spread = np.array([1.0, 3.0, 8.0, 15.0, 25.0, 40.0]).reshape(-1, 1, 1)
    margins, shared = signed_margins(random, shape) * spread, random.standard_normal(shape) * spread / 2
    # Lengths and references apart from each other, and both sides about as likely: no margin is beyond the reach.
    reference = -random.uniform(250, 600, shape)
    inputs: dict[str, Array] = {"reward_shift": np.zeros((6, 1, 1))}
    for side, sign in (("chosen", 0.5), ("rejected", -0.5)):
        own = reference + 4 * random.standard_normal(shape)
        inputs[f"ref_{side}_logps"] = own
        inputs[f"{side}_logps"] = np.minimum(own + shared + sign * margins, -1.0)
        inputs[f"{side}_lengths"] = np.round(np.exp(random.uniform(0, np.log(LONGEST), shape)))
    return Probes("preference", 0, inputs, {})
