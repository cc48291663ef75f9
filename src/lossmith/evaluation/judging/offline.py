"""Judges that need no endpoint: a reward model, or the likelihood of the answers. Results name them as such."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmith.errors import ConfigurationError, LossmithWarning
from lossmith.evaluation.judging.answer_files import AnswerRow, AnswerSet, matched, request_text
from lossmith.evaluation.judging.pairs import PairsResult, Preference, unmatched, win_rates

if TYPE_CHECKING:
    from lossmith.integrations.models import ResolvedModel

Score = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Scores of (request, answer) pairs: the higher the better."""


def reward_win_rate(
    answers: AnswerSet, baseline: AnswerSet, score: Score, *, name: str = "a reward model", seed: int = 0
) -> PairsResult:
    """Which answer a reward model scores higher. It is no judge: it prefers what it was trained to prefer.

    Args:
        answers: Of the model.
        baseline: Of the one to beat.
        score: Scores of (request, answer) pairs, such as `classifier_score(...)` or any function of yours.
        name: What the result calls it.
        seed: Of the bootstrap.

    Returns:
        A preference of 1 where the model's answer scores higher, 0 where it scores lower, 0.5 where equal.

    Raises:
        DataError: If the files do not belong together.
        ConfigurationError: If `score` does not give one finite number per pair.
    """
    return _offline(
        answers, baseline, score, decided_by=f"the reward model '{name}' (no judge)", style="reward", seed=seed
    )


def likelihood_win_rate(
    answers: AnswerSet,
    baseline: AnswerSet,
    model: Any,
    tokenizer: Any,
    *,
    name: str = "a language model",
    per_token: bool = True,
    batch_size: int = 8,
    seed: int = 0,
) -> PairsResult:
    """Which answer a causal language model finds likelier. It is no judge: it prefers its own kind of text.

    Args:
        answers: Of the model.
        baseline: Of the one to beat.
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        name: What the result calls it.
        per_token: Compare mean log-probabilities per token, so that length does not decide; else sums.
        batch_size: Answers per forward pass, >= 1.
        seed: Of the bootstrap.

    Raises:
        DataError: If the files do not belong together.
        ModelError: If a text is longer than the model reads.
    """
    how = "per token" if per_token else "in sum"
    return _offline(
        answers,
        baseline,
        likelihood_score(model, tokenizer, per_token=per_token, batch_size=batch_size),
        decided_by=f"the likelihood {how} under '{name}' (no judge)",
        style="likelihood",
        seed=seed,
    )


def classifier_score(
    model: Any, tokenizer: Any, *, label: int | None = None, batch_size: int = 16, max_length: int | None = None
) -> Score:
    """A sequence classifier of transformers as a reward model, read with the request and the answer as two texts.

    Args:
        model: With one output (a reward) or several classes.
        tokenizer: Its tokenizer.
        label: Class whose log-probability is the score; None for models with one output.
        batch_size: Pairs per forward pass, >= 1.
        max_length: Most tokens of a pair; None for what the tokenizer says. Of a longer pair the ends are cut off, and
            a warning says how many were longer.

    Raises:
        ConfigurationError: If `label` is missing or names no class.
    """
    import torch

    outputs = int(model.config.num_labels)
    if (label is None) != (outputs == 1) or (label is not None and not 0 <= label < outputs):
        raise ConfigurationError(f"`label` must name one of the {outputs} classes (None for one output), got {label}.")
    if batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be >= 1, got {batch_size}.")

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        found: list[float] = []
        most, longer = tokenizer.model_max_length if max_length is None else max_length, 0
        training = model.training
        model.eval()
        try:
            for start in range(0, len(pairs), batch_size):
                requests, texts = map(list, zip(*pairs[start : start + batch_size], strict=True))
                longer += sum(len(tokens) > most for tokens in tokenizer(requests, texts, verbose=False).input_ids)
                inputs = tokenizer(
                    requests, texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
                )
                with torch.no_grad():
                    logits = model(**inputs.to(model.device)).logits.double()
                found += (logits[:, 0] if label is None else logits.log_softmax(-1)[:, label]).tolist()
        finally:
            model.train(training)
        if longer:
            warnings.warn(
                f"{longer} of {len(pairs)} pairs are longer than the {most} tokens that the reward model reads: "
                "their ends were cut off.",
                LossmithWarning,
                stacklevel=2,
            )
        return found

    return score


def load_reward(model: "ResolvedModel", *, label: int | None = None, device: Any = "cpu") -> Score:
    """A reward model from a folder or the hub, as `classifier_score` reads it.

    Raises:
        ModelError: If it is no trained sequence classifier.
        ConfigurationError: If `label` is missing or names no class.
    """
    from lossmith.integrations.classifiers import load_saved

    found = load_saved(Path(model.location))
    return classifier_score(found.model.to(device), found.tokenizer, label=label)


def likelihood_score(model: Any, tokenizer: Any, *, per_token: bool = True, batch_size: int = 8) -> Score:
    """Log-probability, in nats, of each answer after its request, without what ends it.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer; its chat template is used where it has one.
        per_token: Mean over the answer's tokens; else their sum.
        batch_size: Answers per forward pass, >= 1.
    """
    from lossmith.integrations.causal_lm import PromptFormat, option_logps

    chat = bool(getattr(tokenizer, "chat_template", None))
    form = PromptFormat(tokenizer, chat=chat)

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        prompts = form.many_prompt_ids([(f"{request}\n", request) for request, _ in pairs])
        # An empty answer has nothing but its end, which is then what is scored.
        options = [form.option_ids("", text) or form.target_ids(text) for _, text in pairs]
        sums = option_logps(model, tokenizer, prompts, [[option] for option in options], batch_size=batch_size)
        return [own[0] / (len(option) if per_token else 1) for own, option in zip(sums, options, strict=True)]

    return score


def _offline(
    answers: AnswerSet, baseline: AnswerSet, score: Score, *, decided_by: str, style: str, seed: int
) -> PairsResult:
    pairs = matched(answers, baseline)
    texts = [request_text(ours.turns or theirs.turns, row.answers) for ours, theirs in pairs for row in (ours, theirs)]
    scores = np.asarray(list(score(texts)), dtype=float)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ConfigurationError(f"`score` must give one finite number per answer, {len(texts)}, got {scores.shape}.")
    lengths = [len(answer) for _, answer in texts]
    rates = win_rates([_preference(*pair, scores[2 * n :], lengths[2 * n :]) for n, pair in enumerate(pairs)], seed)
    return PairsResult(
        model=answers.model,
        baseline=baseline.model,
        decided_by=decided_by,
        style=style,
        **rates,
        first_preferred=None,
        orders_agree=None,
        length_controlled=None,
        no_length_control="length control is for a judge's preferences",
        if_missing_were=(rates["win_rate"].mean, rates["win_rate"].mean),
        missing={},
        by_logprobs=0,
        not_asked=0,
        stopped="",
        unmatched=unmatched(answers, baseline),
        suspicious=(),
        judgements=(),
        sent=0,
        tokens=0,
    )


def _preference(ours: AnswerRow, theirs: AnswerRow, scores: np.ndarray, lengths: Sequence[int]) -> Preference:
    """Of a pair whose two scores and lengths come first."""
    return Preference(
        id=ours.id,
        category=ours.category or theirs.category,
        value=0.5 if scores[0] == scores[1] else float(scores[0] > scores[1]),
        first=None,
        length=lengths[0],
        baseline_length=lengths[1],
    )
