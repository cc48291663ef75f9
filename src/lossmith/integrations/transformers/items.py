"""What a loss divides by: the items of all micro-batches of an optimiser step, on all ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lossmith.errors import ConfigurationError
from lossmith.integrations.batches import AlignedBatch
from lossmith.nn import IGNORE_INDEX, LossModule, WeightedSum


@dataclass(frozen=True, kw_only=True)
class ItemKind:
    """One kind of item that a loss counts, as `num_items` names it."""

    name: str
    """Such as "token", "token[answer]", "region"."""
    item: str
    scope: str | None
    region: str | None
    """What is one region, "batch" or "sequence"; None for other items."""
    gather: bool
    """Whether the items of all ranks make one batch."""


def item_kinds(loss: LossModule) -> list[ItemKind]:
    """What the loss counts, each kind once.

    Raises:
        ConfigurationError: Where terms count one kind of item in two ways, so that no divisor serves both.
    """
    if isinstance(loss, WeightedSum):
        terms = [
            (name, spec.scope, term)
            for name, spec, term in zip(loss.counts, loss.composition.terms, loss.terms, strict=True)
        ]
    else:
        terms = [(loss.items[0], None, loss)]
    kinds: dict[str, ItemKind] = {}
    for name, scope, term in terms:
        settings: Mapping[str, Any] = getattr(term, "settings", {})
        found = ItemKind(
            name=name,
            item=name.partition("[")[0],
            scope=scope,
            region=settings.get("region"),
            gather=bool(settings.get("gather", False)),
        )
        if kinds.setdefault(name, found) != found:
            raise ConfigurationError(
                f"'{loss}' counts its {name}s in two ways (`region` or `gather` differ between terms): give these "
                f"terms the same."
            )
    return list(kinds.values())


def count_items(kinds: Sequence[ItemKind], batch: AlignedBatch, average: str) -> list[float]:
    """How many items of each kind one micro-batch has."""
    counts: list[float] = []
    for kind in kinds:
        valid = batch.restricted(kind.scope) != IGNORE_INDEX
        if kind.region == "sequence" or (kind.item == "token" and average == "sequence"):
            counts.append(float(batch.num_sequences(kind.scope)))
        elif kind.item in ("token", "anchor"):
            counts.append(float(valid.sum()))
        else:
            counts.append(float(valid.any()))
    return counts


def divisors(
    kinds: Sequence[ItemKind], counts: Sequence[Sequence[float]], *, ranks: int, add_up: Any, device: torch.device
) -> dict[str, float]:
    """`num_items` of one optimiser step, for a loss whose gradients are averaged over ranks.

    Args:
        kinds: What the loss counts.
        counts: For each micro-batch what `count_items` says of it on this rank.
        ranks: Ranks with batches of their own.
        add_up: Adds a tensor up over all processes.
        device: Where tensors are added up.

    Returns:
        By name. Gradients are averaged over ranks, so items of a rank's own count one `ranks`-th; items that every
        rank gathers count once.
    """
    table = torch.tensor(counts, dtype=torch.float64).view(-1, len(kinds))
    if ranks > 1:
        # Not every device has float64; counts are exact in float32 up to 16 million.
        table = add_up(table.float().to(device)).double().cpu()
    found: dict[str, float] = {}
    for column, kind in zip(table.T, kinds, strict=True):
        if kind.gather:
            total = float((column > 0).sum()) if kind.item in ("region", "batch") else float(column.sum())
        else:
            total = float(column.sum()) / ranks
        found[kind.name] = total if total > 0 else 1.0
    return found
