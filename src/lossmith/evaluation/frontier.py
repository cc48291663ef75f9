r"""The reward-KL frontier: how much reward a loss buys at how much divergence from the start, over its betas.

A curve begins at the policy before training (KL 0) and has one point per beta. Its *upper frontier* is the upper
concave envelope of these points up to the highest reward: between two trained policies the line is reached too, by the
one or the other at random, whose divergence is at most the line's since KL is convex. Beyond the highest reward the
frontier is level, for a budget of KL need not be spent. The *area* is the mean height of the frontier over a stated
range of KL. A curve whose largest measured KL lies below the end of the range has no area: nothing is extrapolated.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossmith.errors import EvidenceError
from lossmith.evidence import BlockInterval, BootstrapRange, PairedComparison, RunRecord, block_interval, paired_t
from lossmith.nn import Composition, parse_composition

Curve = Sequence[tuple[float, float]]
"""KL and reward of each point."""

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """One trained policy, sampled with several seeds."""

    loss: str
    """Canonical string of the loss."""
    family: str
    """The same without its beta: points of one family and seed are one curve."""
    beta: float | None
    """What its beta is; None where it has none."""
    seed: int
    """Training seed."""
    kl: tuple[float, ...]
    """KL(policy || start) per answer, in nats, by sampling seed."""
    reward: tuple[float, ...]
    """Mean reward, in [0, 1], by sampling seed."""
    start_reward: tuple[float, ...]
    """The same before training."""


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One loss over its training seeds; sampling seeds are averaged within each of them."""

    loss: str
    """Canonical string."""
    family: str
    """The curve that it belongs to."""
    beta: float | None
    """What its beta is."""
    seeds: int
    """Training seeds."""
    kl: BlockInterval
    """Mean with the t interval over training seeds; nan ends with one seed."""
    reward: BlockInterval
    """The same of the reward."""


@dataclass(frozen=True, kw_only=True)
class FrontierArea:
    """The mean height of one loss's frontier over the range of KL."""

    family: str
    """The loss without its beta."""
    values: dict[int, float]
    """Training seed -> mean height, in units of the reward; empty where the curve does not span the range."""
    reaches: float
    """The KL up to which it was measured in every seed and sampling seed."""
    mean: float | None
    """Over training seeds; None where it does not span the range."""
    interval: BlockInterval | None
    """Mean with the t interval over training seeds."""
    bootstrap: BootstrapRange | None
    """The same by drawing training seeds, and within them sampling seeds, again."""
    comparison: PairedComparison | None
    """Against the baseline's, paired by training seed; None for the baseline and without a pair."""
    comparison_bootstrap: BootstrapRange | None
    """Of the same difference, both losses with the same draws."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Everything that a picture of the frontier shows."""

    points: tuple[FrontierPoint, ...]
    """In the order of the losses."""
    start_reward: float
    """Before training, mean over sampling seeds: the point at KL 0."""
    low: float
    """Lower end of the range of KL, in nats."""
    high: float
    """Upper end."""
    areas: tuple[FrontierArea, ...]
    """One per family, in the order of the losses."""
    baseline: str
    """The family that the others are compared with."""
    notices: tuple[str, ...]
    """Curves that do not span the range, by name."""


def family_of(text: str) -> tuple[str, float | None]:
    """A loss without its beta, and the beta of its first term that takes one.

    Example:
        >>> family_of("ipo(beta=0.5) + 0.1*cross_entropy"), family_of("dpo"), family_of("orpo")
        (('ipo + 0.1*cross_entropy', 0.5), ('dpo', 0.1), ('orpo', None))
    """
    composition = parse_composition(text)
    beta = None
    terms = []
    for term in composition.terms:
        inner = {name: value for name, value in term.hyperparameters.items() if name != "beta"}
        if beta is None and "beta" in term.record.hyperparameters:
            beta = float(term.hyperparameters.get("beta", term.record.hyperparameters["beta"]))
        terms.append(replace(term, hyperparameters=inner))
    return str(Composition(tuple(terms), composition.handovers)), beta


