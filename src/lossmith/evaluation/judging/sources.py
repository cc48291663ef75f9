"""What the commands name: questions to answer, answers to judge, difficulties of instructions."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmith.errors import DataError
from lossmith.evaluation.judging.answer_files import AnswerRow, AnswerSet, read_answers
from lossmith.evaluation.judging.answering import Asked
from lossmith.evaluation.judging.calls import digest
from lossmith.evaluation.judging.length_control import GamedRows
from lossmith.tasks._tables import Table, read_table
from lossmith.tasks.alpaca_eval import load_alpaca_eval
from lossmith.tasks.mt_bench import load_mt_bench
from lossmith.tasks.preference import Pair, chat, prompt_text
from lossmith.tasks.preference_loading import load_preference_task

_SHOWN_DIGITS = 16

ALPACA_EVAL = "alpaca_eval:"
ALPACA_EVAL_BASELINE = "gpt4_1106_preview"
"""The baseline of AlpacaEval 2."""
PAIRS, TLDR = "pairs:", "tldr:"
"""Test prompts of a set of preferences, `pairs:TASK`; of the summaries of TL;DR, `tldr:FOLDER` or `tldr:hub`."""
DIFFICULTIES, GAMED = "instruction_difficulty.csv", "df_gamed.csv"
"""AlpacaEval's files for the length-controlled win rate, which may lie in the folder of its instructions."""


def questions_from(name: str) -> list[Asked]:
    """Questions by name: `mt_bench`, `alpaca_eval:FOLDER`, `pairs:TASK`, `tldr:FOLDER`, or a file.

    A file has one row per question with `turns` (a list of texts) or `prompt` (a text); `id`, `category` where known.

    Raises:
        DataError: If there are none, or an id comes twice.
        ConfigurationError: If there is no such set of pairs.
    """
    if name == "mt_bench":
        return [Asked(id=one.id, turns=tuple(one.turns), category=one.category) for one in load_mt_bench()]
    if name.startswith(ALPACA_EVAL):
        rows = load_alpaca_eval(Path(name.removeprefix(ALPACA_EVAL)).expanduser())
        return [Asked(id=row.id, turns=(row.text,), category=row.category) for row in rows]
    if name.startswith((PAIRS, TLDR)):
        return [Asked(id=pair.id, turns=(_question_of(pair),), category="") for pair in _asked_pairs(name)]
    path = Path(name).expanduser()
    table = read_table(path)
    questions = [_question(path, table, row) for row in range(table.num_rows)]
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise DataError(f"`{path}` must have one row per question, got '{twice}' twice.")
    return questions


def answers_from(name: str) -> AnswerSet:
    """Answers by name: a file, or those of a set.

    Sets are `alpaca_eval:FOLDER` for AlpacaEval 2's baseline, with `#MODEL` for another; `pairs:TASK` and `tldr:FOLDER`
    for the chosen answers.

    Raises:
        DataError: If there are none.
        ConfigurationError: If there is no such set of pairs.
    """
    if name.startswith((PAIRS, TLDR)):
        rows = {
            pair.id: AnswerRow(id=pair.id, answers=(pair.chosen.strip(),), turns=(_question_of(pair),))
            for pair in _asked_pairs(name)
        }
        return AnswerSet(model=f"chosen answers of {name}", rows=rows)
    if not name.startswith(ALPACA_EVAL):
        return read_answers(Path(name).expanduser())
    folder, _, model = name.removeprefix(ALPACA_EVAL).partition("#")
    wanted = model or ALPACA_EVAL_BASELINE
    rows = load_alpaca_eval(Path(folder).expanduser())
    lacking = next((row for row in rows if wanted not in row.baselines), None)
    if lacking is not None:
        there = ", ".join(lacking.baselines) or "none"
        raise DataError(f"`{folder}` must have the answers of '{wanted}', got those of {there}: say which with #MODEL.")
    return AnswerSet(
        model=wanted,
        rows={
            row.id: AnswerRow(id=row.id, answers=(row.baselines[wanted],), turns=(row.text,), category=row.category)
            for row in rows
        },
    )


def _asked_pairs(name: str) -> list[Pair]:
    """The first test pair of each prompt."""
    kind, _, rest = name.partition(":")
    if kind + ":" == TLDR:
        task = load_preference_task("tldr", data=rest if rest == "hub" else str(Path(rest).expanduser()))
    else:
        task = load_preference_task(rest)
    first: dict[str, Pair] = {}
    for pair in task.test:
        first.setdefault(prompt_text(pair.prompt), pair)
    return list(first.values())


