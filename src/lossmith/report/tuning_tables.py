"""A tuning as tables: before and after, what the searches saw, and which parameters matter."""

import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from lossmith.evidence.metrics import metric_style
from lossmith.evidence.summary import LossSummary
from lossmith.explain.text import MISSING, one_line
from lossmith.report.tables import Table, number_column, raw_column, text_column
from lossmith.report.wording import (
    decimal,
    difference,
    difference_with_interval,
    level,
    level_unit,
    metric_name,
)
from lossmith.studies.sensitivity import LossSensitivity, ParameterSensitivity, gains
from lossmith.studies.tuning import Tuning
from lossmith.studies.tuning_space import Value

Raw = str | float | None


def gains_table(tuning: Tuning, found: Sequence[LossSensitivity]) -> Table:
    """One row per loss: the test before and after tuning, and the difference to the baseline before and after."""
    metric = tuning.config.study.metric
    before = {row.loss: row for row in tuning.untuned.summary.rows}
    after = {row.loss: row for row in tuning.study.summary.rows}
    unit, losses = metric_style(metric).unit, [row.loss for row in found]
    against = f"difference to {one_line(tuning.config.study.baseline)}"
    return Table(
        columns=(
            text_column("loss", "loss", [(loss, loss) for loss in losses]),
            number_column(
                "untuned",
                f"untuned {metric_name(metric)} ({level_unit(metric)})",
                [(level(before[loss].mean, metric), before[loss].mean) for loss in losses],
            ),
            number_column("tuned", "tuned", [(level(after[loss].mean, metric), after[loss].mean) for loss in losses]),
            number_column(
                "gain",
                f"gain by tuning [95% interval] ({unit})",
                [(difference_with_interval(row.gain, metric), row.gain and row.gain.difference) for row in found],
            ),
            number_column(
                "untuned_difference", f"{against}, untuned", [_against(before[loss], metric) for loss in losses]
            ),
            number_column("tuned_difference", f"{against}, tuned", [_against(after[loss], metric) for loss in losses]),
        )
    )


def searches_table(tuning: Tuning, found: Sequence[LossSensitivity]) -> Table:
    """One row per loss: the budget that it used, and the metric over the inner folds."""
    metric = tuning.config.objective
    unit = metric_style(metric).unit
    return Table(
        columns=(
            text_column("loss", "loss", [(row.loss, row.loss) for row in found]),
            number_column("trials", "trials", [(str(row.trials), row.trials) for row in found]),
            number_column("pruned", "stopped early", [(str(row.pruned), row.pruned) for row in found]),
            number_column("failed", "not finite", [(str(row.failed), row.failed) for row in found]),
            number_column("seconds", "search per seed (s)", [(decimal(row.seconds, 0), row.seconds) for row in found]),
            number_column(
                "inner_untuned",
                f"inner {metric_name(metric)} ({level_unit(metric)}): untuned",
                [(level(row.untuned, metric), row.untuned) for row in found],
            ),
            number_column("inner_median", "median", [(level(row.middle, metric), row.middle) for row in found]),
            number_column("inner_best", "best", [(level(row.best, metric), row.best) for row in found]),
            number_column("spread", f"80% of trials gain ({unit})", [_spread(row, metric) for row in found]),
            number_column("changed", "seeds changed", [(str(row.changed), row.changed) for row in found]),
        )
    )


def parameters_table(row: LossSensitivity) -> Table:
    """One row per parameter of a loss, the one that matters most first."""
    parts = sorted(row.parameters, key=lambda part: -(part.importance or 0.0))
    return Table(
        columns=(
            text_column("parameter", "parameter", [(part.name, part.name) for part in parts]),
            number_column("importance", "importance (%) [a seed left out]", [_importance(part) for part in parts]),
            text_column("searched", "searched", [(_where(part.space), part.name) for part in parts]),
            text_column("untuned", "untuned", [(shown(part.space["untuned"]), part.name) for part in parts]),
            text_column("chosen", "chosen, over seeds", [(_chosen(part), part.name) for part in parts]),
        )
    )


def chosen_table(tuning: Tuning) -> Table:
    """One row per run: which trial won, and what it set."""
    runs = [record for record in tuning.study.records if record.config["tuned"]["trial"] is not None]
    settings = [_settings(record.config["tuned"]) for record in runs]
    return Table(
        columns=(
            text_column("loss", "loss", [(run.loss, run.loss) for run in runs]),
            number_column("seed", "seed", [(str(run.seed), run.seed) for run in runs]),
            number_column("trial", "trial", [_trial(run.config["tuned"]["trial"]) for run in runs]),
            text_column("tuned", "tuned loss", [(run.config["tuned"]["loss"],) * 2 for run in runs]),
            text_column("settings", "settings", [(words, words) for words in settings]),
        )
    )


def raw_sensitivity_table(found: Sequence[LossSensitivity]) -> Table:
    """One row per loss and parameter, for machines."""
    return _raw([_raw_parameter(row.loss, part) for row in found for part in row.parameters])


