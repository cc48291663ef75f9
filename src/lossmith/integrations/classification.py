"""Sequence classification with transformers' Trainer and any lossmith loss on logits, embeddings or both."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments

from lossmith.errors import TrainingDivergedError
from lossmith.integrations.models import quiet_transformers
from lossmith.integrations.recorder import Recorder
from lossmith.integrations.saving import give_ordinary_permissions, save_loss
from lossmith.integrations.transformers import LossTrainer
from lossmith.nn import LossModule, TokenLoss, loss


def encode(tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[dict[str, Any]]:
    """Token ids and label of each text, truncated to `max_length` tokens, not yet padded."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    return [{**{name: encoded[name][row] for name in encoded}, "labels": label} for row, label in enumerate(labels)]


class ClassificationTrainer(LossTrainer):
    """`LossTrainer` for studies: it keeps curves and a clock.

    Args:
        loss: Reads `logits`, `embeddings` or both, with `labels`.
        on_step: Called after every optimiser step with (step, planned steps).
        on_epoch: Called after every epoch with the trainer and the step, outside `training_seconds`.
        **kwargs: As for `LossTrainer`.
    """

    def __init__(
        self,
        *,
        loss: LossModule,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[["ClassificationTrainer", int], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(loss=loss, **kwargs)
        self.curves: dict[str, list[list[float]]] = {"train_objective": [], "train_nll": []}
        self.training_seconds = 0.0
        self._nll = loss_of_plain_cross_entropy()
        self._points: list[tuple[float, float]] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(Recorder(self, on_step=on_step, on_epoch=on_epoch))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in `LossTrainer`; a loss that is no number ends training."""
        value, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._note(value, outputs.logits, inputs["labels"])
        return (value, outputs) if return_outputs else value

    def _note(self, value: Tensor, logits: Tensor, labels: Tensor) -> None:
        objective = float(value.detach()) * self._micro_batches
        if not math.isfinite(objective):
            recent = [point[1] for point in self.curves["train_objective"][-4:]]
            raise TrainingDivergedError(self.state.global_step + 1, [*recent, objective])
        with torch.no_grad():
            self._points.append((objective, float(self._nll(logits, labels))))

    def end_step(self) -> None:
        """Turn the micro-batches of one optimiser step into one point of each curve."""
        if self._points:
            for name, column in zip(self.curves, zip(*self._points, strict=True), strict=False):
                self.curves[name].append([float(self.state.global_step), sum(column) / len(column)])
            self._points.clear()


def loss_of_plain_cross_entropy() -> TokenLoss:
    """Plain NLL, always logged beside a re-weighted loss."""
    module = loss("cross_entropy")
    assert isinstance(module, TokenLoss)
    return module


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
    give_ordinary_permissions(folder)
