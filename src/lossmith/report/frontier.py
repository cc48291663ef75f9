"""The reward-KL frontier of a study of sentiment: picture, tables, and answers before and after training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lossmith.evaluation.frontier import Frontier, FrontierPoint, frontier, measured_points, upper_frontier
from lossmith.evidence import BlockInterval, BootstrapRange
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
)
from lossmith.explain.text import MISSING, one_line
from lossmith.report.preferences import is_preference
from lossmith.report.tables import Table, number_column, raw_column, text_column
from lossmith.report.wording import decimal, known, level, p_value

KIND = "sentiment"
"""What the records of such a study call it."""
BEFORE = "(before training)"
SHOWN_CHARACTERS = 400
"""Of an answer; the record has all of it."""


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """A test prompt with what was answered before training and by each loss's policy."""

    prompt: str
    """The beginning of a review."""
    written: tuple[tuple[str, str, str], ...]
    """Loss, answer, and reward in percent; the policy before training first."""


@dataclass(frozen=True, kw_only=True)
class FrontierParts:
    """The parts of a report that only studies of sentiment have."""

    found: Frontier
    """Points, areas, and the range of KL that they are of."""
    points: Table
    """Reward and every divergence of each loss, for people."""
    raw: Table
    """The same for machines."""
    areas: Table
    """Area under each frontier, with its difference to the baseline."""
    shown: tuple[ShownAnswer, ...]
    """Test prompts and answers."""
    seed: int | None
    """The training seed whose policies wrote them."""


def is_sentiment(records: Sequence[RunRecord]) -> bool:
    """Whether the runs trained on the rewards of sampled answers; failed runs say so too."""
    return any(run.config.get("kind") == KIND for run in records)


def frontier_parts(
    summary: StudySummary, records: Sequence[RunRecord], settings: Mapping[str, Any]
) -> FrontierParts | None:
    """The parts that sampled answers with rewards add to a study; None where no finished run has them."""
    points = measured_points(records) if is_sentiment(records) or is_preference(records) else ()
    if not points:
        return None
    given = settings.get("kl_range")
    order = {row.loss: place for place, row in enumerate(summary.rows)}
    points = sorted(points, key=lambda point: (order[point.loss], point.seed))
    found = frontier(points, baseline=summary.baseline, kl_range=None if given is None else (given[0], given[1]))
    finished = [run for run in records if run.status == "finished"]
    seed = min((run.seed for run in finished if run.config.get("answers")), default=None)
    return FrontierParts(
        found=found,
        points=_points_table(found, finished),
        raw=_raw_table(found, finished),
        areas=_areas_table(found),
        shown=_shown(summary, [run for run in finished if run.seed == seed]),
        seed=seed,
    )


def sample_sizes(records: Sequence[RunRecord]) -> str:
    """How much data a run saw."""
    config = next((run.config for run in records if run.config.get("sampling")), {})
    train, test = one_line(config.get("train_texts")), one_line(config.get("test_prompts"))
    times = len(config.get("sampling", {}).get("seeds", []))
    return f"{train} training pairs in a seed, {test} test prompts answered {times} times by every policy"


@house_style()
def frontier_figure(found: Frontier) -> Figure:
    """Reward over KL: a line per loss from the policy before training over its betas, with intervals both ways."""
    families = {family: [p for p in found.points if p.family == family] for family in _families(found)}
    styles = loss_styles(list(families), found.baseline)
    figure = Figure(figsize=(WIDTH_IN, 4.6 + 0.24 * math.ceil(len(families) / 2)), layout="constrained")
    axes = figure.add_subplot()
    if found.high > found.low:
        axes.axvspan(found.low, found.high, color=GRID, alpha=0.4, linewidth=0, zorder=0)
        axes.set_title(
            f"shaded: the range of KL of the areas, {found.low:.3g} to {found.high:.3g} nats",
            loc="left",
            fontsize=9,
            color=MUTED,
        )
    for family, points in families.items():
        _curve(axes, points, styles[family], found.start_reward)
    axes.plot(0, 100 * found.start_reward, marker="*", markersize=13, color=INK, linestyle="none", zorder=6)
    axes.annotate(
        "before training", (0, 100 * found.start_reward), xytext=(12, -4), textcoords="offset points", fontsize=9
    )
    axes.set_xlabel("KL(policy || reference) per answer (nats)")
    axes.set_ylabel("mean reward (%)")
    axes.grid()
    _legend(figure, list(families), styles)
    return figure


