"""What is seen beside a loss: the terms add up to it, and watched statistics are those of the rows that count."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
import scalar_oracles
from linear_cases import VOCAB, Case, Probe, draw, small_tiles
from lossmith.engines import DenseSource, LinearSource
from lossmith.errors import ObjectiveInputError
from lossmith.nn.linear import Watch

SEQUENCE = "generalized_dice(region='sequence')"
SUMS = [
    "0.6*cross_entropy + 0.4*focal",
    "0.6*cross_entropy + 0.4*lovasz_softmax[answer]",
    f"0.3*dft[answer] - 0.2*confidence_penalty + {SEQUENCE}[answer]",
    "focal[answer]",
]
ALONE = ["dft", "lovasz_softmax", SEQUENCE]
NAMES = ("token_logps", "entropy")


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles(5):
        yield


@pytest.fixture
def case() -> Case:
    return draw().sequences


def scopes(case: Case, text: str) -> dict[str, Any]:
    answer = torch.arange(case.labels.numel()).view(case.labels.shape) % 3 != 1
    return {"scopes": {"answer": answer}} if "[answer]" in text else {}


def ways(case: Case) -> dict[str, Any]:
    return {"logits": case.logits(), "chunked": case.linear("chunked"), "dense": case.linear("dense")}


# Breakdown


@pytest.mark.parametrize("text", SUMS + ALONE)
def test_terms_add_up(case: Case, text: str) -> None:
    module, own = lossmith.loss(text), case.fresh()
    kinds = list(dict.fromkeys(getattr(module, "counts", module.items)))
    items = {kind: 0.5 + 0.2 * place for place, kind in enumerate(kinds)}
    for how, call in (("mean", {}), ("mean", {"num_items": items}), ("sum", {})):
        for logits in ways(own).values():
            given = {"reduction": how, **call, **scopes(case, text)}
            value, parts = module(logits, own.labels, **given), module.breakdown(logits, own.labels, **given)
            assert_close(torch.stack(list(parts.values())).sum(), value)
            found = torch.autograd.grad(torch.stack(list(parts.values())).sum(), own.parts, retain_graph=True)
            assert_close(found, torch.autograd.grad(value, own.parts, retain_graph=True))


def test_each_term_under_its_name_with_its_weight(case: Case) -> None:
    text = "0.6*cross_entropy + 0.4*lovasz_softmax[answer]"
    scope = scopes(case, text)
    parts = lossmith.loss(text).breakdown(case.linear(), case.labels, **scope)
    assert list(parts) == ["cross_entropy", "lovasz_softmax[answer]"]
    counted = case.labels != -100
    rows = list(zip(case.logits()[counted].tolist(), case.labels[counted].tolist(), strict=True))
    plain = sum(scalar_oracles.cross_entropy(row, label) for row, label in rows) / len(rows)
    answer = counted & scope["scopes"]["answer"]
    region = scalar_oracles.lovasz_softmax(case.logits()[answer].tolist(), case.labels[answer].tolist())
    assert parts["cross_entropy"].item() == pytest.approx(0.6 * plain)
    assert parts["lovasz_softmax[answer]"].item() == pytest.approx(0.4 * region)


def test_equal_terms_are_one(case: Case) -> None:
    parts = lossmith.loss("0.5*focal + 0.25*focal").breakdown(case.linear(), case.labels)
    assert list(parts) == ["focal"]
    assert_close(parts["focal"], 0.75 * lossmith.loss("focal")(case.linear(), case.labels))


def test_a_value_per_item_of_each_term(case: Case) -> None:
    """Also of a sum that mixes kinds of item, which a call cannot return."""
    module = lossmith.loss(f"0.6*cross_entropy + 0.4*{SEQUENCE} + lovasz_softmax")
    parts = module.breakdown(case.linear(), case.labels, reduction="none")
    assert [tuple(value.shape) for value in parts.values()] == [tuple(case.labels.shape), (len(case.labels),), (1,)]
    alone = lossmith.loss(SEQUENCE)(case.logits(), case.labels, reduction="none")
    assert_close(parts[SEQUENCE], 0.4 * alone)
    with pytest.raises(ObjectiveInputError, match="reduction 'none' needs one kind of item"):
        module(case.linear(), case.labels, reduction="none")


def test_terms_that_count_now(case: Case) -> None:
    module = lossmith.loss("cross_entropy -> focal @ 0.4:0.6")
    expected = {0.0: ["cross_entropy"], 0.5: ["cross_entropy", "focal"], 1.0: ["focal"]}
    for progress, names in expected.items():
        module.set_progress(progress)
        parts = module.breakdown(case.linear(), case.labels)
        assert list(parts) == names
        assert_close(sum(parts.values()), module(case.linear(), case.labels))


def test_one_pass_serves_all_terms(case: Case) -> None:
    flat = draw(ignored=False)
    products = []
    for text in ("focal", f"focal + dft + {SEQUENCE.partition('(')[0]}"):
        with Probe() as probe, torch.no_grad():
            lossmith.loss(text).breakdown(flat.linear(), flat.labels)
        products.append(probe.products(flat))
    assert products == [1, pytest.approx(1, abs=0.01)]


def test_arguments_that_a_call_would_refuse(case: Case) -> None:
    module = lossmith.loss("focal + dft[answer]")
    with pytest.raises(ObjectiveInputError, match="answer"):
        module.breakdown(case.linear(), case.labels)
    with pytest.raises(ObjectiveInputError, match=r"`num_items` lacks \['token\[answer\]'\]"):
        module.breakdown(case.linear(), case.labels, num_items={"token": 3}, **scopes(case, "[answer]"))


# Demands: one source for several losses


@pytest.mark.parametrize("text", SUMS + ALONE)
def test_a_source_in_the_place_of_logits(case: Case, text: str) -> None:
    module, scope = lossmith.loss(text), scopes(case, text)
    demands = module.demands(case.labels, scope.get("scopes"))
    expected = module(case.logits(), case.labels, **scope)
    assert_close(module(LinearSource(case.linear(), demands), case.labels, **scope), expected)
    assert_close(module(DenseSource(case.logits()), case.labels, **scope), expected)


@pytest.mark.parametrize("text", ["dice + lovasz_softmax[answer]", "lovasz_softmax[answer] + dice[other]"])
def test_scopes_that_hold_the_same_labels(case: Case, text: str) -> None:
    """Regions with equal labels and other statistics: each term is served from its own."""
    masks = {
        name: torch.ones_like(case.labels, dtype=torch.bool) for name in ("answer", "other") if f"[{name}]" in text
    }
    module = lossmith.loss(text)
    source = LinearSource(case.linear(), module.demands(case.labels, masks))
    assert_close(module(source, case.labels, scopes=masks), module(case.logits(), case.labels, scopes=masks))


def test_losses_without_logits_demand_nothing() -> None:
    assert lossmith.loss("dpo").demands(torch.tensor([1])) == []
    joint = lossmith.loss("cross_entropy + soft_triple", num_classes=3, embedding_dim=4)
    assert len(joint.demands(torch.tensor([1, 2]))) == 1


# Watch


def oracle(case: Case, valid: Tensor) -> dict[str, Tensor]:
    rows, labels = case.logits()[valid].tolist(), case.labels[valid].tolist()
    logps = [-scalar_oracles.cross_entropy(row, label) for row, label in zip(rows, labels, strict=True)]
    entropies = [scalar_oracles.entropy(row) for row in rows]
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in zip(NAMES, (logps, entropies), strict=True)}


def watched(text: str, own: Case, impl: str, names: tuple[str, ...] = NAMES, **call: Any) -> tuple[Tensor, Watch]:
    linear = own.linear(impl)
    linear.watch = Watch(names)
    return lossmith.loss(text)(linear, own.labels, **call), linear.watch


@pytest.mark.parametrize("impl", ["chunked", "dense"])
@pytest.mark.parametrize("text", SUMS + ALONE)
def test_watched_statistics(case: Case, text: str, impl: str) -> None:
    scope = scopes(case, text)
    value, watch = watched(text, case.fresh(), impl, **scope)
    valid = case.labels != -100
    if text == "focal[answer]":
        valid &= scope["scopes"]["answer"]
    seen = watch.take()
    assert tuple(seen) == NAMES
    assert_close(seen, oracle(case, valid))
    assert not any(entry.requires_grad for entry in seen.values())
    assert_close(value, lossmith.loss(text)(case.linear(impl), case.labels, **scope))


@pytest.mark.parametrize("impl", ["chunked", "dense"])
@pytest.mark.parametrize("text", ["focal[answer]", "lovasz_softmax[answer]"])
def test_watched_labels_outside_every_scope(case: Case, text: str, impl: str) -> None:
    """Seen, and without part in the loss and its gradient; so too where the scope is empty."""
    for answer in (scopes(case, text)["scopes"]["answer"], torch.zeros_like(case.labels, dtype=torch.bool)):
        own, call = case.fresh(), {"scopes": {"answer": answer}}
        plain = lossmith.loss(text)(own.linear(impl), own.labels, **call)
        linear = own.linear(impl)
        linear.watch = Watch(NAMES, own.labels)
        value = lossmith.loss(text)(linear, own.labels, **call)
        assert_close(linear.watch.take(), oracle(case, case.labels != -100))
        assert_close(value, plain)
        expected = torch.autograd.grad(plain, own.parts)
        assert_close(torch.autograd.grad(value, own.parts), expected)


@pytest.mark.parametrize("text", [*SUMS, *ALONE])
def test_watching_changes_no_gradient(case: Case, text: str) -> None:
    scope, own = scopes(case, text), case.fresh()
    plain = lossmith.loss(text)(own.linear(), own.labels, **scope)
    expected = torch.autograd.grad(plain, own.parts)
    value, _ = watched(text, own, "chunked", **scope)
    assert_close(torch.autograd.grad(value, own.parts), expected)


def test_it_costs_no_pass_of_its_own() -> None:
    for text, names in (("focal", ("token_logps",)), ("focal", NAMES), ("lovasz_softmax", NAMES)):
        own = draw(ignored=False).fresh()
        counts = []
        for asked in ((), names):
            with Probe() as probe:
                linear = own.linear()
                linear.watch = Watch(asked) if asked else None
                lossmith.loss(text)(linear, own.labels).backward()
            counts.append(probe.products(own))
        assert counts[1] == pytest.approx(counts[0], abs=0.05), (text, names)


def test_it_builds_no_logits() -> None:
    own = draw(ignored=False).fresh()
    with Probe() as probe:
        value, watch = watched("focal", own, "chunked")
        value.backward()
        watch.take()
    assert probe.largest < own.labels.numel() * VOCAB


def test_nothing_counts(case: Case) -> None:
    ignored = Case(hidden=case.hidden, weight=case.weight, labels=torch.full_like(case.labels, -100))
    for text in ("focal", "lovasz_softmax"):
        value, watch = watched(text, ignored.fresh(), "chunked")
        seen = watch.take()
        assert value.item() == 0
        assert all(len(entry) == 0 for entry in seen.values())


def test_a_second_backward_pass_adds_nothing(case: Case) -> None:
    own = case.fresh()
    value, watch = watched("focal", own, "chunked")
    seen = watch.take()
    value.backward(retain_graph=True)
    value.backward()
    assert watch.take() == {}
    assert_close(seen, oracle(case, case.labels != -100))
