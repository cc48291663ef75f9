"""Programs whose worth is known: they prove in every run that the pipeline measures what it should.

A `good` one must not look worse than the control, a `bad` one not better, a `disguised` control not different, and a
`cheating` one must not be admitted at all. A canary that is off by more than chance allows stops the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from lossmith.discovery.proposers.base import ProgramLike, Proposal
from lossmith.discovery.race.blocks import RungData
from lossmith.discovery.race.estimates import Crowd

CanaryKind = Literal["good", "disguised", "bad", "cheating"]
CanaryState = Literal["as expected", "not yet known", "off"]
CHANCE = 1e-5
"""Two-sided p below which a canary is off: with a hundred looks a healthy run is stopped once in a thousand."""
_FEWEST_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One program of known worth."""

    name: str
    kind: CanaryKind
    program: ProgramLike | None = None
    """The program, for those that are measured."""
    proposal: Proposal | None = None
    """What is handed to the gate, for those that must be refused."""
    tolerance: float = 0.0
    """Difference of fitness that rounding alone may make between the control and a disguised one."""


@dataclass(frozen=True, kw_only=True)
class CanaryFinding:
    """What one canary says on one rung."""

    name: str
    kind: CanaryKind
    rung: str
    blocks: int
    mean: float
    low: float
    """Ends of the 95% interval of the difference to the control, with the rung's noise."""
    high: float
    state: CanaryState
    """`as expected` where the interval says so: above 0, below 0, or around 0."""


def inspect(rung: str, data: RungData, canaries: Sequence[Canary], noise: Crowd) -> list[CanaryFinding]:
    """What the canaries say on a rung; failures of good and disguised ones are `off`, those of bad ones expected.

    Args:
        rung: Its name.
        data: All of its evaluations.
        canaries: Those to look at.
        noise: Of all programs on the rung: a canary alone is in too few blocks to know it.
    """
    found = []
    for canary in canaries:
        if canary.program is None:
            continue
        differences = np.asarray(data.differences(canary.program.key))
        if canary.program.key in data.failed:
            state = "as expected" if canary.kind == "bad" else "off"
            found.append(_named(rung, canary, differences, (math.nan,) * 3, state))
        elif differences.size:
            found.append(_finding(rung, canary, differences, noise))
    return found


def _finding(rung: str, canary: Canary, differences: np.ndarray, noise: Crowd) -> CanaryFinding:
    size, mean = differences.size, float(differences.mean())
    variance, degrees = noise.noise_variance, noise.degrees
    if size > 1 and differences.var(ddof=1) > variance:  # a program may be noisier than most
        variance, degrees = float(differences.var(ddof=1)), size - 1
    error = math.sqrt(variance / size)
    half = error * float(stats.t.ppf(0.975, max(degrees, 1)))
    far = error * float(stats.t.isf(CHANCE / 2, max(degrees, 1)))
    allowed = canary.tolerance
    off = {"good": mean < -far, "bad": mean > far, "disguised": abs(mean) > far + allowed}[canary.kind]
    fine = {"good": mean > half, "bad": mean < -half, "disguised": abs(mean) <= half + allowed}[canary.kind]
    state = "not yet known"
    if off and size >= _FEWEST_BLOCKS:
        state = "off"
    elif fine:
        state = "as expected"
    return _named(rung, canary, differences, (mean, mean - half, mean + half), state)


def _named(
    rung: str, canary: Canary, differences: np.ndarray, numbers: tuple[float, ...], state: CanaryState
) -> CanaryFinding:
    mean, low, high = numbers
    return CanaryFinding(
        name=canary.name,
        kind=canary.kind,
        rung=rung,
        blocks=differences.size,
        mean=mean,
        low=low,
        high=high,
        state=state,
    )
