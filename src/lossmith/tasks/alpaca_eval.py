"""AlpacaEval: 805 instructions with the answers of the two baselines; its data are not for commercial use.

They are therefore not shipped, and read from a folder: one with `test.jsonl` (`turns`, `category`, `output_<model>`),
or with the original files (`alpaca_eval.json`, `alpaca_eval_gpt4_baseline.json`, or any `model_outputs.json`), whose
rows have `instruction`, `output`, `generator` and `dataset`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields
from lossmith.tasks._sources import data_files, file_rows
from lossmith.tasks._tables import column_names

_OUTPUT = "output_"
_ORIGINAL = ("instruction", "output", "generator")
_ADVICE = (
    "give a folder with `test.jsonl` (`turns`, `category`, `output_<model>`) or with files of the original "
    "(`instruction`, `output`, `generator`), from https://github.com/tatsu-lab/alpaca_eval (CC BY-NC 4.0)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """An instruction, and what the baselines answered."""

    id: str
    """`alpaca_eval:` and its number, from 0."""
    category: str
    """The set that it comes from, such as oasst."""
    text: str
    """What is asked."""
    baselines: Mapping[str, str]
    """Answer by the name of the model, such as `gpt4_1106_preview`."""


def load_alpaca_eval(folder: str | os.PathLike[str]) -> tuple[Instruction, ...]:
    """Instructions with the answers of every model that the folder has, in file order.

    Args:
        folder: A folder in either layout, or one file of the original.

    Raises:
        DataError: If there is no such folder, it has neither layout, or its files do not have the same instructions.
    """
    path = Path(folder).expanduser()
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder `{path}` (looked from `{Path.cwd()}`): {_ADVICE}.")
    files = sorted([*data_files(path), *path.glob("*/model_outputs.json")]) if path.is_dir() else [path]
    for file in files:
        if "turns" in _columns(file):
            return tuple(_with_turns(Fields(row.where, row.row, "", row.values)) for row in file_rows(file))
    originals = [file for file in files if set(_ORIGINAL) <= set(_columns(file))]
    if not originals:
        there = ", ".join(file.name for file in files[:10]) or "no data file"
        raise DataError(f"`{path}` must have the instructions of AlpacaEval, got {there}: {_ADVICE}.")
    return _merged(originals)


def _with_turns(fields: Fields) -> Instruction:
    turns = fields.texts("turns")
    if len(turns) != 1:
        raise DataError(f"{fields} must have one instruction in field `turns`, got {len(turns)}.")
    outputs = [name for name in fields.values if name.startswith(_OUTPUT) and fields.has(name)]
    return Instruction(
        id=fields.text("id"),
        category=fields.text("category"),
        text=turns[0],
        baselines=MappingProxyType({name.removeprefix(_OUTPUT): _answer(fields, name) for name in outputs}),
    )


def _merged(files: Sequence[Path]) -> tuple[Instruction, ...]:
    answers: dict[str, dict[str, str]] = {}
    categories: dict[str, str] = {}
    for file in files:
        rows = [Fields(raw.where, raw.row, "", raw.values) for raw in file_rows(file)]
        texts = [row.text("instruction") for row in rows]
        if answers and set(texts) != set(answers):
            count = len(set(texts) ^ set(answers))
            raise DataError(f"`{file}` must have the instructions of `{files[0].name}`, got {count} that differ.")
        for text, row in zip(texts, rows, strict=True):
            answers.setdefault(text, {})[row.text("generator")] = _answer(row, "output")
            categories.setdefault(text, str(row.values.get("dataset") or ""))
    return tuple(
        Instruction(
            id=f"alpaca_eval:{number}", category=categories[text], text=text, baselines=MappingProxyType(answers[text])
        )
        for number, text in enumerate(answers)
    )


def _answer(fields: Fields, name: str) -> str:
    found: Any = fields.value(name)
    if not isinstance(found, str):
        raise DataError(f"{fields} must have text in field `{name}`, got {type(found).__name__}.")
    return found


def _columns(file: Path) -> tuple[str, ...]:
    try:
        return column_names(file)
    except DataError:
        return ()
