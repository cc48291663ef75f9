"""Data sets as tasks: the shipped ones, one's own files, and the draw of training rows."""

from lossmith.tasks._shipped import CompletionRecord, ShippedTask
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class
from lossmith.tasks.completion import CompletionTask, Kind, Problem, draw_problems
from lossmith.tasks.completion_loading import completion_kind, is_completion_task, load_completion_task
from lossmith.tasks.loading import load_task
from lossmith.tasks.registry import list_completion_tasks, list_tasks
from lossmith.tasks.shots import draw_shots

__all__ = [
    "ClassificationTask",
    "CompletionRecord",
    "CompletionTask",
    "Example",
    "Kind",
    "Problem",
    "ShippedTask",
    "completion_kind",
    "draw_problems",
    "draw_shots",
    "is_completion_task",
    "list_completion_tasks",
    "list_tasks",
    "load_completion_task",
    "load_task",
    "rows_per_class",
]
