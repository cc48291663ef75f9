"""Derivatives of derivatives: here the logits are built after all, since every one of them is kept by the graph."""

from collections.abc import Sequence
from typing import Any

import torch

from lossmith._typing import Tensor
from lossmith.engines.row_sums import TOP, RowSums, SumStatistics
from lossmith.engines.tiles import ChunkedPass
from lossmith.errors import ObjectiveInputError


def _differentiable_scores(work: ChunkedPass, parts: tuple[Tensor | None, ...]) -> Tensor:
    if work.linear.group is not None:
        raise ObjectiveInputError("Second derivatives are not available where a `group` shares the vocabulary.")
    assert parts[0] is not None
    hidden = parts[0] if work.places is None else parts[0].index_select(0, work.places)
    return work.linear.with_parts(hidden, parts[1], parts[2]).dense()


def own_parts(parts: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """The parts as variables of their own: where hidden states are made of the weight, only what a pass does with each
    of them is differentiated here.
    """
    return tuple(None if part is None else part.view_as(part) for part in parts)


def differentiable_sums(work: ChunkedPass, parts: tuple[Tensor | None, ...]) -> RowSums:
    """The sums as a plain function of the parts, for as many derivatives as wanted."""
    scores = _differentiable_scores(work, parts)
    column = work.classes[:, None]
    others = scores.scatter(1, column, -torch.inf)
    highest = others.amax(1)
    maximum = highest.detach()
    above = others - maximum.masked_fill(maximum == -torch.inf, 0.0)[:, None]
    total = above.exp()
    finite = above.masked_fill(above == -torch.inf, 0.0)
    known: dict[str, Tensor] = {
        "tilted": (total * finite).sum(1),
        "squares": total.square().sum(1),
        "centered": above.scatter(1, column, 0.0).sum(1),
        "plain": scores.scatter(1, column, 0.0).sum(1),
        "highest": highest - maximum,
        "ties": (others == maximum[:, None]).sum(1).to(scores.dtype),
        "top": others.detach().topk(min(TOP, others.shape[1]), dim=1).values,
    }
    names = [*work.reads, *(["ties"] if "highest" in work.reads else [])]
    own = scores.gather(1, column).squeeze(1)
    return RowSums(label_scores=own, maximum=maximum, total=total.sum(1), **{name: known[name] for name in names})


def differentiable_columns(work: ChunkedPass, parts: tuple[Tensor | None, ...], sums: RowSums) -> list[Tensor]:
    """What the column requests ask for, as a plain function of the parts."""
    values = []
    for request in work.requests:
        columns = _differentiable_scores(work, parts).index_select(1, request.columns).index_select(0, request.rows)
        own = sums.rows(request.rows)
        above = columns - own.maximum.masked_fill(own.maximum == -torch.inf, 0.0)[:, None]
        if request.mass:
            normalizer = SumStatistics(own, work.linear.vocab).log_normalizer_above_maximum
            above = (above - normalizer[:, None]).exp().sum(0)
        values.append(above)
    return values


def differentiate(
    outputs: Sequence[Tensor], parts: tuple[Tensor | None, ...], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the parts that want one, in a graph of their own."""
    pairs = [(out, up) for out, up in zip(outputs, upstream, strict=True) if up is not None and out.requires_grad]
    wanted = [part for part in parts if part is not None and part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [up for _, up in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if part is not None and part.requires_grad else None for part in parts]
