"""The trainer that keeps the loss's own parameters: learned at their rate, saved, restored, equal on all ranks."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import TrainerCallback

from lossmith._checks import check_positive
from lossmith.engines.gather import world_size
from lossmith.errors import ConfigurationError, LossmithWarning
from lossmith.integrations.batches import AlignedBatch
from lossmith.integrations.sentence_transformers.batches import PKBatches, PKBatchesOfDataset, count_classes
from lossmith.integrations.sentence_transformers.loss import EmbeddingLoss
from lossmith.integrations.transformers.items import count_items, divisors, item_kinds
from lossmith.nn import LossModule


class LossMixin:
    """Makes a `SentenceTransformerTrainer` keep the parameters of its `EmbeddingLoss`, and normalise exactly.

    They learn at their own rate without weight decay, are saved in checkpoints, restored on resume, averaged over ranks
    like the gradients of the model. A loss that is not coupled over its batch is divided by the rows of the
    whole accumulated batch on all ranks; the others are averaged over micro-batches, and say so once.
    """

    proxy_lr_multiplier: float = 10.0
    _num_items: Mapping[str, float] | None = None

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the trainer, after checking its settings against the loss.

        Raises:
            ConfigurationError: For a loss with parameters under DeepSpeed or FSDP, or which an optimiser of the
                caller's own lacks.
        """
        if isinstance(self.loss, EmbeddingLoss):
            self._check_loss(self.loss)
            if not any(isinstance(callback, _KeepLoss) for callback in self.callback_handler.callbacks):
                self.add_callback(_KeepLoss(self))
        return super().train(*args, **kwargs)  # pyright: ignore

    def _check_loss(self: Any, loss: EmbeddingLoss) -> None:
        if loss.named_own_parameters() and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ConfigurationError(
                f"'{loss.loss}' owns parameters, which DeepSpeed and FSDP do not see here: train it with plain DDP, or "
                f"choose a loss without proxies."
            )
        _check_optimizer(self.optimizer, loss)
        accumulated = self.args.gradient_accumulation_steps
        if loss.loss.batch_coupled and accumulated > 1:
            warnings.warn(
                f"'{loss.loss}' couples the rows of a batch: {accumulated} accumulated micro-batches are not one "
                f"batch.",
                LossmithWarning,
                stacklevel=4,
            )

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As in the Trainer, counting the rows that this optimiser step sees."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)  # pyright: ignore
        self._num_items = self.loss_is_scaled_for_ga = None
        if isinstance(self.loss, EmbeddingLoss):
            self.loss_is_scaled_for_ga = not self.loss.loss.batch_coupled
        if self.loss_is_scaled_for_ga:
            kinds = item_kinds(self.loss.loss)
            counts = [count_items(kinds, AlignedBatch(labels=batch["label"]), "token") for batch in samples]
            self._num_items = divisors(kinds, counts, ranks=world_size(), add_up=_added_up, device=device)
        return samples, num_items

    def compute_loss(
        self: Any, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, normalised over the whole accumulated batch where that is exact."""
        if isinstance(self.loss, EmbeddingLoss):
            steps = self.state.max_steps
            self.loss._kept_by_trainer = True
            self.loss.loss.set_progress(min(self.state.global_step / steps, 1.0) if steps > 0 else 1.0)
            self.loss.num_items = self._num_items if model.training else None
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # pyright: ignore
        finally:
            # Whoever else calls the loss has other rows.
            if isinstance(self.loss, EmbeddingLoss):
                self.loss.num_items = None

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """The trainer's optimiser, with proxies and head in a group of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)  # pyright: ignore
        if fresh and isinstance(self.loss, EmbeddingLoss):
            self._regroup(optimizer)
        return optimizer

    def _regroup(self: Any, optimizer: torch.optim.Optimizer) -> None:
        mapped = list(self.args.learning_rate_mapping)
        own = [
            parameter
            for name, parameter in self.loss.named_own_parameters().items()
            if not any(re.search(pattern, name) for pattern in mapped)
        ]
        if not own:
            return
        ids = {id(parameter) for parameter in own}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
        lr = self.args.learning_rate * self.proxy_lr_multiplier
        optimizer.add_param_group({"params": own, "lr": lr, "weight_decay": 0.0})

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # pyright: ignore
        if isinstance(self.loss, EmbeddingLoss):
            self.loss.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self: Any, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)  # pyright: ignore
        if isinstance(self.loss, EmbeddingLoss):
            self.loss.load(checkpoint_path)


