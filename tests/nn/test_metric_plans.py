"""Metric losses in chunks of anchors are the whole, in both plans; which plan a call gets, and what it never makes."""

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
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossmith
from library import CLASSES, DIM, build, gradients, scores_for
from lossmith import ObjectiveInputError, list_losses
from lossmith.engines.budget import set_chunk_budget
from lossmith.engines.similarity import COPIES, TABLES, ProxyRows, SimilarityRows
from lossmith.errors import LossmithWarning
from lossmith.nn import MetricLoss
from lossmith.objectives._registry import describe

METRIC = list_losses("metric")
ON_ROWS = [record.name for record in METRIC if record.row_local]
ON_PROXIES = ["arcface", "cosface", "normalized_softmax", "proxy_nca", "soft_triple"]
CHUNKED = ON_ROWS + ON_PROXIES
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -100, 1, 2])
COUNTED = int((LABELS != -100).sum())

Budget = Callable[[MetricLoss, int], None]


@pytest.fixture
def budget() -> Iterator[Budget]:
    """Holds all tables of that many anchors of a batch of `LABELS`, in float64."""

    def fit(module: MetricLoss, anchors: int) -> None:
        set_chunk_budget(anchors * TABLES * _width(module) * 8)

    yield fit
    set_chunk_budget(None)


