"""The inner folds of a block: its own drawn training rows in parts, each in turn held out from a small study."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lossmith.errors import DataError
from lossmith.studies.classification import ClassificationSetting
from lossmith.studies.draws import check_batches, trained_on
from lossmith.tasks import ClassificationTask, Example, fold_task

INNER_STREAM = 7011
"""Keeps the generator of inner folds apart from other uses of the same seed."""
OF_OUTER_RUNS = ("report_to", "save_strategy", "run_name")
"""Trainer settings that inner runs leave out: a logger or a checkpoint for each of hundreds of models helps nobody."""

Fold = tuple[tuple[Example, ...], tuple[Example, ...]]
"""Rows to train on, and rows that are held out."""


def inner_folds(setting: ClassificationSetting, seed: int, folds: int) -> list[Fold]:
    """Stratified folds of the rows that a block trains on; nothing else of the task enters them.

    Args:
        setting: The study.
        seed: The block.
        folds: How many, >= 2.

    Raises:
        DataError: If a class has fewer rows than there are folds.
    """
    rows = trained_on(setting, seed)
    by_class: list[list[int]] = [[] for _ in setting.task.label_names]
    for place, example in enumerate(rows):
        by_class[example.label].append(place)
    _check_enough(setting.task, by_class, seed, folds, len(rows))
    inner_seed = int(np.random.SeedSequence([seed, INNER_STREAM]).generate_state(1)[0])
    own = ClassificationTask(name=setting.task.name, label_names=setting.task.label_names, train=tuple(rows))
    # As outer folds: stratified, and texts that are equal stay on one side.
    parts = [fold_task(own, fold=fold, folds=folds, seed=inner_seed) for fold in range(folds)]
    for part in parts:
        check_batches(setting.config, part.train, seed)
    return [(part.train, part.test) for part in parts]


def inner_setting(setting: ClassificationSetting, fold: Fold) -> ClassificationSetting:
    """The study that trains on all rows of `fold` but those held out, and is tested on these."""
    train, held_out = fold
    task = ClassificationTask(
        name=setting.task.name,
        label_names=setting.task.label_names,
        train=train,
        test=held_out,
        source=setting.task.source,
        licence=setting.task.licence,
        attribution=setting.task.attribution,
    )
    all_rows = {"shots": None, "shots_total": None, "draw": "stratified", "folds": None}
    no_extras = {"curve_examples": 0, "calibration_examples": 0}
    trainer = {name: value for name, value in setting.config.trainer.items() if name not in OF_OUTER_RUNS}
    config = setting.config.model_copy(update=all_rows | no_extras | {"trainer": trainer})
    return dataclasses.replace(setting, config=config, task=task)


def _check_enough(
    task: ClassificationTask, by_class: Sequence[Sequence[int]], seed: int, folds: int, drawn: int
) -> None:
    least = min(range(len(by_class)), key=lambda label: len(by_class[label]))
    count = len(by_class[least])
    if count < folds:
        few = f"lower `inner_folds` to {count}" if count >= 2 else "draw more shots"
        raise DataError(
            f"Class '{task.label_names[least]}' has {count} of the {drawn} training rows of seed {seed}, and each of "
            f"`inner_folds` = {folds} needs one: {few}."
        )
