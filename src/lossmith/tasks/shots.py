"""Draw the training rows of one block: seeded, the same for every loss."""

from lossmith._extras import require
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._splits import allocate
from lossmith.tasks.classification import ClassificationTask, rows_per_class

SHOTS_STREAM = 7002
"""Keeps the generator of shots apart from other uses of the same seed."""


def draw_shots(
    task: ClassificationTask,
    *,
    seed: int,
    shots_per_class: int | None = None,
    shots_total: int | None = None,
    stratified: bool = True,
) -> tuple[int, ...]:
    """Draw training rows without replacement, in shuffled order.

    The draw depends on the task's train rows, the seed and the numbers, and on nothing else. Under one seed the shots
    of a smaller `shots_per_class` (and of a smaller unstratified `shots_total`) are among those of a larger one.

    Args:
        task: Where `train` rows come from.
        seed: The block, >= 0.
        shots_per_class: Rows of each class, >= 1.
        shots_total: Rows in all, >= 1; give this or `shots_per_class`, or neither for the whole train set.
        stratified: Whether `shots_total` is divided in proportion to the classes (largest remainder, at least one
            row each). False draws from all rows alike and may miss a class.

    Returns:
        Distinct indices into `task.train`.

    Raises:
        ConfigurationError: If both numbers are given, one is not >= 1, or `stratified=False` has nothing to act on.
        DataError: If there are fewer rows than shots, or fewer shots than classes.

    Example:
        >>> from lossmith.tasks import load_task
        >>> len(draw_shots(load_task("cr"), seed=0, shots_per_class=20))
        40
    """
    _check_numbers(seed, shots_per_class, shots_total, stratified)
    np = require("numpy", extra="train", purpose="draw shots")
    generator = np.random.Generator(np.random.PCG64([seed, SHOTS_STREAM]))
    if shots_per_class is None and (shots_total is None or not stratified):
        wanted = len(task.train) if shots_total is None else shots_total
        _check_enough_rows(task, wanted)
        return tuple(generator.permutation(len(task.train))[:wanted].tolist())
    quotas = _quotas(task, shots_per_class, shots_total)
    # All classes are permuted whole before any row is taken, so that fewer shots are a part of more.
    shuffled = [generator.permutation(rows).tolist() for rows in _rows_by_class(task)]
    drawn = [row for rows, quota in zip(shuffled, quotas, strict=True) for row in rows[:quota]]
    return tuple(generator.permutation(drawn).tolist())


def _quotas(task: ClassificationTask, shots_per_class: int | None, shots_total: int | None) -> list[int]:
    counts = rows_per_class(task.train, task.num_classes)
    if shots_per_class is not None:
        short = [label for label, count in enumerate(counts) if count < shots_per_class]
        if short:
            first = min(short, key=counts.__getitem__)
            raise DataError(
                f"Class '{task.label_names[first]}' has {counts[first]} {'row' if counts[first] == 1 else 'rows'} "
                f"to train on (validation and test rows do not count) and {shots_per_class} shots per class are "
                f"wanted: take fewer, give `shots_total` or add rows; rows per class: {_describe(task, counts)}."
            )
        return [shots_per_class] * task.num_classes
    assert shots_total is not None
    _check_enough_rows(task, shots_total)
    if shots_total < task.num_classes:
        raise DataError(
            f"`shots_total` must be at least the number of classes, {task.num_classes}, got {shots_total}: "
            "raise it, or draw with `stratified=False`, which may miss a class."
        )
    return allocate(counts, shots_total)


def _rows_by_class(task: ClassificationTask) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in task.label_names]
    for index, example in enumerate(task.train):
        rows[example.label].append(index)
    return rows


def _describe(task: ClassificationTask, counts: list[int], shown: int = 12) -> str:
    pairs = sorted(zip(counts, task.label_names, strict=True), key=lambda pair: pair[0])
    listed = ", ".join(f"{name}: {count}" for count, name in pairs[:shown])
    return listed + (f" and {len(pairs) - shown} larger classes" if len(pairs) > shown else "")


def _check_enough_rows(task: ClassificationTask, wanted: int) -> None:
    if wanted > len(task.train):
        counts = rows_per_class(task.train, task.num_classes)
        raise DataError(
            f"Task '{task.name}' has {len(task.train)} train rows, `shots_total` wants {wanted}; "
            f"rows per class: {_describe(task, counts)}."
        )


def _check_numbers(seed: int, shots_per_class: int | None, shots_total: int | None, stratified: bool) -> None:
    if shots_per_class is not None and shots_total is not None:
        raise ConfigurationError(
            f"Give `shots_per_class` or `shots_total`, not both, got {shots_per_class} and {shots_total}."
        )
    least = {"seed": (seed, 0), "shots_per_class": (shots_per_class, 1), "shots_total": (shots_total, 1)}
    for name, (value, minimum) in least.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
            raise ConfigurationError(f"`{name}` must be an integer >= {minimum}, got {value!r}.")
    if not stratified and shots_total is None:
        raise ConfigurationError("`stratified=False` acts on `shots_total` only, got none: give it or leave this out.")
