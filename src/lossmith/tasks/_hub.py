"""Rows of a data set on the hub, without its scripts; a hub that does not answer is heard of within seconds."""

from typing import Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.tasks._fields import RawRow, RawSplits
from lossmith.tasks._shipped import Record

ASK_SECONDS = 15
"""How long the hub may take to say that a data set is there."""


def hub_splits(record: Record, name: str, *, needs_test: bool = True) -> tuple[RawSplits, str]:
    """Rows of the data set `name`, and where exactly they are from.

    The hub is asked once, briefly, whether it has the data set, before its client begins to retry. With
    `HF_HUB_OFFLINE=1` it is not asked and the client's own cache is used. Without `needs_test` train may stand alone.

    Raises:
        DataError: If the hub cannot be reached or has no such data set; the message says how to use local files.
        MissingExtraError: If `datasets` is not installed.
    """
    hub = require("huggingface_hub", extra="train", purpose="load data from the hub")
    datasets = require("datasets", extra="train", purpose="load data from the hub")
    own = name == record.hub
    revision = record.hub_revision if own else None
    try:
        commit = None
        if not hub.constants.HF_HUB_OFFLINE:
            commit = hub.HfApi().dataset_info(name, revision=revision, timeout=ASK_SECONDS).sha
        configs = [] if own or record.hub_config is None else datasets.get_dataset_config_names(name)
        config = record.hub_config if own or record.hub_config in configs else None
        loaded = datasets.load_dataset(name, config, revision=revision)
    except hub.errors.RepositoryNotFoundError as error:
        raise DataError(_instead(record, f"The hub has no public data set `{name}`")) from error
    except Exception as error:  # the clients let their transports' own errors through
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}" if str(error).strip() else repr(error)
        )
        raise DataError(_instead(record, f"`{name}` cannot be had from the hub ({reason})")) from error
    called = {there: split for split, there in getattr(record, "split_names", ())}
    splits = {called.get(str(split), str(split)): _rows(name, str(split), rows) for split, rows in loaded.items()}
    kept: RawSplits = {split: rows for split, rows in splits.items() if split in ("train", "validation", "test")}
    for split in ("train", "test") if needs_test else ("train",):
        if not kept.get(split) and not (split == "test" and record.hidden_test and kept.get("validation")):
            raise DataError(f"`{name}` on the hub must have rows in `{split}`, got {', '.join(splits) or 'no split'}.")
    return kept, f"https://huggingface.co/datasets/{name}" + (f", commit {commit}" if commit else "")


def _rows(name: str, split: str, rows: Any) -> list[RawRow]:
    classes = {
        field: feature.names
        for field, feature in (getattr(rows, "features", None) or {}).items()
        if isinstance(getattr(feature, "names", None), list)
    }
    return [
        RawRow(f"`{name}` {split}", number, _with_class_names(dict(row), classes))
        for number, row in enumerate(rows, start=1)
    ]


def _with_class_names(values: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    """A row with `<field>_name` beside each class id that the data set names: publishers number classes differently."""
    for field, names in classes.items():
        if isinstance(values.get(field), int) and 0 <= values[field] < len(names):
            values.setdefault(f"{field}_name", names[values[field]])
    return values


def _instead(record: Record, problem: str) -> str:
    instead = getattr(record, "instead", "`data=FOLDER`, a folder")
    return (
        f"{problem}: give {instead} with train and test files (perhaps validation; .jsonl, .json, .csv "
        f"or .parquet, plain or .gz), each row with {record.layout}."
    )
