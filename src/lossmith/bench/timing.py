"""Interleaved timing: what is compared runs turn by turn, so that a busy machine slows all of it alike.

Every other turn goes backwards, so that nobody always runs after the same neighbour and its cold caches.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How long one run takes for each second of another, over paired turns."""

    median: float
    low: float
    """The smallest ratio of a turn."""
    high: float
    """The largest ratio of a turn."""

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    into: Seconds | None = None,
    on_turn: Callable[[], None] | None = None,
) -> Seconds:
    """Seconds of each run, `repeats` times, in turn.

    Args:
        runs: By name; each call is one run, finished when it returns.
        repeats: Turns that are kept.
        warmup: Turns before them that are not.
        into: Lists to fill, one per run: whoever stops a run in the middle keeps the whole turns before it.
        on_turn: Called after each turn, warm-up included.

    Example:
        >>> seconds = interleaved({"a": lambda: None, "b": lambda: None}, repeats=3)
        >>> len(seconds["a"]), len(seconds["b"])
        (3, 3)
    """
    kept = {} if into is None else into
    for name in runs:
        kept.setdefault(name, [])
    for turn in range(warmup + repeats):
        seconds = {}
        for name, run in list(runs.items())[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        if turn >= warmup:
            for name, value in seconds.items():
                kept[name].append(value)
        if on_turn is not None:
            on_turn()
    return kept


def paired_ratio(seconds: Sequence[float], baseline: Sequence[float]) -> Ratio | None:
    """The ratios of turns that both ran; None where there is none.

    Example:
        >>> paired_ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
        Ratio(median=2.0, low=1.5, high=4.0)
    """
    ratios = [one / other for one, other in zip(seconds, baseline, strict=False)]
    return Ratio(median=statistics.median(ratios), low=min(ratios), high=max(ratios)) if ratios else None


def ratio_line(name: str, seconds: Seconds, baseline: str) -> str:
    """Median seconds, and the median with the range of the ratios of paired turns."""
    ratio = paired_ratio(seconds[name], seconds[baseline])
    if ratio is None:
        return f"{name:34s} not measured"
    return (
        f"{name:34s} {statistics.median(seconds[name]):8.3f} s   {ratio.median:5.2f} x {baseline} "
        f"(turns {ratio.low:.2f} to {ratio.high:.2f})"
    )
