"""Oracles of the preference objectives: scalar losses and their slopes by hand, from the papers, with no tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext


@dataclass(frozen=True)
class Pair:
    """Summed log-probabilities of one pair under policy and reference, and its token counts."""

    chosen: float
    rejected: float
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    chosen_length: float = 1.0
    rejected_length: float = 1.0

    @property
    def c(self) -> float:
        return self.chosen - self.ref_chosen

    @property
    def r(self) -> float:
        return self.rejected - self.ref_rejected


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def bump(x: float) -> float:
    """Derivative of the sigmoid."""
    return sigmoid(x) * sigmoid(-x)


def nll(x: float) -> float:
    """Negative log of the sigmoid: log(1 + e^-x)."""
    return max(0.0, -x) + math.log1p(math.exp(-abs(x)))


def dpo(p: Pair, beta: float = 0.1) -> float:
    return nll(beta * (p.c - p.r))


def dpo_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    pull = beta * sigmoid(-beta * (p.c - p.r))
    return -pull, pull


def cdpo(p: Pair, beta: float = 0.1, label_smoothing: float = 0.1) -> float:
    x = beta * (p.c - p.r)
    return (1 - label_smoothing) * nll(x) + label_smoothing * nll(-x)


def cdpo_slopes(p: Pair, beta: float = 0.1, label_smoothing: float = 0.1) -> tuple[float, float]:
    x = beta * (p.c - p.r)
    pull = beta * ((1 - label_smoothing) * sigmoid(-x) - label_smoothing * sigmoid(x))
    return -pull, pull


def robust_dpo(p: Pair, beta: float = 0.1, label_smoothing: float = 0.1) -> float:
    x = beta * (p.c - p.r)
    return ((1 - label_smoothing) * nll(x) - label_smoothing * nll(-x)) / (1 - 2 * label_smoothing)


def robust_dpo_slopes(p: Pair, beta: float = 0.1, label_smoothing: float = 0.1) -> tuple[float, float]:
    x = beta * (p.c - p.r)
    pull = beta * ((1 - label_smoothing) * sigmoid(-x) + label_smoothing * sigmoid(x)) / (1 - 2 * label_smoothing)
    return -pull, pull


def hinge(p: Pair, beta: float = 0.1) -> float:
    return max(0.0, 1 - beta * (p.c - p.r))


def hinge_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    pull = beta if beta * (p.c - p.r) < 1 else 0.0
    return -pull, pull


def ipo(p: Pair, beta: float = 0.1, average: bool = False) -> float:
    m, n = (p.chosen_length, p.rejected_length) if average else (1.0, 1.0)
    return (p.c / m - p.r / n - 0.5 / beta) ** 2


def ipo_slopes(p: Pair, beta: float = 0.1, average: bool = False) -> tuple[float, float]:
    m, n = (p.chosen_length, p.rejected_length) if average else (1.0, 1.0)
    push = 2 * (p.c / m - p.r / n - 0.5 / beta)
    return push / m, -push / n


def exo_pair(p: Pair, beta: float = 0.1, label_smoothing: float = 0.001) -> float:
    """The divergence of the policy's odds from the label's, outcome by outcome."""
    x = beta * (p.c - p.r)
    divergence = 0.0
    for q, log_q, target in ((sigmoid(x), -nll(x), 1 - label_smoothing), (sigmoid(-x), -nll(-x), label_smoothing)):
        divergence += q * (log_q - math.log(target))
    return divergence


def exo_pair_slopes(p: Pair, beta: float = 0.1, label_smoothing: float = 0.001) -> tuple[float, float]:
    x = beta * (p.c - p.r)
    push = beta * bump(x) * (x - math.log((1 - label_smoothing) / label_smoothing))
    return push, -push


def dpop(p: Pair, beta: float = 0.1, coefficient: float = 50.0) -> float:
    return nll(beta * (p.c - p.r - coefficient * max(0.0, -p.c)))


def dpop_slopes(p: Pair, beta: float = 0.1, coefficient: float = 50.0) -> tuple[float, float]:
    pull = beta * sigmoid(-beta * (p.c - p.r - coefficient * max(0.0, -p.c)))
    return -pull * (1 + coefficient if p.c < 0 else 1), pull


def dpo_length_normalized(p: Pair, beta: float = 0.1) -> float:
    return nll(beta * (p.c / p.chosen_length - p.r / p.rejected_length))


def dpo_length_normalized_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    pull = beta * sigmoid(-beta * (p.c / p.chosen_length - p.r / p.rejected_length))
    return -pull / p.chosen_length, pull / p.rejected_length


def nca_pair(p: Pair, beta: float = 0.1) -> float:
    return nll(beta * p.c) + 0.5 * (nll(-beta * p.c) + nll(-beta * p.r))


def nca_pair_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    return beta * (0.5 * sigmoid(beta * p.c) - sigmoid(-beta * p.c)), 0.5 * beta * sigmoid(beta * p.r)


def bco_pair(p: Pair, beta: float = 0.1, running_delta: bool = False, shift: float = 0.0) -> float:
    delta = shift if running_delta else 0.0
    return bco(p.c, True, delta, beta) + bco(p.r, False, delta, beta)


def bco_pair_slopes(p: Pair, beta: float = 0.1, running_delta: bool = False, shift: float = 0.0) -> tuple[float, float]:
    delta = shift if running_delta else 0.0
    return bco_slope(p.c, True, delta, beta), bco_slope(p.r, False, delta, beta)


def sppo_hard(p: Pair, beta: float = 0.1) -> float:
    return (p.c - 0.5 / beta) ** 2 + (p.r + 0.5 / beta) ** 2


def sppo_hard_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    return 2 * p.c - 1 / beta, 2 * p.r + 1 / beta


def apo_zero(p: Pair, beta: float = 0.1) -> float:
    return sigmoid(-beta * p.c) + sigmoid(beta * p.r)


def apo_zero_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    return -beta * bump(beta * p.c), beta * bump(beta * p.r)


def apo_down(p: Pair, beta: float = 0.1) -> float:
    return sigmoid(beta * p.c) + sigmoid(-beta * (p.c - p.r))


def apo_down_slopes(p: Pair, beta: float = 0.1) -> tuple[float, float]:
    order = beta * bump(beta * (p.c - p.r))
    return beta * bump(beta * p.c) - order, order


def simpo(p: Pair, beta: float = 2.0, gamma: float = 1.0) -> float:
    return nll(beta * (p.chosen / p.chosen_length - p.rejected / p.rejected_length) - gamma)


def simpo_slopes(p: Pair, beta: float = 2.0, gamma: float = 1.0) -> tuple[float, float]:
    pull = beta * sigmoid(gamma - beta * (p.chosen / p.chosen_length - p.rejected / p.rejected_length))
    return -pull / p.chosen_length, pull / p.rejected_length


def cpo(p: Pair, beta: float = 0.1, nll_coefficient: float = 1.0) -> float:
    return nll(beta * (p.chosen - p.rejected)) - nll_coefficient * p.chosen / p.chosen_length


def cpo_slopes(p: Pair, beta: float = 0.1, nll_coefficient: float = 1.0) -> tuple[float, float]:
    pull = beta * sigmoid(-beta * (p.chosen - p.rejected))
    return -pull - nll_coefficient / p.chosen_length, pull


def _orpo_terms(p: Pair) -> tuple[Decimal, Decimal, Decimal]:
    """Mean log-probability of the chosen side and e^-x - 1 of both, in as many digits as it takes."""
    chosen = Decimal(p.chosen) / Decimal(p.chosen_length)
    rejected = min(Decimal(p.rejected) / Decimal(p.rejected_length), Decimal("-1e-6"))
    return chosen, (-chosen).exp() - 1, (-rejected).exp() - 1


def orpo(p: Pair, coefficient: float = 0.1) -> float:
    with localcontext() as context:
        context.prec = 60
        chosen, inverse_odds_c, inverse_odds_r = _orpo_terms(p)
        odds_ratio = inverse_odds_r / inverse_odds_c if inverse_odds_c else None
        penalty = (1 + 1 / odds_ratio).ln() if odds_ratio is not None else Decimal(0)
        return float(-chosen + Decimal(coefficient) * penalty)


def orpo_slopes(p: Pair, coefficient: float = 0.1) -> tuple[float, float]:
    with localcontext() as context:
        context.prec = 60
        _, a, b = _orpo_terms(p)
        down = -1 - Decimal(coefficient) * (a + 1) / (a + b)
        up = Decimal(coefficient) * a * (b + 1) / (b * (a + b))
        return float(down / Decimal(p.chosen_length)), float(up / Decimal(p.rejected_length))


def kto_pair(
    pairs: Sequence[Pair], beta: float = 0.1, detach_kl: bool = True, held: tuple[float, float] | None = None
) -> list[float]:
    """Chosen half, then rejected half; `held` replaces the two means where their derivative must not count."""
    mean_c = max(0.0, math.fsum(p.c for p in pairs) / len(pairs))
    mean_r = max(0.0, math.fsum(p.r for p in pairs) / len(pairs))
    mean_c, mean_r = held if held is not None and detach_kl else (mean_c, mean_r)
    return [kto(p.c, True, mean_r, beta) for p in pairs] + [kto(p.r, False, mean_c, beta) for p in pairs]


def aot(pairs: Sequence[Pair], beta: float = 0.1, label_smoothing: float = 0.0) -> list[float]:
    policy = sorted(p.chosen - p.rejected for p in pairs)
    reference = sorted(p.ref_chosen - p.ref_rejected for p in pairs)
    return [cdpo(Pair(u, v), beta, label_smoothing) for u, v in zip(policy, reference, strict=True)]


def aot_unpaired(pairs: Sequence[Pair], beta: float = 0.1, label_smoothing: float = 0.0) -> list[float]:
    chosen, rejected = sorted(p.c for p in pairs), sorted(p.r for p in pairs)
    return [cdpo(Pair(u, v), beta, label_smoothing) for u, v in zip(chosen, rejected, strict=True)]


def kto(
    v: float,
    desirable: bool,
    kl: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> float:
    gained = beta * (v - max(0.0, kl))
    return desirable_weight * sigmoid(-gained) if desirable else undesirable_weight * sigmoid(gained)


def kto_slope(
    v: float,
    desirable: bool,
    kl: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> float:
    steep = beta * bump(beta * (v - max(0.0, kl)))
    return -desirable_weight * steep if desirable else undesirable_weight * steep


def bco(v: float, desirable: bool, shift: float, beta: float = 0.1) -> float:
    return nll(beta * v - shift) if desirable else nll(shift - beta * v)


def bco_slope(v: float, desirable: bool, shift: float, beta: float = 0.1) -> float:
    return -beta * sigmoid(shift - beta * v) if desirable else beta * sigmoid(beta * v - shift)
