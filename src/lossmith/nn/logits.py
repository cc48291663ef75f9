"""Modules on logits and aligned labels: token losses and region losses."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import torch

from lossmith._checks import check_label_range, check_labels, check_one_of
from lossmith._debug import check_finite_weights
from lossmith._reduce import NumItems, check_weights_shape, own_divisor, reduce_loss
from lossmith._typing import Tensor
from lossmith.engines import Demand, DenseSource, LinearLogits, StatisticsSource
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import IGNORE_INDEX, Inputs, ObjectiveModule, scatter
from lossmith.nn.linear import LinearCall, LinearTerm
from lossmith.nn.plan import Plan
from lossmith.objectives import ObjectiveRecord


class LogitsLoss(ObjectiveModule):
    """A loss on logits, built or not."""

    inputs = ("logits", "labels")

    @abstractmethod
    def demand(self, labels: Tensor) -> Demand:
        """What it reads of logits against these labels."""

    def demands(self, labels: Tensor, scopes: Mapping[str, Tensor] | None = None) -> list[Demand]:
        """See `LossModule.demands`."""
        return [self.demand(labels)]

    def term(self, labels: Tensor) -> LinearTerm:
        """Itself as a term of a call on `LinearLogits`."""
        return LinearTerm(name=str(self), record=self.record, demand=self.demand(labels))

    def evaluate(self, inputs: Inputs, weights: Tensor | None, num_items: NumItems | None, reduction: str) -> Tensor:
        """The loss, by the plan that suits the call."""
        if not isinstance(inputs["logits"], LinearLogits):
            return super().evaluate(inputs, weights, num_items, reduction)
        call, labels = self._call(inputs, weights, num_items, reduction), inputs["labels"]
        if not call.in_forward:
            return super().evaluate({**inputs, "logits": call.source()}, weights, num_items, reduction)
        valid = labels != IGNORE_INDEX
        if weights is not None:
            check_weights_shape(weights, labels.shape)
            check_finite_weights(weights, valid)
            # A copy: gradients are made again in a second backward pass, whatever was written over them since.
            weights = weights.clone()
        if reduction == "mean" and num_items is None:
            num_items = own_divisor(valid, weights, call.linear.dtype)
        whole = super()

        def evaluate(source: StatisticsSource, take: Callable[[Tensor], Tensor]) -> Tensor:
            part = {"logits": source, "labels": take(labels)}
            return whole.evaluate(part, None if weights is None else take(weights), num_items, reduction)

        return call.run_in_forward(evaluate)

    def check_reduction(self, labels: Tensor, weights: Any, num_items: Any, reduction: str) -> None:
        """Refuse weights and divisors that a call would refuse.

        Raises:
            ObjectiveInputError: As `forward`.
        """
        demand = self.demand(labels)
        counts = [int(count) for count in demand.counts] if demand.region is not None else None
        valid = labels != IGNORE_INDEX if counts is None else torch.tensor(counts, device=labels.device) > 0
        losses = torch.zeros(valid.shape, device=labels.device)
        reduce_loss(losses, valid, weights=weights, num_items=num_items, reduction=reduction)

    def _plan(self, inputs: Inputs, weights: object, num_items: object, reduction: str) -> Plan:
        own, divisor = self._own(weights, "weights"), self._own(num_items, "num_items")
        self.check_reduction(inputs["labels"], own, divisor, reduction)
        return logits_plan(inputs, lambda: self._call(inputs, own, divisor, reduction))

    def _call(self, inputs: Inputs, weights: object, num_items: object, reduction: str) -> LinearCall:
        linear, labels = inputs["logits"], inputs["labels"]
        check_logits_labels(linear.shape, labels)
        return LinearCall(linear=linear, terms=[self.term(labels)], numbers=(weights, num_items), reduction=reduction)


def logits_plan(inputs: Inputs, call: Callable[[], LinearCall]) -> Plan:
    """The plan of a call on logits, built or not."""
    logits = inputs["logits"]
    if isinstance(logits, LinearLogits):
        return call().plan()
    rows = int((inputs["labels"] != IGNORE_INDEX).sum())
    reason = "The logits exist already; `lossmith.LinearLogits` would do without them."
    return Plan(engine="dense", name="dense", products=0, items=rows, chunks=1, scratch_bytes=0, reason=reason)


@final
class TokenLoss(LogitsLoss):
    """A token objective on `logits` [..., vocab] against aligned `labels` [...]; a label of -100 does not count."""

    def demand(self, labels: Tensor) -> Demand:
        """What it reads of logits against these labels."""
        return Demand(labels=labels, names=self.needed)

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per label, in the shape of `labels`."""
        source, labels, valid = _checked(inputs)
        statistics = source.tokens(labels, self.needed)
        rows = len(next(iter(statistics.values())))
        return scatter(self.apply_function(statistics, rows=rows), valid), valid


