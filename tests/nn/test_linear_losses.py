"""Linear logits handed to losses: what is refused, each in one sentence, and what a loss answers on either kind."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import lossmith
from linear_cases import VOCAB, draw, run, small_tiles
from lossmith import LinearLogits, ObjectiveInputError

H, W, B = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7)
Y = torch.tensor([0, 1, 6, 2, 3])


@pytest.fixture(autouse=True)
def _default_budget() -> Iterator[None]:
    yield
    lossmith.set_chunk_budget(None)


def _linear(*args: Any, **settings: Any) -> LinearLogits:
    """As a user's process makes it, without the type checks of the tests."""
    linear = object.__new__(LinearLogits)
    inspect.unwrap(LinearLogits.__init__)(linear, *args, **settings)
    return linear


def _marked(value: Tensor, **marks: Any) -> Tensor:
    """A tensor that looks like one shard of several."""
    value = value.clone()
    for name, mark in marks.items():
        setattr(value, name, mark)
    return value


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "width": (
        lambda: _linear(H, torch.randn(7, 4)),
        "`weight` must be [vocab, hidden] with hidden = 3, the last axis of `hidden`, got (7, 4).",
    ),
    "transposed weight": (
        lambda: _linear(H, W.T),
        "`weight` must be [vocab, hidden] with hidden = 3, the last axis of `hidden`, got (3, 7).",
    ),
    "weight of one axis": (lambda: _linear(H, W[0]), "`weight` must be [vocab, hidden], got (3,)."),
    "weight of three axes": (lambda: _linear(H, W[None]), "`weight` must be [vocab, hidden], got (1, 7, 3)."),
    "hidden of no axis": (lambda: _linear(H[0, 0], W), "`hidden` must be [..., hidden], got ()."),
    "hidden of no width": (lambda: _linear(H[:, :0], W[:, :0]), "`hidden` must be [..., hidden], got (5, 0)."),
    "no class": (
        lambda: _linear(H, W[:0]),
        "`weight` must have a row for each class, got none, (0, 3): is it sharded elsewhere?",
    ),
    "a group's name": (
        lambda: _linear(H, W, group="tp"),
        "`group` must be a process group of torch.distributed, got str.",
    ),
    "short bias": (
        lambda: _linear(H, W, B[:6]),
        "`bias` must have one number per row of `weight`, (7,), got (6,).",
    ),
    "bias of two axes": (lambda: _linear(H, W, B[:, None]), "`bias` must be [vocab], got (7, 1)."),
    "weight dtype": (
        lambda: _linear(H, W.bfloat16()),
        "`weight` must have the dtype of `hidden`, torch.float32, got torch.bfloat16: cast one of them, or make "
        "LinearLogits under torch.autocast.",
    ),
    "bias dtype": (
        lambda: _linear(H, W, B.double()),
        "`bias` must have the dtype of `hidden`, torch.float32, got torch.float64: cast one of them, or make "
        "LinearLogits under torch.autocast.",
    ),
    "integer hidden": (
        lambda: _linear(H.long(), W),
        "`hidden` must be a floating-point tensor, got torch.int64.",
    ),
    "complex hidden": (
        lambda: _linear(H.cfloat(), W.cfloat()),
        "`hidden` must be a floating-point tensor, got torch.complex64.",
    ),
    "weight elsewhere": (
        lambda: _linear(H, W.to("meta")),
        "All inputs must be on one device, got `hidden` on cpu, `weight` on meta.",
    ),
    "bias elsewhere": (
        lambda: _linear(H, W, B.to("meta")),
        "All inputs must be on one device, got `hidden` on cpu, `weight` on cpu, `bias` on meta.",
    ),
    "labels elsewhere": (
        lambda: lossmith.loss("focal")(_linear(H, W), Y.to("meta")),
        "All inputs must be on one device, got `logits` on cpu, `labels` on meta.",
    ),
    "a list": (lambda: _linear([[1.0]], W), "`hidden` must be a torch.Tensor, got list."),
    "a layer": (lambda: _linear(H, nn.Linear(3, 7)), "`weight` must be a torch.Tensor, got Linear."),
    "sharded": (
        lambda: _linear(H, _marked(W, device_mesh="2 ranks")),
        "`weight` is sharded over ranks (Tensor, (7, 3)): make LinearLogits inside the wrapped forward, where it is "
        "whole, or give each rank its slice of the vocabulary with `group`.",
    ),
    "placeholder": (
        lambda: _linear(H, _marked(W[:0, 0], ds_id=3)),
        "`weight` is sharded over ranks (Tensor, (0,)): make LinearLogits inside the wrapped forward, where it is "
        "whole, or give each rank its slice of the vocabulary with `group`.",
    ),
    "scale nan": (lambda: _linear(H, W, B, math.nan), "`scale` must be a finite number, got nan."),
    "scale text": (lambda: _linear(H, W, B, "2"), "`scale` must be a finite number, got '2'."),
    "softcap 0": (lambda: _linear(H, W, softcap=0.0), "`softcap` must be > 0, got 0.0."),
    "softcap -1": (lambda: _linear(H, W, softcap=-1.0), "`softcap` must be > 0, got -1.0."),
    "softcap inf": (lambda: _linear(H, W, softcap=math.inf), "`softcap` must be a finite number, got inf."),
    "impl": (
        lambda: _linear(H, W, impl="cuda"),
        "`impl` must be one of 'auto', 'dense', 'chunked', 'triton', got 'cuda'.",
    ),
    "skip_below": (
        lambda: _linear(H, W, skip_below=1e-3),
        "`skip_below` is an approximation of the triton engine: give impl='triton' or leave it at 0, got 0.001 with "
        "impl='auto'.",
    ),
    "skip_below < 0": (
        lambda: _linear(H, W, impl="triton", skip_below=-1e-3),
        "`skip_below` must be in [0, 1), got -0.001.",
    ),
    "skip_below 1": (
        lambda: _linear(H, W, impl="triton", skip_below=1.0),
        "`skip_below` must be in [0, 1), got 1.0.",
    ),
    "group with dense": (
        lambda: _linear(H, W, impl="dense", group=object()),
        "A `group` needs impl='chunked' (or 'auto'), got impl='dense'.",
    ),
    "labels shape": (
        lambda: lossmith.loss("focal")(_linear(H, W), Y[:3]),
        "`labels` must have one entry per row of `logits`, (5,), got (3,).",
    ),
    "labels too high": (
        lambda: lossmith.loss("dice")(_linear(H, W), Y + 1),
        "`labels` reach 7 but `vocab` is 7.",
    ),
    "labels too high in a sum": (
        lambda: lossmith.loss("dice + focal")(_linear(H, W), Y + 1),
        "`labels` reach 7 but `vocab` is 7.",
    ),
    "labels too low": (
        lambda: lossmith.loss("focal")(_linear(H, W), Y - 1),
        "`labels` must be >= 0 (or -100 to ignore a row), got -1.",
    ),
    "labels of floats": (
        lambda: lossmith.loss("focal")(_linear(H, W), Y.float()),
        "`labels` must be integers (class ids), got torch.float32.",
    ),
    "sequences of one axis": (
        lambda: lossmith.loss("dice", region="sequence")(_linear(H, W), Y),
        "`region='sequence'` needs `labels` of shape [batch, seq], got (5,).",
    ),
    "a plan of sequences of one axis": (
        lambda: lossmith.loss("dice", region="sequence").plan(_linear(H, W), Y),
        "`region='sequence'` needs `labels` of shape [batch, seq], got (5,).",
    ),
    "a metric loss": (
        lambda: lossmith.loss("supcon")(_linear(H, W), Y),
        "`embeddings` must be a torch.Tensor, got LinearLogits.",
    ),
    "a preference loss": (
        lambda: lossmith.loss("dpo")(_linear(H, W), Y, Y, Y),
        "`chosen_logps` must be a torch.Tensor, got LinearLogits.",
    ),
    "as labels": (
        lambda: lossmith.loss("focal")(H @ W.T, _linear(H, W)),
        "`labels` must be a torch.Tensor, got LinearLogits.",
    ),
    "no tensor": (
        lambda: lossmith.loss("focal")([1.0], Y),
        "`logits` must be a torch.Tensor or lossmith.LinearLogits, got list.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_sentence_says_what_is_wrong(kind: str) -> None:
    call, message = REFUSED[kind]
    with pytest.raises(ObjectiveInputError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["focal", "dice", "focal + dice"])
def test_a_budget_too_small_for_one_row_names_the_bytes(text: str) -> None:
    lossmith.set_chunk_budget(27)
    linear = LinearLogits(H.bfloat16().requires_grad_(), W.bfloat16())
    for call in (lossmith.loss(text), lossmith.loss(text).plan):
        with pytest.raises(ObjectiveInputError) as error:
            call(linear, Y)
        assert str(error.value) == (
            "The chunk budget of 27 bytes holds no row of 7 scores in float32: `lossmith.set_chunk_budget` needs at "
            "least 28 bytes."
        )
    lossmith.set_chunk_budget(28)
    lossmith.loss(text)(linear, Y).backward()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "32MB"])
