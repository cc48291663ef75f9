"""One run: one loss on one block of one study, from a fresh head to a record."""

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmith.errors import ConfigurationError, LossmithError, ModelError, TrainingDivergedError
from lossmith.evaluation import classification_metrics, predictions
from lossmith.evidence import RunRecord
from lossmith.integrations.classification import (
    ClassificationTrainer,
    encode,
    make_trainer,
    predict_logits,
    training_arguments,
)
from lossmith.integrations.models import ResolvedModel, load_classifier
from lossmith.nn import LossModule, loss, parse_composition
from lossmith.studies.config import StudyConfig
from lossmith.studies.provenance import commit, hardware, peak_memory_mib, reset_peak_memory, versions
from lossmith.tasks import ClassificationTask, Example, draw_shots

Progress = Callable[[float], None]
"""Called with the share of the run that is done, from 0 to 1."""
QUIET = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "logging_strategy": "no"}
"""Training arguments of a run unless `trainer` says otherwise: no checkpoints, no logger."""
CURVE_POINTS = 500
"""Points that a record keeps of each curve."""
PROXY_STREAM = 1
"""Key of the proxies' random stream within a block."""
DEFAULT_MAX_LENGTH = 128
TRAINING_SHARE = 0.75
"""Share of a run's progress that is training; the rest is the test."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a study share, loaded once."""

    config: StudyConfig
    task: ClassificationTask
    model: ResolvedModel
    device: torch.device
    max_length: int
    """Tokens per text."""


def pick_device(name: str) -> torch.device:
    """The device of a `device` setting: one GPU, else MPS, else the CPU for "auto".

    Raises:
        ConfigurationError: If the named device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    # cuBLAS is deterministic only with a fixed workspace, which it reads once, before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigurationError(f"`--device {name}` is not available here, use one of: {there}.")
    return torch.device(name)


def build_loss(text: str, seed: int, sizes: dict[str, int]) -> LossModule:
    """The loss with proxies drawn from the block's seed, without touching torch's global generator.

    The proxies have a random stream of their own: drawn from the same one as the head, a proxy of one class would be
    the head's direction of another.
    """
    needed = {name: sizes[name] for name in parse_composition(text).required}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, PROXY_STREAM]).generate_state(1)[0]))
        return loss(text, **needed)


def run_block(
    setting: Setting, text: str, seed: int, workspace: Path, *, attempts: int = 1, progress: Progress | None = None
) -> RunRecord:
    """Train one loss on one block and test it; a diverged training is a failed record, not an exception.

    The block fixes the initial head, the draw of the shots, the data order and dropout, identically for every loss.
    """
    record, _ = train_and_test(setting, text, seed, workspace, attempts=attempts, progress=progress)
    return record


def train_and_test(
    setting: Setting, text: str, seed: int, workspace: Path, *, attempts: int = 1, progress: Progress | None = None
) -> tuple[RunRecord, ClassificationTrainer]:
    """As `run_block`, with the trainer that holds the model, the tokenizer and the loss.

    `workspace` is the Trainer's output folder: what the user's `trainer` settings (checkpoints, loggers) write stays
    there; what an interrupted attempt left is removed first.
    """
    shutil.rmtree(workspace, ignore_errors=True)
    try:
        return _train_and_test(setting, text, seed, workspace, attempts, progress or (lambda share: None))
    finally:
        with contextlib.suppress(OSError):  # not there, or holds what the user asked for
            workspace.rmdir()


def _train_and_test(
    setting: Setting, text: str, seed: int, workspace: Path, attempts: int, report: Progress
) -> tuple[RunRecord, ClassificationTrainer]:
    started_at = _now()
    config, task = setting.config, setting.task
    common: dict[str, Any] = {
        "loss": text,
        "seed": seed,
        "config": {name: value for name, value in config.settings().items() if name not in ("losses", "seeds")}
        | {
            "max_length": setting.max_length,
            "device": setting.device.type,
            "model_fingerprint": setting.model.fingerprint,
            "task_fingerprint": task.fingerprint,
            "attribution": data_notice(task),
            "notices": list(task.warnings),
            "train_texts": len(trained_on(setting, seed)),
        },
        "label_names": list(task.label_names),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(setting.device),
        "started_at": started_at,
        "attempts": attempts,
    }
    with deterministic():
        trainer = prepare(setting, text, seed, workspace, report)
        reset_peak_memory(setting.device)
        outcome: dict[str, Any] = {"status": "finished"}
        try:
            seed_everything(seed)
            trainer.train()
            outcome["peak_memory_mib"] = peak_memory_mib(setting.device)
            outcome |= _test(setting, trainer, report)
        except (TrainingDivergedError, torch.OutOfMemoryError) as error:
            # What one loss does on one block is a result; everything else would fail alike in every run.
            outcome = {"status": "failed", "error": str(error).split("\n")[0]}
    curves = {name: thinned(points) for name, points in trainer.curves.items()}
    return RunRecord(
        **common, **outcome, curves=curves, train_seconds=trainer.training_seconds, finished_at=_now()
    ), trainer


def _test(setting: Setting, trainer: ClassificationTrainer, report: Progress) -> dict[str, Any]:
    """Metrics, predictions and labels on the test set.

    Raises:
        TrainingDivergedError: If the trained model gives logits that are not finite.
    """
    begun = time.perf_counter()
    examples = setting.task.test
    labels = np.array([example.label for example in examples])
    logits = predict_logits(
        trainer.model,
        trainer.processing_class,
        encode(trainer.processing_class, [e.text for e in examples], labels.tolist(), setting.max_length),
        setting.config.eval_batch_size,
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


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` of a curve's points, evenly spaced, with the first and the last."""
    if len(points) <= CURVE_POINTS:
        return points
    return [points[int(place)] for place in np.linspace(0, len(points) - 1, CURVE_POINTS).round()]


