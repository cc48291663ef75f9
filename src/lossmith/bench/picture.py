"""The benchmark as a picture: time and peak memory as multiples of the baseline, one pair of panels per case."""

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmith.bench.results import Results, memory_ratio, time_ratio
from lossmith.bench.run import Row
from lossmith.bench.shown import peak_text, seconds_text
from lossmith.explain.canvas import BASELINE_COLOUR, HUES, INK, MUTED, figure_label, house_style, message_figure

OURS, THEIRS = HUES[0], HUES[1]


@house_style()
def results_figure(results: Results) -> Figure:
    """Dots with the range of paired turns for time, bars for memory; ours blue, others orange."""
    groups = [[row for row in results.of(case) if row.seconds] for case in results.cases()]
    groups = [rows for rows in groups if rows]
    if not groups:
        return message_figure("Nothing was measured.")
    heights = [0.36 * len(rows) + 0.9 for rows in groups]
    figure = Figure(figsize=(11, sum(heights) + 0.2), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for part, rows in zip(parts[:, 0], groups, strict=True):
        baseline = results.baseline(rows[0].case)
        part.suptitle(figure_label(rows[0].case, width=120, lines=1), x=0.01, ha="left", fontsize=10.5)
        left, right = part.subplots(1, 2, sharey=True)
        for height, row in enumerate(reversed(rows)):
            _time(left, height, row, baseline)
            _memory(right, height, row, baseline)
        left.set_yticks(range(len(rows)), [figure_label(row.contestant, width=46) for row in reversed(rows)])
        left.set_ylim(-0.6, len(rows) - 0.4)
        name = "" if baseline is None else figure_label(baseline.contestant, width=24, lines=1)
        for axes, what in ((left, "time"), (right, "peak memory beyond inputs and gradients")):
            axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
            axes.set_xlabel(f"{what} / {name}", fontsize=9)
            axes.set_xlim(0, axes.get_xlim()[1] * 1.36)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
    return figure


def _colour(row: Row, baseline: Row | None) -> str:
    if row is baseline:
        return BASELINE_COLOUR
    return OURS if row.contestant.own else THEIRS


def _time(axes: Axes, height: int, row: Row, baseline: Row | None) -> None:
    ratio = time_ratio(row, baseline)
    if ratio is None:
        return
    colour = _colour(row, baseline)
    axes.plot([ratio.low, ratio.high], [height, height], color=colour, linewidth=2.4, solid_capstyle="butt")
    axes.plot(ratio.median, height, "o", color=colour, markersize=7)
    _note(axes, max(ratio.high, ratio.median), height, f"{ratio.median:.2f}x  ({seconds_text(row)})")


def _memory(axes: Axes, height: int, row: Row, baseline: Row | None) -> None:
    ratio = memory_ratio(row, baseline)
    if ratio is None:
        _note(axes, 0, height, "not measured")
        return
    axes.barh(height, ratio, height=0.55, color=_colour(row, baseline))
    _note(axes, ratio, height, f"{ratio:.2f}x  ({peak_text(row)} MiB)")


def _note(axes: Axes, x: float, height: int, text: str) -> None:
    axes.annotate(text, (x, height), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)


def write_picture(results: Results, path: Path) -> None:
    """Save the picture; SVG carries its letters as outlines, so that it needs no font."""
    buffer = io.BytesIO()
    kind = path.suffix.removeprefix(".").lower()
    with house_style():
        matplotlib.rcParams["svg.fonttype"] = "path"
        matplotlib.rcParams["svg.hashsalt"] = "lossmith-bench"
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        results_figure(results).savefig(buffer, format=kind, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
