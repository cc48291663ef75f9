"""Answers that a policy samples, with the tokens that it drew, and what a reward makes of them: preference pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.errors import ConfigurationError, DataError
from lossmith.integrations.causal_lm.generation import OnBatch, generate_ids, stop_ids
from lossmith.tasks.preference import Pair
from lossmith.tasks.sentiment import SampledPair


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """One answer that was drawn, token by token."""

    prompt_ids: tuple[int, ...]
    """Tokens of the prompt, what the tokenizer puts before a text included."""
    ids: tuple[int, ...]
    """Tokens of the answer as they were drawn; the stop token is the last one where it came to one."""
    answer: str
    """Its text behind the prompt, without special tokens."""
    whole: str
    """Prompt and answer in one text, without special tokens."""
    stopped: bool
    """Whether it ended by itself; else it was cut at the most tokens that it might have, and is whole as it stands."""

    @property
    def row_ids(self) -> list[int]:
        """Tokens of prompt and answer."""
        return [*self.prompt_ids, *self.ids]


def sample_answers(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int,
    max_new_tokens: int = 60,
    batch_size: int = 32,
    per_prompt: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    on_batch: OnBatch | None = None,
    merge: bool = False,
) -> list[list[SampledAnswer]]:
    """Let a policy answer prompts at random, as its own distribution says.

    Divergences estimated from these answers are those of the distribution that was sampled: leave `temperature` and
    `top_p` at 1 for them, or they are of another one.

    Args:
        policy: A transformers model, or one with adapters.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, at least one.
        seed: Of the draws. Policies of one seed draw by the same random numbers and are compared in pairs.
        max_new_tokens: Most tokens of an answer, the stop token among them, >= 1.
        batch_size: Answers that are written at once, >= 1; it moves the draws.
        per_prompt: Answers of each prompt, >= 1.
        temperature: Divides the scores, > 0.
        top_p: Share of the probability that is sampled from, in (0, 1].
        on_batch: Called after every batch with the answers that are done and all there will be.
        merge: As for `generate`: faster with LoRA, and rounds its weights.

    Returns:
        For each prompt its answers.

    Raises:
        ConfigurationError: For a setting out of its range.
        DataError: If there is no prompt, or one without a token.
        ModelError: If prompt and answer together are longer than the model reads.
    """
    if not prompts:
        raise DataError("`prompts` must hold at least one prompt, got none.")
    if not temperature > 0:
        raise ConfigurationError(f"`temperature` must be > 0 for answers that are sampled, got {temperature}.")
    stops = stop_ids(policy, tokenizer)
    written = generate_ids(
        policy,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        votes=per_prompt,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_token_ids=stops,
        on_batch=on_batch,
        merge=merge,
    )
    return [
        [_answer(tokenizer, prompt, ids, stops) for ids in answers]
        for prompt, answers in zip(prompts, written, strict=True)
    ]


def _answer(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[int]) -> SampledAnswer:
    before, whole = _text(tokenizer, prompt), _text(tokenizer, [*prompt, *ids])
    # Behind its prompt, since some tokenizers drop the blank that a text begins with.
    answer = whole[len(before) :] if whole.startswith(before) else _text(tokenizer, ids)
    return SampledAnswer(
        prompt_ids=tuple(prompt), ids=tuple(ids), answer=answer, whole=whole, stopped=bool(ids) and ids[-1] in stops
    )


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """Preference pairs from sampled answers, and what gave none."""

    pairs: tuple[SampledPair, ...]
    """In the order of the prompts."""
    equal: int
    """Prompts whose answers have one text."""
    ties: int
    """Prompts whose different answers have one reward."""
    empty: int
    """Prompts one of whose two answers has no text."""


def label_pairs(
    prompts: Sequence[tuple[str, str]],
    answers: Sequence[Sequence[SampledAnswer]],
    rewards: Sequence[Sequence[float]],
) -> LabelledPairs:
    """The best and the worst answer of each prompt, as a pair.

    Args:
        prompts: Id and text of each prompt.
        answers: Its answers, at least two.
        rewards: The reward of each of them.

    Raises:
        DataError: If a prompt has fewer than two answers, or no pair is left.
    """
    pairs: list[SampledPair] = []
    equal = ties = empty = 0
    for (name, prompt), written, scores in zip(prompts, answers, rewards, strict=True):
        if len(written) < 2:
            raise DataError(f"Prompt '{name}' needs two answers or more to make a pair, got {len(written)}.")
        best, worst = (pick(range(len(scores)), key=scores.__getitem__) for pick in (max, min))
        if len({answer.answer for answer in written}) == 1:
            equal += 1
        elif scores[best] == scores[worst]:
            ties += 1
        elif not (written[best].answer.strip() and written[worst].answer.strip()):
            empty += 1
        else:
            pair = Pair(
                id=name,
                prompt=prompt,
                chosen=written[best].answer,
                rejected=written[worst].answer,
                chosen_score=scores[best],
                rejected_score=scores[worst],
            )
            pairs.append(
                SampledPair(
                    pair=pair,
                    prompt_ids=written[best].prompt_ids,
                    chosen_ids=written[best].ids,
                    rejected_ids=written[worst].ids,
                )
            )
    if not pairs:
        raise DataError(
            f"No pair is left of {len(prompts)} prompts: {equal} have equal answers, {ties} answers of equal reward, "
            f"{empty} an empty answer. Give another reward or policy, or more prompts."
        )
    return LabelledPairs(pairs=tuple(pairs), equal=equal, ties=ties, empty=empty)
