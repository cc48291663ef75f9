"""The promises of the verdict on simulated studies: coverage of the interval, and false positives of the family."""

import math

import numpy as np
import pytest

from lossmith.evidence import compare_examples, mcnemar, paired_t, summarize

SIMULATIONS = 2_000
NULL_LOSSES = ("cross_entropy", "a", "b", "c", "d")


def gaussian_study(generator, blocks):
    """A shared effect per block, which pairing takes out, and noise per run."""
    block = generator.normal(0, 0.05, size=(SIMULATIONS, blocks))
    before = 0.6 + block + generator.normal(0, 0.02, size=block.shape)
    after = 0.63 + block + generator.normal(0, 0.02, size=block.shape)
    return before, after, 0.03


def accuracy_study(generator, blocks, examples=150):
    """Accuracies on one test set: hard and easy examples, a draw of shots per block, answers that agree partly."""
    difficulty = generator.normal(0, 1, size=examples)
    abilities, block_sd, run_sd, agreed_sd, own_sd = (0.3, 0.5), 0.3, 0.15, 0.6, 0.6
    shape = (SIMULATIONS, blocks, 1)
    shared = generator.normal(0, block_sd, size=shape) - difficulty
    shared = shared + generator.normal(0, agreed_sd, size=(SIMULATIONS, blocks, examples))
    accuracies = []
    for ability in abilities:
        score = ability + shared + generator.normal(0, run_sd, size=shape)
        score += generator.normal(0, own_sd, size=score.shape)
        accuracies.append((score > 0).mean(axis=2))
    spread = math.sqrt(block_sd**2 + run_sd**2 + agreed_sd**2 + own_sd**2)
    expected = [
        sum(0.5 * math.erfc((d - ability) / (spread * math.sqrt(2))) for d in difficulty) / examples
        for ability in abilities
    ]
    return accuracies[0], accuracies[1], expected[1] - expected[0]


@pytest.mark.parametrize("blocks", [3, 5, 10])
@pytest.mark.parametrize("study", [gaussian_study, accuracy_study])
def test_the_t_interval_covers_the_truth_in_95_of_100_studies(study, blocks):
    before, after, truth = study(np.random.default_rng(blocks), blocks)
    results = [paired_t(*pair) for pair in zip(before, after, strict=True)]
    coverage = np.mean([result.low <= truth <= result.high for result in results])
    assert 0.93 <= coverage <= 0.97


def test_false_positives_of_the_whole_family_stay_below_6_percent(run):
    """Four losses that are all as good as the baseline, judged by `summarize` as a study is."""
    generator = np.random.default_rng(0)
    seeds, examples = range(5), 1066
    shape = (SIMULATIONS, len(NULL_LOSSES), len(seeds))
    block = generator.normal(0, 0.03, size=(SIMULATIONS, 1, len(seeds)))
    accuracies = generator.binomial(examples, 0.6 + block + generator.normal(0, 0.02, size=shape)) / examples
    by_any_interval = by_any_verdict = 0
    for study in accuracies:
        records = [run(loss, seed, float(study[k, seed])) for k, loss in enumerate(NULL_LOSSES) for seed in seeds]
        rows = summarize(records, losses=NULL_LOSSES, baseline="cross_entropy", seeds=list(seeds)).rows[1:]
        by_any_verdict += any(row.verdict in ("better", "worse") for row in rows)
        by_any_interval += any(row.comparison is not None and row.comparison.p_value < 0.05 for row in rows)
    assert by_any_verdict / SIMULATIONS <= 0.06
    assert by_any_interval / SIMULATIONS > 0.1  # without Holm the family would not hold its level here


def test_the_test_by_example_keeps_its_level_where_pooling_seeds_does_not():
    """Equal losses whose models agree with their own other seeds, as models do: pooled pairs are no coins."""
    generator = np.random.default_rng(4)
    studies, blocks, examples = 1_000, 3, 120
    scores = []
    for _ in range(2):
        habit = generator.normal(0, 1, (studies, 1, examples))  # what this loss gets right on every seed
        scores.append(habit + generator.normal(0, 0.7, (studies, blocks, examples)) > 0)
    found = [compare_examples(*pair, seeds=range(blocks)) for pair in zip(*scores, strict=True)]
    pooled = [mcnemar(sum(s.gained for s in one.per_seed), sum(s.lost for s in one.per_seed)) for one in found]
    one_seed = [one.per_seed[0].p_value for one in found]
    assert 0.02 <= np.mean([one.p_value < 0.05 for one in found]) <= 0.06
    assert np.mean([p is not None and p < 0.05 for p in one_seed]) <= 0.06
    assert np.mean(np.array(pooled) < 0.05) > 0.1
