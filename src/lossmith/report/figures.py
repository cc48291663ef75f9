"""The pictures of a comparison: paired differences as a forest, every seed as a point, and learning curves."""

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lossmith.evidence.metrics import MetricStyle, format_difference, metric_style
from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import LossSummary, StudySummary
from lossmith.explain.canvas import (
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH_IN,
    LossStyle,
    figure_label,
    house_style,
    loss_styles,
    margin_note,
    message_figure,
    row_axes,
)
from lossmith.report.wording import difference_with_interval, known, level, level_unit, metric_name

CURVES = {
    "train_nll": "training NLL (nats)",
    "validation_nll": "validation NLL (nats)",
    "validation_accuracy": "validation accuracy (%)",
    "validation_exact_match": "validation exact match (%)",
    "validation_preference_accuracy": "validation preference accuracy (%)",
    "validation_margin": "validation margin (nats)",
    "validation_auc": "validation AUC (%)",
}
"""Curves that mean the same under every loss, and so can be compared; the objective itself cannot."""

Points = list[tuple[float, float]]


@house_style()
def forest_figure(summary: StudySummary) -> Figure:
    """The paired difference of every loss to the baseline, with its 95% interval, over the noise floor."""
    metric = metric_style(summary.metric)
    rows = [row for row in summary.rows if not row.is_baseline]
    if not any(row.comparison and known(row.comparison.difference) for row in rows):
        return message_figure(f"No loss could be compared with {summary.baseline}: too few runs finished.")
    styles = loss_styles([row.loss for row in summary.rows], summary.baseline)
    figure = Figure(figsize=(WIDTH_IN, 1.25 + 0.5 * len(rows)), layout="constrained")
    axes = row_axes(figure, [row.loss for row in rows])
    _noise_band(axes, summary, metric)
    axes.axvline(0, color=INK, linewidth=1)
    for height, row in enumerate(reversed(rows)):
        _forest_row(axes, height, row, styles[row.loss], metric)
    direction = "right" if metric.higher_is_better else "left"
    axes.set_xlabel(
        f"{metric_name(metric.name)} minus that of {figure_label(summary.baseline, width=40, lines=1)}, "
        f"{metric.unit}; further {direction} is better"
    )
    return figure


@house_style()
def seeds_figure(summary: StudySummary) -> Figure:
    """Every seed of every loss as a point; a thin line follows one seed through the losses."""
    metric = metric_style(summary.metric)
    rows = sorted(summary.rows, key=lambda row: not row.is_baseline)
    if not any(row.values for row in rows):
        return message_figure("No run finished, so there is no point to draw.")
    styles = loss_styles([row.loss for row in summary.rows], summary.baseline)
    figure = Figure(figsize=(WIDTH_IN, 1.25 + 0.5 * len(rows)), layout="constrained")
    axes = row_axes(figure, [row.loss for row in rows])
    heights = range(len(rows) - 1, -1, -1)
    for seed in summary.seeds:
        path = [row.values.get(seed, math.nan) * metric.scale for row in rows]
        axes.plot(path, heights, color=MUTED, linewidth=0.8, alpha=0.45, zorder=1)
    for height, row in zip(heights, rows, strict=True):
        style = styles[row.loss]
        values = [value * metric.scale for value in row.values.values()]
        axes.scatter(
            values, [height] * len(values), s=42, color=style.colour, marker=style.marker, edgecolors=PAPER, zorder=3
        )
        _seed_note(axes, height, row, metric)
    axes.set_xlabel(
        f"{metric_name(metric.name)} ({level_unit(metric.name)}): a point per seed, a bar at the mean, a line per seed"
    )
    return figure


