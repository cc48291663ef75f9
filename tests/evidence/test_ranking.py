"""Several studies as one ranking: numbers by hand, verdicts, and what is refused."""

import math
import statistics

import pytest
from test_paired_statistics import t_quantile

from lossmith.errors import EvidenceError
from lossmith.evidence import holm, paired_t, rank_losses, signed_rank_test, summarize

GAINS = [0.0004, 0.1348, 0.03, 0.02, 0.015, 0.04, 0.025, 0.01]
BLOCKS = (-0.01, 0.0, 0.012)


@pytest.fixture
def study(run):
    """Makes the summary of one data set from `loss -> values per seed`; None is a failed run."""

    def make(losses, *, baseline="ce", metric="accuracy", seeds=None):
        records = [
            run(loss, seed, None, status="failed") if value is None else run(loss, seed, None, metrics={metric: value})
            for loss, values in losses.items()
            for seed, value in enumerate(values)
        ]
        return summarize(
            records, losses=list(losses), baseline=baseline, metric=metric, seeds=range(seeds or len(BLOCKS))
        )

    return make


@pytest.fixture
def eight(study):
    """Eight data sets: `good` gains on each, `even` wins on every other, with a level per data set."""

    def make(**options):
        return {
            f"d{i}": study(
                {
                    "ce": [0.5 + 0.03 * i + b for b in BLOCKS],
                    "good": [0.5 + 0.03 * i + gain + 2 * b for b in BLOCKS],
                    "even": [0.5 + 0.03 * i + (0.006 if i % 2 else -0.007) - b for b in BLOCKS],
                },
                **options,
            )
            for i, gain in enumerate(GAINS)
        }

    return make


def test_means_ranks_and_differences_by_hand(eight):
    ranking = rank_losses(eight())
    shift = statistics.fmean(BLOCKS)
    first = ranking.datasets[0]
    assert first.means == pytest.approx({"ce": 0.5 + shift, "good": 0.5004 + 2 * shift, "even": 0.493 - shift})
    assert first.ranks == {"ce": 2.0, "good": 1.0, "even": 3.0}
    ce, good, even = ranking.rows
    assert (ce.average_rank, good.average_rank, even.average_rank) == (2.5, 1.0, 2.5)
    differences = [gain + shift for gain in GAINS]
    assert list(good.tests.differences.values()) == pytest.approx(differences)
    assert (good.tests.least, good.tests.most) == ("d0", "d1")
    assert good.mean - ce.mean == pytest.approx(statistics.fmean(differences))


def test_the_interval_over_data_sets_is_a_t_over_their_means(eight):
    tests = rank_losses(eight()).rows[1].tests
    differences = list(tests.differences.values())
    half = t_quantile(0.025, 7) * statistics.stdev(differences) / math.sqrt(8)
    over = tests.over_datasets
    assert (over.high - over.low) / 2 == pytest.approx(half, rel=1e-5)
    assert (over.wins, over.losses, over.blocks) == (8, 0, 8)


def test_the_interval_over_blocks_knows_only_their_spread(eight):
    tests = rank_losses(eight()).rows[1].tests
    # Every data set has the same differences of blocks, so the pooled t over 8 * 2 degrees.
    error = math.sqrt(statistics.variance(BLOCKS) / 3 / 8)
    half = (tests.over_blocks.high - tests.over_blocks.low) / 2
    assert half == pytest.approx(t_quantile(0.025, 16) * error, rel=1e-5)
    assert half < (tests.over_datasets.high - tests.over_datasets.low) / 2
    assert tests.over_blocks.difference == pytest.approx(tests.over_datasets.difference)


