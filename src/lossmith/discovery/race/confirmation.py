r"""The claim: finalists against the control on fresh blocks, a fresh split and at least one unseen task or model.

A finalist is announced where it is better on *every* ground. Each ground has the two-sided paired t over its fresh
blocks; the finalist's p is the largest of them (Berger 1982: the intersection-union test needs no correction over
grounds), 1 where a difference is not above 0; Holm corrects over the finalists. Nothing that was measured in the search
enters, so the effect that stands beside the claim carries no winner's curse of the search.

Grounds are asked one after the other, of those finalists alone that can still be announced: a further ground only
raises a p, and with it Holm's, so who is dropped would not have been announced, and no other verdict changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.discovery.race.blocks import RungData
from lossmith.evidence import PairedComparison, holm, paired_t


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where finalists are confirmed."""

    name: str
    unseen: bool
    """Whether the search never saw this task and model."""
    data: RungData


@dataclass(frozen=True, kw_only=True)
class GroundResult:
    """One finalist on one ground."""

    ground: str
    unseen: bool
    comparison: PairedComparison | None
    """None where the finalist failed there, or the machine did."""
    floor: PairedComparison | None
    """The control's twin against the control in the same blocks: a paired difference where there is no effect."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One finalist and what may be said of it."""

    program: str
    rank: int
    """Place among the elites of the search, from 0."""
    grounds: tuple[GroundResult, ...]
    """Those that it was asked on."""
    p_value: float
    """Largest p over the grounds that it was asked on; 1 where it is not better on one of them."""
    p_holm: float
    """After Holm over all finalists."""
    announced: bool
    """Whether it is better than the control on every ground, at the level of the run."""


def confirm(finalists: Sequence[str], grounds: Sequence[Ground], *, significance: float) -> list[Claim]:
    """Claims for all finalists, in their order; none is announced without an unseen ground."""
    results, left = _in_turn(finalists, grounds, significance)
    adjusted = _adjusted(results)
    allowed = any(ground.unseen for ground in grounds)
    return [
        Claim(
            program=key,
            rank=rank,
            grounds=tuple(results[key]),
            p_value=_p_of_all(results[key]),
            p_holm=adjusted[key],
            announced=allowed and key in left,
        )
        for rank, key in enumerate(finalists)
    ]


def still_open(finalists: Sequence[str], grounds: Sequence[Ground], *, significance: float) -> list[str]:
    """Finalists that may yet be announced after these grounds, in their order: all of them before the first."""
    return _in_turn(finalists, grounds, significance)[1]


def _in_turn(
    finalists: Sequence[str], grounds: Sequence[Ground], significance: float
) -> tuple[dict[str, list[GroundResult]], list[str]]:
    """What each finalist did on the grounds that it was asked on, and who is left.

    Who was asked follows from the grounds before, never from the rows: one that was asked and could not be measured
    has shown nothing there.
    """
    results: dict[str, list[GroundResult]] = {key: [] for key in finalists}
    left = list(finalists)
    for ground in grounds:
        for key in left:
            results[key].append(_on_ground(key, ground))
        adjusted = _adjusted(results)
        left = [key for key in left if adjusted[key] <= significance]
    return results, left


def _adjusted(results: dict[str, list[GroundResult]]) -> dict[str, float]:
    return dict(zip(results, holm([_p_of_all(each) for each in results.values()]), strict=True)) if results else {}


def _on_ground(key: str, ground: Ground) -> GroundResult:
    control, own = ground.data.pairs(key)
    failed = key in ground.data.failed or not own
    return GroundResult(
        ground=ground.name,
        unseen=ground.unseen,
        comparison=None if failed else paired_t(control, own),
        floor=twin_floor(ground.data),
    )


def twin_floor(data: RungData) -> PairedComparison | None:
    """The control's second run in each block against its first; None where no block has both.

    It shares initial weights and evaluation examples with the first, but not the order of the training data: what is
    left between two trainings that differ in nothing that a loss decides.
    """
    shared = [block for block in sorted(data.twin) if block in data.control]
    return paired_t([data.control[each] for each in shared], [data.twin[each] for each in shared]) if shared else None


def _p_of_all(results: Sequence[GroundResult]) -> float:
    values = []
    for result in results:
        comparison = result.comparison
        if comparison is None or not comparison.difference > 0 or math.isnan(comparison.p_value):
            return 1.0
        values.append(comparison.p_value)
    return max(values, default=1.0)
