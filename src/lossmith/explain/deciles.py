"""Accuracy along a quantity of the examples: how far from the middle they lie, how long they are."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._runs import Runs, beside, by_seed, check_count, frame_of, numpy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class DecileAccuracy:
    """One run's accuracy in one part of the examples."""

    model: str
    """The loss."""
    seed: int
    """The block."""
    decile: int
    """From 1, where the quantity is smallest."""
    low: float
    """Smallest value of the quantity in it; NaN where it is empty."""
    high: float
    """Largest one."""
    count: int
    """Examples in it; equal values share a decile, so counts may differ and a decile may be empty."""
    accuracy: float
    """Share of them that is right, in [0, 1]; NaN where it is empty."""


@dataclass(frozen=True, kw_only=True)
class AccuracyByDecile:
    """Accuracy of several models along one quantity."""

    quantity: str
    """What the examples are sorted by, in words."""
    bins: int
    """Parts; ten are deciles."""
    parts: tuple[DecileAccuracy, ...]
    """Model by model, seed by seed, rising."""

    def frame(self) -> "pd.DataFrame":
        """One row per model, seed and decile."""
        columns = ["model", "seed", "decile", "low", "high", "count", "accuracy"]
        return frame_of([asdict(part) for part in self.parts], columns)

    def plot(self, *, baseline: str | None = None) -> "Figure":
        """One line per model: the mean over seeds, with a thin line for every seed."""
        require("matplotlib", extra="explain", purpose="draw results")
        from lossmith.explain._lines import lines_figure

        return lines_figure(
            [(part.model, part.seed, part.decile, 100 * part.accuracy) for part in self.parts],
            x_label=f"decile of the {self.quantity}" if self.bins == 10 else f"part of {self.bins} by {self.quantity}",
            y_label="accuracy (%)",
            baseline=baseline,
        )


def accuracy_by_decile(correct: Runs, values: Any, *, quantity: str, bins: int = 10) -> AccuracyByDecile:
    """Sort the examples by a quantity, cut them into equal parts, and say how often each model is right in each.

    Equal values stay together: all of them go where the first of them falls.

    Args:
        correct: Model -> whether it is right, [examples] of 0/1 or bool; or model -> seed -> that.
        values: The quantity: one array [examples] for all, seed -> array, or model -> those (each model's own).
        quantity: What it is, in words for the axis.
        bins: Parts, >= 2.

    Raises:
        DataError: For shapes that do not match, or values that are not finite.

    Source:
        The released analysis of Sosnowski et al. 2022, https://arxiv.org/abs/2211.15195. Deviation: distances are those
        of a model that all losses share and each model's own, and equal lengths stay together.

    Example:
        >>> import numpy as np
        >>> right, lengths = {"focal": np.array([1, 1, 1, 0])}, np.array([3, 1, 2, 9])
        >>> found = accuracy_by_decile(right, lengths, quantity="length", bins=2)
        >>> [part.accuracy for part in found.parts]
        [1.0, 0.5]
    """
    check_count("bins", bins, low=2)
    np = numpy()
    runs = by_seed(correct, name="correct", ndim=1)
    own = beside(runs, values, name="values")
    parts = []
    for model, seeds in runs.items():
        for seed, right in seeds.items():
            quantities = own[model][seed].astype(float)
            if not np.isfinite(quantities).all():
                raise DataError(f"`values` of '{model}', seed {seed}, must hold finite numbers only.")
            places = decile_of(quantities, bins)
            for decile in range(bins):
                here = places == decile
                inside = quantities[here]
                parts.append(
                    DecileAccuracy(
                        model=model,
                        seed=seed,
                        decile=decile + 1,
                        low=float(inside.min()) if inside.size else float("nan"),
                        high=float(inside.max()) if inside.size else float("nan"),
                        count=int(inside.size),
                        accuracy=float(right[here].mean()) if inside.size else float("nan"),
                    )
                )
    return AccuracyByDecile(quantity=quantity, bins=bins, parts=tuple(parts))


def decile_of(values: "np.ndarray", bins: int = 10) -> "np.ndarray":
    """The part from 0 that each value falls into when they are sorted and cut into equal parts; ties stay together.

    Example:
        >>> import numpy as np
        >>> decile_of(np.array([5.0, 1.0, 1.0, 7.0]), bins=2).tolist()
        [1, 0, 0, 1]
    """
    np = numpy()
    smaller = np.searchsorted(np.sort(values), values, side="left")
    return smaller * bins // len(values)


def centroid_distances(embeddings: "np.ndarray") -> "np.ndarray":
    """Euclidean distance of every embedding [examples, dim] to their mean, [examples], >= 0."""
    np = numpy()
    rows = np.asarray(embeddings, dtype=float)
    if rows.ndim != 2 or not rows.size:
        raise DataError(f"`embeddings` must be [examples, dim] with at least one of each, got shape {rows.shape}.")
    return np.linalg.norm(rows - rows.mean(axis=0), axis=1)
