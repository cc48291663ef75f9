"""Sums and counts of an evaluation batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lossmith.engines import Demand, DenseSource, LinearLogits, LinearSource
from lossmith.integrations.batches import AlignedBatch
from lossmith.integrations.transformers.items import ItemKind, count_items
from lossmith.nn import IGNORE_INDEX, LossModule, WeightedSum

FIGURES = ("token_logps", "entropy")


def batch_sums(
    loss: LossModule,
    kinds: Sequence[ItemKind],
    logits: Any,
    batch: AlignedBatch,
    average: str,
    inputs: dict[str, Tensor] | None = None,
    *,
    ranks: int,
    add_up: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sum and count [2] over all ranks of each term of the loss and of the figures logged beside it.

    Args:
        loss: The loss.
        kinds: What it counts.
        logits: Built, or `LinearLogits`.
        batch: Labels aligned with them.
        average: "token" or "sequence".
        inputs: All inputs of the loss where it reads more than logits and labels.
        ranks: Number of ranks, each with a batch of its own.
        add_up: Adds a tensor up over all ranks.
    """
    asked: dict[str, Any] = {"scopes": batch.scopes} if batch.scopes else {}
    if average == "sequence":
        asked["weights"] = {"token": batch.sequence_weights()}
    if isinstance(logits, LinearLogits):
        demands = [*loss.demands(batch.labels, batch.scopes), Demand(labels=batch.labels, names=FIGURES)]
        source = LinearSource(logits, demands) if logits.engine != "dense" else DenseSource(logits.dense())
    else:
        source = DenseSource(logits)
    given = {**(inputs or {"labels": batch.labels}), **({"logits": source} if "logits" in loss.inputs else {})}
    given, asked = with_token_labels(loss, batch, given, asked)
    values = loss.breakdown(**given, reduction="none", **asked)
    by_term = kinds_of_terms(loss, kinds)
    if not all(kind.known for kind in kinds):
        means = loss.breakdown(**given, **asked)
        values = {name: value if by_term[name].known else means[name] for name, value in values.items()}
    sums = {name: _term(value, by_term[name], batch, average, ranks, add_up) for name, value in values.items()}
    statistics = source.tokens(batch.labels, FIGURES)
    seen = {"nll": -statistics["token_logps"], "entropy": statistics["entropy"]}
    figures = {name: add_up(torch.stack([v.sum(), v.new_tensor(len(v))])) for name, v in seen.items()}
    return sums, figures


def with_token_labels(
    loss: LossModule, batch: AlignedBatch, inputs: dict[str, Any], asked: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and keywords of a call, with a label per token where every token of a text is an embedding."""
    if batch.embedding_labels is None:
        return inputs, asked
    flat = batch.embedding_labels.flatten()
    if isinstance(loss, WeightedSum):
        return inputs, {**asked, "embedding_labels": flat}
    return {**inputs, "labels": flat}, asked


def without_filling(batch: AlignedBatch, state: Any, rank: int) -> AlignedBatch:
    """The batch, with no labels in rows that repeat earlier ones to fill up the last batch of a set.

    Args:
        batch: This rank's rows.
        state: accelerate's GradientState; at the end of a set, `remainder` is how many rows of all ranks are new ones.
        rank: This rank.
    """
    if not state.end_of_dataloader or state.remainder <= 0:
        return batch
    rows = len(batch.labels)
    labels = batch.labels.clone()
    first = max(state.remainder - rank * rows, 0)
    labels[first:] = IGNORE_INDEX
    if batch.embedding_labels is None:
        return replace(batch, labels=labels)
    of_tokens = batch.embedding_labels.clone()
    of_tokens[first:] = IGNORE_INDEX
    return replace(batch, labels=labels, embedding_labels=of_tokens)


def kinds_of_terms(loss: LossModule, kinds: Sequence[ItemKind]) -> dict[str, ItemKind]:
    """What each term of a loss counts, by the name of the term."""
    by_name = {kind.name: kind for kind in kinds}
    if not isinstance(loss, WeightedSum):
        return {str(loss): kinds[0]}
    specs = zip(loss.composition.terms, loss.terms, loss.counts, strict=True)
    return {str(term) if spec.scope is None else f"{term}[{spec.scope}]": by_name[count] for spec, term, count in specs}


def _term(
    values: Tensor, kind: ItemKind, batch: AlignedBatch, average: str, ranks: int, add_up: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum and count of one term over all ranks."""
    count = values.new_tensor(count_items([kind], batch, average)[0])
    total, items = add_up(torch.stack([values.sum(), count]))
    if kind.gather and (kind.item in ("region", "batch") or not kind.known):
        # The mean over ranks is the value of all ranks, whether a rank holds labels or not.
        items = (items > 0).to(items.dtype) * ranks
    return torch.stack([total, items])
