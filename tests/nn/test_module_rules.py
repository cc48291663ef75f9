"""The rules that every loss obeys (design, section 3), walked over the registry."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from library import CLASSES, LOSSES, VOCAB, build, gradients, labels_for, names, record_of, scores_for
from lossmith import ObjectiveInputError
from lossmith.nn import LossModule

every = pytest.mark.parametrize("text", LOSSES)
logit_losses = pytest.mark.parametrize("text", names(family="token") + names(family="region"))
additive = pytest.mark.parametrize("text", names(batch_coupled=False))
ROWS = 9
# Asked for on purpose here: a number of items that is not that of the batch.
pytestmark = pytest.mark.filterwarnings("ignore:.*several micro-batches are not one batch")
# What these ask of a row grows without bound as the probability of its label falls.
UNBOUNDED = ("cross_entropy", "focal", "poly1", "mile", "confidence_penalty", "unlikelihood")
NO_LABEL, AGAINST_LABEL = ("z_loss",), ("unlikelihood",)


def _with_ignored(text: str, *, dtype: torch.dtype = torch.float64) -> tuple[LossModule, Tensor, Tensor, Tensor]:
    """A loss, scores, labels with ignored rows at uneven places, and where those are."""
    module = build(text, dtype=dtype)
    labels = torch.arange(ROWS) % CLASSES
    ignored = torch.zeros(ROWS, dtype=torch.bool)
    ignored[[0, 4, 8]] = True
    return module, scores_for(module, ROWS, dtype=dtype), labels.masked_fill(ignored, -100), ignored


@every
def test_ignored_means_removed(text: str) -> None:
    module, scores, labels, ignored = _with_ignored(text)
    value = module(scores, labels)
    slopes = gradients(value, module, scores)
    assert not bool(slopes[0][ignored].any())
    assert bool((slopes[0][~ignored] != 0).any())
    for poison in (torch.nan, torch.inf, -torch.inf, 1e30):
        changed = scores.detach().clone()
        changed[ignored] = poison
        changed.requires_grad_()
        again = module(changed, labels)
        assert torch.equal(again, value)
        for got, wanted in zip(gradients(again, module, changed), slopes, strict=True):
            assert torch.equal(got, wanted)
    kept = scores.detach()[~ignored].requires_grad_()
    alone = module(kept, labels[~ignored])
    assert_close(alone, value, rtol=1e-14, atol=0)
    assert_close(gradients(alone, module, kept)[0], slopes[0][~ignored], rtol=1e-12, atol=1e-17)


@every
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [ROWS, 0])
def test_nothing_valid_is_a_zero_with_its_graph(text: str, reduction: str, rows: int) -> None:
    module = build(text, dtype=torch.float32)
    for fill in (0.0, torch.nan):
        scores = (scores_for(module, rows, dtype=torch.float32).detach() + fill).requires_grad_()
        loss = module(scores, torch.full((rows,), -100), reduction=reduction)
        assert loss.requires_grad
        assert not bool(loss.any())
        for slope in gradients(loss.sum(), module, scores):
            assert torch.equal(slope, torch.zeros_like(slope))


def _items(text: str) -> int | None:
    """Items of the batch of `_with_ignored`, None where that is the objective's affair (pairs, triplets)."""
    return {"token": ROWS, "anchor": ROWS, "region": 1, "batch": 1}.get(record_of(text).item)


@every
def test_reductions_agree(text: str) -> None:
    module, scores, labels, ignored = _with_ignored(text)
    losses = module(scores, labels, reduction="none")
    rowwise = _items(text) == ROWS
    assert losses.ndim == 1
    assert len(losses) == (_items(text) or len(losses)) > 0
    if rowwise:
        assert not bool(losses[ignored].any())
        assert bool((losses[~ignored] != 0).all())
    items = int((~ignored).sum()) if rowwise else len(losses)
    assert_close(module(scores, labels, reduction="sum"), losses.sum())
    assert_close(module(scores, labels), losses.sum() / items)
    assert_close(module(scores, labels, num_items=29), losses.sum() / 29)
    assert_close(module(scores, labels, num_items=torch.tensor(29)), losses.sum() / 29)
    assert_close(module(scores, labels, num_items={module.items[0]: 29}), losses.sum() / 29)
    with pytest.raises(ObjectiveInputError, match=rf"^`num_items` names \['rows'\], but '.*' counts {module.items[0]}"):
        module(scores, labels, num_items={"rows": 29})


