"""What a classifier's scores on a test set are worth: accuracy, F1, negative log-likelihood, confusion."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from lossmith._extras import require
from lossmith.errors import DataError

if TYPE_CHECKING:
    import numpy as np
else:
    np = require("numpy", extra="train", purpose="evaluate predictions")


def predictions(logits: Float[np.ndarray, "examples classes"]) -> Int[np.ndarray, " examples"]:
    """Class id with the highest score for each example; the lowest id wins a tie.

    Args:
        logits: Scores [examples, classes], any monotone scale.

    Raises:
        DataError: If `logits` is not two-dimensional, is empty, or holds NaN or +inf.
    """
    _check_scores("logits", logits)
    return logits.argmax(axis=1).astype(np.int64)


def classification_metrics(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> dict[str, float]:
    """Metrics of one test set, all means over examples but for macro F1.

    Args:
        logits: Unnormalised log-scores [examples, classes]. Log-probabilities serve as they are; for probabilities see
            `probability_metrics`.
        labels: True class ids [examples], in [0, classes).

    Returns:
        `accuracy`, `macro_f1` and `weighted_f1` as fractions in [0, 1], and `nll`, the mean negative log-likelihood of
        the labels in nats, >= 0 (inf where a label has the score -inf). A class that is never predicted has F1 = 0; one
        that is neither true nor predicted anywhere does not count in `macro_f1`.

    Raises:
        DataError: If shapes do not match, there is no example, `logits` hold NaN or +inf, or a label is out of range.

    Example:
        >>> metrics = classification_metrics(np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array([0, 1, 1]))
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'accuracy': 0.667, 'macro_f1': 0.667, 'weighted_f1': 0.667, 'nll': 0.794}
    """
    predicted = predictions(logits)
    _check_ids("labels", labels, len(logits), logits.shape[1])
    sklearn_metrics = require("sklearn.metrics", extra="train", purpose="evaluate predictions")
    f1 = {
        f"{average}_f1": float(sklearn_metrics.f1_score(labels, predicted, average=average, zero_division=0.0))
        for average in ("macro", "weighted")
    }
    return {"accuracy": float((predicted == labels).mean()), **f1, "nll": _mean_nll(logits, labels)}


def probability_metrics(
    probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> dict[str, float]:
    """The metrics of `classification_metrics` for probabilities [examples, classes].

    Raises:
        DataError: If a probability is outside [0, 1], a row does not sum to 1 (within 1e-3), or as
            `classification_metrics` does.
    """
    _check_scores("probabilities", probabilities)
    low, high = probabilities.min(), probabilities.max()
    if low < 0 or high > 1:
        raise DataError(f"`probabilities` must be in [0, 1], got {low} to {high}. Are these logits?")
    sums = probabilities.astype(np.float64).sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-3:
        raise DataError(f"`probabilities` must sum to 1 in every row, got {sums[worst]:.6g} in row {worst}.")
    with np.errstate(divide="ignore"):
        return classification_metrics(np.log(probabilities.astype(np.float64)), labels)


def confusion_matrix(
    labels: Int[np.ndarray, " examples"], predictions: Int[np.ndarray, " examples"], num_classes: int
) -> Int[np.ndarray, "true predicted"]:
    """How many examples of each true class (row) were predicted as each class (column).

    Args:
        labels: True class ids [examples], in [0, num_classes).
        predictions: Predicted class ids [examples], in [0, num_classes).
        num_classes: Number of rows and columns, >= 1.

    Returns:
        Counts [num_classes, num_classes]; they sum to the number of examples.

    Raises:
        DataError: If the arrays differ in length or hold ids out of range.

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), num_classes=3).tolist()
        [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    """
    _check_ids("labels", labels, len(labels), num_classes)
    _check_ids("predictions", predictions, len(labels), num_classes)
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _mean_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    scores = logits.astype(np.float64)
    # Subtracting the largest score keeps exp() from overflowing, and its own term makes the sum >= 1.
    scores = scores - scores.max(axis=1, keepdims=True)
    log_normalizer = np.log(np.exp(scores).sum(axis=1))
    return float((log_normalizer - scores[np.arange(len(labels)), labels]).mean())


def _check_scores(name: str, scores: np.ndarray) -> None:
    if scores.ndim != 2 or 0 in scores.shape:
        raise DataError(f"`{name}` must be [examples, classes] with at least one of each, got shape {scores.shape}.")
    unusable = np.isnan(scores) | np.isposinf(scores)
    # A row of -inf alone has no largest score and no normaliser.
    bad_rows = np.flatnonzero(unusable.any(axis=1) | np.isneginf(scores).all(axis=1))
    if len(bad_rows):
        raise DataError(
            f"`{name}` must be finite (-inf is allowed beside finite scores), got NaN or infinity in "
            f"{len(bad_rows)} of {len(scores)} rows, first in row {bad_rows[0]}. Did training diverge?"
        )


def _check_ids(name: str, ids: np.ndarray, num_examples: int, num_classes: int) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"`{name}` must be integers (class ids), got {ids.dtype}.")
    if ids.shape != (num_examples,):
        raise DataError(f"`{name}` must have one id per example, ({num_examples},), got shape {ids.shape}.")
    if num_examples and not (ids.min() >= 0 and ids.max() < num_classes):
        raise DataError(f"`{name}` must be class ids from 0 to {num_classes - 1}, got {ids.min()} to {ids.max()}.")
