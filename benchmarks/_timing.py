"""Interleaved timing: what is compared runs turn by turn, so that a busy machine slows all of it alike."""

import statistics
import time
from collections.abc import Callable


def interleaved(runs: dict[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_line(name: str, seconds: dict[str, list[float]], baseline: str) -> str:
    """Median seconds, and the median with the range of the ratios of paired turns."""
    ratios = [one / other for one, other in zip(seconds[name], seconds[baseline], strict=True)]
    return (
        f"{name:34s} {statistics.median(seconds[name]):8.3f} s   {statistics.median(ratios):5.2f} x {baseline} "
        f"(turns {min(ratios):.2f} to {max(ratios):.2f})"
    )
