"""Rewards of texts: the probability that a classifier gives to its positive class, or what a reward model scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, ModelError
from lossmith.integrations.causal_lm.generation import OnBatch
from lossmith.integrations.classification import encode, encode_answers, predict_logits
from lossmith.integrations.classifiers import load_saved
from lossmith.integrations.models import resolve_model, token_limit
from lossmith.tasks.preference import Message, Prompt, as_messages, prompt_text

POSITIVE_NAMES = ("positive", "pos", "label_1")
"""Names of a positive class, in lower case, the first that a classifier has counts."""
LONGEST = 512
"""Tokens per text of a classifier that does not say what it reads."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Rewards of answers, and what the length that the reward reads cost."""

    values: list[float]
    """Of each answer."""
    max_length: int
    """Tokens that the reward reads of prompt and answer."""
    cut_prompts: int = 0
    """Answers that were scored behind a prompt without its beginning."""
    cut_answers: int = 0
    """Answers that were scored without their own end, and without a prompt."""

    def sentence(self, what: str) -> str | None:
        """What was cut, for a report; None where nothing was.

        Example:
            >>> Rewards(values=[0.5, 0.2], max_length=64, cut_prompts=1).sentence("test answers")
            'The reward reads 64 tokens: of 2 test answers 1 was scored without the beginning of its prompt.'
        """
        return cut_sentence(what, len(self.values), self.max_length, self.cut_prompts, self.cut_answers)


