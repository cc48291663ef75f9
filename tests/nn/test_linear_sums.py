"""Sums, schedules, scopes, weights and divisors on linear logits: one pass for all terms, the numbers of logits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from linear_cases import REGION, TOKEN, TOKENS, Case, Probe, draw, normal, small_tiles, upstream_for
from lossmith.nn import LossModule

# Asked for on purpose here: a number of items that is not that of the batch.
pytestmark = pytest.mark.filterwarnings("ignore:.*several micro-batches are not one batch")

SCOPES = {"answer": torch.arange(TOKENS) % 3 == 0, "thought": torch.arange(TOKENS) % 3 == 1}
ROWS = 0.2 + torch.rand(TOKENS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

SUMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("0.6*cross_entropy - 0.2*focal", {}),
    "sum": ("0.6*cross_entropy - 0.2*focal", {"reduction": "sum"}),
    "none": ("0.6*cross_entropy - 0.2*focal", {"reduction": "none"}),
    "weights": ("0.6*cross_entropy - 0.2*focal", {"weights": ROWS}),
    "weights summed": ("0.6*cross_entropy - 0.2*focal", {"weights": ROWS - 0.5, "reduction": "sum"}),
    "weights each": ("0.6*cross_entropy - 0.2*focal", {"weights": ROWS, "reduction": "none"}),
    "divisor": ("0.6*cross_entropy - 0.2*focal", {"num_items": 50}),
    "divisor as a tensor": ("0.6*cross_entropy - 0.2*focal", {"num_items": torch.tensor(50)}),
    "divisor by kind": ("0.6*cross_entropy - 0.2*focal", {"num_items": {"token": 50}, "weights": {"token": ROWS}}),
    "entropies": ("confidence_penalty + 0.3*entropy_adaptive - deft + unlikelihood + 5*z_loss", {}),
    "coupled rows": ("0.5*mile + 0.5*cross_entropy", {}),
    "scope": ("cross_entropy + 0.1*z_loss[answer] - 0.2*focal", {"scopes": ["answer"]}),
    "scope weighted": ("cross_entropy + 3*z_loss[answer] - 0.2*focal", {"scopes": ["answer"], "weights": ROWS}),
    "scope divided": (
        "cross_entropy + 3*z_loss[answer] - 0.2*focal",
        {"scopes": ["answer"], "num_items": {"token": 44, "token[answer]": torch.tensor(20)}},
    ),
    "scope summed": ("cross_entropy + 3*z_loss[answer]", {"scopes": ["answer"], "reduction": "sum"}),
    "scopes": ("focal[answer] + 2*cross_entropy[thought]", {"scopes": ["answer", "thought"]}),
    "only a scope": ("focal[answer]", {"scopes": ["answer"]}),
    "region": ("0.6*cross_entropy + 0.4*lovasz_softmax[answer]", {"scopes": ["answer"]}),
    "region weighted": ("cross_entropy + 0.4*dice[answer]", {"scopes": ["answer"], "weights": ROWS}),
    "region divided": (
        "cross_entropy + 0.4*dice[answer]",
        {"scopes": ["answer"], "num_items": {"token": 40, "region[answer]": 3}},
    ),
    "regions": ("dice + 0.4*lovasz_softmax - 0.3*focal_tversky[answer]", {"scopes": ["answer"]}),
    "regions each": ("0.3*dice + 0.7*lovasz_softmax", {"reduction": "none"}),
    "all": (" + ".join(TOKEN + REGION), {}),
}


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles():
        yield


def _call(text: str, call: dict[str, Any]) -> dict[str, Any]:
    named = {"scopes": {name: SCOPES[name] for name in call["scopes"]}} if "scopes" in call else {}
    return {**call, **named}


def _step(module: LossModule, case: Case, impl: str | None, **call: Any) -> list[Tensor]:
    """Value and gradients of a fresh copy of the case."""
    own = case.fresh()
    logits = own.logits() if impl is None else own.linear(impl)
    value = module(logits=logits, labels=case.labels, **call)
    return [value.detach(), *torch.autograd.grad(value, own.parts, upstream_for(value))]


def _agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("settings", [{}, {"softcap": 2.0, "scale": 0.8, "bias": False}], ids=["bias", "soft-cap"])
def test_a_sum_equals_that_on_logits(kind: str, settings: dict[str, Any]) -> None:
    text, call = SUMS[kind]
    module, call = lossmith.loss(text), _call(text, call)
    case = draw(**settings)
    wanted = _step(module, case, None, **call)
    for impl in ("chunked", "dense"):
        _agree(_step(module, case, impl, **call), wanted)


@pytest.mark.parametrize("kind", SUMS)
def test_all_terms_share_one_pass(kind: str) -> None:
    text, call = SUMS[kind]
    module, call = lossmith.loss(text), _call(text, call)
    own = draw().fresh()
    linear = own.linear()
    plan = module.plan(logits=linear, labels=own.labels, **call)
    with Probe() as probe:
        value = module(logits=linear, labels=own.labels, **call)
        value.backward(upstream_for(value))
    made = probe.multiplications / (plan.items * own.weight.numel())
    # A mass makes the scores of its own classes once more: a narrow product per term.
    narrow = sum(name in text for name in ("dice", "tversky", "jaccard")) if plan.name == "recompute" else 0
    assert plan.products <= made < plan.products + 1e-9 + min(narrow, 3)
    assert plan.products == (4 if plan.name == "recompute" else 3)


def test_rows_of_any_scope_are_multiplied_and_no_others() -> None:
    case = draw().fresh()
    for text, names in (("focal[answer]", ["answer"]), ("focal[answer] + cross_entropy[thought]", [*SCOPES])):
        scopes = {name: SCOPES[name] for name in names}
        counted = (case.labels != -100) & torch.stack([*scopes.values()]).any(0)
        plan = lossmith.loss(text).plan(case.linear(), case.labels, scopes=scopes)
        assert plan.items == int(counted.sum())
        with Probe() as probe:
            lossmith.loss(text)(case.linear(), case.labels, scopes=scopes).backward()
        assert probe.multiplications == 3 * plan.items * case.weight.numel()


@pytest.mark.parametrize("text", ["cross_entropy -> focal @ 0.3", "cross_entropy -> lovasz_softmax @ 0.3:0.6"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.45, 0.6, 1.0])
def test_schedules(text: str, progress: float) -> None:
    module = lossmith.loss(text)
    module.set_progress(progress)
    case = draw()
    _agree(_step(module, case, "chunked"), _step(module, case, None))
    for reduction in ("sum",):
        _agree(_step(module, case, "chunked", reduction=reduction), _step(module, case, None, reduction=reduction))
    own = case.fresh()
    plan = module.plan(own.linear(), own.labels)
    idle = progress == 0 or "focal" in text
    assert plan.name == ("gradient in forward" if idle else "recompute") or progress == 0.3


@pytest.mark.parametrize(
    "text", ["0.4*cross_entropy + 0.6*soft_triple", "0.4*dice + 0.6*supcon", "focal - triplet_margin"]
)
def test_joined_with_a_metric_loss(text: str) -> None:
    """One label per row for both: a classification head on linear logits beside embeddings."""
    torch.manual_seed(5)
    sizes = {"num_classes": 5, "embedding_dim": 6} if "soft_triple" in text else {}
    module = lossmith.loss(text, **sizes).double()
    case = replace(draw(ignored=False), labels=torch.arange(TOKENS) % 5)
    embeddings = normal(TOKENS, 6, seed=31)
    found = []
    for impl in ("chunked", None):
        own, rows = case.fresh(), embeddings.clone().requires_grad_()
        logits = own.logits() if impl is None else own.linear(impl)
        value = module(logits=logits, labels=case.labels, embeddings=rows)
        leaves = [*own.parts, rows, *module.parameters()]
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    _agree(*found)
    plan = module.plan(logits=case.fresh().linear(), labels=case.labels, embeddings=embeddings)
    assert plan.engine == "chunked"


def test_nothing_counts_in_a_scope_or_at_all() -> None:
    case = draw()
    module = lossmith.loss("0.6*cross_entropy + 0.4*lovasz_softmax[answer] + focal[answer]")
    empty = {"answer": torch.zeros(TOKENS, dtype=torch.bool)}
    _agree(_step(module, case, "chunked", scopes=empty), _step(module, case, None, scopes=empty))
    ignored = replace(case, labels=torch.full_like(case.labels, -100))
    for value in _step(module, ignored, "chunked", scopes={"answer": SCOPES["answer"]}):
        assert not bool(value.any())


def test_a_sum_weighs_its_one_gradient_by_the_upstream_one() -> None:
    case = draw()
    module = lossmith.loss("2*cross_entropy + 3*focal")
    own = case.fresh()
    value = module(own.linear(), own.labels)
    (0.25 * value).backward()
    wanted = _step(module, case, None)
    upstream = float(upstream_for(value))
    for part, slope in zip(own.parts, wanted[1:], strict=True):
        assert_close(part.grad, 0.25 / upstream * slope, rtol=1e-10, atol=1e-12)


def test_bad_weights_and_divisors_are_refused_as_on_logits() -> None:
    case = draw()
    module = lossmith.loss("cross_entropy + 3*z_loss[answer]")
    scopes = {"answer": SCOPES["answer"]}
    wrong: list[dict[str, Any]] = [
        {"num_items": 3},
        {"num_items": {"token": 3}},
        {"num_items": {"token": -3, "token[answer]": 2}},
        {"num_items": {"token": 3, "token[answer]": 2}, "reduction": "sum"},
        {"weights": ROWS[:5]},
        {"weights": ROWS - 0.5},
        {"weights": {"region": ROWS}},
        {"reduction": "average"},
    ]
    for call in wrong:
        messages = []
        for logits in (case.fresh().linear(), case.logits()):
            with pytest.raises(lossmith.ObjectiveInputError) as error:
                module(logits, case.labels, scopes=scopes, **call)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
