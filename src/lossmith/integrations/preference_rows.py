"""From pairs of answers to token rows: one prompt for both, cut on its left, and what the maximum length cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.errors import ConfigurationError, ModelError
from lossmith.integrations.causal_lm.encoding import PromptFormat, check_max_length

Prompt = str | Sequence[Mapping[str, str]]
"""A text that the answer continues, or a chat of turns with `role` and `content` that ends with the user's."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """Token ids of a prompt and of two answers to it; each answer ends with the stop token, unless it was cut."""

    prompt_ids: list[int]
    """The prompt, up to where an answer begins."""
    chosen_ids: list[int]
    """The better answer."""
    rejected_ids: list[int]
    """The worse one."""


@dataclass(frozen=True, kw_only=True)
class EncodedPairs:
    """Token rows of pairs, which of the pairs they are, and what was lost."""

    rows: tuple[PairRow, ...]
    """In the order of the pairs, without those left out."""
    places: tuple[int, ...]
    """For each row, the place of its pair among those given."""
    max_length: int
    """Most tokens of a prompt with one answer."""
    given: int
    """Pairs before any was left out."""
    cut_prompts: int = 0
    """Prompts that lost tokens on their left."""
    cut_prompt_tokens: int = 0
    """How many, all rows together."""
    cut_answers: int = 0
    """Answers that lost tokens on their right, their end among them."""
    cut_answer_tokens: int = 0
    """How many, all rows together."""
    empty: int = 0
    """Pairs left out because an answer is empty."""
    same: int = 0
    """Pairs left out because both answers are the same, perhaps only after they were cut."""


def encode_pairs(
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, str, str]],
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> EncodedPairs:
    """Token rows in which a prompt with one answer has at most `max_length` tokens.

    Prompt and answers are tokenised apart, so the prompt is token by token the one that a model is asked to continue.
    A prompt that is too long loses its left, the same for both answers: it keeps what the longer answer leaves, but at
    least half of `max_length` (or all it has). An answer that does not fit behind it loses its right.

    Args:
        tokenizer: Tokenizer of transformers with an end-of-sequence token.
        pairs: Prompt, chosen and rejected answer of each pair. Chats need a chat template.
        max_length: Most tokens of prompt and answer, >= 2.
        max_prompt_length: Most tokens of a prompt, >= 1 and < `max_length`; None for no bound of its own.

    Raises:
        ConfigurationError: For lengths out of range, or chats where the tokenizer has no template.
        ModelError: If the tokenizer has no end-of-sequence token, or its template refuses a chat.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> bytes_of = Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="<end>")
        >>> found = encode_pairs(tokenizer, [("1+1=", "2", "3")], max_length=8)
        >>> tokenizer.convert_ids_to_tokens(found.rows[0].chosen_ids)
        ['2', '<end>']
    """
    fitted = fit_answers(
        tokenizer,
        [prompt for prompt, _, _ in pairs],
        [(chosen, rejected) for _, chosen, rejected in pairs],
        max_length=max_length,
        max_prompt_length=max_prompt_length,
    )
    rows, places, lost = [], [], Lost()
    for place, found in enumerate(fitted):
        if not all(text.strip() for text in pairs[place][1:]):
            lost.empty += 1
            continue
        row = PairRow(found.prompt_ids, *found.answers)
        if row.chosen_ids == row.rejected_ids:
            lost.same += 1
            continue
        rows.append(row)
        places.append(place)
        lost.count(found)
    return EncodedPairs(rows=tuple(rows), places=tuple(places), max_length=max_length, given=len(pairs), **vars(lost))


@dataclass(frozen=True, slots=True)
class FittedAnswers:
    """Token ids of a prompt and of answers to it within a maximum length, and what was cut for that."""

    prompt_ids: list[int]
    """The prompt, without what was cut on its left."""
    answers: list[list[int]]
    """The answers, each with the stop token unless it was cut on its right."""
    cut_prompt: int
    """Tokens that the prompt lost."""
    cut: list[int]
    """Tokens that each answer lost."""


@dataclass(kw_only=True)
class Lost:
    """What an encoding cost so far."""

    cut_prompts: int = 0
    cut_prompt_tokens: int = 0
    cut_answers: int = 0
    cut_answer_tokens: int = 0
    empty: int = 0
    same: int = 0

    def count(self, found: FittedAnswers) -> None:
        """Add the cuts of a row that is kept."""
        self.cut_prompts += found.cut_prompt > 0
        self.cut_prompt_tokens += found.cut_prompt
        self.cut_answers += sum(tokens > 0 for tokens in found.cut)
        self.cut_answer_tokens += sum(found.cut)


