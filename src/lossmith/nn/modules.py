"""Modules that `lossmith.loss` returns: each binds one pure objective to the inputs of its family."""

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import nn

from lossmith._checks import check_label_range, check_labels, check_one_of, check_positive, check_same_device
from lossmith._numerics import at_least_float32
from lossmith._reduce import NumItems, reduce_loss
from lossmith._typing import Tensor
from lossmith.engines import DenseRegionStatistics, DenseTokenStatistics
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.objectives import ObjectiveRecord

IGNORE_INDEX = -100
"""Label of a row that does not count."""


class LossModule(nn.Module, ABC):
    """What every loss can do, alone or composed."""

    inputs: tuple[str, ...]
    """Keyword names of the tensors that `forward` reads, in positional order."""
    items: tuple[str, ...]
    """Kinds of item that the loss returns values for; one kind, but for mixed sums."""
    batch_coupled: bool
    """True where k micro-batches are not one batch."""

    @abstractmethod
    def __str__(self) -> str:
        """The composition string that builds this loss."""

    def param_groups(self, lr: float, *, proxy_lr_multiplier: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups for the loss's own parameters (proxies): their own learning rate, no weight decay.

        Args:
            lr: Learning rate of the model, > 0.
            proxy_lr_multiplier: The proxies learn at `lr` times this, > 0.

        Returns:
            One group, or none where the loss owns no parameters.
        """
        check_positive("lr", lr)
        check_positive("proxy_lr_multiplier", proxy_lr_multiplier)
        own = list(self.parameters())
        return [{"params": own, "lr": lr * proxy_lr_multiplier, "weight_decay": 0.0}] if own else []


class ObjectiveModule(LossModule):
    """One objective with its hyper-parameters; one subclass per family."""

    def __init__(self, record: ObjectiveRecord, hyperparameters: dict[str, Any]):
        super().__init__()
        self.record = record
        self.hyperparameters = {**record.hyperparameters, **hyperparameters}
        self.items = (record.item,)
        self.batch_coupled = record.batch_coupled

    def __str__(self) -> str:
        from lossmith.nn.composition import Term, check_hyperparameters

        return str(Term(self.record, 1.0, check_hyperparameters(self.record, self.hyperparameters)))

    def extra_repr(self) -> str:
        """Name and hyper-parameters, for `repr`."""
        return str(self)

    def apply_function(self, statistics: dict[str, Tensor]) -> Tensor:
        """The pure objective on its statistics, with this module's hyper-parameters."""
        settings = {
            name: value for name, value in self.hyperparameters.items() if name not in self.record.module_hyperparameters
        }
        values = self.record.function(**statistics, **settings)
        rows = None if self.record.family == "region" else len(next(iter(statistics.values())))
        expected = () if rows is None else (rows,)
        if self.record.item in ("region", "token", "anchor") and tuple(values.shape) != expected:
            raise ObjectiveInputError(
                f"'{self.record.name}' must return one loss per {self.record.item}, shape {expected}, got "
                f"{tuple(values.shape)}."
            )
        return values


@final
class TokenLoss(ObjectiveModule):
    """A token objective on logits: one loss per row, zero and without gradient where the label is -100."""

    inputs = ("logits", "labels")

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        num_items: NumItems | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Loss of `logits` [..., vocab] against aligned `labels` [...]; see `lossmith.loss` for the call arguments."""
        _check_logits(logits, labels)
        valid = labels != IGNORE_INDEX
        # Rows are taken out before anything is computed: an ignored NaN must not reach a gradient as 0 * NaN.
        statistics = DenseTokenStatistics(logits[valid], labels[valid].long()).get(self.record.reads)
        values = self.apply_function(statistics)
        losses = _graph_zero(logits).expand(labels.shape).to(values.dtype).masked_scatter(valid, values)
        return reduce_loss(losses, valid, weights=weights, num_items=num_items, reduction=reduction)


@final
class RegionLoss(ObjectiveModule):
    """A region objective on logits: one loss for the batch, or one per sequence."""

    inputs = ("logits", "labels")

    def __init__(self, record: ObjectiveRecord, hyperparameters: dict[str, Any], *, region: str = "batch"):
        super().__init__(record, hyperparameters)
        check_one_of("region", region, ("batch", "sequence"))
        self.region = region
        self.batch_coupled = record.batch_coupled and region == "batch"

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        num_items: NumItems | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Loss of `logits` [..., vocab] against aligned `labels` [...]; `weights` holds one entry per region."""
        _check_logits(logits, labels)
        if self.region == "sequence" and labels.ndim < 2:
            raise ObjectiveInputError(
                f"`region='sequence'` needs `labels` of shape [batch, seq], got {tuple(labels.shape)}."
            )
        flat_logits = logits.unsqueeze(0) if self.region == "batch" else logits
        flat_labels = labels.unsqueeze(0) if self.region == "batch" else labels
        valid = flat_labels != IGNORE_INDEX
        values = [self._region(*row) for row in zip(flat_logits, flat_labels, valid, strict=True)]
        losses = torch.stack(values) if values else at_least_float32(_graph_zero(logits)).expand(0)
        counted = valid.reshape(len(valid), math.prod(valid.shape[1:])).any(-1)
        return reduce_loss(losses, counted, weights=weights, num_items=num_items, reduction=reduction)

    def _region(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        if not bool(valid.any()):
            return at_least_float32(_graph_zero(logits))
        statistics = DenseRegionStatistics(logits[valid], labels[valid].long()).get(self.record.reads)
        return self.apply_function(statistics)


@final
class MetricLoss(ObjectiveModule):
    """A metric objective on embeddings; owns `proxies` where the objective reads them."""

    inputs = ("embeddings", "labels")

    def __init__(
        self,
        record: ObjectiveRecord,
        hyperparameters: dict[str, Any],
        *,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
    ):
        super().__init__(record, hyperparameters)
        self.num_classes = num_classes
        if record.proxy_shape:
            sizes = {**self.hyperparameters, "num_classes": num_classes, "embedding_dim": embedding_dim}
            shape = [sizes[name] for name in record.proxy_shape]
            for name, size in zip(record.proxy_shape, shape, strict=True):
                if not isinstance(size, int) or size < 1:
                    raise ObjectiveInputError(
                        f"'{record.name}' owns proxies: `{name}` must be an int >= 1, got {size}."
                    )
            # About unit length, so that one learning rate fits every dimension.
            self.proxies = nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]))
            self.register_load_state_dict_pre_hook(_check_saved_proxies)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        num_items: NumItems | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Loss of `embeddings` [anchors, dim] with class ids `labels` [anchors]."""
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ObjectiveInputError(
                f"`embeddings` must be a floating-point tensor [anchors, dim], got {embeddings.dtype} "
                f"{tuple(embeddings.shape)}."
            )
        check_labels(labels, tuple(embeddings.shape[:1]), scores="embeddings")
        check_same_device(embeddings=embeddings, labels=labels)
        counted = labels != IGNORE_INDEX
        rows, classes = at_least_float32(embeddings[counted]), labels[counted].long()
        statistics: dict[str, Tensor] = {"embeddings": rows, "labels": classes}
        if self.record.proxy_shape:
            statistics["proxies"] = self._checked_proxies(rows, classes)
        values = self.apply_function(statistics)
        losses = _graph_zero(embeddings).to(values.dtype).expand(labels.shape).masked_scatter(counted, values)
        valid = self._anchors(labels, counted) if self.record.needs_positives else counted
        return reduce_loss(losses, valid, weights=weights, num_items=num_items, reduction=reduction)

    def _checked_proxies(self, rows: Tensor, classes: Tensor) -> Tensor:
        if rows.shape[1] != self.proxies.shape[-1]:
            raise ObjectiveInputError(
                f"`embeddings` have dim {rows.shape[1]} but the proxies of '{self.record.name}' have "
                f"`embedding_dim` {self.proxies.shape[-1]}."
            )
        check_label_range(classes, self.proxies.shape[0], size_name="num_classes", ignore_index=IGNORE_INDEX)
        return self.proxies.to(rows.dtype)

    def _anchors(self, labels: Tensor, counted: Tensor) -> Tensor:
        """Rows that count as anchors: those whose class has another row; warns once where some have none."""
        same = (labels[:, None] == labels[None, :]) & counted[None, :] & counted[:, None]
        anchors = same.sum(-1) > 1
        if labels.device.type == "cpu" and bool((counted & ~anchors).any()):
            warnings.warn(
                f"'{self.record.name}': some rows have no other row of their class in the batch and do not count; "
                f"larger or class-balanced batches avoid this.",
                LossmithWarning,
                stacklevel=3,
            )
        return anchors


def _check_saved_proxies(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Say in one sentence that a checkpoint belongs to a loss of another shape."""
    assert isinstance(module, MetricLoss)
    saved, own = state.get(f"{prefix}proxies"), tuple(module.proxies.shape)
    if isinstance(saved, Tensor) and tuple(saved.shape) != own:
        raise ObjectiveInputError(
            f"The saved proxies of '{module.record.name}' have shape {tuple(saved.shape)}, this loss needs "
            f"({', '.join(module.record.proxy_shape)}) = {own}."
        )


def _graph_zero(scores: Tensor) -> Tensor:
    """A zero that depends on `scores`: its gradient is 0, whatever values (NaN, inf) they hold."""
    return scores.reshape(-1)[:0].sum()


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim < 1 or not logits.is_floating_point():
        raise ObjectiveInputError(
            f"`logits` must be a floating-point tensor [..., vocab], got {logits.dtype} {tuple(logits.shape)}."
        )
    check_labels(labels, tuple(logits.shape[:-1]), scores="logits")
    check_same_device(logits=logits, labels=labels)
    check_label_range(labels, logits.shape[-1], size_name="vocab", ignore_index=IGNORE_INDEX)
