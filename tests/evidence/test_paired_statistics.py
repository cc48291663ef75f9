import math
import statistics

import numpy as np
import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import (
    bootstrap_blocks_and_examples,
    holm,
    noise_floor,
    paired_t,
    sign_flip_test,
    smallest_sign_flip_p,
)

BEFORE = [0.581, 0.602, 0.547, 0.590, 0.571]
AFTER = [0.640, 0.633, 0.629, 0.615, 0.652]


def t_tail(t: float, dof: int) -> float:
    """P(T > t) by Simpson's rule, with T = sqrt(dof) tan(angle): shares nothing with scipy."""
    constant = math.gamma((dof + 1) / 2) / (math.sqrt(math.pi) * math.gamma(dof / 2))
    start, steps = math.atan(t / math.sqrt(dof)), 2000
    width = (math.pi / 2 - start) / steps
    total = 0.0
    for k in range(steps + 1):
        weight = 1 if k in (0, steps) else 4 if k % 2 else 2
        total += weight * constant * math.cos(start + k * width) ** (dof - 1)
    return total * width / 3


def t_quantile(tail: float, dof: int) -> float:
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, dof) > tail else (low, middle)
    return low


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_interval_and_p_equal_a_scalar_oracle(blocks, confidence):
    before, after = BEFORE[:blocks], AFTER[:blocks]
    differences = [a - b for a, b in zip(after, before, strict=True)]
    mean = math.fsum(differences) / blocks
    variance = math.fsum((d - mean) ** 2 for d in differences) / (blocks - 1)
    error = math.sqrt(variance / blocks)
    half_width = t_quantile((1 - confidence) / 2, blocks - 1) * error

    result = paired_t(before, after, confidence=confidence)

    assert result.difference == pytest.approx(mean, rel=1e-9)
    assert result.low == pytest.approx(mean - half_width, rel=1e-5)
    assert result.high == pytest.approx(mean + half_width, rel=1e-5)
    assert result.p_value == pytest.approx(2 * t_tail(abs(mean) / error, blocks - 1), rel=1e-4)


def test_published_t_quantile_checks_the_oracle():
    assert t_quantile(0.025, 4) == pytest.approx(2.776445, abs=1e-5)


def test_wins_follow_the_direction_of_the_metric():
    before, after = [0.5, 0.5, 0.5, 0.5], [0.6, 0.7, 0.5, 0.4]
    up, down = paired_t(before, after), paired_t(before, after, higher_is_better=False)
    assert (up.wins, up.losses, up.ties, up.blocks) == (2, 1, 1, 4)
    assert (down.wins, down.losses, down.ties) == (1, 2, 1)
    assert up.difference == down.difference > 0


def test_swapping_the_sides_mirrors_the_interval():
    one, other = paired_t(BEFORE, AFTER), paired_t(AFTER, BEFORE)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)


def test_no_difference_at_all_is_zero_with_certainty():
    result = paired_t(BEFORE, BEFORE)
    assert (result.difference, result.low, result.high, result.p_value, result.ties) == (0, 0, 0, 1, 5)
    assert result.sign_flip_p == 1


@pytest.mark.parametrize(("blocks", "expected"), [(3, 0.25), (5, 0.0625), (10, 2 / 1024)])
def test_equal_differences_take_their_p_from_the_sign_flips(blocks, expected):
    before = [0.07 + 0.09 * k for k in range(blocks)]
    result = paired_t(before, [value + 0.02 for value in before])  # equal but for the last bits
    assert result.low == result.high == pytest.approx(0.02)
    assert result.p_value == result.sign_flip_p == pytest.approx(expected)


def test_a_tiny_spread_is_still_a_spread():
    before = [0.5, 0.5, 0.5]
    result = paired_t(before, [0.6, 0.6 + 1e-9, 0.6 - 1e-9])
    assert result.low < 0.1 < result.high
    assert result.p_value < 1e-10


def test_one_block_has_a_difference_and_nothing_else():
    result = paired_t([0.5], [0.6])
    assert result.difference == pytest.approx(0.1)
    assert all(math.isnan(value) for value in (result.low, result.high, result.p_value))
    assert (result.wins, result.blocks, result.sign_flip_p, result.sign_flip_smallest_p) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([0.5, 0.6], [0.5], r"Lengths must be equal, got `baseline` 2, `candidate` 1"),
        ([0.5, math.nan], [0.5, 0.6], r"`baseline` must hold one finite number per block"),
        ([0.5, 0.6], [0.5, math.inf], r"`candidate` must hold one finite number per block"),
        ([], [], r"`baseline` must hold one finite number per block"),
    ],
)
def test_wrong_values_are_one_sentence(before, after, message):
    with pytest.raises(EvidenceError, match=message):
        paired_t(before, after)


def test_confidence_is_a_fraction():
    with pytest.raises(EvidenceError, match="`confidence` must be between 0 and 1, got 95"):
        paired_t(BEFORE, AFTER, confidence=95.0)


def test_sign_flip_equals_counting_all_sign_patterns():
    differences = [0.03, -0.01, 0.04, 0.02]
    observed = abs(sum(differences))
    as_extreme = 0
    for pattern in range(2**4):
        flipped = sum(d if pattern >> k & 1 else -d for k, d in enumerate(differences))
        as_extreme += abs(flipped) >= observed - 1e-12
    assert sign_flip_test(differences) == pytest.approx(as_extreme / 16)


