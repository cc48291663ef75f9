"""Studies of sequence classification: the head is the block's own, the test is the official test set."""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmith.errors import ConfigurationError, LossmithError, LossmithWarning, ModelError, TrainingDivergedError
from lossmith.evaluation import classification_metrics, predictions
from lossmith.integrations.classification import (
    ClassificationTrainer,
    encode,
    make_trainer,
    predict_logits,
    save_classifier,
)
from lossmith.integrations.models import load_classifier, resolve_model, token_limit
from lossmith.nn import parse_composition
from lossmith.studies.config import StudyConfig
from lossmith.studies.run import (
    TRAINING_SHARE,
    Progress,
    Setting,
    build_loss,
    data_notice,
    pick_device,
    seed_everything,
    trainer_arguments,
)
from lossmith.tasks import ClassificationTask, Example, draw_shots, load_task

DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class ClassificationSetting(Setting):
    """A classification task, an encoder or decoder, and a fresh head for every block."""

    config: StudyConfig
    task: ClassificationTask
    max_length: int
    """Tokens per text."""

    def identity(self) -> dict[str, Any]:
        """See `Setting`."""
        return self.config.identity() | {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "model": self.config.model,
            "model_fingerprint": self.model.fingerprint,
            "device": self.device.type,
            "max_length": self.max_length,
        }

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        return {
            "label_names": list(self.task.label_names),
            "config": {
                "max_length": self.max_length,
                "task_fingerprint": self.task.fingerprint,
                "attribution": data_notice(self.task),
                "notices": list(self.task.warnings),
                "train_texts": len(trained_on(self, seed)),
            },
        }

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> ClassificationTrainer:
        """See `Setting`."""
        config, task = self.config, self.task
        # Before the head is drawn, so that it is the block's own and the same for every loss.
        seed_everything(seed)
        model, tokenizer = load_classifier(self.model, task.label_names)
        sizes = {"num_classes": len(task.label_names)}
        if "embedding_dim" in parse_composition(text).required:
            sizes["embedding_dim"] = embedding_dim(model)
        objective = build_loss(text, seed, sizes)
        examples = trained_on(self, seed)
        steps_per_epoch = -(-len(examples) // (config.batch_size * config.accumulation))
        arguments = trainer_arguments(
            config,
            seed=seed,
            workspace=workspace,
            on_cpu=self.device.type == "cpu",
            steps=config.epochs * steps_per_epoch,
        )
        encoded = encode(tokenizer, [e.text for e in examples], [e.label for e in examples], self.max_length)
        return make_trainer(
            model,
            tokenizer,
            encoded,
            arguments,
            loss=objective,
            pooling=config.pooling,
            proxy_lr_multiplier=config.proxy_lr_multiplier,
            on_step=lambda step, total: report(TRAINING_SHARE * step / max(total, 1)),
            on_epoch=validation_curve(self, tokenizer),
        )

    def evaluate(self, trainer: ClassificationTrainer, report: Progress) -> dict[str, Any]:
        """Metrics, predictions and labels on the test set.

        Raises:
            TrainingDivergedError: If the trained model gives logits that are not finite.
        """
        begun = time.perf_counter()
        examples = self.task.test
        labels = np.array([example.label for example in examples])
        logits = predict_logits(
            trainer.model,
            trainer.processing_class,
            encode(trainer.processing_class, [e.text for e in examples], labels.tolist(), self.max_length),
            self.config.eval_batch_size,
            lambda done, total: report(TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total),
        ).numpy()
        if not np.isfinite(logits).all():
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
        return {
            "metrics": classification_metrics(logits, labels),
            "predictions": [int(value) for value in predictions(logits)],
            "labels": labels.tolist(),
            "evaluation_seconds": time.perf_counter() - begun,
        }

    def save(self, trainer: ClassificationTrainer, folder: Path) -> None:
        """See `Setting`."""
        save_classifier(trainer, folder)

    def check(self) -> None:
        """See `Setting`.

        Raises:
            LossmithError: If a loss does not fit the model, or transformers refuses a self.
        """
        config = self.config
        if config.precision == "fp16" and self.device.type != "cuda":
            raise ConfigurationError(
                f"`precision` fp16 needs a CUDA device, this is {self.device.type}: use bf16 or float32."
            )
        for text in config.all_losses:
            terms = parse_composition(text).terms
            for term in terms:
                if term.record.family in ("preference", "unpaired"):
                    raise ConfigurationError(
                        f"'{term.record.name}' of '{text}' compares completions, and classification has none: take a "
                        f"token, region or metric loss (`lossmith losses`)."
                    )
            if all(term.record.family == "metric" for term in terms):
                raise ConfigurationError(
                    f"'{text}' never reads the logits: the head would stay untrained and the test be a guess. Add a "
                    f"term that does, as in '0.4*cross_entropy + 0.6*{terms[0]}'."
                )
            for term in terms:
                if term.scope is not None:
                    raise ConfigurationError(
                        f"'{text}' restricts a term to the labels of '{term.scope}': classification has one label per "
                        f"text and no scopes."
                    )
        try:
            with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
                for text in config.all_losses:
                    trainer = self.prepare(text, config.blocks[0], Path(workspace), lambda share: None)
                    trainer.create_optimizer()
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            if isinstance(error, LossmithError):
                raise
            raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def open_classification(config: StudyConfig) -> ClassificationSetting:
    """Load what all runs share, and find every mistake that can be found before training.

    Warns of what the task noticed, such as texts that stand in both training and test data.

    Raises:
        LossmithError: If the task, model, device, shots or a loss cannot be used.
    """
    for text in config.all_losses:
        build_loss(text, 0, {"num_classes": 2, "embedding_dim": 2})
    task = load_study_task(config)
    for notice in task.warnings:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    for seed in config.blocks:
        draw_shots(task, seed=seed, shots_per_class=config.shots, shots_total=config.shots_total)
    model = resolve_model(config.model)
    network, tokenizer = load_classifier(model, task.label_names)
    max_length = pick_max_length(config.max_length, token_limit(network, tokenizer))
    device = pick_device(config.device)
    return ClassificationSetting(config=config, task=task, model=model, device=device, max_length=max_length)


def load_study_task(config: StudyConfig) -> ClassificationTask:
    """The task of a study's settings."""
    defaults = StudyConfig.model_fields
    names = ("text_column", "label_column", "split_seed", "test_fraction")
    # Only what differs is passed on: the loader refuses settings that have nothing to act on.
    given = {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name].default}
    return load_task(config.task, **given)


