"""Metrics of further ways of inference: how they are judged, and their scores of single examples."""

import pytest

from lossmith.evidence import METRICS, format_difference, metric_style, split_metric, summarize
from lossmith.report.wording import metric_name
from lossmith.studies.completion_config import DECIDING


@pytest.mark.parametrize("method", ["proxies", "mixture", "neighbours"])
def test_every_method_has_the_four_metrics_with_their_direction(method):
    for name in ("accuracy", "macro_f1", "weighted_f1"):
        assert (metric_style(f"{method}_{name}").unit, metric_style(f"{method}_{name}").higher_is_better) == (
            "points",
            True,
        )
    assert (metric_style(f"{method}_nll").unit, metric_style(f"{method}_nll").higher_is_better) == ("nats", False)
    assert split_metric(f"{method}_macro_f1") == (method, "macro_f1")
    assert metric_name(f"{method}_nll") == f"test NLL by {method}"


def test_calibration_is_better_when_lower():
    assert [metric_style(name).higher_is_better for name in ("ece", "calibrated_ece", "calibrated_nll")] == [False] * 3
    assert format_difference(0.0312, "ece", signed=True) == "+3.1"
    assert format_difference(-0.0312, "calibrated_nll") == "-0.031"


def test_written_answers_are_not_judged_by_metrics_that_they_lack():
    for metrics in DECIDING.values():
        assert not [
            name for name in metrics if split_metric(name)[0] != "head" or name.endswith(("ece", "calibrated_nll"))
        ]
    assert "exact_match" in DECIDING["math"]
    assert set(DECIDING["math"]) <= set(METRICS)


def mixed(run, loss, seed, right, **config):
    """A run whose head is always right and whose mixture is right where `right` says so."""
    labels = [0, 1] * (len(right) // 2)
    return run(
        loss,
        seed,
        1.0,
        config=config,
        metrics={"accuracy": 1.0, "mixture_accuracy": sum(right) / len(right)},
        predictions=labels,
        labels=labels,
        scores={"mixture_accuracy": [float(value) for value in right]},
    )


def test_a_study_decided_by_the_mixture_reads_the_mixtures_scores(run):
    right = {"ce": [1, 1, 0, 0, 0, 0, 1, 0], "focal": [1, 1, 1, 1, 0, 0, 0, 0]}
    records = [mixed(run, loss, seed, values) for loss, values in right.items() for seed in (0, 1)]
    summary = summarize(records, losses=["ce", "focal"], baseline="ce", metric="mixture_accuracy", seeds=[0, 1])
    row = summary.rows[1]
    assert (row.by_example.gained, row.by_example.lost) == (2, 1)
    assert [(one.gained, one.lost) for one in row.by_example.per_seed] == [(2, 1), (2, 1)]
    assert row.bootstrap is not None
    assert row.comparison.difference == pytest.approx(0.125)
    assert summary.rows[0].sentence == "the baseline: accuracy by mixture 37.5 over 2 seeds"


def test_folds_with_equal_labels_are_not_one_test_set(run):
    right = {"ce": [1, 1, 0, 0], "focal": [1, 1, 1, 0]}
    for folds, kept in (((0, 0), True), ((0, 1), False)):
        records = [
            mixed(run, loss, seed, values, fold=fold)
            for loss, values in right.items()
            for seed, fold in zip((0, 1), folds, strict=True)
        ]
        row = summarize(records, losses=["ce", "focal"], baseline="ce", metric="mixture_accuracy", seeds=[0, 1]).rows[1]
        assert (row.by_example is not None, row.bootstrap is not None) == (kept, kept)
