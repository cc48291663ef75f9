"""`load_task`: a named task, one's own file, or a folder of train and test files, in one form."""

import itertools
import os
from pathlib import Path

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._named import load_named
from lossmith.tasks._own import load_file, load_folder
from lossmith.tasks._rows import Columns
from lossmith.tasks._tables import table_suffix
from lossmith.tasks.classification import ClassificationTask
from lossmith.tasks.registry import TASKS, list_completion_tasks, list_tasks


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    data: str = "shipped",
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    split_seed: int = 0,
    test_fraction: float = 0.2,
) -> ClassificationTask:
    """Load a named task, or one's own data.

    A named task has its classes in their published order. Class ids of one's own data follow the sorted labels
    (numerically where all are integers); their names come from the column `<label_column>_name` where there is one.
    Texts such as "NA" or "007" stay as they are written.

    Args:
        name_or_path: A name (`list_tasks(shipped_only=False)`; it wins over a folder of that name: write `./mr` for the
            folder); or one CSV, TSV, JSONL (each plain or .gz) or parquet file, UTF-8, which is split here; or a folder
            with `train.*`, `test.*` and perhaps `validation.*` of these formats.
        data: Where the rows of a named task are: "shipped" for those in the package; "hub" for its data set on the hub
            or "hub:owner/name" for another of the same layout; or a folder, with train, test and perhaps validation
            files, or with the files that its authors or SentEval published.
        text_column: Column of the texts; of pairs the column of the first.
        text_pair_column: Column of the second texts, where a row is a pair.
        label_column: Column of the labels: strings, integers or booleans.
        split_seed: >= 0. Seed of the split of one file, or of a named task whose files bring no split. Rows whose
            texts differ only in case or white space stay on one side; both sides get every class. The split depends on
            the order of the rows.
        test_fraction: Share, in (0, 1), of the different texts that becomes the test set then.

    Raises:
        ConfigurationError: If the name is unknown or a setting is wrong or has nothing to act on.
        DataError: If the path is not there or the data cannot be had or used as they are.

    Example:
        >>> task = load_task("cr")
        >>> task.label_names, len(task.train), task.test[0].label
        (('negative', 'positive'), 1360, 1)
    """
    columns = Columns(text=text_column, label=label_column, pair=text_pair_column)
    splitting = {"split_seed": split_seed, "test_fraction": test_fraction}
    named = {"text_column": text_column, "text_pair_column": text_pair_column, "label_column": label_column}
    _check_settings(columns, split_seed, test_fraction)
    for record in TASKS:
        if str(record) == str(name_or_path):
            if data == "shipped" and record.split_sizes is not None:
                _check_unused(f"The shipped task '{record}' has fixed columns and splits", {**named, **splitting})
            _check_unused(f"The task '{record}' has fixed columns", named)
            task, was_split = load_named(record, data, split_seed=split_seed, test_fraction=test_fraction)
            if not was_split:
                _check_unused(f"The data of '{record}' from `{task.source}` bring their own splits", splitting)
            return task
    path = _existing_path(os.fspath(name_or_path))
    _check_unused(f"`{path}` is itself the data", {"data": data})
    if path.is_dir():
        _check_unused(f"The folder `{path}` brings its own splits", splitting)
        return load_folder(path, columns)
    return load_file(path, columns, split_seed=split_seed, test_fraction=test_fraction)


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if name.strip() and os.path.exists(path):  # Path.exists raises on a name that is too long
        return path
    if path.name != name or table_suffix(path) is not None:
        raise DataError(f"There is no file or folder `{name}` (looked from `{Path.cwd()}`).")
    shipped = [str(task) for task in list_tasks()]
    others = [str(task) for task in list_tasks(shipped_only=False) if str(task) not in shipped]
    written = [str(task) for task in list_completion_tasks()]
    raise ConfigurationError(
        f"No task named '{name}'.{did_you_mean(name, [*shipped, *others, *written])} Shipped tasks: "
        f"{', '.join(shipped)}; with `data=FOLDER` or `data=hub`: {', '.join(others)}; or give "
        f"a path to a CSV, JSONL or parquet file. With written answers: {', '.join(written)}, or a task file."
    )


def _check_settings(columns: Columns, split_seed: int, test_fraction: float) -> None:
    for (name, column), (other, same) in itertools.combinations(columns.settings().items(), 2):
        if column == same:
            raise ConfigurationError(f"`{name}` and `{other}` must differ, got '{column}' for both.")
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
        raise ConfigurationError(f"`split_seed` must be an integer >= 0, got {split_seed!r}.")
    if not 0 < test_fraction < 1:
        raise ConfigurationError(f"`test_fraction` must be between 0 and 1, got {test_fraction!r}.")


def _check_unused(why: str, settings: dict[str, object]) -> None:
    defaults = load_task.__kwdefaults__ or {}
    for name, value in settings.items():
        if value != defaults[name]:
            raise ConfigurationError(f"{why}, so `{name}` has nothing to act on, got {value!r}: leave it out.")
