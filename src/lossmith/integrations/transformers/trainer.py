"""transformers' Trainer with a lossmith loss: at the output embedding of a causal LM, on the logits of other models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from lossmith._checks import check_one_of
from lossmith.engines import DenseSource, LinearLogits
from lossmith.engines.linear_logits import IMPLS
from lossmith.errors import ConfigurationError, ModelError, ObjectiveInputError
from lossmith.integrations.batches import AlignedBatch, align
from lossmith.integrations.lm_head import HeadLoss, base_model
from lossmith.integrations.pooling import pool
from lossmith.integrations.saving import load_loss, save_loss
from lossmith.integrations.transformers.callback import OwnParameters
from lossmith.integrations.transformers.families import build_loss, check_families
from lossmith.integrations.transformers.figures import (
    EvaluationFigures,
    TrainingFigures,
    gradient_squares,
    has_terms,
)
from lossmith.integrations.transformers.items import count_items, divisors, item_kinds
from lossmith.integrations.transformers.rows import batch_sums, kinds_of_terms, without_filling
from lossmith.integrations.transformers.setup import (
    balance_weight,
    check_setup,
    loss_scopes,
    predicts_next_token,
    sizes_of,
)
from lossmith.nn import LossModule
from lossmith.nn.base import graph_zero
from lossmith.nn.linear import Watch


class LossMixin:
    """Makes any transformers Trainer train with a lossmith loss: `class MyTrainer(LossMixin, Trainer)`.

    For a causal language model the loss is computed at the output embedding, inside the wrapped forward, and the logits
    are never built. For a sequence or token classifier it is computed on the logits, and on pooled hidden states where
    the loss reads embeddings. It is normalised over all micro-batches of a step and all ranks, whatever was padded or
    packed how; the plain NLL and the entropy are logged beside it.

    Args:
        *args: As for the Trainer.
        loss: A loss by its string, as "0.6*cross_entropy + 0.4*lovasz_softmax", or from `lossmith.loss`. `num_classes`
            and `embedding_dim` of proxies are taken from the model.
        average: "token" (every label counts the same) or "sequence" (every sequence does; token losses only).
        proxy_lr_multiplier: Proxies learn at the model's learning rate times this, > 0.
        pooling: How embeddings come from hidden states, for losses that read them: "mean", "cls" or "last".
        impl: The engine for the logits of a causal LM, see `lossmith.LinearLogits`.
        **kwargs: As for the Trainer.

    Raises:
        ObjectiveInputError: For a loss that cannot be read.
        ConfigurationError: For a loss or a setting that does not fit the model or the trainer.
        ModelError: If the output embedding is no linear map.
    """

    loss_is_scaled_for_ga = True
    """`compute_loss` divides by the items of all micro-batches, so the Trainer must not divide again."""

    families = ("token", "region", "metric")
    """Families of losses that this trainer has inputs for."""

    def __init__(
        self,
        *args: Any,
        loss: str | LossModule,
        average: str = "token",
        proxy_lr_multiplier: float = 10.0,
        pooling: str = "mean",
        impl: str = "auto",
        **kwargs: Any,
    ):
        check_families(loss, self.families, f"a {type(self).__name__}")
        check_one_of("average", average, ("token", "sequence"))
        check_one_of("pooling", pooling, ("mean", "cls", "last"))
        check_one_of("impl", impl, IMPLS)
        if kwargs.get("compute_loss_func") is not None:
            raise ConfigurationError("`compute_loss_func` and `loss` both give a loss: leave one of them out.")
        super().__init__(*args, **kwargs)
        self._trainer: Any = self
        self.average = average
        self.proxy_lr_multiplier = proxy_lr_multiplier
        self.pooling = pooling
        self.impl = impl
        trainer = self._trainer
        network = base_model(trainer.accelerator.unwrap_model(trainer.model))
        self._causal = predicts_next_token(network)
        self._head = HeadLoss(trainer.model) if self._causal else None
        self.loss = build_loss(loss, **sizes_of(network)).to(trainer.args.device)
        self._kinds = item_kinds(self.loss)
        self._scopes = loss_scopes(self.loss)
        check_setup(trainer, self.loss, network, causal=self._causal, average=average)
        # Before 5.22 the Trainer divides the loss unless it believes that the model was told the number of items.
        trainer.model_accepts_loss_kwargs = True
        self.training_figures = TrainingFigures()
        self.evaluation_figures = EvaluationFigures()
        self._micro_batches = 1
        self._wants_logits = False
        trainer.add_callback(OwnParameters(self.loss, trainer.accelerator))

    # What a step divides by

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As in the Trainer; the number of items is that of each kind of item that the loss counts."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # pyright: ignore[reportAttributeAccessIssue]
        self._micro_batches = max(len(samples), 1)
        counts = [count_items(self._kinds, self.align(sample), self.average) for sample in samples]
        return samples, self._divisors(counts) if samples else None

    def _divisors(self, counts: list[list[float]]) -> dict[str, float]:
        trainer = self._trainer
        return divisors(
            self._kinds,
            counts,
            ranks=trainer.accelerator.num_processes,
            add_up=self.add_up,
            device=trainer.args.device,
            shared=trainer.args.average_tokens_across_devices,
        )

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        accelerator = self._trainer.accelerator
        return accelerator.reduce(tensor, reduction="sum") if accelerator.num_processes > 1 else tensor

    def align(self, inputs: Mapping[str, Any]) -> AlignedBatch:
        """The labels of a batch, as the loss wants them."""
        return align(inputs, self._scopes, shift=self._causal)

    # The loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch; see `Trainer.compute_loss`."""
        batch = self.align(inputs)
        accelerator = self._trainer.accelerator
        if not model.training and accelerator.num_processes > 1:
            batch = without_filling(batch, accelerator.gradient_state, accelerator.process_index)
        num_items = num_items_in_batch
        if not isinstance(num_items, dict):
            num_items = self._divisors([count_items(self._kinds, batch, self.average)])
        state = self._trainer.state
        self.loss.set_progress(min(state.global_step / state.max_steps, 1.0) if state.max_steps else 1.0)
        given = {name: value for name, value in inputs.items() if name != "labels" and not self._is_mask(name)}
        # A memory of earlier batches is filled while training only.
        self.loss.train(model.training)
        run = self._at_head if self._head is not None else self._on_logits
        outputs = run(model, given, batch, num_items)
        value = outputs["loss"]
        if isinstance(outputs.get("aux_loss"), Tensor):
            # A mixture of experts balances its load in every micro-batch.
            weight = balance_weight(base_model(self._trainer.accelerator.unwrap_model(model)))
            value = value + weight * outputs["aux_loss"] / (self._micro_batches if model.training else 1)
        return (value, outputs) if return_outputs else value

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
        linear.watch = watch = Watch(("token_logps", "entropy") if self._logs_now() else ("token_logps",))
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
            inputs["embeddings"] = pool(outputs.hidden_states[-1], given["attention_mask"], self.pooling)
        inputs = {name: value for name, value in inputs.items() if name in self.loss.inputs}
        asked = self._asked(batch, num_items)
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

    def _is_mask(self, name: str) -> bool:
        return name.endswith("_mask") and name.removesuffix("_mask") in self._scopes

    # What is logged

    def _logs_now(self) -> bool:
        """Whether this step is logged: entropy and shares of the gradient are made then only."""
        args, state = self._trainer.args, self._trainer.state
        step = state.global_step + 1
        if args.logging_strategy == "steps" and state.logging_steps:
            return step % state.logging_steps == 0 or (args.logging_first_step and step == 1)
        return args.logging_strategy != "no"

    def _note_training(self, seen: Mapping[str, Tensor]) -> None:
        self.training_figures.add("nll", -seen["token_logps"])
        if "entropy" in seen:
            self.training_figures.add("entropy", seen["entropy"])

    @torch.no_grad()
    def _note_evaluation(self, logits: Any, batch: AlignedBatch, inputs: dict[str, Tensor] | None = None) -> None:
        ranks = self._trainer.accelerator.num_processes
        sums = batch_sums(self.loss, self._kinds, logits, batch, self.average, inputs, ranks=ranks, add_up=self.add_up)
        self.evaluation_figures.add(*sums)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the figures since the last log."""
        if "loss" in logs:
            logs |= self.training_figures.take(self.add_up)
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    # Evaluation

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As in the Trainer; logits are built only where somebody wants them."""
        self._wants_logits = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._wants_logits = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer; the loss is the mean over the items of the whole set, however it was cut into batches."""
        self.evaluation_figures = EvaluationFigures()
        output = super().evaluation_loop(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": value for name, value in self.evaluation_figures.take().items()})
        return output

    # The loss's own parameters and state

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with one more group for the loss's own parameters."""
        trainer = self._trainer
        fresh = trainer.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if fresh:
            for group in self.loss.param_groups(
                trainer.args.learning_rate, proxy_lr_multiplier=self.proxy_lr_multiplier
            ):
                optimizer.add_param_group(group)
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # pyright: ignore[reportAttributeAccessIssue]
        columns = self._trainer._signature_columns
        columns += [f"{scope}_mask" for scope in self._scopes if f"{scope}_mask" not in columns]

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the loss beside the model."""
        trainer = self._trainer
        plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type) and trainer.args.should_save:
            # The Trainer writes shards only then, without `_save`.
            folder = Path(output_dir or str(trainer.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_loss(self.loss, folder, **self.saved_settings())
        super().save_model(output_dir, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # pyright: ignore[reportAttributeAccessIssue]
        if self._trainer.args.should_save:
            save_loss(self.loss, Path(output_dir or str(self._trainer.args.output_dir)), **self.saved_settings())

    def saved_settings(self) -> dict[str, Any]:
        """What is written beside the loss."""
        return {"pooling": self.pooling} if "embeddings" in self.loss.inputs else {"average": self.average}

    def _load_best_model(self) -> None:
        super()._load_best_model()  # pyright: ignore[reportAttributeAccessIssue]
        load_loss(self.loss, Path(self._trainer.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # pyright: ignore[reportAttributeAccessIssue]
        load_loss(self.loss, Path(resume_from_checkpoint))


class LossTrainer(LossMixin, Trainer):
    """transformers' Trainer with a lossmith loss; see `LossMixin`.

    Example:
        ```python
        trainer = LossTrainer(model=model, args=args, train_dataset=data, loss="0.6*cross_entropy + 0.4*lovasz_softmax")
        ```
    """


def _at(linear: LinearLogits, rows: Tensor) -> LinearLogits:
    """The logits of these places, one row per sequence; those of a missing place are ignored by their label."""
    hidden = linear.hidden.reshape(-1, linear.hidden.shape[-1])[rows.clamp(min=0)]
    return linear.with_parts(hidden, linear.weight, linear.bias)
