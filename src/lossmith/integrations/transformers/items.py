"""What a loss divides by: the items of all micro-batches of an optimiser step, on all ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    known: bool = field(default=True, compare=False)
    """Whether labels alone tell how many items there are. How many pairs, triplets, or anchors with a positive or
    left by a miner there are only the loss can tell: its mean over a micro-batch then counts as one item."""


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
            known=_is_known(term),
        )
        if name in kinds:
            found = replace(found, known=found.known and kinds[name].known)
        if kinds.setdefault(name, found) != found:
            raise ConfigurationError(
                f"'{loss}' counts its {name}s in two ways (`region` or `gather` differ between terms): give these "
                f"terms the same."
            )
        kinds[name] = found
    return list(kinds.values())


def _is_known(loss: Any) -> bool:
    record = getattr(loss, "record", None)
    if record is None or record.family != "metric":
        return True
    some = record.needs_positives or loss.miner is not None
    return record.item not in ("pair", "triplet") and not (record.item == "anchor" and some)


def count_items(kinds: Sequence[ItemKind], batch: AlignedBatch, average: str) -> list[float]:
    """How many items of each kind one micro-batch has."""
    counts: list[float] = []
    for kind in kinds:
        valid = batch.restricted(kind.scope) != IGNORE_INDEX
        if kind.item == "anchor" and batch.embedding_labels is not None:
            valid = batch.embedding_labels != IGNORE_INDEX
        if kind.region == "sequence" or (kind.item == "token" and average == "sequence"):
            counts.append(float(batch.num_sequences(kind.scope)))
        elif kind.item in ("token", "anchor") and kind.known:
            counts.append(float(valid.sum()))
        else:
            counts.append(float(valid.any()))
    return counts


def divisors(
    kinds: Sequence[ItemKind],
    counts: Sequence[Sequence[float]],
    *,
    ranks: int,
    add_up: Any,
    device: torch.device,
    shared: bool = True,
) -> dict[str, float]:
    """`num_items` of one optimiser step, for a loss whose gradients are averaged over ranks.

    Args:
        kinds: What the loss counts.
        counts: For each micro-batch what `count_items` says of it on this rank.
        ranks: Ranks with batches of their own.
        add_up: Adds a tensor up over all processes.
        device: Where tensors are added up.
        shared: Whether all ranks' items are one batch; else each rank divides by its own, but for gathered ones.

    Returns:
        By name. Gradients are averaged over ranks, so items of a rank's own count one `ranks`-th; items that every
        rank gathers count once.
    """
    own = torch.tensor(counts, dtype=torch.float64).view(-1, len(kinds))
    # Not every device has float64; counts are exact in float32 up to 16 million.
    table = add_up(own.float().to(device)).double().cpu() if ranks > 1 else own
    found: dict[str, float] = {}
    for place, kind in enumerate(kinds):
        column = table[:, place]
        if kind.gather:
            whole = kind.item in ("region", "batch") or not kind.known
            total = float((column > 0).sum()) if whole else float(column.sum())
        else:
            total = float(column.sum()) / ranks if shared else float(own[:, place].sum())
        found[kind.name] = total if total > 0 else 1.0
    return found