def test_sign_flip_at_five_seeds_is_never_below_one_in_sixteen():
    generator = np.random.default_rng(1)
    smallest = min(sign_flip_test(generator.normal(5, 1, size=5)) for _ in range(50))
    assert smallest == smallest_sign_flip_p(5) == 0.0625


def test_sign_flip_with_many_blocks_is_seeded_and_bounded():
    differences = np.random.default_rng(2).normal(0.1, 1, size=20)
    assert sign_flip_test(differences, seed=3) == sign_flip_test(differences, seed=3)
    assert sign_flip_test(np.ones(20)) == smallest_sign_flip_p(20) == 2e-4


def test_holm_equals_values_worked_by_hand():
    # Ascending: .005 x 4, .010 x 3, .030 x 2, .600 x 1.
    assert holm([0.03, 0.005, 0.6, 0.01]) == pytest.approx([0.06, 0.02, 0.6, 0.03])
    # .04 x 1 = .04 would fall below .03 x 2 = .06: made monotone. .5 x 3 is capped.
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.5, 0.6, 0.7]) == [1, 1, 1]


def test_holm_does_not_count_a_loss_without_a_test():
    adjusted = holm([math.nan, 0.03, 0.02])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(EvidenceError, match="`p_values` must be a list of numbers between 0 and 1"):
        holm([0.5, 1.5])


def test_noise_floor_equals_a_scalar_computation():
    values = [0.58, 0.61, 0.55, 0.60]
    floor = noise_floor(values)
    gaps = [abs(values[i] - values[j]) for i in range(4) for j in range(i)]
    assert floor.sd == pytest.approx(statistics.stdev(values))
    assert floor.mean_difference == pytest.approx(statistics.fmean(gaps))
    assert floor.max_difference == pytest.approx(0.06)
    assert floor.half_width == pytest.approx(t_quantile(0.025, 3) * statistics.stdev(values) * math.sqrt(0.5), rel=1e-5)


def test_noise_floor_of_one_block_is_unknown():
    floor = noise_floor([0.5])
    assert floor.blocks == 1
    assert math.isnan(floor.sd)
    assert math.isnan(floor.half_width)


def correct(generator, accuracy, blocks, examples):
    return generator.random((blocks, examples)) < accuracy


def test_bootstrap_has_the_spread_that_theory_gives():
    """Independent blocks and examples: the variance of the mean is that of the cells plus those of both margins."""
    generator = np.random.default_rng(0)
    blocks, examples = 40, 400
    effects = generator.normal(0.1, 0.1, size=(blocks, 1)) + generator.normal(0, 0.3, size=(1, examples))
    result = bootstrap_blocks_and_examples(np.zeros_like(effects), effects, seed=0, resamples=4000)
    expected = math.sqrt(effects.mean(axis=1).var() / blocks + effects.mean(axis=0).var() / examples)
    assert (result.high - result.low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)
    assert (result.high + result.low) / 2 == pytest.approx(effects.mean(), abs=expected / 4)


def test_bootstrap_draws_the_same_examples_for_both_losses():
    """Where a candidate repeats the baseline and gains in every cell alike, no resampling can change the gain."""
    baseline = np.random.default_rng(1).random((5, 53))
    result = bootstrap_blocks_and_examples(baseline, baseline + 0.25, seed=0, resamples=200)
    assert (result.low, result.high) == pytest.approx((0.25, 0.25))


def test_bootstrap_is_signed_and_seeded():
    generator = np.random.default_rng(2)
    weak, strong = correct(generator, 0.5, 5, 1066), correct(generator, 0.7, 5, 1066)
    first, second = (bootstrap_blocks_and_examples(weak, strong, seed=7) for _ in range(2))
    assert first == second
    assert 0.1 < first.low < 0.2 < first.high < 0.3
    assert bootstrap_blocks_and_examples(strong, weak, seed=7).high < 0


def test_bootstrap_in_small_portions_is_still_the_whole(monkeypatch):
    monkeypatch.setattr("lossmith.evidence.bootstrap._BOOTSTRAP_CELLS", 530)
    generator = np.random.default_rng(3)
    weak, strong = correct(generator, 0.5, 5, 53), correct(generator, 0.7, 5, 53)
    result = bootstrap_blocks_and_examples(weak, strong, seed=0, resamples=1005)
    assert result.low < (strong.mean() - weak.mean()) < result.high


@pytest.mark.parametrize(
    ("blocks", "label"),
    [
        (1, "bootstrap range (1 block: not a 95% interval)"),
        (5, "bootstrap range (5 blocks: not a 95% interval)"),
        (9, "bootstrap range (9 blocks: not a 95% interval)"),
        (10, "95% bootstrap interval"),
    ],
)
def test_bootstrap_is_called_an_interval_from_ten_blocks_on(blocks, label):
    zeros = np.zeros((blocks, 7))
    assert bootstrap_blocks_and_examples(zeros, zeros, seed=0, resamples=10).label == label


@pytest.mark.parametrize("other", [(5, 8), (5,), (4, 7)])
def test_bootstrap_refuses_shapes_that_would_broadcast(other):
    with pytest.raises(EvidenceError, match="Shapes must be equal and hold blocks x examples"):
        bootstrap_blocks_and_examples(np.zeros((5, 7)), np.zeros(other), seed=0)