def raw_tuning_table(tuning: Tuning, found: Sequence[LossSensitivity]) -> Table:
    """One row per loss, for machines."""
    before = {row.loss: row for row in tuning.untuned.summary.rows}
    after = {row.loss: row for row in tuning.study.summary.rows}
    return _raw([_raw_loss(row, before[row.loss], after[row.loss]) for row in found])


def raw_trials_table(tuning: Tuning) -> Table:
    """One row per trial, for machines."""
    rows = []
    for record in tuning.study.records:
        found = record.config["tuned"]
        for place, (trial, gain) in enumerate(zip(found["trials"], gains(found["trials"]), strict=True)):
            rows.append(
                {
                    "loss": record.loss,
                    "seed": record.seed,
                    "trial": place + 1,
                    "state": trial["state"],
                    "chosen": int(place == found["trial"]),
                    "folds": len(trial["folds"]),
                    "score": sum(trial["folds"]) / len(trial["folds"]) if trial["folds"] else None,
                    "gain": gain,
                    "seconds": trial["seconds"],
                    "values": json.dumps(trial["values"]),
                }
            )
    return _raw(rows)


def shown(value: Value) -> str:
    """A tuned value for a reader.

    Example:
        >>> shown(0.00034567), shown(12), shown("mean")
        ('0.0003457', '12', 'mean')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _against(row: LossSummary, metric: str) -> tuple[str, float | None]:
    if row.is_baseline:
        return "baseline", None
    verdict = f" {row.verdict}" if row.comparison else ""
    return difference_with_interval(row.comparison, metric) + verdict, row.comparison and row.comparison.difference


def _spread(row: LossSensitivity, metric: str) -> tuple[str, float | None]:
    if row.spread is None:
        return MISSING, None
    low, _, high = row.spread
    return f"{difference(low, metric)} to {difference(high, metric)}", high - low


def _importance(part: ParameterSensitivity) -> tuple[str, float | None]:
    if part.importance is None:
        return MISSING, None
    around = "" if part.low is None or part.high is None else f" [{100 * part.low:.0f}, {100 * part.high:.0f}]"
    return f"{100 * part.importance:.0f}{around}", part.importance


def _where(space: dict[str, Any]) -> str:
    if "choices" in space:
        return ", ".join(shown(choice) for choice in space["choices"])
    return f"{shown(space['low'])} to {shown(space['high'])}{', log' if space['log'] else ''}"


def _chosen(part: ParameterSensitivity) -> str:
    """The middle and the ends of numbers, or each word with its count."""
    values = list(part.chosen.values())
    if not values:
        return MISSING
    if "choices" in part.space:
        counts = {shown(value): values.count(value) for value in values}
        return ", ".join(f"{value} ({count})" for value, count in counts.items())
    numbers = [float(value) for value in values]
    return f"{shown(median(numbers))} ({shown(min(numbers))} to {shown(max(numbers))})"


def _settings(found: dict[str, Any]) -> str:
    """What the winning trial set that the string of the loss does not say."""
    named = {name: value for name, value in found["values"].items() if "." not in name and name != "b"}
    return ", ".join(f"{name} {shown(value)}" for name, value in named.items()) or MISSING


def _trial(place: int) -> tuple[str, float]:
    return ("untuned" if place == 0 else str(place), place)


def _raw_parameter(loss: str, part: ParameterSensitivity) -> dict[str, Raw]:
    numbers = [float(value) for value in part.chosen.values() if isinstance(value, int | float)]
    return {
        "loss": loss,
        "parameter": part.name,
        "importance": part.importance,
        "importance_low": part.low,
        "importance_high": part.high,
        "searched": _where(part.space),
        "untuned": shown(part.space["untuned"]),
        "chosen_median": median(numbers) if numbers else None,
        "chosen_min": min(numbers, default=None),
        "chosen_max": max(numbers, default=None),
        "chosen": ", ".join(f"{seed}: {shown(value)}" for seed, value in part.chosen.items()),
    }


def _raw_loss(row: LossSensitivity, before: LossSummary, after: LossSummary) -> dict[str, Raw]:
    low, middle, high = row.spread or (None, None, None)
    return {
        "loss": row.loss,
        "untuned": before.mean,
        "tuned": after.mean,
        "gain": row.gain and row.gain.difference,
        "gain_low": row.gain and row.gain.low,
        "gain_high": row.gain and row.gain.high,
        "gain_p": row.gain and row.gain.p_value,
        "untuned_difference": before.comparison and before.comparison.difference,
        "untuned_verdict": before.verdict,
        "tuned_difference": after.comparison and after.comparison.difference,
        "tuned_verdict": after.verdict,
        "trials": row.trials,
        "pruned": row.pruned,
        "failed": row.failed,
        "seconds": row.seconds,
        "inner_untuned": row.untuned,
        "inner_median": row.middle,
        "inner_best": row.best,
        "trial_gain_10": low,
        "trial_gain_50": middle,
        "trial_gain_90": high,
        "seeds_changed": row.changed,
    }


def _raw(rows: list[dict[str, Raw]]) -> Table:
    return Table(columns=tuple(raw_column(name, [row[name] for row in rows]) for name in rows[0]) if rows else ())
