"""AlpacaEval 2's length-controlled win rate: what a model would win if its answers were as long as the baseline's."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmith.errors import DataError
from lossmith.evaluation.judging.intervals import Level

FOLDS = 5
LEAST_ROWS = 2 * FOLDS
"""With fewer comparisons no length-controlled win rate is given."""

GAMED_WEIGHT = 0.2
"""Weight of the two gamed baselines together, half of it for each row."""

_PENALTIES = np.logspace(-4, 4, 10)
_RESAMPLES = 200
_ROUNDING = 1e-15
_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True)
class GamedRows:
    """Comparisons of the baseline with its own verbose and concise answers, which pin down the effect of length.

    They are AlpacaEval's `df_gamed.csv`; all arrays have one entry per row.
    """

    preferences: np.ndarray
    """Preference for the second answer, in [0, 1]."""
    lengths: np.ndarray
    """Standardised length differences."""
    difficulties: np.ndarray
    """Instruction difficulties."""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A win rate at equal lengths, with what it rests on."""

    win_rate: Level
    """Mean predicted preference for the model at a length difference of 0, in [0, 1]; bootstrapped over rows."""
    coefficients: dict[str, float]
    """Of the model, of tanh of the standardised length difference, and of the instruction's difficulty where given."""
    penalty: float
    """Inverse strength of the L1 penalty, chosen by cross-validation."""
    comparable: bool
    """Whether the model of the leaderboard was fitted: difficulties were given."""
    says: str
    """What it may be compared with, in words."""


def length_controlled(
    preferences: Sequence[float],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    *,
    difficulties: Sequence[float] | None = None,
    gamed: GamedRows | None = None,
    seed: int = 0,
) -> LengthControlled:
    r"""Fit who wins on lengths and difficulties, and predict at equal lengths.

    With $z_i = \theta + \phi \tanh(\Delta_i / \mathrm{sd}(\Delta)) + \psi \gamma_i$, the preference for the model is
    $\sigma(z_i)$; the length-controlled win rate is the mean of $\sigma(\theta + \psi \gamma_i)$. The difficulties
    $\gamma_i$ are those that AlpacaEval fitted over its whole leaderboard; without them the term is left out.

    Args:
        preferences: Preference for the model in each comparison, in [0, 1].
        lengths: Characters of the model's answers.
        baseline_lengths: Characters of the baseline's answers.
        difficulties: Of each instruction.
        gamed: The rows that AlpacaEval adds, with a weight of 0.1 each.
        seed: Of the bootstrap.

    Raises:
        DataError: For fewer than 10 comparisons, unequal numbers, lengths that all differ by the same amount, or
            `gamed` without `difficulties`.

    Source:
        Dubois et al. 2024, "Length-Controlled AlpacaEval", https://arxiv.org/abs/2404.04475, section 3; settings as
        `length_controlled_v1` of github.com/tatsu-lab/alpaca_eval (L1 penalty by 5-fold cross-validation, no
        intercept). Deviation: an interval by bootstrap at the chosen penalty instead of a standard error of the
        predictions, which knows nothing of the fit; gamed rows come last in the folds and not first, the spread is over
        the comparisons given, those with a verdict, and fits may take 1,000 iterations and not 100.
    """
    y, gaps = np.asarray(preferences, dtype=float), np.subtract(baseline_lengths, lengths).astype(float)
    _check(y, gaps, difficulties, gamed)
    spread = float(gaps.std(ddof=1))
    if spread == 0 and gaps.any():
        raise DataError("Lengths must differ by more than one amount for their effect to be told, got a single one.")
    names = ["model", "length", *(["difficulty"] if difficulties is not None else [])]
    features = [np.ones_like(y), np.tanh(gaps / spread) if spread else gaps]
    if difficulties is not None:
        features.append(np.asarray(difficulties, dtype=float))
    x = np.stack(features, axis=1)
    rows = _Rows(x, y, np.ones_like(y))
    if gamed is not None:
        extra = np.stack([np.zeros_like(gamed.lengths), np.tanh(gamed.lengths), gamed.difficulties], axis=1)
        weights = np.full(len(extra), GAMED_WEIGHT / 2)
        rows = _Rows(np.concatenate([x, extra]), np.concatenate([y, gamed.preferences]), np.r_[rows.weights, weights])
    penalty = _chosen_penalty(rows)
    fitted = _fit(rows, penalty)
    even = x.copy()
    even[:, 1] = 0.0
    mean = float(_sigmoid(even @ fitted).mean())
    low, high = _interval(rows, even, penalty, seed)
    return LengthControlled(
        win_rate=Level(mean=mean, low=low, high=high, questions=len(y)),
        coefficients=dict(zip(names, map(float, fitted), strict=True)),
        penalty=penalty,
        comparable=difficulties is not None,
        says=_says(difficulties is not None, gamed is not None),
    )