@final
class RegionLoss(LogitsLoss):
    """A region objective on `logits` [..., vocab] against aligned `labels` [...]: one loss per region.

    Args:
        record: The objective.
        hyperparameters: Its settings, those left out at their default.
        region: What is one region: the whole "batch", or each "sequence" (the first axis of `labels`), in which case
            micro-batches add up to one batch.
        gather: Whether the region is the batch of all ranks of torch.distributed; the mean over ranks of its gradients
            (what DDP does) is the gradient of one rank that holds all rows.
    """

    def __init__(
        self,
        record: ObjectiveRecord,
        hyperparameters: dict[str, Any],
        *,
        region: str = "batch",
        gather: bool = False,
    ):
        super().__init__(record, hyperparameters, region=region, gather=gather)
        check_one_of("region", region, ("batch", "sequence"))
        if gather and region == "sequence":
            raise ObjectiveInputError("`gather=True` needs `region='batch'`: a sequence lies on one rank.")
        self.region = region
        self.gather = gather
        self.batch_coupled = record.batch_coupled and region == "batch"

    def demand(self, labels: Tensor) -> Demand:
        """What it reads of logits against these labels."""
        if self.region == "sequence" and labels.ndim < 2:
            raise ObjectiveInputError(
                f"`region='sequence'` needs `labels` of shape [batch, seq], got {tuple(labels.shape)}."
            )
        return Demand(labels=labels, names=self.needed, region=self.region, gather=self.gather)

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per region: one, or as many as the first axis of `labels` is long."""
        source, labels, _ = _checked(inputs)
        regions = source.regions(self.demand(labels))
        values = [self.apply_function(s, rows=len(s["class_ids"])) if s else None for s in regions]
        # An empty region is a 0; where nothing at all counts it is in the graph of the logits.
        known = [value for value in values if value is not None]
        zero = known[0].new_zeros(()) if known else source.zero()
        losses = torch.stack([zero if value is None else value for value in values]) if values else zero.expand(0)
        return losses, torch.tensor([bool(s) for s in regions], device=labels.device)


def _checked(inputs: Inputs) -> tuple[StatisticsSource, Tensor, Tensor]:
    """A source of statistics, labels and which labels count."""
    logits, labels = inputs["logits"], inputs["labels"]
    if isinstance(logits, Tensor):
        if logits.ndim < 1 or not logits.is_floating_point():
            raise ObjectiveInputError(
                f"`logits` must be a floating-point tensor [..., vocab], got {logits.dtype} {tuple(logits.shape)}."
            )
        logits = DenseSource(logits)
    check_logits_labels(logits.shape, labels)
    return logits, labels, labels != IGNORE_INDEX


def check_logits_labels(shape: tuple[int, ...], labels: Tensor) -> None:
    """Raise `ObjectiveInputError` unless the labels are classes of logits of this shape, or -100."""
    check_labels(labels, tuple(shape[:-1]), scores="logits")
    check_label_range(labels, shape[-1], size_name="vocab", ignore_index=IGNORE_INDEX)