class LossTrainer(LossMixin, SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` with any metric or joint loss of lossmith.

    Args:
        loss: A composition string, a module from `lossmith.loss`, or an `EmbeddingLoss`.
        proxy_lr_multiplier: Proxies and head learn at the model's learning rate times this, without weight decay;
            `learning_rate_mapping` of the training arguments (`{"loss.proxies": 1e-2}`) wins.
        model, args, train_dataset, eval_dataset, **kwargs: As for `SentenceTransformerTrainer`; the data have one text
            column and class ids.

    Raises:
        ConfigurationError: For data or settings that the loss cannot be trained with.
        ObjectiveInputError: For a loss that does not fit.
    """

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        loss: str | LossModule | EmbeddingLoss,
        proxy_lr_multiplier: float = 10.0,
        **kwargs: Any,
    ):
        if not isinstance(loss, str | LossModule | EmbeddingLoss):
            raise ConfigurationError(
                f"`loss` must be a composition string, a module from lossmith.loss or an EmbeddingLoss, got "
                f"{type(loss).__name__}."
            )
        check_positive("proxy_lr_multiplier", proxy_lr_multiplier)
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        classes = count_classes(data, loss.loss if isinstance(loss, EmbeddingLoss) else loss)
        self.proxy_lr_multiplier = proxy_lr_multiplier
        made = loss if isinstance(loss, EmbeddingLoss) else _Maker(loss, classes)
        super().__init__(model=model, args=args, loss=made, **data, **kwargs)
        self._make_loss = made if isinstance(made, _Maker) else None
        assert isinstance(self.loss, EmbeddingLoss)
        known = self.loss.num_classes
        if known is not None and classes is not None and classes > known:
            raise ConfigurationError(
                f"The labels reach {classes - 1} but `num_classes` of '{self.loss.loss}' is {known}."
            )
        self._check_samplers()

    def call_model_init(self, trial: Any = None) -> Any:
        """A fresh model, and for it a loss with fresh proxies."""
        model: Any = super().call_model_init(trial)
        make: Any = getattr(self, "_make_loss", None)
        if make is not None:
            self.loss = self.prepare_loss(make, model)
        return model

    def _check_samplers(self) -> None:
        """A sampler that cannot make its batches says so now, not at the first epoch or evaluation."""
        if not isinstance(self.args.batch_sampler, PKBatches):
            return
        data: Any
        for data, size in (
            (self.train_dataset, self.args.train_batch_size),
            (self.eval_dataset, self.args.eval_batch_size),
        ):
            if data is not None:
                self.args.batch_sampler(data, size, True, seed=self.args.seed)


def _check_optimizer(optimizer: torch.optim.Optimizer | None, loss: EmbeddingLoss) -> None:
    """An optimiser that came by `optimizers` trains the proxies too, or they would stay random without a word."""
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, parameter in loss.named_own_parameters().items() if id(parameter) not in known]
    if missing:
        raise ConfigurationError(
            f"`optimizers` must also hold the parameters of '{loss.loss}', got none of {', '.join(missing)}: leave it "
            f"out, or give an EmbeddingLoss as `loss` and its named_own_parameters() to the optimizer."
        )


def _added_up(table: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(table)
    return table


@dataclass(frozen=True)
class _Maker:
    """Builds the loss once the trainer has its model."""

    loss: str | LossModule
    num_classes: int | None

    def __call__(self, model: SentenceTransformer) -> EmbeddingLoss:
        return EmbeddingLoss(model, self.loss, num_classes=self.num_classes)


class _KeepLoss(TrainerCallback):
    """Keeps proxies equal on all ranks, and class-balanced batches in their epoch."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if world_size() > 1 and isinstance(self.trainer.loss, EmbeddingLoss):
            for value in self.trainer.loss.own_state().values():
                dist.broadcast(value, src=0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        # A resumed run wraps the sampler once more, so that the trainer's own call does not reach it on several ranks.
        sampler = train_dataloader
        while sampler is not None and not isinstance(sampler, PKBatchesOfDataset):
            sampler = getattr(sampler, "batch_sampler", None)
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if world_size() == 1 or not isinstance(self.trainer.loss, EmbeddingLoss):
            return
        for parameter in self.trainer.loss.named_own_parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
