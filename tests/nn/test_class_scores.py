"""What the proxies of a loss say of classes, and labels of embeddings that are not one per label of the logits."""

import math

import pytest
import torch
from torch.testing import assert_close

import lossmith
from lossmith.errors import ObjectiveInputError

SIZES = {"num_classes": 3, "embedding_dim": 4}
WITHOUT_MARGIN = {
    "soft_triple": {"centers_per_class": 2, "margin": 0.0, "scale": 7.0, "gamma": 0.3},
    "proxy_nca": {"scale": 1.7},
    "normalized_softmax": {"temperature": 0.3},
    "cosface": {"margin": 0.0, "scale": 5.0},
    "arcface": {"margin": 0.0, "scale": 5.0},
}


def rows(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 2])


@pytest.mark.parametrize("name", WITHOUT_MARGIN)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_without_margin_is_the_nll_of_the_softmax_of_its_scores(name, normalize):
    embeddings, labels = rows()
    metric = lossmith.loss(name, **SIZES, **WITHOUT_MARGIN[name], normalize=normalize).double()
    nll = -torch.log_softmax(metric.class_scores(embeddings), -1)[torch.arange(7), labels]
    assert_close(nll, metric(embeddings, labels, reduction="none"))


@pytest.mark.parametrize("name", ["soft_triple", "cosface", "arcface", "proxy_anchor"])
def test_the_margin_of_training_does_not_enter_the_scores(name):
    embeddings, _ = rows()
    plain, wide = (lossmith.loss(name, **SIZES, margin=margin).double() for margin in (0.0, 0.3))
    wide.load_state_dict(plain.state_dict())
    assert_close(plain.class_scores(embeddings), wide.class_scores(embeddings))


def test_the_scores_of_proxy_anchor_are_its_scaled_cosines():
    embeddings, _ = rows()
    metric = lossmith.loss("proxy_anchor", **SIZES, alpha=3.0).double()
    scores = metric.class_scores(embeddings)
    for i, x in enumerate(embeddings.tolist()):
        for c, w in enumerate(metric.proxies.tolist()):
            cosine = sum(a * b for a, b in zip(x, w, strict=True)) / (math.hypot(*x) * math.hypot(*w))
            assert scores[i, c].item() == pytest.approx(3.0 * cosine)


def test_proxy_nca_scores_the_nearer_proxy_higher():
    metric = lossmith.loss("proxy_nca", num_classes=2, embedding_dim=2)
    metric.proxies.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = metric.class_scores(torch.tensor([[0.9, 0.1]]))
    assert scores[0, 0] > scores[0, 1]


def test_a_loss_without_proxies_says_what_to_take_and_another_width_is_refused():
    assert not lossmith.loss("supcon").scores_classes
    with pytest.raises(ObjectiveInputError, match=r"'supcon' owns no proxies.*mean embedding"):
        lossmith.loss("supcon").class_scores(rows()[0])
    with pytest.raises(ObjectiveInputError, match=r"dim 4 but the proxies.*`embedding_dim` 5"):
        lossmith.loss("proxy_nca", num_classes=3, embedding_dim=5).class_scores(rows()[0].float())


def test_half_precision_embeddings_are_scored_in_float32():
    metric = lossmith.loss("soft_triple", **SIZES)
    assert metric.class_scores(rows()[0].bfloat16()).dtype == torch.float32


def joint_inputs():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, generator=generator, requires_grad=True)
    tokens = torch.randn(10, 4, generator=generator, requires_grad=True)
    labels = torch.tensor([1, 2])
    of_tokens = torch.tensor([-100, 1, 1, 1, -100, -100, 2, 2, -100, -100])
    return logits, tokens, labels, of_tokens


def test_embeddings_may_have_labels_of_their_own():
    logits, tokens, labels, of_tokens = joint_inputs()
    torch.manual_seed(0)
    joint = lossmith.loss("0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)", **SIZES)
    value = joint(logits=logits, embeddings=tokens, labels=labels, embedding_labels=of_tokens)
    metric, keep = joint.terms[1], of_tokens != -100
    by_hand = 0.4 * joint.terms[0](logits, labels) + 0.6 * metric(tokens[keep], of_tokens[keep])
    assert_close(value, by_hand)
    value.backward()
    assert bool((tokens.grad[~keep] == 0).all())
    assert bool((tokens.grad[keep] != 0).any(1).all())
    parts = joint.breakdown(logits=logits, embeddings=tokens, labels=labels, embedding_labels=of_tokens)
    assert_close(torch.stack(list(parts.values())).sum(), value)


def test_labels_of_embeddings_are_refused_where_nothing_reads_them():
    logits, _, labels, of_tokens = joint_inputs()
    with pytest.raises(ObjectiveInputError, match="`embedding_labels` must be left out"):
        lossmith.loss("cross_entropy + focal")(logits, labels, embedding_labels=of_tokens)
