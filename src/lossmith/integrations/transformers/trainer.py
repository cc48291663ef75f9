"""transformers' Trainer with a lossmith loss: at the output embedding of a causal LM, on the logits of other models."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from lossmith._checks import check_one_of
from lossmith.engines.linear_logits import IMPLS
from lossmith.errors import ConfigurationError
from lossmith.integrations.batches import AlignedBatch, align, token_labels
from lossmith.integrations.lm_head import HeadLoss, base_model
from lossmith.integrations.pooling import POOLINGS, TOKENS
from lossmith.integrations.transformers.callback import OwnParameters
from lossmith.integrations.transformers.families import build_loss, check_families
from lossmith.integrations.transformers.figures import (
    EvaluationFigures,
    TrainingFigures,
)
from lossmith.integrations.transformers.forward import LossForward
from lossmith.integrations.transformers.items import count_items, divisors, item_kinds
from lossmith.integrations.transformers.rows import without_filling
from lossmith.integrations.transformers.setup import (
    balance_weight,
    check_setup,
    loss_scopes,
    predicts_next_token,
    sizes_of,
)
from lossmith.integrations.transformers.state import LossState
from lossmith.nn import LossModule


class LossMixin(LossState, LossForward):
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
        pooling: How embeddings come from hidden states, for losses that read them: "mean", "cls" or "last"; with
            "tokens" every token of a text that is neither padding nor special is an embedding with the text's label
            (tokenise with `return_special_tokens_mask=True`).
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
        check_one_of("pooling", pooling, (*POOLINGS, TOKENS))
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
        self._loss_at_start = {name: value.clone() for name, value in self.loss.state_dict().items()}
        # Before 5.22 the Trainer divides the loss unless it believes that the model was told the number of items.
        trainer.model_accepts_loss_kwargs = True
        # Before 5.6 it also lets accelerate divide every loss by the number of micro-batches.
        trainer.accelerator.gradient_accumulation_steps = 1
        self.training_figures = TrainingFigures()
        self.evaluation_figures = EvaluationFigures()
        self._micro_batches = 1
        self._wants_logits = False
        trainer.add_callback(OwnParameters(self.loss, trainer.accelerator))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in the Trainer; the loss follows the new model and begins as it was given."""
        model = super().call_model_init(trial)  # pyright: ignore[reportAttributeAccessIssue]
        # The Trainer makes its first model before the loss is there.
        if hasattr(self, "_loss_at_start"):
            self._head = HeadLoss(model) if self._causal else None
            self.loss.load_state_dict(self._loss_at_start)
        return model

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

    def align(self, inputs: Mapping[str, Any]) -> AlignedBatch:
        """The labels of a batch, as the loss wants them."""
        batch = align(inputs, self._scopes, shift=self._causal)
        if self.pooling != TOKENS or "embeddings" not in self.loss.inputs:
            return batch
        return replace(batch, embedding_labels=token_labels(inputs, batch.labels))

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
        given = {
            name: value
            for name, value in inputs.items()
            if name not in ("labels", "special_tokens_mask") and not self._is_mask(name)
        }
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

    # What is logged and evaluated

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the figures since the last log."""
        if "loss" in logs:
            logs |= self.training_figures.take(self.add_up)
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

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

    def saved_settings(self) -> dict[str, Any]:
        """What is written beside the loss."""
        return {"pooling": self.pooling} if "embeddings" in self.loss.inputs else {"average": self.average}

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
        if self.pooling == TOKENS and "special_tokens_mask" not in columns:
            columns.append("special_tokens_mask")

    def _is_mask(self, name: str) -> bool:
        return name.endswith("_mask") and name.removesuffix("_mask") in self._scopes


class LossTrainer(LossMixin, Trainer):
    """transformers' Trainer with a lossmith loss; see `LossMixin`.

    Example:
        ```python
        trainer = LossTrainer(model=model, args=args, train_dataset=data, loss="0.6*cross_entropy + 0.4*lovasz_softmax")
        ```
    """
