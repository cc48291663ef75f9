"""What a loss does to a model, as one direction: its gradients over the probe points, scale and offset gone."""

import math
from dataclasses import dataclass

import numpy as np

from lossmith.discovery.identity.probes import Probes, probes
from lossmith.discovery.program import Program
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import value_and_gradients

DUPLICATE, NEIGHBOUR = 1e-3, 0.05
"""Below the first distance two losses are one, and an evaluation is reused; below the second they are neighbours."""

_SMALL, _LARGE = 1e-140, 1e140


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Unit vector of gradients and its length; comparable within one family and one set of probes."""

    family: str
    seed: int
    vector: Array
    scale: float

    def distance(self, other: "Fingerprint") -> float:
        """Euclidean distance of the directions, in [0, 2]; 2 is the opposite loss.

        Raises:
            ValueError: If the two are of different families or probes.
        """
        if (self.family, self.seed) != (other.family, other.seed):
            raise ValueError("Fingerprints of different families or probes cannot be compared.")
        return float(np.linalg.norm(self.vector - other.vector))


def fingerprint(program: Program, *, seed: int = 0) -> Fingerprint | None:
    """The fingerprint of a program at its defaults; None where something is not finite or all gradients are zero.

    Args:
        program: What to look at.
        seed: 0 for the public probe points; a run's secret seed for its own.
    """
    return fingerprint_at(program, probes(program.family, seed))


def fingerprint_at(program: Program, points: Probes) -> Fingerprint | None:
    """The same at other points of the family."""
    value, gradients = value_and_gradients(program.literal_root, points.inputs, points.trained)
    # log(-1) is not finite although its slope is.
    with np.errstate(all="ignore"):
        total = float(np.add.reduce(value, axis=None))
    if not math.isfinite(total):
        return None
    return of_gradients(program.family, points.seed, points.chained(gradients))


def of_gradients(family: str, seed: int, flat: Array) -> Fingerprint | None:
    """The fingerprint of gradients at the probe points."""
    with np.errstate(all="ignore"):
        scale = float(np.sqrt(flat @ flat))
        if _SMALL < scale < _LARGE:
            return Fingerprint(family, seed, flat / scale, scale)
        # Squares of numbers this far from 1 overflow or vanish.
        highest = float(np.abs(flat).max())
        if not 0 < highest < np.inf:
            return None
        relative = flat / highest
        length = float(np.sqrt(relative @ relative))
        scale = highest * length
    return Fingerprint(family, seed, relative / length, scale) if 0 < scale < np.inf else None
