"""What the models of a study look like inside, as one HTML page that needs nothing but itself, with PNG and CSV."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossmith._extras import require
from lossmith.evidence.folders import cannot_write
from lossmith.explain.text import one_line
from lossmith.report.explanation_words import (
    disagreement_sentences,
    faithfulness_table,
    findings,
    measured,
    measures_table,
    stability_sentences,
)
from lossmith.report.tables import Cell, Column, Table, to_csv
from lossmith.report.wording import p_value
from lossmith.studies.explained_results import ExplainedStudy

NOTE = (
    "The intervals are those of a paired t over seeds and describe one measure at a time: they are not corrected for "
    "the number of measures, so some of so many exclude 0 by chance."
)


def write_explanation(folder: Path | str, study: ExplainedStudy, *, title: str, commands: Sequence[str] = ()) -> Path:
    """Write `explain.html`, its figures as PNG and its tables as CSV into `folder`, and return the path of the page.

    Each file is whole or absent, and equal inputs give equal files.

    Args:
        folder: Where to write; made if it is not there.
        study: From `lossmith.studies.explained.explain_study`.
        title: Heading of the page.
        commands: Command lines that make it again.

    Raises:
        EvidenceError: If the folder cannot be written.
        MissingExtraError: If matplotlib, jinja2 or pandas is not installed.
    """
    for package in ("matplotlib", "jinja2", "pandas"):
        require(package, extra="explain", purpose="write an explanation")
    from lossmith.explain.canvas import png_bytes
    from lossmith.report.explanation_gallery import explanation_figures
    from lossmith.report.write import write_files

    folder = Path(folder)
    figures = explanation_figures(study)
    page = render_explanation(study, figures, title=title, commands=commands)
    files = {f"{figure.name}.png": png_bytes(figure.figure) for figure in figures}
    files |= {f"{name}.csv": to_csv(table).encode("utf-8", "replace") for name, table in csv_tables(study).items()}
    files["explain.html"] = page.encode("utf-8", "replace")
    try:
        write_files(folder, files)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder / "explain.html"


def render_explanation(study: ExplainedStudy, figures: Sequence[Any], *, title: str, commands: Sequence[str]) -> str:
    """The whole page; every foreign text in it is escaped."""
    from markupsafe import Markup

    from lossmith.explain.canvas import loss_styles
    from lossmith.report.explanation_highlights import highlighted
    from lossmith.report.html import figure_svg, page_environment, script_hash, script_json

    environment = page_environment()
    script = environment.get_template("report.js").render()
    values = measured(study)
    looks = loss_styles(study.losses, study.baseline)
    data = {"title": title, "settings": study.config.settings(), "seeds": study.seeds, "measures": values}
    first = study.samples[study.seeds[0]]
    return environment.get_template("explanation.html.j2").render(
        title=title,
        study=study,
        examples=len(first.rows),
        attributed=len(first.attributed),
        findings=findings(study, values),
        table=measures_table(study, values),
        note=NOTE,
        colours={loss: look.colour for loss, look in looks.items()},
        figures=[(figure, Markup(figure_svg(figure))) for figure in figures],
        disagreements=_disagreement_rows(study),
        disagreed=disagreement_sentences(study),
        faithful=faithfulness_table(study),
        stable=stability_sentences(study),
        highlights=highlighted(study),
        notices=study.notices,
        commands=[line for command in commands for line in command.split("\n")],
        data=Markup(script_json(data)),
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup("\n".join(environment.get_template(f"{name}.css").render() for name in ("report", "explanation"))),
    )


def _disagreement_rows(study: ExplainedStudy) -> list[dict[str, Any]]:
    return [
        {
            "loss": one.model,
            "seeds": "; ".join(
                f"seed {seed}: +{len(one.gained[seed])} −{len(one.lost[seed])} (p {p_value(one.p_values[seed])})"
                for seed in one.gained
            ),
            "p": p_value(None if one.pooled is None else one.pooled.p_value),
        }
        for one in study.disagreements.losses
    ]


def csv_tables(study: ExplainedStudy) -> dict[str, Table]:
    """File name -> table, every number lossless."""
    pandas = require("pandas", extra="explain", purpose="write tables")
    frames: dict[str, Any] = {
        "embedding_maps": pandas.concat(
            [study.maps.frame().assign(method="tsne"), study.planes.frame().assign(method="pca")], ignore_index=True
        ),
        "deciles": pandas.concat(
            [
                part.frame().assign(quantity=part.quantity)
                for part in (study.by_common_distance, study.by_own_distance, study.by_length)
            ],
            ignore_index=True,
        ),
        "geometry": study.geometry.frame(),
        "calibration": study.calibration.frame(),
        "faithfulness": study.faithfulness.frame(),
        "stability": study.stability.frame(),
        "disagreements": study.disagreements.frame(),
        "disagreeing_examples": _with_rows(study, study.disagreements.examples_frame()),
        "example_weights": study.weights.frame(),
        "example_gradients": _with_labels(study, study.weights.examples_frame()),
        "highlights": study.highlights.frame(),
        "attributions": pandas.concat(
            [
                attributions.frame().assign(model=loss, seed=seed)
                for loss, seeds in study.attributions.items()
                for seed, attributions in seeds.items()
            ],
            ignore_index=True,
        ),
    }
    return {name: frame_table(frame) for name, frame in frames.items()}


def _with_rows(study: ExplainedStudy, frame: Any) -> Any:
    """Beside an example's place in the sample: its row of the test set, its label and its text."""
    places = zip(frame["seed"], frame["example"], strict=True)
    texts = [study.samples[int(seed)].examples[int(place)].text for seed, place in places]
    return _with_labels(study, frame).assign(text=texts)


def _with_labels(study: ExplainedStudy, frame: Any) -> Any:
    """Beside an example's place in the sample: its row of the test set and its label."""
    pairs = list(zip(frame["seed"], frame["example"], strict=True))
    found = [(study.samples[int(seed)], int(place)) for seed, place in pairs]
    return frame.assign(
        row=[int(sample.rows[place]) for sample, place in found],
        label=[study.label_names[sample.examples[place].label] for sample, place in found],
    )


def frame_table(frame: Any) -> Table:
    """A DataFrame as a table: numbers lossless, missing ones empty, text on one line."""
    columns = []
    for name in frame.columns:
        values = frame[name].tolist()
        cells = tuple(_cell(value) for value in values)
        columns.append(
            Column(name=str(name), header=str(name), cells=cells, numeric=not any(isinstance(v, str) for v in values))
        )
    return Table(columns=tuple(columns))


def _cell(value: Any) -> Cell:
    if isinstance(value, str):
        return Cell(text=one_line(value), value=value)
    if isinstance(value, float) and math.isnan(value):
        return Cell(text="", value=None)
    return Cell(text=str(value), value=value)


def explanation_summary(study: ExplainedStudy) -> Mapping[str, list[str]]:
    """What the terminal says: findings, disagreements and notices."""
    return {
        "findings": findings(study, measured(study)),
        "disagreements": disagreement_sentences(study),
        "notices": list(study.notices),
    }
