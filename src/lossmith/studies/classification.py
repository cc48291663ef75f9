"""Studies of sequence classification: the head is the block's own, the test is the official test set."""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmith.errors import ConfigurationError, LossmithError, LossmithWarning, TrainingDivergedError
from lossmith.evaluation import classification_metrics, predictions
from lossmith.evaluation.inference import INFERENCE_METHODS, calibration_metrics, inference_metrics
from lossmith.integrations.classification import (
    ClassificationTrainer,
    encode,
    make_trainer,
    predict_logits,
)
from lossmith.integrations.classifiers import Inference, base_network, load_network, save_classifier
from lossmith.integrations.models import resolve_model, token_limit
from lossmith.integrations.pooled import hidden_size, reads_backwards_only
from lossmith.integrations.pooling import TOKENS
from lossmith.nn import parse_composition
from lossmith.studies.asking import ask
from lossmith.studies.config import StudyConfig
from lossmith.studies.draws import calibration_notices, check_batches, fold_notices, some, task_of_block, trained_on
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
from lossmith.tasks import ClassificationTask, Example, load_task
from lossmith.tasks.preference_loading import load_preference_task

DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class ClassificationSetting(Setting):
    """A classification task, an encoder or decoder, and a fresh head for every block."""

    config: StudyConfig
    task: ClassificationTask
    max_length: int
    """Tokens per text."""
    made: dict[int, ClassificationTask] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Fold -> its task, made once."""

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

    def task_of(self, seed: int) -> ClassificationTask:
        """The task of a block, with its own fold and as many test texts as are asked for."""
        fold = 0 if self.config.folds is None else seed % self.config.folds
        if fold not in self.made:
            self.made[fold] = task_of_block(self.task, self.config, seed)
        return self.made[fold]

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        fold = {} if self.config.folds is None else {"fold": seed % self.config.folds}
        return {
            "label_names": list(self.task.label_names),
            "config": {
                "max_length": self.max_length,
                "task_fingerprint": self.task.fingerprint,
                "attribution": data_notice(self.task),
                "notices": [*self.task_of(seed).warnings, *fold_notices(self, seed), *calibration_notices(self, seed)],
                "train_texts": len(trained_on(self, seed)),
                **fold,
            },
        }

    def encoded(self, tokenizer: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Token rows of texts, or of pairs of them."""
        return encode(
            tokenizer,
            [example.text for example in examples],
            [example.label for example in examples],
            self.max_length,
            pairs=[str(example.pair) for example in examples] if self.task.has_pairs else None,
            mark_special=self.config.pooling == TOKENS,
        )

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> ClassificationTrainer:
        """See `Setting`."""
        config, task = self.config, self.task_of(seed)
        # Before the head is drawn, so that it is the block's own and the same for every loss.
        seed_everything(seed)
        lora = None if config.lora is None else config.lora.model_dump()
        model, tokenizer = load_network(
            self.model, task.label_names, head=config.head, pooling=config.pooling, lora=lora
        )
        sizes = {"num_classes": len(task.label_names)}
        if "embedding_dim" in parse_composition(text).required:
            sizes["embedding_dim"] = hidden_size(base_network(model))
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
        return make_trainer(
            model,
            tokenizer,
            self.encoded(tokenizer, examples),
            arguments,
            loss=objective,
            pooling=config.pooling,
            proxy_lr_multiplier=config.proxy_lr_multiplier,
            samples_per_class=config.samples_per_class if config.sampling == "balanced" else None,
            on_step=lambda step, total: report(TRAINING_SHARE * step / max(total, 1)),
            on_epoch=validation_curve(self, seed, tokenizer),
        )

    def evaluate(self, trainer: ClassificationTrainer, report: Progress) -> dict[str, Any]:
        """Metrics of every way of inference, and the head's predictions, on the test set.

        Raises:
            TrainingDivergedError: If the trained model gives logits that are not finite.
        """
        begun = time.perf_counter()
        seed = trainer.args.seed
        asked = ask(self, trainer, seed, lambda share: report(TRAINING_SHARE + (1 - TRAINING_SHARE) * share))
        if not np.isfinite(asked.test.head).all() or not np.isfinite(asked.test.proxies).all():
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
        labels = np.array([example.label for example in self.task_of(seed).test])
        metrics = inference_metrics(asked.test, labels)
        metrics |= calibration_metrics(asked.test.head, labels, asked.temperatures.get("head"))
        right = {
            f"{method}_accuracy": (predictions(asked.test.of(method)) == labels).astype(float).tolist()
            for method in INFERENCE_METHODS
            if method != "head"
        }
        return {
            "metrics": metrics,
            "predictions": [int(value) for value in predictions(asked.test.head)],
            "labels": labels.tolist(),
            "scores": right,
            "evaluation_seconds": time.perf_counter() - begun,
            "config": {
                "temperatures": asked.temperatures,
                "calibration_texts": asked.calibration_texts,
                "proxies": "learnt" if asked.learnt_proxies else "class means",
            },
        }

    def save(self, trainer: ClassificationTrainer, folder: Path) -> None:
        """See `Setting`."""
        config = self.config
        asked = ask(self, trainer, trainer.args.seed, lambda share: None, test=())
        save_classifier(
            trainer.model,
            trainer.processing_class,
            trainer.loss,
            folder,
            inference=Inference(
                pooling=config.pooling,
                head=config.head,
                mixture=config.mixture,
                max_length=self.max_length,
                pairs=self.task.has_pairs,
                task=self.task.name,
                temperatures=asked.temperatures,
                text_column=config.text_column,
                text_pair_column=config.text_pair_column,
                label_column=config.label_column,
            ),
            support=(torch.from_numpy(asked.support.embeddings), torch.from_numpy(asked.support.labels)),
        )

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
        for seed in config.blocks:
            check_batches(config, trained_on(self, seed), seed)
        for text in config.all_losses:
            terms = parse_composition(text).terms
            for term in terms:
                if term.record.family in ("preference", "unpaired"):
                    raise ConfigurationError(
                        f"'{term.record.name}' of '{text}' compares completions, and classification has none: take a "
                        f"token, region or metric loss (`lossmith losses`)."
                    )
            by_head = config.metric.partition("_")[0] not in ("proxies", "neighbours")
            if by_head and all(term.record.family == "metric" for term in terms):
                raise ConfigurationError(
                    f"'{text}' never reads the logits: the head would stay untrained and the test be a guess. Add a "
                    f"term that does, as in '0.4*cross_entropy + 0.6*{terms[0]}', or be judged without the head, as by "
                    f"`metric` neighbours_accuracy."
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
        if Path(config.task).exists() and _compares_answers(text):
            # The loss says what was meant: the file lacks columns of pairs, and not a column of texts.
            load_preference_task(config.task)
        build_loss(text, 0, {"num_classes": 2, "embedding_dim": 2})
    task = load_study_task(config)
    for notice in task_of_block(task, config, config.blocks[0]).warnings:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    model = resolve_model(config.model)
    # The sizes do not depend on the head, and loading one that is not trained says nothing new.
    network, tokenizer = load_network(model, task.label_names, head=config.head, pooling=config.pooling, lora=None)
    if config.pooling == "cls" and reads_backwards_only(network):
        raise ConfigurationError(
            f"`pooling` cls takes the first token, which in {type(base_network(network)).__name__} sees nothing of the "
            f"text behind it: use `pooling` last or mean."
        )
    max_length = pick_max_length(config.max_length, token_limit(network, tokenizer))
    device = pick_device(config.device)
    setting = ClassificationSetting(config=config, task=task, model=model, device=device, max_length=max_length)
    for seed in config.blocks:
        trained_on(setting, seed)
    return setting


def _compares_answers(text: str) -> bool:
    return any(term.record.family in ("preference", "unpaired") for term in parse_composition(text).terms)


def load_study_task(config: StudyConfig) -> ClassificationTask:
    """The task of a study's settings."""
    defaults = StudyConfig.model_fields
    names = ("data", "text_column", "text_pair_column", "label_column", "split_seed", "test_fraction")
    # Only what differs is passed on: the loader refuses settings that have nothing to act on.
    given = {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name].default}
    return load_task(config.task, **given)


def validation_curve(
    setting: ClassificationSetting, seed: int, tokenizer: Any
) -> Callable[[ClassificationTrainer, int], None] | None:
    """After some epochs: accuracy and NLL on the same validation texts for every run; None without such texts."""
    config, task = setting.config, setting.task_of(seed)
    chosen = some(task.validation, config.curve_examples, config.split_seed)
    if not chosen:
        return None
    encoded = setting.encoded(tokenizer, chosen)
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