def test_verdicts_come_from_signed_ranks_after_holm(eight):
    ranking = rank_losses(eight())
    p_values = [signed_rank_test(list(row.tests.differences.values())).p_value for row in ranking.rows[1:]]
    assert [row.tests.holm_p for row in ranking.rows[1:]] == holm(p_values)
    assert ranking.rows[1].tests.holm_p == pytest.approx(2 * 2 / 2**8)
    assert [row.verdict for row in ranking.rows] == ["baseline", "better", "no difference shown"]
    assert ranking.smallest_holm_p == pytest.approx(2 * 2 / 2**8)
    z = (1.0 - 2.5) / math.sqrt(3 * 4 / (6 * 8))
    assert ranking.rows[1].tests.rank_z == pytest.approx(z)
    assert ranking.rows[1].tests.rank_z_holm_p == pytest.approx(2 * math.erfc(abs(z) / math.sqrt(2)))


def test_a_verdict_does_not_depend_on_the_other_losses_ranks(eight):
    summaries = eight()
    ranking = rank_losses(summaries)
    pair = rank_losses(
        {
            name: summarize_two(summary)
            for name, summary in summaries.items()
        }
    )  # fmt: skip
    assert pair.rows[1].tests.signed_ranks == ranking.rows[1].tests.signed_ranks
    assert pair.rows[1].tests.over_blocks == ranking.rows[1].tests.over_blocks
    assert pair.rows[1].average_rank != ranking.rows[0].average_rank


def summarize_two(summary):
    from dataclasses import replace

    return replace(summary, rows=summary.rows[:2])


def test_sentences_say_the_size_both_intervals_and_the_ends(eight):
    ranking = rank_losses(eight())
    assert ranking.rows[0].sentence == "the baseline: average rank 2.50, mean accuracy 60.6"
    good = ranking.rows[1].sentence
    assert good.startswith(
        "beats ce over data sets: +3.5 points on average, from +0.1 on d0 to +13.5 on d1, better on 8 of 8 data sets; "
    )
    over = ranking.rows[1].tests.over_datasets
    assert -0.0005 < over.low < 0  # shown without a minus
    assert f"95% interval for data sets like these [0.0, {100 * over.high:.1f}], for exactly these [3.0, 4.0]" in good
    assert good.endswith("average rank 1.00; p = 0.016 (signed ranks, Holm)")
    assert ranking.rows[2].sentence.startswith("no difference shown over data sets: ")
    friedman, nemenyi, signed = ranking.sentences
    assert friedman.startswith("The ranks differ by more than chance: Friedman's test, F(2, 14) = ")
    assert nemenyi.startswith("Two losses differ where their average ranks are more than 1.17 apart (Nemenyi")
    assert signed.endswith("can be as small as 0.016, so it can decide")


def test_lower_is_better_ranks_the_other_way(eight):
    ranking = rank_losses(eight(metric="nll"))
    assert [row.average_rank for row in ranking.rows] == [1.5, 3.0, 1.5]
    assert ranking.rows[1].verdict == "worse"
    assert ranking.rows[1].tests.over_datasets.losses == 8
    assert "nats on average (lower is better)" in ranking.rows[1].sentence
    assert ranking.rows[1].sentence.startswith("loses to ce over data sets: +0.035 nats")


def test_a_verdict_follows_the_signed_ranks_where_one_data_set_turns_the_mean(study):
    gains = [*(0.001 * size for size in range(1, 14)), -0.4]
    ranking = rank_losses(
        {f"d{i}": study({"ce": [0.5, 0.51, 0.52], "a": [0.5 + g, 0.51 + g, 0.52 + g]}) for i, g in enumerate(gains)}
    )
    row = ranking.rows[1]
    assert row.tests.over_datasets.difference < 0
    assert row.tests.holm_p == signed_rank_test(gains).p_value < 0.05
    assert (row.verdict, row.tests.signed_ranks.negative) == ("better", 14)