def _families(found: Frontier) -> list[str]:
    return list(dict.fromkeys(point.family for point in found.points))


def _curve(axes: Axes, points: Sequence[FrontierPoint], look: LossStyle, start: float) -> None:
    """Points in rising KL with their intervals, joined; the upper frontier behind them."""
    ordered = sorted(points, key=lambda point: point.kl.difference)
    places = [(0.0, start), *((point.kl.difference, point.reward.difference) for point in ordered)]
    hull = upper_frontier(places[1:], start)
    axes.plot([kl for kl, _ in hull], [100 * reward for _, reward in hull], color=look.colour, linewidth=5, alpha=0.15)
    x, y = [kl for kl, _ in places], [100 * reward for _, reward in places]
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.4, alpha=0.8)
    for point in ordered:
        kl, reward = point.kl.difference, 100 * point.reward.difference
        if known(point.kl.low) and known(point.kl.high):
            axes.plot([max(point.kl.low, 0.0), point.kl.high], [reward] * 2, color=look.colour, linewidth=1, alpha=0.7)
        if known(point.reward.low) and known(point.reward.high):
            ends = [100 * point.reward.low, 100 * point.reward.high]
            axes.plot([kl] * 2, ends, color=look.colour, linewidth=1, alpha=0.7)
        axes.plot(kl, reward, marker=look.marker, markersize=7, color=look.colour, markeredgecolor=PAPER, zorder=5)
        if point.beta is not None and len(ordered) > 1:
            axes.annotate(
                f"{point.beta:g}",
                (kl, reward),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=7.5,
                color=look.colour,
                # Legible where it stands on a line.
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
                zorder=7,
            )


def _legend(figure: Figure, families: Sequence[str], styles: Mapping[str, LossStyle]) -> None:
    lines = [
        Line2D([], [], color=styles[name].colour, marker=styles[name].marker, linestyle=styles[name].dashes)
        for name in families
    ]
    legend = figure.legend(lines, [str(place) for place in range(len(families))], loc="outside lower left", ncols=3)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, name in zip(legend.get_texts(), families, strict=True):
        text.set_text(figure_label(name, width=36, lines=1))
        text.set_fontsize(9)


def _means(finished: Sequence[RunRecord], loss: str, metric: str) -> float | None:
    values = [run.metrics[metric] for run in finished if run.loss == loss and metric in run.metrics]
    return sum(values) / len(values) if values else None


def _points_table(found: Frontier, finished: Sequence[RunRecord]) -> Table:
    """The policy before training first, whose divergences are 0."""
    names = [point.loss for point in found.points]
    others = ("kl_sampled", "kl_per_token", "kl_released", "stopped")
    means = {metric: [_means(finished, name, metric) for name in names] for metric in others}
    start = [run.metrics["start_stopped"] for run in finished if "start_stopped" in run.metrics]
    stopped = sum(start) / len(start) if start else None
    return Table(
        columns=(
            text_column("loss", "loss", [(BEFORE, BEFORE), *((one_line(name), name) for name in names)]),
            number_column(
                "reward",
                "reward (%) [95% interval]",
                [
                    (level(found.start_reward, "reward"), found.start_reward),
                    *((_interval(point.reward, 100, 1), point.reward.difference) for point in found.points),
                ],
            ),
            number_column(
                "kl",
                "KL(policy || reference) per answer (nats) [95% interval]",
                [("0", 0.0), *((_interval(point.kl, 1, 2), point.kl.difference) for point in found.points)],
            ),
            number_column("kl_sampled", "the same by Monte Carlo", [("0", 0.0), *_cells(means["kl_sampled"], 2)]),
            number_column("kl_per_token", "per token", [("0", 0.0), *_cells(means["kl_per_token"], 3)]),
            number_column(
                "kl_released",
                "KL(reference || policy) per token, as released",
                [("0", 0.0), *_cells(means["kl_released"], 3)],
            ),
            number_column(
                "stopped",
                "answers that end (%)",
                [(level(stopped, "stopped"), stopped), *((level(v, "stopped"), v) for v in means["stopped"])],
            ),
        )
    )


