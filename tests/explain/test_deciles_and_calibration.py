import math

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.explain import accuracy_by_decile, calibration, centroid_distances


def test_deciles_are_those_of_the_sorted_examples():
    rng = np.random.default_rng(0)
    values, right = rng.permutation(50) * 1.5, rng.integers(0, 2, 50)
    found = accuracy_by_decile({"focal": right}, values, quantity="length")
    order = sorted(range(50), key=lambda row: values[row])
    for part in found.parts:
        own = order[(part.decile - 1) * 5 : part.decile * 5]
        assert part.count == 5
        assert part.accuracy == pytest.approx(sum(int(right[row]) for row in own) / 5)
        assert (part.low, part.high) == (min(values[row] for row in own), max(values[row] for row in own))


def test_equal_values_stay_together_and_a_decile_may_be_empty():
    found = accuracy_by_decile(
        {"focal": np.array([1, 0, 1, 1, 0, 0])}, np.array([2, 2, 2, 2, 5, 9]), quantity="length", bins=3
    )
    assert [part.count for part in found.parts] == [4, 0, 2]
    assert [part.accuracy for part in found.parts][::2] == [0.75, 0.0]
    assert math.isnan(found.parts[1].accuracy)
    found.plot()


def test_each_model_can_be_sorted_by_its_own_quantity():
    right = np.array([1, 1, 0, 0])
    runs = {"a": {0: right, 1: right}, "b": {0: right, 1: right}}
    own = {"a": {0: np.array([1, 2, 3, 4]), 1: np.array([4, 3, 2, 1])}, "b": np.array([1, 3, 2, 4])}
    frame = accuracy_by_decile(runs, own, quantity="distance", bins=2).frame()
    found = {(row.model, row.seed): [] for row in frame.itertuples()}
    for row in frame.itertuples():
        found[row.model, row.seed].append(row.accuracy)
    assert found == {("a", 0): [1, 0], ("a", 1): [0, 1], ("b", 0): [0.5, 0.5], ("b", 1): [0.5, 0.5]}


def test_distances_are_to_the_mean():
    rows = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 6.0]])
    assert centroid_distances(rows) == pytest.approx([math.hypot(1, 2), math.hypot(1, 2), 4])


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 3, 200)
    sums: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        top = max(row)
        sums.setdefault(min(math.ceil(top * 5), 5), []).append((top, row.index(top) == label))
    expected = sum(abs(sum(c for c, _ in part) - sum(r for _, r in part)) for part in sums.values()) / 200
    found = calibration({"focal": {2: probabilities}}, {2: labels}, bins=5)
    assert found.errors["focal"][2] == pytest.approx(expected)
    frame = found.frame()
    assert frame["count"].sum() == 200
    assert frame["ece"].nunique() == 1
    assert len(found.plot().axes) == 1


def test_seeds_are_drawn_together():
    sure = np.array([[0.9, 0.1]] * 4)
    found = calibration({"a": {0: sure, 1: sure}}, {0: np.array([0, 0, 0, 0]), 1: np.array([0, 1, 1, 1])}, bins=10)
    (line,) = [line for line in found.plot().axes[0].lines if line.get_marker() == "o"]
    assert line.get_xydata().tolist() == [[pytest.approx(0.9), pytest.approx(5 / 8)]]


def test_mistakes_are_named():
    with pytest.raises(DataError, match="sum to 1 in every row"):
        calibration({"a": np.array([[2.0, -1.0]])}, np.array([0]))
    with pytest.raises(DataError, match="`bins` must be an int >= 2, got 1"):
        accuracy_by_decile({"a": np.array([1, 0])}, np.array([1, 2]), quantity="x", bins=1)
    with pytest.raises(DataError, match="`values` of 'a', seed 0, must hold finite numbers"):
        accuracy_by_decile({"a": np.array([1, 0])}, np.array([1, np.inf]), quantity="x")
    with pytest.raises(DataError, match="`embeddings` must be"):
        centroid_distances(np.zeros(3))
