"""Modules: what `lossmith.loss` returns; they own proxies and running statistics."""

from lossmith.nn.build import loss
from lossmith.nn.composition import Composition, Term, parse_composition
from lossmith.nn.modules import IGNORE_INDEX, LossModule, MetricLoss, ObjectiveModule, RegionLoss, TokenLoss
from lossmith.nn.weighted_sum import WeightedSum

__all__ = [
    "IGNORE_INDEX",
    "Composition",
    "LossModule",
    "MetricLoss",
    "ObjectiveModule",
    "RegionLoss",
    "Term",
    "TokenLoss",
    "WeightedSum",
    "loss",
    "parse_composition",
]
