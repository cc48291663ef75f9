"""Linear logits of small uneven sizes, tiles that do not divide them, and a probe of what a call really computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossmith
from lossmith.engines import tiles
from lossmith.nn import LossModule

TOKENS, HIDDEN, VOCAB = 37, 19, 53
ROWS = 7
"""Rows of a chunk whose gradient is formed in the forward pass."""

NAMES = [str(record) for record in lossmith.list_losses() if record.family in ("token", "region")]
TOKEN = [str(record) for record in lossmith.list_losses() if record.family == "token"]
REGION = [str(record) for record in lossmith.list_losses() if record.family == "region"]
VARIANTS = [
    "cross_entropy(label_smoothing=0.2)",
    "entropy_adaptive(truncated=True)",
    "focal(gamma=0.5)",
    "lovasz_softmax(region='sequence')",
    "dice(region='sequence')",
]
LOSSES = NAMES + VARIANTS


@contextmanager
def small_tiles(rows: int = ROWS, *, columns: int = VOCAB, itemsize: int = 8) -> Iterator[None]:
    """Several chunks of rows and several tiles of classes in both plans, none of which divides the sizes above.

    On one thread: a second one has nothing to do at these sizes, and on a busy machine the first would wait for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = mock.patch.dict(tiles._TILE_BYTES, cpu=rows * 16 * 8), mock.patch.dict(tiles._TILE_ROWS, cpu=12)
    lossmith.set_chunk_budget(rows * columns * itemsize)
    try:
        with small[0], small[1]:
            yield
    finally:
        lossmith.set_chunk_budget(None)
        torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What linear logits are made of, and labels."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def parts(self) -> list[Tensor]:
        return [part for part in (self.hidden, self.weight, self.bias) if part is not None]

    @property
    def sequences(self) -> "Case":
        """The same rows as sequences, the first and last of which are shorter or empty."""
        short = torch.cat([self.hidden, self.hidden[:3]]).reshape(5, 8, -1)
        labels = torch.cat([self.labels, torch.full((3,), -100)]).reshape(5, 8)
        labels[1] = -100
        return replace(self, hidden=short, labels=labels)

    def to(self, dtype: torch.dtype) -> "Case":
        return self._map(lambda part: part.to(dtype))

    def fresh(self) -> "Case":
        """Leaves of their own, which collect gradients."""
        return self._map(lambda part: part.detach().clone().requires_grad_())

    def _map(self, change: Any) -> "Case":
        bias = None if self.bias is None else change(self.bias)
        return replace(self, hidden=change(self.hidden), weight=change(self.weight), bias=bias)

    def linear(self, impl: str = "chunked", **settings: Any) -> lossmith.LinearLogits:
        return lossmith.LinearLogits(
            self.hidden, self.weight, self.bias, self.scale, self.softcap, impl=impl, **settings
        )

    def logits(self) -> Tensor:
        """Written out here once more: shares no code with the library."""
        scores = self.hidden @ self.weight.T
        if self.bias is not None:
            scores = scores + self.bias
        scores = scores * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(
    tokens: int = TOKENS,
    *,
    hidden: int = HIDDEN,
    vocab: int = VOCAB,
    bias: bool = True,
    ignored: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Case:
    """A float64 case; labels repeat, miss many classes, reach both ends, and some are ignored."""
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[0], labels[-1] = vocab - 1, 0
    labels[1 : tokens // 2 : 2] = vocab // 3
    if ignored:
        labels[torch.arange(3, tokens, 7)] = -100
    return Case(
        hidden=normal(tokens, hidden, seed=seed),
        weight=0.6 * normal(vocab, hidden, seed=seed + 1),
        bias=normal(vocab, seed=seed + 2) if bias else None,
        labels=labels,
        **settings,
    )


def upstream_for(value: Tensor) -> Tensor:
    """A random upstream gradient, exact in float32: a uniform one hides scaling mistakes."""
    return normal(*value.shape, seed=77).float().to(value.dtype)


def of(module: LossModule, case: Case, impl: str | None, **call: Any) -> Tensor:
    """The loss of linear logits by an engine, or of logits that exist where `impl` is None."""
    return module(case.logits() if impl is None else case.linear(impl), case.labels, **call)


def run(text: str, case: Case, impl: str | None = "chunked", **call: Any) -> tuple[Tensor, list[Tensor]]:
    """Value of a loss and gradients of hidden, weight and bias under a random upstream gradient."""
    case = case.sequences if "sequence" in text and case.hidden.ndim == 2 else case
    own = case.fresh()
    value = of(lossmith.loss(text), own, impl, **call)
    return value.detach(), list(torch.autograd.grad(value, own.parts, upstream_for(value)))


class Probe(TorchDispatchMode):
    """Counts the multiplications of matrix products and the entries of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.largest = 0
        self.made: list[int] = []
        """Entries of every tensor with a storage of its own, in order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in ("aten::mm", "aten::addmm"):
            left, right = given[-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        elif name in ("aten::bmm", "aten::baddbmm"):
            left, right = given[-2:]
            self.multiplications += left.numel() * right.shape[2]
        elif name == "mkldnn::_linear_pointwise":
            self.multiplications += given[0].numel() * given[1].shape[0]
        known = {leaf.untyped_storage().data_ptr() for leaf in given}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                entries = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.made.append(entries)
                self.largest = max(self.largest, entries)
        return out

    def products(self, case: Case) -> float:
        """Products of all rows that count with the whole weight."""
        rows = int((case.labels != -100).sum())
        return self.multiplications / (rows * case.weight.numel())
