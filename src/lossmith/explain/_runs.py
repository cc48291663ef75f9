"""What the analyses of several models share: arrays by model and seed, frames, and panels of measures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

Runs = Mapping[str, "np.ndarray | Mapping[int, np.ndarray]"]
"""Model (loss) -> its array, or seed -> array where it was trained several times."""
Labels = "np.ndarray | Mapping[int, np.ndarray]"
"""Labels of all models, or seed -> labels where each seed has its own examples."""

Pairs = dict[str, dict[int, Any]]
"""Model -> seed -> array."""


def numpy() -> Any:
    """NumPy, or the sentence that says which extra brings it."""
    return require("numpy", extra="explain", purpose="explain models")


def by_seed(runs: Runs, *, name: str, ndim: int) -> Pairs:
    """Every model's arrays by seed; a model that comes as one array has the seed 0.

    Args:
        runs: As the user gave them.
        name: Of the argument, for the error.
        ndim: Axes of every array; the first one is that of the examples.

    Raises:
        DataError: If there is no model, an array has other axes, no example, or numbers that are not finite.
    """
    np = numpy()
    if not runs:
        raise DataError(f"`{name}` must hold at least one model, got none.")
    found: Pairs = {}
    for model, given in runs.items():
        by: Mapping[int, Any] = given if isinstance(given, Mapping) else {0: given}
        if not by:
            raise DataError(f"`{name}` of '{model}' must hold at least one seed, got none.")
        found[str(model)] = {int(seed): np.asarray(array) for seed, array in by.items()}
        for seed, array in found[str(model)].items():
            if array.ndim != ndim or not array.size:
                raise DataError(
                    f"`{name}` of '{model}', seed {seed}, must have {ndim} axes and at least one example, got shape "
                    f"{array.shape}."
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"`{name}` of '{model}', seed {seed}, must hold finite numbers only.")
    return found


def beside(runs: Pairs, other: Any, *, name: str) -> Pairs:
    """One array per run from one for all, from one per seed, or from model -> those.

    Raises:
        DataError: If a run has no array, or one with another number of examples.
    """
    np = numpy()
    found: Pairs = {}
    for model, seeds in runs.items():
        own = other[model] if isinstance(other, Mapping) and model in other else other
        found[model] = {}
        for seed, array in seeds.items():
            given = own.get(seed) if isinstance(own, Mapping) else own
            if given is None:
                raise DataError(f"`{name}` has nothing for '{model}', seed {seed}.")
            values = np.asarray(given)
            if values.shape != array.shape[:1]:
                raise DataError(
                    f"`{name}` must have one entry per example of '{model}', seed {seed}, {array.shape[:1]}, got "
                    f"{values.shape}."
                )
            found[model][seed] = values
    return found


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "pd.DataFrame":
    """The rows as a pandas DataFrame; without any it still has its columns."""
    pandas = require("pandas", extra="explain", purpose="give results as data frames")
    return pandas.DataFrame(list(rows), columns=list(columns))


def check_count(name: str, value: object, *, low: int = 1) -> None:
    """Raise `DataError` unless `value` is an int that is at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise DataError(f"`{name}` must be an int >= {low}, got {value}.")


def measures_figure(
    rows: Sequence[Mapping[str, Any]], measures: Mapping[str, str], *, baseline: str | None = None
) -> "Figure":
    """One panel per measure: a row per model, a point per seed, a bar at the mean.

    Args:
        rows: Each with `model`, and a number (or NaN) for every measure.
        measures: Key -> how to read it, the title of its panel.
        baseline: The model drawn in grey; the first one without.
    """
    require("matplotlib", extra="explain", purpose="draw results")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from lossmith.explain.canvas import INK, PAPER, WIDTH_IN, figure_label, house_style, message_figure, model_styles

    np = numpy()
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    with house_style():
        if not models:
            return message_figure("There is nothing to draw.")
        styles = model_styles(models, baseline)
        columns = min(3, len(measures))
        lines = -(-len(measures) // columns)
        figure = Figure(figsize=(WIDTH_IN, lines * (1.2 + 0.42 * len(models))), layout="constrained")
        heights = {model: len(models) - 1 - place for place, model in enumerate(models)}
        for place, (key, title) in enumerate(measures.items()):
            axes = figure.add_subplot(lines, columns, place + 1)
            for model, height in heights.items():
                values = np.array([row[key] for row in rows if row["model"] == model], dtype=float)
                values = values[np.isfinite(values)]
                look = styles[model]
                if values.size:
                    mean = values.mean()
                    axes.plot([mean, mean], [height - 0.28, height + 0.28], color=INK, linewidth=2, zorder=2)
                axes.scatter(
                    values, [height] * values.size, s=34, color=look.colour, marker=look.marker, edgecolors=PAPER,
                    linewidths=0.7, zorder=3,
                )  # fmt: skip
            axes.set_title(title, loc="left", fontsize=9)
            names = [figure_label(model, width=26) for model in models] if place % columns == 0 else []
            axes.set_yticks(list(heights.values()), names or [""] * len(models), fontsize=8.5)
            axes.set_ylim(-0.6, len(models) - 0.4)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x")
            axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure
