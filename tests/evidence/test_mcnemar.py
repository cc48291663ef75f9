"""Comparison by test example, against sums written out and against listed sign patterns."""

import math
from itertools import product

import numpy as np
import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import compare_examples, mcnemar, summarize

BEFORE = np.array([[1, 0, 0, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 0]])
AFTER = np.array([[1, 1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 1, 1, 0]])
# Differences added up over the seeds: 0, 3, 1, 0, -2, 1, 1.


def coin_p(gained, lost):
    """Two-sided tail of fair coins, written out."""
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(max(gained, lost), total + 1))
    return min(1.0, 2 * tail / 2**total)


def listed_p(sums):
    """Share of all sign patterns whose sum is at least as far from 0."""
    patterns = [
        abs(math.fsum(s * d for s, d in zip(signs, sums, strict=True))) for signs in product((-1, 1), repeat=len(sums))
    ]
    return sum(value >= abs(math.fsum(sums)) - 1e-9 for value in patterns) / len(patterns)


def pairs_of(gained, lost, agreed=10):
    before = [0] * gained + [1] * lost + [1] * agreed
    after = [1] * gained + [0] * lost + [1] * agreed
    return np.array([before]), np.array([after])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (4, 1), (1, 4), (3, 3), (9, 2), (41, 18), (200, 260)])
def test_with_one_seed_it_is_mcnemars_exact_test(gained, lost):
    found = compare_examples(*pairs_of(gained, lost), seeds=[3])
    expected = coin_p(gained, lost) if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    (only,) = found.per_seed
    assert (only.seed, only.gained, only.lost) == (3, gained, lost) == (3, found.gained, found.lost)
    assert only.p_value == mcnemar(gained, lost)


def test_over_seeds_each_example_counts_once():
    found = compare_examples(BEFORE, AFTER, seeds=[4, 5, 9])
    assert (found.gained, found.lost, found.examples, found.blocks) == (4, 1, 7, 3)
    assert [(one.seed, one.gained, one.lost) for one in found.per_seed] == [(4, 3, 1), (5, 2, 2), (9, 2, 0)]
    assert [one.p_value for one in found.per_seed] == pytest.approx([coin_p(3, 1), coin_p(2, 2), coin_p(2, 0)])
    assert found.p_value == pytest.approx(listed_p([3, 1, -2, 1, 1]))
    assert found.p_value == pytest.approx(0.5)  # 16 of 32 patterns reach |4|: no pooled coin of 7 and 3 gives that
    assert coin_p(7, 3) == pytest.approx(0.34375)


def test_repeating_a_seed_proves_nothing_new():
    once = compare_examples(*pairs_of(6, 1), seeds=[0])
    before, after = (np.repeat(side, 5, axis=0) for side in pairs_of(6, 1))
    again = compare_examples(before, after, seeds=range(5))
    assert again.p_value == pytest.approx(once.p_value) == pytest.approx(coin_p(6, 1))
    assert (again.gained, again.lost) == (once.gained, once.lost)
    assert coin_p(30, 5) < 1e-4 < coin_p(6, 1)


def test_many_seeds_and_examples_equal_listing_all_patterns():
    draw = np.random.default_rng(5)
    before, after = draw.integers(0, 2, (4, 14)), draw.integers(0, 2, (4, 14))
    assert compare_examples(before, after, seeds=range(4)).p_value == pytest.approx(listed_p((after - before).sum(0)))


def test_fractions_are_flipped_and_have_no_mcnemar():
    before = np.array([[0.5, 0.25, 1.0, 0.0, 0.5, 0.2], [0.5, 0.25, 0.5, 0.0, 0.5, 0.3]])
    after = np.array([[0.75, 1.0, 0.8, 0.0, 0.6, 0.3], [1.0, 0.75, 0.6, 0.0, 0.5, 0.2]])
    found = compare_examples(before, after, seeds=[0, 1])
    assert (found.gained, found.lost) == (3, 1)
    assert found.p_value == pytest.approx(listed_p([0.75, 1.25, -0.1, 0.1]))
    assert [(one.gained, one.lost, one.p_value) for one in found.per_seed] == [(4, 1, None), (3, 1, None)]
    nothing = compare_examples(before, before, seeds=[0, 1])
    assert (nothing.gained, nothing.lost, nothing.p_value) == (0, 0, 1.0)


def test_fractions_that_cancel_over_seeds_are_no_gain():
    after = np.array([[0.1, 0.5], [0.2, 0.0], [-0.3, 0.0]])  # 0.1 + 0.2 - 0.3 is not 0 in floating point
    found = compare_examples(np.zeros((3, 2)), after, seeds=range(3))
    assert (found.gained, found.lost) == (1, 0)


def test_many_fractions_are_drawn_by_seed_near_the_normal_tail():
    draw = np.random.default_rng(1)
    differences = draw.normal(0.02, 0.2, (1, 800))
    found = compare_examples(np.zeros((1, 800)), differences, seeds=[0])
    assert found == compare_examples(np.zeros((1, 800)), differences, seeds=[0])
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)


def test_where_lower_is_better_fewer_errors_are_gains():
    found = compare_examples(BEFORE, AFTER, seeds=[4, 5, 9], higher_is_better=False)
    assert (found.gained, found.lost) == (1, 4)
    assert (found.per_seed[0].gained, found.per_seed[0].lost) == (1, 3)
    assert found.p_value == compare_examples(BEFORE, AFTER, seeds=[4, 5, 9]).p_value


