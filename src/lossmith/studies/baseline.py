"""What models answer as they are: inference on a task's test problems, few-shot or not, with pass rates."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evidence import check_writable
from lossmith.evidence.folders import write_atomically
from lossmith.integrations.causal_lm.vllm import pick_backend
from lossmith.integrations.models import ResolvedModel, resolve_model
from lossmith.studies.answer_log import AnswerLog
from lossmith.studies.baseline_answers import ModelResult, Progress, Work, answers_of
from lossmith.studies.baseline_config import BaselineConfig
from lossmith.studies.completion import SUBSET_SEED
from lossmith.studies.provenance import commit, hardware, versions
from lossmith.studies.run import data_notice, pick_device
from lossmith.tasks import CompletionTask, Problem, draw_problems, load_completion_task


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """What all models answered, and where it comes from."""

    settings: dict[str, Any]
    """Of the `BaselineConfig`."""
    task: str
    """Name of the task."""
    kind: str
    """What an answer is."""
    task_fingerprint: str
    """SHA-256 over all rows of the task."""
    problems: int
    """Test problems."""
    models: tuple[ModelResult, ...]
    """In the order given."""
    backend: str
    """What generated."""
    notices: tuple[str, ...]
    """What a reader must know of the data."""
    attribution: str
    """Whose data these are."""
    versions: dict[str, str]
    """Package -> version."""
    commit: str | None
    """Of lossmith's source tree."""
    hardware: dict[str, Any]
    """The machine."""


def run_baseline(config: BaselineConfig, folder: Path, *, progress: Progress | None = None) -> BaselineResult:
    """Let models answer the test problems of a task, and judge the answers.

    Finished answers are in `folder/answers.jsonl` at once; the same call continues there and repeats none. The result
    is also written to `folder/result.json`.

    Args:
        config: What to do.
        folder: Where to write; new, or of the same settings (other models may be added).
        progress: Called after every batch.

    Raises:
        ConfigurationError: If a setting does not fit the task or a model.
        EvidenceError: If `folder` holds a baseline of other settings, or cannot be written.
        LossmithError: If the task or a model cannot be used.
    """
    task = load_completion_task(config.task, data=config.data)
    device = pick_device(config.device)
    backend = pick_backend(config.backend, device.type)
    problems = draw_problems(task.test, _limit(config, task), seed=SUBSET_SEED)
    models = [resolve_model(name) for name in config.models]
    check_writable(folder)
    _claim(folder, config, task, models, device.type, backend)
    work = Work(
        config=config,
        task=task,
        problems=problems,
        exemplars=_exemplars(config, task),
        device=device,
        backend=backend,
        answers=AnswerLog(folder / "answers.jsonl"),
        options=AnswerLog(folder / "options.jsonl"),
        progress=progress or (lambda what, done, total: None),
    )
    result = BaselineResult(
        settings=config.settings(),
        task=task.name,
        kind=task.kind,
        task_fingerprint=task.fingerprint,
        problems=len(problems),
        models=tuple(answers_of(work, model) for model in models),
        backend=backend,
        notices=task.warnings,
        attribution=data_notice(task),
        versions=versions(),
        commit=commit(),
        hardware=hardware(device),
    )
    write_atomically(folder / "result.json", json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n")
    return result


def _limit(config: BaselineConfig, task: CompletionTask) -> int | None:
    if config.limit is not None and config.limit > len(task.test):
        raise ConfigurationError(
            f"`limit` is {config.limit} and '{task.name}' has {len(task.test)} test problems: lower --limit."
        )
    return config.limit


def _exemplars(config: BaselineConfig, task: CompletionTask) -> tuple[Problem, ...]:
    """Training problems, never test ones."""
    if config.few_shot > len(task.train):
        raise ConfigurationError(
            f"`few_shot` is {config.few_shot} and the training split of '{task.name}' has {len(task.train)} problems: "
            f"lower --few-shot."
        )
    return draw_problems(task.train, config.few_shot, seed=config.seed) if config.few_shot else ()


def _claim(
    folder: Path,
    config: BaselineConfig,
    task: CompletionTask,
    models: Sequence[ResolvedModel],
    device: str,
    backend: str,
) -> None:
    """Make the folder this baseline's own, or see that it is.

    Raises:
        EvidenceError: If it is that of another one.
    """
    settings = {name: value for name, value in config.settings().items() if name not in ("models", "data", "task")}
    settings |= {"task": task.name, "task_fingerprint": task.fingerprint, "device": device, "backend": backend}
    file = folder / "settings.json"
    known: dict[str, str] = {}
    if file.is_file():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            before, known = there["settings"], there["models"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvidenceError(f"{file} is no file of `lossmith baseline`: choose another --out.") from error
        for name, value in settings.items():
            if before.get(name) != value:
                raise EvidenceError(
                    f"`{folder}` holds a baseline with `{name}` {before.get(name)!r}, this one has {value!r}: choose "
                    f"another --out, or the same settings to continue."
                )
        for model in models:
            if known.get(model.name, model.fingerprint) != model.fingerprint:
                raise EvidenceError(
                    f"`{folder}` holds answers of another model named {model.name} (its files have changed since): "
                    f"choose another --out."
                )
    elif (folder / "answers.jsonl").exists():
        raise EvidenceError(f"`{folder}` holds answers without their settings.json: choose another --out.")
    known = known | {model.name: model.fingerprint for model in models}
    write_atomically(file, json.dumps({"settings": settings, "models": known}, indent=2) + "\n")