def test_two_data_sets_say_what_cannot_be_tested(study):
    values = {"ce": [0.5, 0.52, 0.51], "a": [0.6, 0.63, 0.6], "b": [0.7, 0.71, 0.72]}
    ranking = rank_losses({"mr": study(values), "cr": study(values)})
    assert (ranking.friedman, ranking.nemenyi) == (None, None)
    assert [row.verdict for row in ranking.rows] == ["baseline", "undecided", "undecided"]
    few, signed = ranking.sentences
    assert few == (
        "With two data sets there is no Friedman test, no critical difference and no diagram: they need at least three "
        "losses on three data sets"
    )
    assert signed == (
        "With 2 data sets and 2 losses beside the baseline the p of the signed ranks, after Holm's correction, is at "
        "least 1: no loss can be called better or worse over data sets, however clear it is; that takes at least 7 "
        "data sets"
    )


def test_two_losses_have_a_test_but_no_diagram(study):
    one = {
        f"d{i}": study({"ce": [0.5, 0.52, 0.51], "a": [0.6 + 0.01 * i, 0.63, 0.6]}) for i in range(6)
    }  # fmt: skip
    ranking = rank_losses(one)
    assert ranking.sentences[0].startswith("With two losses there is no Friedman test")
    assert ranking.rows[1].verdict == "better"
    assert ranking.rows[1].tests.holm_p == pytest.approx(2 / 2**6)


def test_one_block_has_no_interval_over_blocks(study):
    one = {f"d{i}": study({"ce": [0.5], "a": [0.6 + 0.01 * i]}, seeds=1) for i in range(3)}
    row = rank_losses(one).rows[1]
    assert math.isnan(row.tests.over_blocks.low)
    assert "exactly these" not in row.sentence
    assert row.tests.over_datasets == paired_t([0.5] * 3, [0.6, 0.61, 0.62])


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (
            {"ce": [0.5] * 3, "b": [0.5] * 3},
            {},
            "The losses must be the same on all data sets: 'a' is on mr, not on cr",
        ),
        ({"ce": [0.5] * 3, "a": [0.5] * 3, "b": [0.5] * 3}, {}, "'b' is on cr, not on mr"),
        (
            {"ce": [0.5] * 3, "a": [0.5] * 3},
            {"baseline": "a"},
            "The baseline must be the same on all data sets, got 'ce'",
        ),
        ({"ce": [0.5] * 3, "a": [0.5] * 3}, {"metric": "nll"}, "The metric must be the same on all data sets"),
        ({"ce": [0.5] * 3, "a": [0.5, None, 0.5]}, {}, r"on cr 'a' has 2 of 3 \(1 failed\).*--retry-failed"),
        ({"ce": [0.5] * 3, "a": [0.5] * 2}, {}, r"on cr 'a' has 2 of 3 \(the study is not complete\)"),
    ],
)
def test_studies_that_make_no_table_are_refused(study, other, options, message):
    with pytest.raises(EvidenceError, match=message):
        rank_losses({"mr": study({"ce": [0.5] * 3, "a": [0.6] * 3}), "cr": study(other, **options)})


def test_one_data_set_or_one_loss_is_no_ranking(study):
    with pytest.raises(EvidenceError, match="at least 2 data sets, got 1"):
        rank_losses({"mr": study({"ce": [0.5] * 3, "a": [0.6] * 3})})
    with pytest.raises(EvidenceError, match="at least 2 losses, and mr holds ce alone"):
        rank_losses({"mr": study({"ce": [0.5] * 3}), "cr": study({"ce": [0.5] * 3})})


def test_order_of_losses_may_differ_between_studies(study):
    a = study({"ce": [0.5, 0.52, 0.51], "x": [0.6, 0.63, 0.6], "y": [0.4, 0.41, 0.43]})
    b = study({"y": [0.45, 0.41, 0.43], "ce": [0.5, 0.52, 0.51], "x": [0.6, 0.61, 0.6]})
    ranking = rank_losses({"mr": a, "cr": b})
    assert [row.loss for row in ranking.rows] == ["ce", "x", "y"]
    assert [row.average_rank for row in ranking.rows] == [2.0, 1.0, 3.0]
    assert ranking.datasets[1].within("y").comparison.difference == pytest.approx(-0.08)