def _cells(values: Sequence[float | None], decimals: int) -> list[tuple[str, float | None]]:
    return [(decimal(value, decimals), value) for value in values]


def _interval(found: BlockInterval, scale: float, decimals: int) -> str:
    mean = f"{found.difference * scale:.{decimals}f}"
    if not (known(found.low) and known(found.high)):
        return mean
    return f"{mean} [{found.low * scale:.{decimals}f}, {found.high * scale:.{decimals}f}]"


def _raw_table(found: Frontier, finished: Sequence[RunRecord]) -> Table:
    points = found.points
    columns: dict[str, Sequence[str | float | None]] = {
        "loss": [point.loss for point in points],
        "family": [point.family for point in points],
        "beta": [point.beta for point in points],
        "seeds": [point.seeds for point in points],
        "start_reward": [found.start_reward for _ in points],
    }
    for name in ("reward", "kl"):
        intervals: list[BlockInterval] = [getattr(point, name) for point in points]
        columns[name] = [one.difference for one in intervals]
        columns[f"{name}_low"] = [one.low for one in intervals]
        columns[f"{name}_high"] = [one.high for one in intervals]
    for name in ("kl_sampled", "kl_per_token", "kl_released", "stopped"):
        columns[name] = [_means(finished, point.loss, name) for point in points]
    return Table(columns=tuple(raw_column(name, values) for name, values in columns.items()))


def _areas_table(found: Frontier) -> Table:
    rows = found.areas
    return Table(
        columns=(
            text_column("loss", "loss, over its betas", [(one_line(row.family), row.family) for row in rows]),
            number_column(
                "area",
                "mean height of the frontier (%) [95% interval]",
                [(_interval(row.interval, 100, 1) if row.interval else MISSING, row.mean) for row in rows],
            ),
            number_column("bootstrap", "bootstrap", [(_range(row.bootstrap), row.mean) for row in rows]),
            number_column(
                "difference",
                f"difference to {one_line(found.baseline)} (points) [95% interval]",
                [
                    (
                        _interval(_as_interval(row.comparison), 100, 1) if row.comparison else MISSING,
                        row.comparison.difference if row.comparison else None,
                    )
                    for row in rows
                ],
            ),
            number_column(
                "p",
                "p (paired t, not corrected)",
                [
                    (p_value(row.comparison.p_value), row.comparison.p_value) if row.comparison else (MISSING, None)
                    for row in rows
                ],
            ),
            number_column(
                "difference_bootstrap",
                "bootstrap of the difference",
                [(_range(row.comparison_bootstrap), row.comparison and row.comparison.difference) for row in rows],
            ),
            number_column("reaches", "measured up to KL", [(f"{row.reaches:.2f}", row.reaches) for row in rows]),
        )
    )


def _as_interval(pairs: Any) -> BlockInterval:
    return BlockInterval(difference=pairs.difference, low=pairs.low, high=pairs.high, degrees=pairs.blocks - 1)


def _range(found: BootstrapRange | None) -> str:
    return MISSING if found is None else f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _shown(summary: StudySummary, runs: Sequence[RunRecord]) -> tuple[ShownAnswer, ...]:
    by_loss = {run.loss: run.config["answers"] for run in runs if run.config.get("answers")}
    losses = [row.loss for row in summary.rows if row.loss in by_loss]
    if not losses:
        return ()
    found = []
    for place, first in enumerate(by_loss[losses[0]]):
        written = [(BEFORE, _short(first["before"]), level(first["before_reward"], "reward"))]
        written += [
            (loss, _short(by_loss[loss][place]["answer"]), level(by_loss[loss][place]["reward"], "reward"))
            for loss in losses
            if place < len(by_loss[loss])
        ]
        found.append(ShownAnswer(prompt=one_line(first["prompt"]), written=tuple(written)))
    return tuple(found)


def _short(text: str) -> str:
    shown = one_line(text)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"
