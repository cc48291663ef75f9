"""Each objective against a scalar loop written from its paper: values, and gradients by finite differences."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import scalar_oracles as oracle
from library import build, labels_for, scores_for
from lossmith.objectives import focal_loss, lovasz_softmax_loss, soft_triple_loss


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.13, 0.9])
def test_cross_entropy(smoothing: float) -> None:
    module = build("cross_entropy", label_smoothing=smoothing)
    logits, labels = scores_for(module, 11), labels_for(11)
    rows, classes = logits.tolist(), labels.tolist()
    expected = [oracle.cross_entropy(row, y, smoothing) for row, y in zip(rows, classes, strict=True)]
    losses = module(logits, labels, reduction="none")
    assert_close(losses, _double(expected), rtol=1e-13, atol=0)
    # d/dz_k = p_k - (1-e)[k = y] - e/V, by hand.
    slopes = [
        [p - (1 - smoothing) * (k == y) - smoothing / len(row) for k, p in enumerate(oracle.probs(row))]
        for row, y in zip(rows, classes, strict=True)
    ]
    assert_close(torch.autograd.grad(losses.sum(), logits)[0], _double(slopes), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal(gamma: float) -> None:
    module = build("focal", gamma=gamma)
    logits, labels = scores_for(module, 11), labels_for(11)
    rows, classes = logits.tolist(), labels.tolist()
    expected = [oracle.focal(row, y, gamma) for row, y in zip(rows, classes, strict=True)]
    losses = module(logits, labels, reduction="none")
    assert_close(losses, _double(expected), rtol=1e-13, atol=0)
    # dl/dlogp = gamma p (1-p)^(gamma-1) log p - (1-p)^gamma, times dlogp/dz_k = [k = y] - p_k.
    slopes = []
    for row, y in zip(rows, classes, strict=True):
        p, logp = oracle.probs(row), oracle.log_probs(row)[y]
        outer = gamma * p[y] * (1 - p[y]) ** (gamma - 1) * logp - (1 - p[y]) ** gamma
        slopes.append([outer * ((k == y) - p[k]) for k in range(len(row))])
    assert_close(torch.autograd.grad(losses.sum(), logits)[0], _double(slopes), rtol=1e-11, atol=1e-15)


def test_lovasz_softmax_with_uneven_classes_and_an_absent_one() -> None:
    module = build("lovasz_softmax")
    logits = scores_for(module, 10)
    labels = torch.tensor([0, 2, 2, 5, 2, 0, 2, 5, 2, 6])
    expected = oracle.lovasz_softmax(logits.tolist(), labels.tolist())
    loss = module(logits, labels)
    assert_close(loss, _double(expected), rtol=1e-13, atol=0)
    slopes = oracle.finite_difference(lambda rows: oracle.lovasz_softmax(rows, labels.tolist()), logits.tolist())
    assert_close(torch.autograd.grad(loss, logits)[0], _double(slopes), rtol=1e-7, atol=1e-10)


def test_lovasz_softmax_on_certain_predictions_is_the_jaccard_loss() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0, 1])
    class_probs = torch.nn.functional.one_hot(predicted, 2).double()
    # Class 0: 2 of {0, 1, 2, 5} right; class 1: 3 of {2, 3, 4, 5, 6} right.
    assert_close(lovasz_softmax_loss(class_probs, labels), _double(1 - (2 / 4 + 3 / 5) / 2))


def test_lovasz_softmax_does_not_depend_on_the_order_of_ties() -> None:
    class_probs = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64)
    one = lovasz_softmax_loss(class_probs, torch.tensor([0, 0, 1, 1]))
    other = lovasz_softmax_loss(class_probs, torch.tensor([1, 0, 1, 0]))
    assert_close(one, _double(0.5))
    assert_close(one, other)


@pytest.mark.parametrize("excess", [5e-3, 1e-6])
def test_lovasz_softmax_counts_what_is_barely_larger_than_the_smallest_error_of_a_class(excess: float) -> None:
    likely = [0.3, 0.6, 0.4 + excess]
    rows = [[math.log(p), math.log1p(-p)] for p in likely]
    labels = [0, 0, 1]
    leaf = _double(rows).requires_grad_()
    loss = lovasz_softmax_loss(leaf.softmax(-1), torch.tensor(labels))
    assert_close(loss, _double(oracle.lovasz_softmax(rows, labels)), rtol=1e-13, atol=0)
    step = 1e-8 if excess < 1e-5 else 1e-6
    slopes = oracle.finite_difference(lambda moved: oracle.lovasz_softmax(moved, labels), rows, step)
    assert_close(torch.autograd.grad(loss, leaf)[0], _double(slopes), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"scale": 7.0, "gamma": 0.4, "margin": 0.3}])
def test_soft_triple(settings: dict[str, float]) -> None:
    module = build("soft_triple", centers_per_class=4, **settings)
    embeddings, labels = scores_for(module, 8), labels_for(8)
    proxies = module.get_parameter("proxies")
    rows, classes, centres = embeddings.tolist(), labels.tolist(), proxies.tolist()
    expected = [oracle.soft_triple(row, y, centres, **settings) for row, y in zip(rows, classes, strict=True)]
    losses = module(embeddings, labels, reduction="none")
    assert_close(losses, _double(expected), rtol=1e-12, atol=1e-14)

    def of_embeddings(moved: list[list[float]]) -> float:
        return math.fsum(oracle.soft_triple(row, y, centres, **settings) for row, y in zip(moved, classes, strict=True))

    def of_proxies(moved: list[list[float]]) -> float:
        grouped = [moved[c * 4 : c * 4 + 4] for c in range(len(centres))]
        return math.fsum(oracle.soft_triple(row, y, grouped, **settings) for row, y in zip(rows, classes, strict=True))

    for_embeddings, for_proxies = torch.autograd.grad(losses.sum(), [embeddings, proxies])
    flat = [centre for group in centres for centre in group]
    assert_close(for_embeddings, _double(oracle.finite_difference(of_embeddings, rows)), rtol=1e-6, atol=1e-8)
    assert_close(for_proxies.flatten(0, 1), _double(oracle.finite_difference(of_proxies, flat)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_supcon_leaves_out_an_anchor_without_positive(temperature: float) -> None:
    module = build("supcon", temperature=temperature)
    embeddings, labels = scores_for(module, 8), torch.tensor([0, 1, 0, 2, 0, 1, 7, 2])
    rows, classes = embeddings.tolist(), labels.tolist()
    with pytest.warns(RuntimeWarning, match="no other row of their class"):
        losses = module(embeddings, labels, reduction="none")
    assert_close(losses, _double(oracle.supcon(rows, classes, temperature)), rtol=1e-12, atol=1e-14)
    mean = module(embeddings, labels)
    assert_close(mean, _double(math.fsum(oracle.supcon(rows, classes, temperature)) / 7), rtol=1e-12, atol=0)
    slopes = oracle.finite_difference(lambda moved: math.fsum(oracle.supcon(moved, classes, temperature)), rows)
    assert_close(torch.autograd.grad(losses.sum(), embeddings)[0], _double(slopes), rtol=1e-6, atol=1e-8)


def test_known_values() -> None:
    log2 = math.log(2)
    assert_close(focal_loss(_double([-log2]), gamma=2.0), _double([log2 / 4]))
    assert_close(lovasz_softmax_loss(_double([[0.3]]), torch.tensor([0])), _double(0.7))
    same_centres = torch.ones(5, 2, 3, dtype=torch.float64)
    one = soft_triple_loss(_double([[1.0, -2.0, 5.0]]), torch.tensor([3]), same_centres, margin=0.0)
    assert_close(one, _double([math.log(5)]))
    coinciding = build("supcon")(
        torch.ones(6, 2, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 0]), reduction="none"
    )
    assert_close(coinciding, _double([math.log(5)] * 6))


def test_relations_that_the_docstrings_state() -> None:
    cross_entropy, focal = build("cross_entropy"), build("focal", gamma=0.0)
    logits, labels = scores_for(cross_entropy, 9), labels_for(9)
    assert_close(focal(logits, labels), cross_entropy(logits, labels))
    uniform = torch.full((4, 13), 2.5, dtype=torch.float64)
    for smoothing in (0.0, 0.3):
        assert_close(build("cross_entropy", label_smoothing=smoothing)(uniform, labels[:4]), _double(math.log(13)))


def test_normalize_false_keeps_the_lengths() -> None:
    centres = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    rows = _double([[3.0, 0.0], [0.0, 0.5]])
    labels = torch.tensor([0, 0])
    raw = soft_triple_loss(rows, labels, centres, scale=1.0, margin=0.0, normalize=False)
    assert_close(raw, _double([math.log1p(math.exp(-3.0)), math.log1p(math.exp(0.5))]))
    unit = soft_triple_loss(rows, labels, centres, scale=1.0, margin=0.0)
    assert_close(unit, _double([math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))]))
    lengths = build("supcon", temperature=2.0, normalize=False)
    with pytest.warns(RuntimeWarning, match="no other row of their class"):
        pair = lengths(_double([[2.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), reduction="none")
    assert_close(pair[:2], _double([math.log1p(math.exp(5.0 - 3.0)), math.log1p(math.exp(7.5 - 3.0))]))
