"""The pictures of a ranking: critical differences, every data set against every loss, and average differences."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lossmith.evidence.metrics import format_interval, metric_style
from lossmith.evidence.ranking import RankedLoss, Ranking
from lossmith.evidence.statistics import PairedComparison
from lossmith.explain.canvas import (
    INK,
    MUTED,
    PAPER,
    WIDTH_IN,
    LossStyle,
    figure_label,
    figure_text,
    house_style,
    loss_styles,
    margin_note,
    message_figure,
    row_axes,
)
from lossmith.report.confusion import DARK_TEXT
from lossmith.report.wording import difference, difference_with_interval, known, metric_name

MARKS = {"better": " ▲", "worse": " ▼"}
"""What stands beside a difference that Holm's correction leaves standing."""
DIFFERENCES = LinearSegmentedColormap.from_list("differences", ["#eea367", "#f3f4f5", "#6aaed6"])
"""Worse, equal, better; light enough for dark text everywhere."""

_LABEL_IN, _ROW_IN, _BAR_IN = 2.85, 0.42, 0.13
"""Of the diagram: width of a column of names, height of a name, height of a group's bar."""


@house_style()
def critical_difference_figure(ranking: Ranking) -> Figure:
    """Average ranks on a line, the best on the left; bars join losses within Nemenyi's critical difference."""
    pairs = ranking.nemenyi
    if pairs is None:
        return message_figure("Too few losses or data sets for a critical difference: three of each are needed.")
    order = sorted(ranking.rows, key=lambda row: row.average_rank)
    half = math.ceil(len(order) / 2)
    below = 0.2 + _BAR_IN * len(pairs.groups)
    height = 0.95 + below + _ROW_IN * half
    figure = Figure(figsize=(WIDTH_IN, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH_IN), ylim=(0, height))
    axes.axis("off")
    line = height - 0.75
    _rank_line(axes, len(order), line)
    _difference_bar(axes, pairs.critical_difference, len(order), line + 0.42)
    for place, group in enumerate(pairs.groups):
        ends = [row.average_rank for row in order if row.loss in group]
        x = [_place(min(ends), len(order)) - 0.04, _place(max(ends), len(order)) + 0.04]
        axes.plot(x, [line - 0.15 - _BAR_IN * place] * 2, color=INK, linewidth=3.5, solid_capstyle="butt")
    styles = loss_styles([row.loss for row in ranking.rows], ranking.baseline)
    for index, row in enumerate(order):
        left = index < half
        level = index if left else len(order) - 1 - index
        _named_rank(axes, row, styles[row.loss], len(order), line, line - below - _ROW_IN * (level + 0.4), left=left)
    return figure


@house_style()
def differences_figure(ranking: Ranking) -> Figure:
    """Data sets by losses: paired difference to the baseline, its interval, and the verdict within the data set."""
    style = metric_style(ranking.metric)
    losses = [row for row in ranking.rows if row.tests]
    width = max(WIDTH_IN, 2.3 + 1.2 * len(losses))
    figure = Figure(figsize=(width, 1.4 + 0.46 * (len(ranking.datasets) + 1)), layout="constrained")
    axes = figure.add_subplot()
    cells = [
        [(found.comparison, found.verdict) for found in (data.within(row.loss) for row in losses) if found.comparison]
        for data in ranking.datasets
    ]
    cells.append([(row.tests.over_datasets, row.verdict) for row in losses if row.tests])
    values = np.array([[pairs.difference for pairs, _ in row] for row in cells])
    most = float(np.abs(values).max()) or 1.0
    gains = values if style.higher_is_better else -values
    axes.imshow(gains, cmap=DIFFERENCES, vmin=-most, vmax=most, aspect="auto", interpolation="none")
    for (place, column), _ in np.ndenumerate(values):
        pairs, verdict = cells[place][column]
        shown = _cell(pairs, verdict, ranking.metric)
        axes.text(column, place, shown, ha="center", va="center", color=DARK_TEXT, fontsize=7.5)
    axes.axhline(len(ranking.datasets) - 0.5, color=PAPER, linewidth=5)
    names = [figure_label(data.name, width=24) for data in ranking.datasets]
    axes.set_yticks(range(len(cells)), [*names, "mean of the data sets"])
    axes.set_xticks(range(len(losses)), [figure_label(row.loss, width=20, lines=4) for row in losses])
    axes.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        f"{metric_name(ranking.metric)} minus that of {figure_label(ranking.baseline, width=40, lines=1)}, {style.unit}"
    )
    return figure


