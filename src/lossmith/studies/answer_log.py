"""Finished answers on disk, line by line, so that an inference that was stopped goes on where it was."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossmith.errors import EvidenceError
from lossmith.evidence.folders import cannot_write, write_atomically


class AnswerLog:
    """A JSONL file with one line per model and problem.

    A last line that was not finished is dropped.

    Args:
        path: The file; made with the first line.

    Raises:
        EvidenceError: If another line cannot be read, or the file not be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                self._found[entry["model"], entry["row"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise EvidenceError(
                    f"Line {number} of {path} is no answer of `lossmith baseline`: remove the file, or choose another "
                    f"--out."
                ) from error
        if lines[-1]:
            write_atomically(path, "".join(f"{line}\n" for line in lines[:-1]))

    def has(self, model: str, rows: Sequence[int]) -> bool:
        """Whether all of these problems are there."""
        return all((model, row) in self._found for row in rows)

    def of(self, model: str, row: int) -> dict[str, Any]:
        """What was noted of a problem."""
        return self._found[model, row]

    def add(self, model: str, entries: Mapping[int, Mapping[str, Any]]) -> None:
        """Note problems that are finished, and be sure that they are on disk.

        Args:
            model: Whose they are.
            entries: By the number of the problem.
        """
        lines = [{"model": model, "row": row, **entry} for row, entry in entries.items()]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            with self._path.open("ab") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._found |= {(model, row): dict(entry) for row, entry in entries.items()}