def _most(module: MetricLoss, anchors: int) -> int:
    return max(anchors, COPIES * DIM // TABLES) if module.record.proxy_shape else anchors


def _width(module: MetricLoss) -> int:
    if module.record.proxy_shape:
        return CLASSES * module.hyperparameters.get("centers_per_class", 1)
    return COUNTED * (3 if module.record.item == "triplet" else 1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many anchors tables were made of, each time."""
    counts: list[int] = []
    for kind in (SimilarityRows, ProxyRows):
        plain = kind.statistics

        def noted(self: Any, names: tuple[str, ...], plain: Callable = plain) -> dict[str, Tensor]:
            counts.append(len(self.anchors))
            return plain(self, names)

        monkeypatch.setattr(kind, "statistics", noted)
    return counts


def _calls(name: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(len(LABELS), generator=generator, dtype=torch.float64)
    weights[10] = torch.nan
    calls: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"num_items": 7}]
    if lossmith.objectives.get_record(name).item == "anchor":
        calls += [
            {"weights": weights},
            {"weights": weights, "num_items": 7},
            {"weights": -weights, "reduction": "sum"},
        ]
    return calls


def test_which_losses_come_in_chunks(budget: Budget) -> None:
    chunked = []
    for record in METRIC:
        module = build(record.name)
        budget(module, 1)
        if module.plan(scores_for(module, len(LABELS)), LABELS).engine == "rows":
            chunked.append(record.name)
    assert sorted(chunked) == sorted(CHUNKED)


def centred_loss(embeddings: Tensor, labels: Tensor, proxies: Tensor, *, scale: float = 1.0) -> Tensor:
    """Each anchor's loss depends on the mean of the batch."""
    rows = embeddings - embeddings.mean(0)
    return scale * (rows - proxies[labels]).square().sum(1)


def test_anchors_that_depend_on_each_other_stay_together(budget: Budget) -> None:
    facts = {"family": "metric", "item": "anchor", "proxy_shape": ("num_classes", "embedding_dim")}
    record = describe(centred_loss, batch_coupled=True, **facts)
    module = MetricLoss(record, {}, num_classes=CLASSES, embedding_dim=DIM).double()
    embeddings = scores_for(module, len(LABELS))
    whole = module(embeddings, LABELS)
    budget(module, 1)
    assert torch.equal(module(embeddings, LABELS), whole)
    assert module.plan(embeddings, LABELS).reason == "'centred' needs the table of all rows at once."


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("anchors", [1, 5])
def test_chunks_of_anchors_are_the_whole(name: str, anchors: int, budget: Budget, made: list[int]) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    mix = torch.linspace(0.2, 1.4, DIM, dtype=torch.float64).requires_grad_()
    for call in _calls(name):
        set_chunk_budget(None)
        made.clear()
        whole = module(embeddings * mix, LABELS, **call)
        wanted = gradients(-1.7 * whole, module, embeddings, mix)
        assert made == [COUNTED]
        budget(module, anchors)
        made.clear()
        value = module(embeddings * mix, LABELS, **call)
        assert_close(value, whole, rtol=1e-13, atol=0)
        for got, slope in zip(gradients(-1.7 * value, module, embeddings, mix), wanted, strict=True):
            assert_close(got, slope, rtol=1e-10, atol=1e-14)
        assert sum(made) == COUNTED, "every anchor's tables are made once, forward and backward together"
        assert max(made) == _most(module, anchors) if anchors == 1 else max(made) <= anchors
        assert len(made) > 2


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("anchors", [1, 5])
def test_losses_of_items_in_chunks(name: str, anchors: int, budget: Budget, made: list[int]) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    whole = module(embeddings, LABELS, reduction="none")
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = gradients((whole * upstream).sum(), module, embeddings)
    budget(module, anchors)
    made.clear()
    losses = module(embeddings, LABELS, reduction="none")
    assert_close(losses, whole, rtol=1e-12, atol=1e-15)
    assert sum(made) == COUNTED
    for got, slope in zip(gradients((losses * upstream).sum(), module, embeddings), wanted, strict=True):
        assert_close(got, slope, rtol=1e-10, atol=1e-14)
    assert sum(made) == 2 * COUNTED, "the tables are made again, not kept"
    with torch.no_grad():
        made.clear()
        again = module(embeddings, LABELS, reduction="none")
        mean = module(embeddings, LABELS)
        assert sum(made) == 2 * COUNTED, "once for each of the two calls"
    assert not again.requires_grad
    set_chunk_budget(None)
    assert_close(again, whole, rtol=1e-12, atol=1e-15)
    assert_close(mean, module(embeddings, LABELS).detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", CHUNKED)
def test_backward_twice_and_second_derivatives(name: str, budget: Budget) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    reads_distances = "distances" in module.record.reads

    def penalty(value: Tensor) -> list[Tensor]:
        slopes = torch.autograd.grad(value, [embeddings, *module.parameters()], create_graph=True)
        return gradients(sum(slope.square().sum() for slope in slopes), module, embeddings)

    wanted = None if reads_distances else penalty(module(embeddings, LABELS))
    budget(module, 5)
    for reduction in ("mean", "none"):
        value = module(embeddings, LABELS, reduction=reduction)
        value = value if reduction == "mean" else value.sum() / (value.numel() - value.numel() % COUNTED)
        if wanted is None:
            with pytest.raises(RuntimeError, match="not implemented"):
                penalty(value)
            continue
        first = torch.autograd.grad(value, embeddings, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(value, embeddings, retain_graph=True)[0], first)
        for got, slope in zip(penalty(value), wanted, strict=True):
            assert_close(got, slope, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("derivatives", [1, 2])
def test_a_backward_pass_inside_autocast_is_not_rounded(name: str, derivatives: int, budget: Budget) -> None:
    module = build(name, dtype=torch.float32)
    if derivatives == 2 and "distances" in module.record.reads:
        pytest.skip("torch has no second derivative of `cdist`")
    embeddings = scores_for(module, len(LABELS), dtype=torch.float32)
    budget(module, 2)
    results = []
    for enabled in (False, True):
        losses = module(embeddings, LABELS, reduction="none").sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(torch.autograd.grad(losses, embeddings, create_graph=derivatives == 2)[0])
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ON_PROXIES)
@pytest.mark.parametrize("frozen", ["embeddings", "proxies"])
def test_one_side_is_frozen(name: str, frozen: str, budget: Budget) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    wanted = dict(
        zip(("embeddings", "proxies"), gradients(module(embeddings, LABELS), module, embeddings), strict=True)
    )
    leaves = {"embeddings": embeddings, "proxies": module.get_parameter("proxies")}
    leaves.pop(frozen).requires_grad_(False)
    budget(module, 5)
    value = module(embeddings, LABELS)
    ((left, leaf),) = leaves.items()
    assert_close(torch.autograd.grad(value, leaf)[0], wanted[left], rtol=1e-10, atol=1e-14)
    assert module.plan(embeddings, LABELS).products == 2


def test_weights_that_learn(budget: Budget) -> None:
    module, embeddings = build("supcon"), scores_for(build("supcon"), len(LABELS))
    weights = torch.linspace(0.5, 2, len(LABELS), dtype=torch.float64).requires_grad_()
    wanted = gradients(module(embeddings, LABELS, weights=weights), module, embeddings, weights)
    budget(module, 5)
    assert module.plan(embeddings, LABELS, weights=weights).name == "recompute"
    value = module(embeddings, LABELS, weights=weights)
    for got, slope in zip(gradients(value, module, embeddings, weights), wanted, strict=True):
        assert_close(got, slope, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["nt_xent", "triplet_margin"])
def test_weights_of_pairs_and_triplets(name: str, budget: Budget) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    weights = torch.linspace(0.5, 2, len(module(embeddings, LABELS, reduction="none")), dtype=torch.float64)
    whole = module(embeddings, LABELS, weights=weights)
    wanted = gradients(whole, module, embeddings)
    budget(module, 5)
    value = module(embeddings, LABELS, weights=weights)
    assert_close(value, whole, rtol=1e-13, atol=0)
    assert_close(gradients(value, module, embeddings), wanted, rtol=1e-10, atol=1e-14)
    with pytest.raises(ObjectiveInputError, match=r"^`weights` must have one entry per item"):
        module(embeddings, LABELS, weights=weights[:-1])


@pytest.mark.parametrize("name", CHUNKED)
def test_arguments_are_refused_as_ever(name: str, budget: Budget) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    budget(module, 5)
    with pytest.raises(ObjectiveInputError, match=r"^`num_items` must be > 0, got -1\.$"):
        module(embeddings, LABELS, num_items=-1)
    with pytest.raises(ObjectiveInputError, match=r"^`reduction` must be one of"):
        module(embeddings, LABELS, reduction="average")
    with pytest.raises(ObjectiveInputError, match=r"^`weights` must have one entry per item"):
        module(embeddings, LABELS, weights=torch.ones(3))
    if module.record.item == "anchor":
        with pytest.raises(ObjectiveInputError, match=r"^Negative `weights` with reduction 'mean' need `num_items`"):
            module(embeddings, LABELS, weights=-torch.ones(len(LABELS)))
    set_chunk_budget(8)
    with pytest.raises(ObjectiveInputError, match=r"^The chunk budget of 8 bytes holds no row of"):
        module(embeddings, LABELS)


@pytest.mark.parametrize("name", CHUNKED)
def test_labels_that_leave_nothing_to_do(name: str, budget: Budget) -> None:
    module = build(name)
    budget(module, 1)
    embeddings = scores_for(module, len(LABELS))
    for labels in (
        torch.full_like(LABELS, -100),
        torch.arange(len(LABELS)) % CLASSES if module.record.proxy_shape else torch.arange(len(LABELS)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LossmithWarning)
            value = module(embeddings, labels)
        slopes = gradients(value, module, embeddings)
        assert bool(torch.isfinite(value))
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
        if not bool((labels >= 0).any()):
            assert value.item() == 0
            assert not any(bool(slope.any()) for slope in slopes)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in made]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_table_of_all_anchors_is_ever_made(name: str, reduction: str) -> None:
    if (name, reduction) == ("triplet_margin", "none"):
        pytest.skip("the list of triplets that is returned is longer than a table")
    anchors, classes = 120, 60
    record = lossmith.objectives.get_record(name)
    sizes = {"num_classes": classes, "embedding_dim": DIM} if record.proxy_shape else {}
    torch.manual_seed(0)
    module = lossmith.loss(name, **sizes)
    embeddings = torch.randn(anchors, DIM, requires_grad=True)
    labels = torch.arange(anchors) // 2
    width = anchors if not sizes else module.get_parameter("proxies")[..., 0].numel()

    def largest() -> int:
        with _Largest() as seen:
            module(embeddings, labels, reduction=reduction).sum().backward()
        return seen.elements

    try:
        assert largest() >= anchors * width
        set_chunk_budget(8 * TABLES * width * 4)
        assert largest() <= max(8 * width, width * DIM, anchors * DIM)
    finally:
        set_chunk_budget(None)


def test_a_plan_says_how_and_why(budget: Budget) -> None:
    module, embeddings = build("supcon"), scores_for(build("supcon"), len(LABELS))
    plan = module.plan(embeddings, LABELS)
    assert (plan.engine, plan.name, plan.products, plan.items, plan.chunks) == ("dense", "dense", 3, COUNTED, 1)
    assert plan.scratch_bytes == TABLES * COUNTED * COUNTED * 8
    budget(module, 5)
    plan = module.plan(embeddings, LABELS)
    assert (plan.engine, plan.name, plan.products, plan.chunks) == ("rows", "gradient in forward", 3, 3)
    assert plan.scratch_bytes == TABLES * 4 * COUNTED * 8
    assert module.plan(embeddings, LABELS, weights={"anchor": torch.ones(len(LABELS))}).name == "gradient in forward"
    assert str(plan) == (
        "rows engine, gradient in forward: 3 matrix products over 12 rows in 3 chunks, 3,840 bytes of scores at a "
        "time. The losses of an anchor need its own row only and are added up with constant weights, so each chunk's "
        "gradient is formed while its tables are there."
    )
    plan = module.plan(embeddings, LABELS, reduction="none")
    assert (plan.name, plan.products) == ("recompute", 4)
    assert plan.reason.startswith("With reduction 'none' the slope of each loss is not known yet, so")
    assert (module.plan(embeddings.detach(), LABELS).name, module.plan(embeddings.detach(), LABELS).products) == (
        "forward only",
        1,
    )
    with torch.no_grad():
        assert module.plan(embeddings, LABELS, reduction="none").name == "forward only"
    pairs = build("nt_xent").plan(embeddings, LABELS, weights=torch.ones(30))
    assert (pairs.name, pairs.reason[:22]) == ("recompute", "Weights belong to pair")
    whole = build("lifted_structure").plan(embeddings, LABELS)
    assert (whole.engine, whole.reason) == ("dense", "'lifted_structure' needs the table of all rows at once.")
    with pytest.raises(ObjectiveInputError, match=r"^`embeddings` must be a floating-point tensor"):
        module.plan(embeddings.long(), LABELS)


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_plan_is_what_happens(name: str, reduction: str, budget: Budget, made: list[int]) -> None:
    module, embeddings = build(name), scores_for(build(name), len(LABELS))
    for anchors in (2, 100):
        budget(module, anchors)
        made.clear()
        plan = module.plan(embeddings, LABELS, reduction=reduction)
        assert made == [], "nothing is computed for a plan"
        module(embeddings, LABELS, reduction=reduction).sum().backward()
        assert len(made) == plan.chunks * (2 if plan.name == "recompute" else 1)
        assert plan.name == (
            "dense" if anchors == 100 else {"mean": "gradient in forward", "none": "recompute"}[reduction]
        )


def test_a_plan_counts_a_memory(budget: Budget) -> None:
    module = build("supcon", memory_size=6, embedding_dim=DIM)
    before = module.memory.embeddings.clone()
    plan = module.plan(scores_for(module, len(LABELS)), LABELS)
    assert plan.scratch_bytes == TABLES * COUNTED * (COUNTED + 6) * 8
    assert torch.equal(module.memory.embeddings, before)


@pytest.mark.parametrize("name", ON_ROWS)
def test_a_memory_in_chunks(name: str, budget: Budget) -> None:
    values = {}
    for anchors in (100, 3):
        module = build(name, memory_size=7, embedding_dim=DIM)
        budget(module, anchors)
        values[anchors] = []
        for seed in (0, 1, 2):
            embeddings = scores_for(module, len(LABELS), seed=seed)
            value = module(embeddings, LABELS)
            values[anchors] += [value.detach(), torch.autograd.grad(value, embeddings)[0], module.memory.embeddings]
    for whole, chunked in zip(values[100], values[3], strict=True):
        assert_close(chunked, whole, rtol=1e-10, atol=1e-14)


def test_a_table_of_proxies_that_cannot_fit_is_refused() -> None:
    module = lossmith.loss("proxy_anchor", num_classes=20_000, embedding_dim=2)
    with pytest.raises(
        ObjectiveInputError,
        match=r"^'proxy_anchor' compares 327,680,000 pairs of proxy and embedding of 16,384 embeddings, 1\.2 GiB at "
        r"once, where 1 GiB is the most\. Give smaller batches, or use a loss whose anchors do not depend on each",
    ):
        module(torch.zeros(16_384, 2), torch.zeros(16_384, dtype=torch.long))


GATHERED = ["supcon", "nt_xent", "triplet_margin", "soft_triple"]
GATHER_CALLS: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"num_items": 13}]
CUT = 4
"""Rank 0 has four rows, which fit one chunk; rank 1 has nine, one of them ignored, in several."""


def _gathered(name: str, mine: slice, *, gather: bool, **call: Any) -> tuple[Tensor, Tensor]:
    module = build(name, gather=gather)
    rows = scores_for(module, len(LABELS)).detach()[mine].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = module(rows, LABELS[mine], **call)
    return value.detach(), torch.autograd.grad(value, rows)[0]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    out = {}
    for name in GATHERED:
        set_chunk_budget(CUT * TABLES * _width(build(name)) * 8)
        for place, call in enumerate(GATHER_CALLS):
            out[name, place] = _gathered(name, mine, gather=True, **call)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_in_chunks_are_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            mp.spawn(_rank, args=(folder,), nprocs=2)
        finally:
            os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
    for name in GATHERED:
        for place, call in enumerate(GATHER_CALLS):
            value, slope = _gathered(name, slice(None), gather=False, **call)
            both = [rank[name, place] for rank in ranks]
            assert_close((both[0][0] + both[1][0]) / 2, value, rtol=1e-12, atol=1e-14)
            assert_close(torch.cat([both[0][1], both[1][1]]) / 2, slope, rtol=1e-10, atol=1e-13)
