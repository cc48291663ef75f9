"""Region objectives as scalar functions of all rows of logits, from the papers; no code is shared with the library."""

import math
from collections.abc import Sequence

from scalar_oracles import Row, probs

__all__ = ["REGION", "released_dice"]

Rows = Sequence[Row]


def _mass(rows: Rows, label: int) -> float:
    return math.fsum(probs(row)[label] for row in rows)


def _own(rows: Rows, labels: Sequence[int], label: int) -> float:
    return math.fsum(probs(row)[label] for row, y in zip(rows, labels, strict=True) if y == label)


def _present_mean(rows: Rows, labels: Sequence[int], score) -> float:
    """Mean over present classes of 1 - score(intersection, predicted, labelled)."""
    present = sorted(set(labels))
    return math.fsum(
        1 - score(_own(rows, labels, c), _mass(rows, c), sum(y == c for y in labels)) for c in present
    ) / len(present)


def _dice(rows: Rows, labels: Sequence[int], smooth: float = 1.0) -> float:
    return _present_mean(rows, labels, lambda i, m, n: (2 * i + smooth) / (m + n + smooth))


def _jaccard(rows: Rows, labels: Sequence[int], smooth: float = 1.0) -> float:
    return _present_mean(rows, labels, lambda i, m, n: (i + smooth) / (m + n - i + smooth))


def _tversky_score(i: float, m: float, n: float, alpha: float, beta: float, smooth: float) -> float:
    return (i + smooth) / (i + alpha * (m - i) + beta * (n - i) + smooth)


def _tversky(rows: Rows, labels: Sequence[int], alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> float:
    return _present_mean(rows, labels, lambda i, m, n: _tversky_score(i, m, n, alpha, beta, smooth))


def _focal_tversky(
    rows: Rows,
    labels: Sequence[int],
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    gamma: float = 4 / 3,
) -> float:
    def score(i: float, m: float, n: float) -> float:
        return 1 - (1 - _tversky_score(i, m, n, alpha, beta, smooth)) ** (1 / gamma)

    return _present_mean(rows, labels, score)


def _generalized_dice(rows: Rows, labels: Sequence[int], smooth: float = 0.0) -> float:
    above, below = [smooth], [smooth]
    for c in set(labels):
        count = sum(y == c for y in labels)
        above.append(2 * _own(rows, labels, c) / count**2)
        below.append((_mass(rows, c) + count) / count**2)
    return 1 - math.fsum(above) / math.fsum(below)


def released_dice(rows: Rows, labels: Sequence[int], smooth: float = 0.0) -> float:
    """The released code: every class of the vocabulary, 1e-10 beside the count, no `1 -` in front."""
    above, below = [smooth], [smooth]
    for c in range(len(rows[0])):
        count = sum(y == c for y in labels)
        weight = 1 / (count + 1e-10) ** 2
        above.append(weight * _own(rows, labels, c))
        below.append(weight * (_mass(rows, c) + count))
    return -2 * math.fsum(above) / math.fsum(below)


REGION = {
    "dice": _dice,
    "jaccard": _jaccard,
    "tversky": _tversky,
    "focal_tversky": _focal_tversky,
    "generalized_dice": _generalized_dice,
}
"""Name -> loss of (rows, labels, **hyper-parameters)."""
