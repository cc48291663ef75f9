"""The metrics that a study can be judged by: which way is better, and how a person reads them."""

from dataclasses import dataclass

from lossmith.errors import EvidenceError


@dataclass(frozen=True, kw_only=True)
class MetricStyle:
    """How one metric is judged and shown."""

    name: str
    """Key in `RunRecord.metrics`."""
    unit: str
    """What a shown difference counts: `points` (hundredths) or `nats`."""
    scale: float
    """Stored value times this is the shown value."""
    decimals: int
    """Digits behind the point."""
    higher_is_better: bool
    """Direction of an improvement."""


def _points(*names: str, higher_is_better: bool = True) -> tuple[MetricStyle, ...]:
    """Styles of fractions, shown in hundredths."""
    return tuple(
        MetricStyle(name=name, unit="points", scale=100.0, decimals=1, higher_is_better=higher_is_better)
        for name in names
    )


STEP_GAINS = ("iou", "overlap", "dice", "recall", "precision", "real_iou")
"""Agreement of written reasoning steps with the target's; each is also there as `released_*`."""
STEP_ERRORS = ("wrong_operators", "inverted_operands", "missing_steps", "extra_steps", "repetitions")
"""Errors in written reasoning steps; each is also there as `released_*`."""
RELEASED = "released_"
"""A metric whose name begins so is computed as the released code of the segmentation-loss study did."""

METHOD_PREFIXES = {"head": "", "proxies": "proxies_", "mixture": "mixture_", "neighbours": "neighbours_"}
"""How a trained classifier is asked for a class -> what the names of that method's metrics begin with."""
METHOD_METRICS = ("accuracy", "macro_f1", "weighted_f1", "nll")
"""Metrics that every such method has."""
CALIBRATION_METRICS = ("nll", "calibrated_nll", "ece", "calibrated_ece")
"""How far the probabilities of the head are to be believed, before and after its temperature is fitted."""
CLASSIFICATION_ONLY = (
    *(prefix + name for prefix in METHOD_PREFIXES.values() if prefix for name in METHOD_METRICS),
    *("ece", "calibrated_nll", "calibrated_ece"),
)
"""Metrics that written answers do not have."""


def _nats(*names: str) -> tuple[MetricStyle, ...]:
    """Styles of negative log-likelihoods."""
    return tuple(MetricStyle(name=name, unit="nats", scale=1.0, decimals=3, higher_is_better=False) for name in names)


START = "start_"
"""A metric whose name begins so is that of the model before training."""
PREFERENCE_ACCURACIES = (
    "preference_accuracy",
    "preference_accuracy_per_token",
    "length_controlled_accuracy",
    "policy_accuracy",
)
"""Shares of pairs in which a policy prefers the better answer."""
PREFERENCE_NATS = ("margin", "policy_margin", "chosen_shift", "rejected_shift")
"""Mean log-ratios (those of the policy: log-probabilities) of whole answers."""
PREFERENCE_TOKEN_NATS = ("margin_per_token", "chosen_shift_per_token", "rejected_shift_per_token")
"""The same per token."""
RATED_SHARES = ("auc", "auc_per_token", "policy_auc", "rated_accuracy")
"""Whether answers that are rated good gained more than those that are rated bad."""
RATED_NATS = ("shift_gap", "desirable_shift", "undesirable_shift")
"""Mean log-ratios of good and bad answers, and their difference."""
RATED_TOKEN_NATS = ("desirable_shift_per_token", "undesirable_shift_per_token")
"""The same per token."""

KL_NATS = ("kl", "kl_sampled", "kl_per_token", "kl_released")
"""How far a policy has moved from the one before training, by `lossmith.evaluation.divergence`."""
PREFERENCE_ONLY = (
    *(
        prefix + name
        for prefix in ("", START)
        for name in (
            *(*PREFERENCE_ACCURACIES, *PREFERENCE_NATS, *PREFERENCE_TOKEN_NATS),
            *(*RATED_SHARES, *RATED_NATS, *RATED_TOKEN_NATS),
            *(("nll",) if prefix else ()),
        )
    ),
    *("reward", START + "reward", START + "stopped", *KL_NATS),
    *("reward_score", START + "reward_score", "reward_win_rate", "likelihood_win_rate"),
)
"""Metrics that only studies of preferences have."""


