"""Public checks for objectives, ours and yours: one call runs the whole battery and names what fails."""

from lossmith.errors import ObjectiveCheckError
from lossmith.testing.battery import CHECKS, check_objective
from lossmith.testing.constants import hold_constants
from lossmith.testing.report import Check, ObjectiveReport
from lossmith.testing.samples import Batch, draw_batch, draw_statistics, extreme_batches

__all__ = [
    "CHECKS",
    "Batch",
    "Check",
    "ObjectiveCheckError",
    "ObjectiveReport",
    "check_objective",
    "draw_batch",
    "draw_statistics",
    "extreme_batches",
    "hold_constants",
]
