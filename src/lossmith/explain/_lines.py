"""Lines over a rank, one per model: the mean over seeds, with a thin line for every seed."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lossmith.explain.canvas import MUTED, WIDTH_IN, figure_label, house_style, message_figure, model_styles

Point = tuple[str, int, float, float]
"""Model, seed, x, y."""


@house_style()
def lines_figure(
    points: Sequence[Point], *, x_label: str, y_label: str, baseline: str | None = None, level: float | None = None
) -> Figure:
    """Lines by model.

    Args:
        points: In rising x for every model and seed; those whose y is NaN are left out.
        x_label: Of the axis.
        y_label: Of the axis.
        baseline: The model in grey; the first one without.
        level: A dotted line at this height.
    """
    models = list(dict.fromkeys(model for model, *_ in points))
    if not any(math.isfinite(y) for *_, y in points):
        return message_figure("There is nothing to draw.")
    styles = model_styles(models, baseline)
    figure = Figure(figsize=(WIDTH_IN, 3.4 + 0.24 * math.ceil(len(models) / 2)), layout="constrained")
    axes = figure.add_subplot()
    if level is not None:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=":")
    for model in models:
        own = [(seed, x, y) for name, seed, x, y in points if name == model and math.isfinite(y)]
        seeds = sorted({seed for seed, *_ in own})
        look = styles[model]
        if len(seeds) > 1:
            for seed in seeds:
                thin = [(x, y) for other, x, y in own if other == seed]
                axes.plot(*zip(*thin, strict=True), color=look.colour, linewidth=0.8, alpha=0.3)
        places = sorted({x for _, x, _ in own})
        means = [_mean([y for _, x, y in own if x == place]) for place in places]
        axes.plot(
            places, means, color=look.colour, linewidth=2.2, linestyle=look.dashes, marker=look.marker, markersize=5
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    model_legend(figure, models, baseline)
    return figure


def model_legend(figure: Figure, models: Sequence[str], baseline: str | None) -> None:
    """A legend of the models below a figure."""
    styles = model_styles(models, baseline)
    lines = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, linewidth=2.2)
        for look in (styles[model] for model in models)
    ]
    legend = figure.legend(lines, [str(place) for place in range(len(models))], loc="outside lower left", ncols=2)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, model in zip(legend.get_texts(), models, strict=True):
        text.set_text(figure_label(model, width=48, lines=1))
        text.set_fontsize(9)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
