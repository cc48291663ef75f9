"""From prompts and targets to token rows: the boundary is exact, and only prompts are ever cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lossmith.errors import ConfigurationError, DataError, ModelError

Texts = tuple[str, str, str]
"""Prompt (for a base model), question (for a chat model) and target of one row."""

_PROBE = "42"
"""Stands for an answer where a chat template is asked what it puts around one."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of one prompt and its answer, not padded."""

    input_ids: list[int]
    """Prompt, answer, stop token."""
    answer_start: int
    """Place of the first token of the answer in `input_ids`."""


@dataclass(frozen=True)
class EncodedSet:
    """Token rows of one split, and what their maximum length cost."""

    rows: tuple[EncodedRow, ...]
    """In the order of the texts."""
    cut_rows: int
    """Rows whose prompt lost tokens on its left."""
    cut_tokens: int
    """Tokens that those prompts lost, all rows together."""
    max_length: int
    """Most tokens that a row may have."""
    dropped_rows: int = 0
    """Rows left out because their answer alone fills `max_length` (`encode_released` only; `encode` raises)."""

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The rows as a Trainer takes them, for `CompletionCollator`."""
        return [{"input_ids": row.input_ids, "answer_start": row.answer_start} for row in self.rows]


class PromptFormat:
    """How a prompt is put before a model, in training and in generation alike.

    Prompt and target are tokenised separately, so a token never spans the boundary, and the prompt that a model is
    trained behind is, token by token, the prompt that it is asked to continue.

    Args:
        tokenizer: Tokenizer of transformers with an end-of-sequence token.
        chat: False for the prompt as it is, with what the tokenizer puts before a text (BOS); True for the question as
            a user's turn in the tokenizer's chat template. What the template puts before an answer (an empty thought,
            for instance) belongs to the prompt, and what ends an assistant's turn is trained.
        instruction: For chat: a system message, or the first lines of the first user's turn where the template takes
            no system message. Without it, templates that bring a system prompt of their own (SmolLM2's does) use that.
        exemplars: Solved examples before the prompt: blocks separated by an empty line, or earlier turns.
        joint: For plain prompts of models that never saw the boundary: the blank at the end of a prompt is left to the
            answer, as in running text, where tokenizers join it with the word behind it.

    Raises:
        ModelError: If the tokenizer has no EOS, or its template does not put an answer behind its prompt.
        ConfigurationError: If `chat` is asked for and the tokenizer has no chat template.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> bytes_of = Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="<end>")
        >>> form = PromptFormat(tokenizer)
        >>> tokenizer.decode(form.prompt_ids("1+1? ", "1+1?") + form.target_ids("2")).replace(" ", "")
        '1+1?2<end>'
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat: bool = False,
        instruction: str = "",
        exemplars: Sequence[Texts] = (),
        joint: bool = False,
    ):
        check_eos(tokenizer)
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                "`chat=True` needs a tokenizer with a chat template, and this one has none: give an instruct model, or "
                "leave `chat` off."
            )
        self.tokenizer = tokenizer
        self.chat = chat
        self.instruction = instruction
        self.exemplars = tuple(exemplars)
        self.joint = joint and not chat
        self._system = chat and _takes_system(tokenizer)
        self._opening, ending = self._around_answer() if chat else ("", "")
        self._before = [] if chat else _tokens_before(tokenizer)
        self._ending = _ending_ids(tokenizer, ending)

    @property
    def stop_token_id(self) -> int:
        """The token that ends every target, and so the one to stop generation at."""
        return self._ending[-1]

    def prompt_ids(self, prompt: str, question: str) -> list[int]:
        """Token ids of a prompt, exemplars included; plain formats read `prompt`, chat formats `question`."""
        return self.many_prompt_ids([(prompt, question)])[0]

    def target_ids(self, target: str) -> list[int]:
        """Token ids of a target, the stop token last."""
        return self.many_target_ids([target])[0]

    def many_prompt_ids(self, prompts: Sequence[tuple[str, str]]) -> list[list[int]]:
        """`prompt_ids` of many (prompt, question)."""
        texts = [self._rendered(question) if self.chat else self._plain(prompt) for prompt, question in prompts]
        return [[*self._before, *ids] for ids in _ids(self.tokenizer, texts)]

    def many_chat_ids(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """Token ids of chats (`role` and `content` of each turn) in the template, up to where an answer begins."""
        texts = [self._render([dict(turn) for turn in turns], to_answer=True) + self._opening for turns in chats]
        return _ids(self.tokenizer, texts)

    def many_target_ids(self, targets: Sequence[str]) -> list[list[int]]:
        """`target_ids` of many targets."""
        return [[*ids, *self._ending] for ids in _ids(self.tokenizer, list(targets))]

    def prompt_cut(self, prompt: list[int], limit: int) -> tuple[list[int], int]:
        """A prompt with at most `limit` tokens, >= 1: cut on its left, but a BOS in front stays.

        Returns:
            The prompt, and how many tokens it lost.
        """
        if limit < 1:
            raise ConfigurationError(f"A prompt needs room for at least 1 token, got a limit of {limit}.")
        lost = max(0, len(prompt) - limit)
        if not lost:
            return prompt, 0
        kept = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
        return [*kept, *prompt[len(kept) + lost :]], lost

    def option_ids(self, prompt: str, option: str) -> list[int]:
        """Token ids of an option behind a prompt, without what ends an answer."""
        if self.joint:
            line = prompt.rsplit("\n", 1)[-1]
            whole, before = _ids(self.tokenizer, [line + option, line.rstrip()])
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return self.target_ids(option)[: -len(self._ending)]

    def _plain(self, prompt: str) -> str:
        text = "".join(f"{before}{target}\n\n" for before, _, target in self.exemplars) + prompt
        return text.rstrip() if self.joint else text

    def _rendered(self, question: str) -> str:
        """The prompt in the chat template, up to where the answer begins."""
        return self._render(self._turns(question), to_answer=True) + self._opening

    def _turns(self, question: str) -> list[dict[str, str]]:
        turns = []
        for _, asked, target in self.exemplars:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": target}]
        turns.append({"role": "user", "content": question})
        if not self.instruction:
            return turns
        if self._system:
            return [{"role": "system", "content": self.instruction}, *turns]
        first = {"role": "user", "content": f"{self.instruction}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]

    def _around_answer(self) -> tuple[str, str]:
        """What the template puts between its prompt and an answer, and behind the answer."""
        turns = self._turns("1")
        prompt = self._render(turns, to_answer=True)
        whole = self._render([*turns, {"role": "assistant", "content": _PROBE}], to_answer=False)
        opening, answer, ending = whole[len(prompt) :].partition(_PROBE)
        if not whole.startswith(prompt) or not answer:
            raise ModelError(
                "The chat template of this tokenizer does not put an answer behind the prompt that it renders, so "
                "training would not match generation: leave `chat` off, or mend the template."
            )
        return opening, ending

    def _render(self, turns: list[dict[str, str]], *, to_answer: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=to_answer)
        except TemplateError as error:
            raise ModelError(f"The chat template of this tokenizer refuses the prompt: {error}.") from error


def encode(form: PromptFormat, rows: Sequence[Texts], max_length: int, names: Sequence[str] = ()) -> EncodedSet:
    """Token rows of at most `max_length` tokens: what is too long loses the left of its prompt, never of its answer.

    Args:
        form: How prompts are put.
        rows: Prompt, question and target of each row, as `lossmith.tasks.completion.pairs` gives them.
        max_length: Most tokens of a row, stop token included, >= 2.
        names: What messages call the rows; their numbers from 0 where left out.

    Raises:
        DataError: If an answer leaves no room for one token of its prompt, or a prompt has no tokens.
        ConfigurationError: If `max_length` is below 2.
    """
    check_max_length(max_length)
    prompts = form.many_prompt_ids([(prompt, question) for prompt, question, _ in rows])
    answers = form.many_target_ids([target for _, _, target in rows])
    encoded, cuts = [], []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        name = f"'{names[number]}'" if names else str(number)
        if not prompt:
            raise DataError(f"Row {name} has a prompt of no tokens: fill it in or remove the row.")
        if len(answer) >= max_length:
            raise DataError(
                f"Row {name} has an answer of {len(answer):,} tokens, its stop token included, which leaves its prompt "
                f"no room within `max_length={max_length}`: raise `max_length`, or remove the row."
            )
        kept, lost = form.prompt_cut(prompt, max_length - len(answer))
        cuts.append(lost)
        encoded.append(EncodedRow([*kept, *answer], len(kept)))
    return EncodedSet(tuple(encoded), sum(map(bool, cuts)), sum(cuts), max_length)


def encode_released(tokenizer: Any, rows: Sequence[Texts], max_length: int) -> EncodedSet:
    """Token rows as the script of https://github.com/DarthReca/segmentation-losses-nlp makes them.

    Prompt, target and EOS are tokenised as one text, which is cut on its left wherever that falls (a BOS stays). The
    answer is taken to be as long as target and EOS tokenised alone with whatever special tokens that adds, so with a
    tokenizer that adds BOS it begins one token early. Rows whose answer fills `max_length` are left out and counted:
    the released loader leaves out those that fill it exactly, and would misread longer ones.

    Args:
        tokenizer: Tokenizer of transformers with an end-of-sequence token.
        rows: Prompt, question (not read) and target of each row.
        max_length: Most tokens of a row, >= 2.
    """
    check_eos(tokenizer)
    check_max_length(max_length)
    before = _tokens_before(tokenizer)
    texts = [prompt + target + tokenizer.eos_token for prompt, _, target in rows]
    alone = [target + tokenizer.eos_token for _, _, target in rows]
    encoded, cuts = [], []
    for ids, answer in zip(_ids(tokenizer, texts, True), _ids(tokenizer, alone, True), strict=True):
        lost = max(0, len(ids) - max_length)
        start = len(ids) - lost - len(answer)
        if start > 0:
            encoded.append(EncodedRow([*before, *ids[len(before) + lost :]], start))
            cuts.append(lost)
    return EncodedSet(tuple(encoded), sum(map(bool, cuts)), sum(cuts), max_length, len(rows) - len(encoded))


def cut_sentence(encoded: EncodedSet, split: str) -> str | None:
    """What the maximum length cost, for a report; None where it cost nothing.

    Example:
        >>> row = EncodedRow([5, 6, 7], 1)
        >>> cut_sentence(EncodedSet((row,) * 1319, 312, 4567, 128), "train")
        '312 of 1,319 train rows were cut on the left to 128 tokens (4,567 tokens of questions lost).'
    """
    whole = len(encoded.rows) + encoded.dropped_rows
    # Test answers are written behind prompts of their own.
    concerned = ", which concerns their NLL" if split == "test" else ""
    sentences = []
    if encoded.cut_rows:
        sentences.append(
            f"{encoded.cut_rows:,} of {whole:,} {split} rows {_were(encoded.cut_rows)} cut on the left to "
            f"{encoded.max_length:,} tokens ({encoded.cut_tokens:,} token{'s' * (encoded.cut_tokens != 1)} of "
            f"questions lost){concerned}."
        )
    if encoded.dropped_rows:
        sentences.append(
            f"{encoded.dropped_rows:,} of {whole:,} {split} rows {_were(encoded.dropped_rows)} left out: an answer "
            f"alone fills {encoded.max_length:,} tokens."
        )
    return " ".join(sentences) or None


def check_eos(tokenizer: Any) -> None:
    """Raise `ModelError` for a tokenizer without an end-of-sequence token."""
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ModelError(
            "The tokenizer has no end-of-sequence token, so nothing could tell the model to stop: set `eos_token` in "
            "its tokenizer_config.json."
        )


def check_max_length(max_length: int) -> None:
    """Raise `ConfigurationError` for a maximum length that cannot hold a prompt and an answer."""
    if max_length < 2:
        raise ConfigurationError(f"`max_length` must be >= 2 tokens, got {max_length}.")


def _ids(tokenizer: Any, texts: list[str], special: bool = False) -> list[list[int]]:
    if not texts:
        return []
    # Not verbose: it would warn of rows beyond the model's length, which are cut later.
    return tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]


def _takes_system(tokenizer: Any) -> bool:
    """Whether a chat template shows a system message; some refuse one, some leave it out."""
    turns = [{"role": "system", "content": "System 1"}, {"role": "user", "content": "2"}]
    try:
        return "System 1" in tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False


def _tokens_before(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text (BOS), without what it puts behind (an EOS would end every prompt)."""
    bare, whole = _ids(tokenizer, [_PROBE])[0], _ids(tokenizer, [_PROBE], True)[0]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    raise ModelError(
        f"The tokenizer reads '{_PROBE}' differently with special tokens ({whole}) and without ({bare}), so prompts "
        f"cannot be told from what is put before them: give another tokenizer."
    )


def _ending_ids(tokenizer: Any, ending: str) -> list[int]:
    """Token ids behind an answer up to the first special token; EOS alone where a template puts none there."""
    ids = _ids(tokenizer, [ending])[0] if ending else []
    special = set(tokenizer.all_special_ids)
    stops = [place for place, token in enumerate(ids) if token in special]
    return ids[: stops[0] + 1] if stops else [tokenizer.eos_token_id]


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