def _question_of(pair: Pair) -> str:
    """What the user says; a longer chat as one text."""
    turns = chat(pair.prompt)
    return turns[0].content if len(turns) == 1 and turns[0].role == "user" else prompt_text(pair.prompt)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a command judges, read and checked."""

    answers: AnswerSet
    """Of the model."""
    baseline: AnswerSet | None
    """Of the one to compare with."""
    difficulties: dict[str, float] | None
    """AlpacaEval's difficulties of instructions."""
    gamed: GamedRows | None
    """AlpacaEval's rows of gamed baselines."""
    notices: tuple[str, ...]
    """What was read without being named."""

    def fingerprints(self) -> dict[str, str]:
        """Of the contents of all files that were read, by what they hold."""
        found: dict[str, Any] = {
            f"content of the {name}": {"model": own.model, "rows": [asdict(row) for row in own.rows.values()]}
            for name, own in (("answers", self.answers), ("baseline", self.baseline))
            if own is not None
        }
        if self.difficulties is not None:
            found["content of the difficulties"] = self.difficulties
        if self.gamed is not None:
            found["content of the gamed rows"] = {name: own.tolist() for name, own in vars(self.gamed).items()}
        return {name: digest(values)[:_SHOWN_DIGITS] for name, values in found.items()}


def material_from(
    answers: str, baseline: str | None, *, difficulties: Path | None, gamed: Path | None, beside_baseline: bool
) -> Material:
    """Read what a command names.

    Args:
        answers: As `answers_from` takes them.
        baseline: The same, where there is one.
        difficulties: AlpacaEval's `instruction_difficulty.csv`.
        gamed: AlpacaEval's `df_gamed.csv`.
        beside_baseline: Whether the two are taken from the folder of `alpaca_eval:FOLDER` where they lie there and the
            difficulties are not named.

    Raises:
        DataError: If a file is missing or holds something else.
    """
    paths = {DIFFICULTIES: difficulties, GAMED: gamed}
    if beside_baseline and difficulties is None and beside(baseline, DIFFICULTIES) is not None:
        # Gamed rows are told apart by difficulties: the two are taken together.
        paths = {file: path or beside(baseline, file) for file, path in paths.items()}
    unasked = [path for path in paths.values() if path is not None and path not in (difficulties, gamed)]
    return Material(
        answers=answers_from(answers),
        baseline=None if baseline is None else answers_from(baseline),
        difficulties=(path := paths[DIFFICULTIES]) and read_difficulties(path.expanduser()),
        gamed=(path := paths[GAMED]) and read_gamed(path.expanduser()),
        notices=tuple(f"read {path}, which lies beside the instructions" for path in unasked),
    )


def beside(name: str | None, file: str) -> Path | None:
    """A file of AlpacaEval in the folder that `alpaca_eval:FOLDER` names, where it is there."""
    if name is None or not name.startswith(ALPACA_EVAL):
        return None
    path = Path(name.removeprefix(ALPACA_EVAL).partition("#")[0]).expanduser() / file
    return path if path.is_file() else None


def read_difficulties(path: Path) -> dict[str, float]:
    """Instruction difficulties by id: AlpacaEval's `instruction_difficulty.csv`, or any table with that column.

    The id stands in column `id` or `index`, else in the first one.

    Raises:
        DataError: If a column is missing or a value is no number.
    """
    table = read_table(path)
    if "instruction_difficulty" not in table.columns or len(table.column_names) < 2:
        raise DataError(
            f"`{path}` must have the columns `id` and `instruction_difficulty`, got {', '.join(table.column_names)}."
        )
    name = next((known for known in ("id", "index") if known in table.columns), table.column_names[0])
    values = _numbers(path, table, "instruction_difficulty")
    return {str(key): value for key, value in zip(table.columns[name], values, strict=True)}


def read_gamed(path: Path) -> GamedRows:
    """AlpacaEval's rows of gamed baselines, `df_gamed.csv`.

    Raises:
        DataError: If a column is missing, a value is no number, or a preference lies outside [0, 1].
    """
    table = read_table(path)
    names = ("preference", "std_delta_len", "instruction_difficulty")
    for name in names:
        if name not in table.columns:
            raise DataError(f"`{path}` must have a column `{name}`, got {', '.join(table.column_names)}.")
    preferences, lengths, difficulties = (np.array(_numbers(path, table, name)) for name in names)
    if ((preferences < 0) | (preferences > 1)).any():
        raise DataError(f"`{path}` must have preferences in [0, 1].")
    return GamedRows(preferences=preferences, lengths=lengths, difficulties=difficulties)


def _numbers(path: Path, table: Table, name: str) -> list[float]:
    found = []
    for row, cell in enumerate(table.columns[name], start=1):
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"`{path}` row {row} must have a number in `{name}`, got {cell!r}.")
        found.append(value)
    return found


def _question(path: Path, table: Table, row: int) -> Asked:
    values = {name: column[row] for name, column in table.columns.items()}
    turns: Any = values.get("turns") if values.get("turns") is not None else [values.get("prompt")]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise DataError(
            f"`{path}` row {row + 1} must have `turns` (a list of texts) or `prompt` (a text), got the fields "
            f"{', '.join(name for name, value in values.items() if value is not None) or 'none'}."
        )
    name = values.get("id")
    category = values.get("category")
    return Asked(
        id=str(row if name is None else name),
        turns=tuple(turns),
        category=category if isinstance(category, str) else "",
    )
