"""Where rows of preferences come from: a known name, a file, a folder or the hub; and their splits."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError, LossmithError
from lossmith.tasks._fields import RawSplits
from lossmith.tasks._hub import hub_splits
from lossmith.tasks._messages import with_messages
from lossmith.tasks._places import splits_from
from lossmith.tasks._shipped import PreferenceRecord
from lossmith.tasks._sources import data_files, file_rows, folder_splits, shipped_splits
from lossmith.tasks._splits import cut_by_key, cut_notice, split_rows, text_key
from lossmith.tasks._tables import DELIMITERS, column_names, table_suffix
from lossmith.tasks.preference import Pair, prompt_text
from lossmith.tasks.registry import PREFERENCE_TASKS
from lossmith.tasks.unpaired import Rated

HUB = "hub:"
"""What the name of a data set on the hub begins with."""

UNSPLIT = "file"
"""The one split of rows that bring none, until they are split here."""

DEFAULTS: dict[str, object] = {"data": "shipped", "test_fraction": 0.2, "split_seed": 0}
"""Settings of the loaders, where they are not given."""

Row = TypeVar("Row", Pair, Rated)


@dataclass(frozen=True, kw_only=True)
class PreferenceRows:
    """Rows as they came, and what is known of them."""

    name: str
    """Name of the task: a known one, or the stem of the file."""
    raw: RawSplits
    """Rows by split, or all under `UNSPLIT`."""
    source: str
    """Where they are from."""
    licence: str = "not stated (the user's own data)"
    """Their licence."""
    attribution: str = "not stated (the user's own data)"
    """Whom to cite."""
    notes: tuple[str, ...] = ()
    """Sentences about the splits."""

    def about(self) -> dict[str, str]:
        """What a task says of its origin, by the name of its field."""
        return {"source": self.source, "licence": self.licence, "attribution": self.attribution}


def find_rows(name_or_path: str | os.PathLike[str], settings: Mapping[str, Any]) -> PreferenceRows:
    """Rows of a known name, "hub:owner/name", a file or a folder.

    Args:
        name_or_path: Which of them.
        settings: A value for each of `DEFAULTS`.

    Raises:
        ConfigurationError: If the name is unknown, or a setting is wrong or has nothing to act on.
        DataError: If the data cannot be had or read.
    """
    _check_split(settings["test_fraction"], settings["split_seed"])
    name = os.fspath(name_or_path)
    record = named_record(name)
    if record is not None:
        return _named_rows(record, settings)
    _check_unused(f"`{name[:200]}` is itself the data", settings, "data")
    if name.startswith(HUB):
        hub = name.removeprefix(HUB)
        raw, source = hub_splits(_unnamed(hub), hub, needs_test=False)
        raw, notes = _with_test(raw, "The data set", settings)
        return PreferenceRows(name=hub.rsplit("/", 1)[-1], raw=raw, source=source, notes=notes)
    path, notes = _existing_path(name), ()
    if path.is_dir():
        raw = folder_splits(path, "`prompt`, `chosen` and `rejected`", needs_test=False)
        raw, notes = _with_test(raw, f"The folder `{path}`", settings)
    else:
        raw = {UNSPLIT: file_rows(path)}
    return PreferenceRows(name=_stem(path), raw=_unwritten(raw), source=str(path), notes=notes)


def named_record(name_or_path: str | os.PathLike[str]) -> PreferenceRecord | None:
    """The record of a known name."""
    return next((record for record in PREFERENCE_TASKS if record.name == os.fspath(name_or_path)), None)


def columns_of(name: str) -> tuple[str, ...]:
    """Columns of a file, or of the train file of a folder, without its rows; none where there is nothing to read."""
    try:
        path = Path(name).expanduser()
        if not name.strip() or not os.path.exists(path):
            return ()
        if path.is_dir():
            path = next((file for file in data_files(path) if "train" in file.name.lower()), path)
        return column_names(path)
    except (LossmithError, OSError, ValueError, RuntimeError):
        return ()


def complete_splits(
    splits: dict[str, tuple[Row, ...]], settings: Mapping[str, Any]
) -> tuple[dict[str, tuple[Row, ...]], tuple[str, ...]]:
    """Train, validation and test of rows that may bring no split or no validation, and a sentence on what was cut.

    Args:
        splits: Rows by split, or all under `UNSPLIT`.
        settings: `test_fraction`, the share in (0, 1) of the different prompts of `UNSPLIT` that becomes test, and
            `split_seed`, >= 0.

    Raises:
        DataError: If `UNSPLIT` has fewer than 2 different prompts.
    """
    if UNSPLIT in splits:
        splits = _split(splits[UNSPLIT], settings)
    train = splits["train"]
    kept, cut = ([], []) if splits.get("validation") else cut_by_key([prompt_key(row) for row in train])
    if not cut:
        return {"validation": (), **splits}, ()
    made = {"train": tuple(train[row] for row in kept), "validation": tuple(train[row] for row in cut)}
    return {**made, "test": splits["test"]}, (cut_notice(len(cut)),)


def prompt_key(row: Pair | Rated) -> str:
    """What the prompts of two rows share that count as the same: the text, but for case and white space."""
    return text_key(prompt_text(row.prompt))


def _split(rows: tuple[Row, ...], settings: Mapping[str, Any]) -> dict[str, tuple[Row, ...]]:
    keys = [prompt_key(row) for row in rows]
    if len(set(keys)) < 2:
        raise DataError(
            f"One file must have at least 2 different prompts to be split into train and test, got {len(set(keys))}: "
            "give a folder with train and test files."
        )
    fraction, seed = settings["test_fraction"], settings["split_seed"]
    train, test = split_rows(keys, [0] * len(keys), ("prompt",), seed=seed, test_fraction=fraction)
    return {"train": tuple(rows[row] for row in train), "test": tuple(rows[row] for row in test)}


def _named_rows(record: PreferenceRecord, settings: Mapping[str, Any]) -> PreferenceRows:
    notes: tuple[str, ...] = ()
    data = settings["data"]
    if data == "shipped":
        if record.split_sizes is None:
            raise DataError(
                f"The rows of '{record}' are not shipped: load them with `data=hub`, or with `data=FOLDER`, a folder "
                f"with train, test and perhaps validation files, each row with {record.layout}."
            )
        raw, source = shipped_splits(record), record.source
        _check_unused(f"The data of '{record}' bring their own splits", settings, "test_fraction", "split_seed")
    elif data == "hub" and not record.hub:
        raise DataError(f"'{record}' is not on the hub in pairs: leave `data` out, its rows are shipped.")
    else:
        raw, source = splits_from(record, data, needs_test=False)
        raw, notes = _with_test(_unwritten(raw), f"The data set of '{record}'", settings)
    return PreferenceRows(
        name=record.name, raw=raw, source=source, licence=record.licence, attribution=record.citation, notes=notes
    )


def _with_test(raw: RawSplits, whose: str, settings: Mapping[str, Any]) -> tuple[RawSplits, tuple[str, ...]]:
    """Rows with a test: their own, else validation in its place, else train as rows to be split; and what to say of it.

    Raises:
        ConfigurationError: If a setting of the split has nothing to act on.
    """
    if not raw.get("test") and not raw.get("validation"):
        how = f"`test_fraction` {settings['test_fraction']:g} of the prompts, `split_seed` {settings['split_seed']}"
        return {UNSPLIT: raw["train"]}, (f"The test rows were cut from train ({how}): the data bring none.",)
    _check_unused(f"{whose} brings its own splits", settings, "test_fraction", "split_seed")
    if raw.get("test"):
        return raw, ()
    count = len(raw["validation"])
    notice = f"The {count:,} test rows are the data's validation rows: they bring no test rows."
    return {"train": raw["train"], "test": raw["validation"]}, (notice,)


def _unwritten(raw: RawSplits) -> RawSplits:
    """Rows of CSV files with the messages that their cells hold in writing."""

    def is_delimited(where: str) -> bool:
        return table_suffix(Path(where.strip("`"))) in DELIMITERS

    return {
        split: [row._replace(values=with_messages(row.values)) if is_delimited(row.where) else row for row in rows]
        for split, rows in raw.items()
    }


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if name.strip() and os.path.exists(path):  # Path.exists raises on a name that is too long
        return path
    if path.name != name or table_suffix(path) is not None:
        raise DataError(f"There is no file or folder `{name[:200]}` (looked from `{Path.cwd()}`).")
    known = [str(record) for record in PREFERENCE_TASKS]
    raise ConfigurationError(
        f"No preference task named '{name[:80]}'.{did_you_mean(name, known)} Known: {', '.join(known)}; or give a path "
        "to a file or folder with `chosen` and `rejected`, or 'hub:owner/name'."
    )


def _stem(path: Path) -> str:
    return path.resolve().name.removesuffix(".gz").split(".", 1)[0] or path.name


def _unnamed(hub: str) -> PreferenceRecord:
    return PreferenceRecord(
        name=hub,
        title="",
        citation="",
        licence="",
        source=hub,
        splits="published",
        split_sizes=None,
        hub=hub,
        hidden_test=True,
        instead="the path of a folder",
        layout="`prompt`, `chosen` and `rejected`",
    )


def _check_split(test_fraction: object, split_seed: object) -> None:
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
        raise ConfigurationError(f"`split_seed` must be an integer >= 0, got {split_seed!r}.")
    if isinstance(test_fraction, bool) or not isinstance(test_fraction, int | float) or not 0 < test_fraction < 1:
        raise ConfigurationError(f"`test_fraction` must be between 0 and 1, got {test_fraction!r}.")


def _check_unused(why: str, settings: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if settings[name] != DEFAULTS[name]:
            raise ConfigurationError(f"{why}, so `{name}` has nothing to act on, got {settings[name]!r}: leave it out.")
