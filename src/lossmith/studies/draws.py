"""Which texts a block of a classification trains on, is calibrated on and is tested on."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lossmith.integrations.classification import balanced_batches
from lossmith.studies.config import StudyConfig
from lossmith.tasks import ClassificationTask, Example, draw_shots, fold_task, list_tasks

if TYPE_CHECKING:
    from lossmith.studies.classification import ClassificationSetting


FEW_TO_CALIBRATE = 50
"""Texts below which a fitted temperature is said to be uncertain."""
SHARED = 0.2
"""Share of the training rows from which on the draws of two blocks have many rows in common."""


def task_of_block(task: ClassificationTask, config: StudyConfig, seed: int) -> ClassificationTask:
    """The task of a block: with folds, tested on the block's fold and trained on the others; the test cut to size."""
    if config.folds is not None:
        task = fold_task(task, fold=seed % config.folds, folds=config.folds, seed=config.fold_seed)
    if config.test_examples is None:
        return task
    cut = tuple(some(task.test, config.test_examples, config.split_seed))
    return dataclasses.replace(task, test=cut, warnings=(*task.warnings, *_too_few(task, config)))


def _too_few(task: ClassificationTask, config: StudyConfig) -> list[str]:
    """That one's own data have fewer test texts than asked for; one setting may serve named tasks of several sizes."""
    named = {str(record) for record in list_tasks(shipped_only=False)}
    if config.test_examples is None or config.test_examples <= len(task.test) or config.task in named:
        return []
    return [
        f"Asked for {config.test_examples} test texts (`test_examples`), there are {len(task.test)}: all of them are "
        f"used."
    ]


def trained_on(setting: "ClassificationSetting", seed: int) -> list[Example]:
    """The training texts of a block, in their drawn order."""
    task = setting.task_of(seed)
    return [task.train[index] for index in drawn_rows(setting, seed)]


def drawn_rows(setting: "ClassificationSetting", seed: int) -> tuple[int, ...]:
    """Places of a block's training texts among the train rows of its task, in their drawn order."""
    config = setting.config
    return draw_shots(
        setting.task_of(seed),
        seed=seed,
        shots_per_class=config.shots,
        shots_total=config.shots_total,
        stratified=config.draw == "stratified",
    )


def calibration_rows(setting: "ClassificationSetting", seed: int) -> list[Example]:
    """Texts that a block neither trains nor tests on: validation rows, else train rows that were not drawn."""
    config, task = setting.config, setting.task_of(seed)
    free = list(task.validation)
    if not free:
        drawn = set(drawn_rows(setting, seed))
        free = [example for place, example in enumerate(task.train) if place not in drawn]
    return some(free, config.calibration_examples, config.split_seed)


def some(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many of the examples, or all of them, in their order; the same ones for one seed."""
    if count >= len(examples):
        return list(examples)
    rows = np.random.Generator(np.random.PCG64(seed)).choice(len(examples), count, replace=False)
    return [examples[int(row)] for row in sorted(rows)]


def check_batches(config: StudyConfig, rows: Sequence[Example], seed: int) -> None:
    """See that training rows can be put into the batches that are asked for.

    Raises:
        ConfigurationError: If `sampling` is balanced and they cannot.
    """
    if config.sampling == "balanced":
        labels = [row.label for row in rows]
        balanced_batches(labels, batch_size=config.batch_size, samples_per_class=config.samples_per_class, seed=seed)


def fold_notices(setting: "ClassificationSetting", seed: int) -> list[str]:
    """What a reader of a cross-validation must know."""
    config = setting.config
    if config.folds is None:
        return []
    missing = sorted(set(range(config.folds)) - {seed % config.folds for seed in config.blocks})
    notices = []
    if missing:
        notices.append(
            f"Of {config.folds} folds, {', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} never "
            f"tested: give `seeds` of at least {config.folds} consecutive numbers for a whole cross-validation."
        )
    if len(drawn_rows(setting, seed)) > SHARED * len(setting.task_of(seed).train):
        notices.append(
            "Blocks of a cross-validation that draw so many of the rows train on rows that overlap, so the differences "
            "depend on each other and the interval is too narrow (Nadeau and Bengio 2003)."
        )
    return notices


def calibration_notices(setting: "ClassificationSetting", seed: int) -> list[str]:
    """Whether temperatures were wanted and there were no texts to fit them on, or few."""
    if setting.config.calibration_examples == 0:
        return []
    count = len(calibration_rows(setting, seed))
    if count >= FEW_TO_CALIBRATE:
        return []
    if count:
        return [f"Temperatures are fitted on {count} texts, few enough to make probabilities worse."]
    return [
        "No text was left to fit temperatures on, so nothing is calibrated: draw `shots`, or bring validation rows in "
        "a folder with train, validation and test."
    ]
