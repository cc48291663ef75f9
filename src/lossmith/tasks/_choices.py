"""Choices in the layouts that data sets publish: question, options and the index of the right one."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, listed
from lossmith.tasks.completion import LETTERS, Problem, letters
from lossmith.tasks.templates import CONTEXT_TEMPLATE, OPTIONS_TEMPLATE, fill, options_block, without_frame

LABEL_FIELDS = ("label", "answerKey")
"""Fields that hold the right option: an index in the normal form, a letter in the releases."""

_LETTERED = re.compile(r"\s*\(([A-H])\)\s+")


def choice_problem(
    fields: Fields, *question_fields: str, context: str | None = None, stem: str | None = None
) -> Problem:
    """A row with options as a problem whose answer is a letter.

    Args:
        fields: The row; its options are `choices`, `endings` or part of a nested `question`.
        question_fields: Where the question may be, first found wins.
        context: A fact to put after the options, if any.
        stem: The question, where the caller has already made it.

    Raises:
        DataError: If a field is absent or of another form, or the right option is not among the options.
    """
    found, choices, names = _parts(fields, question_fields)
    if not 2 <= len(choices) <= len(LETTERS) or not all(choice.strip() for choice in choices):
        raise DataError(f"{fields} must have 2 to {len(LETTERS)} options with text, got {reprlib.repr(list(choices))}.")
    label = right_option(fields, names, fields.value(*LABEL_FIELDS))
    values = {"question": stem or found, "options": options_block(choices), "context": context or ""}
    prompt = fill(CONTEXT_TEMPLATE if context else OPTIONS_TEMPLATE, values)
    options = letters(len(choices))
    return Problem(
        id=fields.id,
        prompt=prompt,
        question=without_frame(prompt),
        target=options[label],
        answer=options[label],
        options=options,
        label=label,
    )


def right_option(fields: Fields, names: Sequence[str], label: Any) -> int:
    """Index of the right option from an index (number or digits) or from its name among `names`.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    written = str(label).strip()
    if written in names:
        return list(names).index(written)
    if written.isascii() and written.isdigit() and int(written) < len(names):
        return int(written)
    raise DataError(
        f"{fields} must name its right option by one of {', '.join(names)} or by 0 to {len(names) - 1}, "
        f"got {reprlib.repr(label)}."
    )


def _parts(fields: Fields, question_fields: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    nested = listed(fields.values.get("question"))
    if isinstance(nested, Mapping):
        inner = Fields(fields.where, fields.row, fields.id, nested, fields.notes)
        return inner.text("stem"), *_options(inner, inner.value("choices"))
    if not fields.has("choices") and not fields.has("endings") and fields.has("formatted_question"):
        stem, *rest = _LETTERED.split(fields.text("formatted_question"))
        return stem.strip(), tuple(text.strip() for text in rest[1::2]), tuple(rest[::2])
    return fields.text(*question_fields), *_options(fields, fields.value("choices", "endings"))


def _options(fields: Fields, value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and names of the options: a list of texts, of {text, label}, or {text: [...], label: [...]}."""
    value = listed(value)
    texts, names = value, None
    if isinstance(value, Mapping):
        texts, names = value.get("text"), value.get("label")
    elif isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        texts, names = [item.get("text") for item in value], [item.get("label") for item in value]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{fields} must have options as a list of texts or as `text` and `label`, got {reprlib.repr(value)}."
        )
    known = letters(len(texts)) if names is None else tuple(str(name) for name in names)
    if len(known) != len(texts):
        raise DataError(f"{fields} must have one label per option, got {len(known)} for {len(texts)} options.")
    return tuple(texts), known
