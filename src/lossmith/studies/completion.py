"""Studies of completions: a causal language model is fine-tuned with a loss and then writes the answers of the test."""

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import ConfigurationError, DataError, LossmithError, LossmithWarning
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.encoding import EncodedSet, PromptFormat, cut_sentence
from lossmith.integrations.causal_lm.loading import adapted_modules, add_lora, load_causal_lm, save_causal_lm
from lossmith.integrations.causal_lm.trainer import CompletionTrainer, ReleasedTrainer
from lossmith.integrations.models import resolve_model, token_limit
from lossmith.nn import parse_composition
from lossmith.studies.answers import answers_nll, evaluate_answers
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.encoded import encode_study, prompt_format
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
from lossmith.tasks import CompletionTask, Problem, draw_problems, load_completion_task

SUBSET_SEED = 20240
"""Seed of the test and validation rows, which are the same for all blocks."""
SAMPLES = 8
"""Test problems whose answers the report shows side by side."""
LOGGED_POINTS = 50
"""Points of the training curves."""

AnyTrainer = CompletionTrainer | ReleasedTrainer


@dataclass(frozen=True, kw_only=True)
class CompletionSetting(Setting):
    """A task with prompts and answers, and a causal language model that is adapted anew for every block."""

    config: CompletionConfig
    task: CompletionTask
    tokenizer: Any
    format: PromptFormat
    """How prompts and answers become tokens."""
    train: EncodedSet
    """All training rows, in the order of the task."""
    validation: EncodedSet
    """Rows for the learning curve."""
    test: tuple[Problem, ...]
    """Rows of the final test."""
    test_rows: EncodedSet
    """The same with their right answers, for the likelihood."""
    notices: tuple[str, ...]
    """What a reader of the report must know."""
    backend: str
    """What generates: "transformers" or "vllm"."""

    def identity(self) -> dict[str, Any]:
        """See `Setting`."""
        return self.config.identity() | {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "model": self.config.model,
            "model_fingerprint": self.model.fingerprint,
            "device": self.device.type,
            "backend": self.backend,
        }

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        rows = self.drawn(seed)
        step = max(len(self.test) // SAMPLES, 1)
        shown = range(0, len(self.test), step)[:SAMPLES]
        return {
            "label_names": [*_longest_options(self.test), "unparsed"] if self.task.kind == "choice" else [],
            "config": {
                "task_fingerprint": self.task.fingerprint,
                "kind": self.task.kind,
                "attribution": data_notice(self.task),
                "notices": list(self.notices),
                "train_texts": len(rows.rows),
                "cut_rows": rows.cut_rows,
                "cut_tokens": rows.cut_tokens,
                "samples": [
                    {"index": row, "prompt": self.test[row].prompt, "target": self.test[row].target} for row in shown
                ],
            },
        }

    def drawn(self, seed: int) -> EncodedSet:
        """The training rows of a block."""
        config = self.config
        if config.train_examples is None:
            return self.train
        problems: Sequence[Problem] = draw_problems(self.task.train, config.train_examples, seed=seed)
        if config.order == "file":
            places = {id(problem): place for place, problem in enumerate(self.task.train)}
            problems = sorted(problems, key=lambda problem: places[id(problem)])
        return encode_study(config, self.format, self.model.fingerprint, problems)

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> AnyTrainer:
        """See `Setting`."""
        return self._trainer(self.adapted_model(seed), text, seed, workspace, report)

    def adapted_model(self, seed: int) -> Any:
        """The pretrained model with the block's own adapters, ready for training."""
        weights = torch.bfloat16 if self.config.weights == "bfloat16" else torch.float32
        network, _ = load_causal_lm(self.model, device=self.device, dtype=weights)
        # Before the adapters are drawn, so that they are the block's own and the same for every loss.
        seed_everything(seed)
        if self.config.lora is not None:
            network = add_lora(network, **self.config.lora.model_dump())
        return network

    def _trainer(self, network: Any, text: str, seed: int, workspace: Path, report: Progress) -> AnyTrainer:
        config, examples = self.config, self.drawn(seed).examples
        steps = config.epochs * -(-len(examples) // (config.batch_size * config.accumulation))
        arguments = trainer_arguments(
            config,
            seed=seed,
            workspace=workspace,
            on_cpu=self.device.type == "cpu",
            steps=steps,
            logging_strategy="steps",
            logging_steps=max(1, steps // LOGGED_POINTS),
            train_sampling_strategy="random" if config.order == "shuffled" else "sequential",
        )
        released = config.masking == "zeroed"
        make = ReleasedTrainer if released else CompletionTrainer
        measured: list[AnyTrainer] = []
        trainer = make(
            model=network,
            args=arguments,
            train_dataset=examples,
            data_collator=self.collator,
            processing_class=self.tokenizer,
            loss=text if released else build_loss(text, seed, {}),
            on_step=lambda step, total: report(TRAINING_SHARE * step / max(total, 1)),
            measure=lambda step, total: self._validate(measured[0], step, total),
        )
        measured.append(trainer)
        return trainer

    @property
    def collator(self) -> CompletionCollator:
        """Pads training rows."""
        return CompletionCollator(
            self.tokenizer.pad_token_id,
            side="left" if self.config.encoding == "released" or self.config.masking == "zeroed" else "right",
            labels=self.config.labels,
            eos_token_ids=(self.tokenizer.eos_token_id,),
            train_eos=self.config.end == "trained",
        )

    def _validate(self, trainer: AnyTrainer, step: int, total: int) -> None:
        """A point of the plain NLL of the validation answers, at evenly spaced steps; draws no random numbers."""
        points = min(self.config.curve_points, total)
        if not self.validation.rows or step not in {round(point * total / points) for point in range(1, points + 1)}:
            return
        nats, tokens = answers_nll(self, trainer.model, self.validation)
        trainer.curves.setdefault("validation_nll", []).append([float(step), nats / tokens])

    def evaluate(self, trainer: AnyTrainer, report: Progress) -> dict[str, Any]:
        """See `Setting`."""
        begun = time.perf_counter()
        found = evaluate_answers(self, trainer, lambda share: report(TRAINING_SHARE + (1 - TRAINING_SHARE) * share))
        found["config"]["adapted_modules"] = adapted_modules(trainer.model)
        return found | {"evaluation_seconds": time.perf_counter() - begun}

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
            for term in parse_composition(text).terms:
                if term.record.family not in ("token", "region"):
                    raise ConfigurationError(
                        f"'{term.record.name}' of '{text}' is a {term.record.family} loss, and a language model that "
                        f"writes answers has tokens only: take a token or region loss (`lossmith losses`)."
                    )
        network = self.adapted_model(config.blocks[0])
        try:
            with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
                for text in config.all_losses:
                    self._trainer(network, text, config.blocks[0], Path(workspace), lambda share: None)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            if isinstance(error, LossmithError):
                raise
            raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def open_completion(config: CompletionConfig) -> CompletionSetting:
    """Load what all runs share, and find every mistake that can be found before training.

    Warns of what the task and the encoding noticed, such as questions that were cut.

    Raises:
        LossmithError: If the task, model, device, rows or a loss cannot be used.
    """
    from lossmith.integrations.causal_lm.vllm import pick_backend

    for text in config.all_losses:
        build_loss(text, 0, {})
    task = load_completion_task(config.task, data=config.data)
    for name, wanted, there in (
        ("train_examples", config.train_examples, len(task.train)),
        ("test_examples", config.test_examples, len(task.test)),
    ):
        if wanted is not None and wanted > there:
            raise DataError(f"`{name}` is {wanted} and '{task.name}' has {there} such rows: lower it, or leave it out.")
    test = _subset(task.test, config.test_examples)
    validation = task.validation[: config.curve_examples]
    device = pick_device(config.device)
    model = resolve_model(config.model)
    network, tokenizer = load_causal_lm(model)
    _check_lengths(config, token_limit(network, tokenizer))
    form = prompt_format(config, tokenizer, task.instruction)
    sets = {
        name: encode_study(config, form, model.fingerprint, problems)
        for name, problems in (("train", task.train), ("validation", validation), ("test", test))
    }
    for name, encoded in sets.items():
        if encoded.dropped_rows and not encoded.rows:
            raise DataError(f"No {name} row is left at `max_length` = {config.max_length}: raise it.")
    cut = [cut_sentence(encoded, name) for name, encoded in sets.items()]
    notices = (*task.warnings, *(sentence for sentence in cut if sentence), *_warm_up_notice(config, len(task.train)))
    for notice in notices:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    return CompletionSetting(
        config=config,
        model=model,
        device=device,
        task=task,
        tokenizer=tokenizer,
        format=form,
        train=sets["train"],
        validation=sets["validation"],
        test=test,
        test_rows=sets["test"],
        notices=notices,
        backend=pick_backend(config.backend, device.type),
    )


def _warm_up_notice(config: CompletionConfig, rows: int) -> tuple[str, ...]:
    steps = config.epochs * -(-(config.train_examples or rows) // (config.batch_size * config.accumulation))
    if config.warmup_steps is None or config.warmup_steps < steps:
        return ()
    return (
        f"The learning rate rises for {config.warmup_steps} steps and a run has {steps}: it never reaches its peak.",
    )


def _subset(problems: tuple[Problem, ...], count: int | None) -> tuple[Problem, ...]:
    return problems if count is None else tuple(draw_problems(problems, count, seed=SUBSET_SEED))


def _longest_options(problems: Sequence[Problem]) -> tuple[str, ...]:
    return max((problem.options for problem in problems), key=len)


def _check_lengths(config: CompletionConfig, limit: int | None) -> None:
    """What a model reads must hold the training rows, and leave room for the answers.

    Raises:
        ConfigurationError: If it does not.
    """
    if limit is not None and config.max_length > limit:
        raise ConfigurationError(
            f"`max_length` must be <= {limit}, the most that the model reads, got {config.max_length}."
        )
    if limit is not None and config.max_new_tokens >= limit:
        raise ConfigurationError(
            f"`max_new_tokens` must be < {limit}, the most that the model reads, got {config.max_new_tokens}."
        )
