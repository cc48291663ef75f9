"""What a ranking over data sets says, in words that a person would say aloud."""

import math
from typing import TYPE_CHECKING

from lossmith.evidence.metrics import format_difference, format_interval, format_value, metric_style, said_metric
from lossmith.evidence.ranks import SMALLEST_TABLE, FriedmanTest, Nemenyi, smallest_signed_rank_p
from lossmith.evidence.sentences import SIGNIFICANCE, Verdict

if TYPE_CHECKING:
    from lossmith.evidence.ranking import BaselineTests

_COUNTS = {2: "two", 3: "three"}


def loss_sentence(
    verdict: Verdict,
    tests: "BaselineTests | None",
    *,
    average_rank: float,
    mean: float,
    baseline: str,
    metric: str,
) -> str:
    """One loss over data sets: the verdict, the mean difference with both intervals, and where it is from and to."""
    style = metric_style(metric)
    if tests is None:
        unit = " nats" if style.unit == "nats" else ""
        level = f"{said_metric(metric)} {format_value(mean, metric)}{unit}"
        return f"the baseline: average rank {average_rank:.2f}, mean {level}"
    told = _told(verdict, baseline)
    pairs, blocks = tests.over_datasets, tests.over_blocks
    gain = format_difference(pairs.difference, metric, signed=True)
    least, most = (
        f"{format_difference(tests.differences[name], metric, signed=True)} on {name}"
        for name in (tests.least, tests.most)
    )
    direction = "" if style.higher_is_better else " (lower is better)"
    like_these = format_interval(pairs.low, pairs.high, metric)
    alone = "" if math.isnan(blocks.low) else f", for exactly these {format_interval(blocks.low, blocks.high, metric)}"
    p = "" if verdict == "undecided" else f"; {said_p(tests.holm_p)} (signed ranks, Holm)"
    return (
        f"{told}: {gain} {style.unit} on average{direction}, from {least} to {most}, better on {pairs.wins} of "
        f"{pairs.blocks} data sets; 95% interval for data sets like these {like_these}"
        f"{alone}; average rank {average_rank:.2f}{p}"
    )


def overall_sentences(
    friedman: FriedmanTest | None, nemenyi: Nemenyi | None, *, losses: int, datasets: int, smallest_p: float
) -> tuple[str, ...]:
    """What holds of all losses together, and what cannot be tested with so few data sets or losses."""
    return tuple(
        said
        for said in (
            _friedman_sentence(friedman, losses, datasets),
            _nemenyi_sentence(nemenyi, friedman),
            _signed_rank_sentence(losses - 1, datasets, smallest_p),
        )
        if said
    )


def said_p(value: float) -> str:
    """`p = 0.012`, or `p < 0.001`; more digits where three would round to the threshold itself.

    Example:
        >>> said_p(0.0123), said_p(0.00001), said_p(0.0499)
        ('p = 0.012', 'p < 0.001', 'p = 0.0499')
    """
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if round(value, 3) != SIGNIFICANCE else f"p = {value:.4g}"


def _told(verdict: Verdict, baseline: str) -> str:
    if verdict == "better":
        return f"beats {baseline} over data sets"
    if verdict == "worse":
        return f"loses to {baseline} over data sets"
    return f"{verdict} over data sets"


def _friedman_sentence(test: FriedmanTest | None, losses: int, datasets: int) -> str:
    if test is None:
        few = [f"{_count(number)} {what}" for number, what in ((losses, "losses"), (datasets, "data sets"))]
        short = " and ".join(
            text for text, number in zip(few, (losses, datasets), strict=True) if number < SMALLEST_TABLE
        )
        return (
            f"With {short} there is no Friedman test, no critical difference and no diagram: they need at least "
            f"{_count(SMALLEST_TABLE)} losses on {_count(SMALLEST_TABLE)} data sets"
        )
    found = "The ranks differ by more than chance" if test.p_value < SIGNIFICANCE else "No difference of ranks is shown"
    between, within = test.degrees
    f = f"F({between}, {within}) = {test.f:.2f}" if math.isfinite(test.f) else "all data sets give the same order"
    return (
        f"{found}: Friedman's test, {f}, {said_p(test.p_value)}; chi-square {test.chi_square:.2f} with "
        f"{between} degrees of freedom, {said_p(test.chi_square_p)}; agreement of the data sets "
        f"(Kendall's W) {test.agreement:.2f}"
    )


def _nemenyi_sentence(pairs: Nemenyi | None, friedman: FriedmanTest | None) -> str:
    if pairs is None or friedman is None:
        return ""
    apart = sum(p < pairs.significance for p in pairs.p_values.values())
    shown = (
        f"Two losses differ where their average ranks are more than {pairs.critical_difference:.2f} apart (Nemenyi, "
        f"level {pairs.significance:g} over all pairs): {apart} of {len(pairs.p_values)} pairs do"
    )
    if apart and friedman.p_value >= SIGNIFICANCE:
        return f"{shown}; Friedman's test found no difference, so they are not to be relied on"
    return shown


def _signed_rank_sentence(tests: int, datasets: int, smallest_p: float) -> str:
    named = f"{datasets} data sets and {tests} {'loss' if tests == 1 else 'losses'} beside the baseline"
    if smallest_p < SIGNIFICANCE:
        return (
            f"With {named} the p of the signed ranks, after Holm's correction, can be as small as {smallest_p:.2g}, so "
            f"it can decide"
        )
    needed = next(n for n in range(datasets, 100) if tests * smallest_signed_rank_p(n) < SIGNIFICANCE)
    return (
        f"With {named} the p of the signed ranks, after Holm's correction, is at least {smallest_p:.3g}: no loss can "
        f"be called better or worse over data sets, however clear it is; that takes at least {needed} data sets"
    )


def _count(number: int) -> str:
    return _COUNTS.get(number, str(number))
