"""Every metric of a completion study at once: answers and reasoning steps, corrected and as released, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.evidence.metrics import METRICS, RELEASED, metric_style
from lossmith.evidence.records import RunRecord
from lossmith.evidence.statistics import PairedComparison, paired_t
from lossmith.evidence.summary import StudySummary
from lossmith.explain.text import MISSING, one_line
from lossmith.report.tables import Cell, Column, Table
from lossmith.report.wording import difference_with_interval, known, level, metric_name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one loss."""

    metric: str
    """Key in `RunRecord.metrics`."""
    mean: float | None
    """Over finished runs; None where none has it."""
    pairs: PairedComparison | None
    """Against the baseline, over seeds where both have it; None for the baseline itself."""


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One metric of one loss, in both versions."""

    metric: str
    """Its name without the mark of the released version."""
    loss: str
    """The loss."""
    is_baseline: bool
    """Whether the others are compared with it."""
    corrected: Measured
    """The metric as lossmith computes it."""
    released: Measured
    """The metric as the released code computes it, where it has it."""


def step_rows(summary: StudySummary, records: Sequence[RunRecord]) -> list[StepRow]:
    """Every metric that a finished run holds, metric by metric, a row per loss; NLL comes last."""
    present = {name for run in records if run.status == "finished" for name in run.metrics}
    metrics = [name for name in METRICS if not name.startswith(RELEASED) and {name, RELEASED + name} & present]
    metrics.sort(key=lambda name: metric_style(name).unit == "nats")
    return [
        StepRow(
            metric=metric,
            loss=row.loss,
            is_baseline=row.is_baseline,
            corrected=_measured(records, metric, row.loss, summary.baseline),
            released=_measured(records, RELEASED + metric, row.loss, summary.baseline),
        )
        for metric in metrics
        for row in summary.rows
    ]


def steps_table(rows: Sequence[StepRow]) -> Table:
    """The table that people read: percent and points, unless the metric says nats; an arrow where lower is better."""
    columns = [
        _texts("metric", "metric (↓ lower is better)", [(_metric_text(row.metric), row.metric) for row in rows]),
        _texts("loss", "loss", [(one_line(row.loss), row.loss) for row in rows]),
        _numbers("mean", "mean", [_mean_cell(row.corrected) for row in rows]),
        _numbers("difference", "difference [95% interval]", [_difference_cell(row, row.corrected) for row in rows]),
    ]
    if any(row.released.mean is not None for row in rows):
        differences = [_difference_cell(row, row.released) for row in rows]
        columns += [
            _numbers("released_mean", "as released: mean", [_mean_cell(row.released) for row in rows]),
            _numbers("released_difference", "as released: difference [95% interval]", differences),
        ]
    return Table(columns=tuple(columns))


def raw_steps_table(rows: Sequence[StepRow]) -> Table:
    """The table that machines read: fractions instead of percent, every number in its own column."""
    numbers: dict[str, list[float | None]] = {}
    for row in rows:
        for prefix, found in (("", row.corrected), (RELEASED, row.released)):
            values = {"mean": found.mean} | {
                name: getattr(found.pairs, name) if found.pairs else None for name in ("difference", "low", "high")
            }
            for name, value in values.items():
                numbers.setdefault(prefix + name, []).append(value)
    texts = {"metric": [row.metric for row in rows], "loss": [row.loss for row in rows]}
    return Table(
        columns=(
            *(_texts(name, name, [(one_line(text), text) for text in found]) for name, found in texts.items()),
            *(
                _numbers(name, name, [(repr(value) if known(value) else "", value) for value in found])
                for name, found in numbers.items()
            ),
        )
    )


def _measured(records: Sequence[RunRecord], metric: str, loss: str, baseline: str) -> Measured:
    values, before = _by_seed(records, metric, loss), _by_seed(records, metric, baseline)
    seeds = [seed for seed in values if seed in before]
    if metric not in METRICS or loss == baseline or not seeds:
        pairs = None
    else:
        pairs = paired_t(
            [before[seed] for seed in seeds],
            [values[seed] for seed in seeds],
            higher_is_better=metric_style(metric).higher_is_better,
        )
    mean = sum(values.values()) / len(values) if values else None
    return Measured(metric=metric, mean=mean, pairs=pairs)


def _by_seed(records: Sequence[RunRecord], metric: str, loss: str) -> dict[int, float]:
    """Seed -> value; a value that is not finite is left out, as a metric that no example has."""
    return {
        run.seed: run.metrics[metric]
        for run in records
        if run.loss == loss and run.status == "finished" and math.isfinite(run.metrics.get(metric, math.nan))
    }


def _metric_text(metric: str) -> str:
    style = metric_style(metric)
    unit = " (nats)" if style.unit == "nats" else ""
    mark = "" if style.higher_is_better else "\N{NO-BREAK SPACE}↓"
    return f"{metric_name(metric)}{unit}{mark}"


def _mean_cell(found: Measured) -> tuple[str, float | None]:
    return (level(found.mean, found.metric) if found.mean is not None else MISSING, found.mean)


def _difference_cell(row: StepRow, found: Measured) -> tuple[str, float | None]:
    if row.is_baseline:
        return ("baseline" if found.mean is not None else MISSING, None)
    if found.pairs is None:
        return (MISSING, None)
    return (difference_with_interval(found.pairs, found.metric), found.pairs.difference)


def _texts(name: str, header: str, cells: Sequence[tuple[str, str]]) -> Column:
    made = tuple(Cell(text=text, value=value) for text, value in cells)
    return Column(name=name, header=header, cells=made, numeric=False)


def _numbers(name: str, header: str, cells: Sequence[tuple[str, float | None]]) -> Column:
    return Column(name=name, header=header, cells=tuple(Cell(text=text, value=value) for text, value in cells))
