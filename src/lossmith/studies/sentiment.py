"""Studies of sentiment-controlled generation: reward of sampled answers against divergence from the policy before."""

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import ConfigurationError, LossmithError, LossmithWarning, TrainingDivergedError
from lossmith.evaluation.divergence import divergence
from lossmith.evaluation.preferences import margin_histogram
from lossmith.evaluation.rewards import RewardModel, open_reward
from lossmith.evaluation.sampling import sample_answers
from lossmith.integrations.causal_lm.divergence import row_divergences
from lossmith.integrations.causal_lm.encoding import PromptFormat
from lossmith.integrations.causal_lm.loading import adapted_modules, load_causal_lm, save_causal_lm
from lossmith.integrations.models import resolve_model, token_limit
from lossmith.integrations.preference_rows import PairRow
from lossmith.studies.answer_kinds import swapped_by_reward
from lossmith.studies.preference_training import AnyTrainer, make_preference_trainer, make_trainer, trained_by
from lossmith.studies.reward_model import TRAINED, trained_reward
from lossmith.studies.run import TRAINING_SHARE, Progress, Setting, data_notice, pick_device
from lossmith.studies.sentiment_config import SAMPLED, SentimentConfig
from lossmith.studies.sentiment_samples import BlockPairs, block_pairs, start_answers
from lossmith.studies.sentiment_start import start_of
from lossmith.tasks.preference import PreferenceTask, prompt_text
from lossmith.tasks.preference_loading import load_preference_task
from lossmith.tasks.sentiment import ReviewPrompts, load_review_prompts

SAMPLES = 8
"""Test prompts whose answers a report shows."""
PAIRS_SHARE = 0.2
"""Share of a run's progress that is sampling pairs, where they are not kept yet."""