def test_nonsense_is_no_budget(value: Any) -> None:
    with pytest.raises(ObjectiveInputError) as error:
        inspect.unwrap(lossmith.set_chunk_budget)(value)
    assert str(error.value) == f"`num_bytes` must be an int >= 1 (bytes), or None for the default, got {value!r}."


def test_wrong_calls_are_refused_as_on_logits() -> None:
    case = draw()
    wrong: list[dict[str, Any]] = [
        {"weights": torch.ones(3)},
        {"weights": torch.ones(3), "reduction": "none"},
        {"weights": -torch.ones(37)},
        {"num_items": 0},
        {"num_items": math.nan},
        {"num_items": torch.ones(2)},
        {"num_items": 3, "reduction": "sum"},
        {"reduction": "average"},
        {"labels": case.labels},
        {"scopes": {}},
    ]
    for call in wrong:
        messages = []
        for logits in (case.fresh().linear(), case.linear(), case.logits()):
            with pytest.raises(ObjectiveInputError) as error:
                lossmith.loss("focal")(logits, case.labels, **call)
            messages.append(str(error.value))
        assert len(set(messages)) == 1, messages


def test_what_linear_logits_say_of_themselves() -> None:
    hidden = torch.zeros(2, 5, 3, dtype=torch.bfloat16)
    linear = LinearLogits(hidden, W.bfloat16().requires_grad_(), B.bfloat16(), 2.0, 30.0)
    assert linear.shape == (2, 5, 7)
    assert linear.dtype == torch.float32
    assert linear.device == torch.device("cpu")
    assert linear.requires_grad
    assert not LinearLogits(H, W).requires_grad
    assert LinearLogits(H.double(), W.double()).dtype == torch.float64
    assert [linear.engine, LinearLogits(H, W, impl="dense").engine] == ["chunked", "dense"]
    assert repr(linear) == (
        "LinearLogits(hidden=(2, 5, 3), weight=(7, 3), bias=(7,), scale=2, softcap=30, impl='auto', "
        "dtype=torch.bfloat16, device=cpu)"
    )
    assert linear.flattened().shape == (10, 7)
    assert linear.shape == (2, 5, 7)
    assert linear.zero().requires_grad


