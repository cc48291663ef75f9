"""Sums and counts of each row of an evaluation batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lossmith.engines import Demand, DenseSource, LinearLogits, LinearSource
from lossmith.integrations.batches import AlignedBatch
from lossmith.integrations.transformers.items import ItemKind, count_items
from lossmith.nn import IGNORE_INDEX, LossModule, WeightedSum

FIGURES = ("token_logps", "entropy")


def row_sums(
    loss: LossModule,
    kinds: Sequence[ItemKind],
    logits: Any,
    batch: AlignedBatch,
    rows: Tensor | None,
    labels: Tensor,
    average: str,
    inputs: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sum and count [rows, 2] of each term of the loss and of the figures logged beside it.

    Args:
        loss: The loss.
        kinds: What it counts.
        logits: Built, or `LinearLogits`.
        batch: Labels aligned with them.
        rows: Where packed sequences came from, see `AlignedBatch.rows_by_sequence`; None where nothing was moved.
        labels: Labels of the batch as the trainer knows it; its rows are counted.
        average: "token" or "sequence".
        inputs: All inputs of the loss where it reads more than logits and labels.
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
    values = loss.breakdown(**given, reduction="none", **asked)
    origin = _row_of_place(batch.labels, rows, labels)
    by_term = _kind_of_term(loss, kinds)
    terms = {
        name: _term_rows(value, by_term[name], batch, origin, len(labels), average) for name, value in values.items()
    }
    statistics = source.tokens(batch.labels, FIGURES)
    valid = batch.labels != IGNORE_INDEX
    figures = {
        "nll": _figure_rows(-statistics["token_logps"], valid, origin, len(labels)),
        "entropy": _figure_rows(statistics["entropy"], valid, origin, len(labels)),
    }
    return terms, figures


def _row_of_place(labels: Tensor, rows: Tensor | None, original: Tensor) -> Tensor:
    """The row of the original batch that each row of `labels` came from."""
    if rows is None:
        return torch.arange(len(labels), device=labels.device)
    return rows[:, 0] // original.shape[1]


def _kind_of_term(loss: LossModule, kinds: Sequence[ItemKind]) -> dict[str, ItemKind]:
    by_name = {kind.name: kind for kind in kinds}
    if not isinstance(loss, WeightedSum):
        return {str(loss): kinds[0]}
    specs = zip(loss.composition.terms, loss.terms, loss.counts, strict=True)
    return {str(term) if spec.scope is None else f"{term}[{spec.scope}]": by_name[count] for spec, term, count in specs}


def _term_rows(
    values: Tensor, kind: ItemKind, batch: AlignedBatch, origin: Tensor, num_rows: int, average: str
) -> Tensor:
    """Sum and count of one term in each row of the original batch."""
    table = values.new_zeros(num_rows, 2)
    if len(values) != len(batch.labels) or values.ndim == 0:
        # One value for the whole batch: every row carries its share.
        count = count_items([kind], batch, average)[0]
        table[:, 0], table[:, 1] = values.sum() / num_rows, count / num_rows
        return table
    table[:, 0].index_add_(0, origin, values.flatten(1).sum(1) if values.ndim > 1 else values)
    counts = _row_counts(kind, batch, average).to(table.dtype)
    table[:, 1].index_add_(0, origin, counts)
    return table


def _row_counts(kind: ItemKind, batch: AlignedBatch, average: str) -> Tensor:
    """Items in each row of labels."""
    valid = (batch.restricted(kind.scope) != IGNORE_INDEX).view(len(batch.labels), -1)
    if kind.region == "sequence":
        return valid.any(1)
    if kind.item == "token" and average == "sequence":
        numbers = batch.sequence_numbers().reshape(len(batch.labels), -1)
        return torch.stack([torch.tensor(len(torch.unique(n[v]))) for n, v in zip(numbers, valid, strict=True)]).to(
            valid.device
        )
    return valid.sum(1)


def _figure_rows(values: Tensor, valid: Tensor, origin: Tensor, num_rows: int) -> Tensor:
    spread = values.new_zeros(valid.shape).masked_scatter(valid, values).view(len(valid), -1)
    table = values.new_zeros(num_rows, 2)
    table[:, 0].index_add_(0, origin, spread.sum(1))
    table[:, 1].index_add_(0, origin, valid.view(len(valid), -1).sum(1).to(table.dtype))
    return table
