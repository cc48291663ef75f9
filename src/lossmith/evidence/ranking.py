"""Several studies of the same losses, one per data set, as one ranking: what holds beyond a single data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from lossmith.errors import EvidenceError
from lossmith.evidence.metrics import metric_style
from lossmith.evidence.rank_sentences import loss_sentence, overall_sentences
from lossmith.evidence.ranks import (
    SMALLEST_TABLE,
    BlockInterval,
    FriedmanTest,
    Nemenyi,
    SignedRanks,
    block_interval,
    friedman,
    nemenyi,
    rank_error,
    ranks,
    signed_rank_test,
    smallest_signed_rank_p,
)
from lossmith.evidence.sentences import SIGNIFICANCE, Verdict
from lossmith.evidence.statistics import PairedComparison, holm, paired_t
from lossmith.evidence.summary import LossSummary, StudySummary


@dataclass(frozen=True, kw_only=True)
class DatasetRanks:
    """One data set of a ranking."""

    name: str
    """What it is called in tables and figures."""
    summary: StudySummary
    """Its study: differences, intervals and Holm's verdicts within the data set."""
    means: dict[str, float]
    """Loss -> mean metric over blocks."""
    ranks: dict[str, float]
    """Loss -> rank of that mean; 1 is the best, ties share their mean."""

    def within(self, loss: str) -> LossSummary:
        """What the study of this data set alone says of a loss."""
        return next(row for row in self.summary.rows if row.loss == loss)


@dataclass(frozen=True, kw_only=True)
class BaselineTests:
    """A loss against the baseline over data sets."""

    differences: dict[str, float]
    """Data set -> mean difference over its blocks."""
    over_datasets: PairedComparison
    """The mean difference with the data sets as the sample: the paired t of their means, as of other data sets."""
    over_blocks: BlockInterval
    """The same mean with the blocks as the sample: of these data sets only."""
    least: str
    """Data set with the lowest difference."""
    most: str
    """Data set with the highest difference."""
    signed_ranks: SignedRanks
    """Wilcoxon's test of the differences over data sets."""
    holm_p: float
    """Its p after Holm's correction over the losses; it makes the verdict."""
    rank_z: float
    """Average rank minus the baseline's over its standard error; negative is better. It makes no verdict."""
    rank_z_holm_p: float
    """Its two-sided p by the normal distribution after Holm's correction over the losses."""


@dataclass(frozen=True, kw_only=True)
class RankedLoss:
    """One loss of a ranking."""

    loss: str
    """Canonical composition string."""
    is_baseline: bool
    """Whether the others are compared with this one."""
    average_rank: float
    """Mean rank over data sets; 1 is the best there can be."""
    mean: float
    """Mean metric over data sets."""
    tests: BaselineTests | None
    """Against the baseline; None for the baseline."""
    verdict: Verdict
    """What the adjusted p of the signed ranks allows to say."""
    sentence: str
    """The verdict in words."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Losses over data sets."""

    metric: str
    """Metric that was ranked."""
    baseline: str
    """Loss that the others are compared with."""
    datasets: tuple[DatasetRanks, ...]
    """In the order given."""
    rows: tuple[RankedLoss, ...]
    """One per loss, in the order of the first study."""
    friedman: FriedmanTest | None
    """None with fewer than three losses or data sets."""
    nemenyi: Nemenyi | None
    """None with fewer than three losses or data sets."""
    smallest_holm_p: float
    """What the adjusted p of the signed ranks can reach at best; from 0.05 on nothing can be decided."""
    sentences: tuple[str, ...]
    """What holds of all losses together, and what cannot be tested."""


def rank_losses(summaries: Mapping[str, StudySummary]) -> Ranking:
    """Rank the losses of several finished studies.

    Args:
        summaries: Name of the data set -> its study; at least two, of the same losses, baseline and metric.

    Raises:
        EvidenceError: If there are fewer than two, they differ in losses, baseline or metric, or a run is missing or
            failed: a mean over other blocks than the baseline's cannot be ranked beside it.
    """
    first = _checked(summaries)
    losses, metric, baseline = [row.loss for row in first.rows], first.metric, first.baseline
    datasets = tuple(_dataset(name, summary, losses) for name, summary in summaries.items())
    average = {loss: _mean([data.ranks[loss] for data in datasets]) for loss in losses}
    candidates = [loss for loss in losses if loss != baseline]
    smallest = min(1.0, len(candidates) * smallest_signed_rank_p(len(datasets)))
    tested = _baseline_tests(datasets, candidates, average, baseline, metric)
    verdicts: dict[str, Verdict] = {loss: _verdict(tested[loss], smallest, metric) for loss in candidates}
    verdicts[baseline] = "baseline"
    enough = min(len(losses), len(datasets)) >= SMALLEST_TABLE
    omnibus = friedman([[data.ranks[loss] for loss in losses] for data in datasets]) if enough else None
    pairs = nemenyi(average, len(datasets), significance=SIGNIFICANCE) if enough else None
    rows = tuple(
        RankedLoss(
            loss=loss,
            is_baseline=loss == baseline,
            average_rank=average[loss],
            mean=_mean([data.means[loss] for data in datasets]),
            tests=tested.get(loss),
            verdict=verdicts[loss],
            sentence=loss_sentence(
                verdicts[loss],
                tested.get(loss),
                average_rank=average[loss],
                mean=_mean([data.means[loss] for data in datasets]),
                baseline=baseline,
                metric=metric,
            ),
        )
        for loss in losses
    )
    return Ranking(
        metric=metric,
        baseline=baseline,
        datasets=datasets,
        rows=rows,
        friedman=omnibus,
        nemenyi=pairs,
        smallest_holm_p=smallest,
        sentences=overall_sentences(omnibus, pairs, losses=len(losses), datasets=len(datasets), smallest_p=smallest),
    )


