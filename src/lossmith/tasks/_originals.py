"""The files that the authors of the old benchmarks, and SentEval, published: one row a line, in four layouts."""

import codecs
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossmith.errors import DataError
from lossmith.tasks._fields import RawRow, RawSplits
from lossmith.tasks._tables import clear_read_errors

UNSPLIT = "all"
"""The split of rows whose files bring none."""

# Bytes of Windows-1252 that were read as Latin-1 are control characters; five of them stay, being undefined.
_C1_CONTROLS = {
    byte: bytes([byte]).decode("cp1252", errors="ignore")
    for byte in range(0x80, 0xA0)
    if bytes([byte]).decode("cp1252", errors="ignore")
}

_PARAPHRASE_HEADER = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]


@dataclass(frozen=True, kw_only=True)
class Original:
    """One published file and what a line of it means."""

    name: str
    """Name of the file."""
    split: str
    """Which rows it holds: train, validation, test, or `UNSPLIT`."""
    read_line: Callable[[str], dict[str, str] | None]
    """Fields of a line, or None where it is none of this layout."""
    expected: str
    """The layout, as the end of the sentence "line 3 must be ..."."""
    header: str = ""
    """What the first line says where it is no row."""


def class_files(**files: str) -> tuple[Original, ...]:
    """One file per class, one sentence a line, no split: class name -> name of the file."""

    def reader(label_name: str) -> Callable[[str], dict[str, str]]:
        return lambda line: {"text": line, "label_name": label_name}

    return tuple(
        Original(name=name, split=UNSPLIT, read_line=reader(label_name), expected="a sentence")
        for label_name, name in files.items()
    )


def sentiment_files(**files: str) -> tuple[Original, ...]:
    """SST as SentEval has it, `text TAB label` a line: split -> name of the file."""
    return tuple(
        Original(name=name, split=split, read_line=_sentiment_line, expected="`sentence TAB 0 or 1`")
        for split, name in files.items()
    )


def question_files(**files: str) -> tuple[Original, ...]:
    """TREC, `DESC:manner How did ...` a line: split -> name of the file."""
    return tuple(
        Original(name=name, split=split, read_line=_question_line, expected="`COARSE:fine question`")
        for split, name in files.items()
    )


def paraphrase_files(**files: str) -> tuple[Original, ...]:
    """MRPC, five cells with TAB between them and quotes that mean nothing: split -> name of the file."""
    return tuple(
        Original(
            name=name,
            split=split,
            read_line=_paraphrase_line,
            expected=f"`{' TAB '.join(_PARAPHRASE_HEADER)}`, Quality being 0 or 1",
            header="\t".join(_PARAPHRASE_HEADER),
        )
        for split, name in files.items()
    )


def original_splits(folder: Path, originals: Sequence[Original]) -> RawSplits | None:
    """Rows of the published files in a folder, or None where it has none of them.

    Text that is not UTF-8 is read as Latin-1, Windows-1252 where that has control characters; white space around a
    line is dropped, and so are empty lines.

    Raises:
        DataError: If one of train, test or the classes is missing, a file cannot be read, or a line is malformed.
    """
    present = [original for original in originals if (folder / original.name).is_file()]
    if not present:
        return None
    needed = [original for original in originals if original.split != "validation"]
    missing = [f"`{original.name}`" for original in needed if original not in present]
    if missing:
        there = ", ".join(f"`{original.name}`" for original in present)
        raise DataError(f"`{folder}` must have {' and '.join(missing)} beside {there}, got none of that name.")
    splits: RawSplits = {}
    for original in present:
        splits.setdefault(original.split, []).extend(_read(folder / original.name, original))
    return splits


def _read(path: Path, original: Original) -> list[RawRow]:
    with clear_read_errors(path):
        text = _decode(path.read_bytes())
    rows = []
    # Not splitlines(): it also ends lines at control characters that Latin-1 has.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or (number == 1 and line.strip() == original.header):
            continue
        values = original.read_line(line.strip())
        if values is None:
            raise DataError(f"`{path}` line {number} must be {original.expected}, got {reprlib.repr(line.strip())}.")
        rows.append(RawRow(f"`{path}`", number, dict(values)))
    if not rows:
        raise DataError(f"`{path}` must hold at least one row, got none.")
    return rows


def _decode(content: bytes) -> str:
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.translate(_C1_CONTROLS)


def _sentiment_line(line: str) -> dict[str, str] | None:
    text, tab, label = line.rpartition("\t")
    return {"text": text.strip(), "label": label} if tab and text.strip() and label in ("0", "1") else None


def _question_line(line: str) -> dict[str, str] | None:
    fine, _, text = line.partition(" ")
    coarse, colon, kind = fine.partition(":")
    if not (coarse and colon and kind and text.strip()):
        return None
    return {"text": text.strip(), "label_name": coarse, "fine_name": fine}


def _paraphrase_line(line: str) -> dict[str, str] | None:
    cells = line.split("\t")
    if len(cells) != len(_PARAPHRASE_HEADER) or cells[0] not in ("0", "1") or not all(cell.strip() for cell in cells):
        return None
    quality, first, second, text_a, text_b = cells
    return {"id": f"{first}-{second}", "text_a": text_a.strip(), "text_b": text_b.strip(), "label": quality}
