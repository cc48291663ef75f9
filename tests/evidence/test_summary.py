import math

import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import format_difference, format_interval, format_value, holm, paired_t, summarize

BASE = [0.58, 0.60, 0.55, 0.59, 0.57]


@pytest.fixture
def study(run):
    """Makes a summary from `loss -> metric per seed`, where None is a failed run."""

    def make(losses, *, metric="accuracy", baseline="cross_entropy", **fields):
        records = [
            run(loss, seed, None, status="failed", error=f"{loss} diverged at step {seed}.")
            if value is None
            else run(loss, seed, None, metrics={metric: value}, **fields)
            for loss, values in losses.items()
            for seed, value in enumerate(values)
        ]
        seeds = range(max(len(values) for values in losses.values()))
        return summarize(records, losses=list(losses), baseline=baseline, metric=metric, seeds=list(seeds))

    return make


def shifted(*gains):
    return [value + gain for value, gain in zip(BASE, gains, strict=True)]


def test_a_win_is_said_in_words(study):
    summary = study({"cross_entropy": BASE, "focal": shifted(0.06, 0.06, 0.04, 0.08, 0.065)})
    row = summary.rows[1]
    assert row.verdict == "better"
    assert row.sentence == "beats cross_entropy by 6.1 points [4.3, 7.9], 5 of 5 seeds"
    assert row.comparison == paired_t(BASE, list(row.values.values()))
    assert row.holm_p == row.comparison.p_value  # one loss: nothing to correct


def test_a_loss_is_said_in_words(study):
    summary = study({"cross_entropy": BASE, "focal": shifted(-0.02, -0.01, -0.03, -0.025, -0.015)})
    assert summary.rows[1].verdict == "worse"
    assert summary.rows[1].sentence == "loses to cross_entropy by 2.0 points [1.0, 3.0], 0 of 5 seeds won"


def test_no_difference_is_not_a_verdict(study):
    summary = study({"cross_entropy": BASE, "focal": shifted(-0.02, 0.01, -0.02, 0.015, -0.015)})
    assert summary.rows[1].verdict == "no difference shown"
    assert summary.rows[1].sentence == "no difference shown: -0.6 [-2.7, 1.5]"


def test_holm_can_take_a_verdict_back_and_the_sentence_says_so(study):
    even = shifted(-0.02, 0.01, -0.02, 0.015, -0.015)
    weak = shifted(0.01, 0.03, 0.035, 0.01, 0.02)
    alone = study({"cross_entropy": BASE, "weak": weak})
    family = study({"cross_entropy": BASE, "weak": weak, "b": even, "c": even, "d": even})
    assert alone.rows[1].verdict == "better"
    row = family.rows[1]
    assert row.verdict == "no difference shown"
    assert row.holm_p == pytest.approx(4 * alone.rows[1].holm_p)
    assert row.sentence == (
        "no difference shown: 2.1 [0.7, 3.5]; the interval alone excludes 0, "
        "but not after Holm's correction over 4 losses, p = 0.06"
    )
    assert [r.holm_p for r in family.rows[1:]] == holm([r.comparison.p_value for r in family.rows[1:]])


def test_equal_differences_prove_nothing_at_five_seeds(study):
    row = study({"cross_entropy": BASE, "focal": shifted(*[0.02] * 5)}).rows[1]
    assert row.verdict == "no difference shown"
    assert row.sentence == (
        "no difference shown: 2.0 in each of 5 seeds, which has no spread and so no interval; the sign-flip test "
        "cannot tell it from chance, p = 0.06"
    )


def test_one_seed_has_no_verdict(study):
    row = study({"cross_entropy": [0.580], "focal": [0.592]}).rows[1]
    assert (row.verdict, row.holm_p, row.bootstrap) == ("undecided", None, None)
    assert row.sentence == "one seed shows +1.2 points: no interval, no verdict"


