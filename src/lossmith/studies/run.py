"""One run: one loss on one block of one study, from fresh weights to a record; what all kinds of studies share."""

import abc
import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmith.errors import ConfigurationError, TrainingDivergedError
from lossmith.evidence import RunRecord
from lossmith.integrations.arguments import training_arguments
from lossmith.integrations.models import ResolvedModel
from lossmith.nn import LossModule, loss, parse_composition
from lossmith.studies.config import SharedConfig
from lossmith.studies.provenance import commit, hardware, peak_memory_mib, reset_peak_memory, versions

Progress = Callable[[float], None]
"""Called with the share of the run that is done, from 0 to 1."""
QUIET = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "logging_strategy": "no"}
"""Training arguments of a run unless `trainer` says otherwise: no checkpoints, no logger."""
CURVE_POINTS = 500
"""Points that a record keeps of each curve."""
PROXY_STREAM = 1
"""Key of the proxies' random stream within a block."""
TRAINING_SHARE = 0.75
"""Share of a run's progress that is training; the rest is the test."""


@dataclass(frozen=True, kw_only=True)
class Setting(abc.ABC):
    """What all runs of a study share, loaded once; a kind of study says how its runs are made and tested."""

    config: SharedConfig
    model: ResolvedModel
    device: torch.device

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What all runs of one results folder share: settings, data and weights by content, and kind of device."""

    @abc.abstractmethod
    def check(self) -> None:
        """Build what every run builds, without training, so that what would fail in each of them fails now."""

    @abc.abstractmethod
    def described(self, seed: int) -> dict[str, Any]:
        """Fields of the record of a block that do not depend on the loss; `config` holds what the settings lack."""

    @abc.abstractmethod
    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> Any:
        """The trainer of one run, everything drawn from the block's seed."""

    @abc.abstractmethod
    def evaluate(self, trainer: Any, report: Progress) -> dict[str, Any]:
        """Fields of the record that the test gives."""

    @abc.abstractmethod
    def save(self, trainer: Any, folder: Path) -> None:
        """Write the trained model so that transformers loads it."""


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

    The block fixes initial weights, the draw of the training rows, their order and dropout, identically for every loss.
    """
    record, _ = train_and_test(setting, text, seed, workspace, attempts=attempts, progress=progress)
    return record


def train_and_test(
    setting: Setting, text: str, seed: int, workspace: Path, *, attempts: int = 1, progress: Progress | None = None
) -> tuple[RunRecord, Any]:
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
) -> tuple[RunRecord, Any]:
    started_at = _now()
    described = setting.described(seed)
    settings = {
        name: value for name, value in setting.config.settings().items() if name not in ("losses", "seeds", "betas")
    }
    own = {"device": setting.device.type, "model_fingerprint": setting.model.fingerprint}
    common: dict[str, Any] = described | {
        "loss": text,
        "seed": seed,
        "config": settings | own | described["config"],
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(setting.device),
        "started_at": started_at,
        "attempts": attempts,
    }
    with deterministic():
        trainer = setting.prepare(text, seed, workspace, report)
        reset_peak_memory(setting.device)
        outcome: dict[str, Any] = {"status": "finished"}
        try:
            seed_everything(seed)
            trainer.train()
            outcome["peak_memory_mib"] = peak_memory_mib(setting.device)
            outcome |= setting.evaluate(trainer, report)
        except (TrainingDivergedError, torch.OutOfMemoryError) as error:
            # What one loss does on one block is a result; everything else would fail alike in every run.
            outcome = {"status": "failed", "error": str(error).split("\n")[0]}
    common["config"] |= outcome.pop("config", {})
    curves = {name: thinned(points) for name, points in trainer.curves.items()}
    return RunRecord(
        **common, **outcome, curves=curves, train_seconds=trainer.training_seconds, finished_at=_now()
    ), trainer


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` of a curve's points, evenly spaced, with the first and the last."""
    if len(points) <= CURVE_POINTS:
        return points
    return [points[int(place)] for place in np.linspace(0, len(points) - 1, CURVE_POINTS).round()]


def data_notice(task: Any) -> str:
    """Whose data these are, under which licence, from where."""
    if task.licence == task.attribution:  # neither is stated
        return f"{task.source}: {task.licence}."
    return f"{task.attribution} Licence: {task.licence}. {task.source}"


def trainer_arguments(
    config: SharedConfig, *, seed: int, workspace: Path, on_cpu: bool, steps: int, **further: Any
) -> Any:
    """The Trainer's arguments for one run of `steps` optimiser steps.

    Args:
        config: The study.
        seed: The block.
        workspace: The Trainer's output folder.
        on_cpu: Whether to train on the CPU.
        steps: Optimiser steps of the run.
        **further: Arguments that `trainer` settings may override.

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
        warmup_steps=config.warmup_steps_of(steps),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=on_cpu,
        **_unless_given(config.trainer, QUIET | further),
    )


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