@every
def test_gradient_of_reduction_none_under_a_random_upstream_gradient(text: str) -> None:
    """reduction 'none' is not a value only: each item's own gradient is right (a uniform upstream hides scaling)."""
    module, scores, labels, _ = _with_ignored(text)
    losses = module(scores, labels, reduction="none")
    upstream = torch.randn(losses.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = gradients((losses * upstream).sum(), module, scores)
    total = [torch.zeros_like(slope) for slope in got]
    for item, share in enumerate(upstream.tolist()):
        one = gradients(module(scores, labels, reduction="none")[item], module, scores)
        total = [sum_ + share * slope for sum_, slope in zip(total, one, strict=True)]
    for slope, wanted in zip(got, total, strict=True):
        assert_close(slope, wanted, rtol=1e-10, atol=1e-14)


@every
def test_weights(text: str) -> None:
    module, scores, labels, ignored = _with_ignored(text)
    losses = module(scores, labels, reduction="none")
    weights = torch.linspace(0.2, 3.0, len(losses), dtype=torch.float64)
    valid = ~ignored if _items(text) == ROWS else torch.ones(len(losses), dtype=torch.bool)
    by_hand = (weights * losses).sum()
    poisoned = weights.masked_fill(~valid, torch.nan)
    for given_weights in (weights, poisoned):
        value = module(scores, labels, weights=given_weights)
        assert_close(value, by_hand / weights[valid].sum())
        assert all(bool(torch.isfinite(slope).all()) for slope in gradients(value, module, scores))
        assert_close(module(scores, labels, weights=given_weights, reduction="sum"), by_hand)
    negative = weights - 1.0
    with pytest.raises(ObjectiveInputError, match="Negative `weights`"):
        module(scores, labels, weights=negative)
    assert_close(module(scores, labels, weights=negative, num_items=3), (negative * losses).sum() / 3)
    with pytest.raises(ObjectiveInputError, match="`weights` must have one entry per item"):
        module(scores, labels, weights=torch.ones(len(losses) + 1))


@additive
@pytest.mark.parametrize("k", [2, 3, 8])
def test_micro_batches_over_one_count_are_one_batch(text: str, k: int) -> None:
    module = build(text)
    scores, labels = scores_for(module, 24), labels_for(24)
    # Uneven counts: the first micro-batch has nothing valid, the next ones more and more.
    labels[: 24 // k] = -100
    labels[24 // k :][::5] = -100
    count = int((labels != -100).sum())
    whole = module(scores, labels)
    wanted = gradients(whole, module, scores)
    parts = [
        module(part, target, num_items=count)
        for part, target in zip(scores.split(24 // k), labels.split(24 // k), strict=True)
    ]
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    for got, slope in zip(gradients(torch.stack(parts).sum(), module, scores), wanted, strict=True):
        assert_close(got, slope, rtol=1e-12, atol=1e-15)


@additive
@settings(max_examples=8)
@given(data=st.data())
def test_any_split_and_any_weights_add_up(text: str, data: st.DataObject) -> None:
    module = build(text)
    scores = scores_for(module, 10).detach()
    labels = torch.tensor(data.draw(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=10, max_size=10)))
    weights = torch.tensor(data.draw(st.lists(st.floats(0, 3), min_size=10, max_size=10)), dtype=torch.float64)
    cut = data.draw(st.integers(0, 10))
    divisor = float(weights[labels != -100].sum()) or 1.0
    whole = module(scores, labels, weights=weights)
    parts = [
        module(scores[rows], labels[rows], weights=weights[rows], num_items=divisor)
        for rows in (slice(0, cut), slice(cut, 10))
    ]
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("error:.*several micro-batches are not one batch")
@pytest.mark.parametrize("text", names(batch_coupled=True))
def test_a_coupled_loss_warns_once_where_it_is_accumulated(text: str) -> None:
    module, scores, labels, _ = _with_ignored(text)
    here = len(module(scores, labels, reduction="none"))
    with pytest.warns(RuntimeWarning, match=r"couples the items of a batch: \d+ of `num_items` = 500 here"):
        module(scores, labels, num_items=500)
    module(scores, labels, num_items=500)
    if _items(text) != ROWS:
        build(text)(scores, labels, num_items=here)


def test_what_cannot_be_accumulated_says_so() -> None:
    for text in LOSSES:
        assert build(text).batch_coupled == record_of(text).batch_coupled
    assert build("lovasz_softmax").batch_coupled
    assert build("supcon").batch_coupled
    assert not build("soft_triple").batch_coupled
    assert not build("lovasz_softmax", region="sequence").batch_coupled


@logit_losses
def test_left_padding_equals_right_padding(text: str) -> None:
    module = build(text, **({"region": "sequence"} if record_of(text).family == "region" else {}))
    lengths, width = [5, 8, 2], 8
    logits = scores_for(module, 3, width, seed=4).detach()
    labels = labels_for(3, width, seed=4)
    outcomes = []
    for left in (True, False):
        padded = torch.full((3, width, VOCAB), torch.nan, dtype=torch.float64)
        targets = torch.full((3, width), -100)
        places = [slice(width - n, width) if left else slice(0, n) for n in lengths]
        for row, (n, place) in enumerate(zip(lengths, places, strict=True)):
            padded[row, place], targets[row, place] = logits[row, :n], labels[row, :n]
        padded.requires_grad_()
        value = module(padded, targets)
        slopes = torch.autograd.grad(value, padded)[0]
        outcomes.append((value, torch.cat([slopes[row, place] for row, place in enumerate(places)])))
    assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-12, atol=0)
    assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-12, atol=1e-16)


@logit_losses
def test_leading_axes_are_rows(text: str) -> None:
    module = build(text)
    logits, labels = scores_for(module, 2, 3, 4), labels_for(2, 3, 4)
    flat = module(logits.reshape(24, VOCAB), labels.reshape(24))
    assert_close(module(logits, labels), flat, rtol=1e-14, atol=0)
    one = module(logits[0, 0, 0], labels[0, 0, 0])
    assert_close(one, module(logits[0, 0, :1], labels[0, 0, :1]))


@pytest.mark.parametrize("text", names(family="region"))
def test_region_per_sequence(text: str) -> None:
    module, whole = build(text, region="sequence"), build(text)
    logits, labels = scores_for(module, 4, 6), labels_for(4, 6)
    labels[1] = -100
    labels[2, :4] = -100
    alone = [whole(logits[row], labels[row]) for row in (0, 2, 3)]
    losses = module(logits, labels, reduction="none")
    assert_close(losses[[0, 2, 3]], torch.stack(alone))
    assert losses.shape == (4,)
    assert losses[1].item() == 0
    value = module(logits, labels)
    assert_close(value, torch.stack(alone).sum() / 3)
    assert abs(value.item() - whole(logits, labels).item()) > 1e-3
    parts = [module(logits[rows], labels[rows], num_items=3) for rows in (slice(0, 2), slice(2, 4))]
    assert_close(torch.stack(parts).sum(), value, rtol=1e-12, atol=0)
    weights = torch.tensor([2.0, torch.nan, 0.5, 1.0], dtype=torch.float64)
    assert_close(module(logits, labels, weights=weights), (2 * alone[0] + alone[1] / 2 + alone[2]) / 3.5)
    empty = module(logits[:0], labels[:0])
    assert empty.item() == 0
    assert torch.equal(torch.autograd.grad(empty, logits)[0], torch.zeros_like(logits))
    with pytest.raises(
        ObjectiveInputError, match=r"`region='sequence'` needs `labels` of shape \[batch, seq\], got \(6,"
    ):
        module(logits[0], labels[0])
    with pytest.raises(ObjectiveInputError, match="`region` must be one of 'batch', 'sequence', got 'document'"):
        build(text, region="document")


@logit_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(text: str, dtype: torch.dtype) -> None:
    """Logits of +-1e4: probabilities that round to 0 and to 1, and all that equal."""
    module = build(text, dtype=dtype)
    name, token = record_of(text).name, record_of(text).family == "token"
    rows = [[1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, 1e4, 0.0], [1e4, 1e4, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4]]
    for targets in ([0, 1, 2, 3], [1, 0, 0, 0], [3, 3, 1, 1]):
        logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
        loss = module(logits, torch.tensor(targets))
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(torch.autograd.grad(loss, logits)[0]).all())
        assert loss.item() >= (-1 if name == "confidence_penalty" else 0)
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]], dtype=dtype, requires_grad=True)
    right, wrong = module(certain, torch.tensor([0, 1])), module(certain, torch.tensor([1, 0]))
    if name in NO_LABEL:
        assert right.item() == wrong.item() > 0
        return
    if name in AGAINST_LABEL:
        right, wrong = wrong, right
    least = 1e3 if name in UNBOUNDED else 0.0 if token else 0.5
    assert wrong.item() >= least
    assert "smoothing" in text or right.item() <= (0.5 if name == "self_adjusting_dice" else 0)
    if token:
        slope = torch.autograd.grad(wrong, certain)[0]
        assert slope[0, 1].item() <= 0 <= slope[0, 0].item()
        assert slope[0, 1].item() < 0 or name not in UNBOUNDED


