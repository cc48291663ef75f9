"""The pictures of a discovery: lineage, proposers at equal cost, evidence, and the curves of its best programs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lossmith.discovery.describe import Description
from lossmith.discovery.history import History
from lossmith.discovery.race.blocks import RungData
from lossmith.discovery.race.confirmation import twin_floor
from lossmith.evidence import PairedComparison, paired_t
from lossmith.explain.canvas import (
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
from lossmith.report.discovery_arms import arms_of, best_by_cost
from lossmith.report.discovery_tables import interval
from lossmith.report.gallery import ReportFigure
from lossmith.report.losses import curve_figure


def discovery_figures(history: History, shown: Sequence[str]) -> list[ReportFigure]:
    """Lineage, proposers and evidence, in the order of the page."""
    last, fitness = history.rungs[-1], _fitness(history, history.rungs[-1])
    arms = arms_of(history)
    return [
        ReportFigure(
            name="lineage",
            title="Lineage",
            caption=f"Every candidate that reached {last}, by the round in which it came and its shrunken difference "
            f"to the control ({fitness}); lines lead to parents, large rings are elites, full points are announced; "
            "triangles at the lower edge lie below the picture.",
            description=f"{len(history.estimates(last))} programs over {history.rounds} rounds",
            figure=lineage_figure(history),
        ),
        ReportFigure(
            name="proposers",
            title="Proposers at equal cost",
            caption=f"Best shrunken difference on {last} among an arm's candidates, by the time that its proposals and "
            "the evaluations of its candidates took. An arm that does not lie above random has earned nothing; one run "
            "is one draw.",
            description=f"A line per arm: {'; '.join(arms)}",
            figure=proposers_figure(history, arms),
        ),
        ReportFigure(
            name="evidence",
            title="Evidence",
            caption="Mean paired difference to the control with its 95% interval, in units of each rung's fitness. "
            "Search intervals flatter whoever was chosen by them; those of the confirmation (full points) do not. "
            "Noise: the control trained again in the same blocks, in another order of the data.",
            description="; ".join(history.name_of(key) for key in shown) or "no program",
            figure=evidence_figure(history, shown),
        ),
    ]


def curves_figure(place: int, name: str, description: Description) -> ReportFigure:
    """Loss and gradient of a program beside those of the closest known loss."""
    own, *beside = description.curves
    near = f". Dashed: the closest known loss, scaled and shifted to lie beside it: {beside[0].name}" if beside else ""
    return ReportFigure(
        name=f"program-{place}",
        title=f"Curves of {name}",
        caption=f"Solid: {name}{near}.",
        description=f"Loss and gradient of {name} along {own.x_name}",
        figure=curve_figure(*description.curves),
    )


def _fitness(history: History, rung: str) -> str:
    described = {**history.settings["unseen"], **history.settings["rungs"]}
    return str(described[rung]["fitness"]).replace("_", " ").replace(" kl", " KL")


@house_style()
def lineage_figure(history: History) -> Figure:
    """Programs by round and worth, joined to their parents."""
    known = history.estimates(history.rungs[-1])
    if not known:
        return message_figure(f"No candidate was measured on {history.rungs[-1]} yet.")
    figure = Figure(figsize=(WIDTH_IN, 3.8), layout="constrained")
    axes = figure.add_subplot()
    arms = arms_of(history)
    styles = loss_styles(arms, "random")
    rounds: dict[int, list[str]] = {}
    for key in known:
        rounds.setdefault(history.stored[key].step, []).append(key)
    # Beside one another within their round, so that equal worths do not hide each other.
    at = {
        key: (step + 1 + 0.6 * ((place + 0.5) / len(keys) - 0.5), known[key].mean)
        for step, keys in rounds.items()
        for place, key in enumerate(keys)
    }
    low, high = _window([y for _, y in at.values()])
    edge = low + 0.03 * (high - low)
    below = {key for key, (_, y) in at.items() if y < edge}
    at = {key: (x, edge if key in below else y) for key, (x, y) in at.items()}
    parents = {each.key: each.parents for each in history.proposals if each.kind == "admitted"}
    for key, (x, y) in at.items():
        for parent in parents.get(key, ()):
            if parent in at:
                axes.plot([at[parent][0], x], [at[parent][1], y], color=MUTED, linewidth=0.7, alpha=0.5, zorder=1)
    elites, announced = {each.program for each in history.elites()}, set(history.announced())
    for arm in arms:
        look = styles[arm]
        mine = [key for key in at if history.stored[key].proposer == arm]
        own, deep = [key for key in mine if key not in below], [key for key in mine if key in below]
        axes.scatter([at[key][0] for key in deep], [edge] * len(deep), s=28, color=look.colour, marker="v")
        # The legend shows a plain point, whatever the first of the arm is.
        axes.scatter([], [], s=28, color=look.colour, marker=look.marker, label=figure_label(arm, lines=1))
        if own:
            colours = [look.colour if key in announced else PAPER for key in own]
            axes.scatter(
                [at[key][0] for key in own],
                [at[key][1] for key in own],
                s=[70 if key in elites else 28 for key in own],
                facecolors=colours,
                edgecolors=look.colour,
                marker=look.marker,
                linewidths=[2.2 if key in elites else 1.1 for key in own],
                zorder=3,
            )
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_ylim(low, high)
    axes.set_xlabel("round")
    axes.set_ylabel("difference to control")
    axes.set_xticks(range(1, history.rounds + 1))
    axes.grid(axis="y")
    figure.legend(loc="outside lower left", ncols=min(len(arms), 5), fontsize=9)
    return figure


def _window(values: Sequence[float]) -> tuple[float, float]:
    """Limits that show the best three quarters: a loss that fails altogether would press all others on one line."""
    top, bottom = max(*values, 0.0), min(float(np.quantile(values, 0.25)), 0.0)
    room = 0.08 * (top - bottom) or 1.0
    return bottom - room, top + room


@house_style()
def proposers_figure(history: History, arms: Sequence[str]) -> Figure:
    """Best worth by cost, a step line per arm."""
    curves = {arm: best_by_cost(history, arm) for arm in arms}
    if not any(curves.values()):
        return message_figure("No arm has a candidate that reached the last rung yet.")
    figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
    axes = figure.add_subplot()
    styles: dict[str, LossStyle] = loss_styles(arms, "random")
    for arm, curve in curves.items():
        if curve:
            costs, best = zip(*curve, strict=True)
            style = styles[arm]
            axes.step(
                costs,
                best,
                where="post",
                color=style.colour,
                linestyle=style.dashes,
                linewidth=2.2,
                label=figure_label(arm),
            )
            axes.plot(costs[-1], best[-1], marker=style.marker, color=style.colour)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xlabel("seconds of an arm's proposals and evaluations")
    axes.set_ylabel("best difference to control")
    axes.grid(axis="y")
    figure.legend(loc="outside lower left", ncols=min(len(arms), 5), fontsize=9)
    return figure


def _paired(data: RungData, key: str) -> PairedComparison | None:
    control, own = data.pairs(key)
    return paired_t(control, own) if own else None


@house_style()
def evidence_figure(history: History, shown: Sequence[str]) -> Figure:
    """A panel per rung and split with a row per program."""
    panels = [place for place in history.evaluations if any(history.data(*place).pairs(key)[1] for key in shown)]
    if not panels or not shown:
        return message_figure("No program has been measured beside the control yet.")
    figure = Figure(figsize=(WIDTH_IN, len(panels) * (0.75 + 0.34 * (len(shown) + 1))), layout="constrained")
    parts: list[Any] = np.ravel(figure.subfigures(len(panels), 1, squeeze=False)).tolist()
    for part, (rung, split) in zip(parts, panels, strict=True):
        data = history.data(rung, split)
        axes = row_axes(part, [*(history.name_of(key) for key in shown), "noise"])
        axes.axvline(0, color=INK, linewidth=1)
        label = f"{rung}, {split}: {_fitness(history, rung)}"
        axes.set_title(figure_label(label, width=80, lines=1), loc="left", fontsize=9)
        full = split == "confirmation"
        for height, key in enumerate([None, *reversed(shown)]):
            found = twin_floor(data) if key is None else _paired(data, key)
            if found is None:
                margin_note(axes, height, "broke" if key in data.failed else "not measured")
                continue
            if all(math.isfinite(end) for end in (found.low, found.high)):
                axes.plot([found.low, found.high], [height, height], color=MUTED if not full else INK, linewidth=2)
            axes.plot(found.difference, height, "o", color=INK, markerfacecolor=INK if full else PAPER)
            margin_note(axes, height, interval(found.difference, found.low, found.high))
    return figure
