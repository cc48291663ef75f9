"""The page of a tuning: what it changed, what it cost, and which parameters matter."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lossmith.evidence.folders import cannot_write
from lossmith.evidence.metrics import metric_style
from lossmith.evidence.sentences import SIGNIFICANCE
from lossmith.evidence.statistics import holm
from lossmith.report.provenance import flat_settings
from lossmith.report.tables import to_csv
from lossmith.report.tuning_tables import (
    chosen_table,
    gains_table,
    parameters_table,
    raw_sensitivity_table,
    raw_trials_table,
    raw_tuning_table,
    searches_table,
)
from lossmith.report.wording import difference_with_interval
from lossmith.studies.sensitivity import LossSensitivity
from lossmith.studies.tuning import Tuning


def write_tuning(
    folder: Path, tuning: Tuning, found: Sequence[LossSensitivity], *, title: str, commands: Sequence[str]
) -> Path:
    """Write what a tuning found into `folder`, and return the path of its page.

    Writes `tune.html`, `sensitivity.csv` (a row per loss and parameter), `tuning.csv` (a row per loss), `trials.csv` (a
    row per trial) and a `sensitivity-*.png` per loss. Each file is whole or absent, and equal inputs give equal files.

    Args:
        folder: The results folder.
        tuning: From `lossmith.studies.tuning`.
        found: From `lossmith.studies.sensitivity`.
        title: Heading of the page.
        commands: Command lines that make it again.

    Raises:
        EvidenceError: If the folder cannot be written.
        MissingExtraError: If matplotlib or jinja2 is not installed.
    """
    from lossmith.explain.canvas import png_bytes
    from lossmith.report.tuning_figures import tuning_figures
    from lossmith.report.write import write_files

    figures = tuning_figures(tuning, found)
    page = render_tuning(tuning, found, figures, title=title, commands=commands)
    texts = {
        "sensitivity.csv": to_csv(raw_sensitivity_table(found)),
        "tuning.csv": to_csv(raw_tuning_table(tuning, found)),
        "trials.csv": to_csv(raw_trials_table(tuning)),
        "tune.html": page,
    }
    files = {f"{figure.name}.png": png_bytes(figure.figure) for figure in figures}
    try:
        write_files(folder, files | {name: text.encode("utf-8", "replace") for name, text in texts.items()})
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder / "tune.html"


def render_tuning(
    tuning: Tuning,
    found: Sequence[LossSensitivity],
    figures: Sequence[Any],
    *,
    title: str,
    commands: Sequence[str],
) -> str:
    """The whole page; every foreign text in it is escaped."""
    from markupsafe import Markup

    from lossmith.explain.canvas import loss_styles
    from lossmith.report.html import figure_svg, page_environment, script_hash, script_json

    environment = page_environment()
    script = environment.get_template("report.js").render()
    looks = loss_styles([row.loss for row in found], tuning.config.study.baseline)
    return environment.get_template("tune.html.j2").render(
        title=title,
        config=tuning.config,
        summary=tuning.study.summary,
        answers=tuning_answers(tuning, found),
        gains=gains_table(tuning, found),
        searches=searches_table(tuning, found),
        chosen=chosen_table(tuning),
        losses=[
            (row, parameters_table(row), figure, Markup(figure_svg(figure)))
            for row, figure in zip(found, figures, strict=True)
        ],
        colours={loss: look.colour for loss, look in looks.items()},
        notices=tuning.study.notices,
        settings=flat_settings(tuning.config.settings()),
        commands=[line for command in commands for line in command.split("\n")],
        attribution=tuning.study.attribution,
        data=Markup(script_json(_page_data(tuning, found, title, commands))),
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(environment.get_template("report.css").render()),
    )


def tuning_answers(tuning: Tuning, found: Sequence[LossSensitivity]) -> list[str]:
    """What was found, in sentences: the comparison tuned and untuned, and what tuning is worth."""
    from lossmith.report.html import answer

    metric = tuning.config.study.metric
    gains = [(row.loss, row.gain) for row in found if row.gain and row.gain.blocks > 1]
    adjusted = holm([gain.p_value for _, gain in gains])
    told = [
        f"{loss} ({difference_with_interval(gain, metric)} {metric_style(metric).unit})"
        for (loss, gain), p in zip(gains, adjusted, strict=True)
        if p < SIGNIFICANCE
    ]
    return [
        f"Each tuned alike: {answer(tuning.study.summary)}",
        f"As written: {answer(tuning.untuned.summary)}",
        f"Tuning changed the test of {', '.join(told)}." if told else "Tuning was not shown to change any loss.",
    ]


def _page_data(tuning: Tuning, found: Sequence[LossSensitivity], title: str, commands: Sequence[str]) -> dict[str, Any]:
    return {
        "title": title,
        "commands": list(commands),
        "settings": tuning.config.settings(),
        "tuned": asdict(tuning.study.summary),
        "untuned": asdict(tuning.untuned.summary),
        "sensitivity": [asdict(row) for row in found],
    }