def data_notice(task: ClassificationTask) -> str:
    """Whose data these are, under which licence, from where."""
    if task.licence == task.attribution:  # neither is stated
        return f"{task.source}: {task.licence}."
    return f"{task.attribution} Licence: {task.licence}. {task.source}"


def prepare(setting: Setting, text: str, seed: int, workspace: Path, report: Progress) -> ClassificationTrainer:
    """The trainer of one run, everything drawn from the block's seed."""
    config, task = setting.config, setting.task
    # Before the head is drawn, so that it is the block's own and the same for every loss.
    seed_everything(seed)
    model, tokenizer = load_classifier(setting.model, task.label_names)
    sizes = {"num_classes": len(task.label_names)}
    if "embedding_dim" in parse_composition(text).required:
        sizes["embedding_dim"] = embedding_dim(model)
    objective = build_loss(text, seed, sizes)
    examples = trained_on(setting, seed)
    steps_per_epoch = -(-len(examples) // (config.batch_size * config.accumulation))
    arguments = trainer_arguments(
        config,
        seed=seed,
        workspace=workspace,
        on_cpu=setting.device.type == "cpu",
        steps=config.epochs * steps_per_epoch,
    )
    encoded = encode(tokenizer, [e.text for e in examples], [e.label for e in examples], setting.max_length)
    return make_trainer(
        model,
        tokenizer,
        encoded,
        arguments,
        loss=objective,
        pooling=config.pooling,
        proxy_lr_multiplier=config.proxy_lr_multiplier,
        on_step=lambda step, total: report(TRAINING_SHARE * step / max(total, 1)),
        on_epoch=validation_curve(setting, tokenizer),
    )


def trained_on(setting: Setting, seed: int) -> list[Example]:
    """The training texts of a block, in their drawn order."""
    config, task = setting.config, setting.task
    drawn = draw_shots(task, seed=seed, shots_per_class=config.shots, shots_total=config.shots_total)
    return [task.train[index] for index in drawn]


def trainer_arguments(config: StudyConfig, *, seed: int, workspace: Path, on_cpu: bool, steps: int) -> Any:
    """The Trainer's arguments for one run of `steps` optimiser steps.

    Raises:
        ConfigurationError: If transformers refuses a setting.
    """
    return training_arguments(
        config.trainer,
        output_dir=str(workspace),
        seed=seed,
        data_seed=seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup_ratio * steps),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=on_cpu,
        **_unless_given(config.trainer, QUIET),
    )


def check_runs(setting: Setting) -> None:
    """Build what every run builds, without training, so that what would fail in each of them fails now.

    Raises:
        LossmithError: If a loss does not fit the model, or transformers refuses a setting.
    """
    config = setting.config
    if config.precision == "fp16" and setting.device.type != "cuda":
        raise ConfigurationError(
            f"`precision` fp16 needs a CUDA device, this is {setting.device.type}: use bf16 or float32."
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
                f"'{text}' never reads the logits: the head would stay untrained and the test be a guess. Add a term "
                f"that does, as in '0.4*cross_entropy + 0.6*{terms[0]}'."
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
                trainer = prepare(setting, text, config.blocks[0], Path(workspace), lambda share: None)
                trainer.create_optimizer()
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        if isinstance(error, LossmithError):
            raise
        raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def validation_curve(setting: Setting, tokenizer: Any) -> Callable[[ClassificationTrainer, int], None] | None:
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


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels inside, the former setting outside."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _unless_given(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    if "report_to" in given:
        # A logger without logs would be a setting that does nothing.
        defaults = {**defaults, "logging_strategy": "steps", "logging_steps": 1}
    return {name: value for name, value in defaults.items() if name not in given}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
