"""Sequence classification with transformers' Trainer and any lossmith loss on logits, embeddings or both."""

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, LossmithWarning, ModelError, TrainingDivergedError
from lossmith.integrations.models import quiet_transformers
from lossmith.integrations.pooling import pool
from lossmith.integrations.saving import load_loss, save_loss
from lossmith.nn import IGNORE_INDEX, LossModule, TokenLoss, loss


def encode(tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[dict[str, Any]]:
    """Token ids and label of each text, truncated to `max_length` tokens, not yet padded."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    return [{**{name: encoded[name][row] for name in encoded}, "labels": label} for row, label in enumerate(labels)]


class ClassificationTrainer(Trainer):
    """transformers' Trainer with a lossmith loss; the loss's proxies are optimised and saved with the model.

    Args:
        loss: Reads `logits`, `embeddings` or both, with `labels`.
        pooling: How embeddings come from the last hidden states; see `pool`.
        proxy_lr_multiplier: Proxies learn at the model's learning rate times this.
        on_step: Called after every optimiser step with (step, planned steps).
        on_epoch: Called after every epoch with the trainer and the step, outside `training_seconds`.
        **kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        loss: LossModule,
        pooling: str = "mean",
        proxy_lr_multiplier: float = 10.0,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[["ClassificationTrainer", int], None] | None = None,
        **kwargs: Any,
    ):
        accumulated = kwargs["args"].gradient_accumulation_steps if kwargs.get("args") is not None else 1
        uncounted = {"pair", "triplet"} & set(loss.items)
        if accumulated > 1 and uncounted:
            raise ConfigurationError(
                f"`gradient_accumulation_steps` must be 1 with '{loss}', got {accumulated}: how many "
                f"{' and '.join(sorted(uncounted))}s all micro-batches hold is not known before the last one."
            )
        # A `compute_loss_func` tells the Trainer to count items and to leave the scale of the loss alone.
        super().__init__(compute_loss_func=loss, **kwargs)
        self.loss = loss.to(self.args.device)
        self.pooling = pooling
        self.proxy_lr_multiplier = proxy_lr_multiplier
        self.curves: dict[str, list[list[float]]] = {"train_objective": [], "train_nll": []}
        self.training_seconds = 0.0
        self._nll = loss_of_plain_cross_entropy()
        self._micro_batches: list[tuple[float, float]] = []
        self._accumulated = (1, 0)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Recorder(self, on_step, on_epoch))
        if loss.batch_coupled and self.args.gradient_accumulation_steps > 1:
            warnings.warn(
                f"'{loss}' couples the rows of a batch: {self.args.gradient_accumulation_steps} accumulated "
                f"micro-batches are not one batch.",
                LossmithWarning,
                stacklevel=2,
            )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As in the Trainer, noting how many labels and micro-batches this optimiser step sees."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        labels = sum(int((sample["labels"] != IGNORE_INDEX).sum()) for sample in samples)
        self._accumulated = (len(samples), labels)
        return samples, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The lossmith loss of one micro-batch, normalised over the whole accumulated batch."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        reads_embeddings = "embeddings" in self.loss.inputs
        outputs = model(**inputs, output_hidden_states=reads_embeddings)
        given = {"logits": outputs.logits, "labels": labels}
        if reads_embeddings:
            if not outputs.get("hidden_states"):
                raise ModelError(
                    f"'{self.loss}' reads embeddings, but {type(model).__name__} returns no hidden states."
                )
            given["embeddings"] = pool(outputs.hidden_states[-1], inputs["attention_mask"], self.pooling)
        # Evaluation without training sees the end of a schedule.
        self.loss.set_progress(min(self.state.global_step / self.state.max_steps, 1.0) if self.state.max_steps else 1.0)
        value = self.loss(**{name: given[name] for name in self.loss.inputs}, num_items=self._num_items(model.training))
        if model.training:
            self._note(value, outputs.logits, labels)
        return (value, outputs) if return_outputs else value

    def _num_items(self, training: bool) -> dict[str, int] | int | None:
        micro_batches, labels = self._accumulated
        if not training or micro_batches == 1:
            return None
        counts = {"token": max(labels, 1), "anchor": max(labels, 1), "region": micro_batches, "batch": micro_batches}
        kinds = {kind: counts[kind] for kind in self.loss.items}
        return kinds if len(kinds) > 1 else kinds[self.loss.items[0]]

    def _note(self, value: Tensor, logits: Tensor, labels: Tensor) -> None:
        objective = float(value.detach()) * (self._accumulated[0] if self._num_items(True) is not None else 1)
        if not math.isfinite(objective):
            recent = [point[1] for point in self.curves["train_objective"][-4:]]
            raise TrainingDivergedError(self.state.global_step + 1, [*recent, objective])
        with torch.no_grad():
            self._micro_batches.append((objective, float(self._nll(logits, labels))))

    def end_step(self) -> None:
        """Turn the micro-batches of one optimiser step into one point of each curve."""
        if self._micro_batches:
            for name, column in zip(self.curves, zip(*self._micro_batches, strict=True), strict=False):
                self.curves[name].append([float(self.state.global_step), sum(column) / len(column)])
            self._micro_batches.clear()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with one more group for the loss's own parameters."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            for group in self.loss.param_groups(self.args.learning_rate, proxy_lr_multiplier=self.proxy_lr_multiplier):
                optimizer.add_param_group(group)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        save_loss(self.loss, Path(output_dir or str(self.args.output_dir)), pooling=self.pooling)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_loss(self.loss, Path(resume_from_checkpoint))


