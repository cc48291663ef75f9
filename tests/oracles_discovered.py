"""Oracles of the discovered objectives: scalar loops over `math`, from the paper's formulas and the released code's."""

import math
from collections.abc import Sequence

Pair = Sequence[float]
"""Log-probabilities of one pair: chosen, rejected, and both under the reference."""


def margin(pair: Pair) -> float:
    chosen, rejected, ref_chosen, ref_rejected = pair
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def f_dpo(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x


def f_hinge(x: float) -> float:
    return 1 - x if x < 1 else 0.0


def f_exp(x: float) -> float:
    """e^-x above -50 and its tangent at -50 below."""
    return math.exp(-x) if x > -50 else math.exp(50) - math.exp(50) * (x + 50)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    if len(values) == 1:
        return 0.0
    middle = mean(values)
    return math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)


def lrml(pairs: Sequence[Pair], beta: float = 0.05, tau: float = 0.05, form: str = "released") -> list[float]:
    losses = []
    for pair in pairs:
        rho = margin(pair)
        share = sigmoid(beta * rho / tau) if form == "released" else sigmoid(rho)
        losses.append((1 - share) * f_dpo(beta * rho) + share * math.exp(-beta * rho))
    return losses


def dbaql(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    margins = [margin(pair) for pair in pairs]
    scale = beta / 0.05 if form == "released" else 1.0
    share = sigmoid(variance([scale * rho for rho in margins]))
    return [share * f_dpo(beta * rho / 0.9) + (1 - share) * f_exp(0.9 * beta * rho) for rho in margins]


def aql(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    margins = [margin(pair) for pair in pairs]
    losses = []
    for rho in margins:
        if form == "released":
            threshold = 0.5 + 0.01 * (sigmoid(mean([beta * other / 0.05 for other in margins])) - 0.5)
            share = sigmoid(threshold - beta * rho / 0.05)
        else:
            threshold = 0.5 + 0.01 * (sigmoid(mean(margins)) - 0.5)
            share = sigmoid(beta * (threshold - rho))
        losses.append(share * f_dpo(beta * rho) + (1 - share) * f_hinge(beta * rho))
    return losses


def aqfl(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    scale = beta / 0.05 if form == "released" else 1.0
    seen = [scale * margin(pair) for pair in pairs]
    start = math.sqrt(variance(seen)) * mean([sigmoid(-t) for t in seen])
    threshold = 0.95 * start + 0.05 * sigmoid(mean(seen))
    losses = []
    for pair, t in zip(pairs, seen, strict=True):
        share = sigmoid(abs(t - threshold) / 10)
        losses.append(share * f_dpo(beta * margin(pair)) + (1 - share) * f_hinge(beta * margin(pair)))
    return losses


def padll(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    return [(0.45 if margin(pair) < 0 else 0.9) * f_dpo(beta * margin(pair)) for pair in pairs]


def cell(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    return [(f_dpo(beta * margin(pair)) + f_exp(beta * margin(pair))) / 2 for pair in pairs]


def pfl(pairs: Sequence[Pair], beta: float = 0.05, form: str = "released") -> list[float]:
    losses = []
    for pair in pairs:
        y = (beta if form == "released" else 1.0) * margin(pair)
        losses.append(f_dpo(y) / 2 if pair[0] > pair[1] else 2 * f_hinge(y))
    return losses
