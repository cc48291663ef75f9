"""What a rung is worth: how often it rejects what the next one would keep, and how well the two agree.

A few rejects go on to the next rung by lot. Each stands for `1 / audit_share` rejects, so both the rate and the rank
correlation are those of all candidates and not of the survivors alone, where correlation is always low.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

from lossmith.discovery.race.halving import RETESTED, Decision
from lossmith.discovery.race.settings import RaceSettings


@dataclass(frozen=True, kw_only=True)
class RungAudit:
    """One rung against the next."""

    rung: str
    next_rung: str
    rejected: int
    """Candidates that the rung rejected, audited ones included."""
    audited: int
    """Rejects that went on by lot and were measured on the next rung."""
    wrongly_rejected: int
    """Audited ones that the next rung would have kept."""
    rate: float
    """Share of audited rejects that were wrong; nan where none was audited."""
    low: float
    """Ends of its exact 95% interval (Clopper and Pearson)."""
    high: float
    rank_correlation: float
    """Kendall's tau-a between the two rungs, each program weighted by how many it stands for; nan without pairs."""
    survivors_only: float
    """The same among those that were promoted: what a run without an audit would report."""
    programs: int


def audit_rungs(decisions: Sequence[Decision], rungs: Sequence[str], settings: RaceSettings) -> list[RungAudit]:
    """The audit of every rung but the last, from the decisions of all rounds."""
    return [_audit(decisions, rung, following, settings) for rung, following in pairwise(rungs)]


def _audit(decisions: Sequence[Decision], rung: str, following: str, settings: RaceSettings) -> RungAudit:
    here = {(each.step, each.program): each for each in decisions if each.rung == rung and each.mean is not None}
    there = {
        (each.step, each.program): each
        for each in decisions
        if each.rung == following and (each.mean is not None or each.kind == "failed") and each.kind not in RETESTED
    }
    rejected = sum(each.kind in ("rejected", "audited") for each in here.values())
    audited = [key for key, each in here.items() if each.kind == "audited" and key in there]
    wrong = sum(there[key].kind == "promoted" for key in audited)
    exact = stats.binomtest(wrong, len(audited)).proportion_ci() if audited else None
    both = [key for key in here if key in there]
    weights = [1 / settings.audit_share if here[key].kind == "audited" else 1.0 for key in both]
    # Those that broke on the next rung were rightly rejected, and are the last there.
    scores = [(here[key].mean, -math.inf if (mean := there[key].mean) is None else mean, key[0]) for key in both]
    return RungAudit(
        rung=rung,
        next_rung=following,
        rejected=rejected,
        audited=len(audited),
        wrongly_rejected=wrong,
        rate=wrong / len(audited) if audited else math.nan,
        low=math.nan if exact is None else float(exact.low),
        high=math.nan if exact is None else float(exact.high),
        rank_correlation=_tau(scores, weights),
        survivors_only=_tau([score for score, key in zip(scores, both, strict=True) if here[key].kind == "promoted"]),
        programs=len(both),
    )


def _tau(scores: Sequence[tuple[float | None, float | None, int]], weights: Sequence[float] | None = None) -> float:
    """Kendall's tau-a over pairs of the same round; a pair weighs the product of its two."""
    if not scores:
        return math.nan
    first, second, step = (np.array(column, dtype=float) for column in zip(*scores, strict=True))
    each = np.ones(len(scores)) if weights is None else np.asarray(weights)
    weight = np.outer(each, each) * (step[:, None] == step[None, :])
    np.fill_diagonal(weight, 0.0)
    if not weight.any():
        return math.nan
    agree = _signs(first) * _signs(second)
    return float((weight * agree).sum() / weight.sum())


def _signs(values: np.ndarray) -> np.ndarray:
    """1 where the row's value is above the column's, -1 below, 0 where they are equal; two infinities are equal."""
    return (values[:, None] > values[None, :]).astype(float) - (values[:, None] < values[None, :])


def funnel(decisions: Sequence[Decision], rungs: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """Rung -> what was decided there -> how often."""
    counts: dict[str, dict[str, int]] = {rung: {} for rung in rungs}
    for each in decisions:
        counts[each.rung][each.kind] = counts[each.rung].get(each.kind, 0) + 1
    return counts