def test_dense_is_the_formula() -> None:
    for settings in ({}, {"scale": -0.3}, {"softcap": 1.5, "scale": 2.0}, {"softcap": 1.5, "bias": False}):
        case = draw(**settings)
        assert_close(case.linear().dense(), case.logits(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("text", ["focal", "dice"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_add_up(text: str, reduction: str) -> None:
    """Two micro-batches with the number of items of both are one batch; sequences are whole in each."""
    text = text if text == "focal" else "dice(region='sequence')"
    case = draw().sequences
    module = lossmith.loss(text)
    divisor = int((case.labels != -100).sum()) if text == "focal" else 4
    call = {"num_items": divisor} if reduction == "mean" else {}
    whole, parts = case.fresh(), case.fresh()
    with small_tiles():
        module(whole.linear(), case.labels, reduction=reduction, **call).backward()
        for cut in (slice(0, 2), slice(2, 5)):
            part = replace(parts, hidden=parts.hidden[cut])
            module(part.linear(), case.labels[cut], reduction=reduction, **call).backward()
    for one, other in zip(parts.parts, whole.parts, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_weights_with_a_gradient() -> None:
    """Learned weights get their gradient, the loss of each row, and so does what is below the logits."""
    case = draw()
    found = []
    with small_tiles():
        for impl in ("chunked", None):
            own = case.fresh()
            weights = torch.linspace(0.1, 2, 37, dtype=torch.float64).requires_grad_()
            logits = own.logits() if impl is None else own.linear(impl)
            value = lossmith.loss("focal")(logits, case.labels, weights=weights, num_items=9)
            found.append([value.detach(), *torch.autograd.grad(value, [*own.parts, weights])])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_weights_of_rows_that_do_not_count_may_hold_anything() -> None:
    case = draw()
    weights = torch.linspace(0.1, 2, 37, dtype=torch.float64)
    spoilt = weights.masked_fill(case.labels == -100, math.nan)
    with small_tiles():
        for reduction in ("mean", "sum", "none"):
            one, other = (run("focal", case, weights=w, reduction=reduction) for w in (weights, spoilt))
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1][1], other[1][1])


def test_a_head_and_its_optimiser() -> None:
    """A training step through a model: the head's own parameters, and everything below the hidden states."""
    torch.manual_seed(3)
    body, head = nn.Linear(4, 6).double(), nn.Linear(6, VOCAB).double()
    rows, labels = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) * 5
    module = lossmith.loss("0.5*cross_entropy + 0.5*lovasz_softmax")
    grads = []
    for linear in (True, False):
        body.zero_grad()
        head.zero_grad()
        hidden = torch.tanh(body(rows))
        logits = LinearLogits(hidden, head.weight, head.bias) if linear else head(hidden)
        module(logits, labels).backward()
        grads.append([p.grad.clone() for p in (*body.parameters(), *head.parameters()) if p.grad is not None])
    assert len(grads[0]) == 4
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("text", ["focal", "dice", "focal + cross_entropy"])
@pytest.mark.parametrize("grad", [True, False], ids=["gradient", "no gradient"])
def test_debug_names_the_value_that_cannot_be(text: str, grad: bool) -> None:
    """By every plan; without `debug()` nothing is read."""
    case = draw().fresh() if grad else draw()
    assert case.bias is not None
    module, label = lossmith.loss(text), int(case.labels[4])
    wrong = [
        (lambda: case.hidden.data[4].index_fill_(0, torch.tensor(2), math.nan), r"^`hidden` must be .* got nan at \[4"),
        (lambda: case.weight.data[7].fill_(math.inf), r"^`weight` must be .* got inf at \[7"),
        (lambda: case.bias.data[9:10].fill_(math.nan), r"^`bias` must be .* got nan at \[9"),
        (
            lambda: case.bias.data[label].fill_(-math.inf),
            rf"^`logits` must be .* got -inf at \[\d+\] for the label {label}",
        ),
    ]
    saved = [part.detach().clone() for part in case.parts]
    with lossmith.debug():
        value = module(case.linear(), case.labels)
    assert_close(value, module(case.logits(), case.labels), rtol=1e-12, atol=0)
    for spoil, message in wrong:
        spoil()
        with lossmith.debug(), pytest.raises(ObjectiveInputError, match=message):
            module(case.linear(), case.labels)
        module(case.linear(), case.labels)
        for part, before in zip(case.parts, saved, strict=True):
            part.data.copy_(before)
    # A row that does not count may hold anything.
    case.hidden.data[3].fill_(math.nan)
    with lossmith.debug():
        module(case.linear(), case.labels)


ROWS = torch.linspace(0.1, 2, 37, dtype=torch.float64)
CALLS: dict[str, dict[str, Any]] = {
    "weights": {"weights": ROWS},
    "weights summed": {"weights": ROWS - 1, "reduction": "sum"},
    "weights each": {"weights": ROWS, "reduction": "none"},
    "weights by kind": {"weights": {"token": ROWS}},
    "weights divided": {"weights": ROWS - 1, "num_items": 41},
    "num_items": {"num_items": 41},
    "num_items as a float": {"num_items": 12.5},
    "num_items as a tensor": {"num_items": torch.tensor(41)},
    "num_items by kind": {"num_items": {"token": 41}},
}


@pytest.mark.filterwarnings("ignore:.*several micro-batches are not one batch")
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("text", ["focal", "confidence_penalty", "mile"])
def test_weights_and_divisors_of_one_loss(text: str, kind: str) -> None:
    case = draw()
    with small_tiles():
        found, wanted = (run(text, case, impl, **CALLS[kind]) for impl in ("chunked", None))
    for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)
