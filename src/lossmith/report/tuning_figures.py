"""The picture of a loss's sensitivity: every trial of every block, one panel per parameter."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lossmith.evidence.metrics import metric_style
from lossmith.explain.canvas import (
    INK,
    MUTED,
    PAPER,
    WIDTH_IN,
    figure_label,
    figure_text,
    house_style,
    loss_styles,
    message_figure,
)
from lossmith.report.gallery import ReportFigure
from lossmith.report.wording import metric_name
from lossmith.studies.sensitivity import LossSensitivity, ParameterSensitivity, TrialPoint
from lossmith.studies.tuning import Tuning

PANELS = 3
"""Panels in a row."""
WITHIN_DECADES = (1.0, 2.0, 5.0)
"""Ticks of a logarithmic axis of less than two decades."""


def tuning_figures(tuning: Tuning, found: Sequence[LossSensitivity]) -> tuple[ReportFigure, ...]:
    """One figure per loss, with its words."""
    config = tuning.config
    colours = loss_styles([row.loss for row in found], config.study.baseline)
    return tuple(
        ReportFigure(
            name=f"sensitivity-{place}",
            title=row.loss,
            caption="Each point is a trial of a seed: the value that it tried, and how much better or worse than the "
            "untuned setting it was on the same inner folds. Hollow: stopped early. Ringed: chosen for the test. "
            "Dotted: the untuned value. Trials crowd where the search expects good ones.",
            description=_description(row),
            figure=sensitivity_figure(row, metric=config.objective, colour=colours[row.loss].colour),
        )
        for place, row in enumerate(found)
    )


@house_style()
def sensitivity_figure(row: LossSensitivity, *, metric: str, colour: str) -> Figure:
    """Gain over the untuned trial against every parameter of one loss."""
    if not row.points or not row.parameters:
        return message_figure("No trial can be set against an untuned one, so there is no point to draw.")
    parts = sorted(row.parameters, key=lambda part: -(part.importance or 0.0))
    lines = math.ceil(len(parts) / PANELS)
    figure = Figure(figsize=(WIDTH_IN, 0.7 + 2.3 * lines), layout="constrained")
    shared: Axes | None = None
    for place, part in enumerate(parts):
        axes = figure.add_subplot(lines, PANELS, place + 1, sharey=shared)
        shared = shared or axes
        _panel(axes, part, row.points, scale=metric_style(metric).scale, colour=colour)
    figure.supylabel(f"{metric_name(metric)} minus untuned, {metric_style(metric).unit}", fontsize=10, color=INK)
    _legend(figure, colour)
    return figure


def _panel(axes: Axes, part: ParameterSensitivity, points: Sequence[TrialPoint], *, scale: float, colour: str) -> None:
    choices = part.space.get("choices")
    places = None if choices is None else {value: place for place, value in enumerate(choices)}

    def at(value: bool | int | float | str) -> float:
        return float(value) if places is None else places[value]

    for finished in (False, True):
        group = [point for point in points if point.finished == finished]
        axes.scatter(
            [at(point.values[part.name]) for point in group],
            [point.gain * scale for point in group],
            s=22,
            facecolors=colour if finished else "none",
            edgecolors=colour,
            alpha=0.75,
            zorder=3,
        )
    ringed = [point for point in points if point.chosen]
    axes.scatter(
        [at(point.values[part.name]) for point in ringed],
        [point.gain * scale for point in ringed],
        s=70,
        facecolors="none",
        edgecolors=INK,
        linewidths=1.2,
        zorder=4,
    )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(at(part.space["untuned"]), color=MUTED, linewidth=1, linestyle=":")
    if places is not None:
        axes.set_xticks(list(places.values()), [figure_label(value, width=12) for value in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif part.space["log"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(
            LogLocator(subs=WITHIN_DECADES if part.space["high"] < 99 * part.space["low"] else (1.0,))
        )
        # Plain numbers: 10 to the power of -3 says less, and takes mathtext a second.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    share = "" if part.importance is None else f", {100 * part.importance:.0f}%"
    axes.set_title(figure_text(f"{part.name}{share}"), loc="left", fontsize=9)
    axes.grid(axis="y")
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, colour: str) -> None:
    looks = {
        "all folds": {"markerfacecolor": colour, "markeredgecolor": colour},
        "stopped early": {"markerfacecolor": PAPER, "markeredgecolor": colour},
        "chosen": {"markerfacecolor": PAPER, "markeredgecolor": INK, "markersize": 9},
    }
    marks = [Line2D([], [], linestyle="", marker="o", **look) for look in looks.values()]
    figure.legend(marks, list(looks), loc="outside lower left", ncols=3, fontsize=9)


def _description(row: LossSensitivity) -> str:
    parts = [
        f"{part.name} has {100 * part.importance:.0f}% of the importance"
        for part in sorted(row.parameters, key=lambda part: -(part.importance or 0.0))
        if part.importance is not None
    ]
    return f"{len(row.points)} trials; " + ("; ".join(parts) or "too few to tell which parameter matters")
