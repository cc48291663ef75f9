"""Metrics of a test set against a scalar oracle written from the definitions, and at the edges."""

import math
import random

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.evaluation import classification_metrics, confusion_matrix, predictions, probability_metrics


def oracle(logits, labels, num_classes):
    """Accuracy, macro F1, weighted F1 and NLL by counting one example at a time."""
    predicted = [max(range(num_classes), key=lambda c: (row[c], -c)) for row in logits]
    f1, support = {}, {}
    for c in range(num_classes):
        hits = sum(p == c == y for p, y in zip(predicted, labels, strict=True))
        asked, said = sum(y == c for y in labels), sum(p == c for p in predicted)
        if asked + said:
            f1[c], support[c] = 2 * hits / (asked + said), asked
    nlls = [math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in zip(logits, labels, strict=True)]
    return {
        "accuracy": sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels),
        "macro_f1": sum(f1.values()) / len(f1),
        "weighted_f1": sum(f1[c] * support[c] for c in f1) / len(labels),
        "nll": sum(nlls) / len(nlls),
    }


def drawn(seed, examples, classes, dtype=np.float64):
    rng = random.Random(seed)
    logits = [[rng.gauss(0, 2) for _ in range(classes)] for _ in range(examples)]
    labels = [min(rng.randrange(classes), rng.randrange(classes)) for _ in range(examples)]
    return np.array(logits, dtype), np.array(labels)


@pytest.mark.parametrize(("seed", "examples", "classes"), [(0, 37, 5), (1, 19, 2), (2, 3, 7), (3, 1, 3), (4, 200, 77)])
def test_metrics_agree_with_counting(seed, examples, classes):
    logits, labels = drawn(seed, examples, classes)
    metrics = classification_metrics(logits, labels)
    assert metrics == pytest.approx(oracle(logits.tolist(), labels.tolist(), classes), rel=1e-12)
    assert all(type(value) is float for value in metrics.values())


def test_the_three_ways_to_give_scores_agree():
    logits, labels = drawn(5, 41, 6)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = pytest.approx(classification_metrics(logits, labels))
    assert classification_metrics(np.log(probabilities), labels) == expected
    assert classification_metrics(logits + 1000.0, labels) == expected
    assert probability_metrics(probabilities, labels) == expected


def test_single_precision_logits_lose_nothing_more():
    logits, labels = drawn(6, 300, 4, np.float32)
    assert classification_metrics(logits, labels) == classification_metrics(logits.astype(np.float64), labels)


def test_nll_is_stable_at_the_ends():
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], dtype=np.float32)
    assert classification_metrics(logits, np.array([0, 1]))["nll"] == 0.0
    assert classification_metrics(logits, np.array([1, 0]))["nll"] == 1e4
    assert classification_metrics(np.zeros((4, 8)), np.array([0, 1, 2, 3]))["nll"] == pytest.approx(math.log(8))


def test_a_probability_of_zero_costs_infinitely_much_only_where_it_is_true():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert probability_metrics(probabilities, np.array([0, 1]))["nll"] == pytest.approx(math.log(2) / 2)
    assert probability_metrics(probabilities, np.array([1, 1]))["nll"] == math.inf


def test_a_class_never_predicted_has_f1_zero():
    metrics = classification_metrics(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    assert metrics["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert metrics["weighted_f1"] == pytest.approx(6 / 7 * 3 / 4)


def test_predictions_break_ties_by_the_lowest_id():
    found = predictions(np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0], [-1.0, -3.0, 5.0]], dtype=np.float16))
    assert found.tolist() == [1, 0, 2]
    assert found.dtype == np.int64


def test_confusion_counts_true_by_predicted():
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    matrix = confusion_matrix(labels, predicted, num_classes=4)
    assert matrix.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "measure", [lambda z: predictions(z), lambda z: classification_metrics(z, np.array([0, 1, 0]))]
)
def test_scores_that_are_not_numbers_are_refused(bad, measure):
    logits = np.zeros((3, 2))
    logits[1, 0] = bad
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 3 rows, first in row 1\. Did training diverge\?"):
        measure(logits)


def test_a_row_of_minus_infinity_alone_is_refused():
    with pytest.raises(DataError, match="first in row 0"):
        predictions(np.array([[-math.inf, -math.inf], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros(3), np.array([0]), r"must be \[examples, classes\] with at least one of each, got shape \(3,\)"),
        (np.zeros((0, 2)), np.array([], dtype=int), r"got shape \(0, 2\)"),
        (np.zeros((2, 2)), np.array([0]), r"must have one id per example, \(2,\), got shape \(1,\)"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), r"`labels` must be integers \(class ids\), got float64"),
        (np.zeros((2, 2)), np.array([0, 2]), "`labels` must be class ids from 0 to 1, got 0 to 2"),
        (np.zeros((2, 2)), np.array([-1, 1]), "`labels` must be class ids from 0 to 1, got -1 to 1"),
    ],
)
def test_shapes_and_ids_that_do_not_fit_are_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        classification_metrics(logits, labels)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([[2.0, -1.0]], r"must be in \[0, 1\], got -1.0 to 2.0\. Are these logits\?"),
        ([[0.5, 0.5], [0.5, 0.4]], "must sum to 1 in every row, got 0.9 in row 1"),
        ([[math.nan, 0.5]], "`probabilities` must be finite"),
    ],
)
def test_probabilities_are_checked(probabilities, message):
    with pytest.raises(DataError, match=message):
        probability_metrics(np.array(probabilities), np.zeros(len(probabilities), dtype=int))


def test_confusion_refuses_ids_out_of_range_and_lengths_that_differ():
    with pytest.raises(DataError, match="`predictions` must be class ids from 0 to 1, got 0 to 2"):
        confusion_matrix(np.array([0, 1]), np.array([0, 2]), num_classes=2)
    with pytest.raises(DataError, match=r"`predictions` must have one id per example, \(2,\), got shape \(3,\)"):
        confusion_matrix(np.array([0, 1]), np.array([0, 1, 1]), num_classes=2)
