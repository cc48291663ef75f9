"""What the report of a study of preferences shows: levels beside those before training, displacement, samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lossmith.evidence.metrics import (
    PREFERENCE_ACCURACIES,
    START,
)
from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.explain.text import one_line
from lossmith.report.steps import raw_steps_table, step_rows, steps_table
from lossmith.report.tables import Table, number_column, text_column
from lossmith.report.wording import level, level_unit, metric_name

KIND = "preferences"
"""What the records of such a study call it."""
BEFORE = "(before training)"
DISPLACED_NATS = 1.0
"""Chosen answers that lost so much are called displaced, as in training logs."""
LEVELS = (
    *PREFERENCE_ACCURACIES[:1],
    *PREFERENCE_ACCURACIES[2:],
    *("margin", "chosen_shift", "rejected_shift", "chosen_shift_per_token", "nll"),
)
"""Columns of the table of levels."""
SHOWN_CHARACTERS = 600
"""Of a sample text; the record has all of it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A test prompt with both answers of the data and what each loss's model wrote."""

    title: str
    """What it is called."""
    prompt: tuple[str, ...]
    """Lines of the prompt."""
    given: tuple[tuple[str, tuple[str, ...]], ...]
    """`chosen` and `rejected` with their lines."""
    written: tuple[tuple[str, tuple[str, ...]], ...]
    """Loss and lines."""


@dataclass(frozen=True, kw_only=True)
class PreferenceParts:
    """The parts of a report that only studies of preferences have."""

    levels: Table
    """Means by loss, the model before training first."""
    metrics: Table
    """Every metric with its paired difference, for people."""
    raw: Table
    """The same for machines."""
    displaced: tuple[str, ...]
    """Sentences on losses whose chosen answers became much less likely while margins grew."""
    shown: tuple[Shown, ...]
    """Test prompts and answers."""
    seed: int | None
    """The seed whose models wrote them."""


def is_preference(records: Sequence[RunRecord]) -> bool:
    """Whether the runs trained on pairs of answers; failed runs say so too."""
    return any(run.config.get("kind") == KIND for run in records)


def preference_parts(summary: StudySummary, records: Sequence[RunRecord]) -> PreferenceParts | None:
    """The parts that a study of preferences adds; None for others."""
    if not is_preference(records):
        return None
    finished = [run for run in records if run.status == "finished"]
    # Of the model before training there is nothing to compare.
    trained = [
        replace(run, metrics={name: value for name, value in run.metrics.items() if not name.startswith(START)})
        for run in finished
    ]
    rows = step_rows(summary, trained)
    seed = min((run.seed for run in finished if run.config.get("shown")), default=None)
    return PreferenceParts(
        levels=_levels_table(summary, finished),
        metrics=steps_table(rows),
        raw=raw_steps_table(rows),
        displaced=_displaced(summary, finished),
        shown=_shown(summary, [run for run in finished if run.seed == seed]),
        seed=seed,
    )


def pair_sizes(records: Sequence[RunRecord]) -> str:
    """How much data a run saw."""
    config = next((run.config for run in records if run.config.get("kind") == KIND), {})
    train, test = (one_line(config.get(f"{split}_texts")) for split in ("train", "test"))
    return f"{train} training pairs per seed, {test} test pairs"


def _levels_table(summary: StudySummary, finished: Sequence[RunRecord]) -> Table:
    names = [row.loss for row in summary.rows]
    columns = [text_column("loss", "loss", [(BEFORE, BEFORE), *((one_line(name), name) for name in names)])]
    for metric in LEVELS:
        means = [_mean([run.metrics.get(START + metric) for run in finished])]
        means += [_mean([run.metrics.get(metric) for run in finished if run.loss == name]) for name in names]
        if all(mean is None for mean in means):
            continue
        header = f"{metric_name(metric)} ({level_unit(metric)})"
        columns.append(number_column(metric, header, [(level(mean, metric), mean) for mean in means]))
    return Table(columns=tuple(columns))


def _displaced(summary: StudySummary, finished: Sequence[RunRecord]) -> tuple[str, ...]:
    sentences = []
    for row in summary.rows:
        runs = [run for run in finished if run.loss == row.loss and "chosen_shift" in run.metrics]
        fell = [
            run for run in runs if run.metrics["chosen_shift"] < -DISPLACED_NATS and run.metrics.get("margin", 0) > 0
        ]
        if fell:
            mean = _mean([run.metrics["chosen_shift"] for run in fell])
            sentences.append(
                f"{one_line(row.loss)}: in {len(fell)} of {len(runs)} runs the margin grew while the chosen answers "
                f"became less likely (by {level(-(mean or 0.0), 'margin')} nats each on average): displacement."
            )
    return tuple(sentences)


def _shown(summary: StudySummary, runs: Sequence[RunRecord]) -> tuple[Shown, ...]:
    by_loss = {run.loss: run.config["shown"] for run in runs if run.config.get("shown")}
    if not by_loss:
        return ()
    found = []
    for place, first in enumerate(next(iter(by_loss.values()))):
        written = tuple(
            (row.loss, _lines(by_loss[row.loss][place]["answer"]))
            for row in summary.rows
            if row.loss in by_loss and place < len(by_loss[row.loss])
        )
        title = one_line(first["prompt"])
        found.append(
            Shown(
                title=title if len(title) <= 90 else title[:89] + "…",
                prompt=_lines(first["prompt"]),
                given=tuple((side, _lines(first[side])) for side in ("chosen", "rejected")),
                written=written,
            )
        )
    return tuple(found)


def _lines(text: str) -> tuple[str, ...]:
    kept = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return tuple(one_line(line) for line in kept.split("\n")) if kept.strip() else ()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
