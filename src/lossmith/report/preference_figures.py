"""Pictures of a study of preferences: losses along the margins that they saw, shifts of answers, sweeps of beta."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lossmith.errors import LossmithError
from lossmith.evidence import block_interval
from lossmith.evidence.metrics import metric_style
from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
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
    message_figure,
)
from lossmith.explain.curves import Curve, loss_curve
from lossmith.nn import Composition, parse_composition
from lossmith.report.preferences import better_and_worse
from lossmith.report.wording import level_unit, metric_name

PANELS = 24
"""Most losses whose curves are drawn."""
COLUMNS = 2
FAMILIES = ("preference", "unpaired")
OTHERS = {"chosen": "rejected", "good": "bad"}
"""What the better answers are called -> the worse ones."""

Histogram = tuple[np.ndarray, np.ndarray]
"""Edges, and counts by stage of training."""


@house_style()
def objectives_figure(summary: StudySummary, records: Sequence[RunRecord]) -> Figure:
    """Loss and gradient of every objective over the margins that its training saw, with their histogram behind."""
    losses = [row.loss for row in summary.rows]
    styles = loss_styles(losses, summary.baseline)
    found = [(loss, histogram) for loss in losses if (histogram := seen_margins(records, loss)) is not None][:PANELS]
    if not found:
        return message_figure("No finished run compared answers, so there is no margin to draw.")
    rows = math.ceil(len(found) / COLUMNS)
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 2.5 * rows), layout="constrained")
    for place, (loss, (edges, counts)) in enumerate(found):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        _histogram(axes, edges, counts)
        axes.set_title(figure_label(loss, width=44, lines=2), loc="left", fontsize=9.5)
        _curves(axes, loss, edges, styles[loss])
    lines = [
        Line2D([], [], color=INK, linewidth=2),
        Line2D([], [], color=INK, linewidth=1.4, linestyle="--"),
        Line2D([], [], color=MUTED, linewidth=6, alpha=0.25),
        Line2D([], [], color=MUTED, linewidth=6, alpha=0.7),
    ]
    names = ["loss (left)", "its gradient (right)", "margins seen early", "margins seen late"]
    figure.legend(lines, names, loc="outside lower left", ncols=4, fontsize=9)
    return figure


@house_style()
def shifts_figure(summary: StudySummary, records: Sequence[RunRecord]) -> Figure:
    """How far chosen and rejected answers moved, a point per seed; above the diagonal the margin grew."""
    losses = [row.loss for row in summary.rows]
    styles = loss_styles(losses, summary.baseline)
    better, worse, _, name = better_and_worse(records)
    points = {
        loss: [
            (run.metrics[worse], run.metrics[better])
            for run in records
            if run.loss == loss and run.status == "finished" and better in run.metrics
        ]
        for loss in losses
    }
    every = [value for found in points.values() for point in found for value in point]
    if not every:
        return message_figure("No run finished, so there is no point to draw.")
    drawn = [loss for loss in losses if points[loss]]
    figure = Figure(figsize=(WIDTH_IN, 5.0 + 0.24 * math.ceil(len(drawn) / 2)), layout="constrained")
    axes = figure.add_subplot()
    low, high = min(*every, 0.0), max(*every, 0.0)
    pad = 0.08 * (high - low) or 1.0
    reach = (low - pad, high + pad)
    axes.fill_between(reach, reach, [reach[1]] * 2, color=GRID, alpha=0.35, linewidth=0)
    axes.plot(reach, reach, color=MUTED, linewidth=1, linestyle="--")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for loss in drawn:
        look = styles[loss]
        axes.scatter(*zip(*points[loss], strict=True), s=44, color=look.colour, marker=look.marker, edgecolors=PAPER)
    axes.set_xlim(reach)
    axes.set_ylim(reach)
    axes.set_xlabel(f"shift of {OTHERS[name]} answers (nats); shaded: the margin grew")
    axes.set_ylabel(f"shift of {name} answers (nats)")
    _legend(figure, drawn, styles)
    return figure


@house_style()
def sweep_figure(summary: StudySummary) -> Figure | None:
    """The deciding metric over beta with 95% intervals over seeds, a line per loss; None where none has two betas."""
    groups = by_beta(summary)
    if not groups:
        return None
    metric = metric_style(summary.metric)
    styles = loss_styles(list(groups), next(iter(groups)))
    figure = Figure(figsize=(WIDTH_IN, 3.8 + 0.24 * math.ceil(len(groups) / 2)), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, betas) in enumerate(groups.items()):
        look = styles[name]
        # Side by side, so that intervals at one beta do not hide each other.
        nudge = 1.02 ** (place - (len(groups) - 1) / 2)
        found = {beta: block_interval([list(values)]) for beta, values in betas.items() if values}
        places = [beta * nudge for beta in found]
        means = [one.difference * metric.scale for one in found.values()]
        axes.plot(places, means, color=look.colour, linestyle=look.dashes, marker=look.marker, linewidth=1.8)
        for x, one in zip(places, found.values(), strict=True):
            if math.isfinite(one.low):
                axes.plot([x, x], [one.low * metric.scale, one.high * metric.scale], color=look.colour, linewidth=1.2)
    axes.set_xscale("log")
    ticks = sorted({beta for betas in groups.values() for beta in betas})
    axes.set_xticks(ticks, [f"{beta:g}" for beta in ticks])
    axes.minorticks_off()
    axes.set_xlabel("beta")
    axes.set_ylabel(f"{metric_name(metric.name)} ({level_unit(metric.name)})")
    axes.grid(axis="y")
    _legend(figure, list(groups), styles)
    return figure


def by_beta(summary: StudySummary) -> dict[str, dict[float, tuple[float, ...]]]:
    """Loss without its beta -> beta -> the metric of every seed, in rising beta, for losses with two betas or more."""
    groups: dict[str, dict[float, tuple[float, ...]]] = {}
    for row in summary.rows:
        try:
            terms = parse_composition(row.loss).terms
        except LossmithError:  # a loss that this installation does not know
            continue
        betas = [
            term.hyperparameters.get("beta", term.record.hyperparameters["beta"])
            for term in terms
            if "beta" in term.record.hyperparameters
        ]
        if not betas or not row.values:
            continue
        bare = [
            replace(term, hyperparameters={name: v for name, v in term.hyperparameters.items() if name != "beta"})
            for term in terms
        ]
        groups.setdefault(str(Composition(tuple(bare))), {})[float(betas[0])] = tuple(row.values.values())
    return {name: dict(sorted(betas.items())) for name, betas in groups.items() if len(betas) > 1}


def seen_margins(records: Sequence[RunRecord], loss: str) -> Histogram | None:
    """The margins that the finished runs of a loss saw in training, all seeds together."""
    found = [
        run.config["rho"] for run in records if run.loss == loss and run.status == "finished" and run.config.get("rho")
    ]
    if not found:
        return None
    low = min(one["edges"][0] for one in found)
    high = max(one["edges"][-1] for one in found)
    bins = max(len(one["edges"]) - 1 for one in found)
    edges = np.linspace(low, high, bins + 1)
    stages = max(len(one["counts"]) for one in found)
    counts = np.zeros((stages, bins))
    for one in found:
        middles = (np.array(one["edges"][:-1]) + np.array(one["edges"][1:])) / 2
        for stage, own in enumerate(one["counts"]):
            counts[stage] += np.histogram(middles, bins=edges, weights=np.array(own, dtype=float))[0]
    return edges, counts


def compared_part(text: str) -> str | None:
    """The terms of a loss that compare answers; None where none does.

    Example:
        >>> compared_part("dpo + 0.1*cross_entropy"), compared_part("cross_entropy")
        ('dpo', None)
    """
    composition = parse_composition(text)
    terms = tuple(replace(term, phase=0) for term in composition.terms if term.record.family in FAMILIES)
    return str(Composition(terms)) if terms else None


def objective_curve(text: str, reach: float) -> Curve | None:
    """The comparing terms of a loss along margins up to `reach` nats on both sides; None where they have no line."""
    try:
        part = compared_part(text)
        if part is None:
            return None
        unit = loss_curve(part, points=3, span=1.0)
        # The grid leaves out its ends, and some axes grow less than their span: a little further than asked for.
        return loss_curve(part, points=199, span=max(1.15 * reach / (max(unit.x) * 2), 1e-3))
    except LossmithError:
        return None


def _histogram(axes: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    """Stages of training on top of each other, the later the darker, in an axis of their own."""
    behind = axes.twinx()
    behind.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        behind.spines[side].set_visible(False)
    below = np.zeros(counts.shape[1])
    for stage, own in enumerate(counts):
        shade = 0.2 + 0.5 * stage / max(len(counts) - 1, 1)
        behind.bar(
            edges[:-1], own, width=np.diff(edges), bottom=below, align="edge", color=MUTED, alpha=shade, linewidth=0
        )
        below += own
    behind.set_ylim(0, max(float(below.max()), 1.0) * 1.6)
    behind.set_zorder(0)
    axes.set_zorder(1)
    axes.patch.set_visible(False)


def _curves(axes: Axes, loss: str, edges: np.ndarray, look: LossStyle) -> None:
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    pad = 0.05 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + pad)
    axes.tick_params(labelsize=8)
    curve = objective_curve(loss, max(abs(low - pad), abs(high + pad)))
    if curve is None:
        axes.set_xlabel("margin seen in training (nats)", fontsize=8.5)
        axes.set_yticks([])
        return
    axes.set_xlabel(curve.x_name, fontsize=8.5)
    x = np.array(curve.x)
    inside = (x >= low - pad) & (x <= high + pad)
    axes.plot(x[inside], np.array(curve.loss)[inside], color=look.colour, linewidth=2)
    slopes = axes.twinx()
    slopes.spines["right"].set_visible(True)
    slopes.plot(x[inside], np.array(curve.gradient)[inside], color=look.colour, linewidth=1.4, linestyle="--")
    slopes.axhline(0, color=MUTED, linewidth=0.6)
    slopes.tick_params(labelsize=8)
    axes.axvline(0, color=MUTED, linewidth=0.6)


def _legend(figure: Figure, losses: Sequence[str], styles: dict[str, LossStyle]) -> None:
    lines = [
        Line2D([], [], color=styles[loss].colour, marker=styles[loss].marker, linestyle=styles[loss].dashes)
        for loss in losses
    ]
    legend = figure.legend(lines, [str(place) for place in range(len(losses))], loc="outside lower left", ncols=2)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, loss in zip(legend.get_texts(), losses, strict=True):
        text.set_text(figure_label(loss, width=48, lines=1))
        text.set_fontsize(9)
