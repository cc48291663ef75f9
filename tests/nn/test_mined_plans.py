"""Losses with a miner in every plan: chunks of anchors, derivatives, a memory, two ranks."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import lossmith
from library import DIM, gradients
from lossmith import ObjectiveInputError
from lossmith.engines import similarity
from lossmith.engines.budget import set_chunk_budget
from lossmith.engines.similarity import TABLES, SimilarityRows
from lossmith.nn import MetricLoss
from mined_cases import COUNTED, IN_CHUNKS, LABELS, MINED, WANG, clustered, spread

pytestmark = pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")


@pytest.fixture
def budget() -> Iterator[Callable[[int], None]]:
    """Holds all tables of that many anchors of a batch of `LABELS`, or of their pairs, in float64."""
    yield lambda anchors: set_chunk_budget(anchors * TABLES * COUNTED * 8)
    set_chunk_budget(None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many anchors tables were made of, each time."""
    counts: list[int] = []
    plain = SimilarityRows.statistics

    def noted(self: SimilarityRows, names: tuple[str, ...]) -> dict[str, Tensor]:
        counts.append(len(self.anchors))
        return plain(self, names)

    monkeypatch.setattr(SimilarityRows, "statistics", noted)
    return counts


def _calls(text: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"num_items": 7}, {"reduction": "none"}]
    if lossmith.loss(text).items == ("anchor",):
        weights = torch.rand(len(LABELS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        calls += [{"weights": weights}, {"weights": weights, "reduction": "none"}]
    return calls


@pytest.mark.parametrize("text", IN_CHUNKS)
@pytest.mark.parametrize("anchors", [1, 5])
def test_chunks_are_the_whole(text: str, anchors: int, budget: Callable[[int], None], made: list[int]) -> None:
    module = lossmith.loss(text)
    # A map in front, so that the upstream gradient of the loss is not all that is seen.
    mix = (torch.eye(DIM, dtype=torch.float64) + 0.1).requires_grad_()
    rows = clustered() if anchors == 5 else spread()
    for call in _calls(text):
        set_chunk_budget(None)
        whole = module(rows @ mix, LABELS, **call)
        upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        wanted = gradients((whole * upstream).sum(), module, rows, mix)
        budget(anchors)
        made.clear()
        value = module(rows @ mix, LABELS, **call)
        assert_close(value, whole, rtol=1e-12, atol=1e-15)
        for got, slope in zip(gradients((value * upstream).sum(), module, rows, mix), wanted, strict=True):
            assert_close(got, slope, rtol=1e-10, atol=1e-13)
        plan = module.plan(rows, LABELS, **call)
        assert (plan.engine, plan.chunks > 2) == ("rows", True)
        assert plan.name == ("recompute" if call.get("reduction") == "none" else "gradient in forward")
        assert len(made) == plan.chunks * (plan.products - 2)
        assert max(made) <= anchors


@pytest.mark.parametrize("text", [text for text in MINED if "circle" not in text])
def test_gradients_are_those_of_what_is_left_held_fast(text: str) -> None:
    """Selection is constant: finite differences agree, in every plan. (`circle` holds its weights constant as well.)"""
    module = lossmith.loss(text)
    rows = spread()
    try:
        for anchors in (None, 3):
            set_chunk_budget(None if anchors is None else anchors * TABLES * COUNTED * 8)
            for reduction in ("mean", "none"):
                check = lambda x, how=reduction: module(x, LABELS, reduction=how)  # noqa: E731
                assert torch.autograd.gradcheck(check, rows, eps=1e-7, atol=1e-5, fast_mode=True)
    finally:
        set_chunk_budget(None)


@pytest.mark.parametrize("text", ["supcon(miner='hard')", f"multi_similarity({WANG})", f"circle({WANG})"])
def test_second_derivatives(text: str, budget: Callable[[int], None]) -> None:
    module = lossmith.loss(text)
    rows = spread()

    def penalty(value: Tensor) -> Tensor:
        return torch.autograd.grad(torch.autograd.grad(value, rows, create_graph=True)[0].square().sum(), rows)[0]

    wanted = penalty(module(rows, LABELS))
    budget(3)
    assert_close(penalty(module(rows, LABELS)), wanted, rtol=1e-9, atol=1e-12)


def test_a_plan_counts_the_tables_that_a_miner_reads(budget: Callable[[int], None]) -> None:
    rows = spread()
    products = {text: lossmith.loss(text).plan(rows, LABELS).products for text in IN_CHUNKS}
    assert products == {text: 3 + (WANG in text and "nt_xent" not in text and "trip" not in text) for text in IN_CHUNKS}
    reason = lossmith.loss(f"supcon({WANG})").plan(rows, LABELS).reason
    assert reason.endswith("The miner reads all tables once before, for which anchors count.")
    budget(4)
    plans = [lossmith.loss(f"triplet_margin({miner})").plan(rows, LABELS) for miner in ("miner='hard'", WANG)]
    assert plans[0].chunks < plans[1].chunks, "one table row per anchor, not one per positive"


@pytest.mark.parametrize(("name", "what"), [("triplet_margin", "triplets"), ("nt_xent", "pairs")])
def test_batch_hard_of_many_rows_is_not_refused(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All triplets, or pairs, of a large class would not fit; one of each anchor does."""
    monkeypatch.setattr(similarity, "TABLE_BYTES", 2**16)
    rows, labels = torch.zeros(400, 2), torch.zeros(400, dtype=torch.long)
    labels[:2] = 1
    with pytest.raises(ObjectiveInputError, match=rf"^'{name}' compares [\d,]+ {what} of 400 embeddings"):
        lossmith.loss(name)(rows, labels)
    assert len(lossmith.loss(name, miner="hard")(rows, labels, reduction="none")) == 400


# A memory, ranks, state.


@pytest.mark.parametrize("text", IN_CHUNKS)
@pytest.mark.parametrize("anchors", [100, 2])
def test_a_memory_is_mined_too(text: str, anchors: int, budget: Callable[[int], None]) -> None:
    module = lossmith.loss(text, memory_size=9, embedding_dim=DIM).double()
    assert isinstance(module, MetricLoss)
    first, labels = spread(5, seed=3), torch.tensor([0, 1, 0, -100, 1])
    budget(anchors)
    assert_close(module(first, labels), lossmith.loss(text)(first, labels), rtol=1e-12, atol=1e-15)
    # By hand: the second batch's anchors against a batch that holds the first one as constants.
    second, also = spread(4, seed=4), torch.tensor([1, 0, 1, 0])
    value = module(second, also)
    kept = labels != -100
    rows = SimilarityRows(
        normalize(second),
        also,
        normalize(torch.cat([second, first.detach()[kept]])),
        torch.cat([also, labels[kept]]),
    )
    read = module.miner.mine(rows.statistics(module.needed))
    items = module.apply_function(read, rows=len(read["same"]))
    wanted = items[read["same"].any(-1)].mean() if module.items == ("anchor",) else items.mean()
    assert_close(value, wanted, rtol=1e-12, atol=1e-15)
    assert_close(torch.autograd.grad(value, second), torch.autograd.grad(wanted, second), rtol=1e-10, atol=1e-14)
    both = rows.statistics(module.needed)
    alone = SimilarityRows(normalize(second), also, normalize(second), also)
    few = module.miner.mine(alone.statistics(module.needed))
    assert int(both["different"].sum()) > int(few["different"].sum()), "the memory adds rows to choose from"


CUT = 5


def _gathered(text: str, mine: slice, *, gather: bool, **call: Any) -> tuple[Tensor, Tensor]:
    module = lossmith.loss(text, gather=gather)
    rows = clustered().detach()[mine].requires_grad_()
    value = module(rows, LABELS[mine], **call)
    return value.detach(), torch.autograd.grad(value, rows)[0]


def _rank(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    out = {}
    for text in MINED:
        for anchors in (100, 2):
            set_chunk_budget(anchors * TABLES * COUNTED * 8)
            out[text, anchors] = _gathered(text, mine, gather=True)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            mp.spawn(_rank, args=(folder,), nprocs=2)
        finally:
            os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
    for text in MINED:
        value, slope = _gathered(text, slice(None), gather=False)
        for anchors in (100, 2):
            both = [rank[text, anchors] for rank in ranks]
            assert_close((both[0][0] + both[1][0]) / 2, value, rtol=1e-11, atol=1e-14)
            assert_close(torch.cat([both[0][1], both[1][1]]) / 2, slope, rtol=1e-9, atol=1e-13)
