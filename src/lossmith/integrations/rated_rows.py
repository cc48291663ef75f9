"""From answers that are rated one by one to token rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.integrations.preference_rows import Lost, Prompt, fit_answers, lost_sentence


@dataclass(frozen=True, slots=True)
class RatedRow:
    """Token ids of a prompt and of an answer to it, and whether it is a good one."""

    prompt_ids: list[int]
    """The prompt, up to where the answer begins."""
    completion_ids: list[int]
    """The answer, which ends with the stop token unless it was cut."""
    label: bool
    """Whether it is a good one."""


@dataclass(frozen=True, kw_only=True)
class EncodedRated:
    """Token rows of rated answers, which of the answers they are, and what was lost; see `EncodedPairs`."""

    rows: tuple[RatedRow, ...]
    """In the order of the answers, without those left out."""
    places: tuple[int, ...]
    """For each row, the place of its answer among those given."""
    max_length: int
    """Most tokens of a prompt with its answer."""
    given: int
    """Answers before any was left out."""
    cut_prompts: int = 0
    """Prompts that lost tokens on their left."""
    cut_prompt_tokens: int = 0
    """How many, all rows together."""
    cut_answers: int = 0
    """Answers that lost tokens on their right, their end among them."""
    cut_answer_tokens: int = 0
    """How many, all rows together."""
    empty: int = 0
    """Answers left out because they are empty."""
    same: int = 0
    """None: no answer is compared with another."""


def encode_rated(
    tokenizer: Any,
    answers: Sequence[tuple[Prompt, str, bool]],
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> EncodedRated:
    """Token rows in which a prompt with its answer has at most `max_length` tokens, cut as `encode_pairs` does.

    Args:
        tokenizer: Tokenizer of transformers with an end-of-sequence token.
        answers: Prompt, answer, and whether it is a good one. Chats need a chat template.
        max_length: Most tokens of prompt and answer, >= 2.
        max_prompt_length: Most tokens of a prompt, >= 1 and < `max_length`; None for no bound of its own.

    Raises:
        ConfigurationError: For lengths out of range, or chats where the tokenizer has no template.
        ModelError: If the tokenizer has no end-of-sequence token, or its template refuses a chat.
    """
    prompts, texts = [prompt for prompt, _, _ in answers], [(text,) for _, text, _ in answers]
    fitted = fit_answers(tokenizer, prompts, texts, max_length=max_length, max_prompt_length=max_prompt_length)
    rows, places, lost = [], [], Lost()
    for place, (found, (_, text, label)) in enumerate(zip(fitted, answers, strict=True)):
        if not text.strip():
            lost.empty += 1
            continue
        rows.append(RatedRow(found.prompt_ids, found.answers[0], label))
        places.append(place)
        lost.count(found)
    return EncodedRated(rows=tuple(rows), places=tuple(places), max_length=max_length, given=len(answers), **vars(lost))


def rated_sentence(encoded: EncodedRated, split: str) -> str | None:
    """What was cut or left out, for a report; None where nothing was.

    Example:
        >>> rated_sentence(EncodedRated(rows=(), places=(), max_length=64, given=9, empty=2), "train")
        '2 of 9 train rows were left out: an answer is empty.'
    """
    return lost_sentence(encoded, split, "rows", answers=encoded.given)
