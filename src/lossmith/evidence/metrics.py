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

METRICS: dict[str, MetricStyle] = {
    style.name: style
    for style in (
        *_points("accuracy", "macro_f1", "weighted_f1"),
        MetricStyle(name="nll", unit="nats", scale=1.0, decimals=3, higher_is_better=False),
        *_points("exact_match", "flexible_match", "likelihood_accuracy", "answered", "stopped", *STEP_GAINS),
        *_points(*STEP_ERRORS, "wrong_results", higher_is_better=False),
        *_points(*(RELEASED + name for name in ("accuracy", "exact_match", *STEP_GAINS))),
        *_points(*(RELEASED + name for name in STEP_ERRORS), higher_is_better=False),
    )
}
"""Every metric that `summarize` accepts."""


def metric_style(metric: str) -> MetricStyle:
    """The style of `metric`, or `EvidenceError` with the metrics there are."""
    if metric not in METRICS:
        raise EvidenceError(f"`metric` must be one of {list(METRICS)}, got '{metric}'.")
    return METRICS[metric]


def format_value(value: float, metric: str) -> str:
    """A level of `metric` as it is shown, without its unit.

    Example:
        >>> format_value(0.5802, "accuracy"), format_value(0.68249, "nll")
        ('58.0', '0.682')
    """
    style = metric_style(metric)
    shown = round(value * style.scale, style.decimals)
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
