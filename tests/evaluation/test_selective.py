"""Accuracy of a classifier that may abstain, by hand."""

import pytest

from lossmith.errors import DataError
from lossmith.evaluation.selective import selective_accuracy

GUESSES = ["a", "b", "a", "b", "a"]
WITHHELD = [False, True, False, False, True]


def test_shares_by_hand():
    found = selective_accuracy(GUESSES, WITHHELD, ["a", "b", "b", "b", "b"], ["a", "b"])
    assert found is not None
    assert (found.labelled, found.answered, found.unknown) == (5, 3, ())
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.coverage == pytest.approx(3 / 5)
    assert found.answered_accuracy == pytest.approx(2 / 3)


def test_rows_without_a_label_do_not_count():
    found = selective_accuracy(GUESSES, WITHHELD, [None, "b", "b", None, None], ["a", "b"])
    assert found is not None
    assert (found.labelled, found.answered) == (2, 1)
    assert (found.accuracy, found.coverage, found.answered_accuracy) == (0.5, 0.5, 0.0)
    assert selective_accuracy(GUESSES, WITHHELD, [None] * 5, ["a", "b"]) is None


def test_labels_that_the_model_lacks_count_as_wrong():
    found = selective_accuracy(["a", "a"], [False, False], ["z", "a"], ["a", "b"])
    assert found is not None
    assert (found.unknown, found.accuracy) == (("z",), 0.5)


def test_nothing_answered():
    found = selective_accuracy(["a"], [True], ["a"], ["a", "b"])
    assert found is not None
    assert (found.accuracy, found.coverage, found.answered_accuracy) == (1.0, 0.0, None)


def test_lengths_differ():
    with pytest.raises(DataError, match="of one length, got 5, 5 and 1"):
        selective_accuracy(GUESSES, WITHHELD, ["a"], ["a", "b"])
