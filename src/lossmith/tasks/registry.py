"""The shipped tasks. A new one is its file, its data folder and one entry here."""

from collections.abc import Callable

from lossmith.tasks import (
    banking77,
    commonsenseqa,
    cr,
    gsm8k,
    hellaswag,
    mathqa,
    mr,
    openbookqa,
    qasc,
    subj,
    svamp,
)
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import CompletionRecord, ShippedTask
from lossmith.tasks.classification import ClassificationTask
from lossmith.tasks.completion import Problem

LOADERS: dict[ShippedTask, Callable[[], ClassificationTask]] = {
    mr.MR: mr.load,
    subj.SUBJ: subj.load,
    cr.CR: cr.load,
    banking77.BANKING77: banking77.load,
}
"""Record of each shipped task -> the function that reads it."""

COMPLETION_LOADERS: dict[CompletionRecord, Callable[[Fields], Problem | None]] = {
    gsm8k.GSM8K: gsm8k.read_row,
    svamp.SVAMP: svamp.read_row,
    mathqa.MATHQA: mathqa.read_row,
    qasc.QASC: qasc.read_row,
    openbookqa.OPENBOOKQA: openbookqa.read_row,
    commonsenseqa.COMMONSENSEQA: commonsenseqa.read_row,
    hellaswag.HELLASWAG: hellaswag.read_row,
}
"""Record of each task for causal language models -> the function that makes a row of its data a problem."""


def list_tasks() -> tuple[ShippedTask, ...]:
    """Records of the shipped tasks; `str(record)` is the name that `load_task` takes. Reads no data.

    Example:
        >>> [str(task) for task in list_tasks()]
        ['mr', 'subj', 'cr', 'banking77']
    """
    return tuple(LOADERS)


def list_completion_tasks() -> tuple[CompletionRecord, ...]:
    """Records of the tasks for causal language models; `str(record)` is the name that `load_completion_task` takes.

    Example:
        >>> [str(task) for task in list_completion_tasks() if task.split_sizes]
        ['gsm8k', 'svamp', 'mathqa', 'qasc', 'commonsenseqa', 'hellaswag']
    """
    return tuple(COMPLETION_LOADERS)