def trained_on(setting: ClassificationSetting, seed: int) -> list[Example]:
    """The training texts of a block, in their drawn order."""
    config, task = setting.config, setting.task
    drawn = draw_shots(task, seed=seed, shots_per_class=config.shots, shots_total=config.shots_total)
    return [task.train[index] for index in drawn]


def validation_curve(
    setting: ClassificationSetting, tokenizer: Any
) -> Callable[[ClassificationTrainer, int], None] | None:
    """After some epochs: accuracy and NLL on the same validation texts for every run; None without such texts."""
    config, task = setting.config, setting.task
    count = min(config.curve_examples, len(task.validation))
    if count == 0:
        return None
    rows = np.random.Generator(np.random.PCG64(config.split_seed)).choice(len(task.validation), count, replace=False)
    chosen = [task.validation[int(row)] for row in sorted(rows)]
    encoded = encode(tokenizer, [e.text for e in chosen], [e.label for e in chosen], setting.max_length)
    labels = np.array([example.label for example in chosen])

    points = min(config.curve_points, config.epochs)
    chosen_epochs = {round(point * config.epochs / points) for point in range(1, points + 1)}

    def measure(trainer: ClassificationTrainer, step: int) -> None:
        if round(trainer.state.epoch or 0) not in chosen_epochs:
            return
        logits = predict_logits(trainer.model, tokenizer, encoded, config.eval_batch_size).numpy()
        if np.isfinite(logits).all():
            metrics = classification_metrics(logits, labels)
            for name in ("accuracy", "nll"):
                trainer.curves.setdefault(f"validation_{name}", []).append([float(step), metrics[name]])

    return measure


def pick_max_length(wanted: int | None, limit: int | None) -> int:
    """Tokens per text, from the setting and what the model reads.

    Raises:
        ConfigurationError: If more is wanted than the model reads.
    """
    if wanted is None:
        return min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)
    if limit is not None and wanted > limit:
        raise ConfigurationError(f"`max_length` must be <= {limit}, the most that the model reads, got {wanted}.")
    return wanted


def embedding_dim(model: Any) -> int:
    """Width of the last hidden states.

    Raises:
        ModelError: If the model's configuration does not say.
    """
    size = getattr(model.config.get_text_config(), "hidden_size", None)
    if not isinstance(size, int):
        raise ModelError(f"{type(model).__name__} does not say its hidden size: metric losses cannot be used with it.")
    return size