def test_failed_runs_make_no_pair_and_are_told(study):
    gains = shifted(0.06, 0.06, 0.04, 0.08, 0.065)
    row = study({"cross_entropy": BASE, "focal": [gains[0], None, gains[2], None, gains[4]]}).rows[1]
    assert row.values == {0: gains[0], 2: gains[2], 4: gains[4]}
    assert row.comparison == paired_t([BASE[0], BASE[2], BASE[4]], [gains[0], gains[2], gains[4]])
    assert row.sentence.endswith("3 of 3 seeds; 2 of 5 seeds failed")
    assert (row.finished, row.failed) == (3, 2)
    assert row.errors == ("focal diverged at step 1.", "focal diverged at step 3.")


def test_a_loss_that_failed_everywhere_is_undecided_and_counts_as_no_test(study):
    gains = shifted(0.06, 0.06, 0.04, 0.08, 0.065)
    summary = study({"cross_entropy": BASE, "broken": [None] * 5, "focal": gains})
    broken, focal = summary.rows[1:]
    assert (broken.verdict, broken.mean, broken.comparison, broken.train_seconds) == ("undecided", None, None, None)
    assert broken.sentence == "undecided: no seed is finished for both; 5 of 5 seeds failed"
    assert focal.holm_p == focal.comparison.p_value
    assert (summary.planned, summary.finished, summary.failed) == (15, 10, 5)


def test_a_baseline_that_failed_is_told_where_it_matters(study):
    summary = study({"cross_entropy": [*BASE[:4], None], "focal": shifted(0.06, 0.06, 0.04, 0.08, 0.065)})
    assert summary.rows[0].sentence == "the baseline: accuracy 58.0 over 4 seeds; 1 of 5 seeds failed"
    assert summary.rows[1].sentence.endswith("4 of 4 seeds; cross_entropy has no result for 1 of 5 seeds")


def test_lower_nll_is_better(study):
    base = [0.682, 0.671, 0.690, 0.665, 0.678]
    less = [value - gain for value, gain in zip(base, [0.04, 0.05, 0.03, 0.045, 0.04], strict=True)]
    summary = study({"cross_entropy": base, "focal": less}, metric="nll")
    assert summary.rows[0].sentence == "the baseline: nll 0.677 nats over 5 seeds"
    assert summary.rows[1].verdict == "better"
    assert summary.rows[1].comparison.wins == 5
    assert summary.rows[1].sentence == (
        "beats cross_entropy by 0.041 nats [0.032, 0.050] (lower is better), 5 of 5 seeds"
    )
    reversed_roles = study({"cross_entropy": less, "focal": base}, metric="nll").rows[1]
    assert reversed_roles.verdict == "worse"
    assert reversed_roles.sentence.startswith("loses to cross_entropy by 0.041 nats [0.032, 0.050]")


def test_rows_come_in_the_order_asked_for_whatever_the_order_of_records(run):
    records = [run(loss, seed, 0.5 + seed / 10) for seed in (1, 0) for loss in ("b", "a", "other")]
    summary = summarize(records, losses=["a", "b"], baseline="b", seeds=[0, 1, 2])
    assert [(row.loss, row.verdict) for row in summary.rows] == [("a", "no difference shown"), ("b", "baseline")]
    assert list(summary.rows[0].values) == [0, 1]
    assert (summary.planned, summary.finished, summary.seeds) == (6, 4, (0, 1, 2))
    assert summary.noise_floor is not None
    assert summary.noise_floor.max_difference == pytest.approx(0.1)


def test_costs_are_of_finished_runs(run):
    records = [
        run("ce", 0, train_seconds=2.0, peak_memory_mib=100.0),
        run("ce", 1, train_seconds=4.0, peak_memory_mib=300.0),
        run("ce", 2, None, status="failed", train_seconds=99.0, peak_memory_mib=999.0),
    ]
    row = summarize(records, losses=["ce"], baseline="ce", seeds=[0, 1, 2]).rows[0]
    assert (row.train_seconds, row.peak_memory_mib) == (3.0, 300.0)
    assert row.errors == ("The run failed and left no reason.",)


