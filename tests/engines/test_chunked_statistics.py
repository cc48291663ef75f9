"""Every statistic of the chunked engine against the dense one: values, and gradients under a random upstream one."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from linear_cases import Case, draw, normal, small_tiles
from lossmith.engines import Demand, DenseSource, LinearSource, StatisticsSource
from lossmith.objectives import VOCABULARY

TOKEN = VOCABULARY["token"]
REGION = ("class_probs", "class_mass", "token_logps")
SHAPES = {"bias": {}, "scale": {"scale": -0.6, "bias": False}, "soft-cap": {"softcap": 2.0, "scale": 1.3}}


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles():
        yield


def _sources(case: Case, demands: list[Demand]) -> list[tuple[StatisticsSource, list[Tensor]]]:
    """The chunked and the dense source of the same numbers, with what each is made of."""
    one, other = case.fresh(), case.fresh()
    return [(LinearSource(one.linear(), demands), one.parts), (DenseSource(other.logits()), other.parts)]


def _compare(found: Tensor, wanted: Tensor, parts: list[Tensor], others: list[Tensor], seed: int = 5) -> None:
    assert_close(found, wanted, rtol=1e-11, atol=1e-13)
    assert found.requires_grad == wanted.requires_grad
    if found.requires_grad:
        upstream = normal(*found.shape, seed=seed)
        one, other = (
            torch.autograd.grad(value, own, upstream, retain_graph=True)
            for value, own in ((found, parts), (wanted, others))
        )
        for slope, expected in zip(one, other, strict=True):
            assert_close(slope, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOKEN)
def test_token_statistic_and_its_gradient(name: str, shape: str) -> None:
    case = draw(**SHAPES[shape])
    demand = Demand(labels=case.labels, names=(name,))
    (chunked, parts), (dense, others) = _sources(case, [demand])
    found, wanted = (source.tokens(case.labels, (name,))[name] for source in (chunked, dense))
    assert len(found) == int((case.labels != -100).sum())
    _compare(found, wanted, parts, others)


def test_all_token_statistics_from_one_pass() -> None:
    case = draw()
    demand = Demand(labels=case.labels, names=TOKEN)
    (chunked, parts), (dense, others) = _sources(case, [demand])
    found, wanted = (source.tokens(case.labels, TOKEN) for source in (chunked, dense))
    mixed, expected = (
        sum(normal(*v.shape, seed=n) @ v for n, v in enumerate(values.values()) if v.requires_grad)
        for values in (found, wanted)
    )
    assert isinstance(mixed, Tensor)
    assert isinstance(expected, Tensor)
    _compare(mixed, expected, parts, others)


def test_ties_share_the_gradient_of_the_maximum() -> None:
    # Whole numbers: equal scores are equal however a product is cut into tiles.
    case = replace(draw(bias=False), hidden=(2 * draw().hidden).round(), weight=(2 * draw().weight).round())
    case.weight[[3, 20, 44]] = 9 * case.weight[10]
    case.weight[10] *= 9
    scores = case.logits()
    assert int((scores.amax(1) == scores[:, 10]).sum()) > 9
    case = replace(case, labels=torch.where(torch.arange(37) % 2 == 0, 10, 7))
    demand = Demand(labels=case.labels, names=("max_logps",))
    (chunked, parts), (dense, others) = _sources(case, [demand])
    found, wanted = (source.tokens(case.labels, ("max_logps",))["max_logps"] for source in (chunked, dense))
    _compare(found, wanted, parts, others)


def test_the_top_20_come_from_several_tiles() -> None:
    for columns in (20, 21, 53):
        case = draw(vocab=columns)
        (chunked, _), (dense, _) = _sources(case, [Demand(labels=case.labels, names=("top_20_entropy",))])
        found, wanted = (source.tokens(case.labels, ("top_20_entropy",)) for source in (chunked, dense))
        assert_close(found["top_20_entropy"], wanted["top_20_entropy"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("region", ["batch", "sequence"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", [*[(name,) for name in REGION], REGION], ids="+".join)
def test_region_statistics_and_their_gradients(names: tuple[str, ...], shape: str, region: str) -> None:
    case = draw(**SHAPES[shape]).sequences
    demand = Demand(labels=case.labels, names=(*names, "class_ids"), region=region)
    (chunked, parts), (dense, others) = _sources(case, [demand])
    found, wanted = chunked.regions(demand), dense.regions(demand)
    assert len(found) == len(wanted) == (1 if region == "batch" else 5)
    if region == "sequence":
        assert found[1] == {} == wanted[1]
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert set(one) == set(other)
        for name in names if one else ():
            assert torch.equal(one["class_ids"], other["class_ids"])
            _compare(one[name], other[name], parts, others, seed=number)


def test_a_mass_and_probabilities_of_sequences_mixed_with_tokens() -> None:
    """One pass serves regions of both kinds, over labels of different scopes, and token statistics."""
    case = draw().sequences
    scoped = case.labels.masked_fill(torch.arange(40).reshape(5, 8) % 3 == 0, -100)
    demands = [
        Demand(labels=case.labels, names=("class_probs", "class_ids"), region="sequence"),
        Demand(labels=scoped, names=("class_mass", "token_logps", "class_ids"), region="batch"),
        Demand(labels=scoped, names=("class_mass", "class_ids"), region="sequence"),
        Demand(labels=case.labels, names=("entropy", "max_logps")),
        Demand(labels=scoped, names=("log_normalizer",)),
    ]
    totals = []
    sources = _sources(case, demands)
    for source, _ in sources:
        values = [value for demand in demands[:3] for region in source.regions(demand) for value in region.values()]
        values += [value for demand in demands[3:] for value in source.tokens(demand.labels, demand.names).values()]
        floating = [value for value in values if value.is_floating_point()]
        totals.append(torch.stack([(normal(*v.shape, seed=n) * v).sum() for n, v in enumerate(floating)]).sum())
    _compare(totals[0], totals[1], sources[0][1], sources[1][1])


def test_every_row_has_its_own_class() -> None:
    """As many present classes as rows, so that every tile has columns of the region and some rows have none."""
    case = replace(draw(), labels=torch.arange(37) + 9)
    for region in REGION:
        demand = Demand(labels=case.labels, names=(region, "class_ids"), region="batch")
        (chunked, parts), (dense, others) = _sources(case, [demand])
        _compare(chunked.regions(demand)[0][region], dense.regions(demand)[0][region], parts, others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_statistics_are_at_least_float32(dtype: torch.dtype) -> None:
    case = draw().to(dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    source = LinearSource(case.linear(), [Demand(labels=case.labels, names=TOKEN)])
    assert {value.dtype for value in source.tokens(case.labels, TOKEN).values()} == {wanted}
    assert case.linear().dtype == wanted


@pytest.mark.parametrize("name", [name for name in TOKEN if name != "top_20_entropy"])
def test_first_and_second_derivatives_by_differences(name: str) -> None:
    with small_tiles(2, columns=5):
        case = draw(6, hidden=3, vocab=5, softcap=3.0, scale=1.3).fresh()

        def statistic(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            linear = replace(case, hidden=hidden, weight=weight, bias=bias).linear()
            source = LinearSource(linear, [Demand(labels=case.labels, names=(name,))])
            return source.tokens(case.labels, (name,))[name]

        assert torch.autograd.gradcheck(statistic, case.parts, atol=1e-7)
        assert torch.autograd.gradgradcheck(statistic, case.parts, atol=1e-6)