@pytest.mark.parametrize(
    ("before", "after", "seeds", "message"),
    [
        (BEFORE, AFTER[:2], [0, 1, 2], r"got `baseline_scores` \(3, 7\), `candidate_scores` \(2, 7\)"),
        (BEFORE[0], AFTER[0], [0], r"must be equal and hold blocks x examples"),
        (BEFORE[:, :0], AFTER[:, :0], [0, 1, 2], r"must be equal and hold blocks x examples"),
        (BEFORE, AFTER, [0, 1], r"`seeds` must name each of the 3 blocks, got \[0, 1\]"),
        (BEFORE, AFTER * math.nan, [0, 1, 2], r"must hold finite numbers"),
    ],
)
def test_wrong_scores_are_one_sentence(before, after, seeds, message):
    with pytest.raises(EvidenceError, match=message):
        compare_examples(before, after, seeds=seeds)


def test_negative_counts_are_one_sentence():
    with pytest.raises(EvidenceError, match="must be counts >= 0, got 3 and -1"):
        mcnemar(3, -1)


def of_scores(run, loss, seed, scores, *, metric="exact_match", **fields):
    values = [float(score) for score in scores]
    return run(loss, seed, None, metrics={metric: sum(values) / len(values)}, scores={metric: values}, **fields)


def study_of(run, before, after, **fields):
    return [
        of_scores(run, loss, seed, row, **fields)
        for loss, rows in (("ce", before), ("focal", after))
        for seed, row in enumerate(rows)
    ]


def test_a_summary_compares_the_scores_of_its_own_metric(run):
    records = study_of(run, BEFORE, AFTER)
    for record in records:
        record.scores["iou"] = [0.5] * 7
    row = summarize(records, losses=["ce", "focal"], baseline="ce", metric="exact_match", seeds=range(3)).rows[1]
    assert row.by_example == compare_examples(BEFORE, AFTER, seeds=range(3))
    assert row.bootstrap is not None
    assert row.bootstrap.low < row.comparison.difference < row.bootstrap.high
    assert row.bootstrap.blocks == 3


def test_a_metric_of_errors_is_judged_downwards(run):
    records = study_of(run, BEFORE, AFTER, metric="missing_steps")
    row = summarize(records, losses=["ce", "focal"], baseline="ce", metric="missing_steps", seeds=range(3)).rows[1]
    assert (row.by_example.gained, row.by_example.lost) == (1, 4)
    assert row.comparison.wins == 0


def test_a_classifiers_answers_are_compared_by_its_predictions(run):
    labels = [0, 1, 2, 0, 1]
    records = [
        run("ce", 0, 0.4, predictions=[0, 1, 0, 1, 2], labels=labels),
        run("focal", 0, 0.8, predictions=[0, 0, 2, 0, 1], labels=labels),
    ]
    row = summarize(records, losses=["ce", "focal"], baseline="ce", seeds=[0]).rows[1]
    assert (row.by_example.gained, row.by_example.lost, row.by_example.p_value) == (3, 1, 0.625)
    assert row.bootstrap is None  # one block cannot be drawn again


@pytest.mark.parametrize("change", [{"scores": {}}, {"scores": {"exact_match": [1.0]}}, {"labels": [1]}])
def test_no_comparison_by_example_without_one_shared_test_set(run, change):
    records = study_of(run, BEFORE, AFTER)
    records[-1] = run("focal", 2, None, metrics={"exact_match": 0.5}, **{"scores": records[-1].scores} | change)
    row = summarize(records, losses=["ce", "focal"], baseline="ce", metric="exact_match", seeds=range(3)).rows[1]
    assert row.comparison.blocks == 3
    assert (row.by_example, row.bootstrap) == (None, None)


def test_only_seeds_that_both_finished_are_compared(run):
    records = study_of(run, BEFORE, AFTER)
    records[4] = run("focal", 1, None, status="failed", error="nan")
    row = summarize(records, losses=["ce", "focal"], baseline="ce", metric="exact_match", seeds=range(3)).rows[1]
    assert row.by_example == compare_examples(BEFORE[[0, 2]], AFTER[[0, 2]], seeds=[0, 2])


def test_the_baseline_is_not_compared_with_itself(run):
    rows = summarize(study_of(run, BEFORE, AFTER), losses=["ce", "focal"], baseline="ce", metric="exact_match",
                     seeds=range(3)).rows  # fmt: skip
    assert rows[0].by_example is None


HIGHER = ["exact_match", "flexible_match", "accuracy", "likelihood_accuracy", "answered", "stopped"]
HIGHER += ["iou", "overlap", "dice", "recall", "precision", "real_iou"]
HIGHER += ["released_exact_match", "released_accuracy", "released_iou", "released_overlap", "released_dice"]
HIGHER += ["released_recall", "released_precision", "released_real_iou"]
LOWER = ["wrong_operators", "inverted_operands", "missing_steps", "extra_steps", "repetitions", "wrong_results"]
LOWER += ["released_wrong_operators", "released_inverted_operands", "released_missing_steps"]
LOWER += ["released_extra_steps", "released_repetitions"]


@pytest.mark.parametrize("metric", [*HIGHER, *LOWER])
def test_every_metric_of_completions_has_its_direction_and_points(run, metric):
    levels = {"ce": [0.30, 0.32, 0.31], "focal": [0.40, 0.43, 0.41]}
    records = [run(loss, s, None, metrics={metric: v}) for loss, vs in levels.items() for s, v in enumerate(vs)]
    row = summarize(records, losses=list(levels), baseline="ce", metric=metric, seeds=range(3)).rows[1]
    assert row.verdict == ("better" if metric in HIGHER else "worse")
    assert " by 10.3 points [" in row.sentence
