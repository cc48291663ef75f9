"""How good a trained model is on a task's test set."""

from lossmith.evaluation.classification import (
    classification_metrics,
    confusion_matrix,
    predictions,
    probability_metrics,
)
from lossmith.evaluation.completions import Judgement, judge, notice
from lossmith.evaluation.outcomes import CHOICE_OUTCOMES, MATH_OUTCOMES
from lossmith.evaluation.voting import majority, pass_rate

__all__ = [
    "CHOICE_OUTCOMES",
    "MATH_OUTCOMES",
    "Judgement",
    "classification_metrics",
    "confusion_matrix",
    "judge",
    "majority",
    "notice",
    "pass_rate",
    "predictions",
    "probability_metrics",
]
