"""Read columns of one CSV, TSV, JSON-lines or parquet file exactly as they are written: no type is ever guessed."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith._extras import require
from lossmith.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
FORMATS = "CSV, TSV, JSONL (each plain or .gz) or parquet"


@dataclass(frozen=True)
class Table:
    """Some columns of one file."""

    column_names: tuple[str, ...]
    """All columns that the file has."""
    columns: dict[str, list[Any]]
    """The wanted ones among them; one value per row, None where a JSON object or parquet row has none."""
    num_rows: int
    """Rows under the header."""


def table_suffix(path: Path) -> str | None:
    """The suffix that decides how a file is read, without `.gz`, or None for a format that is not read here.

    Example:
        >>> table_suffix(Path("train.JSONL.gz")), table_suffix(Path("README.md"))
        ('.jsonl', None)
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return ".parquet"
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in DELIMITERS or suffix in JSON_SUFFIXES else None


def read_table(path: Path, wanted: Collection[str] | None = None) -> Table:
    """Read the `wanted` columns of a file, or all of them; those that it does not have are left out.

    CSV and TSV cells stay strings ("NA", "1e5" and "007" included). TSV is quoted like CSV. A `.json` file may hold
    JSON lines or one array of objects.

    Raises:
        DataError: If the format is unknown, the file cannot be read, is not UTF-8, is malformed (with the line), has a
            wanted column twice, or has no row.
    """
    suffix = table_suffix(path)
    if suffix is None:
        raise DataError(f"`{path}` must be {FORMATS}, got a file of another kind: save it as one of these.")
    with clear_read_errors(path):
        if suffix == ".parquet":
            table = _read_parquet(path, wanted)
        elif suffix in DELIMITERS:
            table = _read_delimited(path, _decode(path, _unpack(path)), wanted, DELIMITERS[suffix])
        else:
            table = _read_json(path, _decode(path, _unpack(path)), wanted)
    if table.num_rows == 0:
        raise DataError(f"`{path}` must hold at least one row, got none.")
    return table


def column_names(path: Path) -> tuple[str, ...]:
    """Columns of a file from its header, schema or first JSON object; the rest of the file is not read.

    Raises:
        DataError: If the format is unknown, or the beginning of the file cannot be read.
    """
    suffix = table_suffix(path)
    if suffix is None:
        raise DataError(f"`{path}` must be {FORMATS}, got a file of another kind: save it as one of these.")
    with clear_read_errors(path):
        if suffix == ".parquet":
            return _parquet_names(path)
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rb") as file:
            if suffix in DELIMITERS:
                reader = csv.reader(
                    io.TextIOWrapper(file, "utf-8-sig", "replace", newline=""), delimiter=DELIMITERS[suffix]
                )
                return _first(path, lambda: next(cells for cells in reader if cells))
            text = io.TextIOWrapper(file, "utf-8-sig", "replace", newline="\n")
            return _first(path, lambda: _first_object(text))


def _first(path: Path, read: Callable[[], Collection[str]]) -> tuple[str, ...]:
    try:
        return tuple(read())
    except (StopIteration, ValueError, RecursionError, csv.Error, AttributeError) as error:
        raise DataError(f"`{path}` must begin with a header or a JSON object: {error or 'it is empty'}.") from error


def _first_object(text: io.TextIOWrapper) -> Collection[str]:
    """Keys of the first object of JSON lines, or of an array, of which no more is read than it takes."""
    line = next(line for line in text if line.strip())
    if not line.lstrip().startswith("["):
        return json.loads(line).keys()
    found = line.lstrip()[1:]
    while True:
        try:
            return json.JSONDecoder().raw_decode(found.lstrip())[0].keys()
        except json.JSONDecodeError:
            more = text.read(max(4096, len(found)))
            if not more:
                raise
            found += more


def _parquet_names(path: Path) -> tuple[str, ...]:
    parquet = require("pyarrow.parquet", extra="train", purpose="read parquet files")
    arrow = require("pyarrow", extra="train", purpose="read parquet files")
    try:
        return tuple(parquet.read_schema(path).names)
    except arrow.ArrowException as error:
        raise DataError(f"`{path}` must be a parquet file, got one that cannot be read ({error}).") from error


@contextmanager
def clear_read_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system or gzip says about `path` into a `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"`{path}` must be a complete gzip file, got a broken one ({error}).") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}.") from error


def _unpack(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.name.lower().endswith(".gz") else content


def _decode(path: Path, content: bytes) -> str:
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise DataError(f"`{path}` must hold rows, got an empty file.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"`{path}` must be UTF-8, got byte 0x{content[error.start]:02x} in line {line}: save it as UTF-8."
        ) from error


def _read_delimited(path: Path, text: str, wanted: Collection[str] | None, delimiter: str) -> Table:
    # The csv module and not pandas: pandas guesses an index where rows are one cell longer than the header, and fills
    # rows that are too short.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        with _long_cells():
            header = next(cells for cells in reader if cells)
            kept = _positions(path, header, wanted)
            columns: dict[str, list[Any]] = {name: [] for name in kept}
            num_rows = 0
            line = reader.line_num + 1
            for cells in reader:
                num_rows += bool(cells)
                if cells and len(cells) != len(header):
                    raise DataError(
                        f"`{path}` line {line} must have {len(header)} cells like the header, got {len(cells)}: "
                        f"put double quotes around a cell that holds {delimiter!r}."
                    )
                for name, position in kept.items() if cells else ():
                    columns[name].append(cells[position])
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"`{path}` is malformed in line {line}: {error}. Double every quote inside a quoted cell."
        ) from error
    return Table(tuple(header), columns, num_rows)


@contextmanager
def _long_cells() -> Iterator[None]:
    # csv refuses cells of more than 131,072 characters unless told otherwise; whole documents are longer.
    previous = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _positions(path: Path, names: list[str], wanted: Collection[str] | None) -> dict[str, int]:
    wanted = dict.fromkeys(names) if wanted is None else wanted
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f"`{path}` must have one column '{name}', got {names.count(name)} of that name.")
    return {name: names.index(name) for name in wanted if name in names}


def _read_json(path: Path, text: str, wanted: Collection[str] | None) -> Table:
    column_names: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    for place, record in _json_values(path, text):
        if not isinstance(record, dict):
            raise DataError(f"`{path}` {place} must be a JSON object, got {type(record).__name__}.")
        records.append(record)
        column_names.update(dict.fromkeys(record))
    kept = column_names if wanted is None else [name for name in wanted if name in column_names]
    columns = {name: [record.get(name) for record in records] for name in kept}
    return Table(tuple(column_names), columns, len(records))


def _json_values(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        for row, record in enumerate(_parse_json(path, text, first_line=1), start=1):
            yield f"row {row}", record
        return
    # Not splitlines(): U+2028 and its like are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(path, line, first_line=number)


def _parse_json(path: Path, text: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"`{path}` is not valid JSON in line {line}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{path}` has JSON from line {first_line} that cannot be read: {error}.") from error


def _read_parquet(path: Path, wanted: Collection[str] | None) -> Table:
    parquet = require("pyarrow.parquet", extra="train", purpose="read parquet files")
    arrow = require("pyarrow", extra="train", purpose="read parquet files")
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            kept = list(_positions(path, names, wanted))
            table = file.read(columns=kept)
            num_rows = file.metadata.num_rows
    except arrow.ArrowException as error:
        raise DataError(f"`{path}` must be a parquet file, got one that cannot be read ({error}).") from error
    return Table(tuple(names), {name: table.column(name).to_pylist() for name in kept}, num_rows)
