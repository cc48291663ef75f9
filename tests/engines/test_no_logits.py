"""No loss on linear logits ever makes a tensor of tokens x vocabulary entries, forward or backward."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import lossmith
from linear_cases import HIDDEN, LOSSES, REGION, TOKEN, TOKENS, VOCAB, Case, Probe, draw, of, small_tiles, upstream_for
from lossmith.engines import Demand, LinearSource
from lossmith.objectives import VOCABULARY

ONE_OF_ALL = " + ".join(TOKEN + REGION)
ROWS = 4


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles(ROWS):
        yield


def _largest(text: str, case: Case, impl: str, **call: Any) -> int:
    """Entries of the largest tensor that a call and its backward pass make."""
    module, own = lossmith.loss(text), case.fresh()
    with Probe() as probe:
        value = of(module, own, impl, **call)
        if value.requires_grad:
            value.backward(upstream_for(value))
    return probe.largest


def _limit(case: Case) -> int:
    """What has to be as large as the weight or the hidden states; the logits are larger than both."""
    limit = max(case.weight.numel(), case.hidden.numel())
    assert case.labels.numel() * VOCAB > limit > ROWS * VOCAB
    return limit


@pytest.mark.parametrize("text", [*LOSSES, ONE_OF_ALL], ids=[*LOSSES, "all"])
def test_no_tensor_is_as_large_as_the_logits(text: str) -> None:
    case = draw().sequences if "sequence" in text else draw()
    calls: list[dict[str, str]] = [{}, {"reduction": "sum"}]
    calls += [{"reduction": "none"}] if text != ONE_OF_ALL else []
    for call in calls:
        assert _largest(text, case, "chunked", **call) <= _limit(case), call
        assert _largest(text, case, "auto", **call) <= _limit(case), call
    with torch.no_grad():
        assert _largest(text, case, "chunked") <= _limit(case)


@pytest.mark.parametrize("text", [*LOSSES, ONE_OF_ALL], ids=[*LOSSES, "all"])
def test_the_probe_sees_the_logits_where_they_are_built(text: str) -> None:
    case = draw().sequences if "sequence" in text else draw()
    assert _largest(text, case, "dense") >= case.labels.numel() * VOCAB > _limit(case)


def test_scores_stay_within_the_budget() -> None:
    """With few hidden units and one row of few classes, nothing but the scores could be larger than the budget."""
    case = draw(TOKENS, hidden=2)
    for rows in (ROWS, 9):
        lossmith.set_chunk_budget(rows * VOCAB * 8)
        for text in (
            "cross_entropy(label_smoothing=0.1)",
            "confidence_penalty",
            "entropy_adaptive",
            "deft",
        ):
            for call in ({}, {"reduction": "none"}):
                # The five sums and their derivatives of every row are vectors.
                assert _largest(text, case, "chunked", **call) <= max(rows * VOCAB, 21 * rows, 2 * VOCAB)


def test_second_derivatives_build_them_knowingly() -> None:
    """The graph of a gradient keeps every score; only `create_graph=True` asks for that."""
    own = draw().fresh()
    with Probe() as probe:
        value = of(lossmith.loss("cross_entropy"), own, "chunked")
        torch.autograd.grad(value, own.parts, create_graph=True)
    assert probe.largest >= 32 * VOCAB


def test_statistics_of_every_name_at_once() -> None:
    own = draw().fresh()
    names = VOCABULARY["token"]
    with Probe() as probe:
        found = LinearSource(own.linear(), [Demand(labels=own.labels, names=names)]).tokens(own.labels, names)
        sum(value.sum() for value in found.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert probe.largest <= _limit(own)


def test_a_step_with_autocast_and_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = draw().to(dtype)
        for call in ({}, {"reduction": "none"}):
            lossmith.set_chunk_budget(ROWS * VOCAB * 4)
            assert _largest("focal", case, "chunked", **call) <= _limit(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _largest("focal", draw().to(torch.float32), "chunked") <= TOKENS * max(HIDDEN, 28)
