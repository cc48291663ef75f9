"""Two gloo ranks that share the vocabulary unevenly are one rank with all of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

import lossmith
from linear_cases import LOSSES, REGION, VOCAB, Case, draw, normal, small_tiles, upstream_for
from lossmith.engines import Demand, LinearSource
from lossmith.objectives import VOCABULARY

SIZES = (20, 33)
CASES = {
    "bias": draw,
    "labels of one rank": lambda: replace(draw(scale=0.5), labels=draw().labels.clamp(max=19)),
    "labels of the other": lambda: replace(
        draw(softcap=2.0, scale=1.3, bias=False), labels=draw().labels.clamp(min=21)
    ),
}


def _calls(text: str) -> list[dict[str, str]]:
    return [{"reduction": "mean"}] if text in REGION else [{"reduction": "mean"}, {"reduction": "none"}]


STATISTICS = dict.fromkeys(VOCABULARY["token"]) | {
    name: region for region in ("batch", "sequence") for name in ("class_probs", "class_mass")
}
REFUSED = {
    "dense": lambda case, group: case.linear("dense", group=group),
    "triton": lambda case, group: case.linear("triton", group=group),
    "built": lambda case, group: case.linear(group=group).dense(),
    "gathered": lambda case, group: lossmith.loss("dice", gather=True)(case.linear(group=group), case.labels),
    "second": lambda case, group: torch.autograd.grad(
        lossmith.loss("focal")(case.linear(group=group), case.labels), case.parts, create_graph=True
    ),
}


def _case(name: str) -> Case:
    case = CASES[name]()
    # Ignored rows stay so.
    return replace(case, labels=case.labels.masked_fill(draw().labels == -100, -100))


def _cut(case: Case, rank: int) -> Case:
    own = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], VOCAB)
    return replace(case, weight=case.weight[own], bias=None if case.bias is None else case.bias[own])


def _losses(text: str, name: str, rank: int | None, call: dict[str, str]) -> list[Tensor]:
    """Value, gradients under a random upstream one, and again under another."""
    case = _case(name)
    case = case.sequences if "sequence" in text else case
    own = (case if rank is None else _cut(case, rank)).fresh()
    linear = own.linear() if rank is None else own.linear(group=dist.group.WORLD)
    assert linear.shape == (*case.labels.shape, VOCAB)
    value = lossmith.loss(text)(linear, case.labels, **call)
    upstream = upstream_for(value)
    slopes = torch.autograd.grad(value, own.parts, upstream, retain_graph=True)
    again = torch.autograd.grad(value, own.parts, 2 * upstream)
    for one, other in zip(slopes, again, strict=True):
        assert_close(other, 2 * one, rtol=1e-12, atol=1e-15)
    return [value.detach(), *slopes]


def _statistics(statistic: str, region: str | None, rank: int | None) -> list[Tensor]:
    case = draw(scale=0.9).sequences
    own = (case if rank is None else _cut(case, rank)).fresh()
    linear = own.linear() if rank is None else own.linear(group=dist.group.WORLD)
    names = (statistic,) if region is None else (statistic, "class_ids")
    demand = Demand(labels=case.labels, names=names, region=region)
    source = LinearSource(linear, [demand])
    found = [source.tokens(case.labels, names)] if region is None else source.regions(demand)
    values = [part[statistic] for part in found if part]
    if not values[0].requires_grad:
        return values
    total = torch.stack([(normal(*v.shape, seed=n) * v).sum() for n, v in enumerate(values)]).sum()
    return [*(value.detach() for value in values), *torch.autograd.grad(total, own.parts)]


def _refusal(kind: str, rank: int) -> str:
    try:
        REFUSED[kind](_cut(_case("bias"), rank).fresh(), dist.group.WORLD)
    except lossmith.ObjectiveInputError as error:
        return str(error)
    return "nothing"


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    out: dict[Any, Any] = {}
    with small_tiles():
        for text in LOSSES:
            for name in CASES:
                for place, call in enumerate(_calls(text)):
                    out[text, name, place] = _losses(text, name, rank, call)
        for statistic, region in STATISTICS.items():
            out[statistic] = _statistics(statistic, region, rank)
        for kind in REFUSED:
            out["refused", kind] = _refusal(kind, rank)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        with _one_thread():
            mp.spawn(_rank, args=(folder,), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]


def _agree(both: list[list[Tensor]], wanted: list[Tensor], *, values: int) -> None:
    """Values and the gradient of hidden states are whole on each rank, those of weight and bias in slices."""
    for place, whole in enumerate(wanted):
        for one in both:
            if place <= values:
                assert_close(one[place], whole, rtol=1e-10, atol=1e-12)
        if place > values:
            assert [len(one[place]) for one in both] == list(SIZES)
            assert_close(torch.cat([one[place] for one in both]), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", LOSSES)
def test_two_ranks_are_one(text: str, ranks: list[dict]) -> None:
    with small_tiles(37):
        for name in CASES:
            for place, call in enumerate(_calls(text)):
                wanted = _losses(text, name, None, call)
                _agree([rank[text, name, place] for rank in ranks], wanted, values=1)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_statistic(statistic: str, ranks: list[dict]) -> None:
    with small_tiles(37):
        wanted = _statistics(statistic, STATISTICS[statistic], None)
    values = len(wanted) - 3 if len(wanted) > 3 else len(wanted)
    _agree([rank[statistic] for rank in ranks], wanted, values=values)


def test_labels_lie_where_the_cases_say() -> None:
    for name, low, high in (("labels of one rank", 0, 19), ("labels of the other", 21, 52)):
        labels = _case(name).labels
        counted = labels[labels != -100]
        assert int(counted.min()) >= low
        assert int(counted.max()) <= high


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dense", "A `group` needs impl='chunked' (or 'auto'), got impl='dense'."),
        ("triton", "A `group` needs impl='chunked' (or 'auto'), got impl='triton'."),
        ("built", "Logits whose vocabulary is shared by a `group` cannot be built on one rank."),
        ("second", "Second derivatives are not available where a `group` shares the vocabulary."),
        ("gathered", "`gather=True` would count the rows of ranks that share the vocabulary (`group`) once per rank"),
    ],
)
def test_what_ranks_that_share_a_vocabulary_cannot_do(kind: str, message: str, ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["refused", kind].startswith(message)
