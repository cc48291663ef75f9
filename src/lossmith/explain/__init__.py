"""What a loss asks of a model, and what it made of one.

Of a loss: its curve, its gradient, the target it implies, its docstring as facts. Of models trained with it: maps and
geometry of their embeddings, accuracy by decile, calibration, token attributions and their faithfulness, disagreements
with a baseline, the weight that the loss puts on each example. Every result has `.frame()` and `.plot()`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lossmith.explain.curves import Curve, NoCurveError, loss_curve
from lossmith.explain.facts import LossFacts, loss_facts

if TYPE_CHECKING:
    from lossmith.explain.attributions import AttributedText, TokenAttributions, attribute_tokens
    from lossmith.explain.deciles import AccuracyByDecile, accuracy_by_decile, centroid_distances
    from lossmith.explain.disagreements import Disagreement, Disagreements, find_disagreements
    from lossmith.explain.example_weights import ExampleWeights, WeightCurves, weigh_examples, weight_curves
    from lossmith.explain.faithfulness import Faithfulness, measure_faithfulness
    from lossmith.explain.geometry import EmbeddingGeometry, Geometry, embedding_geometry
    from lossmith.explain.highlights import Highlights
    from lossmith.explain.maps import EmbeddingMap, EmbeddingMaps, Proxies, class_means, embedding_maps
    from lossmith.explain.reliability import Calibration, calibration
    from lossmith.explain.stability import AttributionStability, attribution_stability
    from lossmith.explain.tokens import TokenizedText, tokenize_texts

_HOMES = {
    "attributions": ("AttributedText", "TokenAttributions", "attribute_tokens"),
    "deciles": ("AccuracyByDecile", "accuracy_by_decile", "centroid_distances"),
    "disagreements": ("Disagreement", "Disagreements", "find_disagreements"),
    "example_weights": ("ExampleWeights", "WeightCurves", "weigh_examples", "weight_curves"),
    "faithfulness": ("Faithfulness", "measure_faithfulness"),
    "geometry": ("EmbeddingGeometry", "Geometry", "embedding_geometry"),
    "highlights": ("Highlights",),
    "maps": ("EmbeddingMap", "EmbeddingMaps", "Proxies", "class_means", "embedding_maps"),
    "reliability": ("Calibration", "calibration"),
    "stability": ("AttributionStability", "attribution_stability"),
    "tokens": ("TokenizedText", "tokenize_texts"),
}
"""Module -> its public names; loaded when asked for, since `lossmith losses` must run without NumPy."""

__all__ = [
    "AccuracyByDecile",
    "AttributedText",
    "AttributionStability",
    "Calibration",
    "Curve",
    "Disagreement",
    "Disagreements",
    "EmbeddingGeometry",
    "EmbeddingMap",
    "EmbeddingMaps",
    "ExampleWeights",
    "Faithfulness",
    "Geometry",
    "Highlights",
    "LossFacts",
    "NoCurveError",
    "Proxies",
    "TokenAttributions",
    "TokenizedText",
    "WeightCurves",
    "accuracy_by_decile",
    "attribute_tokens",
    "attribution_stability",
    "calibration",
    "centroid_distances",
    "class_means",
    "embedding_geometry",
    "embedding_maps",
    "find_disagreements",
    "loss_curve",
    "loss_facts",
    "measure_faithfulness",
    "tokenize_texts",
    "weigh_examples",
    "weight_curves",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"lossmith.explain.{module}"), name)
    raise AttributeError(f"module 'lossmith.explain' has no attribute '{name}'")
