r"""One's own task for a causal language model: a YAML file with templates and data, and no code.

    kind: math                                  # math, choice or text
    prompt: "Question: {question}\nAnswer: "    # fields of the data in braces, put in literally
    target: "{steps} #### {answer}"
    data: rows.jsonl                            # or a folder, or {train: ..., validation: ..., test: ...}

Further keys: `name`, `question` (what a chat model is asked; default: the prompt without its frame), `answer` (the
final answer; default: what follows `####` for math, else the target), `instruction`; for a choice `choices` (a field
with a list, or a list of fields) and `label` (a field with the index, letter or text of the right one), which bring
`{options}` and `{letter}`; for one file `test_fraction` (0.2) and `split_seed` (0). Where the data bring no validation
rows, a tenth of train becomes validation, as of the known tasks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lossmith._checks import did_you_mean
from lossmith._extras import require
from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks._choices import right_option
from lossmith.tasks._fields import Fields, RawSplits
from lossmith.tasks._numbers import read_number, write_number
from lossmith.tasks._sources import file_rows, folder_splits, read_items
from lossmith.tasks._splits import cut_by_key, cut_notice, split_rows, text_key
from lossmith.tasks.completion import LETTERS, CompletionTask, Kind, Problem, letters
from lossmith.tasks.templates import (
    CHOICE_INSTRUCTION,
    MATH_INSTRUCTION,
    fill,
    options_block,
    placeholders,
    without_frame,
)

INSTRUCTIONS: dict[str, str] = {"math": MATH_INSTRUCTION, "choice": CHOICE_INSTRUCTION, "text": ""}
"""What a chat model is told where the task file has no `instruction`."""

_TEXTS = ("name", "kind", "prompt", "target", "question", "answer", "label", "instruction")
_KEYS = (*_TEXTS, "choices", "data", "test_fraction", "split_seed")
_MADE = ("options", "letter")
_NOT_STATED = "not stated (the user's own data)"


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A task file, checked."""

    path: Path
    """Where it is; data paths are relative to its folder."""
    name: str
    """Its `name`, else its stem."""
    kind: Kind
    """What an answer is."""
    prompt: str
    """Template of the prompt."""
    target: str
    """Template of what should follow."""
    question: str | None
    """Template of what a chat model is asked."""
    answer: str | None
    """Template of the final answer."""
    instruction: str
    """What a chat model is told first."""
    choices: str | tuple[str, ...] | None
    """Field with the list of options, or one field per option."""
    label: str | None
    """Field with the right option."""
    data: Path | dict[str, Path]
    """A folder, one file, or a file for each split."""
    test_fraction: float
    """Share, in (0, 1), of the different prompts of one file that becomes test."""
    split_seed: int
    """Seed of that split, >= 0."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the data that the templates read."""
        templates = (self.prompt, self.target, self.question or "", self.answer or "")
        made = _MADE if self.kind == "choice" else ()
        return tuple(dict.fromkeys(name for part in templates for name in placeholders(part) if name not in made))