@dataclass(frozen=True)
class _Rows:
    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def _check(y: np.ndarray, gaps: np.ndarray, difficulties: Sequence[float] | None, gamed: GamedRows | None) -> None:
    if len(y) < LEAST_ROWS:
        raise DataError(f"A length-controlled win rate needs at least {LEAST_ROWS} comparisons, got {len(y)}.")
    if len(gaps) != len(y) or (difficulties is not None and len(difficulties) != len(y)):
        raise DataError("`preferences`, lengths and `difficulties` must have one entry per comparison.")
    if not ((y >= 0) & (y <= 1)).all():
        raise DataError("`preferences` must be in [0, 1].")
    if difficulties is not None and not np.isfinite(np.asarray(difficulties, dtype=float)).all():
        raise DataError("`difficulties` must be finite numbers.")
    if gamed is not None and difficulties is None:
        raise DataError("`gamed` needs `difficulties`, which its rows are told apart by: give both.")


def _chosen_penalty(rows: _Rows) -> float:
    """The penalty with the best mean log-likelihood over folds; the first of equals."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(FOLDS).split(rows.features, groups=np.arange(len(rows.targets))))
    scores = []
    for penalty in _PENALTIES:
        found = []
        for train, test in folds:
            fitted = _fit(_Rows(rows.features[train], rows.targets[train], rows.weights[train]), penalty)
            likely = np.clip(_sigmoid(rows.features[test] @ fitted), _ROUNDING, 1 - _ROUNDING)
            y = rows.targets[test]
            found.append((rows.weights[test] * (y * np.log(likely) + (1 - y) * np.log(1 - likely))).mean())
        scores.append(np.mean(found))
    return float(_PENALTIES[int(np.argmax(scores))])


def _fit(rows: _Rows, penalty: float) -> np.ndarray:
    """Coefficients of the weighted logistic regression on probabilities: each row once as won and once as lost."""
    from sklearn.linear_model import LogisticRegression

    settings: dict[str, Any] = {"l1_ratio": 1}
    if inspect.signature(LogisticRegression).parameters["penalty"].default == "l2":
        settings = {"penalty": "l1"}  # scikit-learn before 1.8
    model = LogisticRegression(
        C=penalty, solver="liblinear", fit_intercept=False, random_state=123, max_iter=1000, **settings
    )
    outcome = np.r_[np.ones(len(rows.targets)), np.zeros(len(rows.targets))]
    # liblinear drops rows of weight 0, and complains where an outcome is left without any.
    targets = np.clip(rows.targets, _LEAST, 1 - _LEAST)
    weights = np.r_[targets * rows.weights, (1 - targets) * rows.weights]
    return model.fit(np.concatenate([rows.features, rows.features]), outcome, sample_weight=weights).coef_[0]


def _interval(rows: _Rows, even: np.ndarray, penalty: float, seed: int) -> tuple[float, float]:
    """Comparisons are drawn again and fitted again; gamed rows stay."""
    generator, own = np.random.default_rng(seed), len(even)
    means = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(own, size=own)
        kept = np.r_[drawn, np.arange(own, len(rows.targets))]
        fitted = _fit(_Rows(rows.features[kept], rows.targets[kept], rows.weights[kept]), penalty)
        means.append(_sigmoid(even[drawn] @ fitted).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _says(difficulties: bool, gamed: bool) -> str:
    if not difficulties:
        return (
            "Not comparable with the AlpacaEval 2 leaderboard: no instruction difficulties were given, so that term is "
            "missing from the model."
        )
    anchors = "" if gamed else " and without its gamed baseline rows"
    return (
        f"The leaderboard's model with its instruction difficulties{anchors}; comparable with the AlpacaEval 2 "
        f"leaderboard as far as judge, prompt, instructions and baseline answers are the same, and the prompt here is "
        f"our own."
    )
