"""What a policy prefers: log-probabilities of both answers of each pair, and what they say beside the reference's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lossmith.integrations.fingerprints import Fingerprint
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.preference_rows import PairRow
from lossmith.integrations.reference import completion_logps
from lossmith.integrations.reference_cache import ReferenceCache
from lossmith.nn import IGNORE_INDEX

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
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
    on_batch: Callable[[int, int], None] | None = None,
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
    order = sorted(range(len(answers)), key=lambda place: -len(answers[place][0]) - len(answers[place][1]))
    head, found = HeadLoss(model), np.zeros(len(answers))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = _batch([answers[place] for place in places], pad_token_id, next(model.parameters()).device)
        found[places] = completion_logps(head, model, batch).double().cpu().numpy()
        if on_batch is not None:
            on_batch(start + len(places), len(order))
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
    lengths = np.array([(len(row.chosen_ids), len(row.rejected_ids)) for row in rows], dtype=float).reshape(-1, 2)
    if not rows:
        return PairLogps(np.zeros(0), np.zeros(0), lengths[:, 0], lengths[:, 1])
    order = sorted(range(len(rows)), key=lambda place: -_tokens(rows[place]))
    table = [{column: getattr(rows[place], column) for column in COLUMNS} for place in order]
    settings = {"dtype": str(model.dtype), "device": model.device.type, "scored": "whole"}
    mark = Fingerprint.of(model, tokenizer, table, columns=list(COLUMNS), settings=settings)

    def compute(places: list[int]) -> Mapping[str, torch.Tensor]:
        scored = score_pairs(
            model, [rows[order[p]] for p in places], pad_token_id=tokenizer.pad_token_id, batch_size=batch_size
        )
        return {"chosen": torch.from_numpy(scored.chosen), "rejected": torch.from_numpy(scored.rejected)}

    kept = ReferenceCache(folder).load_or_compute(name, mark, len(rows), compute, rows_per_call=max(batch_size // 2, 1))
    found = np.zeros((2, len(rows)))
    found[:, order] = [kept[side].double().numpy() for side in ("chosen", "rejected")]
    return PairLogps(found[0], found[1], lengths[:, 0], lengths[:, 1])


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


def _tokens(row: PairRow) -> int:
    return len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids))


def _batch(
    answers: Sequence[tuple[list[int], list[int]]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(ids) for prompt, ids in answers)
    inputs = torch.full((len(answers), width), pad_token_id)
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, IGNORE_INDEX)
    for place, (prompt, ids) in enumerate(answers):
        end = len(prompt) + len(ids)
        inputs[place, :end] = torch.tensor([*prompt, *ids])
        mask[place, :end] = 1
        labels[place, len(prompt) : end] = torch.tensor(ids)
    return {
        "input_ids": inputs.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }
