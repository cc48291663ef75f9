"""Data sets as tasks: the named ones, one's own files, folds, and the draw of training rows."""

from lossmith.tasks._shipped import ClassificationRecord, CompletionRecord
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class
from lossmith.tasks.completion import CompletionTask, Kind, Problem, draw_problems
from lossmith.tasks.completion_loading import completion_kind, is_completion_task, load_completion_task
from lossmith.tasks.folds import fold_task
from lossmith.tasks.loading import load_task
from lossmith.tasks.registry import list_completion_tasks, list_tasks
from lossmith.tasks.shots import draw_shots

__all__ = [
    "ClassificationRecord",
    "ClassificationTask",
    "CompletionRecord",
    "CompletionTask",
    "Example",
    "Kind",
    "Problem",
    "completion_kind",
    "draw_problems",
    "draw_shots",
    "fold_task",
    "is_completion_task",
    "list_completion_tasks",
    "list_tasks",
    "load_completion_task",
    "load_task",
    "rows_per_class",
]
