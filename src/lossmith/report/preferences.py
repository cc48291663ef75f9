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

KINDS = {"preferences": "pairs", "rated": "rated answers"}
"""What the records of such a study call it -> what it trains on."""
BEFORE = "(before training)"
DISPLACED_NATS = 1.0
"""Chosen answers that lost so much are called displaced, as in training logs."""
MOVED = (
    ("chosen_shift", "rejected_shift", "margin", "chosen"),
    ("desirable_shift", "undesirable_shift", "shift_gap", "good"),
)
"""Shift of the better and of the worse answers, their difference, and what the better ones are called."""
SIDES = ("chosen", "rejected", "good answer", "bad answer")
"""Answers of the data that stand beside what a model wrote."""
LEVELS = (
    *PREFERENCE_ACCURACIES[:1],
    *PREFERENCE_ACCURACIES[2:],
    *("auc", "auc_per_token", "policy_auc", "rated_accuracy"),
    *("margin", "chosen_shift", "rejected_shift", "chosen_shift_per_token"),
    *("shift_gap", "desirable_shift", "undesirable_shift", "desirable_shift_per_token", "nll"),
    *("kl", "reward", "reward_score", "reward_win_rate", "likelihood_win_rate"),
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
    """Answers of the data, by what they are called, with their lines."""
    written: tuple[tuple[str, tuple[str, ...]], ...]
    """Loss and lines."""


@dataclass(frozen=True, kw_only=True)
class PreferenceParts:
    """The parts of a report that only studies of preferences have."""

    rated: bool
    """Whether answers are rated one by one; else they come in pairs."""
    data: Table | None
    """Rows, repeats and lengths of each split; None where the records do not have them."""
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
    """Whether the runs trained on given answers; failed runs say so too."""
    return _kind(records) is not None


def _kind(records: Sequence[RunRecord]) -> str | None:
    return next((kind for run in records if (kind := run.config.get("kind")) in KINDS), None)


def better_and_worse(records: Sequence[RunRecord]) -> tuple[str, str, str, str]:
    """Metrics of how far both sides moved and of their difference, and what the better answers are called."""
    return MOVED[_kind(records) == "rated"]


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
        rated=_kind(records) == "rated",
        data=_data_table(records),
        levels=_levels_table(summary, finished),
        metrics=steps_table(rows),
        raw=raw_steps_table(rows),
        displaced=_displaced(summary, finished),
        shown=_shown(summary, [run for run in finished if run.seed == seed]),
        seed=seed,
    )


def pair_sizes(records: Sequence[RunRecord]) -> str:
    """How much data a run saw."""
    kind = _kind(records)
    config = next((run.config for run in records if kind and run.config.get("kind") == kind), {})
    train, test = (one_line(config.get(f"{split}_texts")) for split in ("train", "test"))
    counted = (config.get(f"{split}_labels") or {} for split in ("train", "test"))
    good = [f" ({one_line(labels['good'])} good)" if "good" in labels else "" for labels in counted]
    rows = KINDS[kind or "preferences"]
    return f"{train} training {rows} per seed{good[0]}, {test} test {rows}{good[1]}"


def _data_table(records: Sequence[RunRecord]) -> Table | None:
    """Median and 95th percentile of characters, since answers of unlike lengths are told apart by length alone."""
    rows = next((run.config["lengths"] for run in records if run.config.get("lengths")), None)
    if rows is None:
        return None
    columns = [text_column("split", "split", [(one_line(row["split"]), row["split"]) for row in rows])]
    for name, header in (("pairs", "pairs"), ("repeated", "repeat another")):
        columns.append(number_column(name, header, [(f"{row[name]:,}", row[name]) for row in rows]))
    for part in ("prompt", "chosen", "rejected"):
        cells = [(f"{row['medians'][part]:,.0f} / {row['highs'][part]:,.0f}", row["medians"][part]) for row in rows]
        columns.append(number_column(part, f"{part} (characters)", cells))
    for name, header in (("chosen_longer", "chosen is longer (%)"), ("same_length", "as long (%)")):
        columns.append(number_column(name, header, [(f"{100 * row[name]:.0f}", row[name]) for row in rows]))
    return Table(columns=tuple(columns))


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
    better, _, gap, name = better_and_worse(finished)
    sentences = []
    for row in summary.rows:
        runs = [run for run in finished if run.loss == row.loss and better in run.metrics]
        fell = [run for run in runs if run.metrics[better] < -DISPLACED_NATS and run.metrics.get(gap, 0) > 0]
        if fell:
            mean = _mean([run.metrics[better] for run in fell])
            sentences.append(
                f"{one_line(row.loss)}: in {len(fell)} of {len(runs)} runs the margin grew while the {name} answers "
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
                given=tuple((side, _lines(first[side])) for side in SIDES if side in first),
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
