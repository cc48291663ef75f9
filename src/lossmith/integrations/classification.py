"""Sequence classification with transformers' Trainer and any lossmith loss on logits, embeddings or both."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments

from lossmith.errors import ConfigurationError, TrainingDivergedError
from lossmith.integrations.pooling import TOKENS, pool
from lossmith.integrations.recorder import Recorder
from lossmith.integrations.transformers import LossTrainer
from lossmith.nn import LossModule, PKBatchSampler, TokenLoss, loss


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    max_length: int,
    *,
    pairs: Sequence[str] | None = None,
    mark_special: bool = False,
) -> list[dict[str, Any]]:
    """Token ids and label of each text, truncated to `max_length` tokens, not yet padded.

    Args:
        tokenizer: The model's.
        texts: The texts, or the first ones of pairs.
        labels: Class ids.
        max_length: Most tokens of a text, or of both texts of a pair together; the longer one is cut first.
        pairs: The second texts.
        mark_special: Whether rows tell special tokens from those of the text.
    """
    both = (list(texts),) if pairs is None else (list(texts), list(pairs))
    encoded = tokenizer(*both, truncation=True, max_length=max_length, return_special_tokens_mask=mark_special)
    return [{**{name: encoded[name][row] for name in encoded}, "labels": label} for row, label in enumerate(labels)]


@dataclass(frozen=True, kw_only=True)
class EncodedAnswers:
    """Texts of prompts with their answers as token rows, and how many were cut."""

    rows: list[dict[str, Any]]
    """Columns of each text, not yet padded."""
    cut_prompts: int
    """Texts that lost tokens before their answer."""
    cut_answers: int
    """Texts whose answer lost its end, and with it the whole prompt."""


def encode_answers(tokenizer: Any, texts: Sequence[str], answers: Sequence[str], max_length: int) -> EncodedAnswers:
    """Token rows in which a text keeps its answer: it is cut on its left, its answer only where that alone is too long.

    Args:
        tokenizer: The model's.
        texts: Prompt and answer in one text, perhaps in a chat template.
        answers: The answer that each text ends with; what a template puts behind it stays with it.
        max_length: Most tokens of a text.
    """
    rows = _columns(tokenizer, texts)
    long = [place for place, row in enumerate(rows) if len(row["input_ids"]) > max_length]
    # A template may strip an answer; where it is not found, the end of the text is kept.
    begins = {place: texts[place].rfind(answers[place].strip()) for place in long}
    tails = {place: texts[place][begin:] if begin >= 0 else "" for place, begin in begins.items()}
    lengths = [len(row["input_ids"]) for row in _columns(tokenizer, list(tails.values()))]
    whole = [place for place, length in zip(long, lengths, strict=True) if length <= max_length]
    parted = [place for place in long if place not in set(whole)]
    for side, places, cut in (
        ("left", whole, [texts[p] for p in whole]),
        ("right", parted, [tails[p] for p in parted]),
    ):
        for place, row in zip(places, _columns(tokenizer, cut, max_length, side), strict=True):
            rows[place] = row
    return EncodedAnswers(rows=rows, cut_prompts=len(whole), cut_answers=len(parted))


def _columns(
    tokenizer: Any, texts: Sequence[str], max_length: int | None = None, side: str = "right"
) -> list[dict[str, Any]]:
    """Columns of each text, cut on a side where there is a length."""
    if not texts:
        return []
    before = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        encoded = tokenizer(list(texts), truncation=max_length is not None, max_length=max_length, verbose=False)
    finally:
        tokenizer.truncation_side = before
    return [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]


class ClassificationTrainer(LossTrainer):
    """`LossTrainer` for studies: it keeps curves and a clock.

    Args:
        loss: Reads `logits`, `embeddings` or both, with `labels`.
        on_step: Called after every optimiser step with (step, planned steps).
        on_epoch: Called after every epoch with the trainer and the step, outside `training_seconds`.
        samples_per_class: K of class-balanced batches, drawn by `lossmith.nn.PKBatchSampler`, as many as shuffled ones
            of the same size would be; None shuffles.
        **kwargs: As for `LossTrainer`.
    """

    def __init__(
        self,
        *,
        loss: LossModule,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[["ClassificationTrainer", int], None] | None = None,
        samples_per_class: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(loss=loss, **kwargs)
        self._balanced = None if samples_per_class is None else self._balanced_batches(samples_per_class)
        self.curves: dict[str, list[list[float]]] = {"train_objective": [], "train_nll": []}
        self.training_seconds = 0.0
        self._nll = loss_of_plain_cross_entropy()
        self._points: list[tuple[float, float]] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(Recorder(self, on_step=on_step, on_epoch=on_epoch))

    def get_train_dataloader(self) -> Any:
        """As in the Trainer; class-balanced batches where they are asked for."""
        if self._balanced is None:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        return self.accelerator.prepare(DataLoader(dataset, batch_sampler=self._balanced, collate_fn=collate))

    def _balanced_batches(self, samples_per_class: int) -> PKBatchSampler:
        dataset: Any = self.train_dataset
        return balanced_batches(
            [row["labels"] for row in dataset],
            batch_size=self.args.per_device_train_batch_size,
            samples_per_class=samples_per_class,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

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


def balanced_batches(labels: Sequence[int], *, batch_size: int, samples_per_class: int, seed: int) -> PKBatchSampler:
    """Batches of P classes with K rows each, as many as shuffled batches of `batch_size` would be.

    K is at least `samples_per_class`, and larger where there are few classes: two classes in batches of 20 have 10
    rows each, but never more than the largest class has.

    Raises:
        ConfigurationError: If no batch of two classes with `samples_per_class` rows each can be made.
    """
    rows = [count for count in Counter(labels).values() if count > 1]
    if len(rows) < 2:
        raise ConfigurationError(
            f"`sampling` balanced needs at least two classes with two training texts or more, got {len(rows)}: draw "
            f"more shots, or use `sampling` shuffled."
        )
    if batch_size < 2 * samples_per_class:
        raise ConfigurationError(
            f"`samples_per_class` must be at most half of `batch_size`, {batch_size}, got {samples_per_class}."
        )
    classes = min(batch_size // samples_per_class, len(rows))
    samples = min(batch_size // classes, max(max(rows), samples_per_class))
    return PKBatchSampler(
        labels,
        classes_per_batch=classes,
        samples_per_class=samples,
        num_batches=-(-len(labels) // batch_size),
        seed=seed,
    )


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


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a classifier says of some texts."""

    logits: Tensor
    """[examples, classes], float32 on the CPU."""
    embeddings: Tensor
    """Pooled last hidden states, [examples, dim], float32 on the CPU."""


