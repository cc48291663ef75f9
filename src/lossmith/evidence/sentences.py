"""What a comparison says, in words that a person would say aloud."""

from typing import Literal

from lossmith.evidence.metrics import (
    format_difference,
    format_interval,
    format_value,
    metric_style,
    said_metric,
)
from lossmith.evidence.statistics import PairedComparison

SIGNIFICANCE = 0.05
"""A Holm-adjusted p below this makes a verdict."""

Verdict = Literal["baseline", "better", "worse", "no difference shown", "undecided"]


def decide(comparison: PairedComparison | None, holm_p: float | None, metric: str) -> Verdict:
    """The verdict on a candidate: better or worse only if the Holm-adjusted p is below `SIGNIFICANCE`."""
    if comparison is None or comparison.blocks < 2 or holm_p is None:
        return "undecided"
    if holm_p >= SIGNIFICANCE:
        return "no difference shown"
    return "better" if (comparison.difference > 0) == metric_style(metric).higher_is_better else "worse"


def baseline_sentence(mean: float | None, metric: str, *, finished: int) -> str:
    """The baseline's own level: `the baseline: accuracy 58.0 over 5 seeds`."""
    if mean is None:
        return "the baseline: no finished run"
    unit = " nats" if metric_style(metric).unit == "nats" else ""
    return f"the baseline: {said_metric(metric)} {format_value(mean, metric)}{unit} over {_seeds(finished)}"


def comparison_sentence(
    verdict: Verdict,
    comparison: PairedComparison | None,
    holm_p: float | None,
    *,
    baseline: str,
    metric: str,
    tests: int,
) -> str:
    """One candidate against the baseline: what was found, its interval, and how many seeds agree."""
    style = metric_style(metric)
    if comparison is None:
        return "undecided: no seed is finished for both"
    if verdict == "undecided":
        gain = format_difference(comparison.difference, metric, signed=True)
        return f"one seed shows {gain} {style.unit}: no interval, no verdict"
    interval = format_interval(comparison.low, comparison.high, metric)
    if verdict == "no difference shown":
        unit = " nats" if style.unit == "nats" else ""
        size = f"{format_difference(comparison.difference, metric)}{unit}"
        if comparison.low == comparison.high:
            interval = f"in each of {_seeds(comparison.blocks)}"
        shown = f"{size} {interval}"
        return f"no difference shown: {shown}{_why_not(comparison, holm_p, tests)}"
    # "Beats by" and "loses to by" carry the direction, so size and interval are both given in it.
    low, high = comparison.low, comparison.high
    if comparison.difference < 0:
        low, high = -high, -low
    size = f"{format_difference(abs(comparison.difference), metric)} {style.unit} {format_interval(low, high, metric)}"
    direction = "" if style.higher_is_better else " (lower is better)"
    seeds = f"{comparison.wins} of {_seeds(comparison.blocks)}"
    if verdict == "better":
        return f"beats {baseline} by {size}{direction}, {seeds}"
    return f"loses to {baseline} by {size}{direction}, {seeds} won"


def gaps_sentence(*, failed: int, without_baseline: int, planned: int, baseline: str) -> str:
    """What is missing from a comparison, as an ending; empty where nothing is."""
    parts = []
    if failed:
        parts.append(f"; {failed} of {_seeds(planned)} failed")
    if without_baseline:
        parts.append(f"; {baseline} has no result for {without_baseline} of {_seeds(planned)}")
    return "".join(parts)


def _why_not(comparison: PairedComparison, holm_p: float | None, tests: int) -> str:
    """Explain an interval that excludes 0 and yet decides nothing."""
    if comparison.low <= 0 <= comparison.high or holm_p is None:
        return ""
    if comparison.p_value < SIGNIFICANCE:
        return f"; the interval alone excludes 0, but not after Holm's correction over {tests} losses, p = {_p(holm_p)}"
    return (
        f", which has no spread and so no interval; the sign-flip test cannot tell it from chance, "
        f"p = {_p(comparison.sign_flip_p)}"
    )


def _p(value: float) -> str:
    """Two digits, and more where two would round to the threshold itself."""
    return f"{value:.2f}" if round(value, 2) != SIGNIFICANCE else f"{value:.4f}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
