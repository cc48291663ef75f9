"""How good a trained model is on a task's test set."""

from lossmith.evaluation.classification import (
    classification_metrics,
    confusion_matrix,
    predictions,
    probability_metrics,
)

__all__ = ["classification_metrics", "confusion_matrix", "predictions", "probability_metrics"]
