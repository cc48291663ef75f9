"""Frontiers and areas against hand-made curves and a numerical envelope."""

import itertools
import math

import numpy as np
import pytest

from lossmith.errors import EvidenceError
from lossmith.evaluation.frontier import (
    MeasuredPoint,
    family_of,
    frontier,
    frontier_height,
    mean_height,
    measured_points,
    upper_frontier,
)
from lossmith.evidence import RunRecord


def brute_height(curve, start, budget):
    """The most that two policies by the flip of a coin reach within a budget of KL."""
    points = [(0.0, start), *curve]
    best = max(reward for kl, reward in points if kl <= budget)
    for (kl, reward), (other_kl, other) in itertools.permutations(points, 2):
        if kl <= budget < other_kl:
            best = max(best, reward + (other - reward) * (budget - kl) / (other_kl - kl))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_frontier_is_what_coin_flips_between_policies_reach(seed):
    draw = np.random.default_rng(seed)
    curve = [
        (float(kl), float(reward)) for kl, reward in zip(draw.uniform(0, 9, 6), draw.uniform(0, 1, 6), strict=True)
    ]
    start = float(draw.uniform(0, 0.5))
    vertices = upper_frontier(curve, start)
    for budget in np.linspace(0, 9, 37):
        assert frontier_height(vertices, budget) == pytest.approx(brute_height(curve, start, budget), abs=1e-12)
    reach = max(kl for kl, _ in curve)
    grid = np.linspace(0.2, reach, 20_001)
    heights = [frontier_height(vertices, budget) for budget in grid]
    assert mean_height(curve, start, low=0.2, high=reach) == pytest.approx(np.mean(heights), abs=1e-4)


def test_known_areas():
    # A line from .4 to .8 over [0, 2], level until 4: (.6 + .8) / 2.
    assert mean_height([(2.0, 0.8), (9.0, 0.7)], 0.4, low=0.0, high=4.0) == pytest.approx(0.7)
    # Below the start nothing is gained, and nothing lost: the start itself is within every budget.
    assert mean_height([(5.0, 0.1)], 0.4, low=0.0, high=5.0) == pytest.approx(0.4)
    # Equal KL: the better one counts, also at 0.
    assert upper_frontier([(2.0, 0.5), (2.0, 0.6), (0.0, 0.2)], 0.4) == [(0.0, 0.4), (2.0, 0.6)]
    assert upper_frontier([], 0.4) == [(0.0, 0.4)]
    with pytest.raises(EvidenceError, match="up to KL 2 and not to 3"):
        mean_height([(2.0, 0.5)], 0.4, low=0.0, high=3.0)
    with pytest.raises(EvidenceError, match=r"got \[3.0, 3.0\]"):
        mean_height([(2.0, 0.5)], 0.4, low=3.0, high=3.0)


def point(loss, seed, kl, reward, spread=0.1):
    family, beta = family_of(loss)
    return MeasuredPoint(
        loss=loss, family=family, beta=beta, seed=seed, kl=(kl - spread, kl + spread),
        reward=(reward - spread / 10, reward + spread / 10), start_reward=(0.4, 0.4),
    )  # fmt: skip


def study(seeds=4, gain=0.05):
    """dpo and ipo over two betas; ipo is better by `gain` in every seed, pfl is shy."""
    found = []
    for seed in range(seeds):
        lift = 0.02 * seed
        found += [
            point("dpo(beta=0.05)", seed, 10.0 + seed, 0.8 + lift), point("dpo", seed, 4.0, 0.6 + lift),
            point("ipo(beta=0.05)", seed, 12.0, 0.8 + gain + lift), point("ipo", seed, 4.0, 0.6 + gain + lift),
            point("pfl", seed, 0.5, 0.45),
        ]  # fmt: skip
    return found


def test_points_average_sampling_seeds_and_have_t_intervals_over_training_seeds():
    found = frontier(study(), baseline="dpo")
    first = found.points[0]
    assert (first.loss, first.family, first.beta, first.seeds) == ("dpo(beta=0.05)", "dpo", 0.05, 4)
    assert first.kl.difference == pytest.approx(11.5)
    # t with 3 degrees of freedom over 10, 11, 12, 13; sampling seeds do not count as repetitions.
    assert first.kl.high - first.kl.difference == pytest.approx(3.18245 * math.sqrt(5 / 3) / 2, rel=1e-4)
    assert first.reward.difference == pytest.approx(0.83)
    assert found.start_reward == pytest.approx(0.4)