@logit_losses
def test_one_class_and_one_row(text: str) -> None:
    module = build(text)
    single = torch.tensor([[3.0], [-2.0]], dtype=torch.float64, requires_grad=True)
    loss = module(single, torch.tensor([0, 0]))
    slope = torch.autograd.grad(loss, single)[0]
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(slope).all())
    if record_of(text).name not in (*NO_LABEL, *AGAINST_LABEL, "self_adjusting_dice"):
        assert loss.item() == 0
        assert torch.equal(slope, torch.zeros_like(single))
    row = scores_for(module, 1)
    assert bool(torch.isfinite(torch.autograd.grad(module(row, torch.tensor([2])), row)[0]).all())


@logit_losses
def test_masked_vocabulary(text: str) -> None:
    if "smoothing" in text:
        pytest.skip("smoothing puts mass on the masked classes: infinite by the formula")
    module = build(text)
    logits = scores_for(module, 6).detach()
    logits[:, 5:] = -torch.inf
    logits.requires_grad_()
    cut = logits.detach()[:, :5].requires_grad_()
    value, wanted = module(logits, labels_for(6)), module(cut, labels_for(6))
    assert_close(value, wanted)
    slopes = torch.autograd.grad(value, logits)[0]
    assert_close(slopes[:, :5], torch.autograd.grad(wanted, cut)[0])
    assert not bool(slopes[:, 5:].any())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_up(text: str, dtype: torch.dtype) -> None:
    module, scores, labels, _ = _with_ignored(text, dtype=torch.float32)
    half = scores.detach().to(dtype).requires_grad_()
    raised = half.detach().float().requires_grad_()
    value, wanted = module(half, labels), module(raised, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    slope = torch.autograd.grad(value, half)[0]
    assert slope.dtype == dtype
    assert torch.equal(slope, torch.autograd.grad(wanted, raised)[0].to(dtype))


@every
@pytest.mark.parametrize("width", [torch.int16, torch.int32, torch.uint8])
def test_labels_of_any_integer_width(text: str, width: torch.dtype) -> None:
    module = build(text)
    scores, labels = scores_for(module, ROWS), torch.arange(ROWS) % CLASSES
    assert torch.equal(module(scores, labels.to(width)), module(scores, labels))


@every
def test_inputs_that_cannot_be_meant(text: str) -> None:
    module = build(text)
    scores, labels = scores_for(module, 6), labels_for(6)
    with pytest.raises(ObjectiveInputError, match=r"`labels` must be integers \(class ids\), got torch.float64"):
        module(scores, labels.double())
    with pytest.raises(ObjectiveInputError, match=r"`labels` must be integers \(class ids\), got torch.bool"):
        module(scores, labels.bool())
    with pytest.raises(ObjectiveInputError, match=r"one entry per row of `\w+`, \(6,\), got \(6, 1\)"):
        module(scores, labels[:, None])
    with pytest.raises(ObjectiveInputError, match=r"one entry per row of `\w+`, \(6,\), got \(1,\)"):
        module(scores, labels[:1])
    with pytest.raises(ObjectiveInputError, match=r"must be a floating-point tensor \[.*\], got torch.int64 \(6, "):
        module(scores.detach().long(), labels)
    with pytest.raises(ObjectiveInputError, match=r"^All inputs must be on one device"):
        module(scores, labels.to("meta"))
    if record_of(text).family != "metric" or record_of(text).proxy_shape:
        with pytest.raises(ObjectiveInputError, match=r"^`labels` reach 500 but `(vocab|num_classes)` is \d"):
            module(scores, labels.masked_fill(labels == 1, 500))
        with pytest.raises(ObjectiveInputError, match=r"^`labels` must be >= 0 \(or -100 to ignore a row\), got -1"):
            module(scores, labels.masked_fill(labels == 1, -1))
    with pytest.raises(ObjectiveInputError, match=r"^`reduction` must be one of 'none', 'sum', 'mean', got 'avg'"):
        module(scores, torch.arange(6) % 2, reduction="avg")


@every
def test_modules_can_be_copied_pickled_and_printed(text: str) -> None:
    module = build(text)
    scores, labels = scores_for(module, ROWS), torch.arange(ROWS) % CLASSES
    value = module(scores, labels)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
        assert torch.equal(twin(scores, labels), value)
        assert str(twin) == str(module)
    assert torch.equal(build(str(module))(scores, labels), value)
    assert str(module) in repr(module)
