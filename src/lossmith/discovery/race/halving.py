"""Who goes on: halving on posterior lower bounds, a few rejects beside them, elites and their challengers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lossmith.discovery.draws import draw
from lossmith.discovery.race.blocks import RungData
from lossmith.discovery.race.estimates import Estimate, estimate
from lossmith.discovery.race.settings import RaceSettings

Kind = Literal["promoted", "audited", "rejected", "failed", "unmeasured", "elite", "challenger"]
RETESTED = ("elite", "challenger")
"""Kinds of decisions on programs of all rounds, as opposed to those on a round's cohort."""
PROMISING = 0.25
"""Posterior standard deviations above the control from which an elite is worth a confirmation: odds of 3 to 2."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided of one program after one rung of one round, and on which numbers."""

    step: int
    rung: str
    program: str
    kind: Kind
    rank: int
    """Place by lower bound among those decided on, from 0; failed and unmeasured ones come last."""
    lower: float | None
    mean: float | None
    sd: float | None
    blocks: int


def cut(
    step: int,
    rung: str,
    data: RungData,
    cohort: Sequence[str],
    crowd: Sequence[str],
    settings: RaceSettings,
    *,
    seed: int,
    last: bool = False,
) -> list[Decision]:
    """Decide who of a round's cohort goes on to the next rung.

    Args:
        step: The round.
        rung: Name of the rung.
        data: All evaluations of the rung so far.
        cohort: The round's candidates on this rung.
        crowd: All programs that say where the crowd is: the candidates of every round on this rung.
        settings: Of the race.
        seed: Of the run; draws which rejects are promoted anyway.
        last: Whether this is the last rung, behind which there is nothing to audit.
    """
    _, found = estimate(data, crowd)
    order = ranked({key: found[key] for key in cohort if key in found}, settings.caution)
    kept = math.ceil(settings.keep * len(order) - 1e-9)
    decisions = []
    for rank, each in enumerate(order):
        kind: Kind = "promoted"
        if rank >= kept:
            # One draw per program, so that it does not depend on who else is there.
            lucky = draw(seed, step, f"audit/{rung}/{each.key}").random() < settings.audit_share
            kind = "audited" if lucky and not last else "rejected"
        decisions.append(_decided(step, rung, kind, rank, each, settings))
    for key in sorted(set(cohort) - set(found)):
        kind = "failed" if key in data.failed else "unmeasured"
        decisions.append(
            Decision(
                step=step,
                rung=rung,
                program=key,
                kind=kind,
                rank=len(decisions),
                lower=None,
                mean=None,
                sd=None,
                blocks=len(data.differences(key)),
            )
        )
    return decisions


def choose_retested(
    step: int, rung: str, data: RungData, crowd: Sequence[str], settings: RaceSettings
) -> list[Decision]:
    """Who is measured again in the next round's blocks of the last rung, over all rounds and blocks so far.

    Elites are the best by lower bound, challengers the best of the others by upper bound. Without challengers whoever
    came in with few blocks would never get more of them, however good: the proven ones' bounds are closer.
    """
    _, found = estimate(data, crowd)
    order = ranked(found, settings.caution)
    elites, others = order[: settings.elites], order[settings.elites :]
    challengers = sorted(others, key=lambda each: (-each.upper(settings.caution), each.key))[: settings.challengers]
    kinds: tuple[tuple[Kind, list[Estimate]], ...] = (("elite", elites), ("challenger", challengers))
    return [
        _decided(step, rung, kind, rank, each, settings) for kind, chosen in kinds for rank, each in enumerate(chosen)
    ]


def promising(elites: Sequence[Decision]) -> list[str]:
    """The elites that are worth a confirmation, in their order."""
    return [
        each.program
        for each in elites
        if each.mean is not None and each.sd is not None and each.mean > max(0.0, PROMISING * each.sd)
    ]


def ranked(estimates: dict[str, Estimate], caution: float) -> list[Estimate]:
    """Best lower bound first; programs that are equal to the last bit are ordered by key."""
    return sorted(estimates.values(), key=lambda each: (-each.lower(caution), each.key))


def _decided(step: int, rung: str, kind: Kind, rank: int, each: Estimate, settings: RaceSettings) -> Decision:
    return Decision(
        step=step,
        rung=rung,
        program=each.key,
        kind=kind,
        rank=rank,
        lower=each.lower(settings.caution),
        mean=each.mean,
        sd=each.sd,
        blocks=each.blocks,
    )
