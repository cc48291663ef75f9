"""Data sets as tasks: the shipped ones, one's own files, and the draw of training rows."""

from lossmith.tasks._shipped import ShippedTask
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class
from lossmith.tasks.loading import load_task
from lossmith.tasks.registry import list_tasks
from lossmith.tasks.shots import draw_shots

__all__ = [
    "ClassificationTask",
    "Example",
    "ShippedTask",
    "draw_shots",
    "list_tasks",
    "load_task",
    "rows_per_class",
]