def fit_answers(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> list[FittedAnswers]:
    """Token ids of prompts with one or more answers each, as `encode_pairs` cuts them.

    Raises:
        ConfigurationError: For lengths out of range, or chats where the tokenizer has no template.
        ModelError: If the tokenizer has no end-of-sequence token, or its template refuses a chat.
    """
    check_max_length(max_length)
    if max_prompt_length is not None and not 1 <= max_prompt_length < max_length:
        raise ConfigurationError(
            f"`max_prompt_length` must be >= 1 and < `max_length` = {max_length}, got {max_prompt_length}."
        )
    whole, forms = _prompts(tokenizer, prompts)
    sides = [_answers(forms, texts) for texts in zip(*answers, strict=True)]
    return [
        _fit(form, ids, own, max_length, max_prompt_length)
        for form, ids, *own in zip(forms, whole, *sides, strict=True)
    ]


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], *, max_prompt_length: int | None = None
) -> tuple[list[list[int]], int]:
    """Token ids of prompts as `encode_pairs` puts them, cut on the left, and how many were cut.

    Raises:
        ConfigurationError: For chats where the tokenizer has no template.
        ModelError: If the tokenizer has no end-of-sequence token, or its template refuses a chat.
    """
    whole, forms = _prompts(tokenizer, prompts)
    if max_prompt_length is None:
        return whole, 0
    kept = [form.prompt_cut(ids, max_prompt_length)[0] for form, ids in zip(forms, whole, strict=True)]
    return kept, sum(len(short) < len(ids) for short, ids in zip(kept, whole, strict=True))


def pairs_sentence(encoded: EncodedPairs, split: str) -> str | None:
    """What was cut or left out, for a report; None where nothing was.

    Example:
        >>> pairs_sentence(EncodedPairs(rows=(), places=(), max_length=64, given=9, same=2, empty=1), "train")
        '1 of 9 train pairs was left out: an answer is empty. 2 of 9 train pairs were left out: both answers are equal.'
    """
    return lost_sentence(encoded, split, "pairs", answers=2 * encoded.given)


def lost_sentence(encoded: Any, split: str, rows: str, *, answers: int) -> str | None:
    """What an encoding cost, for a report; None where it cost nothing.

    Args:
        encoded: With `given`, `max_length` and the fields of `Lost`.
        split: Name of the split.
        rows: What its rows are called.
        answers: How many answers they hold.
    """
    of, most = f"of {encoded.given:,} {split} {rows}", f"{encoded.max_length:,} tokens"
    sentences = []
    if encoded.cut_prompts:
        sentences.append(
            f"The prompts of {encoded.cut_prompts:,} {of} were cut on the left so that prompt and answer fit "
            f"{most} ({_tokens(encoded.cut_prompt_tokens)} lost)."
        )
    if encoded.cut_answers:
        sentences.append(
            f"{encoded.cut_answers:,} of {answers:,} {split} answers {_were(encoded.cut_answers)} cut on the "
            f"right to fit {most}, and so have no end ({_tokens(encoded.cut_answer_tokens)} lost): raise `max_length`."
        )
    for count, cause in ((encoded.empty, "an answer is empty"), (encoded.same, "both answers are equal")):
        if count:
            sentences.append(f"{count:,} {of} {_were(count)} left out: {cause}.")
    return " ".join(sentences) or None


def _prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[PromptFormat]]:
    """Token ids of each prompt, and how it was put."""
    plain, chats = PromptFormat(tokenizer), [place for place, prompt in enumerate(prompts) if not _is_text(prompt)]
    forms, found = [plain] * len(prompts), [list[int]()] * len(prompts)
    texts = [place for place, prompt in enumerate(prompts) if _is_text(prompt)]
    for place, ids in zip(texts, plain.many_prompt_ids([(str(prompts[p]), "") for p in texts]), strict=True):
        found[place] = ids
    if chats:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"{len(chats):,} of {len(prompts):,} prompts are chats, and the tokenizer has no chat template to put "
                f"them in: give an instruct model, or write each prompt as one text."
            )
        form = PromptFormat(tokenizer, chat=True)
        turns = [prompts[place] for place in chats]
        for place, ids in zip(chats, form.many_chat_ids(turns), strict=True):  # pyright: ignore[reportArgumentType]
            forms[place], found[place] = form, ids
    if any(not ids for ids in found):
        place = found.index([])
        raise ModelError(f"The prompt of pair {place} has no tokens, and an answer must stand behind one: fill it in.")
    return found, forms


def _answers(forms: Sequence[PromptFormat], texts: Sequence[str]) -> list[list[int]]:
    found = [list[int]()] * len(texts)
    for form in dict.fromkeys(forms):
        places = [place for place, own in enumerate(forms) if own is form]
        for place, ids in zip(places, form.many_target_ids([texts[p] for p in places]), strict=True):
            found[place] = ids
    return found


def _fit(
    form: PromptFormat, prompt: list[int], answers: Sequence[list[int]], max_length: int, max_prompt_length: int | None
) -> FittedAnswers:
    """The row within its lengths."""
    left = max(max_length - max(len(answer) for answer in answers), max_length // 2)
    kept, _ = form.prompt_cut(prompt, left if max_prompt_length is None else min(left, max_prompt_length))
    short = [answer[: max_length - len(kept)] for answer in answers]
    cut = [len(ids) - len(own) for ids, own in zip(answers, short, strict=True)]
    return FittedAnswers(kept, short, len(prompt) - len(kept), cut)


def _is_text(prompt: Prompt) -> bool:
    return isinstance(prompt, str)


def _tokens(count: int) -> str:
    return f"{count:,} token{'s' * (count != 1)}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
