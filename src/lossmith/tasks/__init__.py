"""Data sets as tasks: the named ones, one's own files, folds, and the draw of training rows."""

from lossmith.tasks._shipped import ClassificationRecord, CompletionRecord, PreferenceRecord
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class
from lossmith.tasks.completion import CompletionTask, Kind, Problem, draw_problems
from lossmith.tasks.completion_loading import completion_kind, is_completion_task, load_completion_task
from lossmith.tasks.folds import fold_task
from lossmith.tasks.loading import load_task
from lossmith.tasks.preference import Message, Pair, PreferenceTask
from lossmith.tasks.preference_loading import (
    is_preference_task,
    is_unpaired_task,
    load_preference_task,
    load_unpaired_task,
)
from lossmith.tasks.registry import list_completion_tasks, list_preference_tasks, list_tasks
from lossmith.tasks.shots import draw_shots
from lossmith.tasks.unpaired import Rated, UnpairedTask, unpair

__all__ = [
    "ClassificationRecord",
    "ClassificationTask",
    "CompletionRecord",
    "CompletionTask",
    "Example",
    "Kind",
    "Message",
    "Pair",
    "PreferenceRecord",
    "PreferenceTask",
    "Problem",
    "Rated",
    "UnpairedTask",
    "completion_kind",
    "draw_problems",
    "draw_shots",
    "fold_task",
    "is_completion_task",
    "is_preference_task",
    "is_unpaired_task",
    "list_completion_tasks",
    "list_preference_tasks",
    "list_tasks",
    "load_completion_task",
    "load_preference_task",
    "load_task",
    "load_unpaired_task",
    "rows_per_class",
    "unpair",
]
