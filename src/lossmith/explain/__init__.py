"""What a loss asks of a model: its curve, its gradient, the target it implies, and its docstring as facts."""

from lossmith.explain.curves import Curve, NoCurveError, loss_curve
from lossmith.explain.facts import LossFacts, loss_facts

__all__ = ["Curve", "LossFacts", "NoCurveError", "loss_curve", "loss_facts"]
