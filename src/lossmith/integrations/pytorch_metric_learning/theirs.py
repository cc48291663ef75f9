"""Losses and miners of pytorch-metric-learning as lossmith losses."""

import warnings
from collections.abc import Mapping
from typing import Any, final

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction, CrossBatchMemory, MultipleLosses
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn

from lossmith._checks import check_finite, check_labels, check_one_of
from lossmith._numerics import at_least_float32, full_precision
from lossmith._reduce import NumItems, reduce_loss
from lossmith._typing import Tensor
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.integrations.pytorch_metric_learning.ours import ToPml, to_pml
from lossmith.nn import IGNORE_INDEX, Composition, LossModule, Term, WeightedSum, parse_composition
from lossmith.nn import loss as build
from lossmith.nn.base import graph_zero
from lossmith.objectives import ObjectiveRecord


def from_pml(loss: Any, miner: Any = None) -> "FromPml":
    """A loss of pytorch-metric-learning, with or without a miner, as a lossmith loss.

    It is called as `module(embeddings, labels)`, leaves rows labelled -100 out, computes in at least float32, and has
    `param_groups` and `state_dict` of whatever the loss learns. Its value is one number per batch.

    Args:
        loss: One of theirs, also their `CrossBatchMemory`, `MultipleLosses` and `DistributedLossWrapper`; or one of
            ours, as a module or by name, which then compares what the miner found (see `to_pml`).
        miner: One of theirs, called with the embeddings and labels that count, or None.

    Raises:
        ObjectiveInputError: If `loss` or `miner` is something else.

    Example:
        >>> from pytorch_metric_learning import losses, miners
        >>> module = from_pml(losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(margin=0.2))
        >>> print(module)
        from_pml(TripletMarginLoss, TripletMarginMiner)
        >>> module(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [5.0, 5.0]]), torch.tensor([0, 0, 1, -100]))
        tensor(0.8934)
    """
    if isinstance(loss, str | LossModule):
        loss = to_pml(loss)
    if not isinstance(loss, BaseMetricLossFunction | CrossBatchMemory | MultipleLosses | DistributedLossWrapper):
        raise ObjectiveInputError(
            f"`loss` must be a loss of pytorch-metric-learning that is called with embeddings and labels, or a metric "
            f"loss of lossmith, got {type(loss).__name__}."
        )
    if miner is not None and not isinstance(miner, BaseMiner | DistributedMinerWrapper):
        raise ObjectiveInputError(f"`miner` must be a miner of pytorch-metric-learning, got {type(miner).__name__}.")
    return FromPml(loss, miner)


def joint(text: str, theirs: "FromPml", *, weight: float = 1.0, **settings: Any) -> WeightedSum:
    """The sum of a lossmith composition and `weight` times a loss of theirs, for trainers that take one loss.

    Args:
        text: A composition, such as "0.4*cross_entropy".
        theirs: What `from_pml` returned.
        weight: Weight of theirs, finite.
        **settings: As for `lossmith.loss`.

    Raises:
        ObjectiveInputError: If `text` is a schedule or cannot be read, or `theirs` is something else.

    Example:
        >>> from pytorch_metric_learning.losses import SupConLoss
        >>> print(joint("0.4*cross_entropy", from_pml(SupConLoss()), weight=0.6))
        0.4*cross_entropy + 0.6*from_pml(SupConLoss)
    """
    if not isinstance(theirs, FromPml):
        raise ObjectiveInputError(f"`theirs` must be what `from_pml` returns, got {type(theirs).__name__}.")
    check_finite("weight", weight)
    ours = build(text, **settings)
    composition = parse_composition(str(ours))
    if composition.handovers:
        raise ObjectiveInputError(f"`text` must be a sum without a schedule, got '{ours}'.")
    modules: list[Any] = list(ours.terms) if isinstance(ours, WeightedSum) else [ours]
    terms = (*composition.terms, Term(_record(theirs), float(weight)))
    return WeightedSum(Composition(terms), [*modules, theirs])


