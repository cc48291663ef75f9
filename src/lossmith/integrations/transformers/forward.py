"""One forward of a model with a lossmith loss: at the output embedding, or on the logits of a classifier."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.engines import DenseSource, LinearLogits
from lossmith.errors import ModelError, ObjectiveInputError
from lossmith.integrations.batches import AlignedBatch
from lossmith.integrations.lm_head import HeadLoss, base_model
from lossmith.integrations.pooling import pool
from lossmith.integrations.transformers.figures import (
    EvaluationFigures,
    TrainingFigures,
    gradient_squares,
    has_terms,
    logs_next,
)
from lossmith.integrations.transformers.items import ItemKind, count_items
from lossmith.integrations.transformers.rows import batch_sums, kinds_of_terms, with_token_labels
from lossmith.nn import LossModule
from lossmith.nn.base import graph_zero
from lossmith.nn.linear import Watch


class LossForward:
    """What `LossMixin` does within one micro-batch: the loss, and what is noted on the way."""

    loss: LossModule
    average: str
    pooling: str
    impl: str
    training_figures: TrainingFigures
    evaluation_figures: EvaluationFigures
    _trainer: Any
    _head: HeadLoss | None
    _kinds: list[ItemKind]
    _scopes: tuple[str, ...]
    _wants_logits: bool

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        accelerator = self._trainer.accelerator
        return accelerator.reduce(tensor, reduction="sum") if accelerator.num_processes > 1 else tensor

    def _at_head(
        self, model: nn.Module, given: dict[str, Any], batch: AlignedBatch, num_items: dict[str, float]
    ) -> Any:
        built: list[Tensor] = []

        def loss_at_head(linear: LinearLogits) -> Tensor:
            linear.impl = self.impl
            if self._wants_logits:
                built.append(linear.dense().detach())
            rows = batch.rows_by_sequence() if self._needs_sequences() else None
            here, there = (linear, batch) if rows is None else (_at(linear, rows), batch.at(rows))
            if not model.training:
                self._note_evaluation(here, there)
            return self._value(here, there, num_items, training=model.training)

        assert self._head is not None
        outputs = self._head(model, {"use_cache": False, **given}, loss_at_head)
        return type(outputs)(**{**outputs, "logits": built[0]}) if built else outputs

    def _value(
        self, linear: LinearLogits, batch: AlignedBatch, num_items: dict[str, float], *, training: bool
    ) -> Tensor:
        asked = self._asked(batch, num_items)
        if not training:
            return self.loss(logits=linear, labels=batch.labels, **asked)
        if self._logs_now() and has_terms(self.loss):
            hidden = linear.hidden.detach().requires_grad_()
            bias = None if linear.bias is None else linear.bias.detach()
            detached = linear.with_parts(hidden, linear.weight.detach(), bias)
            parts = self.loss.breakdown(logits=detached, labels=batch.labels, **asked)
            self.training_figures.add_gradients(gradient_squares(parts, hidden))
        names = ("token_logps", "entropy") if self._logs_now() else ("token_logps",)
        # All labels, whatever the scopes of the terms: the NLL of training is that of evaluation.
        linear.watch = watch = Watch(names, batch.labels)
        value = self.loss(logits=linear, labels=batch.labels, **asked)
        # Where no label counts nothing was seen; the other ranks add up all the same.
        self._note_training(watch.take() or {name: linear.hidden.new_empty(0) for name in watch.names})
        return value

    def _on_logits(
        self, model: nn.Module, given: dict[str, Any], batch: AlignedBatch, num_items: dict[str, float]
    ) -> Any:
        reads_embeddings = "embeddings" in self.loss.inputs
        network = base_model(self._trainer.accelerator.unwrap_model(model))
        made: list[Any] = []
        handle = network.register_forward_hook(lambda module, args, result: made.append(result))
        try:
            outputs = model(**given, return_dict=True, **({"output_hidden_states": True} if reads_embeddings else {}))
        finally:
            handle.remove()
        if "logits" not in outputs:
            raise ModelError(
                f"{type(network).__name__} returns no `logits`, only {', '.join(f'`{name}`' for name in outputs)}: use "
                f"a causal language model or a classifier of texts or tokens."
            )
        inputs: dict[str, Tensor] = {"logits": outputs.logits, "labels": batch.labels}
        shared = outputs.logits
        if reads_embeddings:
            if not outputs.get("hidden_states"):
                raise ModelError(
                    f"'{self.loss}' reads embeddings, but {type(model).__name__} returns no hidden states."
                )
            if "attention_mask" not in given:
                raise ObjectiveInputError(
                    f"A batch must hold `attention_mask`, from which the embeddings for '{self.loss}' are pooled, got "
                    f"{', '.join(f'`{name}`' for name in given)}."
                )
            # DDP returns copies, on which its logits do not depend.
            shared = made[0].hidden_states[-1]
            hidden = outputs.hidden_states[-1]
            if batch.embedding_labels is None:
                inputs["embeddings"] = pool(hidden, given["attention_mask"], self.pooling)
            else:
                inputs["embeddings"] = hidden.flatten(0, 1)
        inputs = {name: value for name, value in inputs.items() if name in self.loss.inputs}
        asked = self._asked(batch, num_items)
        inputs, asked = with_token_labels(self.loss, batch, inputs, asked)
        if not model.training:
            self._note_evaluation(outputs.logits, batch, inputs)
        parts = self._parts(inputs, batch, asked)
        if model.training and self._logs_now() and has_terms(self.loss):
            self.training_figures.add_gradients(gradient_squares(parts, shared))
        value = torch.stack(list(parts.values())).sum()
        if getattr(self.loss, "scheduled", False):
            # What a phase that does not count reads keeps its place in the graph, with gradient 0.
            value = value + graph_zero(outputs.logits, shared, *self.loss.parameters())
        if model.training:
            names = ("token_logps", "entropy")
            self._note_training(DenseSource(outputs.logits.detach()).tokens(batch.labels, names))
        config: Any = getattr(network, "config", None)
        # Hidden states that only the loss asked for are no prediction.
        dropped = {"loss"} if getattr(config, "output_hidden_states", False) else {"loss", "hidden_states"}
        return type(outputs)(loss=value, **{name: part for name, part in outputs.items() if name not in dropped})

    def _parts(self, inputs: Mapping[str, Tensor], batch: AlignedBatch, asked: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the loss on built logits; they add up to it."""
        if all(kind.known for kind in self._kinds):
            return self.loss.breakdown(**inputs, **asked)
        # Each term's own mean, as its share in the whole step.
        num_items, known = asked["num_items"], {name: value for name, value in asked.items() if name != "num_items"}
        own = dict(zip(num_items, count_items(self._kinds, batch, self.average), strict=True))
        kinds = kinds_of_terms(self.loss, self._kinds)
        means = self.loss.breakdown(**inputs, **known)
        return {name: mean * (own[kinds[name].name] / num_items[kinds[name].name]) for name, mean in means.items()}

    def _asked(self, batch: AlignedBatch, num_items: dict[str, float]) -> dict[str, Any]:
        """Keywords of a call of the loss on this batch."""
        asked: dict[str, Any] = {"num_items": num_items}
        if self._scopes:
            asked["scopes"] = batch.scopes
        if self.average == "sequence":
            asked["weights"] = {"token": batch.sequence_weights()}
        return asked

    def _needs_sequences(self) -> bool:
        return any(kind.region == "sequence" for kind in self._kinds)

    def _logs_now(self) -> bool:
        """Whether this step is logged: entropy and shares of the gradient are made then only."""
        return logs_next(self._trainer.args, self._trainer.state)

    def _note_training(self, seen: Mapping[str, Tensor]) -> None:
        self.training_figures.add("nll", -seen["token_logps"])
        if "entropy" in seen:
            self.training_figures.add("entropy", seen["entropy"])

    @torch.no_grad()
    def _note_evaluation(self, logits: Any, batch: AlignedBatch, inputs: dict[str, Tensor] | None = None) -> None:
        ranks = self._trainer.accelerator.num_processes
        sums = batch_sums(self.loss, self._kinds, logits, batch, self.average, inputs, ranks=ranks, add_up=self.add_up)
        self.evaluation_figures.add(*sums)


def _at(linear: LinearLogits, rows: Tensor) -> LinearLogits:
    """The logits of these places, one row per sequence; those of a missing place are ignored by their label."""
    hidden = linear.hidden.reshape(-1, linear.hidden.shape[-1])[rows.clamp(min=0)]
    return linear.with_parts(hidden, linear.weight, linear.bias)