@dataclass(frozen=True, kw_only=True)
class SentimentSetting(Setting):
    """Prompts, a reward, and a policy that is trained anew for every block."""

    config: SentimentConfig
    tokenizer: Any
    prompts: ReviewPrompts
    """Beginnings of reviews, for training and test."""
    reward: RewardModel
    """What is to be raised."""
    given: PreferenceTask | None
    """Pairs that are not sampled; None samples them."""
    notices: tuple[str, ...]
    """What a reader of the report must know."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pretrained weights."""
        return torch.bfloat16 if self.config.weights == "bfloat16" else torch.float32

    def asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        """How answers are sampled, as keywords of `sample_answers`; prompts with what is put before a text."""
        return {
            "prompts": PromptFormat(self.tokenizer).many_prompt_ids([(prompt, "") for prompt in prompts]),
            "max_new_tokens": self.config.max_new_tokens,
            "batch_size": self.config.eval_batch_size,
        }

    def identity(self) -> dict[str, Any]:
        """See `Setting`."""
        return self.config.identity() | {
            "prompts_fingerprint": self.prompts.fingerprint,
            "pairs_fingerprint": None if self.given is None else self.given.fingerprint,
            "reward_fingerprint": self.reward.fingerprint,
            "model": self.config.model,
            "model_fingerprint": self.model.fingerprint,
            "device": self.device.type,
        }

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        return {
            "config": {
                "kind": "sentiment",
                "prompts_fingerprint": self.prompts.fingerprint,
                "reward_fingerprint": self.reward.fingerprint,
                "rewarded_label": self.reward.label,
                "attribution": data_notice(self.prompts),
                "notices": list(self.notices),
                "test_prompts": len(self.prompts.test),
            },
        }

    def pairs(self, seed: int, report: Progress) -> BlockPairs:
        """The sampled pairs of a block, the same for all losses."""
        return block_pairs(self, seed, report)

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> AnyTrainer:
        """See `Setting`."""
        if self.given is not None:
            return self._trainer(None, text, seed, workspace, report)
        pairs = self.pairs(seed, lambda share: report(PAIRS_SHARE * TRAINING_SHARE * share)).pairs
        rows = [PairRow(list(p.prompt_ids), list(p.chosen_ids), list(p.rejected_ids)) for p in pairs]
        return self._trainer(rows, text, seed, workspace, report)

    def _trainer(
        self,
        rows: Sequence[PairRow] | None,
        text: str,
        seed: int,
        workspace: Path,
        report: Progress,
        *,
        reference_cache: Path | None = None,
    ) -> AnyTrainer:
        """The trainer on token rows, or on all given pairs; None keeps reference values in the user's cache."""
        policy, _ = load_causal_lm(self.model, device=self.device, dtype=self.dtype)
        told: dict[str, Any] = {
            "text": text,
            "seed": seed,
            "workspace": workspace,
            "on_cpu": self.device.type == "cpu",
            "reference_cache": reference_cache,
            "report": report,
        }
        if rows is None:
            assert self.given is not None
            return make_preference_trainer(self.config, policy, self.tokenizer, self.given.train, **told)
        return make_trainer(self.config, policy, self.tokenizer, rows, **told)

    def evaluate(self, trainer: AnyTrainer, report: Progress) -> dict[str, Any]:
        """Reward and divergence of answers to the test prompts, drawn with every sampling seed.

        Raises:
            TrainingDivergedError: If the trained policy gives numbers that are not finite.
        """
        begun = time.perf_counter()
        start, _ = load_causal_lm(self.model, device=self.device, dtype=self.dtype)
        seeds = self.config.drawing_seeds
        drawn: list[dict[str, Any]] = []
        for place, seed in enumerate(seeds):
            report(TRAINING_SHARE + (1 - TRAINING_SHARE) * place / len(seeds))
            drawn.append(self._sampled(trainer, start, seed))
        names = (
            "reward",
            "kl",
            "kl_sampled",
            "kl_per_token",
            "kl_released",
            "stopped",
            "start_reward",
            "start_stopped",
        )
        by_seed = {name: [one[name] for one in drawn] for name in names}
        found = self.pairs(trainer.args.seed, lambda share: None) if self.given is None else None
        said = found.sentences(len(self.prompts.train)) if found else []
        trained_on = len(found.pairs) if found else len(self.given.train) if self.given else 0
        return {
            "metrics": {name: sum(values) / len(values) for name, values in by_seed.items()},
            "scores": {
                name: [sum(values) / len(seeds) for values in zip(*(one["each"][name] for one in drawn), strict=True)]
                for name in ("reward", "kl")
            },
            "evaluation_seconds": time.perf_counter() - begun,
            "config": {
                "notices": [
                    *self.notices,
                    *(f"Seed {trainer.args.seed}: {sentence}" for sentence in said),
                    *(cut for one in drawn if (cut := one["start_cut"])),
                    *(f"{trainer.loss}, seed {trainer.args.seed}: {cut}" for one in drawn if (cut := one["cut"])),
                ],
                "rho": margin_histogram(trainer.seen),
                "train_texts": trained_on,
                "pair_facts": found.facts if found else {},
                "sampling": {"seeds": list(seeds), **by_seed},
                "new_tokens": sum(one["tokens"] for one in drawn),
                "adapted_modules": adapted_modules(trainer.model),
                "answers": drawn[0]["answers"],
            },
        }

    def _sampled(self, trainer: AnyTrainer, start: Any, seed: int) -> dict[str, Any]:
        """One drawing of the test answers: what the policy before training and the trained one make of the prompts."""
        policy: Any = trainer.model
        before = start_answers(self, seed)
        asked = self.asked([prompt.text for prompt in self.prompts.test])
        # Training is over, so that rounding by adding the adapters to the weights and taking them out is harmless.
        answers = [own[0] for own in sample_answers(policy, self.tokenizer, **asked, seed=seed, merge=True)]
        scored = self.reward.score_answers([(answer.whole, answer.answer) for answer in answers])
        rewards = scored.values
        rows = [(answer.row_ids, len(answer.prompt_ids)) for answer in answers]
        padding = self.tokenizer.pad_token_id
        compared = row_divergences(policy, start, rows, padding=padding, batch_size=self.config.eval_batch_size)
        if not all(all(map(_is_finite, (*row.kl, *row.logps))) for row in compared):
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
        ends = {self.tokenizer.eos_token_id, padding}
        found = divergence(compared, [ids for ids, _ in rows], left_out=ends)
        count = len(answers)
        return {
            "reward": sum(rewards) / count,
            "start_reward": sum(before["reward"]) / count,
            "kl": found.kl,
            "kl_sampled": found.kl_sampled,
            "kl_per_token": found.kl_per_token,
            "kl_released": found.kl_released,
            "stopped": sum(answer.stopped for answer in answers) / count,
            "start_stopped": sum(before["stopped"]) / count,
            "tokens": sum(len(answer.ids) for answer in answers),
            "start_cut": before["cut"],
            "cut": scored.sentence(f"test answers (sampling seed {seed})"),
            "each": {"reward": rewards, "kl": list(found.per_answer)},
            "answers": [
                {
                    "prompt": self.prompts.test[place].text,
                    "before": before["answer"][place],
                    "before_reward": before["reward"][place],
                    "answer": answers[place].answer,
                    "reward": rewards[place],
                }
                for place in range(0, count, max(count // SAMPLES, 1))
            ][:SAMPLES],
        }

    def save(self, trainer: AnyTrainer, folder: Path) -> None:
        """See `Setting`."""
        save_causal_lm(trainer.model, self.tokenizer, folder, merge=self.config.save == "merged")

    def check(self) -> None:
        """See `Setting`."""
        config = self.config
        if config.precision == "fp16" and self.device.type != "cuda":
            raise ConfigurationError(
                f"`precision` fp16 needs a CUDA device, this is {self.device.type}: use bf16 or float32."
            )
        for text in config.all_losses:
            trained_by(text)
        ids = self.asked([self.prompts.train[0].text])["prompts"][0]
        # Rows of the right form and of no meaning: what fails for them fails in every run.
        rows = [PairRow(ids, ids[-1:] * (1 + row), ids[:1] * (2 + row)) for row in range(2)]
        try:
            with tempfile.TemporaryDirectory(prefix="lossmith-") as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore", LossmithWarning)
                for place, text in enumerate(config.all_losses):
                    own = Path(folder) / str(place)
                    self._trainer(rows, text, config.blocks[0], Path(folder), lambda share: None, reference_cache=own)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            if isinstance(error, LossmithError):
                raise
            raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def open_sentiment(config: SentimentConfig) -> SentimentSetting:
    """Load what all runs share, and find every mistake that can be found before training.

    Trains the default reward where it is wanted for the first time.

    Raises:
        LossmithError: If the policy, the reward, the reviews or a loss cannot be used.
    """
    for text in config.all_losses:
        trained_by(text)
    device = pick_device(config.device)
    model = resolve_model(config.model)
    network, tokenizer = load_causal_lm(model)
    _check_room(config, token_limit(network, tokenizer))
    model = start_of(config, model, device)
    given = None if config.pairs == SAMPLED else load_preference_task(config.pairs, data=config.pairs_data)
    prompts = draw_prompts(
        config, tokenizer, given, train=config.train_prompts if given is None else 1, test=config.test_prompts
    )
    reward, said = _reward(config, device)
    notices = [*prompts.warnings, *(given.warnings if given else ()), *said]
    notices += swapped_by_reward(reward, given.test) if given else ()
    for notice in notices:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    return SentimentSetting(
        config=config,
        model=model,
        device=device,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=reward,
        given=given,
        notices=tuple(notices),
    )


def draw_prompts(
    config: SentimentConfig, tokenizer: Any, given: PreferenceTask | None, *, train: int | None, test: int | None
) -> ReviewPrompts:
    """The prompts of a study's settings.

    Args:
        config: The study.
        tokenizer: Of its model.
        given: Pairs that are not sampled, whose prompts are left out.
        train: How many to train on; None takes all that there are.
        test: How many to test on; None takes all that there are.

    Raises:
        DataError: If there are fewer.
    """
    return load_review_prompts(
        config.reviews,
        lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False),
        data=config.data,
        train_prompts=train,
        test_prompts=test,
        shortest=config.prompt_tokens[0],
        longest=config.prompt_tokens[1],
        seed=config.prompt_seed,
        excluded={prompt_text(pair.prompt) for pair in given.train} if given else (),
    )


def all_prompts(config: SentimentConfig) -> ReviewPrompts:
    """All prompts that the reviews of a study have for its model.

    Raises:
        LossmithError: If the model, the reviews or given pairs cannot be used.
    """
    _, tokenizer = load_causal_lm(resolve_model(config.model))
    given = None if config.pairs == SAMPLED else load_preference_task(config.pairs, data=config.pairs_data)
    return draw_prompts(config, tokenizer, given, train=None if given is None else 1, test=None)


def _reward(config: SentimentConfig, device: torch.device) -> tuple[RewardModel, tuple[str, ...]]:
    """The reward, and what a report must say of it."""
    if config.reward != TRAINED:
        return open_reward(config.reward, label=config.reward_label, device=device), ()
    made = trained_reward(say=lambda text: warnings.warn(text, LossmithWarning, stacklevel=2))
    return open_reward(str(made.folder), label=config.reward_label, device=device), (made.sentence,)


def _check_room(config: SentimentConfig, limit: int | None) -> None:
    longest = config.prompt_tokens[1] + config.max_new_tokens
    if limit is not None and longest > limit:
        raise ConfigurationError(
            f"`max_new_tokens` must be <= {limit - config.prompt_tokens[1]}, got {config.max_new_tokens}: with "
            f"{config.prompt_tokens[1]} tokens of a prompt that is all the {limit} tokens that the model reads."
        )
