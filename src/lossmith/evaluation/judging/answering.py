"""Let a causal language model answer questions of one or more turns, into a file that goes on where it stopped."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evaluation.judging.calls import digest
from lossmith.evidence.folders import cannot_write, write_atomically

CATEGORY_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Temperatures that MT-Bench's code generates with, by category; all others are decoded greedily."""

OnAnswers = Callable[[int, int], None]
"""Called after every batch with the answers that are done and all there will be."""

_ASKED, _ANSWERED = "### User:\n", "\n\n### Assistant:\n"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question to a model that answers."""

    id: str
    """Its name."""
    turns: tuple[str, ...]
    """What the user says, turn by turn, at least one."""
    category: str = ""
    """Its kind, where it has one."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are written.

    Raises:
        ConfigurationError: For a number out of its range.
    """

    max_new_tokens: int = 1024
    """Most tokens of an answer, >= 1."""
    batch_size: int = 8
    """Answers that are written at once, >= 1."""
    temperature: float | None = None
    """Of sampling, >= 0; None takes MT-Bench's by category, which is 0 (greedy) for all it does not name."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be >= 1, got {self.batch_size}.")

    def temperature_of(self, question: Asked) -> float:
        """The temperature for a question."""
        return CATEGORY_TEMPERATURES.get(question.category, 0.0) if self.temperature is None else self.temperature


@dataclass(kw_only=True)
class Written:
    """What came of it."""

    answers: int = 0
    """Questions that are answered, those found in the file among them."""
    kept: int = 0
    """Questions that were answered already."""
    cut_prompts: int = 0
    """Prompts that were cut on the left to fit the model."""
    unfinished: int = 0
    """Answers that were cut off at the most tokens."""


def write_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Asked],
    out: Path,
    *,
    name: str,
    fingerprint: str,
    settings: AnswerSettings | None = None,
    on_answers: OnAnswers | None = None,
) -> Written:
    """Answer questions into a JSONL file; each later turn sees the answers before it.

    Batches are the same and have draws of their own however often the work was stopped, so the file does not depend
    on that. The chat template is used where the tokenizer has one; other models see `### User:` and `### Assistant:`.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        questions: What to answer.
        out: The file; continued if it holds answers of this model with these settings.
        name: What the file calls the model.
        fingerprint: Of the model's weights and tokenizer.
        settings: How answers are written.
        on_answers: Progress.

    Raises:
        EvidenceError: If the file holds other answers, or cannot be written.
        ModelError: If a model has no room for an answer.
    """
    settings = settings or AnswerSettings()
    mark = _mark(fingerprint, settings)
    file = _AnswerFile(out, name, mark)
    result = Written(kept=len(file.done.keys() & {question.id for question in questions}))
    writer = _Writer(model, tokenizer, settings, result)
    for number, batch in enumerate(_batches(questions, settings)):
        missing = [question for question in batch if question.id not in file.done]
        if missing:
            answers = writer.answer(batch, number)
            file.add([row for row, question in zip(answers, batch, strict=True) if question in missing])
        if on_answers is not None:
            on_answers(sum(question.id in file.done for question in questions), len(questions))
    rows = [file.done[question.id] for question in questions]
    result.answers = len(rows)
    result.unfinished = sum(not ended for row in rows for ended in row["ended"])
    return result


def _mark(fingerprint: str, settings: AnswerSettings) -> str:
    return digest({"model": fingerprint, **vars(settings)})[:16]


def _batches(questions: Sequence[Asked], settings: AnswerSettings) -> list[list[Asked]]:
    """Questions of one temperature and number of turns together, in order."""
    kinds: dict[tuple[float, int], list[Asked]] = {}
    for question in questions:
        kinds.setdefault((settings.temperature_of(question), len(question.turns)), []).append(question)
    size = settings.batch_size
    return [own[start : start + size] for own in kinds.values() for start in range(0, len(own), size)]


