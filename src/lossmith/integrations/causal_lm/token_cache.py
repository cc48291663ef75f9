"""Token rows on disk: parquet files under a fingerprint, in the layout that the released loader reads."""

import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmith._extras import require
from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.causal_lm.encoding import EncodedRow, EncodedSet, Texts
from lossmith.integrations.fingerprints import fingerprint_settings, fingerprint_template, fingerprint_tokenizer
from lossmith.integrations.models import cache_folder

LAYOUT = 1
"""Counts up when the same texts no longer give the same rows, or the files another form."""

KEY = b"lossmith"
"""Entry of a file's schema metadata: JSON with fingerprint, lengths, counts of what was cut, and padding token."""

ROWS_PER_GROUP = 4096
"""Rows that are padded at a time: 4096 rows of 1,024 tokens are 36 MiB."""


def fingerprint_tokens(tokenizer: Any, rows: Sequence[Texts], settings: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over all that token rows depend on.

    Args:
        tokenizer: Tokenizer of transformers; its vocabulary, rules, special tokens and chat template enter.
        rows: Prompt, question and target of each row.
        settings: What else decides: `max_length`, whether chat or as released, instruction, exemplars.
    """
    head = {
        "layout": LAYOUT,
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "template": fingerprint_template(tokenizer),
        "settings": fingerprint_settings(settings),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def cached(
    fingerprint: str,
    build: Callable[[], EncodedSet],
    *,
    max_length: int,
    pad_token_id: int,
    folder: Path | None = None,
) -> EncodedSet:
    """Token rows from disk, or built and kept there.

    Processes that build the same file at once each write a whole one and one of them stays.

    Args:
        fingerprint: Of `fingerprint_tokens`; the file is called after it.
        build: Makes the rows where there is no file.
        max_length: Tokens of a padded row.
        pad_token_id: Token that fills a row on its left.
        folder: Where the files are; `tokens` in the user's cache (`$LOSSMITH_CACHE`, else `~/.cache/lossmith`) where
            left out.

    Raises:
        ConfigurationError: If the file cannot be written, or the fingerprint is none.

    Warns:
        LossmithWarning: If a file is damaged or belongs to something else; it is made again.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
        raise ConfigurationError(f"`fingerprint` must be 8 to 64 digits in hex, got {fingerprint!r}.")
    path = (folder or cache_folder() / "tokens") / f"{fingerprint}.parquet"
    wanted = {"fingerprint": fingerprint, "max_length": max_length, "pad_token_id": pad_token_id}
    if path.exists():
        try:
            return _read(path, wanted)
        except DataError as error:
            warnings.warn(f"{error} It is made again.", LossmithWarning, stacklevel=2)
    encoded = build()
    if encoded.max_length != max_length:
        raise ConfigurationError(f"`build` must give rows of `max_length={max_length}`, got {encoded.max_length}.")
    try:
        write_parquet(path, encoded, pad_token_id=pad_token_id, fingerprint=fingerprint)
    except OSError as error:
        raise ConfigurationError(
            f"Token rows cannot be saved in {path.parent} ({error.strerror or error}): set LOSSMITH_CACHE to a folder "
            f"with room."
        ) from error
    return encoded


def write_parquet(path: Path, encoded: EncodedSet, *, pad_token_id: int, fingerprint: str = "") -> None:
    """Write token rows, padded on the left to their maximum length; the file appears whole or not at all.

    The columns are `input_ids`, `attention_mask` and `labels_position_id` (a list of one: the place of the answer's
    first token in the padded row), as https://github.com/DarthReca/segmentation-losses-nlp reads them.

    Args:
        path: File to write; its folder is made where it is missing.
        encoded: The rows.
        pad_token_id: Token to fill with.
        fingerprint: Kept in the file's metadata, for `cached`.

    Raises:
        DataError: If a row is longer than the maximum length.
        OSError: If the file cannot be written.
    """
    parquet = require("pyarrow.parquet", extra="train", purpose="write parquet files")
    longest = max((len(row.input_ids) for row in encoded.rows), default=0)
    if longest > encoded.max_length:
        raise DataError(f"Rows must have at most {encoded.max_length} tokens, got one of {longest}.")
    about = {
        "layout": LAYOUT,
        "fingerprint": fingerprint,
        "max_length": encoded.max_length,
        "pad_token_id": pad_token_id,
        "cut_rows": encoded.cut_rows,
        "cut_tokens": encoded.cut_tokens,
        "dropped_rows": encoded.dropped_rows,
    }
    schema = _schema().with_metadata({KEY: json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with parquet.ParquetWriter(scratch, schema, write_page_checksum=True) as writer:
            for start in range(0, len(encoded.rows), ROWS_PER_GROUP):
                rows = encoded.rows[start : start + ROWS_PER_GROUP]
                writer.write_table(_table(rows, encoded.max_length, pad_token_id, schema))
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_parquet(path: Path) -> EncodedSet:
    """Token rows as `write_parquet` wrote them, without their padding.

    Raises:
        DataError: If the file is damaged or was not written by `write_parquet`.
    """
    return _read(path, {})


def _schema() -> Any:
    arrow = require("pyarrow", extra="train", purpose="write parquet files")
    columns = ("input_ids", arrow.int64()), ("attention_mask", arrow.int8()), ("labels_position_id", arrow.int64())
    return arrow.schema([(name, arrow.list_(kind)) for name, kind in columns])


def _table(rows: Sequence[EncodedRow], width: int, pad_token_id: int, schema: Any) -> Any:
    arrow = require("pyarrow", extra="train", purpose="write parquet files")
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int8)
    places = np.empty((len(rows), 1), dtype=np.int64)
    for number, row in enumerate(rows):
        first = width - len(row.input_ids)
        ids[number, first:] = row.input_ids
        mask[number, first:] = 1
        places[number] = row.answer_start + first
    lists = [
        arrow.ListArray.from_arrays(np.arange(len(rows) + 1, dtype=np.int32) * values.shape[1], values.ravel())
        for values in (ids, mask, places)
    ]
    return arrow.Table.from_arrays(lists, schema=schema)


def _read(path: Path, wanted: Mapping[str, Any]) -> EncodedSet:
    """The rows of a file whose metadata say what is wanted."""
    arrow = require("pyarrow", extra="train", purpose="read parquet files")
    parquet = require("pyarrow.parquet", extra="train", purpose="read parquet files")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
            if not isinstance(about, dict) or about.get("layout") != LAYOUT or file.schema_arrow != _schema():
                raise DataError(f"`{path}` holds no token rows of this version of lossmith.")
            for name, value in wanted.items():
                if about[name] != value:
                    raise DataError(f"`{path}` has {name} {about[name]!r}, expected {value!r}.")
            rows = tuple(row for group in file.iter_batches() for row in _rows(group, about["max_length"]))
            if len(rows) != file.metadata.num_rows:
                raise DataError(f"`{path}` must hold {file.metadata.num_rows} token rows, got {len(rows)}.")
            counts = about["cut_rows"], about["cut_tokens"], about["max_length"], about["dropped_rows"]
    except DataError:
        raise
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"`{path}` must be a parquet file of token rows, got one that cannot be read.") from error
    return EncodedSet(rows, *counts)


def _rows(group: Any, width: int) -> Iterator[EncodedRow]:
    ids, mask, places = (group.column(name).flatten().to_numpy() for name in group.schema.names)
    ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
    firsts = width - mask.sum(axis=1, dtype=np.int64)
    for row, first, place in zip(ids, firsts, places, strict=True):
        yield EncodedRow(row[first:].tolist(), int(place - first))