def test_areas_are_paired_by_seed_and_shy_curves_have_none():
    found = frontier(study(), baseline="dpo(beta=0.05)", resamples=200)
    assert (found.low, found.high, found.baseline) == (0.0, pytest.approx(9.9), "dpo")
    dpo, ipo, pfl = found.areas
    for seed in range(4):
        curve = [(10.0 + seed, 0.8 + 0.02 * seed), (4.0, 0.6 + 0.02 * seed)]
        assert dpo.values[seed] == pytest.approx(mean_height(curve, 0.4, low=0.0, high=9.9))
    assert ipo.comparison is not None
    assert ipo.comparison.difference == pytest.approx(ipo.mean - dpo.mean)
    # What seeds share drops out of the paired difference, and the bootstrap shares its draws.
    width = ipo.comparison.high - ipo.comparison.low
    assert width < 0.5 * (ipo.interval.high - ipo.interval.low)
    assert ipo.comparison_bootstrap.low > 0
    assert ipo.comparison_bootstrap.high - ipo.comparison_bootstrap.low < 0.5 * (ipo.bootstrap.high - ipo.bootstrap.low)
    assert ipo.bootstrap.low < ipo.mean < ipo.bootstrap.high
    assert "not a 95% interval" in ipo.bootstrap.label
    assert (pfl.values, pfl.mean, pfl.comparison) == ({}, None, None)
    assert found.notices == (
        "pfl was measured up to KL 0.4 only, so it has no area over [0, 9.9]: add a smaller beta, or give a smaller "
        "`kl_range`.",
    )
    everyone = frontier(study(), baseline="dpo", kl_range=(0.0, 0.4), resamples=50)
    assert all(area.values for area in everyone.areas)
    assert everyone.notices == ()


def test_the_bootstrap_of_a_difference_draws_among_the_seeds_that_both_losses_have():
    rewards = {0: 0.9, 1: 0.5, 2: 0.6, 3: 0.55}
    points = [point("dpo", seed, 4.0, reward) for seed, reward in rewards.items()]
    points += [point("ipo", seed, 4.0, reward) for seed, reward in rewards.items() if seed]
    found = frontier(points, baseline="dpo", resamples=200)
    dpo, ipo = found.areas
    assert ipo.comparison.difference == pytest.approx(0.0, abs=1e-12)
    assert (ipo.comparison_bootstrap.low, ipo.comparison_bootstrap.high) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert (ipo.comparison_bootstrap.blocks, ipo.bootstrap.blocks, dpo.bootstrap.blocks) == (3, 3, 4)
    # What a loss reaches is drawn from its own seeds alone: only dpo has the high one.
    assert ipo.bootstrap.high <= max(ipo.values.values()) + 0.01 < dpo.values[0] < dpo.bootstrap.high + 0.05


def test_a_range_beyond_all_curves_and_broken_input():
    far = frontier(study(), baseline="dpo", kl_range=(0.0, 100.0), resamples=10)
    assert [area.mean for area in far.areas] == [None] * 3
    assert len(far.notices) == 3
    with pytest.raises(EvidenceError, match="No finished run"):
        frontier([], baseline="dpo")
    with pytest.raises(EvidenceError, match="same sampling seeds"):
        frontier([*study(), MeasuredPoint(**{**vars_of(study()[0]), "kl": (1.0,)})], baseline="dpo")
    with pytest.raises(EvidenceError, match="`kl_range`"):
        frontier(study(), baseline="dpo", kl_range=(2.0, 2.0))
    still = frontier([point("dpo", 0, 0.0, 0.4, spread=0.0)], baseline="dpo")
    assert still.areas == ()
    assert "no range" in still.notices[0]


def vars_of(found: MeasuredPoint) -> dict:
    return {name: getattr(found, name) for name in MeasuredPoint.__dataclass_fields__}


def test_points_come_from_finished_records_that_were_sampled():
    sampling = {"seeds": [0, 1], "kl": [1.0, 2.0], "reward": [0.5, 0.6], "start_reward": [0.4, 0.4]}
    whole = RunRecord(loss="lrml", seed=3, status="finished", config={"sampling": sampling})
    failed = RunRecord(loss="lrml", seed=4, status="failed", config={"sampling": sampling})
    other = RunRecord(loss="dpo", seed=3, status="finished", config={})
    (found,) = measured_points([whole, failed, other])
    assert (found.loss, found.beta, found.seed, found.kl) == ("lrml", 0.05, 3, (1.0, 2.0))
