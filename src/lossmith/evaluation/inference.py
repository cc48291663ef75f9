"""Ways to read a class off a trained classifier: its head, class proxies, their mixture, the nearest training text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.evaluation.calibration import expected_calibration_error, fit_temperature, softmax
from lossmith.evaluation.classification import classification_metrics

if TYPE_CHECKING:
    import numpy as np
else:
    np = require("numpy", extra="train", purpose="evaluate predictions")

INFERENCE_METHODS = ("head", "proxies", "mixture", "neighbours")
"""Names of the ways, in the order in which they are shown; all of them score every class."""
COSINE_SCALE = 20.0
"""Inverse temperature of cosines before a temperature is fitted: that of `normalized_softmax` (1 / 0.05)."""


@dataclass(frozen=True, kw_only=True)
class SupportSet:
    """The training texts as the trained model embeds them."""

    embeddings: Float[np.ndarray, "texts dim"]
    """One vector per training text, of any length."""
    labels: Int[np.ndarray, " texts"]
    """Their classes."""


@dataclass(frozen=True, kw_only=True)
class InferenceScores:
    """What each method says of the same examples: scores [examples, classes] whose softmax is a probability."""

    head: Float[np.ndarray, "examples classes"]
    """Logits."""
    proxies: Float[np.ndarray, "examples classes"]
    """Scores of learnt proxies, or scaled cosines to class means."""
    mixture: Float[np.ndarray, "examples classes"]
    """Log-probabilities of the mixture of both."""
    neighbours: Float[np.ndarray, "examples classes"]
    """Scaled cosines to the nearest training text of each class."""

    def of(self, method: str) -> np.ndarray:
        """The scores of one of `INFERENCE_METHODS`."""
        return getattr(self, method)


def inference_scores(
    *,
    logits: Float[np.ndarray, "examples classes"],
    embeddings: Float[np.ndarray, "examples dim"],
    proxy_scores: Float[np.ndarray, "examples classes"] | None,
    support: SupportSet,
    mixture: float,
) -> InferenceScores:
    """The scores of all methods.

    Args:
        logits: Of the classification head; any finite numbers.
        embeddings: Of the same examples, of any length.
        proxy_scores: Of the loss's own proxies (`MetricLoss.class_scores`); None where it owns none, and the mean
            embedding of each class's training texts stands in their place.
        support: The training texts.
        mixture: Share of the head's probability in the mixture, in [0, 1]; the rest is that of the proxies.

    Returns:
        Scores of the same examples and classes by every method: the logits and the scores of the proxies as they came,
        of the mixture log-probabilities in float64, of neighbours scaled cosines in [-20, 20].

    Raises:
        DataError: If `mixture` is not in [0, 1].

    Source:
        Class means: Snell et al. 2017, https://arxiv.org/abs/1703.05175. The mixture weighs both as the joint objective
        of Sosnowski et al. 2022, https://arxiv.org/abs/2211.15195, weighs their losses, and is not from there.
    """
    if not 0 <= mixture <= 1:
        raise DataError(f"`mixture` must be in [0, 1], the share of the head's probability, got {mixture}.")
    classes = logits.shape[1]
    proxies = mean_scores(embeddings, support, classes) if proxy_scores is None else proxy_scores
    blend = mixture * softmax(logits) + (1 - mixture) * softmax(proxies)
    return InferenceScores(
        head=logits,
        proxies=proxies,
        # The smallest float instead of 0: both sides can be surely wrong, and a finite loss is still owed.
        mixture=np.log(np.maximum(blend, np.finfo(np.float64).tiny)),
        neighbours=neighbour_scores(embeddings, support, classes),
    )


def mean_scores(
    embeddings: Float[np.ndarray, "examples dim"], support: SupportSet, num_classes: int
) -> Float[np.ndarray, "examples classes"]:
    """Scaled cosine to the mean direction of each class's training texts.

    Args:
        embeddings: Of the examples.
        support: The training texts, in the same space.
        num_classes: Columns of the scores; more than the largest label of `support`.

    Returns:
        20 times the cosine, in [-20, 20]; -20 for a class without a training text.

    Source:
        Snell et al. 2017, "Prototypical networks for few-shot learning", eq. 1 and 2,
        https://arxiv.org/abs/1703.05175. Deviation: vectors are brought to length 1 before the mean and the cosine
        stands in place of the squared distance, as the losses compare directions.
    """
    rows = unit(support.embeddings)
    cosines = np.full((len(embeddings), num_classes), -1.0)
    for label in np.unique(support.labels):
        cosines[:, label] = unit(embeddings) @ unit(rows[support.labels == label].mean(axis=0))
    return COSINE_SCALE * cosines


def neighbour_scores(
    embeddings: Float[np.ndarray, "examples dim"], support: SupportSet, num_classes: int
) -> Float[np.ndarray, "examples classes"]:
    """Scaled cosine to the nearest training text of each class; the highest is the class of the nearest of all.

    Args:
        embeddings: Of the examples.
        support: The training texts, in the same space.
        num_classes: Columns of the scores; more than the largest label of `support`.

    Returns:
        20 times the cosine, in [-20, 20]; -20 for a class without a training text.
    """
    cosines = unit(embeddings) @ unit(support.embeddings).T
    nearest = np.full((len(embeddings), num_classes), -1.0)
    for label in np.unique(support.labels):
        nearest[:, label] = cosines[:, support.labels == label].max(axis=1)
    return COSINE_SCALE * nearest


def inference_metrics(scores: InferenceScores, labels: Int[np.ndarray, " examples"]) -> dict[str, float]:
    """The metrics of `classification_metrics` for every method, those of the head without a prefix.

    Args:
        scores: Of every method, [examples, classes].
        labels: True class ids, [examples].

    Returns:
        `accuracy`, `nll` and the others by name, and with the prefixes `proxies_`, `mixture_` and `neighbours_`.
    """
    found: dict[str, float] = {}
    for method in INFERENCE_METHODS:
        prefix = "" if method == "head" else f"{method}_"
        found |= {f"{prefix}{name}": value for name, value in classification_metrics(scores.of(method), labels).items()}
    return found


def fit_temperatures(scores: InferenceScores, labels: Int[np.ndarray, " examples"]) -> dict[str, float]:
    """The temperature of each method on rows that were not trained on; see `fit_temperature`.

    Args:
        scores: Of every method, [examples, classes].
        labels: True class ids, [examples].

    Returns:
        One of `INFERENCE_METHODS` -> a number in [0.01, 100].

    Raises:
        DataError: If there is no example.
    """
    return {method: fit_temperature(scores.of(method), labels) for method in INFERENCE_METHODS}


def calibration_metrics(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], temperature: float | None
) -> dict[str, float]:
    """`ece` of the head, and `calibrated_ece` and `calibrated_nll` where a temperature was fitted.

    Args:
        logits: Of the head, [examples, classes].
        labels: True class ids, [examples].
        temperature: What the logits are divided by, > 0, fitted on other rows; None where none was.

    Returns:
        Calibration errors in [0, 1], and the NLL in nats, >= 0.
    """
    found = {"ece": expected_calibration_error(softmax(logits), labels)}
    if temperature is not None:
        found["calibrated_nll"] = classification_metrics(logits / temperature, labels)["nll"]
        found["calibrated_ece"] = expected_calibration_error(softmax(logits, temperature), labels)
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors [..., dim] at length 1, in float64; a zero vector stays one."""
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1.0, lengths)
