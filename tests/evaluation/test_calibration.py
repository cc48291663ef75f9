"""Temperature, reliability and calibration error against counting by hand and a search over a grid."""

import math
import random

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.evaluation.calibration import expected_calibration_error, fit_temperature, reliability, softmax


def drawn(seed, examples=60, classes=4, scale=3.0, right=0.6):
    """Scores whose highest is right in about the share `right` of the rows."""
    rng = random.Random(seed)
    scores = [[rng.gauss(0, scale) for _ in range(classes)] for _ in range(examples)]
    labels = [
        max(range(classes), key=row.__getitem__) if rng.random() < right else rng.randrange(classes) for row in scores
    ]
    return scores, labels


def nll_at(temperature, scores, labels):
    """One row at a time, in the log domain."""
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        scaled = [score / temperature for score in row]
        highest = max(scaled)
        total += highest + math.log(sum(math.exp(value - highest) for value in scaled)) - scaled[label]
    return total / len(labels)


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0, 20.0])
def test_temperature_is_the_best_of_a_grid(scale):
    scores, labels = drawn(1, scale=scale)
    found = fit_temperature(np.array(scores), np.array(labels))
    grid = [0.01 * 10 ** (step / 500) for step in range(2001)]  # 0.01 to 100 in steps of 0.5%
    best = min(grid, key=lambda temperature: nll_at(temperature, scores, labels))
    assert 0.02 < best < 50, "the best must lie inside"
    assert found == pytest.approx(best, rel=0.005)
    assert nll_at(found, scores, labels) <= nll_at(best, scores, labels) + 1e-9


def test_temperature_scales_with_the_scores():
    scores, labels = drawn(2)
    once, thrice = (fit_temperature(factor * np.array(scores), np.array(labels)) for factor in (1.0, 3.0))
    assert thrice == pytest.approx(3 * once, rel=1e-3)
    shifted = np.array(scores) + np.arange(len(scores))[:, None]
    assert fit_temperature(shifted, np.array(labels)) == pytest.approx(once, rel=1e-3)


def test_temperature_at_the_ends():
    sure = np.array([[5.0, 0.0], [0.0, 9.0], [300.0, 0.0]])
    assert fit_temperature(sure, np.array([0, 1, 0])) == pytest.approx(0.01, rel=1e-3)
    # Every surest class is wrong: the flatter, the better.
    assert fit_temperature(sure, np.array([1, 0, 1])) == pytest.approx(100.0, rel=1e-3)


def test_temperature_of_extreme_scores_is_finite():
    scores = np.array([[3e38, -3e38], [-3e38, 3e38], [0.0, 1.0]], np.float32)
    for labels in ([0, 1, 1], [1, 0, 0], [0, 0, 1]):
        assert 0.01 <= fit_temperature(scores, np.array(labels)) <= 100


def test_temperature_needs_a_row():
    with pytest.raises(DataError, match="at least one example"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_softmax_one_row_at_a_time(temperature):
    scores, _ = drawn(3, examples=9)
    found = softmax(np.array(scores, np.float32), temperature)
    assert found.dtype == np.float64
    for row, expected in zip(found, scores, strict=True):
        weights = [math.exp(float(np.float32(score)) / temperature) for score in expected]
        np.testing.assert_allclose(row, [weight / sum(weights) for weight in weights], rtol=1e-12)


def test_softmax_of_extreme_scores():
    found = softmax(np.array([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38]], np.float32), 0.01)
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_reliability_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.25, 0.75], [0.26, 0.74], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1, 1])
    bins = reliability(probabilities, labels, bins=4)
    assert [(part.low, part.high) for part in bins] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    # Upper ends belong to their bin: 0.5 to the second, 0.75 to the third.
    assert [part.count for part in bins] == [0, 1, 3, 1]
    assert math.isnan(bins[0].confidence)
    assert math.isnan(bins[0].accuracy)
    assert bins[1].accuracy == 1.0  # of a tie the first class is predicted
    assert bins[2].confidence == pytest.approx((0.6 + 0.75 + 0.74) / 3)
    assert bins[2].accuracy == pytest.approx(2 / 3)
    assert (bins[3].confidence, bins[3].accuracy) == (1.0, 1.0)


def test_expected_calibration_error_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.25, 0.75], [0.26, 0.74], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1, 1])
    expected = (1 * abs(0.5 - 1) + 3 * abs((0.6 + 0.75 + 0.74) / 3 - 2 / 3) + 1 * 0) / 5
    assert expected_calibration_error(probabilities, labels, bins=4) == pytest.approx(expected, rel=1e-12)


def counted_error(probabilities, labels, bins):
    """Bins found by comparing with their ends, one row at a time."""
    total = 0.0
    for place in range(bins):
        inside = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            if place / bins < confidence <= (place + 1) / bins:
                inside.append((confidence, row.index(confidence) == label))
        if inside:
            confidence = sum(part[0] for part in inside) / len(inside)
            accuracy = sum(part[1] for part in inside) / len(inside)
            total += len(inside) / len(labels) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_expected_calibration_error_agrees_with_counting(bins):
    scores, labels = drawn(5, examples=83, scale=1.0)
    probabilities = softmax(np.array(scores))
    expected = counted_error(probabilities.tolist(), labels, bins)
    assert expected > 0.01
    assert expected_calibration_error(probabilities, np.array(labels), bins) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_is_fifteen_bins_by_default():
    scores, labels = drawn(6, examples=83, scale=1.0)
    probabilities = softmax(np.array(scores))
    found = expected_calibration_error(probabilities, np.array(labels))
    assert found == expected_calibration_error(probabilities, np.array(labels), 15)
    assert found != expected_calibration_error(probabilities, np.array(labels), 14)
