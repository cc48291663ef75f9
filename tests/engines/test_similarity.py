"""Rows of tables: which rows a chunk holds, its masks, and what its gradients add up to."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossmith import ObjectiveInputError
from lossmith.engines import row_plans, similarity
from lossmith.engines.budget import set_chunk_budget
from lossmith.engines.row_plans import apply_by_rows, row_chunks, sum_by_rows
from lossmith.engines.similarity import TABLES, ProxyRows, SimilarityRows

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 1, 3, 2, 1, 1, 2])
CANDIDATE_LABELS = torch.tensor([1, 2, *LABELS.tolist(), -100, 3])
"""The anchors stand from place 2 on; one place of a memory is empty."""


@pytest.fixture
def budget() -> Iterator[Callable[[int], None]]:
    yield set_chunk_budget
    set_chunk_budget(None)


def _vectors(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _similarity_rows(**changes: object) -> SimilarityRows:
    candidates = _vectors(len(CANDIDATE_LABELS), 5, seed=1)
    anchors = _vectors(len(LABELS), 5, seed=0)
    given = {"anchors": anchors, "labels": LABELS, "candidates": candidates, "candidate_labels": CANDIDATE_LABELS}
    return SimilarityRows(**{**given, "own_start": 2, **changes})


def _proxy_rows() -> ProxyRows:
    return ProxyRows(_vectors(len(LABELS), 5, seed=0), LABELS, _vectors(4, 3, 5, seed=2))


def test_masks_leave_out_the_own_row_and_empty_places() -> None:
    masks = _similarity_rows().statistics(("same", "different"))
    for i, label in enumerate(LABELS.tolist()):
        for j, other in enumerate(CANDIDATE_LABELS.tolist()):
            assert bool(masks["same"][i, j]) == (label == other and j != i + 2)
            assert bool(masks["different"][i, j]) == (label != other and other != -100)


@pytest.mark.parametrize("chunk", [slice(0, 1), slice(0, 7), slice(3, 5), slice(6, 7)])
def test_a_part_is_rows_of_the_whole(chunk: slice) -> None:
    names = ("similarities", "distances", "same", "different")
    whole, part = _similarity_rows().statistics(names), _similarity_rows().part(chunk).statistics(names)
    assert tuple(part) == names
    for name in names:
        assert_close(part[name], whole[name][chunk], rtol=1e-15, atol=1e-15)
    proxies = _proxy_rows().part(chunk).statistics(("embeddings", "labels", "proxies"))
    assert torch.equal(proxies["embeddings"], _proxy_rows().anchors[chunk])
    assert torch.equal(proxies["labels"], LABELS[chunk])
    assert torch.equal(proxies["proxies"], _proxy_rows().proxies)


def test_how_many_entries_a_row_has() -> None:
    assert _similarity_rows().width == len(CANDIDATE_LABELS)
    assert _proxy_rows().width == 4 * 3


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 100])
def test_chunks_cover_every_anchor_once_within_the_budget(rows: int, budget: Callable[[int], None]) -> None:
    budget(rows * TABLES * 11 * 8)
    chunks = row_chunks(37, 11, torch.float64, CPU)
    assert [place for chunk in chunks for place in range(chunk.start, chunk.stop)] == list(range(37))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert max(sizes) <= rows
    assert len(chunks) == -(-37 // rows)
    assert len(row_chunks(37, 11, torch.float32, CPU)) == -(-37 // (2 * rows))
    assert len(row_chunks(37, 11, torch.float64, CPU, least=6)) == -(-37 // max(rows, 6))


def test_an_anchor_with_many_tables_comes_in_a_chunk_of_its_own(budget: Callable[[int], None]) -> None:
    budget(6 * TABLES * 11 * 8)
    tables = torch.tensor([1, 2, 3, 9, 0, 0, 4, 1, 1])
    edges = [(chunk.start, chunk.stop) for chunk in row_chunks(9, 11, torch.float64, CPU, tables)]
    assert edges == [(0, 3), (3, 4), (4, 7), (7, 9)]


def test_no_anchors_and_a_budget_without_a_row(budget: Callable[[int], None]) -> None:
    assert row_chunks(0, 11, torch.float64, CPU) == []
    assert row_chunks(0, 11, torch.float64, CPU, torch.zeros(0, dtype=torch.long)) == []
    budget(11 * 8)
    assert len(row_chunks(3, 11, torch.float64, CPU)) == 3, "less than all tables of a row, but one"
    budget(11 * 8 - 1)
    with pytest.raises(
        ObjectiveInputError, match=r"^The chunk budget of 87 bytes holds no row of 11 scores in float64"
    ):
        row_chunks(3, 11, torch.float64, CPU)


def _softmax_losses(statistics: dict[str, Tensor]) -> Tensor:
    """Two losses per anchor, of everything that similarity rows offer; smooth."""
    scores = statistics["similarities"].masked_fill(~(statistics["same"] | statistics["different"]), -1e30)
    spread = (statistics["distances"] * statistics["different"]).square().sum(1)
    return torch.stack([scores.logsumexp(1), spread], dim=1).flatten()


def _similarity_losses(statistics: dict[str, Tensor]) -> Tensor:
    scores = statistics["similarities"].masked_fill(~statistics["different"], -1e30)
    return scores.logsumexp(1)


def _centre_losses(statistics: dict[str, Tensor]) -> Tensor:
    scores = torch.einsum("ad,ckd->ack", statistics["embeddings"], statistics["proxies"]).logsumexp(2)
    return scores.logsumexp(1) - scores.gather(1, statistics["labels"][:, None]).squeeze(1)


BY_VECTORS = (_softmax_losses, ("similarities", "distances", "same", "different"), _similarity_rows, 2)
BY_PRODUCTS = (_similarity_losses, ("similarities", "different"), _similarity_rows, 1)
BY_CENTRES = (_centre_losses, ("embeddings", "labels", "proxies"), _proxy_rows, 1)
EVERY = pytest.mark.parametrize("case", [BY_VECTORS, BY_PRODUCTS, BY_CENTRES], ids=["distances", "products", "proxies"])
CHUNKS = [slice(0, 3), slice(3, 6), slice(6, 7)]
Case = tuple


@EVERY
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_chunks_are_those_of_the_whole(case: Case, wanted: tuple[bool, bool], weighted: bool) -> None:
    function, names, make, items = case
    rows = make()
    vectors = [v.requires_grad_(w) for v, w in zip((rows.anchors, rows.others), wanted, strict=True)]
    rows, leaves = rows.with_vectors(*vectors), [v for v in vectors if v.requires_grad]
    weights = _vectors(items * len(LABELS), seed=9)
    losses = function(rows.statistics(names))
    slopes = torch.autograd.grad((losses * weights).sum(), leaves)
    one, count = sum_by_rows(function, rows, names, CHUNKS, weights if weighted else None)
    two = apply_by_rows(function, rows, names, CHUNKS)
    assert count == items * len(LABELS)
    assert_close(one, (losses * weights).sum() if weighted else losses.sum(), rtol=1e-13, atol=0)
    assert_close(two, losses, rtol=1e-13, atol=1e-13)
    for got, slope in zip(torch.autograd.grad((two * weights).sum(), leaves), slopes, strict=True):
        assert_close(got, slope, rtol=1e-11, atol=1e-13)
    if weighted:
        upstream = -1.7
        for got, slope in zip(
            torch.autograd.grad(one, leaves, torch.tensor(upstream, dtype=torch.float64)), slopes, strict=True
        ):
            assert_close(got, upstream * slope, rtol=1e-11, atol=1e-13)


@EVERY
@pytest.mark.parametrize("plan", ["sum", "recompute"])
def test_gradcheck(case: Case, plan: str) -> None:
    function, names, make, items = case
    rows, weights = make(), _vectors(items * len(LABELS), seed=9)

    def value(anchors: Tensor, others: Tensor) -> Tensor:
        given = rows.with_vectors(anchors, others)
        if plan == "sum":
            return sum_by_rows(function, given, names, CHUNKS, weights)[0].sin()
        return apply_by_rows(function, given, names, CHUNKS)

    leaves = rows.anchors.requires_grad_(), rows.others.requires_grad_()
    assert torch.autograd.gradcheck(value, leaves)
    if "distances" not in names:
        assert torch.autograd.gradgradcheck(value, leaves)
    else:
        # torch has no second derivative of `cdist`, chunked or not.
        slope = torch.autograd.grad(value(*leaves).sum(), leaves[0], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="not implemented"):
            slope.sum().backward()


@EVERY
def test_a_second_backward_is_the_first(case: Case) -> None:
    function, names, make, _ = case
    rows = make()
    leaves = rows.anchors.requires_grad_(), rows.others.requires_grad_()
    value, _ = sum_by_rows(function, rows, names, CHUNKS, None)
    # The first takes the gradients away, scaled in place; the later ones make them again.
    first, second, third = (
        torch.autograd.grad(value, leaves, torch.tensor(scale, dtype=torch.float64), retain_graph=True)
        for scale in (3.0, 3.0, 1.0)
    )
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one, two)
        assert_close(3 * three, one, rtol=1e-14, atol=0)


def test_anchors_that_are_their_own_candidates_get_both_gradients() -> None:
    shared = _vectors(len(LABELS), 5, seed=0).requires_grad_()
    rows = SimilarityRows(shared, LABELS, shared, LABELS)
    value, _ = sum_by_rows(_similarity_losses, rows, ("similarities", "different"), CHUNKS, None)
    whole = _similarity_losses(rows.statistics(("similarities", "different"))).sum()
    assert_close(torch.autograd.grad(value, shared), torch.autograd.grad(whole, shared), rtol=1e-12, atol=1e-14)


def test_losses_without_a_gradient_have_gradient_zero() -> None:
    rows = _proxy_rows()
    rows.anchors.requires_grad_()
    value, count = sum_by_rows(lambda s: s["labels"].double(), rows, ("embeddings", "labels"), CHUNKS, None)
    assert (value.item(), count) == (float(LABELS.sum()), len(LABELS))
    assert not bool(torch.autograd.grad(value, rows.anchors)[0].any())


def test_second_derivatives_of_what_cannot_be_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _proxy_rows()
    rows.anchors.requires_grad_()
    monkeypatch.setattr(row_plans, "TABLE_BYTES", 7 * 12 * 8 - 1)
    value, _ = sum_by_rows(_centre_losses, rows, ("embeddings", "labels", "proxies"), CHUNKS, None)
    with pytest.raises(ObjectiveInputError, match=r"^Second derivatives keep every table of 7 x 12 entries, 0\.0 GiB"):
        torch.autograd.grad(value, rows.anchors, create_graph=True)


def test_long_sums_over_many_candidates_are_split_exactly() -> None:
    """More candidates than one block of the product that adds up their gradients."""
    count = similarity._BLOCK * 2 + 37
    candidates = _vectors(count, 3, seed=4).requires_grad_()
    labels = torch.arange(count) % 5
    rows = SimilarityRows(candidates.detach()[:5], labels[:5], candidates, labels)
    names, chunks = ("similarities", "different"), [slice(0, 2), slice(2, 5)]
    value, _ = sum_by_rows(_similarity_losses, rows, names, chunks, None)
    whole = _similarity_losses(rows.statistics(names)).sum()
    assert_close(torch.autograd.grad(value, candidates), torch.autograd.grad(whole, candidates), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("case", [BY_PRODUCTS, BY_CENTRES], ids=["products", "proxies"])
def test_float32_is_as_near_to_float64_as_plain_autograd(case: Case) -> None:
    function, names, make, _ = case
    exact, rounded = make(), make()
    rounded = rounded.with_vectors(rounded.anchors.float(), rounded.others.float())
    found = {}
    for kind, rows in (("exact", exact), ("plain", rounded), ("sum", rounded), ("recompute", rounded)):
        leaves = rows.anchors.detach().requires_grad_(), rows.others.detach().requires_grad_()
        given = rows.with_vectors(*leaves)
        if kind == "sum":
            value = sum_by_rows(function, given, names, CHUNKS, None)[0]
        else:
            chunks = CHUNKS if kind == "recompute" else [slice(0, len(LABELS))]
            value = apply_by_rows(function, given, names, chunks).sum()
        found[kind] = [value.detach(), *torch.autograd.grad(value, leaves)]
    for exact_part, *others in zip(*(found[kind] for kind in ("exact", "plain", "sum", "recompute")), strict=True):
        plain, one, two = ((other.double() - exact_part).abs().max().item() for other in others)
        rounding = torch.finfo(torch.float32).eps * exact_part.abs().max().item()
        assert max(one, two) <= plain + rounding


def test_parts_of_different_length_are_consecutive() -> None:
    chunks = row_chunks(37, 11, torch.float64, CPU, torch.arange(37))
    assert all(a.stop == b.start for a, b in itertools.pairwise(chunks))
