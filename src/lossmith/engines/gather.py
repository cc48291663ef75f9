"""Rows of all ranks, in rank order and with their gradient; the rows themselves where there is one rank."""

from typing import Any

import torch
import torch.distributed as dist

from lossmith._typing import Tensor


def world_size() -> int:
    """Ranks of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, rank 0's first; ranks may hold different numbers of rows.

    The gradient of a rank's rows is the sum of what all ranks ask of them. So where every rank computes its share of a
    loss, the mean over ranks of the parameters' gradients (what DDP does) is the gradient of the mean over ranks of
    those losses.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows, row_counts(rows)) if rows.is_floating_point() else _gather(rows, row_counts(rows))


def row_counts(rows: Tensor) -> list[int]:
    """Number of rows of each rank."""
    if world_size() == 1:
        return [len(rows)]
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def own_start(counts: list[int]) -> int:
    """Place of this rank's first row among the gathered ones."""
    return sum(counts[: dist.get_rank()]) if world_size() > 1 else 0


def _gather(rows: Tensor, counts: list[int]) -> Tensor:
    # all_gather needs equal shapes: short ranks are padded and cut again.
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """all_gather whose gradient is summed over ranks and returned to the rank that owns the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        total = upstream[0].contiguous().clone()
        dist.all_reduce(total)
        start = own_start(ctx.counts)
        return total[start : start + ctx.counts[dist.get_rank()]], None
