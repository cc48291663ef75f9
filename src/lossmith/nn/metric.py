"""The module on embeddings and class labels; it owns proxies and a memory of earlier batches."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F

from lossmith._debug import check_finite_rows, check_finite_weights, debugging
from lossmith._numerics import at_least_float32
from lossmith._reduce import NumItems
from lossmith._typing import Tensor
from lossmith.engines.gather import gather_rows, world_size
from lossmith.engines.miners import make_miner
from lossmith.engines.row_plans import apply_by_rows, row_chunks, sum_by_rows
from lossmith.engines.similarity import COPIES, TABLES, AnchorRows, ProxyRows, SimilarityRows, positive_counts
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.nn.base import Inputs, ObjectiveModule, graph_zero, scatter
from lossmith.nn.metric_plan import choose_plan
from lossmith.nn.metric_rows import (
    candidate_rows,
    check_candidates,
    check_proxy_rows,
    check_saved_proxies,
    checked_embeddings,
    checked_proxies,
    new_memory,
    new_proxies,
    scores_of_proxies,
)
from lossmith.nn.plan import Plan
from lossmith.objectives import ObjectiveRecord

_TABLES = ("similarities", "distances")


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The rows of one call, checked."""

    embeddings: Tensor
    """As they came."""
    counted: Tensor
    """Which of them have a label."""
    valid: Tensor
    """Which of them count where losses belong to anchors."""
    rows: AnchorRows
    chunks: list[slice]


