"""What a policy prefers: log-probabilities of both answers of each pair, and what they say beside the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmith.evaluation.answer_logps import OnBatch, answer_logps, stored_answer_logps
from lossmith.integrations.preference_rows import PairRow

SIDES = {"chosen": "chosen_ids", "rejected": "rejected_ids"}
"""What the log-probabilities of an answer are called -> the column of its tokens."""
STAGES, BINS = 4, 60
"""Equal parts of training, and bins, of the histogram of margins."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the answers of each pair under one model, in nats, with their lengths; arrays [pairs]."""

    chosen: np.ndarray
    """Of the better answers, each summed over its tokens."""
    rejected: np.ndarray
    """Of the worse ones."""
    chosen_lengths: np.ndarray
    """Tokens of the better answers."""
    rejected_lengths: np.ndarray
    """Tokens of the worse ones."""

    @property
    def finite(self) -> bool:
        """Whether all are numbers."""
        return bool(np.isfinite(self.chosen).all() and np.isfinite(self.rejected).all())


def score_pairs(
    model: Any,
    rows: Sequence[PairRow],
    *,
    pad_token_id: int,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> PairLogps:
    """One forward pass per answer, in batches of answers of similar length; nothing of size tokens x vocabulary.

    Args:
        model: A causal language model, or one with adapters, which are on or off as they are.
        rows: Pairs, at least one.
        pad_token_id: Token to fill with; it is masked.
        batch_size: Answers per forward pass, >= 1.
        on_batch: Called after every batch with the answers that are done and all there are.
    """
    answers = [(row.prompt_ids, ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    found = answer_logps(model, answers, pad_token_id=pad_token_id, batch_size=batch_size, on_batch=on_batch)
    lengths = np.array([len(ids) for _, ids in answers], dtype=float)
    return PairLogps(found[::2], found[1::2], lengths[::2], lengths[1::2])


def stored_scores(
    model: Any, tokenizer: Any, rows: Sequence[PairRow], *, batch_size: int, name: str, folder: Any = None
) -> PairLogps:
    """As `score_pairs`, kept on disk under the fingerprint of model, tokenizer and rows.

    Args:
        model: A model that is not trained yet, without adapters.
        tokenizer: Its tokenizer.
        rows: Pairs.
        batch_size: Answers per forward pass, >= 1.
        name: Of the file, such as "test".
        folder: As for `ReferenceCache`.

    Raises:
        ConfigurationError: If the file cannot be read or written.
        ModelError: If a log-probability is no number.
    """
    table = [{column: getattr(row, column) for column in ("prompt_ids", *SIDES.values())} for row in rows]
    found = stored_answer_logps(model, tokenizer, table, SIDES, batch_size=batch_size, name=name, folder=folder)
    lengths = np.array([(len(row.chosen_ids), len(row.rejected_ids)) for row in rows], dtype=float).reshape(-1, 2)
    return PairLogps(found["chosen"], found["rejected"], lengths[:, 0], lengths[:, 1])


def preference_metrics(policy: PairLogps, reference: PairLogps) -> tuple[dict[str, float], dict[str, list[float]]]:
    r"""What a policy prefers on a set of pairs: metrics, and the values per pair that some of them are means of.

    With $\rho$ the log-ratio margin, $(\log\pi - \log\pi_\mathrm{ref})(\mathrm{chosen})$ minus that of the rejected
    answer: `preference_accuracy` is the share of pairs with $\rho > 0$, a tie half right (so the reference itself has
    0.5), `margin` the mean of $\rho$, `chosen_shift` and `rejected_shift` its two parts. `*_per_token` divide each
    answer's log-ratio by its length. `length_controlled_accuracy` is the accuracy on pairs whose chosen answer is the
    shorter one; without such pairs it is not there. `policy_accuracy` and `policy_margin` leave the reference out, as
    losses without one do: whether the chosen answer is the likelier one. `nll` is per token of the chosen answers.

    Args:
        policy: The trained model, [pairs], finite.
        reference: The reference, on the same pairs.

    Example:
        >>> two = np.array([4.0, 2.0])
        >>> reference = PairLogps(np.array([-9.0, -8.0]), np.array([-5.0, -6.0]), two, two)
        >>> policy = PairLogps(np.array([-8.0, -9.0]), np.array([-5.0, -6.0]), two, two)
        >>> metrics, scores = preference_metrics(policy, reference)
        >>> metrics["preference_accuracy"], metrics["margin"], metrics["policy_accuracy"], scores["margin"]
        (0.5, 0.0, 0.0, [1.0, -1.0])
    """
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    chosen_each, rejected_each = chosen / policy.chosen_lengths, rejected / policy.rejected_lengths
    right = _right(chosen - rejected)
    scores = {
        "preference_accuracy": right,
        "preference_accuracy_per_token": _right(chosen_each - rejected_each),
        "policy_accuracy": _right(policy.chosen - policy.rejected),
        "margin": chosen - rejected,
        "margin_per_token": chosen_each - rejected_each,
        "policy_margin": policy.chosen - policy.rejected,
        "chosen_shift": chosen,
        "rejected_shift": rejected,
        "chosen_shift_per_token": chosen_each,
        "rejected_shift_per_token": rejected_each,
    }
    metrics = {name: float(values.mean()) for name, values in scores.items()}
    shorter = policy.chosen_lengths < policy.rejected_lengths
    if shorter.any():
        metrics["length_controlled_accuracy"] = float(right[shorter].mean())
    metrics["nll"] = float(-policy.chosen.sum() / policy.chosen_lengths.sum())
    return metrics, {name: values.tolist() for name, values in scores.items()}


def margin_histogram(
    seen: Sequence[tuple[int, Sequence[float]]], *, stages: int = STAGES, bins: int = BINS
) -> dict[str, Any] | None:
    """How the margins that a loss saw were spread, over equal parts of training; None where it saw none.

    Args:
        seen: Optimiser steps done, and the margins of a micro-batch then, in nats.
        stages: Parts of training.
        bins: Bins between the smallest and the largest margin.

    Returns:
        `edges`, bins + 1 numbers, and `counts`, one list of `bins` for each part.

    Example:
        >>> margin_histogram([(0, [0.0, 0.0]), (1, [1.0, 3.0])], stages=2, bins=3)
        {'edges': [0.0, 1.0, 2.0, 3.0], 'counts': [[2, 0, 0], [0, 1, 1]]}
    """
    steps = np.array([step for step, values in seen for _ in values], dtype=float)
    values = np.array([value for _, values in seen for value in values], dtype=float)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not values.size:
        return None
    edges = np.histogram_bin_edges(values, bins=bins)
    parts = np.minimum((steps / (max(step for step, _ in seen) + 1) * stages).astype(int), stages - 1)
    counts = [np.histogram(values[parts == part], bins=edges)[0].tolist() for part in range(stages)]
    return {"edges": edges.tolist(), "counts": counts}


def _right(margin: np.ndarray) -> np.ndarray:
    """1 where positive, 0.5 for a tie."""
    return (np.sign(margin) + 1) / 2