def cut_sentence(what: str, count: int, max_length: int, cut_prompts: int, cut_answers: int) -> str | None:
    """As `Rewards.sentence`, of numbers that were kept."""
    lost = [
        f"{cut:,} {'was' if cut == 1 else 'were'} scored without the {end} of {'its' if cut == 1 else 'their'} {part}"
        for cut, end, part in ((cut_prompts, "beginning", "prompt"), (cut_answers, "end", "own text"))
        if cut
    ]
    return f"The reward reads {max_length:,} tokens: of {count:,} {what} {' and '.join(lost)}." if lost else None


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A classifier whose probability of one class, or whose one output, is the reward. Made by `open_reward`."""

    name: str
    """As the user wrote it."""
    label: str
    """The class whose probability is the reward; empty for a model with one output."""
    label_names: tuple[str, ...]
    """Name of each class id."""
    fingerprint: str
    """SHA-256 over configuration, weights and tokenizer."""
    max_length: int
    """Tokens per text; longer ones are cut, see `score_answers` and `score`."""
    model: Any
    """The network, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer."""

    @property
    def is_score(self) -> bool:
        """Whether rewards are the one output of a reward model, which is no probability."""
        return len(self.label_names) == 1

    def score(self, texts: Sequence[str], *, batch_size: int = 64, on_batch: OnBatch | None = None) -> list[float]:
        """The reward of each text, in [0, 1], or the model's one output. Draws no random numbers.

        Args:
            texts: Whole texts, cut on their right where they are too long; of prompts with answers see
                `score_answers`.
            batch_size: Texts per forward pass.
            on_batch: Called after every batch with the texts that are done and all there are.

        Raises:
            ModelError: If the classifier gives scores that are not finite.
        """
        return self._scored(encode(self.tokenizer, texts, [0] * len(texts), self.max_length), batch_size, on_batch)

    def score_answers(
        self, answers: Sequence[tuple[str, str]], *, batch_size: int = 64, on_batch: OnBatch | None = None
    ) -> Rewards:
        """As `score`, for answers behind prompts: what is too long loses the beginning of its prompt.

        An answer loses its end only if it is too long alone.

        Args:
            answers: Prompt and answer as one text (see `answer_text`), and the answer alone.
            batch_size: Texts per forward pass.
            on_batch: Called after every batch with the texts that are done and all there are.

        Raises:
            ModelError: If the classifier gives scores that are not finite.
        """
        texts, own = [text for text, _ in answers], [answer for _, answer in answers]
        found = encode_answers(self.tokenizer, texts, own, self.max_length)
        return Rewards(
            values=self._scored(found.rows, batch_size, on_batch),
            max_length=self.max_length,
            cut_prompts=found.cut_prompts,
            cut_answers=found.cut_answers,
        )

    def _scored(self, rows: list[dict[str, Any]], batch_size: int, on_batch: OnBatch | None) -> list[float]:
        if not rows:
            return []
        logits = predict_logits(self.model, self.tokenizer, rows, batch_size, on_batch)
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(f"The reward `{self.name}` gives scores that are not finite: its training has diverged.")
        if self.is_score:
            return logits.double()[:, 0].tolist()
        return torch.softmax(logits.double(), dim=-1)[:, self.label_names.index(self.label)].tolist()

    def answer_text(self, prompt: Prompt, answer: str) -> str:
        """A prompt and its answer as the one text that is scored.

        Chats are put into the chat template of the reward's tokenizer where it has one, else a line for each turn; the
        answer to a text continues it.
        """
        if isinstance(prompt, str):
            return prompt + answer
        turns = (*prompt, Message("assistant", answer))
        if getattr(self.tokenizer, "chat_template", None):
            return str(self.tokenizer.apply_chat_template(as_messages(turns), tokenize=False))
        return prompt_text(turns)


def open_reward(
    name: str, *, label: str | None = None, device: torch.device | str = "cpu", scores: bool = False
) -> RewardModel:
    """Load a classifier as a reward.

    Args:
        name: Folder of a classifier that `lossmith train` or transformers saved, or a hub id.
        label: Its class whose probability is the reward; None finds it by the names positive, pos and LABEL_1.
        device: Where it works.
        scores: Whether a model with one output will do, whose reward is no probability.

    Raises:
        ModelError: If there is no trained classifier of two classes or more, or of one where `scores` allows it.
        ConfigurationError: If it has no such class.
    """
    found = resolve_model(name)
    saved = load_saved(Path(found.location))
    limit = token_limit(saved.model, saved.tokenizer) or LONGEST
    is_score = scores and len(saved.label_names) == 1
    if is_score and label is not None:
        raise ConfigurationError(f"`reward_label` has nothing to act on: `{name}` has one output, got '{label}'.")
    return RewardModel(
        name=name,
        label="" if is_score else positive_label(saved.label_names, label, name=name),
        label_names=saved.label_names,
        fingerprint=found.fingerprint,
        max_length=limit if saved.inference is None else saved.inference.max_length,
        model=saved.model.to(device),
        tokenizer=saved.tokenizer,
    )


def positive_label(label_names: Sequence[str], wanted: str | None, *, name: str) -> str:
    """The class whose probability is the reward.

    Args:
        label_names: Name of each class of the classifier.
        wanted: The one that the user names.
        name: What a message calls the classifier.

    Raises:
        ModelError: If it has fewer than two classes.
        ConfigurationError: If it has no such class, or none of a known name.

    Example:
        >>> positive_label(("NEGATIVE", "POSITIVE"), None, name="mine")
        'POSITIVE'
    """
    listed = ", ".join(label_names)
    if len(label_names) < 2:
        raise ModelError(
            f"The reward `{name}` must be a classifier of two classes or more, got {len(label_names)} ({listed}): the "
            f"reward is the probability of one of them."
        )
    if wanted is not None:
        if wanted not in label_names:
            raise ConfigurationError(
                f"`reward_label` must be a class of `{name}`, got '{wanted}'.{did_you_mean(wanted, label_names)} Its "
                f"classes: {listed}."
            )
        return wanted
    by_name = {label.lower(): label for label in label_names}
    for known in POSITIVE_NAMES:
        if known in by_name:
            return by_name[known]
    raise ConfigurationError(
        f"No class of the reward `{name}` is called positive, pos or LABEL_1: say which one is rewarded with "
        f"`reward_label`. Its classes: {listed}."
    )
