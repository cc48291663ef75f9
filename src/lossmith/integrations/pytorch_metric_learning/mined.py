"""Our metric losses on what a miner found, or on rows compared with other rows: what `indices_tuple` means to each."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_metric_learning.utils import loss_and_miner_utils as their_pairs
from torch import nn

from lossmith._numerics import at_least_float32
from lossmith._reduce import reduce_loss
from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.engines.similarity import SimilarityRows, check_table, positive_counts
from lossmith.errors import ObjectiveInputError
from lossmith.nn import IGNORE_INDEX
from lossmith.nn.base import graph_zero
from lossmith.objectives import ObjectiveRecord

Indices = tuple[Tensor, ...]
"""What a miner returns: (anchors, positives, negatives), or (anchors, positives, anchors, negatives)."""


@dataclass(frozen=True)
class Call:
    """What their convention hands to a loss."""

    embeddings: Float[Tensor, "anchors dim"]
    labels: Int[Tensor, " anchors"] | None
    candidates: Float[Tensor, "candidates dim"]
    """Rows that the anchors are compared with: themselves, or `ref_emb`."""
    candidate_labels: Int[Tensor, " candidates"] | None
    indices: Indices | None
    own: bool
    """Whether the candidates are the anchors themselves."""

    @property
    def pairs(self) -> Indices:
        """Anchors and positives, anchors and negatives; a triplet is one pair of each kind."""
        assert self.indices is not None
        return self.indices if len(self.indices) == 4 else (*self.indices[:2], self.indices[0], self.indices[2])


def restricted_mean(loss: Any, call: Call) -> Float[Tensor, ""]:
    """The mean of a loss over what `call` compares.

    Args:
        loss: A `MetricLoss`.
        call: Without rows that do not count.

    Raises:
        ObjectiveInputError: If the loss cannot be restricted like that.
    """
    record = loss.record
    _check_can(loss, call)
    zero = graph_zero(call.embeddings, *loss.parameters())
    if len(call.embeddings) == 0 or len(call.candidates) == 0:
        return zero
    if record.name == "n_pairs":
        anchors, positives = their_pairs.convert_to_pos_pairs_with_unique_labels(call.indices, call.labels)
        classes = call.labels[anchors]  # pyright: ignore[reportOptionalSubscript]
        return loss(call.embeddings[torch.cat([anchors, positives])], torch.cat([classes, classes]))
    if call.indices is not None and _weighs_anchors(record):
        return _weighted_mean(loss, call)
    statistics = _tables(loss, call)
    same = statistics["same"]
    values = loss.apply_function(statistics, rows=len(same)).reshape(-1)
    needs_positives = record.needs_positives and record.item == "anchor"
    valid = same.any(-1) if needs_positives else torch.ones_like(values, dtype=torch.bool)
    return reduce_loss(values, valid) + zero.to(values.dtype)


def counted_rows(call: Call) -> Call:
    """Without the rows labelled -100 and the entries of the indices that name one."""
    keep, keep_candidates = _kept(call.embeddings, call.labels), _kept(call.candidates, call.candidate_labels)
    if bool(keep.all()) and bool(keep_candidates.all()):
        return call
    embeddings = call.embeddings[keep]
    return replace(
        call,
        embeddings=embeddings,
        labels=None if call.labels is None else call.labels[keep],
        candidates=embeddings if call.own else call.candidates[keep_candidates],
        candidate_labels=None if call.candidate_labels is None else call.candidate_labels[keep_candidates],
        indices=None if call.indices is None else _renumbered(call.indices, keep, keep_candidates),
    )


def _kept(rows: Tensor, labels: Tensor | None) -> Bool[Tensor, " rows"]:
    return torch.ones(len(rows), dtype=torch.bool, device=rows.device) if labels is None else labels != IGNORE_INDEX


def _renumbered(indices: Indices, keep: Tensor, keep_candidates: Tensor) -> Indices:
    triplets = len(indices) == 3
    sides = (keep, keep_candidates, keep_candidates) if triplets else (keep, keep_candidates) * 2
    made: list[Tensor] = []
    for group in ((0, 1, 2),) if triplets else ((0, 1), (2, 3)):
        entries = torch.stack([sides[place][indices[place]] for place in group]).all(0)
        made += [(sides[place].cumsum(0) - 1)[indices[place][entries]] for place in group]
    return tuple(made)


def _weighs_anchors(record: ObjectiveRecord) -> bool:
    return record.name == "nca" or bool(record.proxy_shape)


def _check_can(loss: Any, call: Call) -> None:
    """Say what of their convention a loss cannot do."""
    record, fault = loss.record, None
    tables = any(name in record.reads for name in ("similarities", "distances"))
    mined = call.indices is not None
    if loss.gather or loss.memory is not None:
        fault = "gathers ranks or keeps a memory itself: build it without `gather` and `memory_size`"
    elif loss.miner is not None:
        fault = "chooses its rows itself: build it without `miner`, or give no `indices_tuple` and no `ref_emb`"
    elif not call.own and (not tables or record.name == "lifted_structure"):
        fault = "compares the rows of a batch with each other or with its proxies: it takes no `ref_emb`"
    elif call.labels is None and (not tables or _weighs_anchors(record) or not mined):
        fault = "reads `labels`, got None"
    elif not call.own and call.candidate_labels is None and not mined:
        fault = "needs `ref_labels` beside `ref_emb` where no `indices_tuple` is given"
    elif mined and record.name == "nca" and not call.own:
        fault = (
            "weighs anchors by `indices_tuple` and compares them with all of `ref_emb`, themselves included: give one"
        )
    elif mined and record.name == "lifted_structure" and _repeats(call):
        fault = "reads `indices_tuple` as pairs that occur once, got triplets or a repeated pair"
    elif mined and not _restrictable(record, tables):
        fault = "needs the whole batch at once: it takes no `indices_tuple`"
    if fault is not None:
        raise ObjectiveInputError(f"'{loss}' {fault}.")


def _restrictable(record: ObjectiveRecord, tables: bool) -> bool:
    if record.proxy_shape:
        return record.item == "anchor"
    return (tables and record.row_local) or record.name in ("contrastive", "lifted_structure", "n_pairs")


def _repeats(call: Call) -> bool:
    assert call.indices is not None
    both = (torch.stack(call.pairs[:2]), torch.stack(call.pairs[2:]))
    return len(call.indices) == 3 or any(pairs.shape[1] != pairs.unique(dim=1).shape[1] for pairs in both)


def _weighted_mean(loss: Any, call: Call) -> Tensor:
    """Every anchor by how often the indices name it, over the number of anchors: as theirs with proxies do."""
    labels = call.labels
    assert labels is not None
    # Their ProxyNCALoss counts a row as an anchor only, the others also as a positive or negative.
    anchors_only, dtype = loss.record.name == "proxy_nca", at_least_float32(call.embeddings).dtype
    weights = their_pairs.convert_to_weights(call.indices, labels, dtype=dtype, using_ref=anchors_only)
    counted = int((positive_counts(labels, labels) > 0).sum()) if loss.record.needs_positives else len(labels)
    return loss(call.embeddings, labels, weights=weights, num_items=counted)


def _tables(loss: Any, call: Call) -> dict[str, Tensor]:
    """Similarities or distances, and which of them count: a row per anchor, or per triplet."""
    record = loss.record
    kind = "similarities" if "similarities" in record.reads else "distances"
    table = _table(loss, call, kind)
    if call.indices is None:
        assert call.labels is not None
        assert call.candidate_labels is not None
        same = call.labels[:, None] == call.candidate_labels[None, :]
        return {kind: table, "same": same, "different": ~same}
    anchors, positives, others, negatives = call.pairs
    if record.item == "anchor" or record.name == "lifted_structure":
        same, different = (torch.zeros_like(table, dtype=torch.bool) for _ in range(2))
        same[anchors, positives] = True
        different[others, negatives] = True
        return {kind: table, "same": same, "different": different}
    # Losses of pairs and triplets count every entry of the list, a repeated one again: a table of the entries.
    rows = torch.cat([anchors, others])
    values = table[rows, torch.cat([positives, negatives])]
    if record.item == "triplet" and len(call.indices) == 3:
        rows = torch.arange(len(anchors), device=table.device).repeat(2)
    positive = torch.arange(len(rows), device=table.device) < len(positives)
    made, filled = _by_row(record.name, values, rows)
    same, _ = _by_row(record.name, positive, rows)
    return {kind: made, "same": same, "different": filled & ~same}


def _table(loss: Any, call: Call, kind: str) -> Float[Tensor, "anchors candidates"]:
    anchors, candidates = at_least_float32(call.embeddings), at_least_float32(call.candidates)
    dtype = torch.promote_types(anchors.dtype, candidates.dtype)
    anchors, candidates = anchors.to(dtype), candidates.to(dtype)
    if loss.hyperparameters.get("normalize"):
        anchors, candidates = nn.functional.normalize(anchors, dim=-1), nn.functional.normalize(candidates, dim=-1)
    size = len(anchors) * len(candidates)
    check_table(loss.record.name, size, anchors.element_size(), what="pairs", anchors=len(anchors))
    classes = [torch.zeros(len(vectors), dtype=torch.long, device=anchors.device) for vectors in (anchors, candidates)]
    return SimilarityRows(anchors, classes[0], candidates, classes[1]).statistics((kind,))[kind]


def _by_row(name: str, values: Tensor, rows: Int[Tensor, " entries"]) -> tuple[Tensor, Bool[Tensor, "rows width"]]:
    """The values side by side in their rows, [rows, width], and which of the places hold one."""
    counts = torch.bincount(rows, minlength=1)
    width = max(int(counts.max()), 1)
    check_table(name, len(counts) * width, values.element_size(), what="mined pairs", anchors=len(counts))
    filled = torch.arange(width, device=rows.device)[None, :] < counts[:, None]
    return values.new_zeros(filled.shape).masked_scatter(filled, values[torch.argsort(rows, stable=True)]), filled