def loss_of_plain_cross_entropy() -> TokenLoss:
    """Plain NLL, always logged beside a re-weighted loss."""
    module = loss("cross_entropy")
    assert isinstance(module, TokenLoss)
    return module


class _Recorder(TrainerCallback):
    """Ends steps and epochs: curves, progress, and a clock that stands still outside training."""

    def __init__(
        self,
        trainer: ClassificationTrainer,
        on_step: Callable[[int, int], None] | None,
        on_epoch: Callable[[ClassificationTrainer, int], None] | None,
    ):
        self.trainer, self.on_step, self.on_epoch = trainer, on_step, on_epoch
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step()
        # The Trainer clears the gradients of its model only; those of the proxies would add up from step to step.
        self.trainer.loss.zero_grad()
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        if self.on_epoch is not None:
            self.on_epoch(self.trainer, state.global_step)
        self._since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        self.trainer.training_seconds += time.perf_counter() - self._since


def make_trainer(
    model: Any, tokenizer: Any, examples: list[dict[str, Any]], arguments: TrainingArguments, **kwargs: Any
) -> ClassificationTrainer:
    """A `ClassificationTrainer` on encoded examples, padded batch by batch."""
    return ClassificationTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        **kwargs,
    )


PASSED_ON = frozenset(
    [
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "lr_scheduler_kwargs",
        "neftune_noise_alpha",
        "optim",
        "optim_args",
        "optim_target_modules",
        "project",
        "report_to",
        "run_name",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "train_sampling_strategy",
    ]
)
"""Training arguments that a study passes on. The others it sets itself, or they would do nothing here, send results
elsewhere, or put a secret into the record."""


def training_arguments(extra: dict[str, Any], **settings: Any) -> TrainingArguments:
    """`TrainingArguments` from a study's settings and the user's own `trainer` settings.

    Raises:
        ConfigurationError: For names that are not passed on (with the nearest), or values that transformers refuses.
    """
    for name in extra:
        if name not in PASSED_ON:
            raise ConfigurationError(
                f"`trainer.{name}` is not passed on: it is no training argument, or the study sets it itself, or it "
                f"would do nothing here.{did_you_mean(name, PASSED_ON)} Passed on: {', '.join(sorted(PASSED_ON))}."
            )
    try:
        arguments = TrainingArguments(**settings, **extra, remove_unused_columns=False, disable_tqdm=True)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error
    if arguments.n_gpu > 1:
        # One run uses one device; DataParallel would split the batch that region and metric losses couple.
        arguments._n_gpu = 1
    return arguments


@torch.no_grad()
def predict_logits(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, Any]],
    batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Logits [examples, classes] on the CPU in float32, in the order given; batches are made of equal lengths.

    Draws no random numbers, so that calling it in the middle of training changes nothing.
    """
    collate = DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]["input_ids"]))
    training = model.training
    model.eval()
    try:
        rows: list[Tensor] = []
        for start in range(0, len(order), batch_size):
            batch = collate([examples[row] for row in order[start : start + batch_size]])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            rows.append(model(**batch).logits.float().cpu())
            if on_batch is not None:
                on_batch(min(start + batch_size, len(order)), len(order))
    finally:
        model.train(training)
    logits = torch.cat(rows)
    return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)


def save_classifier(trainer: ClassificationTrainer, folder: Path) -> None:
    """Write model, tokenizer and loss; `AutoModelForSequenceClassification.from_pretrained` loads the folder."""
    with quiet_transformers():
        for part in (trainer.model, trainer.processing_class):
            cast("Any", part).save_pretrained(folder)
    save_loss(trainer.loss, folder, pooling=trainer.pooling)
    # safetensors writes files that only their owner can read; a saved model is as readable as any other file.
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)
