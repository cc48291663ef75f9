"""Classifiers that learnt nothing are told from those that did."""

import pytest

from lossmith.evidence import RunRecord
from lossmith.evidence.chance import chance_notices, majority

LABELS = [0, 1, 1, 2, 1]


def run(loss, predictions, seed=0, **changes):
    accuracy = sum(one == other for one, other in zip(predictions, LABELS, strict=True)) / len(LABELS)
    values = {"labels": LABELS, "label_names": ["bad", "good", "odd"], "metrics": {"accuracy": accuracy}}
    return RunRecord(
        **{"loss": loss, "seed": seed, "status": "finished", "config": {}, "predictions": predictions}
        | values
        | changes
    )


def test_the_most_frequent_class_of_the_test_set_is_the_reference():
    assert majority(run("focal", LABELS)) == ("good", pytest.approx(0.6))
    assert majority(run("focal", LABELS, label_names=[])) is None
    assert majority(run("focal", LABELS, labels=[])) is None


def test_a_loss_no_better_than_one_class_is_named_and_one_that_is_better_is_not():
    records = [
        run("cross_entropy", [1] * 5),
        run("cross_entropy", [1, 1, 1, 2, 0], seed=1),
        run("focal", [0, 1, 1, 1, 1]),
        run("poly", [2] * 5, status="failed"),
    ]
    (said,) = chance_notices(records, ("cross_entropy", "focal", "poly"))
    assert said.startswith(
        "Always saying 'good' has accuracy 60.0 here, and not better are: cross_entropy 60.0 (1 of 2 runs say one "
        "class for all texts). "
    )
    (other,) = chance_notices([run("focal", [0, 1, 0, 0, 1]), run("poly", [2, 2, 2, 0, 0])], ("focal", "poly"))
    assert "are: focal 60.0, poly 0.0. Such" in other


def test_records_without_classes_are_left_alone():
    assert chance_notices([run("focal", [0] * 5, label_names=[])], ("focal",)) == []