def measured_points(records: Iterable[RunRecord]) -> tuple[MeasuredPoint, ...]:
    """The points of finished runs that were sampled, which `config["sampling"]` of their records holds."""
    found = []
    for run in records:
        sampling: dict[str, Any] | None = run.config.get("sampling")
        if run.status != "finished" or not sampling:
            continue
        family, beta = family_of(run.loss)
        values = {name: tuple(float(x) for x in sampling[name]) for name in ("kl", "reward", "start_reward")}
        found.append(MeasuredPoint(loss=run.loss, family=family, beta=beta, seed=run.seed, **values))
    return tuple(found)


def upper_frontier(curve: Curve, start_reward: float) -> list[tuple[float, float]]:
    """The vertices of the upper concave envelope from the start at KL 0 to the highest reward.

    Example:
        >>> upper_frontier([(4.0, 0.8), (2.0, 0.5), (1.0, 0.6), (6.0, 0.7)], 0.4)
        [(0.0, 0.4), (1.0, 0.6), (4.0, 0.8)]
    """
    best = max((reward, -kl) for kl, reward in (*curve, (0.0, start_reward)))
    rising = [(kl, reward) for kl, reward in curve if kl <= -best[1]]
    hull: list[tuple[float, float]] = []
    for point in sorted({(0.0, start_reward), *rising}):
        while hull and (hull[-1][0] >= point[0] and hull[-1][1] <= point[1]):
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def frontier_height(vertices: Curve, kl: float) -> float:
    """The reward that a budget of KL buys: on the line between vertices, level behind the last one."""
    return float(np.interp(kl, [point[0] for point in vertices], [point[1] for point in vertices]))


def mean_height(curve: Curve, start_reward: float, *, low: float, high: float) -> float:
    """Area under the upper frontier over [low, high], divided by its width: a mean reward.

    Raises:
        EvidenceError: If the range is empty, or the curve was not measured up to its end.

    Example:
        >>> round(mean_height([(2.0, 0.8), (9.0, 0.7)], 0.4, low=0.0, high=4.0), 6)
        0.7
    """
    if not 0 <= low < high < math.inf:
        raise EvidenceError(f"`kl_range` must be two numbers with 0 <= the first < the second, got {[low, high]}.")
    reach = max((kl for kl, _ in curve), default=0.0)
    if reach < high:
        raise EvidenceError(f"The curve was measured up to KL {reach:.3g} and not to {high:.3g}.")
    vertices = upper_frontier(curve, start_reward)
    places = sorted({low, high, *(kl for kl, _ in vertices if low < kl < high)})
    heights = [frontier_height(vertices, place) for place in places]
    return float(np.trapezoid(heights, places)) / (high - low)