class _AnswerFile:
    """The file, line by line; a last line that was not finished is dropped."""

    def __init__(self, path: Path, name: str, mark: str):
        self._path, self._name, self._mark = path, name, mark
        self.done: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                identity, own = row["id"], row["settings"]
                _ = row["answers"], row["ended"]
            except (ValueError, KeyError, TypeError) as error:
                raise EvidenceError(
                    f"Line {number} of `{path}` is no answer of `lossmith answer`: choose another --out."
                ) from error
            if own != mark:
                raise EvidenceError(
                    f"`{path}` holds answers of another model or with other settings: choose another --out."
                )
            self.done[identity] = row
        if lines[-1]:
            write_atomically(path, "".join(line.decode("utf-8") + "\n" for line in lines[:-1]))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append answers, and be sure that they are on disk."""
        whole = [{**row, "model": self._name, "settings": self._mark} for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self.done |= {row["id"]: row for row in whole}


class _Writer:
    """Turns of a batch, one after the other."""

    def __init__(self, model: Any, tokenizer: Any, settings: AnswerSettings, result: Written):
        from lossmith.integrations.causal_lm import PromptFormat
        from lossmith.integrations.causal_lm.generation import stop_ids
        from lossmith.integrations.models import token_limit

        self._model, self._settings, self._result = model, settings, result
        self._form = PromptFormat(tokenizer, chat=bool(getattr(tokenizer, "chat_template", None)))
        self._stops = sorted({*stop_ids(model, tokenizer), self._form.stop_token_id})
        limit = token_limit(model, tokenizer)
        self._room = None if limit is None else limit - settings.max_new_tokens
        if self._room is not None and self._room < 1:
            raise ConfigurationError(
                f"`max_new_tokens` must be < {limit}, the most that the model reads, got {settings.max_new_tokens}."
            )

    def answer(self, batch: Sequence[Asked], number: int) -> list[dict[str, Any]]:
        """Rows of the file for a batch."""
        from lossmith.integrations.causal_lm import generate

        said: list[list[str]] = [[] for _ in batch]
        ended: list[list[bool]] = [[] for _ in batch]
        turns = len(batch[0].turns)
        for turn in range(turns):
            prompts = self._prompts(batch, said)
            written = generate(
                self._model,
                self._form.tokenizer,
                prompts,
                max_new_tokens=self._settings.max_new_tokens,
                batch_size=len(batch),
                temperature=self._settings.temperature_of(batch[0]),
                seed=(self._settings.seed * 1_000_003 + number) * turns + turn,
                stop_token_ids=self._stops,
            )
            for row, (one,) in enumerate(written):
                text, closed = (one.text, one.stopped) if self._form.chat else _until_user(one.text, one.stopped)
                said[row].append(text.strip())
                ended[row].append(closed)
        return [
            {"id": q.id, "category": q.category, "turns": list(q.turns), "answers": answers, "ended": closed}
            for q, answers, closed in zip(batch, said, ended, strict=True)
        ]

    def _prompts(self, batch: Sequence[Asked], said: Sequence[Sequence[str]]) -> list[list[int]]:
        chats = [
            [turn for pair in zip(question.turns, [*own, None], strict=False) for turn in _turn(*pair)]
            for question, own in zip(batch, said, strict=True)
        ]
        if self._form.chat:
            prompts = self._form.many_chat_ids(chats)
        else:
            prompts = self._form.many_prompt_ids([(_plain(chat), "") for chat in chats])
        if self._room is None:
            return prompts
        fitted = [self._form.prompt_cut(prompt, self._room) for prompt in prompts]
        self._result.cut_prompts += sum(lost > 0 for _, lost in fitted)
        return [prompt for prompt, _ in fitted]


def _turn(asked: str, answer: str | None) -> list[dict[str, str]]:
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": asked}, *said]


def _plain(chat: Sequence[Mapping[str, str]]) -> str:
    """A chat for a model without a template, up to where it answers."""
    text = ""
    for turn in chat:
        text += f"{_ASKED}{turn['content']}{_ANSWERED}" if turn["role"] == "user" else f"{turn['content']}\n\n"
    return text


def _until_user(text: str, stopped: bool) -> tuple[str, bool]:
    """An answer of a model without a template: it ends where the model goes on to write the user's part."""
    before, found, _ = text.partition(_ASKED.strip())
    return before, stopped or bool(found)
