"""The shipped tasks. A new one is its file, its data folder and one entry here."""

from collections.abc import Callable

from lossmith.tasks import banking77, cr, mr, subj
from lossmith.tasks._shipped import ShippedTask
from lossmith.tasks.classification import ClassificationTask

LOADERS: dict[ShippedTask, Callable[[], ClassificationTask]] = {
    mr.MR: mr.load,
    subj.SUBJ: subj.load,
    cr.CR: cr.load,
    banking77.BANKING77: banking77.load,
}
"""Record of each shipped task -> the function that reads it."""


def list_tasks() -> tuple[ShippedTask, ...]:
    """Records of the shipped tasks; `str(record)` is the name that `load_task` takes. Reads no data.

    Example:
        >>> [str(task) for task in list_tasks()]
        ['mr', 'subj', 'cr', 'banking77']
    """
    return tuple(LOADERS)