def frontier(
    points: Sequence[MeasuredPoint],
    *,
    baseline: str,
    kl_range: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Frontier:
    """Points with intervals, and the area under each loss's frontier.

    Args:
        points: Of all losses, betas and training seeds, at least one; all with the same sampling seeds.
        baseline: The loss, or its family, that areas are compared with.
        kl_range: Range of KL of the areas, in nats. None takes from 0 to where the baseline was measured in all seeds.
        seed: Of the bootstrap.
        resamples: Replicates of the bootstrap.

    Raises:
        EvidenceError: If there is no point, sampling seeds differ, or the range is empty.
    """
    if not points:
        raise EvidenceError("No finished run was sampled, so there is no frontier.")
    if len({len(values) for p in points for values in (p.kl, p.reward, p.start_reward)}) != 1:
        raise EvidenceError("All points of a frontier must have the same sampling seeds.")
    home = family_of(baseline)[0]
    families = {family: [p for p in points if p.family == family] for family in dict.fromkeys(p.family for p in points)}
    reaches = {family: _reach(own) for family, own in families.items()}
    low, high = kl_range or (0.0, reaches.get(home, 0.0))
    areas, notices = (), ()
    if high > low:
        areas = _areas(families, reaches, home, (low, high), seed, resamples)
        short = [area for area in areas if not area.values]
        notices = tuple(
            f"{area.family} was measured up to KL {area.reaches:.3g} only, so it has no area over [{low:.3g}, "
            f"{high:.3g}]: add a smaller beta, or give a smaller `kl_range`."
            for area in short
        )
    elif kl_range is not None:
        raise EvidenceError(f"`kl_range` must be two numbers with 0 <= the first < the second, got {list(kl_range)}.")
    else:
        notices = (f"The baseline {home} has no point with a KL above 0, so that there is no range for areas.",)
    return Frontier(
        points=tuple(_summary([p for p in points if p.loss == loss]) for loss in dict.fromkeys(p.loss for p in points)),
        start_reward=float(np.mean([value for point in points for value in point.start_reward])),
        low=low,
        high=high,
        areas=areas,
        baseline=home,
        notices=notices,
    )


def _summary(points: Sequence[MeasuredPoint]) -> FrontierPoint:
    first = points[0]
    kl, reward = ([float(np.mean(getattr(point, name))) for point in points] for name in ("kl", "reward"))
    return FrontierPoint(
        loss=first.loss,
        family=first.family,
        beta=first.beta,
        seeds=len(points),
        kl=block_interval([kl]),
        reward=block_interval([reward]),
    )


def _reach(points: Sequence[MeasuredPoint]) -> float:
    """The KL up to which a family was measured in every training seed, whichever sampling seeds are drawn."""
    seeds = {point.seed for point in points}
    return min(max(min(point.kl) for point in points if point.seed == seed) for seed in seeds)


def _areas(
    families: dict[str, list[MeasuredPoint]],
    reaches: dict[str, float],
    home: str,
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
) -> tuple[FrontierArea, ...]:
    spanning = {family: own for family, own in families.items() if reaches[family] >= bounds[1]}
    samples = len(next(iter(families.values()))[0].kl)
    seeds = sorted({point.seed for own in families.values() for point in own})
    values = {
        family: {
            s: _height([p for p in own if p.seed == s], range(samples), bounds)
            for s in seeds
            if any(p.seed == s for p in own)
        }
        for family, own in spanning.items()
    }
    kept: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def drawn(family: str, among: tuple[int, ...]) -> np.ndarray:
        if (family, among) not in kept:
            kept[family, among] = _resampled(spanning[family], among, samples, bounds, seed, resamples)
        return kept[family, among]

    found = []
    for family in families:
        own, base = values.get(family, {}), values.get(home, {})
        # A seed that one of them lacks says nothing of their difference.
        shared = tuple(s for s in seeds if s in own and s in base)
        compared = family != home and bool(shared)
        found.append(
            FrontierArea(
                family=family,
                values=own,
                reaches=reaches[family],
                mean=float(np.mean(list(own.values()))) if own else None,
                interval=block_interval([list(own.values())]) if own else None,
                bootstrap=_range(drawn(family, tuple(own)), len(own)) if own else None,
                comparison=paired_t([base[s] for s in shared], [own[s] for s in shared]) if compared else None,
                comparison_bootstrap=_range(drawn(family, shared) - drawn(home, shared), len(shared))
                if compared
                else None,
            )
        )
    return tuple(found)


def _height(points: Sequence[MeasuredPoint], samples: Iterable[int], bounds: tuple[float, float]) -> float:
    """Mean height of one training seed's frontier, from some of its sampling seeds."""
    places = list(samples)
    curve = [(_mean(point.kl, places), _mean(point.reward, places)) for point in points]
    return mean_height(curve, _mean(points[0].start_reward, places), low=bounds[0], high=bounds[1])


def _mean(values: Sequence[float], places: Sequence[int]) -> float:
    return math.fsum(values[place] for place in places) / len(places)


def _resampled(
    points: Sequence[MeasuredPoint],
    seeds: Sequence[int],
    samples: int,
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
) -> np.ndarray:
    """Mean height of each replicate: training seeds drawn again, and within each draw its sampling seeds.

    Losses with the same training seeds have the same draws, so that their differences are paired.
    """
    generator = np.random.default_rng(seed)
    own = {s: [p for p in points if p.seed == s] for s in seeds}
    found = np.zeros(resamples)
    for replicate in range(resamples):
        drawn = [
            (seeds[place], generator.integers(samples, size=samples).tolist())
            for place in generator.integers(len(seeds), size=len(seeds))
        ]
        found[replicate] = np.mean([_height(own[s], places, bounds) for s, places in drawn])
    return found


def _range(replicates: np.ndarray, blocks: int) -> BootstrapRange:
    low, high = np.quantile(replicates, [0.025, 0.975])
    return BootstrapRange(low=float(low), high=float(high), blocks=blocks)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0]) if right[0] > left[0] else math.inf
