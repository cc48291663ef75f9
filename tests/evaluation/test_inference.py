"""The ways to read a class off a classifier against scalar loops, and at their edges."""

import math
import random

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.evaluation import classification_metrics
from lossmith.evaluation.calibration import expected_calibration_error, softmax
from lossmith.evaluation.inference import (
    INFERENCE_METHODS,
    SupportSet,
    calibration_metrics,
    fit_temperatures,
    inference_metrics,
    inference_scores,
)

SCALE = 20.0


def drawn(seed, rows, width):
    rng = random.Random(seed)
    return [[rng.gauss(0.3, 1) for _ in range(width)] for _ in range(rows)]


EMBEDDINGS = drawn(1, 11, 5)
LOGITS = drawn(2, 11, 4)
KNOWN = [[10 ** (row % 3 - 1) * value for value in vector] for row, vector in enumerate(drawn(3, 9, 5))]
LABELS = [0, 2, 1, 0, 1, 2, 0, 1, 2]
"""No training text has class 3."""


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def mean_direction(label):
    total = [0.0] * 5
    for vector, own in zip(KNOWN, LABELS, strict=True):
        if own == label:
            length = math.sqrt(sum(value * value for value in vector))
            total = [so_far + value / length for so_far, value in zip(total, vector, strict=True)]
    return total


def probabilities(row):
    highest = max(row)
    weights = [math.exp(value - highest) for value in row]
    return [weight / sum(weights) for weight in weights]


def scores(**changes):
    given = {
        "logits": np.array(LOGITS, np.float32),
        "embeddings": np.array(EMBEDDINGS, np.float32),
        "proxy_scores": None,
        "support": SupportSet(embeddings=np.array(KNOWN, np.float32), labels=np.array(LABELS)),
        "mixture": 0.3,
    }
    return inference_scores(**given | changes)


def test_neighbours_are_the_nearest_text_of_each_class():
    expected = [
        [max((cosine(x, k) for k, own in zip(KNOWN, LABELS, strict=True) if own == c), default=-1.0) for c in range(4)]
        for x in EMBEDDINGS
    ]
    np.testing.assert_allclose(scores().neighbours, SCALE * np.array(expected), rtol=1e-5, atol=1e-5)
    nearest = [max(range(9), key=lambda row, x=x: cosine(x, KNOWN[row])) for x in EMBEDDINGS]
    assert scores().neighbours.argmax(axis=1).tolist() == [LABELS[row] for row in nearest]


def test_without_proxies_the_mean_direction_of_each_class_stands_in():
    expected = [[cosine(x, mean_direction(c)) for c in range(3)] + [-1.0] for x in EMBEDDINGS]
    np.testing.assert_allclose(scores().proxies, SCALE * np.array(expected), rtol=1e-5, atol=1e-5)


def test_own_proxies_are_taken_as_they_are():
    own = np.array(drawn(4, 11, 4))
    found = scores(proxy_scores=own)
    np.testing.assert_array_equal(found.proxies, own)
    np.testing.assert_array_equal(found.head, np.array(LOGITS, np.float32))
    np.testing.assert_array_equal(found.neighbours, scores().neighbours)


@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_mixture_is_of_probabilities(mixture):
    own = drawn(4, 11, 4)
    found = scores(proxy_scores=np.array(own), mixture=mixture)
    for row in range(11):
        head, proxies = probabilities(LOGITS[row]), probabilities(own[row])
        blend = [math.log(mixture * a + (1 - mixture) * b) for a, b in zip(head, proxies, strict=True)]
        np.testing.assert_allclose(found.mixture[row], blend, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.mixture).sum(axis=1), 1.0)


def test_the_ways_differ_on_these_inputs():
    own = np.array(drawn(4, 11, 4))
    answers = {tuple(scores(proxy_scores=own).of(method).argmax(axis=1)) for method in INFERENCE_METHODS}
    assert len(answers) == len(INFERENCE_METHODS)


def test_a_class_without_training_text_is_not_found_by_texts_but_by_proxies():
    found = scores()
    assert set(found.neighbours[:, 3]) == set(found.proxies[:, 3]) == {-SCALE}
    assert (found.proxies.argmax(axis=1) != 3).all()
    own = np.full((11, 4), -1.0)
    own[:, 3] = 50.0
    assert (scores(proxy_scores=own).proxies.argmax(axis=1) == 3).all()
    assert np.isfinite(found.mixture).all()


def test_length_of_a_vector_says_nothing():
    longer = np.array(EMBEDDINGS) * np.linspace(0.1, 30, 11)[:, None]
    for method in ("proxies", "neighbours"):
        np.testing.assert_allclose(scores(embeddings=longer).of(method), scores().of(method), rtol=1e-5, atol=1e-5)


def test_extremes_stay_finite():
    logits = np.array([[3e38, -3e38, 0, 0], [-3e38, 3e38, 0, 0], *LOGITS[2:]], np.float32)
    embeddings = np.array([[0.0] * 5, [3e38] * 5, *EMBEDDINGS[2:]], np.float32)
    own = np.full((11, 4), -1e30)
    own[:, 2] = 1e30
    for found in (scores(logits=logits, embeddings=embeddings), scores(logits=logits, proxy_scores=own)):
        for method in INFERENCE_METHODS:
            assert np.isfinite(found.of(method)).all(), method
        metrics = inference_metrics(found, np.array([1] * 11))
        assert all(math.isfinite(value) for value in metrics.values())
        assert all(0.01 <= value <= 100 for value in fit_temperatures(found, np.array([1] * 11)).values())


@pytest.mark.parametrize("mixture", [-0.1, 1.1, float("nan")])
def test_a_share_outside_the_unit_interval(mixture):
    with pytest.raises(DataError, match=r"`mixture` must be in \[0, 1\]"):
        scores(mixture=mixture)


def test_metrics_carry_the_name_of_their_way():
    found = scores(proxy_scores=np.array(drawn(4, 11, 4)))
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    metrics = inference_metrics(found, labels)
    assert len(metrics) == 16
    for method in INFERENCE_METHODS:
        prefix = "" if method == "head" else f"{method}_"
        for name, value in classification_metrics(found.of(method), labels).items():
            assert metrics[prefix + name] == value


def test_temperatures_belong_to_their_way():
    found = scores(proxy_scores=np.array(drawn(4, 11, 4)))
    # Each way is right in some rows, so that no temperature lies at its bound.
    labels = np.array([found.of(INFERENCE_METHODS[row % 4]).argmax(axis=1)[row] for row in range(11)])
    fitted = fit_temperatures(found, labels)
    assert list(fitted) == list(INFERENCE_METHODS)
    assert len({round(value, 2) for value in fitted.values()}) == len(INFERENCE_METHODS)
    assert all(0.02 < value < 50 for value in fitted.values())
    for method, temperature in fitted.items():
        metrics = [
            classification_metrics(found.of(method) / (temperature * factor), labels)["nll"]
            for factor in (0.98, 1.0, 1.02)
        ]
        assert metrics[1] <= min(metrics) + 1e-6


def test_calibration_metrics():
    logits, labels = np.array(LOGITS), np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    found = calibration_metrics(logits, labels, 2.5)
    assert found["ece"] == expected_calibration_error(softmax(logits), labels)
    assert found["calibrated_ece"] == expected_calibration_error(softmax(logits / 2.5), labels)
    assert found["calibrated_nll"] == classification_metrics(logits / 2.5, labels)["nll"]
    assert set(calibration_metrics(logits, labels, None)) == {"ece"}
