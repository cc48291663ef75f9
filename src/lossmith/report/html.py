"""The report as one HTML file that needs nothing but itself: no network, and no text that a browser would run."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lossmith.evidence.metrics import metric_style
from lossmith.evidence.records import RunRecord
from lossmith.evidence.sentences import SIGNIFICANCE
from lossmith.evidence.summary import LossSummary, StudySummary
from lossmith.explain.canvas import inline_svg, loss_styles
from lossmith.explain.text import one_line
from lossmith.report.completions import CompletionParts, example_rows, grouped, sizes
from lossmith.report.frontier import FrontierParts, sample_sizes
from lossmith.report.gallery import ReportFigure
from lossmith.report.inference import InferenceParts, by_loss
from lossmith.report.preferences import PreferenceParts, pair_sizes
from lossmith.report.provenance import flat_settings, provenance
from lossmith.report.tables import comparison_table
from lossmith.report.wording import difference, difference_with_interval, known, p_value

# Inside <script>, these could end the element, open a comment or end a line.
JSON_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render_html(
    *,
    summary: StudySummary,
    records: Sequence[RunRecord],
    figures: Sequence[ReportFigure],
    title: str,
    settings: Mapping[str, Any],
    commands: Sequence[str],
    attribution: str = "",
    notices: Sequence[str] = (),
    parts: CompletionParts | None = None,
    explained: bool = False,
    inference: InferenceParts | None = None,
    preferences: PreferenceParts | None = None,
    sentiment: FrontierParts | None = None,
) -> str:
    """The whole page; every foreign text in it is escaped, and equal inputs give equal pages."""
    from markupsafe import Markup

    environment = page_environment()
    styles = (
        ["report.css"]
        if parts is None and preferences is None and sentiment is None
        else ["report.css", "completions.css"]
    )
    script = environment.get_template("report.js").render()
    style = "\n".join(environment.get_template(name).render() for name in styles)
    origin = provenance(records)
    data = page_data(summary, records, title=title, settings=settings, commands=commands)
    if parts is None and preferences is None and sentiment is None:  # a classification's page compares by seed alone
        for row in data["summary"]["rows"]:
            del row["by_example"]
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        answer=answer(summary),
        table=comparison_table(summary),
        colours={
            loss: look.colour for loss, look in loss_styles([r.loss for r in summary.rows], summary.baseline).items()
        },
        figures=[(figure, Markup(figure_svg(figure))) for figure in figures],
        evidence=[_evidence(row, summary.metric) for row in summary.rows if row.comparison],
        noise=_noise_sentence(summary),
        sign_flip=_sign_flip_sentence(summary),
        failures=[record for record in records if record.status == "failed"],
        provenance=origin,
        notices=(*notices, *origin.warnings),
        sizes=pair_sizes(records)
        if preferences
        else sample_sizes(records)
        if sentiment
        else _sizes(records)
        if parts is None
        else sizes(records),
        parts=parts,
        inference=inference,
        preferences=preferences,
        sentiment=sentiment,
        preferred=grouped(preferences.metrics) if preferences else [],
        answered=by_loss(inference.table) if inference else [],
        steps=grouped(parts.steps) if parts else [],
        examples=example_rows(summary) if parts or preferences or sentiment else {},
        settings=flat_settings(settings),
        commands=[line for command in commands for line in command.split("\n")],
        attribution=attribution,
        explained=explained,
        data=Markup(script_json(data)),
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(style),
    )


def page_environment() -> Any:
    """What renders pages: every foreign text in them is escaped and on one line."""
    # Imported here: jinja2 comes with an extra, and tables need nothing but the standard library.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("lossmith.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def script_hash(script: str) -> str:
    """What a page's policy names its own script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sizes(records: Sequence[RunRecord]) -> str:
    """How much data a run saw, as far as the records say."""
    finished = next((record for record in records if record.labels), None)
    if finished is None:
        return ""
    train = finished.config.get("train_texts")
    trained = f"{train} training texts per seed, " if train else ""
    return f"{trained}{len(finished.labels)} test texts, {len(finished.label_names)} classes"