@final
class FromPml(LossModule):
    """One of their losses, called as ours are; `from_pml` builds it.

    The value belongs to the batch: `num_items` is a number of batches, and `reduction` "sum" and "mean" are the same.
    A `CrossBatchMemory` of theirs is filled in training mode only.

    Args:
        loss: One of theirs.
        miner: One of theirs, or None.
    """

    inputs = ("embeddings", "labels")
    required = inputs
    items = ("batch",)
    batch_coupled = True

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.loss = loss
        self.miner = miner
        self._warned_of_accumulation = False
        if self._memories:
            # Their queue saves its rows, but not where the next ones go.
            self.register_buffer("memory_places", self._places())
            self.register_load_state_dict_post_hook(_restore_places)

    def __str__(self) -> str:
        inner = self.loss.objective if isinstance(self.loss, ToPml) else type(self.loss).__name__
        return f"from_pml({inner}{f', {type(self.miner).__name__}' if self.miner is not None else ''})"

    def forward(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            *args: `embeddings` [anchors, dim] and `labels` [anchors]; rows labelled -100 are left out.
            weights: None; theirs have no weights per row.
            num_items: Number of batches in an accumulated step; 1 where it is left out.
            reduction: "mean" or "sum"; what is averaged inside the batch is up to the reducer of their loss.
            **kwargs: The inputs by name.

        Returns:
            A scalar; where no row counts, 0 that keeps its graph.

        Raises:
            ObjectiveInputError: For inputs that do not fit, `weights`, or reduction "none".
        """
        inputs = self.bind(args, kwargs)
        check_one_of("reduction", reduction, ("none", "sum", "mean"))
        if reduction == "none":
            raise ObjectiveInputError(
                f"'{self}' returns what its reducer made of the batch: `reduction` must be 'mean' or 'sum', got 'none'."
            )
        if weights is not None:
            raise ObjectiveInputError(f"'{self}' takes no `weights`: pytorch-metric-learning has none per row.")
        embeddings, labels = inputs["embeddings"], inputs["labels"]
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ObjectiveInputError(
                f"`embeddings` must be a floating-point tensor [anchors, dim], got {embeddings.dtype} "
                f"{tuple(embeddings.shape)}."
            )
        check_labels(labels, tuple(embeddings.shape[:1]), scores="embeddings")
        keep = labels != IGNORE_INDEX
        with full_precision(embeddings.device):
            value = self._value(at_least_float32(embeddings[keep]), labels[keep])
        value = value + graph_zero(embeddings, *self.parameters()).to(value.dtype)
        if isinstance(num_items, Mapping) and set(num_items) != set(self.items):
            raise ObjectiveInputError(f"`num_items` names {sorted(num_items)}, but '{self}' counts batch.")
        divisor = num_items["batch"] if isinstance(num_items, Mapping) else num_items
        self._warn_of_accumulation(divisor)
        return reduce_loss(value[None], keep.new_ones(1), num_items=divisor, reduction=reduction)

    def breakdown(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The loss under its own name; see `LossModule.breakdown`."""
        return {str(self): self(*args, weights=weights, num_items=num_items, reduction=reduction, **kwargs)}

    def _value(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 0:
            return embeddings.sum()
        indices = None if self.miner is None else self.miner(embeddings, labels)
        before = [] if self.training else [_queue(memory) for memory in self._memories]
        value = self.loss(embeddings, labels, indices)
        for memory, queue in zip(self._memories, before, strict=False):
            # They push in evaluation too; what is trained next must not be compared with evaluated rows.
            memory.embedding_memory, memory.label_memory, memory.queue_idx, memory.has_been_filled = queue
        if self._memories:
            self.memory_places = self._places().to(embeddings.device)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ObjectiveInputError(
                f"'{self}' must return one number, got {got}: give it a reducer that does, such as MeanReducer."
            )
        return value.reshape(())

    @property
    def _memories(self) -> list[Any]:
        return [module for module in self.loss.modules() if isinstance(module, CrossBatchMemory)]

    def _places(self) -> Tensor:
        return torch.tensor([[memory.queue_idx, int(memory.has_been_filled)] for memory in self._memories])

    def _warn_of_accumulation(self, num_items: Any) -> None:
        known = not isinstance(num_items, Tensor) or num_items.device.type == "cpu"
        if num_items is None or self._warned_of_accumulation or not known or float(num_items) <= 1:
            return
        self._warned_of_accumulation = True
        warnings.warn(
            f"'{self}' couples the items of a batch: 1 of `num_items` = {float(num_items):g} here, and several "
            f"micro-batches are not one batch.",
            LossmithWarning,
            stacklevel=3,
        )


def _record(theirs: FromPml) -> ObjectiveRecord:
    """What a term of a sum says of itself."""
    return ObjectiveRecord(
        name=str(theirs),
        family="metric",
        item="batch",
        source="https://github.com/KevinMusgrave/pytorch-metric-learning",
        reads=FromPml.inputs,
        hyperparameters={},
        batch_coupled=True,
        function=FromPml.forward,
    )


def _queue(memory: Any) -> tuple[Tensor, Tensor, int, bool]:
    return memory.embedding_memory.clone(), memory.label_memory.clone(), memory.queue_idx, memory.has_been_filled


def _restore_places(module: nn.Module, _: object) -> None:
    assert isinstance(module, FromPml)
    for memory, (place, filled) in zip(module._memories, module.memory_places.tolist(), strict=True):
        memory.queue_idx, memory.has_been_filled = place, bool(filled)
