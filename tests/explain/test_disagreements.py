import math

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.explain import find_disagreements

LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1])
BASE = np.array([0, 1, 0, 1, 1, 0, 1, 0])


def coin(gained, lost):
    """Two-sided binomial test with a fair coin, the cells counted."""
    total = gained + lost
    return min(
        1.0, sum(math.comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(gained - lost)) / 2**total
    )


def test_gained_and_lost_examples_are_those_where_one_alone_is_right():
    other = np.array([0, 1, 0, 0, 0, 1, 0, 0])
    found = find_disagreements({"cross_entropy": BASE, "focal": other}, LABELS, baseline="cross_entropy")
    (one,) = found.losses
    assert one.gained == {0: (4, 5, 6)}
    assert one.lost == {0: (3,)}
    assert one.p_values[0] == pytest.approx(coin(3, 1))
    assert one.pooled is not None
    assert one.pooled.p_value == pytest.approx(coin(3, 1))
    frame = found.examples_frame()
    assert list(zip(frame["example"], frame["change"], strict=True)) == [
        (4, "gained"), (5, "gained"), (6, "gained"), (3, "lost"),
    ]  # fmt: skip


def test_steady_gains_come_first():
    runs = {
        "base": dict.fromkeys(range(3), BASE),
        "focal": {0: LABELS, 1: np.where(np.arange(8) == 6, LABELS, BASE), 2: BASE},
    }
    (one,) = find_disagreements(runs, LABELS, baseline="base").losses
    assert one.steady() == ((6, 2), (4, 1), (5, 1), (7, 1))
    assert one.steady(gained=False) == ()
    frame = find_disagreements(runs, LABELS, baseline="base").frame()
    assert frame["gained"].tolist() == [4, 1, 0]


def test_seeds_with_other_examples_are_tested_apart():
    runs = {"base": {0: BASE, 1: BASE}, "focal": {0: LABELS, 1: LABELS}}
    (one,) = find_disagreements(runs, {0: LABELS, 1: 1 - LABELS}, baseline="base").losses
    assert one.pooled is None
    assert (len(one.gained[0]), len(one.lost[0]), len(one.gained[1]), len(one.lost[1])) == (4, 0, 0, 4)


def test_only_shared_seeds_count_and_there_must_be_one():
    (one,) = find_disagreements({"base": {0: BASE}, "focal": {0: LABELS, 4: LABELS}}, LABELS, baseline="base").losses
    assert list(one.gained) == [0]
    with pytest.raises(DataError, match="'focal' shares no seed with the baseline 'base'"):
        find_disagreements({"base": {0: BASE}, "focal": {4: LABELS}}, LABELS, baseline="base")
    with pytest.raises(DataError, match="`baseline` must be one of focal, got 'base'"):
        find_disagreements({"focal": LABELS}, LABELS, baseline="base")


def test_the_plot_has_a_bar_to_each_side_per_seed():
    found = find_disagreements({"base": {0: BASE, 1: BASE}, "focal": {0: LABELS, 1: LABELS}}, LABELS, baseline="base")
    widths = [patch.get_width() for patch in found.plot().axes[0].patches]
    assert widths == [4, 0, 4, 0]
    assert find_disagreements({"base": BASE}, LABELS, baseline="base").plot() is not None
