"""How far probabilities can be taken at their word: temperature scaling, reliability, expected calibration error."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from lossmith._extras import require
from lossmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
else:
    np = require("numpy", extra="train", purpose="calibrate predictions")

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of a fitted temperature: beyond them a softmax is a step or flat."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Predictions of about one confidence."""

    low: float
    """Lower end of the confidences, excluded (included where it is 0)."""
    high: float
    """Upper end, included."""
    count: int
    """How many predictions fall between."""
    confidence: float
    """Their mean probability of the predicted class; NaN where there is none."""
    accuracy: float
    """Share of them that is right; NaN where there is none."""


def softmax(
    scores: Float[np.ndarray, "examples classes"], temperature: float = 1.0
) -> Float[np.ndarray, "examples classes"]:
    """Probabilities of scores divided by `temperature`, in float64.

    Args:
        scores: Logits or log-probabilities, [examples, classes], finite.
        temperature: > 0; above 1 the probabilities are flatter, below 1 sharper.

    Returns:
        Rows in [0, 1] that sum to 1.
    """
    scaled = scores.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def fit_temperature(scores: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]) -> float:
    """The temperature that makes the softmax of scores most probable on held-out labels.

    It changes no prediction, only how sure it is.

    Args:
        scores: Logits or log-probabilities [examples, classes] of rows that were not trained on.
        labels: Their true class ids.

    Returns:
        A number in [0.01, 100]: above 1 where the scores are too sure. Where every label has the highest score the NLL
        falls without end as the temperature does, and 0.01 comes back.

    Raises:
        DataError: If there is no example.

    Source:
        Guo et al. 2017, "On calibration of modern neural networks", section 4.2, https://arxiv.org/abs/1706.04599.
        Deviation: the temperature is bounded.
    """
    if len(labels) == 0:
        raise DataError("`labels` must hold at least one example to fit a temperature on, got none.")
    optimize = require("scipy.optimize", extra="train", purpose="fit a temperature")
    own = scores.astype(np.float64)
    own = own - own.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))

    def nll(inverse: float) -> float:
        scaled = own * inverse
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, labels]).mean())

    # In 1/T the NLL is convex, so a bounded search cannot miss its minimum; in T or log T it may have a flat end.
    found = optimize.minimize_scalar(
        nll, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded", options={"xatol": 1e-6, "maxiter": 200}
    )
    return float(np.clip(1 / found.x, COLDEST, HOTTEST))


def reliability(
    probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy in bins of equal width over [0, 1], all of them, empty ones included.

    Args:
        probabilities: [examples, classes], rows that sum to 1.
        labels: True class ids, [examples].
        bins: How many, >= 1.

    Returns:
        `bins` bins from 0 up; their counts sum to the number of examples.

    Source:
        Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for place in range(bins):
        here = places == place
        count = int(here.sum())
        found.append(
            ReliabilityBin(
                low=place / bins,
                high=(place + 1) / bins,
                count=count,
                confidence=float(confidence[here].mean()) if count else float("nan"),
                accuracy=float(right[here].mean()) if count else float("nan"),
            )
        )
    return tuple(found)


def expected_calibration_error(
    probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability`, weighted by their counts; in [0, 1].

    With few examples it is above 0 for perfectly calibrated probabilities too: compare it between models on the same
    examples.

    Args:
        probabilities: [examples, classes], rows that sum to 1; at least one.
        labels: True class ids, [examples].
        bins: How many, >= 1.

    Source:
        Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599. Deviation: none.

    Example:
        >>> expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
        0.30000000000000004
    """
    filled = [part for part in reliability(probabilities, labels, bins) if part.count]
    return sum(part.count * abs(part.confidence - part.accuracy) for part in filled) / len(labels)
