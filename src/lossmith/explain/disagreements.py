"""Which examples a loss gets right that the baseline gets wrong, and the reverse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._runs import Runs, beside, by_seed, frame_of, numpy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lossmith.evidence import ExampleComparison


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One loss against the baseline, example by example."""

    model: str
    """The loss."""
    gained: Mapping[int, tuple[int, ...]]
    """Seed -> examples that the loss gets right and the baseline wrong."""
    lost: Mapping[int, tuple[int, ...]]
    """Seed -> the reverse."""
    p_values: Mapping[int, float]
    """Seed -> two-sided p of McNemar's exact test."""
    pooled: "ExampleComparison | None"
    """The test over examples with the seeds of each added up; None where the seeds have examples of their own."""

    def steady(self, *, gained: bool = True) -> tuple[tuple[int, int], ...]:
        """Examples with the number of seeds that gained (or lost) them, the most first."""
        counts: dict[int, int] = {}
        for examples in (self.gained if gained else self.lost).values():
            for example in examples:
                counts[example] = counts.get(example, 0) + 1
        return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """Every loss against the baseline."""

    baseline: str
    """The loss that the others are compared with."""
    losses: tuple[Disagreement, ...]
    """The others."""

    def frame(self) -> "pd.DataFrame":
        """One row per model and seed: how many were gained and lost, and McNemar's p."""
        rows = [
            {
                "model": one.model,
                "seed": seed,
                "gained": len(one.gained[seed]),
                "lost": len(one.lost[seed]),
                "p_value": one.p_values[seed],
            }
            for one in self.losses
            for seed in one.gained
        ]
        return frame_of(rows, ["model", "seed", "gained", "lost", "p_value"])

    def examples_frame(self) -> "pd.DataFrame":
        """One row per model, seed and example that the two disagree about; `change` is `gained` or `lost`."""
        rows = [
            {"model": one.model, "seed": seed, "example": example, "change": change}
            for one in self.losses
            for change, by in (("gained", one.gained), ("lost", one.lost))
            for seed, examples in by.items()
            for example in examples
        ]
        return frame_of(rows, ["model", "seed", "example", "change"])

    def plot(self) -> "Figure":
        """Gained to the right, lost to the left, a bar per model and seed."""
        require("matplotlib", extra="explain", purpose="draw disagreements")
        return _disagreements_figure(self)


def find_disagreements(predictions: Runs, labels: Any, *, baseline: str) -> Disagreements:
    """Count the examples on which each model and the baseline differ in being right, paired by seed.

    Args:
        predictions: Model -> class ids [examples], or model -> seed -> class ids; only seeds that the baseline has too
            are compared.
        labels: True class ids [examples], or seed -> class ids.
        baseline: The model that the others are compared with.

    Raises:
        DataError: If the baseline is not there, or a model shares no seed with it.

    Source:
        McNemar 1947, exact form; over seeds the sign-flip test of `lossmith.evidence.compare_examples`.

    Example:
        >>> import numpy as np
        >>> found = find_disagreements(
        ...     {"cross_entropy": np.array([0, 1, 1]), "focal": np.array([0, 0, 0])}, np.array([0, 0, 1]),
        ...     baseline="cross_entropy",
        ... )
        >>> found.losses[0].gained, found.losses[0].lost
        ({0: (1,)}, {0: (2,)})
    """
    from lossmith.evidence import compare_examples, mcnemar

    np = numpy()
    runs = by_seed(predictions, name="predictions", ndim=1)
    if baseline not in runs:
        raise DataError(f"`baseline` must be one of {', '.join(runs)}, got '{baseline}'.")
    truth = beside(runs, labels, name="labels")
    right = {model: {seed: array == truth[model][seed] for seed, array in own.items()} for model, own in runs.items()}
    found = []
    for model in (name for name in runs if name != baseline):
        shared = [seed for seed in runs[model] if seed in runs[baseline]]
        if not shared:
            raise DataError(f"'{model}' shares no seed with the baseline '{baseline}'.")
        gained, lost = {}, {}
        for seed in shared:
            here, there = right[model][seed], right[baseline][seed]
            gained[seed] = tuple(np.flatnonzero(here & ~there).tolist())
            lost[seed] = tuple(np.flatnonzero(~here & there).tolist())
        same = all(np.array_equal(truth[model][shared[0]], truth[model][seed]) for seed in shared)
        pooled = None
        if same:
            scores = [np.stack([right[name][seed] for seed in shared]).astype(float) for name in (baseline, model)]
            pooled = compare_examples(*scores, seeds=shared)
        p_values = {seed: mcnemar(len(gained[seed]), len(lost[seed])) for seed in shared}
        found.append(Disagreement(model=model, gained=gained, lost=lost, p_values=p_values, pooled=pooled))
    return Disagreements(baseline=baseline, losses=tuple(found))


def _disagreements_figure(found: Disagreements) -> "Figure":
    from matplotlib.figure import Figure

    from lossmith.explain.canvas import HUES, INK, WIDTH_IN, figure_label, house_style, message_figure

    with house_style():
        if not found.losses:
            return message_figure(f"There is no loss beside {found.baseline}.")
        bars = sum(len(one.gained) for one in found.losses)
        figure = Figure(figsize=(WIDTH_IN, 1.3 + 0.24 * bars + 0.3 * len(found.losses)), layout="constrained")
        axes = figure.add_subplot()
        height, ticks = 0.0, []
        for one in reversed(found.losses):
            first = height
            for seed in one.gained:
                axes.barh(height, len(one.gained[seed]), color=HUES[2], height=0.8)
                axes.barh(height, -len(one.lost[seed]), color=HUES[1], height=0.8)
                height += 1.0
            ticks.append(((first + height - 1) / 2, figure_label(one.model, width=30)))
            height += 0.8
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(
            f"examples lost (left) and gained (right) against {figure_label(found.baseline, width=40, lines=1)}; a bar "
            f"per seed"
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    return figure
