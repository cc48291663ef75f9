"""The length-controlled win rate against an oracle that shares no code, and its laws."""

import math

import numpy as np
import pytest
from scipy import optimize

from lossmith.errors import DataError
from lossmith.evaluation.judging import GamedRows, length_controlled


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def made(count: int, *, theta: float, phi: float, psi: float = 0.0, seed: int = 0):
    """Comparisons whose preferences follow the model exactly."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(200, 2500, count)
    baseline_lengths = draw.integers(200, 1800, count)
    difficulties = draw.normal(size=count)
    gaps = [int(b) - int(a) for a, b in zip(lengths, baseline_lengths, strict=True)]
    spread = math.sqrt(sum((gap - sum(gaps) / count) ** 2 for gap in gaps) / (count - 1))
    y = [
        sigmoid(theta + phi * math.tanh(gap / spread) + psi * difficulty)
        for gap, difficulty in zip(gaps, difficulties, strict=True)
    ]
    return y, lengths.tolist(), baseline_lengths.tolist(), difficulties.tolist(), gaps, spread


def test_it_finds_the_coefficients_that_made_the_preferences():
    y, lengths, baseline, difficulties, _, _ = made(400, theta=-0.4, phi=-1.5, psi=0.7)
    found = length_controlled(y, lengths, baseline, difficulties=difficulties)
    assert found.coefficients == pytest.approx({"model": -0.4, "length": -1.5, "difficulty": 0.7}, abs=0.02)
    expected = sum(sigmoid(-0.4 + 0.7 * one) for one in difficulties) / len(difficulties)
    assert found.win_rate.mean == pytest.approx(expected, abs=0.002)
    assert found.win_rate.low < found.win_rate.mean < found.win_rate.high
    assert found.win_rate.high - found.win_rate.low < 0.1
    # Longer answers were preferred: without them less is won.
    assert found.win_rate.mean < sum(y) / len(y) - 0.02


def test_it_agrees_with_another_optimiser_on_noisy_preferences():
    y, lengths, baseline, _, gaps, spread = made(300, theta=0.3, phi=-1.0, seed=3)
    noisy = (np.random.default_rng(4).random(300) < np.array(y)).astype(float)
    found = length_controlled(noisy, lengths, baseline)

    def loss(parameters):
        total = 0.0
        for target, gap in zip(noisy, gaps, strict=True):
            p = sigmoid(parameters[0] + parameters[1] * math.tanh(gap / spread))
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
        return found.penalty * total + abs(parameters[0]) + abs(parameters[1])

    best = optimize.minimize(loss, [0.1, -0.1], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).x
    assert [found.coefficients["model"], found.coefficients["length"]] == pytest.approx(list(best), abs=5e-3)


def test_gamed_rows_pin_down_the_effect_of_length():
    y, lengths, baseline, difficulties, _, _ = made(100, theta=0.2, phi=-0.5, psi=0.3)
    far = np.random.default_rng(1).normal(size=2000)
    gamed = GamedRows(
        preferences=np.array([sigmoid(-3.0 * math.tanh(one)) for one in far]),
        lengths=far,
        difficulties=np.zeros(2000),
    )
    alone = length_controlled(y, lengths, baseline, difficulties=difficulties)
    pinned = length_controlled(y, lengths, baseline, difficulties=difficulties, gamed=gamed)
    assert alone.coefficients["length"] == pytest.approx(-0.5, abs=0.05)
    assert pinned.coefficients["length"] < -1.2
    assert "without its gamed baseline rows" in alone.says
    assert "without its gamed" not in pinned.says


def test_only_with_difficulties_it_may_be_compared():
    y, lengths, baseline, difficulties, _, _ = made(40, theta=0.2, phi=-0.5)
    bare = length_controlled(y, lengths, baseline)
    assert not bare.comparable
    assert bare.says.startswith("Not comparable with the AlpacaEval 2 leaderboard: no instruction difficulties")
    assert set(bare.coefficients) == {"model", "length"}
    assert length_controlled(y, lengths, baseline, difficulties=difficulties).comparable


def test_equal_lengths_change_nothing():
    y = [0.1, 0.9, 0.8, 0.7] * 10
    found = length_controlled(y, [50] * 40, [50] * 40)
    assert found.win_rate.mean == pytest.approx(sum(y) / len(y), abs=0.01)


def test_an_even_model_is_even():
    _, lengths, baseline, _, _, _ = made(40, theta=0, phi=0)
    assert length_controlled([0.5] * 40, lengths, baseline).win_rate.mean == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_model_that_always_wins_or_loses_is_finite(value):
    _, lengths, baseline, _, _, _ = made(40, theta=0, phi=0)
    found = length_controlled([value] * 40, lengths, baseline)
    assert found.win_rate.mean == pytest.approx(value, abs=0.05)
    assert all(map(math.isfinite, found.coefficients.values()))


def test_bad_input():
    y, lengths, baseline, difficulties, _, _ = made(20, theta=0, phi=0)
    gamed = GamedRows(preferences=np.ones(1), lengths=np.ones(1), difficulties=np.ones(1))
    for arguments, settings, words in [
        ((y[:9], lengths[:9], baseline[:9]), {}, "at least 10 comparisons, got 9"),
        ((y, lengths, [one + 7 for one in lengths]), {}, "more than one amount"),
        (([2.0] * 20, lengths, baseline), {}, r"in \[0, 1\]"),
        ((y, lengths, baseline), {"difficulties": difficulties[:5]}, "one entry per comparison"),
        ((y, lengths, baseline), {"difficulties": [math.nan] * 20}, "finite"),
        ((y, lengths, baseline), {"gamed": gamed}, "`gamed` needs `difficulties`"),
    ]:
        with pytest.raises(DataError, match=words):
            length_controlled(*arguments, **settings)