def _preferences(prefix: str = "") -> tuple[MetricStyle, ...]:
    """Styles of what a policy prefers."""
    whole = (*PREFERENCE_NATS, *RATED_NATS)
    return (
        *_points(*(prefix + name for name in (*PREFERENCE_ACCURACIES, *RATED_SHARES))),
        *(
            MetricStyle(
                name=prefix + name,
                unit="nats" if name in whole else "nats per token",
                scale=1.0,
                decimals=2 if name in whole else 3,
                higher_is_better="rejected" not in name and "undesirable" not in name,
            )
            for name in (*whole, *PREFERENCE_TOKEN_NATS, *RATED_TOKEN_NATS)
        ),
    )


def _divergences() -> tuple[MetricStyle, ...]:
    """Styles of divergences, per answer and per token."""
    return tuple(
        MetricStyle(
            name=name,
            unit="nats" if name in KL_NATS[:2] else "nats per token",
            scale=1.0,
            decimals=2 if name in KL_NATS[:2] else 3,
            higher_is_better=False,
        )
        for name in KL_NATS
    )


METRICS: dict[str, MetricStyle] = {
    style.name: style
    for style in (
        *_points("accuracy", "macro_f1", "weighted_f1"),
        *_nats("nll"),
        *_points("exact_match", "flexible_match", "likelihood_accuracy", "answered", "stopped", *STEP_GAINS),
        *_points(*STEP_ERRORS, "wrong_results", higher_is_better=False),
        *_points(*(RELEASED + name for name in ("accuracy", "exact_match", *STEP_GAINS))),
        *_points(*(RELEASED + name for name in STEP_ERRORS), higher_is_better=False),
        *_points(*(name for name in CLASSIFICATION_ONLY if name.endswith(("accuracy", "_f1")))),
        *_nats(*(name for name in CLASSIFICATION_ONLY if name.endswith("nll"))),
        *_points("ece", "calibrated_ece", higher_is_better=False),
        *_preferences(),
        *_preferences(START),
        *_nats(START + "nll"),
        *_points("reward", START + "reward", START + "stopped", "reward_win_rate", "likelihood_win_rate"),
        *(
            MetricStyle(name=name, unit="of the score", scale=1.0, decimals=2, higher_is_better=True)
            for name in ("reward_score", START + "reward_score")
        ),
        *_divergences(),
    )
}
"""Every metric that `summarize` accepts."""


def metric_style(metric: str) -> MetricStyle:
    """The style of `metric`, or `EvidenceError` with the metrics there are."""
    if metric not in METRICS:
        raise EvidenceError(f"`metric` must be one of {list(METRICS)}, got '{metric}'.")
    return METRICS[metric]


def split_metric(metric: str) -> tuple[str, str]:
    """The method that a metric asks for a class, and the metric without the method's prefix.

    Example:
        >>> split_metric("mixture_macro_f1"), split_metric("nll")
        (('mixture', 'macro_f1'), ('head', 'nll'))
    """
    for method, prefix in METHOD_PREFIXES.items():
        if prefix and metric.startswith(prefix):
            return method, metric.removeprefix(prefix)
    return "head", metric


def said_metric(metric: str) -> str:
    """The metric as a sentence names it: its key, and the method in words.

    Example:
        >>> said_metric("mixture_accuracy"), said_metric("macro_f1")
        ('accuracy by mixture', 'macro_f1')
    """
    method, name = split_metric(metric)
    return name if method == "head" else f"{name} by {method}"


def format_value(value: float, metric: str) -> str:
    """A level of `metric` as it is shown, without its unit.

    Example:
        >>> format_value(0.5802, "accuracy"), format_value(0.68249, "nll")
        ('58.0', '0.682')
        >>> format_value(0.5625 - 0.525, "accuracy"), format_value(0.0375, "accuracy")
        ('3.8', '3.8')
    """
    style = metric_style(metric)
    # First what arithmetic left in the last bits, so that one difference is one number wherever it was computed.
    shown = round(round(value * style.scale, 9), style.decimals)
    return f"{shown + 0.0:.{style.decimals}f}"  # + 0.0 turns -0.0 into 0.0


def format_difference(difference: float, metric: str, *, signed: bool = False) -> str:
    """A difference of `metric` as it is shown, without its unit; `signed` adds the plus of a gain.

    Example:
        >>> format_difference(0.0614, "accuracy"), format_difference(0.0119, "accuracy", signed=True)
        ('6.1', '+1.2')
        >>> format_difference(-0.0001, "accuracy")
        '0.0'
    """
    shown = format_value(difference, metric)
    return f"+{shown}" if signed and float(shown) > 0 else shown


def format_interval(low: float, high: float, metric: str) -> str:
    """An interval of differences as it is shown.

    Example:
        >>> format_interval(-0.021, 0.009, "accuracy")
        '[-2.1, 0.9]'
    """
    return f"[{format_difference(low, metric)}, {format_difference(high, metric)}]"
