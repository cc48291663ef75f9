"""Programs whose worth is known: they prove in every run that the pipeline measures what it should.

A `good` one must not look worse than the control, a `bad` one not better, a `disguised` control not different, and a
`cheating` one must not be admitted at all. A canary that is off by more than chance allows stops the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from lossmith.discovery.proposers.base import ProgramLike, Proposal
from lossmith.discovery.race.blocks import RungData

CanaryKind = Literal["good", "disguised", "bad", "cheating"]
CHANCE = 1e-5
"""Two-sided p below which a canary is off: with a hundred looks a healthy run is stopped once in a thousand."""


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
    state: Literal["as expected", "not yet known", "off"]
    """`as expected` where the interval says so: above 0, below 0, or around 0."""


def inspect(rung: str, data: RungData, canaries: Sequence[Canary]) -> list[CanaryFinding]:
    """What the canaries say on a rung; failures of good and disguised ones are `off`, those of bad ones expected."""
    found = []
    for canary in canaries:
        if canary.program is None:
            continue
        differences = np.asarray(data.differences(canary.program.key))
        if canary.program.key in data.failed:
            state = "as expected" if canary.kind == "bad" else "off"
            found.append(
                CanaryFinding(
                    name=canary.name, kind=canary.kind, rung=rung, blocks=0, mean=math.nan, low=math.nan, high=math.nan,
                    state=state,
                )
            )  # fmt: skip
        elif differences.size:
            found.append(_finding(rung, canary, differences, data.twin_differences()))
    return found


def _finding(rung: str, canary: Canary, differences: np.ndarray, twins: Sequence[float]) -> CanaryFinding:
    mean = float(differences.mean())
    squares = float(np.square(differences - mean).sum() + np.square(twins).sum())
    degrees = differences.size - 1 + len(twins)
    error = math.sqrt(squares / degrees / differences.size) if degrees else math.inf
    half = error * float(stats.t.ppf(0.975, max(degrees, 1)))
    far = error * float(stats.t.isf(CHANCE / 2, max(degrees, 1)))
    allowed = canary.tolerance
    off: Mapping[str, bool] = {
        "good": mean < -far,
        "bad": mean > far,
        "disguised": abs(mean) > far + allowed,
    }
    fine: Mapping[str, bool] = {
        "good": mean - half > 0,
        "bad": mean + half < 0,
        "disguised": abs(mean) <= half + allowed,
    }
    return CanaryFinding(
        name=canary.name,
        kind=canary.kind,
        rung=rung,
        blocks=differences.size,
        mean=mean,
        low=mean - half,
        high=mean + half,
        state="off" if off[canary.kind] else "as expected" if fine[canary.kind] else "not yet known",
    )
