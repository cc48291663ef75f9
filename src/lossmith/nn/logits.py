"""Modules on logits and aligned labels: token losses and region losses."""

from typing import Any, final

import torch

from lossmith._checks import check_label_range, check_labels, check_one_of
from lossmith._debug import check_finite_rows, check_possible_labels
from lossmith._numerics import at_least_float32
from lossmith._typing import Tensor
from lossmith.engines import DenseTokenStatistics, region_statistics
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import IGNORE_INDEX, Inputs, ObjectiveModule, scatter
from lossmith.objectives import ObjectiveRecord


@final
class TokenLoss(ObjectiveModule):
    """A token objective on `logits` [..., vocab] against aligned `labels` [...]; a label of -100 does not count."""

    inputs = ("logits", "labels")

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per label, in the shape of `labels`."""
        logits, labels, valid = _checked(inputs)
        rows, classes = _counted(logits, labels, valid)
        check_finite_rows("logits", rows, valid, masked=True)
        check_possible_labels(rows, classes, valid)
        statistics = DenseTokenStatistics(rows, classes).get(self.needed)
        return scatter(self.apply_function(statistics, rows=len(classes)), valid), valid


@final
class RegionLoss(ObjectiveModule):
    """A region objective on `logits` [..., vocab] against aligned `labels` [...]: one loss per region.

    Args:
        record: The objective.
        hyperparameters: Its settings, those left out at their default.
        region: What is one region: the whole "batch", or each "sequence" (the first axis of `labels`), in which case
            micro-batches add up to one batch.
        gather: Whether the region is the batch of all ranks of torch.distributed; the mean over ranks of its gradients
            (what DDP does) is the gradient of one rank that holds all rows.
    """

    inputs = ("logits", "labels")

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

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per region: one, or as many as the first axis of `labels` is long."""
        logits, labels, valid = _checked(inputs)
        if self.region == "sequence" and labels.ndim < 2:
            raise ObjectiveInputError(
                f"`region='sequence'` needs `labels` of shape [batch, seq], got {tuple(labels.shape)}."
            )
        rows, classes = _counted(logits, labels, valid)
        check_finite_rows("logits", rows, valid, masked=True)
        check_possible_labels(rows, classes, valid)
        counts = [len(classes)] if self.region == "batch" else valid.flatten(1).sum(1).tolist()
        regions = region_statistics(rows, classes, counts, self.needed, gather=self.gather)
        values = [self.apply_function(s, rows=len(s["class_ids"])) if s else None for s in regions]
        # An empty region is a 0; where nothing at all counts it is in the graph of the logits.
        zero = at_least_float32(rows).new_zeros(()) if len(classes) else at_least_float32(rows).sum()
        losses = torch.stack([zero if value is None else value for value in values]) if values else zero.expand(0)
        return losses, torch.tensor([bool(s) for s in regions], device=labels.device)


def _checked(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and which labels count."""
    logits, labels = inputs["logits"], inputs["labels"]
    if logits.ndim < 1 or not logits.is_floating_point():
        raise ObjectiveInputError(
            f"`logits` must be a floating-point tensor [..., vocab], got {logits.dtype} {tuple(logits.shape)}."
        )
    check_labels(labels, tuple(logits.shape[:-1]), scores="logits")
    check_label_range(labels, logits.shape[-1], size_name="vocab", ignore_index=IGNORE_INDEX)
    return logits, labels, labels != IGNORE_INDEX


def _counted(logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that count, taken out before anything is computed: an ignored NaN must not reach a gradient as 0 * NaN.

    Where all count they are not copied, and by index the gradient is an addition of rows, several times faster than
    that of a mask.
    """
    rows, classes = logits.reshape(-1, logits.shape[-1]), labels.flatten()
    places = valid.flatten().nonzero().squeeze(1)
    if len(places) == len(classes):
        return rows, classes.long()
    return rows.index_select(0, places), classes.index_select(0, places).long()