@final
class MetricLoss(ObjectiveModule):
    """A metric objective on `embeddings` [anchors, dim] with class ids `labels` [anchors].

    Args:
        record: The objective.
        hyperparameters: Its settings, those left out at their default.
        num_classes: Classes that proxies stand for.
        embedding_dim: Length of an embedding; needed for proxies and for a memory.
        memory_size: Rows of earlier batches that the anchors are also compared with (a cross-batch memory, without
            gradient; Wang et al. 2020, https://arxiv.org/abs/1912.06798); 0 for none. Filled in training mode only.
        miner: Which rows an anchor is compared with: "none" for all, "hard", "semi_hard" (losses of triplets) or
            "multi_similarity". An anchor that nothing is left of does not count.
        miner_epsilon: Slack of "multi_similarity", in the unit of the similarities or distances that the loss reads.
        gather: Whether the batch is that of all ranks of torch.distributed. The mean over ranks of the loss and of its
            gradients (what DDP does) is then that of one rank that holds all rows.
    """

    inputs = ("embeddings", "labels")

    def __init__(
        self,
        record: ObjectiveRecord,
        hyperparameters: dict[str, Any],
        *,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
        memory_size: int = 0,
        miner: str = "none",
        miner_epsilon: float = 0.1,
        gather: bool = False,
    ):
        given = {"memory_size": memory_size, "miner": miner, "miner_epsilon": miner_epsilon, "gather": gather}
        super().__init__(record, hyperparameters, **{name: given[name] for name in record.settings})
        self.miner = make_miner(record, miner, miner_epsilon)
        self.num_classes = num_classes
        self.gather = gather
        self._warned_of_single_rows = False
        self._compares_rows = any(name in record.reads for name in _TABLES)
        # With proxies an anchor needs its own row only, unless its loss depends on the other items of the batch.
        alone = record.proxy_shape and record.item == "anchor" and not record.batch_coupled
        self._comes_in_chunks = record.row_local or bool(alone)
        if record.proxy_shape:
            sizes = {**self.hyperparameters, "num_classes": num_classes, "embedding_dim": embedding_dim}
            self.proxies = new_proxies(record, sizes)
            self.register_load_state_dict_pre_hook(check_saved_proxies)
        self.memory = new_memory(record, memory_size, embedding_dim)

    def evaluate(self, inputs: Inputs, weights: Tensor | None, num_items: NumItems | None, reduction: str) -> Tensor:
        """The loss, by the plan that suits the call."""
        batch = self._batch(inputs)
        needs_grad = batch.rows.anchors.requires_grad or batch.rows.others.requires_grad
        if self._choose(batch.chunks, needs_grad, weights, num_items, reduction)[0] == "gradient in forward":
            loss = self._sum(batch, weights, num_items, reduction)
        else:
            losses, valid = self._losses(batch)
            loss = self._finish(losses, valid, weights, num_items, reduction)
        self._remember(batch.rows)
        return loss

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per anchor, or as many as there are pairs or triplets, or one for the batch."""
        batch = self._batch(inputs)
        losses, valid = self._losses(batch)
        self._remember(batch.rows)
        return losses, valid

    @property
    def scores_classes(self) -> bool:
        """Whether it owns proxies that tell classes apart on their own, so that `class_scores` can be asked."""
        return self.record.class_scores is not None

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Scores [rows, classes] of the loss's own proxies, of which a softmax is the probability of each class.

        Args:
            embeddings: As the loss is given them, [rows, dim].

        Raises:
            ObjectiveInputError: If the loss owns no proxies, or these are of another width.
        """
        if not self.scores_classes:
            raise ObjectiveInputError(
                f"'{self.record.name}' owns no proxies that score classes: use the mean embedding of each class."
            )
        return scores_of_proxies(self, self.hyperparameters, at_least_float32(embeddings))

    def _losses(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        values = apply_by_rows(self._chunk, batch.rows, self.needed, batch.chunks)
        if self.record.item == "anchor":
            return scatter(values, batch.counted), batch.valid
        # Losses of pairs, triplets or the batch: every one that is returned counts, where any row does.
        losses = graph_zero(batch.embeddings, *self.parameters()).to(values.dtype) + values.reshape(-1)
        return losses, torch.full_like(losses, bool(batch.counted.any()), dtype=torch.bool)

    def _sum(self, batch: _Batch, weights: Tensor | None, num_items: NumItems | None, reduction: str) -> Tensor:
        """The reduced loss with its gradient, in one pass over the chunks."""
        rows, chunks = batch.rows, batch.chunks
        if self.record.item != "anchor":
            total, count = sum_by_rows(self._chunk, rows, self.needed, chunks, None)
            # As many times their mean, in no memory: how many there are is known only now.
            losses = (total / max(count, 1)).expand(count)
            valid = torch.ones((), dtype=torch.bool, device=losses.device).expand(count)
            return self._finish(losses, valid, weights, num_items, reduction)
        # A reduction is linear in the losses: its slopes are the weight of each.
        stand_in = torch.zeros(batch.valid.shape, dtype=rows.anchors.dtype, device=rows.anchors.device)
        reduced = self._finish(stand_in.requires_grad_(), batch.valid, weights, num_items, reduction)
        (slopes,) = torch.autograd.grad(reduced, stand_in)
        return sum_by_rows(self._chunk, rows, self.needed, chunks, slopes[batch.counted])[0]

    def _finish(
        self, losses: Tensor, valid: Tensor, weights: Tensor | None, num_items: NumItems | None, reduction: str
    ) -> Tensor:
        check_finite_weights(weights, valid)
        self._warn_of_accumulation(num_items, valid)
        return self.reduce(losses, valid, weights, num_items, reduction)

    def _choose(
        self, chunks: list[slice], needs_grad: bool, weights: object, num_items: object, reduction: str
    ) -> tuple[str, str]:
        return choose_plan(
            self.record,
            in_chunks=self._comes_in_chunks,
            chunks=len(chunks),
            needs_grad=needs_grad,
            weights=weights,
            num_items=num_items,
            reduction=reduction,
        )

    @property
    def _keeps_one(self) -> bool:
        """Whether one positive at most is left to an anchor."""
        return self.miner is not None and self.miner.leaves_one

    @property
    def _mines_first(self) -> bool:
        """Whether all tables are made once more, to find which anchors count."""
        return self.miner is not None and not self._keeps_one and self.record.item == "anchor"

    def _plan(self, inputs: Inputs, weights: object, num_items: object, reduction: str) -> Plan:
        embeddings, counted = checked_embeddings(inputs)
        labels, items = inputs["labels"][counted], int(counted.sum())
        wanted = [embeddings.requires_grad]
        tables: Tensor | None = None
        width = items
        if self.record.proxy_shape:
            width = math.prod(self.proxies.shape[:-1])
            wanted.append(self.proxies.requires_grad)
        elif self._compares_rows:
            wanted *= 2
            width = items * (world_size() if self.gather else 1) + (0 if self.memory is None else self.memory.size)
            if self.record.item == "triplet" and not self._keeps_one:
                tables = positive_counts(labels, labels)
        anchors = at_least_float32(embeddings[:1].detach()).expand(items, -1)
        chunks = self._chunks(anchors, width, tables)
        name, reason = self._choose(chunks, any(wanted), self._own(weights, "weights"), num_items, reduction)
        reason += " The miner reads all tables once before, for which anchors count." if self._mines_first else ""
        slopes = sum(wanted) if torch.is_grad_enabled() else 0
        rows = max((int(tables[c].sum()) if tables is not None else c.stop - c.start for c in chunks), default=0)
        return Plan(
            engine="dense" if name == "dense" else "rows",
            name=name,
            products=1 + slopes + (name == "recompute") + self._mines_first,
            items=items,
            chunks=len(chunks),
            scratch_bytes=TABLES * rows * width * anchors.element_size(),
            reason=reason,
        )

    def reduce(
        self, losses: Tensor, valid: Tensor, weights: Tensor | None, num_items: NumItems | None, reduction: str
    ) -> Tensor:
        """As for every loss; with `gather`, so that the mean over ranks is the loss of one rank with all rows."""
        ranks = world_size() if self.gather else 1
        shared = not self.record.row_local
        if ranks == 1 or reduction == "none" or (shared and self.record.item != "anchor"):
            return super().reduce(losses, valid, weights, num_items, reduction)
        if reduction == "mean" and num_items is None:
            count = valid if weights is None else torch.where(valid, weights.to(losses.dtype), 0.0)
            num_items = gather_rows(count.sum().to(losses.dtype).detach()[None]).sum()
        return ranks * super().reduce(losses, valid, weights, num_items, reduction)

    def _batch(self, inputs: Inputs) -> _Batch:
        embeddings, counted = checked_embeddings(inputs)
        vectors, classes = at_least_float32(embeddings[counted]), inputs["labels"][counted].long()
        check_finite_rows("embeddings", vectors, counted)
        valid, tables = counted, None
        if self._compares_rows:
            anchors = F.normalize(vectors, dim=-1) if self.hyperparameters.get("normalize") else vectors
            rows = candidate_rows(self.record, anchors, classes, self.memory, gather=self.gather)
            positives = rows.positive_counts
            self._warn_of_lone_rows(positives)
            check_candidates(self.record, rows, positives, keeps_one=self._keeps_one)
            tables = positives if self.record.item == "triplet" and not self._keeps_one else None
            if self.record.needs_positives and self.record.item == "anchor":
                valid = counted.masked_scatter(counted, positives > 0)
        else:
            rows = self._proxy_rows(vectors, classes)
        chunks = self._chunks(rows.anchors, rows.width, tables)
        if self.miner is not None and self.record.item == "anchor":
            assert isinstance(rows, SimilarityRows)
            valid = counted.masked_scatter(counted, self.miner.left(rows, self.needed, chunks))
        return _Batch(embeddings=embeddings, counted=counted, valid=valid, rows=rows, chunks=chunks)

    def _chunks(self, anchors: Tensor, width: int, tables: Tensor | None) -> list[slice]:
        if not self._comes_in_chunks:
            return [slice(0, len(anchors))]
        least = COPIES * anchors.shape[1] // TABLES if self.record.proxy_shape else 1
        return row_chunks(len(anchors), width, anchors.dtype, anchors.device, tables, least)

    def _remember(self, rows: AnchorRows) -> None:
        if self.memory is None or not self.training:
            return
        assert isinstance(rows, SimilarityRows)
        everyone = rows.candidates[: len(rows.candidates) - self.memory.size]
        self.memory.push(everyone.detach(), rows.candidate_labels[: len(everyone)])

    def _proxy_rows(self, rows: Tensor, classes: Tensor) -> ProxyRows:
        if self.gather and self.record.item != "anchor":
            rows, classes = gather_rows(rows), gather_rows(classes)
        if not self.record.proxy_shape:
            self._warn_of_lone_rows(positive_counts(classes, classes))
            return ProxyRows(rows, classes, rows.new_empty(0, rows.shape[1]))
        made = ProxyRows(rows, classes, checked_proxies(self, rows, classes))
        if not self._comes_in_chunks:
            check_proxy_rows(self.record, made)
        return made

    def _chunk(self, statistics: dict[str, Tensor]) -> Tensor:
        if self.miner is not None:
            statistics = self.miner.mine(statistics)
        first = next(name for name in self.needed if name != "proxies")
        return self.apply_function(statistics, rows=len(statistics[first]))

    def _warn_of_lone_rows(self, positives: Tensor) -> None:
        if self._warned_of_single_rows or (positives.device.type != "cpu" and not debugging()):
            return
        if bool((positives == 0).any()):
            self._warned_of_single_rows = True
            counts = not self.record.needs_positives and self.miner is None
            fate = "are compared with no positive" if counts else "do not count"
            warnings.warn(
                f"'{self.record.name}': some rows have no other row of their class in the batch and {fate}; "
                f"larger or class-balanced batches avoid this.",
                LossmithWarning,
                stacklevel=6,
            )