@house_style()
def curves_figure(records: Sequence[RunRecord], losses: Sequence[str], *, baseline: str) -> Figure:
    """Learning curves: the mean over seeds, with a thin line for every seed."""
    panels = [name for name in CURVES if any(record.curves.get(name) for record in records)]
    if not panels:
        return message_figure("No learning curve was recorded.")
    styles = loss_styles(losses, baseline)
    legend_rows = math.ceil(len(losses) / 2)
    figure = Figure(figsize=(WIDTH_IN, 3.6 + 0.24 * legend_rows), layout="constrained")
    for position, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), position + 1)
        for loss in losses:
            runs = [record for record in records if record.loss == loss]
            _curve_family(axes, runs, name, styles[loss])
        axes.set_title(CURVES[name], loc="left")
        axes.set_xlabel("optimiser step")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _legend_below(figure, losses, styles)
    return figure


def _noise_band(axes: Axes, summary: StudySummary, metric: MetricStyle) -> None:
    floor = summary.noise_floor
    if floor is None or not known(floor.half_width):
        return
    half_width = floor.half_width * metric.scale
    axes.axvspan(-half_width, half_width, color=GRID, alpha=0.55, linewidth=0, zorder=0)
    note = f"shaded: noise floor, ±{format_difference(floor.half_width, metric.name)} {metric.unit}"
    axes.set_title(note, loc="left", fontsize=9, color=MUTED)


def _forest_row(axes: Axes, height: int, row: LossSummary, style: LossStyle, metric: MetricStyle) -> None:
    pairs = row.comparison
    if pairs is None or not known(pairs.difference):
        margin_note(axes, height, "not compared")
        return
    if known(pairs.low) and known(pairs.high):
        ends = [pairs.low * metric.scale, pairs.high * metric.scale]
        axes.plot(ends, [height, height], color=style.colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot(ends, [height, height], "|", color=style.colour, markersize=9, markeredgewidth=2)
    decided = row.verdict in {"better", "worse"}
    axes.plot(
        pairs.difference * metric.scale,
        height,
        marker=style.marker,
        markersize=9,
        color=style.colour,
        markerfacecolor=style.colour if decided else PAPER,
        markeredgewidth=2,
    )
    margin_note(axes, height, f"{difference_with_interval(pairs, metric.name)}\n{row.verdict}")


def _seed_note(axes: Axes, height: int, row: LossSummary, metric: MetricStyle) -> None:
    parts = []
    if row.mean is not None and known(row.mean):
        mean = row.mean * metric.scale
        axes.plot([mean, mean], [height - 0.27, height + 0.27], color=INK, linewidth=2, zorder=2)
        parts.append(f"mean {level(row.mean, metric.name)}")
    if row.failed:
        parts.append(f"{row.failed} failed")
    margin_note(axes, height, "\n".join(parts))


def _curve_family(axes: Axes, runs: Iterable[RunRecord], name: str, style: LossStyle) -> None:
    scale = metric_style(name.partition("_")[2]).scale
    finished = []
    for run in runs:
        points = [(step, value * scale) for step, value in run.curves.get(name, []) if known(value)]
        if not points:
            continue
        whole = run.status == "finished"
        axes.plot(
            *zip(*points, strict=True),
            color=style.colour,
            linewidth=0.8,
            alpha=0.3 if whole else 0.8,
            linestyle="-" if whole else ":",
        )
        if whole:
            finished.append(points)
    mean = mean_curve(finished)
    if mean:
        axes.plot(*zip(*mean, strict=True), color=style.colour, linewidth=2.2, linestyle=style.dashes)


def mean_curve(curves: Sequence[Points]) -> Points:
    """The mean over curves at the steps that all of them share.

    Example:
        >>> mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0), (3, 0.0)]])
        [(1, 3.0)]
    """
    if not curves:
        return []
    by_step = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_step)))
    return [(step, sum(points[step] for points in by_step) / len(by_step)) for step in shared]


def _legend_below(figure: Figure, losses: Sequence[str], styles: dict[str, LossStyle]) -> None:
    lines = [Line2D([], [], color=styles[loss].colour, linestyle=styles[loss].dashes, linewidth=2.2) for loss in losses]
    legend = figure.legend(lines, [str(place) for place in range(len(losses))], loc="outside lower left", ncols=2)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, loss in zip(legend.get_texts(), losses, strict=True):
        text.set_text(figure_label(loss, width=48, lines=1))
        text.set_fontsize(9)
