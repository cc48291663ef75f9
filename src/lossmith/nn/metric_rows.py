"""The rows that a metric loss compares: checked embeddings, proxies and candidates, and whether their tables fit."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lossmith._checks import check_label_range, check_labels
from lossmith._debug import note_classes
from lossmith._typing import Tensor
from lossmith.engines.gather import gather_rows, own_start, row_counts
from lossmith.engines.similarity import ProxyRows, SimilarityRows, check_table
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import IGNORE_INDEX, Inputs
from lossmith.nn.memory import EmbeddingMemory
from lossmith.objectives import ObjectiveRecord


@runtime_checkable
class OwnsProxies(Protocol):
    """What is asked of a module with proxies."""

    record: ObjectiveRecord
    proxies: nn.Parameter


def checked_embeddings(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The embeddings, and which of them have a label."""
    embeddings, labels = inputs["embeddings"], inputs["labels"]
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ObjectiveInputError(
            f"`embeddings` must be a floating-point tensor [anchors, dim], got {embeddings.dtype} "
            f"{tuple(embeddings.shape)}."
        )
    check_labels(labels, tuple(embeddings.shape[:1]), scores="embeddings")
    return embeddings, labels != IGNORE_INDEX


def candidate_rows(
    record: ObjectiveRecord, anchors: Tensor, classes: Tensor, memory: EmbeddingMemory | None, *, gather: bool
) -> SimilarityRows:
    """Anchors and candidates: the batch, with `gather` that of all ranks, and the memory behind them."""
    labels, candidates, candidate_labels, start = classes, anchors, classes, 0
    if gather:
        start = own_start(row_counts(anchors))
        candidates, candidate_labels = gather_rows(anchors), gather_rows(classes)
        if not record.row_local:
            anchors, labels, start = candidates, candidate_labels, 0
    if memory is not None:
        if anchors.shape[1] != memory.embeddings.shape[1]:
            raise ObjectiveInputError(
                f"`embeddings` have dim {anchors.shape[1]} but the memory of '{record.name}' has `embedding_dim` "
                f"{memory.embeddings.shape[1]}."
            )
        candidates = torch.cat([candidates, memory.embeddings.to(anchors.dtype)])
        candidate_labels = torch.cat([candidate_labels, memory.labels])
    return SimilarityRows(anchors, labels, candidates, candidate_labels, start)


def check_candidates(record: ObjectiveRecord, rows: SimilarityRows, positives: Tensor, *, keeps_one: bool) -> None:
    """Refuse a batch of which even one chunk's table of pairs or triplets is too large."""
    anchors, width = len(rows.anchors), len(rows.candidates)
    what, entries = "pairs", anchors * width
    if record.item == "triplet":
        what, entries = "triplets", anchors if keeps_one else int(positives.sum()) * width
    elif record.row_local:
        pairs = anchors if keeps_one else int(positives.sum())
        entries = pairs if record.item == "pair" else 0
    check_table(record.name, entries, rows.anchors.element_size(), what=what, anchors=anchors)


def check_proxy_rows(record: ObjectiveRecord, rows: ProxyRows) -> None:
    """Refuse a batch of which the whole table of proxies and embeddings is too large."""
    advice = (
        "Give smaller batches, or use a loss whose anchors do not depend on each other, such as soft_triple or "
        "normalized_softmax."
    )
    anchors, what = len(rows.anchors), "pairs of proxy and embedding"
    entries = anchors * rows.width
    check_table(record.name, entries, rows.anchors.element_size(), what=what, anchors=anchors, advice=advice)


def new_proxies(record: ObjectiveRecord, sizes: Mapping[str, Any]) -> nn.Parameter:
    """Random proxies in the record's shape."""
    shape = [size_of(record, name, sizes[name]) for name in record.proxy_shape]
    # About unit length, so that one learning rate fits every dimension.
    return nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]))


def new_memory(record: ObjectiveRecord, memory_size: int, embedding_dim: int | None) -> EmbeddingMemory | None:
    """An empty memory; None for 0 rows."""
    if not memory_size:
        return None
    if not record.row_local:
        raise ObjectiveInputError(
            f"'{record.name}' cannot use `memory_size`: losses that compare each row with others on its own "
            f"can, such as supcon, nt_xent or triplet_margin."
        )
    size = size_of(record, "memory_size", memory_size)
    return EmbeddingMemory(size, size_of(record, "embedding_dim", embedding_dim))


def checked_proxies(owner: OwnsProxies, rows: Tensor, classes: Tensor) -> Tensor:
    """The proxies in the dtype of the rows, where rows and classes fit them."""
    name, proxies = owner.record.name, owner.proxies
    if hasattr(proxies, "device_mesh"):
        raise ObjectiveInputError(
            f"The proxies of '{name}' are sharded over ranks ({type(proxies).__name__}): call the "
            f"loss inside the wrapped forward, where they are whole."
        )
    if rows.shape[1] != proxies.shape[-1]:
        raise ObjectiveInputError(
            f"`embeddings` have dim {rows.shape[1]} but the proxies of '{name}' have "
            f"`embedding_dim` {proxies.shape[-1]}."
        )
    check_label_range(classes, proxies.shape[0], size_name="num_classes", ignore_index=IGNORE_INDEX)
    note_classes(id(owner), name, proxies.shape[0], classes)
    return proxies.to(rows.dtype)


def scores_of_proxies(owner: OwnsProxies, hyperparameters: Mapping[str, Any], rows: Tensor) -> Tensor:
    """Scores [rows, classes] as the record defines them, with those of the hyper-parameters that it asks for."""
    scores = owner.record.class_scores
    assert scores is not None
    proxies = checked_proxies(owner, rows, torch.empty(0, dtype=torch.long, device=rows.device))
    asked = inspect.signature(scores).parameters.values()
    return scores(rows, proxies, **{p.name: hyperparameters[p.name] for p in asked if p.kind is p.KEYWORD_ONLY})


def check_saved_proxies(owner: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Say in one sentence that a checkpoint belongs to a loss of another shape."""
    saved, own = state.get(f"{prefix}proxies"), tuple(owner.proxies.shape)
    if isinstance(saved, Tensor) and tuple(saved.shape) != own:
        raise ObjectiveInputError(
            f"The saved proxies of '{owner.record.name}' have shape {tuple(saved.shape)}, this loss needs "
            f"({', '.join(owner.record.proxy_shape)}) = {own}."
        )


def size_of(record: ObjectiveRecord, name: str, size: object) -> int:
    """A size that proxies or a memory need, checked."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31:
        owns = "owns proxies" if record.proxy_shape else "keeps a memory"
        limit = "an int >= 1" if not isinstance(size, int) or size < 1 else "below 2**31"
        raise ObjectiveInputError(f"'{record.name}' {owns}: `{name}` must be {limit}, got {str(size)[:20]}.")
    return size