def answer(summary: StudySummary) -> str:
    """The study in one sentence."""
    if summary.finished + summary.failed < summary.planned:
        state = f"Not complete: {summary.finished + summary.failed} of {summary.planned} runs are there. "
    else:
        state = ""
    if not any(row.comparison for row in summary.rows):
        return f"{state}No loss has a finished run beside one of {summary.baseline}, so nothing can be said yet."
    better = [row for row in summary.rows if row.verdict == "better" and row.comparison]
    if not better:
        return f"{state}No loss was shown to beat {summary.baseline} here."
    sign = 1 if metric_style(summary.metric).higher_is_better else -1
    best = max(better, key=lambda row: sign * row.comparison.difference if row.comparison else 0.0)
    return f"{state}{best.loss} {best.sentence}."


def page_data(
    summary: StudySummary,
    records: Sequence[RunRecord],
    *,
    title: str,
    settings: Mapping[str, Any],
    commands: Sequence[str],
) -> dict[str, Any]:
    """The numbers of the page; what was kept per test example stays in the store, which holds it once."""
    left_out = {"predictions", "labels", "scores", "outputs", "outcomes", "config"}
    runs = [{key: value for key, value in record.to_dict().items() if key not in left_out} for record in records]
    return {"title": title, "settings": settings, "commands": list(commands), "summary": asdict(summary), "runs": runs}


def script_json(data: Any) -> str:
    r"""JSON that can stand inside a `<script>` element, whatever its texts say; NaN and infinities become null.

    Example:
        >>> script_json({"a": "</script>", "b": float("nan")})
        '{"a": "\\u003c/script\\u003e", "b": null}'
    """
    text = json.dumps(_finite(data), allow_nan=False, ensure_ascii=True, default=str)
    return "".join(JSON_ESCAPES.get(character, character) for character in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _printable(value: Any) -> Any:
    """What the template prints: foreign text on one line, without controls that turn or hide what stands beside it."""
    return one_line(value) if type(value) is str else value


def figure_svg(figure: ReportFigure) -> str:
    """A figure as an element of the page."""
    return inline_svg(figure.figure, name=figure.name, title=figure.title, description=figure.description)


def _evidence(row: LossSummary, metric: str) -> dict[str, str]:
    """One row of the table that puts all tests side by side."""
    pairs, resampled = row.comparison, row.bootstrap
    assert pairs is not None, "only losses with a comparison come here"
    spread = f"[{difference(resampled.low, metric)}, {difference(resampled.high, metric)}]" if resampled else "–"
    return {
        "loss": row.loss,
        "interval": difference_with_interval(pairs, metric),
        "p": p_value(pairs.p_value),
        "holm_p": p_value(row.holm_p),
        "sign_flip_p": f"{pairs.sign_flip_p:.4f} (min {pairs.sign_flip_smallest_p:.4f})",
        "seeds": f"{pairs.wins} / {pairs.losses} / {pairs.ties}",
        "bootstrap": spread,
        "bootstrap_label": resampled.label if resampled else "not available",
    }


def _sign_flip_sentence(summary: StudySummary) -> str:
    blocks = max((row.comparison.blocks for row in summary.rows if row.comparison), default=0)
    smallest = max(
        (
            row.comparison.sign_flip_smallest_p
            for row in summary.rows
            if row.comparison and row.comparison.blocks == blocks
        ),
        default=1.0,
    )
    if not blocks:
        return "There is no pair of finished runs here, so there is nothing to flip."
    seeds = "1 seed" if blocks == 1 else f"{blocks} seeds"
    can = "so it can never decide here, whatever the data" if smallest >= SIGNIFICANCE else "so it could decide here"
    return f"With {seeds} the smallest p that it can reach is {smallest:.4g}, {can}; it stands beside the verdict only."


def _noise_sentence(summary: StudySummary) -> str:
    floor = summary.noise_floor
    if floor is None or not known(floor.sd):
        return "It needs at least two finished runs of the baseline, which are not there."
    metric, unit = summary.metric, metric_style(summary.metric).unit
    sd, mean, largest, half = (
        difference(value, metric).lstrip("+")
        for value in (floor.sd, floor.mean_difference, floor.max_difference, floor.half_width)
    )
    return (
        f"Over {floor.blocks} seeds its standard deviation is {sd} {unit}; two of its runs differ by {mean} {unit} on "
        f"average and by {largest} at most. The mean over {floor.blocks} other seeds would lie within ±{half} "
        f"{unit} of this one in 95% of studies: a comparison that is not paired would have to see more than that."
    )
