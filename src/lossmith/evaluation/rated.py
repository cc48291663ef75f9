"""What a policy thinks of answers that are rated one by one: whether good ones gained more than bad ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmith.evaluation.answer_logps import OnBatch, answer_logps, stored_answer_logps
from lossmith.integrations.rated_rows import RatedRow


@dataclass(frozen=True)
class RatedLogps:
    """Log-probabilities of rated answers under one model, in nats; arrays [answers]."""

    logps: np.ndarray
    """Of each answer, summed over its tokens."""
    lengths: np.ndarray
    """Its tokens."""
    desirable: np.ndarray
    """Whether it is a good one."""

    @property
    def finite(self) -> bool:
        """Whether all are numbers."""
        return bool(np.isfinite(self.logps).all())


def score_rated(
    model: Any, rows: Sequence[RatedRow], *, pad_token_id: int, batch_size: int, on_batch: OnBatch | None = None
) -> RatedLogps:
    """Log-probabilities of rated answers, see `answer_logps`."""
    answers = [(row.prompt_ids, row.completion_ids) for row in rows]
    found = answer_logps(model, answers, pad_token_id=pad_token_id, batch_size=batch_size, on_batch=on_batch)
    return _rated(found, rows)


def stored_rated(
    model: Any, tokenizer: Any, rows: Sequence[RatedRow], *, batch_size: int, name: str, folder: Any = None
) -> RatedLogps:
    """As `score_rated`, kept on disk, see `stored_answer_logps`."""
    table = [{"prompt_ids": row.prompt_ids, "completion_ids": row.completion_ids} for row in rows]
    sides = {"completion": "completion_ids"}
    found = stored_answer_logps(model, tokenizer, table, sides, batch_size=batch_size, name=name, folder=folder)
    return _rated(found["completion"], rows)


def rated_metrics(policy: RatedLogps, reference: RatedLogps) -> tuple[dict[str, float], dict[str, list[float]]]:
    r"""What a policy thinks of rated answers: metrics, and the log-ratio of each answer.

    The implied reward of an answer is its log-ratio, $\log\pi - \log\pi_\mathrm{ref}$. `auc` is the area under its ROC
    curve: the probability that a good answer has more of it than a bad one, a tie half (the reference itself has 0.5);
    `auc_per_token` divides each log-ratio by the answer's length, and `policy_auc` leaves the reference out: whether
    good answers are the likelier ones, per token. `rated_accuracy` is the mean, over good and bad answers, of the share
    whose log-ratio is above 0 for good ones and below for bad ones. `desirable_shift` and `undesirable_shift` are mean
    log-ratios of both kinds, `shift_gap` their difference. `nll` is per token of the good answers.

    Args:
        policy: The trained model, finite.
        reference: The reference, on the same answers, good and bad ones.

    Example:
        >>> one, kinds = np.ones(3), np.array([True, False, False])
        >>> reference = RatedLogps(np.array([-4.0, -4.0, -4.0]), one, kinds)
        >>> metrics, _ = rated_metrics(RatedLogps(np.array([-3.0, -2.0, -5.0]), one, kinds), reference)
        >>> metrics["auc"], metrics["rated_accuracy"], metrics["desirable_shift"], metrics["undesirable_shift"]
        (0.5, 0.75, 1.0, 0.5)
    """
    gained, good = policy.logps - reference.logps, policy.desirable
    each = gained / policy.lengths
    signs = (np.sign(gained) + 1) / 2
    metrics = {
        "auc": area_under_curve(gained, good),
        "auc_per_token": area_under_curve(each, good),
        "policy_auc": area_under_curve(policy.logps / policy.lengths, good),
        "rated_accuracy": float(signs[good].mean() + (1 - signs[~good]).mean()) / 2,
        "desirable_shift": float(gained[good].mean()),
        "undesirable_shift": float(gained[~good].mean()),
        "shift_gap": float(gained[good].mean() - gained[~good].mean()),
        "desirable_shift_per_token": float(each[good].mean()),
        "undesirable_shift_per_token": float(each[~good].mean()),
        "nll": float(-policy.logps[good].sum() / policy.lengths[good].sum()),
    }
    return metrics, {"log_ratio": gained.tolist()}


def area_under_curve(values: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the larger value than a negative, a tie half; both kinds must be there.

    Example:
        >>> area_under_curve(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]))
        0.625
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, values))


def _rated(logps: np.ndarray, rows: Sequence[RatedRow]) -> RatedLogps:
    lengths = np.array([len(row.completion_ids) for row in rows], dtype=float)
    return RatedLogps(logps, lengths, np.array([row.label for row in rows], dtype=bool))
