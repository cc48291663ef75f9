"""Studies of preferences: a causal language model is trained on pairs of answers and then asked which it prefers."""

import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import ConfigurationError, DataError, LossmithError, LossmithWarning, TrainingDivergedError
from lossmith.evaluation.preferences import (
    PairLogps,
    margin_histogram,
    preference_metrics,
    score_pairs,
    stored_scores,
)
from lossmith.evidence import START
from lossmith.integrations.causal_lm.generation import generate
from lossmith.integrations.causal_lm.loading import adapted_modules, load_causal_lm, save_causal_lm
from lossmith.integrations.models import ResolvedModel, resolve_model, token_limit
from lossmith.integrations.preference_rows import EncodedPairs, pairs_sentence
from lossmith.studies.preference_config import PreferenceConfig
from lossmith.studies.preference_training import AnyTrainer, encode_study_pairs, make_trainer, trained_by
from lossmith.studies.run import TRAINING_SHARE, Progress, Setting, build_loss, data_notice, pick_device
from lossmith.tasks import PreferenceTask, draw_problems, is_unpaired_task, load_preference_task
from lossmith.tasks.preference import Pair, prompt_text

SUBSET_SEED = 20240
"""Seed of the test pairs, which are the same for all blocks."""
CHECKED_ROWS = 4
"""Training pairs of the trainers that are made, and not used, before a study begins."""
SWAPPED_SHARE, SWAPPED_ROWS = 0.8, 10
"""The columns look swapped where the reference finds the rejected answer likelier, per token, in this share of at least
so many pairs."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Pairs as token rows, with their log-probabilities before training and under the reference."""

    pairs: EncodedPairs
    start: PairLogps
    reference: PairLogps


