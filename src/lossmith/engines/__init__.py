"""Engines serve the statistics that objectives name; `dense` is the readable reference."""

from lossmith.engines.statistics import DenseRegionStatistics, DenseTokenStatistics

__all__ = ["DenseRegionStatistics", "DenseTokenStatistics"]
