"""Numbers as a person reads them: units, signs, digits."""

import math

from lossmith.evidence.metrics import (
    RELEASED,
    START,
    format_difference,
    format_interval,
    format_value,
    metric_style,
    split_metric,
)
from lossmith.evidence.statistics import PairedComparison
from lossmith.explain.text import MISSING

METRIC_NAMES = {
    "reward": "mean reward",
    "reward_score": "mean score of the reward model",
    "reward_win_rate": "wins over the model before training, by the reward",
    "likelihood_win_rate": "wins over the model before training, by likelihood",
    "kl": "KL(policy || reference) per answer",
    "kl_sampled": "KL(policy || reference) per answer, Monte Carlo",
    "kl_per_token": "KL(policy || reference) per token",
    "kl_released": "KL(reference || policy) per token with the prompt, as the released code",
    "nll": "test NLL",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "flexible_match": "match, any form",
    "likelihood_accuracy": "accuracy by likelihood",
    "answered": "answers that can be read",
    "stopped": "answers that end",
    "iou": "steps: IoU",
    "overlap": "steps: overlap",
    "dice": "steps: Dice",
    "recall": "steps: recall",
    "precision": "steps: precision",
    "real_iou": "steps: IoU up to commuting",
    "wrong_operators": "steps: wrong operators",
    "inverted_operands": "steps: inverted operands",
    "missing_steps": "steps: missing",
    "extra_steps": "steps: extra",
    "repetitions": "steps: repeated",
    "wrong_results": "steps: wrong results",
    "ece": "calibration error (ECE)",
    "calibrated_ece": "calibration error (ECE), calibrated",
    "calibrated_nll": "test NLL, calibrated",
    "preference_accuracy_per_token": "preference accuracy, per token",
    "length_controlled_accuracy": "preference accuracy where chosen is shorter",
    "policy_accuracy": "chosen is likelier",
    "policy_margin": "log-probability, chosen minus rejected",
    "margin_per_token": "margin per token",
    "chosen_shift": "shift of chosen",
    "rejected_shift": "shift of rejected",
    "chosen_shift_per_token": "shift of chosen per token",
    "rejected_shift_per_token": "shift of rejected per token",
    "auc": "AUC of the implied reward",
    "auc_per_token": "AUC of the implied reward per token",
    "policy_auc": "AUC of the likelihood per token",
    "rated_accuracy": "accuracy by the sign of the implied reward",
    "shift_gap": "shift of good minus bad answers",
    "desirable_shift": "shift of good answers",
    "undesirable_shift": "shift of bad answers",
    "desirable_shift_per_token": "shift of good answers per token",
    "undesirable_shift_per_token": "shift of bad answers per token",
}
"""Metrics whose key alone would not tell a reader what they are."""


def metric_name(metric: str) -> str:
    """The metric in words.

    Example:
        >>> metric_name("macro_f1"), metric_name("mixture_accuracy"), metric_name("released_exact_match")
        ('macro F1', 'accuracy by mixture', 'as released: exact match')
    """
    if metric.startswith(START):
        return f"before training: {metric_name(metric.removeprefix(START))}"
    if metric.startswith(RELEASED):
        return f"as released: {metric_name(metric.removeprefix(RELEASED))}"
    method, name = split_metric(metric)
    words = METRIC_NAMES.get(name) or name.replace("_", " ")
    return words if method == "head" else f"{words} by {method}"


def level_unit(metric: str) -> str:
    """The unit of `level`; differences have the unit that `metric_style` names."""
    unit = metric_style(metric).unit
    return "%" if unit == "points" else unit


def level(value: float | None, metric: str) -> str:
    """A level of `metric` without its unit, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else format_value(value, metric)


def difference(value: float | None, metric: str) -> str:
    """A difference of `metric` with its sign, without its unit, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else format_difference(value, metric, signed=True)


def difference_with_interval(pairs: PairedComparison | None, metric: str) -> str:
    """`+6.1 [4.0, 8.2]`; without the interval where there was one block, a dash where there is no pair.

    Differences that are all the same have no spread, and an interval of width 0 would claim certainty: `+6.1 (all 3)`.
    """
    if pairs is None:
        return MISSING
    if pairs.low == pairs.high:
        return f"{difference(pairs.difference, metric)} (all {pairs.blocks})"
    interval = f" {format_interval(pairs.low, pairs.high, metric)}" if known(pairs.low) and known(pairs.high) else ""
    return difference(pairs.difference, metric) + interval


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def decimal(value: float | None, decimals: int) -> str:
    """A number with a fixed count of digits, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def p_value(value: float | None) -> str:
    """A p-value with three digits; smaller ones are only called smaller."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"
