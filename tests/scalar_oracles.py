"""Oracles that share no code with the library: scalar loops over `math.exp` and `math.log`, from the papers."""

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]


def log_sum_exp(values: Row) -> float:
    highest = max(values)
    return highest + math.log(math.fsum(math.exp(v - highest) for v in values))


def log_probs(row: Row) -> list[float]:
    highest = max(row)
    log_mass = math.log(math.fsum(math.exp(v - highest) for v in row))
    return [v - highest - log_mass for v in row]


def probs(row: Row) -> list[float]:
    return [math.exp(v) for v in log_probs(row)]


def entropy(row: Row) -> float:
    return -math.fsum(math.exp(v) * v for v in log_probs(row) if v > -math.inf)


def complement_logp(row: Row, label: int) -> float:
    others = [v for k, v in enumerate(log_probs(row)) if k != label and v > -math.inf]
    return log_sum_exp(others) if others else -math.inf


def cross_entropy(row: Row, label: int, smoothing: float = 0.0) -> float:
    """Against the smoothed target: 1 - e on the label and e spread over all classes."""
    size = len(row)
    target = [smoothing / size + (1 - smoothing if k == label else 0.0) for k in range(size)]
    return -math.fsum(t * v for t, v in zip(target, log_probs(row), strict=True))


def focal(row: Row, label: int, gamma: float = 2.0) -> float:
    wrong = math.fsum(p for k, p in enumerate(probs(row)) if k != label)
    return -(wrong**gamma) * log_probs(row)[label]


def lovasz_softmax(rows: Sequence[Row], labels: Sequence[int]) -> float:
    """Mean over present classes of the Lovász extension, from the definition of the Jaccard loss on sets."""
    classes = sorted(set(labels))
    total = 0.0
    for c in classes:
        foreground = {i for i, label in enumerate(labels) if label == c}
        errors = [1 - probs(row)[c] if i in foreground else probs(row)[c] for i, row in enumerate(rows)]
        wrong: set[int] = set()
        before = 0.0
        for i in sorted(range(len(rows)), key=lambda i: -errors[i]):
            wrong.add(i)
            after = len(wrong) / len(foreground | wrong)
            total += errors[i] * (after - before)
            before = after
    return total / len(classes)


def unit(vector: Row) -> list[float]:
    length = math.sqrt(math.fsum(v * v for v in vector))
    return [v / length for v in vector]


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def soft_triple(
    embedding: Row,
    label: int,
    proxies: Sequence[Sequence[Row]],
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
) -> float:
    scores = []
    for c, centres in enumerate(proxies):
        cosines = [dot(unit(embedding), unit(w)) for w in centres]
        shares = probs([s / gamma for s in cosines])
        relaxed = math.fsum(q * s for q, s in zip(shares, cosines, strict=True))
        scores.append(scale * (relaxed - (margin if c == label else 0.0)))
    return log_sum_exp(scores) - scores[label]


def supcon(embeddings: Sequence[Row], labels: Sequence[int], temperature: float = 0.1) -> list[float]:
    unit_rows = [unit(row) for row in embeddings]
    losses = []
    for i, row in enumerate(unit_rows):
        others = [a for a in range(len(unit_rows)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            losses.append(0.0)
            continue
        denominator = log_sum_exp([dot(row, unit_rows[a]) / temperature for a in others])
        losses.append(math.fsum(denominator - dot(row, unit_rows[p]) / temperature for p in positives) / len(positives))
    return losses


def finite_difference(function: Callable[[list[list[float]]], float], rows: Sequence[Row], step: float = 1e-5):
    """Central differences of a scalar function of a matrix, with the h^2 error removed by Richardson's rule."""

    def slope(i: int, k: int, h: float) -> float:
        moved = [list(row) for row in rows]
        moved[i][k] += h
        above = function(moved)
        moved[i][k] -= 2 * h
        return (above - function(moved)) / (2 * h)

    def refined(i: int, k: int) -> float:
        return (4 * slope(i, k, step) - slope(i, k, 2 * step)) / 3

    return [[refined(i, k) for k in range(len(rows[0]))] for i in range(len(rows))]