@torch.no_grad()
def predict_outputs(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, Any]],
    batch_size: int,
    *,
    pooling: str,
    on_batch: Callable[[int, int], None] | None = None,
) -> Outputs:
    """Logits and embeddings in the order given; batches are made of equal lengths. Draws no random numbers.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        examples: From `encode`; with `mark_special` where `pooling` is "tokens".
        batch_size: Texts per forward pass.
        pooling: "mean", "cls", "last", or "tokens" for the mean over a text's own tokens.
        on_batch: Called with (done, all) after each batch.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def look(batch: dict[str, Tensor]) -> None:
        special = batch.pop("special_tokens_mask", None)
        outputs = model(**batch, output_hidden_states=True)
        keep = batch["attention_mask"]
        if pooling == TOKENS:
            assert special is not None
            keep = keep * (1 - special)
        pooled = pool(outputs.hidden_states[-1], keep, "mean" if pooling == TOKENS else pooling)
        found.append((outputs.logits.float().cpu(), pooled.float().cpu()))

    order = _in_batches(model, tokenizer, examples, batch_size, look, on_batch)
    logits, embeddings = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Outputs(logits=_restored(logits, order), embeddings=_restored(embeddings, order))


def _restored(rows: Tensor, order: list[int]) -> Tensor:
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order), rows)


def _in_batches(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, Any]],
    batch_size: int,
    look: Callable[[dict[str, Tensor]], object],
    on_batch: Callable[[int, int], None] | None,
) -> list[int]:
    """Show the examples to `look`, padded, batches of equal lengths; returns their order."""
    collate = DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]["input_ids"]))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = collate([examples[row] for row in order[start : start + batch_size]])
            look({name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"})
            if on_batch is not None:
                on_batch(min(start + batch_size, len(order)), len(order))
    finally:
        model.train(training)
    return order


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
    rows: list[Tensor] = []

    def look(batch: dict[str, Tensor]) -> None:
        batch.pop("special_tokens_mask", None)
        rows.append(model(**batch).logits.float().cpu())

    order = _in_batches(model, tokenizer, examples, batch_size, look, on_batch)
    return _restored(torch.cat(rows), order)
