"""`lossmith bench`: time and peak memory of our engines beside everyone else's, checked before they are timed."""

from lossmith.bench.cases import Case, resolve_device
from lossmith.bench.contestants import COMPETITORS, ENGINES, Contestant
from lossmith.bench.files import check_outputs, write_outputs
from lossmith.bench.grid import Grid
from lossmith.bench.results import Results, memory_ratio, provenance_lines, results_of, time_ratio
from lossmith.bench.run import Benchmark, Row
from lossmith.bench.timing import Ratio, interleaved, paired_ratio, ratio_line

__all__ = [
    "COMPETITORS",
    "ENGINES",
    "Benchmark",
    "Case",
    "Contestant",
    "Grid",
    "Ratio",
    "Results",
    "Row",
    "check_outputs",
    "interleaved",
    "memory_ratio",
    "paired_ratio",
    "provenance_lines",
    "ratio_line",
    "resolve_device",
    "results_of",
    "time_ratio",
    "write_outputs",
]
