"""K-fold cross-validation: every row of a task is tested once, in the fold that it was dealt to."""

from dataclasses import replace

from lossmith.errors import ConfigurationError
from lossmith.tasks._notices import key_of, repeats
from lossmith.tasks._splits import fold_rows
from lossmith.tasks.classification import ClassificationTask

WHOLE = "Of the whole set, before its division into folds: "
"""Begins what a fold repeats of the task's warnings."""


def fold_task(task: ClassificationTask, *, fold: int, folds: int, seed: int = 2048) -> ClassificationTask:
    """One fold of a task: tested on it, trained on the others.

    The rows of all splits are divided, train first, then validation, then test. The folds are stratified and depend
    on the rows and the seed alone; rows whose texts differ only in case, white space or Unicode form share a fold.

    Args:
        task: The whole task; its own splits are given up.
        fold: Which fold is the test set, from 0 to `folds` - 1.
        folds: How many there are, >= 2.
        seed: >= 0. Seed of the folds; the default is the papers'.

    Returns:
        The task with its name and provenance, rows in their order, no validation rows, and the fingerprint of the whole
        in `fold_of`. Its warnings are those of the whole set, worded so, but for repeated texts, which share a fold.

    Raises:
        ConfigurationError: If `fold`, `folds` or `seed` is out of range.
        DataError: If a class has fewer different texts than there are folds, so that a fold would be without it.

    Example:
        >>> from lossmith.tasks import load_task
        >>> fold = fold_task(load_task("cr"), fold=0, folds=4)
        >>> len(fold.train), len(fold.validation), len(fold.test)
        (1273, 0, 425)
    """
    _check_numbers(fold, folds, seed)
    rows = (*task.train, *task.validation, *task.test)
    places = fold_rows(
        [key_of(row) for row in rows], [row.label for row in rows], task.label_names, folds=folds, seed=seed
    )
    return replace(
        task,
        train=tuple(row for row, place in zip(rows, places, strict=True) if place != fold),
        validation=(),
        test=tuple(row for row, place in zip(rows, places, strict=True) if place == fold),
        warnings=_warnings(task),
        fold_of=task.fingerprint,
    )


def _warnings(task: ClassificationTask) -> tuple[str, ...]:
    of_splits = repeats({"train": task.train, "validation": task.validation, "test": task.test})
    return tuple(
        # A fold of a fold says it once.
        warning if warning.startswith(WHOLE) else WHOLE + warning
        for warning in task.warnings
        if warning not in of_splits
    )


def _check_numbers(fold: int, folds: int, seed: int) -> None:
    for name, value, least in (("folds", folds, 2), ("fold", fold, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if fold >= folds:
        raise ConfigurationError(f"`fold` must be less than `folds`, {folds}, got {fold}: folds are counted from 0.")
