"""Engines serve the statistics that objectives name; `dense` is the readable reference."""

from lossmith.engines.budget import chunk_budget, set_chunk_budget, within_budget
from lossmith.engines.chunked import GradientInForward
from lossmith.engines.gather import gather_rows, own_start, row_counts, world_size
from lossmith.engines.linear_logits import LinearLogits
from lossmith.engines.row_plans import apply_by_rows
from lossmith.engines.similarity import SimilarityRows, check_table
from lossmith.engines.sources import (
    ChunkSource,
    Demand,
    DenseSource,
    LinearSource,
    StatisticsSource,
    chunked_pass,
    counted_places,
    joint_labels,
)
from lossmith.engines.statistics import DenseRegionStatistics, DenseTokenStatistics, region_statistics
from lossmith.engines.tiles import ChunkedPass

__all__ = [
    "ChunkSource",
    "ChunkedPass",
    "Demand",
    "DenseRegionStatistics",
    "DenseSource",
    "DenseTokenStatistics",
    "GradientInForward",
    "LinearLogits",
    "LinearSource",
    "SimilarityRows",
    "StatisticsSource",
    "apply_by_rows",
    "check_table",
    "chunk_budget",
    "chunked_pass",
    "counted_places",
    "gather_rows",
    "joint_labels",
    "own_start",
    "region_statistics",
    "row_counts",
    "set_chunk_budget",
    "within_budget",
    "world_size",
]
