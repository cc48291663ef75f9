"""The module on embeddings and class labels; it owns proxies and a memory of earlier batches."""

import math
import warnings
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from lossmith._checks import check_label_range, check_labels
from lossmith._debug import check_finite_rows, debugging, note_classes
from lossmith._numerics import at_least_float32
from lossmith._reduce import NumItems
from lossmith._typing import Tensor
from lossmith.engines import SimilarityRows, apply_by_rows, check_table, gather_rows, own_start, row_counts, world_size
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.nn.base import IGNORE_INDEX, Inputs, ObjectiveModule, graph_zero, scatter
from lossmith.nn.memory import EmbeddingMemory
from lossmith.objectives import ObjectiveRecord

_TABLES = ("similarities", "distances")


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
        gather: bool = False,
    ):
        settings = {"gather": gather, **({"memory_size": memory_size} if record.row_local else {})}
        super().__init__(record, hyperparameters, **settings)
        self.num_classes = num_classes
        self.gather = gather
        self._warned_of_single_rows = False
        self._compares_rows = any(name in record.reads for name in _TABLES)
        if record.proxy_shape:
            sizes = {**self.hyperparameters, "num_classes": num_classes, "embedding_dim": embedding_dim}
            shape = [_size(record, name, sizes[name]) for name in record.proxy_shape]
            # About unit length, so that one learning rate fits every dimension.
            self.proxies = nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]))
            self.register_load_state_dict_pre_hook(_check_saved_proxies)
        self.memory: EmbeddingMemory | None = None
        if memory_size:
            if not record.row_local:
                raise ObjectiveInputError(
                    f"'{record.name}' cannot use `memory_size`: losses that compare each row with others on its own "
                    f"can, such as supcon, nt_xent or triplet_margin."
                )
            size = _size(record, "memory_size", memory_size)
            self.memory = EmbeddingMemory(size, _size(record, "embedding_dim", embedding_dim))

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per anchor, or as many as there are pairs or triplets, or one for the batch."""
        embeddings, labels = inputs["embeddings"], inputs["labels"]
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ObjectiveInputError(
                f"`embeddings` must be a floating-point tensor [anchors, dim], got {embeddings.dtype} "
                f"{tuple(embeddings.shape)}."
            )
        check_labels(labels, tuple(embeddings.shape[:1]), scores="embeddings")
        counted = labels != IGNORE_INDEX
        rows, classes = at_least_float32(embeddings[counted]), labels[counted].long()
        check_finite_rows("embeddings", rows, counted)
        if self._compares_rows:
            return self._compare(embeddings, counted, rows, classes)
        if self.gather and self.record.item != "anchor":
            rows, classes = gather_rows(rows), gather_rows(classes)
        statistics: dict[str, Tensor] = {"embeddings": rows, "labels": classes}
        if self.record.proxy_shape:
            statistics["proxies"] = self._checked_proxies(rows, classes)
        else:
            self._warn_of_lone_rows(SimilarityRows(rows, classes, rows, classes).positive_counts)
        values = self.apply_function(statistics, rows=len(rows))
        if self.record.item == "anchor":
            return scatter(values, counted), counted
        return self._all_count(values, embeddings, bool(counted.any()))

    def reduce(
        self, losses: Tensor, valid: Tensor, weights: Tensor | None, num_items: NumItems | None, reduction: str
    ) -> Tensor:
        """As for every loss; with `gather`, so that the mean over ranks is the loss of one rank with all rows."""
        ranks = world_size() if self.gather else 1
        shared = not self._compares_rows or not self.record.row_local
        if ranks == 1 or reduction == "none" or (shared and self.record.item != "anchor"):
            return super().reduce(losses, valid, weights, num_items, reduction)
        if reduction == "mean" and num_items is None:
            count = valid.to(losses.dtype) if weights is None else torch.where(valid, weights.to(losses.dtype), 0.0)
            num_items = gather_rows(count.sum().detach()[None]).sum()
        return ranks * super().reduce(losses, valid, weights, num_items, reduction)

    def _compare(self, embeddings: Tensor, counted: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        rows_of_batch = self._rows(rows, classes)
        positives = rows_of_batch.positive_counts
        self._warn_of_lone_rows(positives)
        self._check_size(rows_of_batch, positives)
        if self.record.row_local:
            values = apply_by_rows(self._chunk, rows_of_batch, self.needed)
        else:
            values = self._chunk(rows_of_batch.statistics(self.needed))
        if self.memory is not None and self.training:
            everyone = rows_of_batch.candidates[: len(rows_of_batch.candidates) - self.memory.size]
            self.memory.push(everyone.detach(), rows_of_batch.candidate_labels[: len(everyone)])
        if self.record.item != "anchor":
            return self._all_count(values, embeddings, bool(counted.any()))
        losses = scatter(values, counted)
        if not self.record.needs_positives:
            return losses, counted
        return losses, counted.masked_scatter(counted, positives > 0)

    def _chunk(self, statistics: dict[str, Tensor]) -> Tensor:
        return self.apply_function(statistics, rows=len(statistics[self.needed[0]]))

    def _rows(self, rows: Tensor, classes: Tensor) -> SimilarityRows:
        """Anchors and candidates: the batch, with `gather` that of all ranks, and the memory behind them."""
        if self.hyperparameters.get("normalize"):
            rows = F.normalize(rows, dim=-1)
        anchors, labels, candidates, candidate_labels, start = rows, classes, rows, classes, 0
        if self.gather:
            start = own_start(row_counts(rows))
            candidates, candidate_labels = gather_rows(rows), gather_rows(classes)
            if not self.record.row_local:
                anchors, labels, start = candidates, candidate_labels, 0
        if self.memory is not None:
            if rows.shape[1] != self.memory.embeddings.shape[1]:
                raise ObjectiveInputError(
                    f"`embeddings` have dim {rows.shape[1]} but the memory of '{self.record.name}' has `embedding_dim` "
                    f"{self.memory.embeddings.shape[1]}."
                )
            candidates = torch.cat([candidates, self.memory.embeddings.to(rows.dtype)])
            candidate_labels = torch.cat([candidate_labels, self.memory.labels])
        return SimilarityRows(anchors, labels, candidates, candidate_labels, start)

    def _check_size(self, rows: SimilarityRows, positives: Tensor) -> None:
        anchors, width = len(rows.anchors), len(rows.candidates)
        what, entries = "pairs", anchors * width
        if self.record.item == "triplet":
            what, entries = "triplets", int(positives.sum()) * width
        elif self.record.row_local:
            entries = int(positives.sum()) if self.record.item == "pair" else 0
        check_table(self.record.name, entries, rows.anchors.element_size(), what=what, anchors=anchors)

    def _all_count(self, values: Tensor, embeddings: Tensor, anything: bool) -> tuple[Tensor, Tensor]:
        """Losses of pairs, triplets or the batch: every one that is returned counts, where any row does."""
        losses = graph_zero(embeddings, *self.parameters()).to(values.dtype) + values.reshape(-1)
        return losses, torch.full_like(losses, anything, dtype=torch.bool)

    def _checked_proxies(self, rows: Tensor, classes: Tensor) -> Tensor:
        if rows.shape[1] != self.proxies.shape[-1]:
            raise ObjectiveInputError(
                f"`embeddings` have dim {rows.shape[1]} but the proxies of '{self.record.name}' have "
                f"`embedding_dim` {self.proxies.shape[-1]}."
            )
        check_label_range(classes, self.proxies.shape[0], size_name="num_classes", ignore_index=IGNORE_INDEX)
        note_classes(id(self), self.record.name, self.proxies.shape[0], classes)
        return self.proxies.to(rows.dtype)

    def _warn_of_lone_rows(self, positives: Tensor) -> None:
        if self._warned_of_single_rows or (positives.device.type != "cpu" and not debugging()):
            return
        if bool((positives == 0).any()):
            self._warned_of_single_rows = True
            fate = "do not count" if self.record.needs_positives else "are compared with no positive"
            warnings.warn(
                f"'{self.record.name}': some rows have no other row of their class in the batch and {fate}; "
                f"larger or class-balanced batches avoid this.",
                LossmithWarning,
                stacklevel=6,
            )


def _size(record: ObjectiveRecord, name: str, size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31:
        owns = "owns proxies" if record.proxy_shape else "keeps a memory"
        limit = "an int >= 1" if not isinstance(size, int) or size < 1 else "below 2**31"
        raise ObjectiveInputError(f"'{record.name}' {owns}: `{name}` must be {limit}, got {str(size)[:20]}.")
    return size


def _check_saved_proxies(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Say in one sentence that a checkpoint belongs to a loss of another shape."""
    assert isinstance(module, MetricLoss)
    saved, own = state.get(f"{prefix}proxies"), tuple(module.proxies.shape)
    if isinstance(saved, Tensor) and tuple(saved.shape) != own:
        raise ObjectiveInputError(
            f"The saved proxies of '{module.record.name}' have shape {tuple(saved.shape)}, this loss needs "
            f"({', '.join(module.record.proxy_shape)}) = {own}."
        )
