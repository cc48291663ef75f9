"""How far models can be taken at their word: confidence against accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._runs import Runs, beside, by_seed, check_count, frame_of, numpy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration of several models on the same examples."""

    curves: Mapping[str, Mapping[int, tuple[Any, ...]]]
    """Model -> seed -> bins with `low`, `high`, `count`, `confidence` and `accuracy`."""
    errors: Mapping[str, Mapping[int, float]]
    """Model -> seed -> expected calibration error, in [0, 1]."""
    bins: int
    """Bins of equal width over [0, 1]."""

    def frame(self) -> "pd.DataFrame":
        """One row per model, seed and bin, with the `ece` of the run."""
        rows = [
            {
                "model": model,
                "seed": seed,
                "low": part.low,
                "high": part.high,
                "count": part.count,
                "confidence": part.confidence,
                "accuracy": part.accuracy,
                "ece": self.errors[model][seed],
            }
            for model, seeds in self.curves.items()
            for seed, parts in seeds.items()
            for part in parts
        ]
        return frame_of(rows, ["model", "seed", "low", "high", "count", "confidence", "accuracy", "ece"])

    def plot(self, *, baseline: str | None = None) -> "Figure":
        """Accuracy over confidence, a panel per model, its seeds' examples taken together; the diagonal is ideal."""
        require("matplotlib", extra="explain", purpose="draw calibration")
        return _calibration_figure(self, baseline)


def calibration(probabilities: Runs, labels: Any, *, bins: int = 15) -> Calibration:
    r"""Compare the confidence of models with how often they are right.

    With bins $B_m$ of equal width by the probability of the predicted class,

    $$\mathrm{ECE} = \sum_m \frac{|B_m|}{n} \left| \mathrm{accuracy}(B_m) - \mathrm{confidence}(B_m) \right|.$$

    Args:
        probabilities: Model -> [examples, classes], rows that sum to 1; or model -> seed -> that.
        labels: Class ids [examples], or seed -> class ids.
        bins: How many, >= 1.

    Raises:
        DataError: For shapes that do not match, or rows that are no probabilities.

    Source:
        Guo et al. 2017, "On calibration of modern neural networks", eq. 3, https://arxiv.org/abs/1706.04599.
    """
    from lossmith.evaluation.calibration import expected_calibration_error, reliability

    check_count("bins", bins)
    np = numpy()
    runs = by_seed(probabilities, name="probabilities", ndim=2)
    classes = beside(runs, labels, name="labels")
    curves: dict[str, dict[int, tuple[Any, ...]]] = {}
    errors: dict[str, dict[int, float]] = {}
    for model, seeds in runs.items():
        curves[model], errors[model] = {}, {}
        for seed, rows in seeds.items():
            if rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
                raise DataError(
                    f"`probabilities` of '{model}', seed {seed}, must be >= 0 and sum to 1 in every row. Are these "
                    f"logits?"
                )
            own = classes[model][seed]
            curves[model][seed] = tuple(reliability(rows, own, bins))
            errors[model][seed] = float(expected_calibration_error(rows, own, bins))
    return Calibration(curves=curves, errors=errors, bins=bins)


def _calibration_figure(found: Calibration, baseline: str | None) -> "Figure":
    from matplotlib.figure import Figure

    from lossmith.explain.canvas import MUTED, WIDTH_IN, figure_label, house_style, model_styles

    np = numpy()
    models = list(found.curves)
    columns = min(4, max(len(models), 2))
    lines = -(-len(models) // columns)
    with house_style():
        styles = model_styles(models, baseline)
        figure = Figure(figsize=(WIDTH_IN, lines * (WIDTH_IN / columns + 0.3)), layout="constrained")
        for place, model in enumerate(models):
            axes = figure.add_subplot(lines, columns, place + 1)
            counts, confidence, accuracy = _together(list(found.curves[model].values()))
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
            seen = counts > 0
            look = styles[model]
            axes.bar(
                confidence[seen], counts[seen] / counts.sum(), width=0.6 / found.bins, color=look.colour, alpha=0.25
            )
            axes.plot(confidence[seen], accuracy[seen], color=look.colour, marker=look.marker, linewidth=1.8)
            error = np.mean(list(found.errors[model].values()))
            axes.set_title(f"{figure_label(model, width=28)}\nECE {error:.3f}", loc="left", fontsize=9)
            axes.set_xlim(0, 1.02)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("confidence", fontsize=9)
            if place % columns == 0:
                axes.set_ylabel("accuracy", fontsize=9)
    return figure


def _together(curves: list[tuple[Any, ...]]) -> tuple[Any, Any, Any]:
    """Counts, mean confidence and accuracy of each bin, the seeds' examples added up."""
    np = numpy()
    counts = np.array([[part.count for part in parts] for parts in curves], dtype=float)
    sums = [
        np.array([[getattr(part, name) if part.count else 0.0 for part in parts] for parts in curves]) * counts
        for name in ("confidence", "accuracy")
    ]
    total = counts.sum(axis=0)
    safe = np.where(total == 0, 1, total)
    return total, sums[0].sum(axis=0) / safe, sums[1].sum(axis=0) / safe