@dataclass(frozen=True, kw_only=True)
class PreferenceSetting(Setting):
    """Pairs of answers, and a causal language model that is trained anew for every block."""

    config: PreferenceConfig
    task: PreferenceTask
    tokenizer: Any
    reference: ResolvedModel | None
    """A reference of its own; None for the model before training."""
    validation: Scored
    """Pairs for the learning curve, perhaps none."""
    test: Scored
    """Pairs of the final test."""
    shown: tuple[tuple[Pair, list[int]], ...]
    """Test pairs, with the token ids of their prompts, that are answered for the report."""
    notices: tuple[str, ...]
    """What a reader of the report must know of all runs."""
    made: dict[int, EncodedPairs] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Seed -> its training rows, made once."""

    def identity(self) -> dict[str, Any]:
        """See `Setting`."""
        return self.config.identity() | {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "model": self.config.model,
            "model_fingerprint": self.model.fingerprint,
            "reference_fingerprint": self.reference and self.reference.fingerprint,
            "device": self.device.type,
        }

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        rows = self.drawn(seed)
        cut = pairs_sentence(rows, "train")
        return {
            "config": {
                "kind": "preferences",
                "task_fingerprint": self.task.fingerprint,
                "attribution": data_notice(self.task),
                "notices": [*self.notices, *([cut] if cut else [])],
                "train_texts": len(rows.rows),
                "test_texts": len(self.test.pairs.rows),
            }
        }

    def drawn(self, seed: int) -> EncodedPairs:
        """The training rows of a block."""
        draw = 0 if self.config.train_examples is None else seed
        if draw not in self.made:
            pairs = draw_problems(self.task.train, self.config.train_examples, seed=draw)
            if self.config.order == "file":
                places = {id(pair): place for place, pair in enumerate(self.task.train)}
                pairs = tuple(sorted(pairs, key=lambda pair: places[id(pair)]))
            self.made[draw] = encode_study_pairs(self.config, self.tokenizer, pairs, "train")
        return self.made[draw]

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> AnyTrainer:
        """See `Setting`."""
        measured: list[AnyTrainer] = []
        trainer = self._trainer(
            self._network(self.model),
            text,
            seed,
            workspace,
            report,
            rows=self.drawn(seed).rows,
            measure=lambda step, total: self._validate(measured[0], step, total),
        )
        measured.append(trainer)
        return trainer

    def _network(self, model: ResolvedModel) -> Any:
        weights = torch.bfloat16 if self.config.weights == "bfloat16" else torch.float32
        return load_causal_lm(model, device=self.device, dtype=weights)[0]

    def _trainer(
        self, network: Any, text: str, seed: int, workspace: Path, report: Progress, **settings: Any
    ) -> AnyTrainer:
        return make_trainer(
            self.config,
            network,
            self.tokenizer,
            settings.pop("rows"),
            text=text,
            seed=seed,
            workspace=workspace,
            on_cpu=self.device.type == "cpu",
            reference_cache=settings.pop("reference_cache", None),
            report=report,
            reference=None if self.reference is None else self._network(self.reference),
            **settings,
        )

    def scores(self, model: Any, pairs: EncodedPairs, **settings: Any) -> PairLogps:
        """Log-probabilities of pairs under a model."""
        pad, size = self.tokenizer.pad_token_id, self.config.eval_batch_size
        return score_pairs(model, pairs.rows, pad_token_id=pad, batch_size=size, **settings)

    def _validate(self, trainer: AnyTrainer, step: int, total: int) -> None:
        """A point of the validation curves, at evenly spaced steps; draws no random numbers."""
        points = min(self.config.curve_points, total)
        pairs = self.validation.pairs
        if not pairs.rows or step not in {round(point * total / points) for point in range(1, points + 1)}:
            return
        found = self.scores(trainer.model, pairs)
        if found.finite:
            metrics, _ = preference_metrics(found, self.validation.reference)
            for name in ("preference_accuracy", "margin"):
                trainer.curves.setdefault(f"validation_{name}", []).append([float(step), metrics[name]])

    def evaluate(self, trainer: AnyTrainer, report: Progress) -> dict[str, Any]:
        """What the trained model prefers on the test pairs, beside the model before training.

        Raises:
            TrainingDivergedError: If it gives log-probabilities that are no numbers.
        """
        begun = time.perf_counter()

        def scored(done: int, total: int) -> None:
            report(TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total)

        found = self.scores(trainer.model, self.test.pairs, on_batch=scored)
        if not found.finite:
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
        metrics, scores = preference_metrics(found, self.test.reference)
        before, _ = preference_metrics(self.test.start, self.test.reference)
        return {
            "metrics": metrics | {START + name: value for name, value in before.items()},
            "scores": scores,
            "evaluation_seconds": time.perf_counter() - begun,
            "config": {
                "rho": margin_histogram(trainer.seen),
                "shown": self._answers(trainer.model),
                "adapted_modules": adapted_modules(trainer.model),
            },
        }

    def _answers(self, model: Any) -> list[dict[str, str]]:
        """What the model now writes after some test prompts, greedily."""
        if not self.shown:
            return []
        written = generate(
            model,
            self.tokenizer,
            [prompt for _, prompt in self.shown],
            max_new_tokens=self.config.shown_tokens,
            batch_size=self.config.eval_batch_size,
            # Training is over, so that rounding by adding the adapters to the weights is harmless.
            merge=True,
        )
        return [
            {
                "prompt": prompt_text(pair.prompt),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "answer": answers[0].text,
            }
            for (pair, _), answers in zip(self.shown, written, strict=True)
        ]

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
        rows = self.drawn(config.blocks[0]).rows[:CHECKED_ROWS]
        network = self._network(self.model)
        try:
            with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
                for place, text in enumerate(config.all_losses):
                    folder = Path(workspace)
                    trainer = self._trainer(
                        network, text, 0, folder, lambda share: None, rows=rows, reference_cache=folder / str(place)
                    )
                    trained: Any = trainer.model
                    network = trained if config.lora is None else trained.unload()
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            if isinstance(error, LossmithError):
                raise
            raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def open_preference(config: PreferenceConfig) -> PreferenceSetting:
    """Load what all runs share, score the test before training, and find every mistake that can be found by then.

    Warns of what the data and the encoding noticed, such as prompts that were cut.

    Raises:
        LossmithError: If the task, model, reference, device, pairs or a loss cannot be used.
    """
    for text in config.all_losses:
        trained_by(text)
        build_loss(text, 0, {})
    if is_unpaired_task(config.task):
        raise DataError(
            f"'{config.task}' holds answers that are rated one by one, and what a study measures is which answer of a "
            f"pair is preferred: give pairs (kto and bco see their answers one by one), or train on such rows with "
            f"lossmith.integrations.trl.KTOTrainer."
        )
    task = load_preference_task(config.task, data=config.data)
    for name, wanted, there in (
        ("train_examples", config.train_examples, len(task.train)),
        ("test_examples", config.test_examples, len(task.test)),
    ):
        if wanted is not None and wanted > there:
            raise DataError(
                f"`{name}` is {wanted} and '{task.name}' has {there} such pairs: lower it, or leave it out."
            )
    device, model = pick_device(config.device), resolve_model(config.model)
    weights = torch.bfloat16 if config.weights == "bfloat16" else torch.float32
    network, tokenizer = load_causal_lm(model, device=device, dtype=weights)
    limit = token_limit(network, tokenizer)
    if limit is not None and config.max_length > limit:
        raise ConfigurationError(
            f"`max_length` must be <= {limit}, the most that the model reads, got {config.max_length}."
        )
    reference = None if config.reference is None else resolve_model(config.reference)
    other = None if reference is None else _other_reference(reference, network, tokenizer, weights, device)
    given = {"test": task.test, "validation": task.validation[: config.curve_examples]}
    if config.test_examples is not None:
        given["test"] = draw_problems(task.test, config.test_examples, seed=SUBSET_SEED)
    sets = {name: encode_study_pairs(config, tokenizer, pairs, name) for name, pairs in given.items()}
    found = {name: _scored(config, pairs, network, other, tokenizer, name) for name, pairs in sets.items()}
    said = [pairs_sentence(encoded, name) for name, encoded in sets.items()]
    notices = (*task.warnings, *(sentence for sentence in said if sentence), *_swapped(found["test"]))
    for notice in notices:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    return PreferenceSetting(
        config=config,
        model=model,
        device=device,
        task=task,
        tokenizer=tokenizer,
        reference=reference,
        validation=found["validation"],
        test=found["test"],
        shown=_shown(config, given["test"], sets["test"], limit),
        notices=notices,
    )


def _shown(
    config: PreferenceConfig, pairs: tuple[Pair, ...], encoded: EncodedPairs, limit: int | None
) -> tuple[tuple[Pair, list[int]], ...]:
    """Test pairs at even distances, with prompts that leave room for an answer."""
    if limit is not None and config.shown_answers and config.shown_tokens >= limit:
        raise ConfigurationError(
            f"`shown_tokens` must be < {limit}, the most that the model reads, got {config.shown_tokens}."
        )
    step = max(len(encoded.rows) // max(config.shown_answers, 1), 1)
    chosen = range(0, len(encoded.rows), step)[: config.shown_answers]
    room = None if limit is None else limit - config.shown_tokens
    return tuple(
        (pairs[encoded.places[row]], encoded.rows[row].prompt_ids[-room if room else None :]) for row in chosen
    )


def _scored(
    config: PreferenceConfig, pairs: EncodedPairs, network: Any, other: Any, tokenizer: Any, name: str
) -> Scored:
    start, reference = (
        stored_scores(model, tokenizer, pairs.rows, batch_size=config.eval_batch_size, name=name)
        for model in (network, network if other is None else other)
    )
    return Scored(pairs=pairs, start=start, reference=reference)


def _other_reference(
    reference: ResolvedModel, network: Any, tokenizer: Any, weights: torch.dtype, device: torch.device
) -> Any:
    """A reference of its own, whose tokens are those of the model.

    Raises:
        ConfigurationError: If they are not.
    """
    other, theirs = load_causal_lm(reference, device=device, dtype=weights)
    mine, known = tokenizer.get_vocab(), theirs.get_vocab()
    if mine != known:
        differing = sorted(token for token in mine.keys() | known.keys() if mine.get(token) != known.get(token))
        raise ConfigurationError(
            f"`reference` {reference.name} has another tokenizer than the model: {len(differing):,} tokens differ, the "
            f"first is {differing[0]!r}, and log-probabilities of different tokens cannot be compared: give a model "
            f"with the same tokenizer, or leave `reference` out."
        )
    return other


def _swapped(test: Scored) -> tuple[str, ...]:
    """A sentence where the reference prefers what the data call worse."""
    found = test.reference
    prefers = found.chosen / found.chosen_lengths < found.rejected / found.rejected_lengths
    if len(prefers) < SWAPPED_ROWS or prefers.mean() < SWAPPED_SHARE:
        return ()
    return (
        f"The reference finds the rejected answer likelier, per token, in {int(prefers.sum()):,} of {len(prefers):,} "
        f"test pairs: look at some of them, the columns `chosen` and `rejected` may be swapped.",
    )
