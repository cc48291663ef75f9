"""What trained models sample as answers to test prompts: divergence from the reference, reward, win rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lossmith.errors import ConfigurationError, DataError, TrainingDivergedError
from lossmith.evaluation.divergence import divergence
from lossmith.evaluation.judging import likelihood_score
from lossmith.evaluation.rewards import RewardModel, open_reward
from lossmith.evaluation.sampling import SampledAnswer, sample_answers
from lossmith.integrations.causal_lm.divergence import row_divergences
from lossmith.integrations.causal_lm.encoding import PromptFormat
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import ResolvedModel, resolve_model
from lossmith.studies.answer_kinds import AnyEncoded, AnyItem
from lossmith.studies.preference_config import AnswerFields
from lossmith.tasks.preference import Prompt, prompt_text

Scorer = Callable[[Sequence[tuple[Prompt, str]], str], tuple[list[float], str | None]]
"""From (prompt, answer) pairs and what a report calls them to the value of each, the higher the better, and
to a sentence on what was cut."""


@dataclass(frozen=True, kw_only=True)
class AnswerSampling:
    """Test prompts, the model before training, and what scores answers. Made by `open_sampling`."""

    config: AnswerFields
    tokenizer: Any
    start: ResolvedModel
    """The model before training."""
    reference: ResolvedModel
    """What the divergence is from."""
    device: torch.device
    prompts: tuple[Prompt, ...]
    """As the data have them."""
    prompt_ids: tuple[list[int], ...]
    """As they are put before a model."""
    reward: RewardModel | None
    likelihood: ResolvedModel | None
    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What all runs share, made once: answers before training, their values, and the model that judges likelihoods."""

    @property
    def identity(self) -> dict[str, Any]:
        """Fingerprints of what scores."""
        return {
            "reward_fingerprint": self.reward and self.reward.fingerprint,
            "likelihood_fingerprint": self.likelihood and self.likelihood.fingerprint,
        }

    @property
    def reward_name(self) -> str:
        """The metric that the reward is."""
        return "reward_score" if self.reward is not None and self.reward.is_score else "reward"

    @property
    def judge(self) -> tuple[Any, Any]:
        """The model of likelihoods, with its tokenizer."""
        assert self.likelihood is not None
        if "judge" not in self.kept:
            self.kept["judge"] = load_causal_lm(self.likelihood, device=self.device)
        return self.kept["judge"]

    def measure(self, policy: Any, *, run: str, step: int, losses: Sequence[float]) -> dict[str, Any]:
        """Fields of a record: `metrics`, `scores` by prompt, and `config`; beside them `said`, what was cut.

        Args:
            policy: The trained model.
            run: What a notice calls it.
            step: Optimiser steps so far, for a message.
            losses: The last losses, for the same.

        Raises:
            TrainingDivergedError: If the policy gives numbers that are not finite.
        """
        answers = self._sampled(policy)
        rows = [(answer.row_ids, len(answer.prompt_ids)) for answer in answers]
        padding, size = self.tokenizer.pad_token_id, self.config.eval_batch_size
        reference = self._network(self.reference)
        compared = row_divergences(policy, reference, rows, padding=padding, batch_size=size)
        if not all(abs(value) < float("inf") for row in compared for value in (*row.kl, *row.logps)):
            raise TrainingDivergedError(step, [*losses, float("nan")])
        found = divergence(compared, [ids for ids, _ in rows], left_out={self.tokenizer.eos_token_id, padding})
        metrics = {name: getattr(found, name) for name in ("kl", "kl_sampled", "kl_per_token", "kl_released")}
        metrics["stopped"] = _mean([float(answer.stopped) for answer in answers])
        scores, said = {"kl": list(found.per_answer)}, []
        for name, values, before, cut in self._values(answers, run):
            said += cut
            won = [(own > other) + 0.5 * (own == other) for own, other in zip(values, before, strict=True)]
            scores[f"{name}_win_rate"] = won
            metrics[f"{name}_win_rate"] = _mean(won)
            if name == "reward":
                scores[self.reward_name] = values
                metrics |= {self.reward_name: _mean(values), f"start_{self.reward_name}": _mean(before)}
        return {"metrics": metrics, "scores": scores, "config": self._described(metrics), "said": said}

    def _described(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What a report draws a frontier from, which begins at the model before training and so needs it as reference.

        Scores of a reward model have no scale that all frontiers share, probabilities have.
        """
        if "reward" not in metrics or self.reference is not self.start:
            return {}
        drawn = {name: [metrics[name]] for name in ("kl", "reward", "start_reward")}
        return {"sampling": {"seeds": [self.config.sampling_seed], **drawn}, "test_prompts": len(self.prompts)}

    def _values(
        self, answers: Sequence[SampledAnswer], run: str
    ) -> Iterator[tuple[str, list[float], list[float], list[str]]]:
        """Name, values of the answers, values of those before training, and what was cut, for each that scores."""
        scorers: dict[str, Scorer] = {}
        if self.reward is not None:
            scorers["reward"] = self._rewarded
        if self.likelihood is not None:
            scorers["likelihood"] = self._likelihoods
        for name, score in scorers.items():
            if name not in self.kept:
                if "answers" not in self.kept:
                    self.kept["answers"] = self._sampled(self._network(self.start))
                self.kept[name] = score(self._paired(self.kept["answers"]), "answers before training")
            before, cut_before = self.kept[name]
            # An answer that did not change is a tie, whatever the last bits of another batch.
            same = [own.ids == old.ids for own, old in zip(answers, self.kept["answers"], strict=True)]
            values, cut = score(self._paired(answers), "answers after training")
            values = [old if equal else own for own, old, equal in zip(values, before, same, strict=True)]
            yield name, values, before, [*([cut_before] if cut_before else []), *([f"{run}: {cut}"] if cut else [])]

    def _sampled(self, model: Any) -> list[SampledAnswer]:
        # The same random numbers for every model. Training is over, so that adding the adapters to the weights and
        # taking them out again is harmless.
        written = sample_answers(
            model,
            self.tokenizer,
            self.prompt_ids,
            seed=self.config.sampling_seed,
            max_new_tokens=self.config.sampled_tokens,
            batch_size=self.config.eval_batch_size,
            merge=True,
        )
        return [own[0] for own in written]

    def _paired(self, answers: Sequence[SampledAnswer]) -> list[tuple[Prompt, str]]:
        return [(prompt, answer.answer) for prompt, answer in zip(self.prompts, answers, strict=True)]

    def _rewarded(self, pairs: Sequence[tuple[Prompt, str]], what: str) -> tuple[list[float], str | None]:
        assert self.reward is not None
        found = self.reward.score_answers([(self.reward.answer_text(*pair), pair[1]) for pair in pairs])
        return found.values, found.sentence(what)

    def _likelihoods(self, pairs: Sequence[tuple[Prompt, str]], what: str) -> tuple[list[float], None]:
        score = likelihood_score(*self.judge, batch_size=self.config.eval_batch_size)
        return list(score([(_request(prompt), answer) for prompt, answer in pairs])), None

    def _network(self, model: ResolvedModel) -> Any:
        weights = torch.bfloat16 if self.config.weights == "bfloat16" else torch.float32
        return load_causal_lm(model, device=self.device, dtype=weights)[0]


def open_sampling(
    config: AnswerFields,
    tokenizer: Any,
    items: Sequence[AnyItem],
    encoded: AnyEncoded,
    *,
    start: ResolvedModel,
    reference: ResolvedModel | None,
    device: torch.device,
    limit: int | None,
) -> AnswerSampling | None:
    """What a study samples; None where it does not.

    Args:
        config: The study.
        tokenizer: Of its model.
        items: Test rows.
        encoded: The same as token rows; rows that share a prompt give it once.
        start: The model before training.
        reference: A reference of its own.
        device: Where to work.
        limit: Most tokens that the model reads.

    Raises:
        ConfigurationError: If the reward has no such class, or a model has no room for an answer.
        DataError: If there are fewer different test prompts than wanted.
        ModelError: If the reward or the model of likelihoods cannot be used.
    """
    if not config.sampled_prompts:
        return None
    if limit is not None and config.sampled_tokens >= limit:
        raise ConfigurationError(
            f"`sampled_tokens` must be < {limit}, the most that the model reads, got {config.sampled_tokens}."
        )
    drawn = _drawn_prompts(config.sampled_prompts, encoded)
    room = None if limit is None else limit - config.sampled_tokens
    found = AnswerSampling(
        config=config,
        tokenizer=tokenizer,
        start=start,
        reference=reference or start,
        device=device,
        prompts=tuple(items[place].prompt for _, place in drawn),
        prompt_ids=tuple(ids[-room if room else None :] for ids, _ in drawn),
        reward=_reward(config, device),
        likelihood=resolve_model(config.likelihood) if config.likelihood else None,
    )
    _check_metric(found)
    if found.likelihood is not None:
        _check_likelihood(found)
    return found


def _reward(config: AnswerFields, device: torch.device) -> RewardModel | None:
    if not config.reward:
        return None
    return open_reward(config.reward, label=config.reward_label, device=device, scores=True)


def _check_metric(sampling: AnswerSampling) -> None:
    """See that a reward that decides is of the kind that there is."""
    metric = sampling.config.metric
    if metric in ("reward", "reward_score") and metric != sampling.reward_name:
        raise ConfigurationError(f"`metric` must be {sampling.reward_name} with this reward, got '{metric}'.")


def _drawn_prompts(count: int, encoded: AnyEncoded) -> list[tuple[list[int], int]]:
    """Token ids, and place among the test rows, of so many different prompts at even distances.

    Raises:
        DataError: If there are fewer.
    """
    first = {tuple(row.prompt_ids): place for row, place in zip(encoded.rows, encoded.places, strict=True)}
    if count > len(first):
        raise DataError(f"`sampled_prompts` is {count} and the test has {len(first)} different prompts: lower it.")
    every = [(list(ids), place) for ids, place in first.items()]
    return [every[place * len(every) // count] for place in range(count)]


def _check_likelihood(sampling: AnswerSampling) -> None:
    """See that the model of likelihoods reads the longest prompt with an answer, which would else fail after training.

    Raises:
        ConfigurationError: If it does not.
    """
    network, tokenizer = sampling.judge
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    # As `likelihood_score` puts them.
    form = PromptFormat(tokenizer, chat=bool(getattr(tokenizer, "chat_template", None)))
    requests = [_request(prompt) for prompt in sampling.prompts]
    longest = max(len(ids) for ids in form.many_prompt_ids([(f"{request}\n", request) for request in requests]))
    answer = sampling.config.sampled_tokens
    if limit is not None and longest + answer > limit:
        raise ConfigurationError(
            f"`likelihood` {sampling.config.likelihood} reads at most {limit} tokens, and a test prompt has {longest} "
            f"of its tokens beside the {answer} of `sampled_tokens`: take one that reads more, or shorter prompts."
        )


def _request(prompt: Prompt) -> str:
    """What is asked, in one text; of a chat of one turn the turn alone."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        return prompt[0].content
    return prompt_text(prompt)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
