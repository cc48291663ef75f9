"""Numbers and foreign text as a person reads them: units, signs, one-line names."""

import math
import textwrap
import unicodedata

from lossmith.evidence.metrics import RELEASED, format_difference, format_interval, format_value, metric_style
from lossmith.evidence.statistics import PairedComparison

MISSING = "–"
METRIC_NAMES = {
    "nll": "test NLL",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "flexible_match": "match, any form",
    "likelihood_accuracy": "accuracy by likelihood",
    "answered": "answers that can be read",
    "stopped": "answers that end",
    "iou": "steps: IoU",
    "overlap": "steps: overlap",
    "dice": "steps: Dice",
    "recall": "steps: recall",
    "precision": "steps: precision",
    "real_iou": "steps: IoU up to commuting",
    "wrong_operators": "steps: wrong operators",
    "inverted_operands": "steps: inverted operands",
    "missing_steps": "steps: missing",
    "extra_steps": "steps: extra",
    "repetitions": "steps: repeated",
    "wrong_results": "steps: wrong results",
}
"""Metrics whose key alone would not tell a reader what they are."""
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a display instead of showing something: controls, direction marks, line separators."""


def metric_name(metric: str) -> str:
    """The metric in words.

    Example:
        >>> metric_name("macro_f1"), metric_name("iou"), metric_name("released_exact_match")
        ('macro F1', 'steps: IoU', 'as released: exact match')
    """
    if metric.startswith(RELEASED):
        return f"as released: {metric_name(metric.removeprefix(RELEASED))}"
    return METRIC_NAMES.get(metric) or metric.replace("_", " ")


def level_unit(metric: str) -> str:
    """The unit of `level`; differences have the unit that `metric_style` names."""
    return "%" if metric_style(metric).unit == "points" else "nats"


def level(value: float | None, metric: str) -> str:
    """A level of `metric` without its unit, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else format_value(value, metric)


def difference(value: float | None, metric: str) -> str:
    """A difference of `metric` with its sign, without its unit, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else format_difference(value, metric, signed=True)


def difference_with_interval(pairs: PairedComparison | None, metric: str) -> str:
    """`+6.1 [4.0, 8.2]`; without the interval where there was one block, a dash where there is no pair."""
    if pairs is None:
        return MISSING
    interval = f" {format_interval(pairs.low, pairs.high, metric)}" if known(pairs.low) and known(pairs.high) else ""
    return difference(pairs.difference, metric) + interval


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def decimal(value: float | None, decimals: int) -> str:
    """A number with a fixed count of digits, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def p_value(value: float | None) -> str:
    """A p-value with three digits; smaller ones are only called smaller."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def one_line(text: object) -> str:
    r"""Foreign text on one line: what would steer a terminal, a font or a file becomes a blank.

    Example:
        >>> one_line("a\x1b[31m\u2028b")
        'a [31m b'
    """
    return "".join(
        " " if unicodedata.category(character) in HIDDEN_CATEGORIES else character for character in str(text)
    )


def wrapped(text: object, *, width: int, lines: int) -> str:
    r"""A name folded at blanks into a few short lines; what does not fit ends in an ellipsis.

    Example:
        >>> wrapped("0.4*cross_entropy + 0.6*supcon", width=20, lines=2)
        '0.4*cross_entropy +\n0.6*supcon'
        >>> wrapped("0.4*cross_entropy + 0.6*supcon", width=20, lines=1)
        '0.4*cross_entropy +…'
    """
    flat = " ".join(one_line(text).split()) or MISSING
    if lines == 1:
        return _clipped(flat, width)
    folded = textwrap.wrap(flat, width, break_long_words=False, break_on_hyphens=False)
    kept = [_clipped(line, width) for line in folded[:lines]]
    if len(folded) > lines and not kept[-1].endswith("…"):
        kept[-1] = _clipped(kept[-1], width - 2) + " …"
    return "\n".join(kept)


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