def is_yaml(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a name ends like a YAML file."""
    return str(name_or_path).lower().endswith((".yaml", ".yml"))


def is_task_file(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a path is a YAML file that holds a task: a mapping with the key `prompt`."""
    if not is_yaml(name_or_path) or not os.path.isfile(name_or_path):
        return False
    try:
        return "prompt" in _read_yaml(Path(name_or_path))
    except (ConfigurationError, DataError):
        return False


def own_kind(path: Path) -> Kind:
    """What an answer of a task file is; its data are not read.

    Raises:
        ConfigurationError: If the file is no task file.
        DataError: If it cannot be read.
    """
    return read_task_file(path).kind


def load_own_task(path: Path) -> CompletionTask:
    """Load the task of a YAML file; the module's text lists its keys.

    One file is split here, and validation rows are cut from train where the data bring none (the task's `warnings` say
    so): prompts that differ only in case or white space stay on one side.

    Raises:
        ConfigurationError: If a key is unknown, missing, of a wrong type or has nothing to act on.
        DataError: If the data cannot be read, a row lacks a field, or the label of a choice fits two options.
    """
    task = read_task_file(path)
    splits, notes = _with_validation(*_load_splits(task))
    return CompletionTask(
        name=task.name,
        kind=task.kind,
        instruction=task.instruction,
        source=str(path),
        licence=_NOT_STATED,
        attribution=_NOT_STATED,
        warnings=notes,
        **splits,
    )


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task file, not its data.

    Raises:
        ConfigurationError: If a key is unknown, missing, of a wrong type or has nothing to act on.
        DataError: If it cannot be read.
    """
    found = _read_yaml(path)
    for key in found:
        if key not in _KEYS:
            raise ConfigurationError(
                f"`{path}` has an unknown key '{key}'.{did_you_mean(str(key), _KEYS)} Keys: {', '.join(_KEYS)}."
            )
    for key in _TEXTS:
        if found.get(key) is not None and not isinstance(found[key], str):
            raise ConfigurationError(f"`{path}`: `{key}` must be text, got {found[key]!r}: put it in quotes.")
    kind = _required(path, found, "kind")
    if kind not in get_args(Kind):
        raise ConfigurationError(f"`{path}`: `kind` must be math, choice or text, got '{kind}'.")
    _check_choice_keys(path, kind, found)
    choices = found.get("choices")
    data = _data_paths(path, found)
    return TaskFile(
        path=path,
        name=found.get("name") or path.stem,
        kind=kind,
        prompt=_required(path, found, "prompt"),
        target=found.get("target") or "{letter}" if kind == "choice" else _required(path, found, "target"),
        question=found.get("question"),
        answer=found.get("answer"),
        instruction=INSTRUCTIONS[kind] if found.get("instruction") is None else found["instruction"],
        choices=tuple(choices) if isinstance(choices, list) else choices,
        label=found.get("label"),
        data=data,
        **_split_settings(path, found, data),
    )


def _read_yaml(path: Path) -> dict[Any, Any]:
    yaml = require("yaml", extra="train", purpose="read task files")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` must be UTF-8: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigurationError(f"`{path}` is not valid YAML{where}: {problem}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"`{path}` must be a mapping with the keys of a task, got {type(found).__name__}.")
    return found


def _required(path: Path, found: Mapping[Any, Any], key: str) -> Any:
    if not found.get(key):
        raise ConfigurationError(f"`{path}` must have the key `{key}`; it has {', '.join(map(str, found)) or 'none'}.")
    return found[key]


def _check_choice_keys(path: Path, kind: str, found: Mapping[Any, Any]) -> None:
    if kind == "choice":
        names = _required(path, found, "choices")
        if not isinstance(names, str) and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise ConfigurationError(f"`{path}`: `choices` must be a field or a list of fields, got {names!r}.")
        _required(path, found, "label")
        if found.get("answer") is not None:
            raise ConfigurationError(f"`{path}`: the answer of a choice is its letter: leave `answer` out.")
        return
    for key in ("choices", "label"):
        if found.get(key) is not None:
            raise ConfigurationError(
                f"`{path}`: `{key}` acts on `kind: choice` only, got `kind: {kind}`: leave it out."
            )


def _data_paths(path: Path, found: Mapping[Any, Any]) -> Path | dict[str, Path]:
    data, base = _required(path, found, "data"), path.parent
    if isinstance(data, str):
        return base / Path(data).expanduser()
    if (
        not isinstance(data, dict)
        or not {"train", "test"} <= set(data) <= {"train", "validation", "test"}
        or not all(isinstance(name, str) for name in data.values())
    ):
        raise ConfigurationError(
            f"`{path}`: `data` must be a folder, a file, or files under `train`, `test` and perhaps `validation`, got "
            f"{data!r}."
        )
    return {split: base / Path(data[split]).expanduser() for split in ("train", "validation", "test") if split in data}


def _split_settings(path: Path, found: Mapping[Any, Any], data: Path | dict[str, Path]) -> dict[str, Any]:
    fraction, seed = found.get("test_fraction", 0.2), found.get("split_seed", 0)
    if isinstance(data, dict) or data.is_dir():
        for key in ("test_fraction", "split_seed"):
            if key in found:
                raise ConfigurationError(
                    f"`{path}`: `{key}` splits one file, but `data` brings its splits: leave it out."
                )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigurationError(f"`{path}`: `test_fraction` must be between 0 and 1, got {fraction!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"`{path}`: `split_seed` must be an integer >= 0, got {seed!r}.")
    return {"test_fraction": float(fraction), "split_seed": seed}


def _load_splits(task: TaskFile) -> tuple[dict[str, tuple[Problem, ...]], tuple[str, ...]]:
    if isinstance(task.data, Path) and not task.data.is_dir():
        return _split_file(task)
    if isinstance(task.data, Path):
        raw: RawSplits = folder_splits(task.data, f"the fields {', '.join(task.fields)}")
    else:
        raw = {split: file_rows(path) for split, path in task.data.items()}
    splits, notes = {}, ()
    for split, rows in raw.items():
        splits[split], found = read_items(split, rows, lambda fields: _problem(task, fields))
        notes = (*notes, *found)
    return splits, notes


def _split_file(task: TaskFile) -> tuple[dict[str, tuple[Problem, ...]], tuple[str, ...]]:
    assert isinstance(task.data, Path)
    problems, notes = read_items("row", file_rows(task.data), lambda fields: _problem(task, fields))
    keys = [text_key(problem.prompt) for problem in problems]
    if len(set(keys)) < 2:
        raise DataError(f"`{task.data}` must have at least 2 different prompts to be split into train and test.")
    train, test = split_rows(keys, [0] * len(keys), ("prompt",), seed=task.split_seed, test_fraction=task.test_fraction)
    return {"train": tuple(problems[row] for row in train), "test": tuple(problems[row] for row in test)}, notes


def _with_validation(
    splits: dict[str, tuple[Problem, ...]], notes: tuple[str, ...]
) -> tuple[dict[str, tuple[Problem, ...]], tuple[str, ...]]:
    train = splits["train"]
    kept, cut = cut_by_key([text_key(problem.prompt) for problem in train])
    if "validation" in splits or not cut:
        return splits, notes
    made = {"train": tuple(train[row] for row in kept), "validation": tuple(train[row] for row in cut)}
    return splits | made, (*notes, cut_notice(len(cut)))


def _problem(task: TaskFile, fields: Fields) -> Problem:
    values = {name: fields.text(name) for name in task.fields}
    options: tuple[str, ...] = ()
    label = None
    if task.kind == "choice":
        options, label, made = _choice(task, fields)
        values |= made
    prompt, target = fill(task.prompt, values), fill(task.target, values)
    answer = values["letter"] if label is not None else _answer(task, fields, values, target)
    question = without_frame(prompt) if task.question is None else fill(task.question, values)
    return Problem(
        id=fields.id, prompt=prompt, question=question, target=target, answer=answer, options=options, label=label
    )


def _choice(task: TaskFile, fields: Fields) -> tuple[tuple[str, ...], int, dict[str, str]]:
    assert task.choices is not None
    assert task.label is not None
    if isinstance(task.choices, tuple):
        texts = tuple(fields.text(name) for name in task.choices)
    else:
        texts = fields.texts(task.choices)
    if not 2 <= len(texts) <= len(LETTERS) or not all(text.strip() for text in texts):
        raise DataError(f"{fields} must have 2 to {len(LETTERS)} options with text, got {list(texts)!r}.")
    named = fields.value(task.label)
    options = letters(len(texts))
    label = _named_option(fields, texts, options, named)
    return options, label, {"options": options_block(texts), "letter": options[label]}


def _named_option(fields: Fields, texts: tuple[str, ...], options: tuple[str, ...], named: Any) -> int:
    """Index of the option that a label names by text, letter or index; text that fits two options is refused."""
    places = [place for place, text in enumerate(texts) if text == named]
    if not places:
        return right_option(fields, options, named)
    try:
        other = right_option(fields, options, named)
    except DataError:
        other = places[0]
    if len(places) > 1 or other != places[0]:
        fitting = [options[place] for place in sorted({*places, other})]
        raise DataError(
            f"{fields} has the label {named!r}, which fits the options {' and '.join(fitting)} (by text, letter or "
            f"index from 0): name the right one by a letter that is no option's text, or, in JSON, by its index as a "
            f"number."
        )
    return places[0]


def _answer(task: TaskFile, fields: Fields, values: Mapping[str, str], target: str) -> str:
    if task.answer is not None:
        answer = fill(task.answer, values)
    else:
        answer = target.rpartition("####")[2] if task.kind == "math" else target
    if task.kind != "math":
        return answer
    number = read_number(answer)
    if number is None:
        raise DataError(
            f"{fields} must have a number as its answer (after `####` in the target, or by `answer` in `{task.path}`), "
            f"got {answer.strip()!r}."
        )
    return write_number(number)
