"""Data sets as tasks: the named ones, one's own files, folds, and the draw of training rows."""

from lossmith.tasks._shipped import ClassificationRecord, CompletionRecord, PreferenceRecord
from lossmith.tasks.alpaca_eval import Instruction, load_alpaca_eval
from lossmith.tasks.classification import ClassificationTask, Example, rows_per_class
from lossmith.tasks.completion import CompletionTask, Kind, Problem, draw_problems
from lossmith.tasks.completion_loading import completion_kind, is_completion_task, load_completion_task
from lossmith.tasks.folds import fold_task
from lossmith.tasks.loading import load_task
from lossmith.tasks.mt_bench import Question, load_mt_bench
from lossmith.tasks.preference import Message, Pair, PreferenceTask
from lossmith.tasks.preference_facts import Lengths, PreferenceFacts, preference_facts
from lossmith.tasks.preference_loading import (
    is_preference_task,
    is_unpaired_task,
    load_preference_task,
    load_unpaired_task,
)
from lossmith.tasks.registry import list_completion_tasks, list_preference_tasks, list_tasks
from lossmith.tasks.shots import draw_shots
from lossmith.tasks.unpaired import Rated, UnpairedTask, unpair, unpaired_rows

__all__ = [
    "ClassificationRecord",
    "ClassificationTask",
    "CompletionRecord",
    "CompletionTask",
    "Example",
    "Instruction",
    "Kind",
    "Lengths",
    "Message",
    "Pair",
    "PreferenceFacts",
    "PreferenceRecord",
    "PreferenceTask",
    "Problem",
    "Question",
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
    "load_alpaca_eval",
    "load_completion_task",
    "load_mt_bench",
    "load_preference_task",
    "load_task",
    "load_unpaired_task",
    "preference_facts",
    "rows_per_class",
    "unpair",
    "unpaired_rows",
]