def _checked(summaries: Mapping[str, StudySummary]) -> StudySummary:
    """The first study, once all fit together."""
    if len(summaries) < 2:
        raise EvidenceError(f"A ranking needs at least 2 data sets, got {len(summaries)}: {list(summaries)}.")
    (first_name, first), *others = summaries.items()
    if len(first.rows) < 2:
        raise EvidenceError(f"A ranking needs at least 2 losses, and {first_name} holds {first.baseline} alone.")
    for name, summary in others:
        here, there = ({row.loss for row in found.rows} for found in (summary, first))
        for loss in [row.loss for row in (*first.rows, *summary.rows)]:
            if loss not in here & there:
                has, lacks = (name, first_name) if loss in here else (first_name, name)
                raise EvidenceError(
                    f"The losses must be the same on all data sets: '{loss}' is on {has}, not on {lacks}."
                )
        for what, mine, theirs in (
            ("baseline", summary.baseline, first.baseline),
            ("metric", summary.metric, first.metric),
        ):
            if mine != theirs:
                raise EvidenceError(
                    f"The {what} must be the same on all data sets, got '{theirs}' on {first_name}, '{mine}' on {name}."
                )
    for name, summary in summaries.items():
        missing = next((row for row in summary.rows if row.finished < len(summary.seeds)), None)
        if missing is not None:
            raise EvidenceError(_unfinished(name, missing, len(summary.seeds)))
    return first


def _unfinished(name: str, row: LossSummary, seeds: int) -> str:
    reason, again = (f"{row.failed} failed", " and --retry-failed") if row.failed else ("the study is not complete", "")
    return (
        f"Every run must be finished, but on {name} '{row.loss}' has {row.finished} of {seeds} ({reason}): continue "
        f"the study with its `lossmith compare` command{again}, or leave the loss out of all data sets."
    )


def _dataset(name: str, summary: StudySummary, losses: list[str]) -> DatasetRanks:
    found = {row.loss: row.mean for row in summary.rows}
    means = {loss: float(found[loss] or 0.0) for loss in losses}
    placed = ranks(list(means.values()), higher_is_better=metric_style(summary.metric).higher_is_better)
    return DatasetRanks(name=name, summary=summary, means=means, ranks=dict(zip(losses, placed, strict=True)))


def _baseline_tests(
    datasets: tuple[DatasetRanks, ...], losses: list[str], average: dict[str, float], baseline: str, metric: str
) -> dict[str, BaselineTests]:
    """Every loss against the baseline; Holm's correction runs over them."""
    differences = {loss: {data.name: data.means[loss] - data.means[baseline] for data in datasets} for loss in losses}
    signed = {loss: signed_rank_test(list(differences[loss].values())) for loss in losses}
    error = rank_error(len(average), len(datasets))
    z = {loss: (average[loss] - average[baseline]) / error for loss in losses}
    holm_p = dict(zip(losses, holm([test.p_value for test in signed.values()]), strict=True))
    z_holm_p = dict(zip(losses, holm([float(2 * stats.norm.sf(abs(value))) for value in z.values()]), strict=True))
    return {
        loss: BaselineTests(
            differences=differences[loss],
            over_datasets=paired_t(
                [data.means[baseline] for data in datasets],
                [data.means[loss] for data in datasets],
                higher_is_better=metric_style(metric).higher_is_better,
            ),
            over_blocks=block_interval([_by_block(data.summary, loss, baseline) for data in datasets]),
            least=min(differences[loss], key=lambda name: differences[loss][name]),
            most=max(differences[loss], key=lambda name: differences[loss][name]),
            signed_ranks=signed[loss],
            holm_p=holm_p[loss],
            rank_z=z[loss],
            rank_z_holm_p=z_holm_p[loss],
        )
        for loss in losses
    }


def _by_block(summary: StudySummary, loss: str, baseline: str) -> list[float]:
    values = {row.loss: row.values for row in summary.rows}
    return [values[loss][seed] - values[baseline][seed] for seed in summary.seeds]


def _verdict(tests: BaselineTests, smallest_p: float, metric: str) -> Verdict:
    if smallest_p >= SIGNIFICANCE:
        return "undecided"
    if tests.holm_p >= SIGNIFICANCE:
        return "no difference shown"
    gains = tests.signed_ranks.positive > tests.signed_ranks.negative
    return "better" if gains == metric_style(metric).higher_is_better else "worse"


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
