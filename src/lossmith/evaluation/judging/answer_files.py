"""Files of answers: ours, FastChat's and AlpacaEval's, one answer or one of each turn per question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._tables import read_table


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """What a model answered to one question."""

    id: str
    """Name of the question; rows of two files with one id are compared."""
    answers: tuple[str, ...]
    """One answer per turn."""
    turns: tuple[str, ...] = ()
    """What the user said in each turn; empty where the file does not say."""
    category: str = ""
    """Kind of the question, where the file says it."""


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """The answers of one model."""

    model: str
    """Whose they are."""
    rows: dict[str, AnswerRow] = field(repr=False)
    """By id, in file order."""


def read_answers(path: Path, *, model: str | None = None) -> AnswerSet:
    """Read a file of answers.

    Each row is `{"id", "answers": [...]}` with `turns`, `category` and `model` where known, as `lossmith answer`
    writes it; or FastChat's `{"question_id", "model_id", "choices": [{"turns": [...]}]}`; or AlpacaEval's
    `{"instruction", "output", "generator"}`, whose ids are `alpaca_eval:` and the row numbers from 0.

    Args:
        path: JSON lines (plain or .gz) or one JSON array.
        model: Name of the model; None takes the one in the file, else the name of the file.

    Raises:
        DataError: If a row is none of these, an id comes twice, or the file holds several models.
    """
    table = read_table(path)
    names = list(table.columns)
    rows: dict[str, AnswerRow] = {}
    models: set[str] = set()
    for number, cells in enumerate(zip(*table.columns.values(), strict=True)):
        values = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
        try:
            row, named = _row(values, number)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"`{path}` row {number + 1} must hold `id` and `answers` (a list of texts), as `lossmith answer` "
                f"writes them, got the fields {', '.join(sorted(values)) or 'none'}."
            ) from error
        if row.id in rows:
            raise DataError(f"`{path}` must have one row per question, got '{row.id}' twice.")
        rows[row.id] = row
        models.add(named)
    if model is None and len(models - {""}) > 1:
        shown = ", ".join(sorted(models)[:3])
        raise DataError(f"`{path}` must hold the answers of one model, got several ({shown}): split the file.")
    return AnswerSet(model=model or next(iter(models - {""}), "") or path.name.split(".")[0], rows=rows)


def matched(answers: AnswerSet, baseline: AnswerSet) -> list[tuple[AnswerRow, AnswerRow]]:
    """Rows of both sets with one id.

    Raises:
        DataError: If there are none, a question differs, or no file says what was asked.
    """
    shared = [(row, baseline.rows[name]) for name, row in answers.rows.items() if name in baseline.rows]
    if not shared:
        some = next(iter(answers.rows)), next(iter(baseline.rows))
        raise DataError(
            f"The answers of '{answers.model}' and '{baseline.model}' must share ids, got none in common (such as "
            f"'{some[0]}' and '{some[1]}')."
        )
    for ours, theirs in shared:
        if ours.turns and theirs.turns and ours.turns != theirs.turns:
            raise DataError(f"Both files must ask the same, got different questions under id '{ours.id}'.")
        if not (ours.turns or theirs.turns):
            raise DataError(f"Question '{ours.id}' has no `turns` in either file: say what was asked.")
        if len(ours.answers) != len(theirs.answers):
            raise DataError(f"Question '{ours.id}' must have as many answers in both files.")
    return shared


def request_text(turns: Sequence[str], answers: Sequence[str]) -> tuple[str, str]:
    """What was asked, and the answer, as two texts; further turns are told apart by who speaks."""
    if len(turns) < 2:
        return turns[0] if turns else "", answers[0]
    return "\n\n".join(f"Turn {n}: {turn}" for n, turn in enumerate(turns, 1)), "\n\n".join(
        f"Turn {n}: {answer}" for n, answer in enumerate(answers, 1)
    )


def _row(values: Mapping[str, Any], number: int) -> tuple[AnswerRow, str]:
    if "choices" in values:
        identity, answers, model = values["question_id"], values["choices"][0]["turns"], values.get("model_id", "")
    elif "output" in values:
        identity, answers, model = (
            values.get("id", f"alpaca_eval:{number}"),
            [values["output"]],
            values.get("generator", ""),
        )
        values = {"turns": [values["instruction"]], "category": values.get("dataset", ""), **values}
    else:
        identity, answers, model = values["id"], values["answers"], values.get("model", "")
    turns = values.get("turns", [])
    if isinstance(answers, str) or isinstance(turns, str) or isinstance(identity, bool | float | list | dict):
        raise TypeError("no list of texts")
    row = AnswerRow(
        id=str(identity),
        answers=tuple(map(_text, answers)),
        turns=tuple(map(_text, turns)),
        category=_text(values.get("category", "")),
    )
    if not row.answers:
        raise ValueError("no answer")
    return row, _text(model)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    # JSON may hold half a character, which no request can carry.
    return value.encode("utf-8", "replace").decode("utf-8")
