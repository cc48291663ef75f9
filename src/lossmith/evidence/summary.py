"""From run records to a verdict per loss: what the table, the sentences and the report are made of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lossmith.errors import EvidenceError
from lossmith.evidence.bootstrap import BootstrapRange, bootstrap_blocks_and_examples
from lossmith.evidence.examples import PairedScores, paired_scores
from lossmith.evidence.mcnemar import ExampleComparison, compare_examples
from lossmith.evidence.metrics import metric_style
from lossmith.evidence.records import RunRecord
from lossmith.evidence.sentences import Verdict, baseline_sentence, comparison_sentence, decide, gaps_sentence
from lossmith.evidence.statistics import (
    NoiseFloor,
    PairedComparison,
    holm,
    noise_floor,
    paired_t,
)

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class LossSummary:
    """One loss of a study, against the baseline."""

    loss: str
    """Canonical composition string."""
    is_baseline: bool
    """Whether the others are compared with this one."""
    values: dict[int, float]
    """Seed -> metric, for the finished runs."""
    mean: float | None
    """Mean of `values`; None where no run is finished."""
    comparison: PairedComparison | None
    """Against the baseline, over seeds where both are finished; None for the baseline and where there is no pair."""
    bootstrap: BootstrapRange | None
    """Beside the t interval; from two pairs on, where every pair kept the metric's value on each test example."""
    by_example: ExampleComparison | None
    """Beside the verdict, about these seeds' models; from one pair on, where every pair kept those values."""
    holm_p: float | None
    """The p of the comparison, adjusted for the number of losses; None where there is no test."""
    verdict: Verdict
    """What the adjusted p allows to say."""
    sentence: str
    """The verdict in words."""
    train_seconds: float | None
    """Mean training time of the finished runs."""
    peak_memory_mib: float | None
    """Largest peak memory of the finished runs."""
    finished: int
    """Runs that finished."""
    failed: int
    """Runs that failed, such as by a loss that is not finite."""
    errors: tuple[str, ...]
    """Why they failed, by seed."""


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study, finished or under way, in numbers."""

    metric: str
    """Metric that the verdicts are about."""
    baseline: str
    """Loss that the others are compared with."""
    seeds: tuple[int, ...]
    """Planned blocks."""
    rows: tuple[LossSummary, ...]
    """One per loss, in the order asked for."""
    noise_floor: NoiseFloor | None
    """The baseline against itself on other blocks; None where it has no finished run."""
    planned: int
    """Runs that the study asks for."""
    finished: int
    """Runs that finished."""
    failed: int
    """Runs that failed."""


def summarize(
    records: Iterable[RunRecord],
    *,
    losses: Sequence[str],
    baseline: str,
    metric: str = "accuracy",
    seeds: Sequence[int],
) -> StudySummary:
    """Judge every loss against the baseline by the runs there are.

    Runs of other losses or seeds are left out: a store may hold more than this study asks for. Seeds where either
    side failed or is missing make no pair.

    Args:
        records: Runs, in any order.
        losses: Losses to judge, the baseline among them; rows come in this order.
        baseline: Loss that the others are compared with.
        metric: One of `lossmith.evidence.METRICS`.
        seeds: Planned blocks.

    Raises:
        EvidenceError: If `metric` is unknown, `baseline` is not among `losses`, a run comes twice, or a finished run
            lacks a finite value of the metric.
    """
    style = metric_style(metric)
    if baseline not in losses:
        raise EvidenceError(f"`baseline` must be one of the losses, got '{baseline}' and {list(losses)}.")
    runs = _runs_by_loss(records, losses, seeds)
    values = {loss: _finished_values(by_seed, metric) for loss, by_seed in runs.items()}
    comparisons = {
        loss: _compare(values[baseline], values[loss], higher_is_better=style.higher_is_better)
        for loss in losses
        if loss != baseline
    }
    tests = {loss: c.p_value for loss, c in comparisons.items() if c is not None and not math.isnan(c.p_value)}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    rows = tuple(
        _loss_summary(
            loss,
            runs=runs,
            values=values,
            baseline=baseline,
            metric=metric,
            comparison=comparisons.get(loss),
            holm_p=adjusted.get(loss),
            tests=len(tests),
            planned=len(seeds),
        )
        for loss in losses
    )
    return StudySummary(
        metric=metric,
        baseline=baseline,
        seeds=tuple(seeds),
        rows=rows,
        noise_floor=noise_floor(list(values[baseline].values())) if values[baseline] else None,
        planned=len(losses) * len(seeds),
        finished=sum(row.finished for row in rows),
        failed=sum(row.failed for row in rows),
    )


def _loss_summary(
    loss: str,
    *,
    runs: dict[str, dict[int, RunRecord]],
    values: dict[str, dict[int, float]],
    baseline: str,
    metric: str,
    comparison: PairedComparison | None,
    holm_p: float | None,
    tests: int,
    planned: int,
) -> LossSummary:
    finished = [run for run in runs[loss].values() if run.status == "finished"]
    failures = [run for run in runs[loss].values() if run.status == "failed"]
    mean = _mean(list(values[loss].values()))
    if loss == baseline:
        verdict, words = "baseline", baseline_sentence(mean, metric, finished=len(finished))
    else:
        verdict = decide(comparison, holm_p, metric)
        words = comparison_sentence(verdict, comparison, holm_p, baseline=baseline, metric=metric, tests=tests)
    gaps = gaps_sentence(
        failed=len(failures),
        without_baseline=len(values[loss].keys() - values[baseline].keys()),
        planned=planned,
        baseline=baseline,
    )
    examples = paired_scores(runs[baseline], runs[loss], metric) if comparison else None
    return LossSummary(
        loss=loss,
        is_baseline=loss == baseline,
        values=values[loss],
        mean=mean,
        comparison=comparison,
        bootstrap=_bootstrap(examples) if examples else None,
        by_example=_by_example(examples, metric) if examples else None,
        holm_p=holm_p,
        verdict=verdict,
        sentence=words + gaps,
        train_seconds=_mean([run.train_seconds for run in finished]),
        peak_memory_mib=max((run.peak_memory_mib for run in finished), default=None),
        finished=len(finished),
        failed=len(failures),
        errors=tuple(run.error or "The run failed and left no reason." for run in failures),
    )


def _runs_by_loss(
    records: Iterable[RunRecord], losses: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[int, RunRecord]]:
    """Loss -> seed -> run, in the order of the seeds; every loss and seed must come once."""
    for name, asked in (("losses", losses), ("seeds", seeds)):
        if not asked or len(set(asked)) != len(asked):
            raise EvidenceError(f"`{name}` must be at least one and differ from each other, got {list(asked)}.")
    found: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        if (record.loss, record.seed) in found:
            raise EvidenceError(f"`records` hold the run of '{record.loss}', seed {record.seed}, twice.")
        found[record.loss, record.seed] = record
    return {loss: {seed: found[loss, seed] for seed in seeds if (loss, seed) in found} for loss in losses}


def _finished_values(by_seed: dict[int, RunRecord], metric: str) -> dict[int, float]:
    return {seed: _metric_value(run, metric) for seed, run in by_seed.items() if run.status == "finished"}


def _metric_value(record: RunRecord, metric: str) -> float:
    value = record.metrics.get(metric)
    if value is None or not math.isfinite(value):
        raise EvidenceError(
            f"The finished run of '{record.loss}', seed {record.seed}, must hold a finite '{metric}', got {value}."
        )
    return float(value)


def _compare(
    baseline: dict[int, float], candidate: dict[int, float], *, higher_is_better: bool
) -> PairedComparison | None:
    pairs = [seed for seed in baseline if seed in candidate]
    if not pairs:
        return None
    before, after = [baseline[seed] for seed in pairs], [candidate[seed] for seed in pairs]
    return paired_t(before, after, higher_is_better=higher_is_better)


def _bootstrap(scores: PairedScores) -> BootstrapRange | None:
    """The bootstrap over blocks and examples; None with one block, which cannot be drawn again."""
    if len(scores.seeds) < 2:
        return None
    return bootstrap_blocks_and_examples(scores.baseline, scores.candidate, seed=_BOOTSTRAP_SEED)


def _by_example(scores: PairedScores, metric: str) -> ExampleComparison:
    return compare_examples(
        scores.baseline,
        scores.candidate,
        seeds=scores.seeds,
        higher_is_better=metric_style(metric).higher_is_better,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
