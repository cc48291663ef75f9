"""Modules: what `lossmith.loss` returns; they own proxies, memories and running statistics."""

from lossmith.nn.base import IGNORE_INDEX, LossModule, ObjectiveModule
from lossmith.nn.build import loss
from lossmith.nn.composition import Composition, Term, parse_composition
from lossmith.nn.logits import RegionLoss, TokenLoss
from lossmith.nn.memory import EmbeddingMemory
from lossmith.nn.metric import MetricLoss
from lossmith.nn.preference import PreferenceLoss, UnpairedLoss
from lossmith.nn.running import RunningMean
from lossmith.nn.sampler import PKBatchSampler
from lossmith.nn.weighted_sum import WeightedSum

__all__ = [
    "IGNORE_INDEX",
    "Composition",
    "EmbeddingMemory",
    "LossModule",
    "MetricLoss",
    "ObjectiveModule",
    "PKBatchSampler",
    "PreferenceLoss",
    "RegionLoss",
    "RunningMean",
    "Term",
    "TokenLoss",
    "UnpairedLoss",
    "WeightedSum",
    "loss",
    "parse_composition",
]
