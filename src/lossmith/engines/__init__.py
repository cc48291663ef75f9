"""Engines serve the statistics that objectives name; `dense` is the readable reference."""

from lossmith.engines.gather import gather_rows, own_start, row_counts, world_size
from lossmith.engines.similarity import SimilarityRows, apply_by_rows, check_table
from lossmith.engines.statistics import DenseRegionStatistics, DenseTokenStatistics, region_statistics

__all__ = [
    "DenseRegionStatistics",
    "DenseTokenStatistics",
    "SimilarityRows",
    "apply_by_rows",
    "check_table",
    "gather_rows",
    "own_start",
    "region_statistics",
    "row_counts",
    "world_size",
]
