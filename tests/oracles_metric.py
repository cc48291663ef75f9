"""Oracles of the metric objectives: scalar loops over `math`, from the formulas; no code shared with the library.

`rows` are embeddings as lists; `normalize` says whether they are brought to unit length first. A `held` set of rows
takes the place of the rows wherever a formula holds a number constant.
"""

import math
from collections.abc import Callable, Sequence

from scalar_oracles import Row, dot, log_sum_exp, probs, unit

Rows = Sequence[Row]
Classes = Sequence[int]


def scaled(rows: Rows, normalize: bool) -> list[list[float]]:
    return [unit(row) if normalize else list(row) for row in rows]


def similarity(rows: Rows, normalize: bool) -> Callable[[int, int], float]:
    points = scaled(rows, normalize)
    return lambda i, k: dot(points[i], points[k])


def distance(rows: Rows, normalize: bool) -> Callable[[int, int], float]:
    points = scaled(rows, normalize)
    return lambda i, k: math.dist(points[i], points[k])


def positives(labels: Classes, i: int) -> list[int]:
    return [k for k in range(len(labels)) if k != i and labels[k] == labels[i]]


def negatives(labels: Classes, i: int) -> list[int]:
    return [k for k in range(len(labels)) if labels[k] != labels[i]]


def pairs(labels: Classes) -> list[tuple[int, int]]:
    return [(i, p) for i in range(len(labels)) for p in positives(labels, i)]


def softmax_loss(scores: Row, label: int) -> float:
    return log_sum_exp(scores) - scores[label]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def log_one_plus(exponents: Sequence[float]) -> float:
    return log_sum_exp([0.0, *exponents])


# Losses with proxies: one value per anchor, but for proxy_anchor.


def soft_triple(rows, labels, proxies, scale=20.0, gamma=0.1, margin=0.01, normalize=True) -> list[float]:
    centres = [scaled(own, normalize) for own in proxies]
    losses = []
    for x, y in zip(scaled(rows, normalize), labels, strict=True):
        scores = []
        for c, own in enumerate(centres):
            inner = [dot(x, w) for w in own]
            relaxed = math.fsum(q * s for q, s in zip(probs([s / gamma for s in inner]), inner, strict=True))
            scores.append(scale * (relaxed - margin * (c == y)))
        losses.append(softmax_loss(scores, y))
    return losses


def proxy_anchor(rows, labels, proxies, alpha=32.0, margin=0.1, normalize=True) -> list[float]:
    points, centres = scaled(rows, normalize), scaled(proxies, normalize)
    pulls, pushes = [], []
    for c, w in enumerate(centres):
        own = [-alpha * (dot(x, w) - margin) for x, y in zip(points, labels, strict=True) if y == c]
        others = [alpha * (dot(x, w) + margin) for x, y in zip(points, labels, strict=True) if y != c]
        if own:
            pulls.append(log_one_plus(own))
        pushes.append(log_one_plus(others))
    return [mean(pulls) + math.fsum(pushes) / len(centres)]


def proxy_nca(rows, labels, proxies, scale=1.0, normalize=True) -> list[float]:
    points, centres = scaled(rows, normalize), scaled(proxies, normalize)
    return [
        softmax_loss([-scale * math.dist(x, w) ** 2 for w in centres], y) for x, y in zip(points, labels, strict=True)
    ]


def arcface(rows, labels, proxies, margin=28.6, scale=64.0, normalize=True) -> list[float]:
    turn = margin * math.pi / 180
    losses = []
    for x, y in zip(rows, labels, strict=True):
        scores = []
        for c, w in enumerate(proxies):
            angle = math.acos(max(-1.0, min(1.0, dot(unit(x), unit(w)))))
            score = math.cos(angle)
            if c == y:
                score = math.cos(angle + turn) if angle <= math.pi - turn else score - turn * math.sin(turn)
            lengths = 1.0 if normalize else math.hypot(*x) * math.hypot(*w)
            scores.append(scale * lengths * score)
        losses.append(softmax_loss(scores, y))
    return losses


def cosface(rows, labels, proxies, margin=0.35, scale=64.0, normalize=True) -> list[float]:
    points, centres = scaled(rows, normalize), scaled(proxies, normalize)
    return [
        softmax_loss([scale * (dot(x, w) - (margin if c == y else 0.0)) for c, w in enumerate(centres)], y)
        for x, y in zip(points, labels, strict=True)
    ]


