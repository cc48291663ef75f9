"""Token objectives as scalar functions of one row of logits, from the papers; no code is shared with the library.

Where a weight is a constant, it is computed from `held`: a copy of the row that finite differences leave alone.
"""

import math

from scalar_oracles import Row, complement_logp, cross_entropy, entropy, focal, log_probs, log_sum_exp, probs

__all__ = ["HELD", "ROWWISE", "mile"]


def _wrong(row: Row, label: int) -> float:
    return math.fsum(p for k, p in enumerate(probs(row)) if k != label)


def _self_adjusting_dice(row: Row, label: int, alpha: float = 1.0, gamma: float = 1.0) -> float:
    factor = _wrong(row, label) ** alpha * probs(row)[label]
    return 1 - (2 * factor + gamma) / (factor + 1 + gamma)


def _poly1(row: Row, label: int, epsilon: float = 1.0) -> float:
    return -log_probs(row)[label] + epsilon * _wrong(row, label)


def _generalized_cross_entropy(row: Row, label: int, q: float = 0.7) -> float:
    return (1 - probs(row)[label] ** q) / q


def _unlikelihood(row: Row, label: int) -> float:
    return -complement_logp(row, label)


def _confidence_penalty(row: Row, label: int, coefficient: float = 0.1) -> float:
    return -log_probs(row)[label] - coefficient * entropy(row)


def _z(row: Row, label: int, coefficient: float = 1e-4) -> float:
    return coefficient * log_sum_exp(row) ** 2


def _dft(row: Row, label: int, held: Row) -> float:
    return -probs(held)[label] * log_probs(row)[label]


def _entropy_adaptive(
    row: Row, label: int, held: Row, alpha: float = 1.0, normalizer: float = 1.0, truncated: bool = False
) -> float:
    undecided = entropy(sorted(held)[-20:] if truncated else held)
    return -((undecided / normalizer) ** alpha) * log_probs(row)[label]


def _deft(row: Row, label: int, held: Row) -> float:
    concentration = math.fsum(p * p for p in probs(held))
    return (1 - probs(row)[label] ** concentration) / concentration


def _tailr(row: Row, label: int, held: Row, gamma: float = 1e-5, min_weight: float = 0.0) -> float:
    p = probs(held)[label]
    return -min(1.0, max(min_weight, p / (gamma + (1 - gamma) * p))) * log_probs(row)[label]


def mile(rows: list[Row], labels: list[int], held: list[Row], gamma: float = 1.0) -> list[float]:
    """All rows at once, as the weights share their mean."""
    weights = [(1 + entropy(row)) ** gamma for row in held]
    mean = math.fsum(weights) / len(weights)
    return [-w / mean * log_probs(row)[y] for w, row, y in zip(weights, rows, labels, strict=True)]


ROWWISE = {
    "cross_entropy": lambda row, y, label_smoothing=0.0: cross_entropy(row, y, label_smoothing),
    "focal": focal,
    "self_adjusting_dice": _self_adjusting_dice,
    "poly1": _poly1,
    "generalized_cross_entropy": _generalized_cross_entropy,
    "unlikelihood": _unlikelihood,
    "confidence_penalty": _confidence_penalty,
    "z_loss": _z,
}
"""Name -> loss of (row, label, **hyper-parameters); every gradient flows."""

HELD = {"dft": _dft, "entropy_adaptive": _entropy_adaptive, "deft": _deft, "tailr": _tailr}
"""Name -> loss of (row, label, held row, **hyper-parameters); none flows through the held row."""