@house_style()
def average_differences_figure(ranking: Ranking) -> Figure:
    """The mean difference over data sets with both of its intervals, over the difference on each data set."""
    style = metric_style(ranking.metric)
    rows = [row for row in ranking.rows if row.tests]
    styles = loss_styles([row.loss for row in ranking.rows], ranking.baseline)
    figure = Figure(figsize=(WIDTH_IN, 1.3 + 0.55 * len(rows)), layout="constrained")
    axes = row_axes(figure, [row.loss for row in rows])
    axes.axvline(0, color=INK, linewidth=1)
    for height, row in enumerate(reversed(rows)):
        _average(axes, height, row, styles[row.loss], ranking.metric)
    note = "thin: 95% interval for data sets like these; thick: for exactly these; dots: the data sets"
    axes.set_title(note, loc="left", fontsize=9, color=MUTED)
    direction = "right" if style.higher_is_better else "left"
    axes.set_xlabel(
        f"mean over data sets of {metric_name(ranking.metric)} minus that of "
        f"{figure_label(ranking.baseline, width=26, lines=1)}, {style.unit}; further {direction} is better"
    )
    return figure


def _place(rank: float, losses: int) -> float:
    """Where a rank stands on the diagram, in inches."""
    begin, end = _LABEL_IN + 0.15, WIDTH_IN - _LABEL_IN - 0.15
    return begin + (rank - 1) / (losses - 1) * (end - begin)


def _rank_line(axes: Axes, losses: int, height: float) -> None:
    axes.plot([_place(1, losses), _place(losses, losses)], [height] * 2, color=INK, linewidth=1.2)
    step = math.ceil(losses / 12)
    for rank in range(1, losses + 1):
        axes.plot([_place(rank, losses)] * 2, [height, height + 0.06], color=INK, linewidth=1)
        if (rank - 1) % step == 0:
            axes.text(_place(rank, losses), height + 0.09, str(rank), ha="center", va="bottom", fontsize=8.5)
    axes.text(_place(1, losses) - 0.2, height, "best", ha="right", va="center", fontsize=8.5, color=MUTED)
    axes.text(_place(losses, losses) + 0.2, height, "worst", ha="left", va="center", fontsize=8.5, color=MUTED)


def _difference_bar(axes: Axes, width: float, losses: int, height: float) -> None:
    ends = [_place(1, losses), _place(1 + width, losses)]
    axes.plot(ends, [height] * 2, color=MUTED, linewidth=1.5)
    axes.plot(ends, [height] * 2, "|", color=MUTED, markersize=7, markeredgewidth=1.5)
    axes.text(
        ends[0] - 0.2, height, f"critical difference {width:.2f}", ha="right", va="center", fontsize=8.5, color=MUTED
    )


def _named_rank(
    axes: Axes, row: RankedLoss, style: LossStyle, losses: int, line: float, height: float, *, left: bool
) -> None:
    place = _place(row.average_rank, losses)
    edge = _LABEL_IN if left else WIDTH_IN - _LABEL_IN
    axes.plot([place, place, edge], [line, height, height], color=style.colour, linewidth=1)
    axes.plot(place, line, marker=style.marker, color=style.colour, markersize=6, markeredgecolor=PAPER, zorder=3)
    name = figure_label(row.loss, width=28, lines=1 if row.is_baseline else 2)
    name += "\n(baseline)" if row.is_baseline else ""
    label = f"{name}  {row.average_rank:.2f}" if left else f"{row.average_rank:.2f}  {name}"
    axes.text(
        edge + (-0.08 if left else 0.08), height, label, ha="right" if left else "left", va="center", fontsize=8.5
    )


def _cell(pairs: PairedComparison, verdict: str, metric: str) -> str:
    interval = f"\n{format_interval(pairs.low, pairs.high, metric)}" if known(pairs.low) else ""
    return figure_text(difference(pairs.difference, metric) + MARKS.get(verdict, "")) + interval


def _average(axes: Axes, height: int, row: RankedLoss, style: LossStyle, metric: str) -> None:
    tests, scale = row.tests, metric_style(metric).scale
    assert tests is not None, "only losses with tests come here"
    over, blocks = tests.over_datasets, tests.over_blocks
    dots = [value * scale for value in tests.differences.values()]
    axes.scatter(dots, [height - 0.24] * len(dots), s=12, color=style.colour, alpha=0.6, linewidths=0)
    axes.plot([over.low * scale, over.high * scale], [height] * 2, color=style.colour, linewidth=1.4)
    axes.plot([over.low * scale, over.high * scale], [height] * 2, "|", color=style.colour, markersize=8)
    if known(blocks.low):
        ends = [blocks.low * scale, blocks.high * scale]
        axes.plot(ends, [height] * 2, color=style.colour, linewidth=5, alpha=0.55, solid_capstyle="butt")
    axes.plot(
        over.difference * scale, height, marker=style.marker, markersize=6.5, color=style.colour,
        markerfacecolor=style.colour if row.verdict in MARKS else PAPER, markeredgewidth=2,
    )  # fmt: skip
    margin_note(axes, height, f"{difference_with_interval(over, metric)}\n{row.verdict}")