def normalized_softmax(rows, labels, proxies, temperature=0.05, normalize=True) -> list[float]:
    points, centres = scaled(rows, normalize), scaled(proxies, normalize)
    return [softmax_loss([dot(x, w) / temperature for w in centres], y) for x, y in zip(points, labels, strict=True)]


# Losses on the rows of the batch: one value per anchor (0 without a positive), pair or triplet.


def supcon(rows, labels, temperature=0.1, normalize=True) -> list[float]:
    s = similarity(rows, normalize)
    losses = []
    for i in range(len(rows)):
        whole = [s(i, a) / temperature for a in range(len(rows)) if a != i]
        losses.append(mean([log_sum_exp(whole) - s(i, p) / temperature for p in positives(labels, i)]))
    return losses


def nt_xent(rows, labels, temperature=0.07, normalize=True) -> list[float]:
    s = similarity(rows, normalize)
    return [log_one_plus([(s(i, n) - s(i, p)) / temperature for n in negatives(labels, i)]) for i, p in pairs(labels)]


def nca(rows, labels, scale=1.0, normalize=True) -> list[float]:
    d = distance(rows, normalize)
    losses = []
    for i in range(len(rows)):
        whole = [-scale * d(i, a) ** 2 for a in range(len(rows)) if a != i]
        near = [-scale * d(i, p) ** 2 for p in positives(labels, i)]
        losses.append(log_sum_exp(whole) - log_sum_exp(near) if near else 0.0)
    return losses


def n_pairs(rows, labels, normalize=False) -> list[float]:
    s = similarity(rows, normalize)
    chosen = []
    for c in sorted(set(labels)):
        places = [i for i, y in enumerate(labels) if y == c]
        if len(places) > 1:
            chosen.append((places[0], places[1]))
    return [softmax_loss([s(i, k) for _, k in chosen], place) for place, (i, _) in enumerate(chosen)]


def contrastive(rows, labels, pos_margin=0.0, neg_margin=1.0, normalize=True) -> list[float]:
    d = distance(rows, normalize)
    pulls = [d(i, p) - pos_margin for i, p in pairs(labels)]
    pushes = [neg_margin - d(i, n) for i in range(len(rows)) for n in negatives(labels, i)]
    return [mean([v for v in pulls if v > 0]) + mean([v for v in pushes if v > 0])]


def triplet_margin(rows, labels, margin=0.05, normalize=True) -> list[float]:
    d = distance(rows, normalize)
    gaps = [d(i, p) - d(i, n) + margin for i, p in pairs(labels) for n in negatives(labels, i)]
    return [gap for gap in gaps if gap > 0]


def multi_similarity(rows, labels, alpha=2.0, beta=50.0, base=0.5, normalize=True) -> list[float]:
    s = similarity(rows, normalize)
    return [
        log_one_plus([-alpha * (s(i, p) - base) for p in positives(labels, i)]) / alpha
        + log_one_plus([beta * (s(i, n) - base) for n in negatives(labels, i)]) / beta
        for i in range(len(rows))
    ]


def circle(rows, labels, margin=0.4, gamma=80.0, normalize=True, held=None) -> list[float]:
    s, constant = similarity(rows, normalize), similarity(rows if held is None else held, normalize)
    losses = []
    for i in range(len(rows)):
        exponents = [
            gamma * max(0.0, constant(i, n) + margin) * (s(i, n) - margin)
            - gamma * max(0.0, 1 + margin - constant(i, p)) * (s(i, p) - 1 + margin)
            for p in positives(labels, i)
            for n in negatives(labels, i)
        ]
        losses.append(log_one_plus(exponents) if exponents else 0.0)
    return losses


def lifted_structure(rows, labels, neg_margin=1.0, pos_margin=0.0, normalize=True) -> list[float]:
    d = distance(rows, normalize)
    losses = []
    for i, p in pairs(labels):
        near = [neg_margin - d(end, n) for end in (i, p) for n in negatives(labels, end)]
        inside = log_sum_exp(near) + d(i, p) - pos_margin if near else 0.0
        losses.append(max(0.0, inside) ** 2 / 2)
    return losses