def test_nothing_finished_is_a_summary_too():
    summary = summarize([], losses=["ce", "focal"], baseline="ce", seeds=[0, 1])
    assert summary.noise_floor is None
    assert [row.sentence for row in summary.rows] == [
        "the baseline: no finished run",
        "undecided: no seed is finished for both",
    ]


def with_predictions(run, loss, seed, predictions, labels):
    accuracy = sum(p == t for p, t in zip(predictions, labels, strict=True)) / len(labels)
    return run(loss, seed, accuracy, predictions=predictions, labels=labels)


def test_bootstrap_stands_beside_where_predictions_are_kept(run):
    labels = [0, 1] * 50
    wrong = [1 - label for label in labels]
    records = [with_predictions(run, "ce", s, wrong[:40] + labels[40:], labels) for s in (0, 1)]
    records += [with_predictions(run, "focal", s, wrong[:20] + labels[20:], labels) for s in (0, 1)]
    row = summarize(records, losses=["ce", "focal"], baseline="ce", seeds=[0, 1]).rows[1]
    assert row.bootstrap is not None
    assert 0.1 < row.bootstrap.low < 0.2 < row.bootstrap.high < 0.3
    assert row.bootstrap.label == "bootstrap range (2 blocks: not a 95% interval)"
    by_f1 = [run(r.loss, r.seed, None, metrics={"macro_f1": 0.5}, predictions=labels, labels=labels) for r in records]
    summary = summarize(by_f1, losses=["ce", "focal"], baseline="ce", metric="macro_f1", seeds=[0, 1])
    assert summary.rows[1].bootstrap is None


@pytest.mark.parametrize("labels", [[], [1, 0, 1]])
def test_no_bootstrap_without_one_shared_test_set(run, labels):
    records = [with_predictions(run, loss, s, [0, 1, 1], [0, 1, 0]) for loss in ("ce", "focal") for s in (0, 1)]
    records[3] = run("focal", 1, 0.4, predictions=labels, labels=labels)
    assert summarize(records, losses=["ce", "focal"], baseline="ce", seeds=[0, 1]).rows[1].bootstrap is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "f1"}, r"`metric` must be one of \['accuracy', .*\], got 'f1'"),
        ({"baseline": "dice"}, r"`baseline` must be one of the losses, got 'dice'"),
        ({"losses": ["ce", "ce"]}, r"`losses` must be at least one and differ from each other"),
        ({"seeds": []}, r"`seeds` must be at least one and differ from each other, got \[\]"),
        ({"metric": "nll"}, r"The finished run of 'ce', seed 0, must hold a finite 'nll', got None"),
    ],
)
def test_wrong_requests_are_one_sentence(run, settings, message):
    arguments = {"losses": ["ce"], "baseline": "ce", "seeds": [0]} | settings
    with pytest.raises(EvidenceError, match=message):
        summarize([run("ce", 0)], **arguments)


def test_a_run_that_comes_twice_or_has_no_finite_metric_is_refused(run):
    with pytest.raises(EvidenceError, match="hold the run of 'ce', seed 0, twice"):
        summarize([run("ce", 0), run("ce", 0)], losses=["ce"], baseline="ce", seeds=[0])
    with pytest.raises(EvidenceError, match="must hold a finite 'accuracy', got nan"):
        summarize([run("ce", 0, math.nan)], losses=["ce"], baseline="ce", seeds=[0])


def test_shown_numbers_have_no_minus_zero_and_the_unit_of_the_metric():
    assert format_difference(-0.0004, "macro_f1") == "0.0"
    assert format_difference(-0.0004, "macro_f1", signed=True) == "0.0"
    assert format_difference(-0.0321, "weighted_f1", signed=True) == "-3.2"
    assert format_difference(0.0321, "nll", signed=True) == "+0.032"
    assert format_value(0.5, "accuracy") == "50.0"
    assert format_interval(0.0, 0.04, "nll") == "[0.000, 0.040]"
