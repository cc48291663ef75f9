"""Sums: the weighted terms, their scopes, inputs, divisors and keyword routing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from library import DIM, build, gradients, labels_for, scores_for
from lossmith import ObjectiveInputError
from lossmith.nn import LossModule, TokenLoss, WeightedSum

# Asked for on purpose here: a number of items that is not that of the batch.
pytestmark = pytest.mark.filterwarnings("ignore:.*several micro-batches are not one batch")


def _terms(module: LossModule) -> list[LossModule]:
    assert isinstance(module, WeightedSum)
    return [term for term in module.terms if isinstance(term, LossModule)]


def _logits(*shape: int) -> Tensor:
    return scores_for(build("focal"), *shape)


def _embeddings(rows: int) -> Tensor:
    return scores_for(build("supcon"), rows)


def test_a_sum_is_its_weighted_terms() -> None:
    module = build("0.6*cross_entropy - 1.5*lovasz + focal(gamma=3)/4")
    logits, labels = _logits(9), labels_for(9)
    labels[[2, 5]] = -100
    one, two, three = (build(name)(logits, labels) for name in ("cross_entropy", "lovasz_softmax", "focal(gamma=3)"))
    value = module(logits, labels)
    assert_close(value, 0.6 * one - 1.5 * two + 0.25 * three, rtol=1e-13, atol=0)
    wanted = torch.autograd.grad(0.6 * one - 1.5 * two + 0.25 * three, logits)[0]
    assert_close(torch.autograd.grad(value, logits)[0], wanted, rtol=1e-12, atol=1e-16)
    assert_close(module(labels=labels, logits=logits), value)
    assert module.items == ("token", "region")
    assert module.batch_coupled
    assert not build("cross_entropy + focal").batch_coupled


def test_one_term_of_weight_one_is_the_loss_itself() -> None:
    assert isinstance(lossmith.loss("1*focal"), TokenLoss)
    doubled = build("2*focal")
    assert isinstance(doubled, WeightedSum)
    logits, labels = _logits(4), labels_for(4)
    assert_close(doubled(logits, labels), 2 * build("focal")(logits, labels))
    assert_close(doubled(logits, labels, reduction="none"), 2 * build("focal")(logits, labels, reduction="none"))
    assert_close(build("-focal")(logits, labels), -build("focal")(logits, labels))


def test_a_term_on_a_scope_of_the_labels() -> None:
    module = build("0.6*cross_entropy + 0.4*lovasz_softmax[answer] + focal[thought]")
    logits, labels = _logits(2, 6), labels_for(2, 6)
    labels[0, 0] = -100
    answer = torch.zeros(2, 6, dtype=torch.bool)
    answer[:, 3:] = True
    value = module(logits, labels, scopes={"answer": answer, "thought": ~answer})
    by_hand = (
        0.6 * build("cross_entropy")(logits, labels)
        + 0.4 * build("lovasz_softmax")(logits[answer], labels[answer])
        + build("focal")(logits[~answer], labels[~answer])
    )
    assert_close(value, by_hand, rtol=1e-13, atol=0)
    alone = build("focal[answer]")
    assert_close(alone(logits, labels, scopes={"answer": answer}), build("focal")(logits[answer], labels[answer]))
    nothing = alone(logits, labels, scopes={"answer": torch.zeros_like(answer)})
    assert nothing.item() == 0
    assert not bool(torch.autograd.grad(nothing, logits)[0].any())


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        (None, r"^`scopes` must hold \['answer'\]: 'focal\[answer\]' names them, got \[\].$"),
        ({"answr": torch.ones(4, dtype=torch.bool)}, r"^`scopes` must hold \['answer'\]"),
        (
            {"answer": torch.ones(4, dtype=torch.bool), "x": torch.ones(4, dtype=torch.bool)},
            r"^`scopes` holds \['x'\], which no term of 'focal\[answer\]' names.$",
        ),
        ({"answer": torch.ones(4)}, r"^Scope 'answer' must be a bool tensor of the shape of `labels`, \(4,\), got"),
        ({"answer": torch.ones(1, dtype=torch.bool)}, r"^Scope 'answer' must be a bool tensor of the shape of"),
    ],
)
def test_scopes_that_do_not_fit(scopes, message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        build("focal[answer]")(_logits(4), labels_for(4), scopes=scopes)


def test_a_joint_sum_is_called_with_keywords() -> None:
    module = build("0.4*cross_entropy + 0.6*soft_triple + 0.1*supcon")
    assert module.inputs == ("logits", "embeddings", "labels")
    logits, embeddings, labels = _logits(6), _embeddings(6), torch.arange(6) % 3
    value = module(logits=logits, embeddings=embeddings, labels=labels)
    first, second, third = _terms(module)
    by_hand = 0.4 * first(logits, labels) + 0.6 * second(embeddings, labels) + 0.1 * third(embeddings, labels)
    assert_close(value, by_hand, rtol=1e-13, atol=0)
    assert [tuple(p.shape) for p in module.parameters()] == [(3, 10, DIM)]
    nothing = module(logits=logits, embeddings=embeddings, labels=torch.full((6,), -100))
    assert nothing.item() == 0
    assert not any(bool(slope.any()) for slope in gradients(nothing, module, logits, embeddings))
    with pytest.raises(ObjectiveInputError, match=r"must be called with keywords: `logits`, `embeddings`, `labels`.$"):
        module(logits, embeddings, labels)
    with pytest.raises(ObjectiveInputError, match=r"also needs `embeddings`.$"):
        module(logits=logits, labels=labels)
    with pytest.raises(ObjectiveInputError, match=r"has no input `logit`. Did you mean 'logits'\? It reads `logits`"):
        module(logit=logits, embeddings=embeddings, labels=labels)
    with pytest.raises(ObjectiveInputError, match=r"^`logits` is given twice, by position and by keyword.$"):
        build("focal + cross_entropy")(logits, logits=logits, labels=labels)


def test_divisors_of_mixed_kinds() -> None:
    module = build("0.6*cross_entropy + 0.4*lovasz_softmax")
    logits, labels = _logits(8), labels_for(8)
    sums = [term(logits, labels, reduction="sum") for term in _terms(module)]
    got = module(logits, labels, num_items={"token": 40, "region": torch.tensor(5)})
    assert_close(got, 0.6 * sums[0] / 40 + 0.4 * sums[1] / 5)
    for number in (40, torch.tensor(40)):
        with pytest.raises(
            ObjectiveInputError, match=r"^`num_items` must be a dict by kind of item here \(token, region\)"
        ):
            module(logits, labels, num_items=number)
    with pytest.raises(
        ObjectiveInputError, match=r"^`num_items` names \['anchor'\], but the terms count token, region.$"
    ):
        module(logits, labels, num_items={"token": 4, "region": 1, "anchor": 2})
    with pytest.raises(
        ObjectiveInputError, match=r"^`num_items` lacks \['region'\], but the terms count token, region.$"
    ):
        module(logits, labels, num_items={"token": 4})
    with pytest.raises(
        ObjectiveInputError, match=r"reduction 'none' needs one kind of item, this sum mixes token, region"
    ):
        module(logits, labels, reduction="none")
    same = build("cross_entropy + focal")
    assert_close(same(logits, labels, num_items=40), same(logits, labels, reduction="sum") / 40)
    assert_close(same(logits, labels, num_items={"token": 40}), same(logits, labels, reduction="sum") / 40)


def test_a_scoped_term_divides_by_the_items_of_its_scope() -> None:
    """One count for both would shrink the scoped term under accumulation: k micro-batches would not be one batch."""
    module = build("cross_entropy + 0.5*focal[answer]")
    logits, labels = _logits(12), labels_for(12)
    answer = torch.arange(12) % 3 == 0
    whole = module(logits, labels, scopes={"answer": answer})
    counts = {"token": 12, "token[answer]": 4}
    parts = [
        module(logits[rows], labels[rows], scopes={"answer": answer[rows]}, num_items=counts)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=0)
    with pytest.raises(
        ObjectiveInputError, match=r"must be a dict by kind of item here \(token, token\[answer\]\), got 12"
    ):
        module(logits, labels, scopes={"answer": answer}, num_items=12)
    alone = build("2*focal[answer]")
    assert_close(
        alone(logits, labels, scopes={"answer": answer}, num_items=8),
        alone(logits, labels, scopes={"answer": answer}) / 2,
    )


def test_accumulation_of_a_sum() -> None:
    module = build("0.4*cross_entropy(label_smoothing=0.1) + 0.6*soft_triple")
    logits, embeddings, labels = _logits(12), _embeddings(12), labels_for(12)
    labels[[0, 1, 2, 3, 9]] = -100
    whole = module(logits=logits, embeddings=embeddings, labels=labels)
    parts = [
        module(logits=logits[r], embeddings=embeddings[r], labels=labels[r], num_items={"token": 7, "anchor": 7})
        for r in (slice(0, 4), slice(4, 5), slice(5, 12))
    ]
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    wanted = gradients(whole, module, logits, embeddings)
    for got, slope in zip(gradients(torch.stack(parts).sum(), module, logits, embeddings), wanted, strict=True):
        assert_close(got, slope, rtol=1e-12, atol=1e-15)


def test_weights_reach_the_terms_they_are_for() -> None:
    module = build("0.6*cross_entropy + 0.4*lovasz_softmax")
    logits, labels = _logits(5), labels_for(5)
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0, 0.5], dtype=torch.float64)
    tokens, regions = _terms(module)
    mixed = module(logits, labels, weights=weights)
    assert_close(mixed, 0.6 * tokens(logits, labels, weights=weights) + 0.4 * regions(logits, labels))
    by_kind = {"token": weights, "region": torch.tensor([3.0])}
    got = module(logits, labels, weights=by_kind, num_items={"token": 10, "region": 2})
    by_hand = (
        0.6 * (weights * tokens(logits, labels, reduction="none")).sum() / 10 + 0.4 * 3 * regions(logits, labels) / 2
    )
    assert_close(got, by_hand)
    same = build("cross_entropy + focal")
    assert_close(same(logits, labels, weights=weights), sum(t(logits, labels, weights=weights) for t in _terms(same)))
    with pytest.raises(
        ObjectiveInputError, match=r"^`weights` names \['anchor'\], but the terms count token, region.$"
    ):
        module(logits, labels, weights={"anchor": weights})
    no_tokens = build("lovasz_softmax + soft_triple")
    with pytest.raises(
        ObjectiveInputError, match=r"^`weights` must be a dict by kind of item here \(region, anchor\).$"
    ):
        no_tokens(logits=logits, embeddings=_embeddings(5), labels=labels, weights=weights)


def test_keywords_go_to_the_term_that_declares_them() -> None:
    assert str(lossmith.loss("focal + cross_entropy", gamma=1, label_smoothing=0.1)) == (
        "focal(gamma=1.0) + cross_entropy(label_smoothing=0.1)"
    )
    assert str(lossmith.loss("focal", gamma=2.0)) == "focal"
    sizes = {"num_classes": 4, "embedding_dim": 5}
    both = lossmith.loss("soft_triple + 2*soft_triple(margin=0.5)", **sizes)
    assert [tuple(p.shape) for p in both.parameters()] == [(4, 10, 5)] * 2
    regions = lossmith.loss("lovasz_softmax + 0.5*cross_entropy", region="sequence")
    logits, labels = _logits(3, 4), labels_for(3, 4)
    assert_close(
        regions(logits, labels),
        build("lovasz_softmax", region="sequence")(logits, labels) + 0.5 * build("cross_entropy")(logits, labels),
    )


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            "focal + soft_triple",
            {"gamma": 1.0, "num_classes": 3, "embedding_dim": 4},
            "`gamma` is a hyper-parameter of 'focal', 'soft_triple': write it inside the string, as in "
            '"focal(gamma=1.0)".',
        ),
        ("focal(gamma=1)", {"gamma": 3.0}, "`gamma` of 'focal' is given in the string and as a keyword."),
        ("focal", {"gama": 3.0}, "'focal' has no hyper-parameter `gama`. Did you mean 'gamma'? It takes `gamma`."),
        ("focal", {"temperature": 3.0}, "'focal' has no hyper-parameter `temperature`. It takes `gamma`."),
        ("focal", {"num_classes": 3}, "'focal' has no hyper-parameter `num_classes`. It takes `gamma`."),
        ("focal", {"region": "sequence"}, "'focal' has no hyper-parameter `region`. It takes `gamma`."),
        (
            "0.5*cross_entropy + focal",
            {"margin": 3.0},
            "'0.5*cross_entropy + focal' has no hyper-parameter `margin`. It takes `gamma`, `label_smoothing`.",
        ),
        ("focal", {"gamma": "2"}, "`gamma` must be of type float, got '2'."),
        ("focal(gamma=-1)", {}, "`gamma` must be >= 0, got -1.0."),
    ],
)
def test_a_keyword_that_cannot_be_placed(text: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        lossmith.loss(text, **given)
    assert str(caught.value) == message


def test_a_default_given_in_the_string_counts_as_given() -> None:
    with pytest.raises(ObjectiveInputError, match=r"^`gamma` of 'focal' is given in the string and as a keyword.$"):
        lossmith.loss("focal(gamma=2)", gamma=3.0)


def test_losses_are_built_from_many_threads() -> None:
    texts = [f"{weight}*focal(gamma={gamma}.5) + 0.25*soft_triple" for weight in (2, 3) for gamma in range(10)]
    logits, embeddings, labels = _logits(4).detach(), _embeddings(4).detach(), torch.tensor([0, 1, 2, 0])

    def one(text: str) -> tuple[str, float]:
        module = lossmith.loss(text, num_classes=3, embedding_dim=DIM).double()
        module.get_parameter("terms.1.proxies").data.fill_(0.1)
        return str(module), module(logits=logits, embeddings=embeddings, labels=labels).item()

    alone = [one(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, texts)) == alone
    assert [text for text, _ in alone] == texts
    assert len({value for _, value in alone}) == len(texts)
