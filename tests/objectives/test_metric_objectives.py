"""Metric objectives against scalar loops, their relations and known values, and what their records say."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import oracles_metric as oracle
from lossmith.objectives import (
    arcface_loss,
    circle_loss,
    contrastive_loss,
    cosface_loss,
    get_record,
    list_losses,
    multi_similarity_loss,
    n_pairs_loss,
    normalized_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    soft_triple_loss,
)
from metric_inputs import (
    CLASSES,
    DIM,
    EVERY,
    LABELS,
    ON_PROXIES,
    ON_ROWS,
    RECORDS,
    embeddings,
    losses_of,
    proxies,
    statistics,
)
from scalar_oracles import finite_difference

SETTINGS = [
    ("soft_triple", {"scale": 7.0, "gamma": 0.4, "margin": 0.2, "normalize": False}),
    ("proxy_anchor", {"alpha": 5.0, "margin": -0.2}),
    ("proxy_anchor", {"alpha": 1.5, "normalize": False}),
    ("proxy_nca", {"scale": 3.0}),
    ("proxy_nca", {"normalize": False}),
    ("arcface", {"margin": 75.0, "scale": 4.0}),
    ("arcface", {"margin": 40.0, "scale": 2.0, "normalize": False}),
    ("cosface", {"margin": 0.1, "scale": 5.0}),
    ("cosface", {"scale": 3.0, "normalize": False}),
    ("normalized_softmax", {"temperature": 0.5}),
    ("normalized_softmax", {"temperature": 2.0, "normalize": False}),
    ("supcon", {"temperature": 0.5}),
    ("nt_xent", {"temperature": 0.4}),
    ("nca", {"scale": 2.5}),
    ("n_pairs", {"normalize": True}),
    ("contrastive", {"pos_margin": 0.6, "neg_margin": 1.4}),
    ("triplet_margin", {"margin": 0.5}),
    ("multi_similarity", {"alpha": 3.0, "beta": 8.0, "base": 0.2}),
    ("circle", {"margin": 0.25, "gamma": 6.0}),
    ("lifted_structure", {"neg_margin": 0.7, "pos_margin": 1.2}),
]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in EVERY), *SETTINGS])
def test_values_and_gradients_are_the_oracles(name: str, settings: dict[str, Any]) -> None:
    rows = embeddings().requires_grad_()
    owned = proxies(name).requires_grad_() if name in ON_PROXIES else None
    fixed = () if owned is None else (owned.tolist(),)
    loop = getattr(oracle, name)
    losses = losses_of(name, rows, owned=owned, **settings)
    expected = loop(rows.tolist(), LABELS, *fixed, **settings)
    assert_close(losses.reshape(-1), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)

    weights = [0.3 + 0.1 * k for k in range(len(expected))]

    def total(moved: list[list[float]], **extra: Any) -> float:
        items = loop(moved, LABELS, *fixed, **settings, **extra)
        return math.fsum(w * v for w, v in zip(weights, items, strict=True))

    held = {"held": rows.tolist()} if name == "circle" else {}
    slopes = finite_difference(lambda moved: total(moved, **held), rows.tolist())
    weighted = (losses.reshape(-1) * torch.tensor(weights, dtype=torch.float64)).sum()
    leaves = [rows] if owned is None else [rows, owned]
    found = torch.autograd.grad(weighted, leaves)
    assert_close(found[0], torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert bool((found[0] != 0).any())

    if owned is not None:
        shape = owned.shape

        def moved_proxies(flat: list[list[float]]) -> float:
            nested = torch.tensor(flat, dtype=torch.float64).reshape(shape).tolist()
            items = loop(rows.tolist(), LABELS, nested, **settings)
            return math.fsum(w * v for w, v in zip(weights, items, strict=True))

        slopes = finite_difference(moved_proxies, owned.reshape(-1, DIM).tolist())
        assert_close(found[1].reshape(-1, DIM), torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_no_metric_objective_is_without_an_oracle() -> None:
    ours = [r.name for r in list_losses("metric") if r.function.__module__.startswith("lossmith.")]
    assert sorted(EVERY) == sorted(ours)
    assert len(EVERY) == 15


# What the records say: it decides what a module hands over and divides by.


def test_records() -> None:
    by_name = {record.name: record for record in RECORDS}
    assert {n for n, r in by_name.items() if r.row_local} == {
        "supcon", "nt_xent", "multi_similarity", "circle", "nca", "triplet_margin"
    }  # fmt: skip
    assert {n for n, r in by_name.items() if r.needs_positives} == {"supcon", "circle", "nca"}
    assert {n for n, r in by_name.items() if r.item == "batch"} == {"proxy_anchor", "contrastive"}
    assert {n for n, r in by_name.items() if r.item == "pair"} == {"nt_xent", "n_pairs", "lifted_structure"}
    assert {n for n, r in by_name.items() if r.item == "triplet"} == {"triplet_margin"}
    assert {n for n, r in by_name.items() if r.batch_coupled} == {*ON_ROWS, "proxy_anchor"}
    for name, record in by_name.items():
        assert record.hyperparameters["normalize"] is (name != "n_pairs")
        assert ("normalize" in record.module_hyperparameters) == (name in ON_ROWS and name != "n_pairs")
        if name in ON_PROXIES and name != "soft_triple":
            assert record.proxy_shape == ("num_classes", "embedding_dim")


@pytest.mark.parametrize("name", [r.name for r in RECORDS if r.row_local])
def test_rows_can_come_in_chunks(name: str) -> None:
    record = get_record(name)
    read = statistics(embeddings(), torch.tensor(LABELS))
    whole = record.function(*[read[part] for part in record.reads])
    parts = [record.function(*[read[part][rows] for part in record.reads]) for rows in torch.arange(8).split(3)]
    assert_close(torch.cat(parts), whole, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in ON_ROWS if name not in ("n_pairs", "lifted_structure")])
def test_candidates_may_be_more_than_the_anchors(name: str) -> None:
    """Two anchors against the whole batch: their own losses of the whole batch."""
    record = get_record(name)
    read = statistics(embeddings(), torch.tensor(LABELS))
    part = {key: value[:2] for key, value in read.items()}
    losses = record.function(*[part[key] for key in record.reads])
    loop = getattr(oracle, name)
    if name == "contrastive":
        d = oracle.distance(embeddings().tolist(), True)
        pulls = [d(i, p) for i, p in oracle.pairs(LABELS) if i < 2]
        pushes = [1 - d(i, n) for i in range(2) for n in oracle.negatives(LABELS, i) if d(i, n) < 1]
        expected = [oracle.mean(pulls) + oracle.mean(pushes)]
    else:
        counts = {
            "anchor": 2,
            "pair": sum(i < 2 for i, _ in oracle.pairs(LABELS)),
            "triplet": sum(
                d > 0
                for d in (
                    float(read["distances"][i, p] - read["distances"][i, n] + 0.05)
                    for i, p in oracle.pairs(LABELS)
                    if i < 2
                    for n in oracle.negatives(LABELS, i)
                )
            ),
        }
        expected = loop(embeddings().tolist(), LABELS)[: counts[record.item]]
    assert_close(losses.reshape(-1), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("active", [1, 2, 3])
def test_contrastive_divides_each_side_by_its_own_number_of_active_pairs(active: int) -> None:
    """One row against four candidates, so that a single pair can be active: it is divided by 1."""
    far = [0.9, 0.7, 0.8]
    near = torch.tensor([[0.25, *far[:active], *[1.5] * (3 - active)]], dtype=torch.float64)
    same = torch.tensor([[True, False, False, False]])
    assert_close(contrastive_loss(near, same, ~same).item(), 0.25 + oracle.mean([1 - d for d in far[:active]]))
    pulled = torch.tensor([[1.25, *far[:active], *[0.0] * (3 - active)]], dtype=torch.float64)
    assert_close(contrastive_loss(pulled, ~same, same).item(), oracle.mean(far[:active]))


# Relations that the docstrings state.

TWO_EACH = [0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_with_two_rows_per_class_nt_xent_and_nca_are_supcon(temperature: float) -> None:
    rows = embeddings(6)
    expected = losses_of("supcon", rows, TWO_EACH, temperature=temperature)
    assert_close(losses_of("nt_xent", rows, TWO_EACH, temperature=temperature), expected, rtol=1e-12, atol=1e-14)
    assert_close(losses_of("nca", rows, TWO_EACH, scale=0.5 / temperature), expected, rtol=1e-12, atol=1e-13)


def test_with_three_rows_per_class_they_differ() -> None:
    rows, labels = embeddings(6), [0, 0, 0, 1, 1, 1]
    supcon = losses_of("supcon", rows, labels, temperature=0.5).mean()
    assert abs(float(losses_of("nt_xent", rows, labels, temperature=0.5).mean() - supcon)) > 0.1
    assert abs(float(losses_of("nca", rows, labels, scale=1.0).mean() - supcon)) > 0.1


@pytest.mark.parametrize("normalize", [True, False])
def test_margin_softmaxes_at_margin_zero_are_normalized_softmax(normalize: bool) -> None:
    given = embeddings(), torch.tensor(LABELS), proxies()
    expected = normalized_softmax_loss(*given, temperature=0.125, normalize=normalize)
    for function in (cosface_loss, arcface_loss):
        assert_close(function(*given, margin=0.0, scale=8.0, normalize=normalize), expected, rtol=1e-12, atol=1e-14)
    one_centre = given[0], given[1], given[2][:, None]
    losses = soft_triple_loss(*one_centre, margin=0.0, scale=8.0, normalize=normalize)
    assert_close(losses, expected, rtol=1e-12, atol=1e-14)


def test_soft_triple_with_one_centre_is_cosface() -> None:
    rows, labels, owned = embeddings(), torch.tensor(LABELS), proxies()
    losses = soft_triple_loss(rows, labels, owned[:, None], scale=9.0, margin=0.3, gamma=0.2)
    assert_close(losses, cosface_loss(rows, labels, owned, scale=9.0, margin=0.3), rtol=1e-12, atol=1e-14)


def test_proxy_nca_is_normalized_softmax_at_half_the_inverse_scale() -> None:
    given = embeddings(), torch.tensor(LABELS), proxies()
    expected = normalized_softmax_loss(*given, temperature=1 / 6.0)
    assert_close(proxy_nca_loss(*given, scale=3.0), expected, rtol=1e-12, atol=1e-14)


def test_normalized_softmax_without_normalisation_is_a_linear_head() -> None:
    rows, labels, owned = embeddings(), torch.tensor(LABELS), proxies()
    expected = F.cross_entropy(rows @ owned.T, labels, reduction="none")
    losses = normalized_softmax_loss(rows, labels, owned, temperature=1.0, normalize=False)
    assert_close(losses, expected, rtol=1e-12, atol=1e-14)


def test_proxy_anchor_at_margin_zero_is_multi_similarity_of_the_proxies() -> None:
    rows, labels, owned = embeddings(), torch.tensor(LABELS), proxies()
    similarities = F.normalize(owned, dim=-1) @ F.normalize(rows, dim=-1).T
    same = torch.arange(CLASSES)[:, None] == labels
    losses = multi_similarity_loss(similarities, same, ~same, alpha=6.0, beta=6.0, base=0.0)
    assert_close(proxy_anchor_loss(rows, labels, owned, alpha=6.0, margin=0.0), 6 * losses.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_n_pairs_is_a_softmax_with_the_partners_as_proxies(normalize: bool) -> None:
    rows = embeddings()
    losses = n_pairs_loss(rows, torch.tensor(LABELS), normalize=normalize)
    first, second = rows[[1, 3, 0]], rows[[4, 6, 2]]
    expected = normalized_softmax_loss(first, torch.arange(3), second, temperature=1.0, normalize=normalize)
    assert_close(losses, expected, rtol=1e-12, atol=1e-14)


def test_n_pairs_leaves_third_rows_and_lone_rows_alone() -> None:
    rows = embeddings().requires_grad_()
    (slopes,) = torch.autograd.grad(n_pairs_loss(rows, torch.tensor(LABELS)).sum(), rows)
    assert [bool((row != 0).any()) for row in slopes] == [True, True, True, True, True, False, True, False]


def test_steep_multi_similarity_is_two_hinges_on_the_hardest() -> None:
    read = statistics(embeddings(), torch.tensor(LABELS))
    s, same, different = read["similarities"], read["same"], read["different"]
    losses = multi_similarity_loss(s, same, different, alpha=1e6, beta=1e6, base=0.1)
    least = s.masked_fill(~same, math.inf).min(-1).values
    largest = s.masked_fill(~different, -math.inf).max(-1).values
    assert_close(losses, F.relu(0.1 - least) + F.relu(largest - 0.1), rtol=0, atol=1e-5)


def test_only_the_difference_of_lifted_structures_margins_counts() -> None:
    rows = embeddings()
    one = losses_of("lifted_structure", rows, neg_margin=0.9, pos_margin=0.4)
    assert_close(losses_of("lifted_structure", rows, neg_margin=0.5, pos_margin=0.0), one, rtol=1e-12, atol=1e-14)


def test_both_orders_of_a_lifted_pair_are_equal() -> None:
    losses = losses_of("lifted_structure", embeddings())
    order = oracle.pairs(LABELS)
    back = [order.index((p, i)) for i, p in order]
    assert_close(losses[back], losses, rtol=1e-13, atol=0)


# Known values.


def test_known_values_where_all_embeddings_coincide() -> None:
    rows = torch.ones(8, DIM, dtype=torch.float64)
    alike = torch.ones(CLASSES, DIM, dtype=torch.float64)
    negatives = [len(oracle.negatives(LABELS, i)) for i, _ in oracle.pairs(LABELS)]
    expected: dict[str, list[float]] = {
        "supcon": [math.log(7)] * 7 + [0.0],
        "nt_xent": [math.log(1 + n) for n in negatives],
        "nca": [math.log(7 / (LABELS.count(y) - 1)) for y in LABELS[:7]] + [0.0],
        "n_pairs": [math.log(3)] * 3,
        "contrastive": [1.0],
        "triplet_margin": [0.05] * sum(negatives),
        "lifted_structure": [(math.log(2 * n) + 1) ** 2 / 2 for n in negatives],
    }
    for name, values in expected.items():
        losses = losses_of(name, rows).reshape(-1)
        assert_close(losses, torch.tensor(values, dtype=torch.float64), rtol=1e-13, atol=0)
    labels = torch.tensor(LABELS)
    quarter = torch.full((8,), math.log(4), dtype=torch.float64)
    assert_close(proxy_nca_loss(rows, labels, alike), quarter, rtol=1e-13, atol=0)
    assert_close(normalized_softmax_loss(rows, labels, alike), quarter, rtol=1e-13, atol=0)
    assert_close(arcface_loss(rows, labels, alike, margin=0.0), quarter, rtol=1e-13, atol=0)
    assert_close(soft_triple_loss(rows, labels, alike[:, None], margin=0.0), quarter, rtol=1e-13, atol=0)
    two = cosface_loss(rows[:2], torch.tensor([0, 1]), alike[:2])
    assert_close(two, torch.full((2,), math.log1p(math.exp(22.4)), dtype=torch.float64), rtol=1e-13, atol=0)


def test_known_values_of_the_soft_margins() -> None:
    pair = torch.tensor([[False, True, False]]), torch.tensor([[False, False, True]])
    level = torch.tensor([[0.9, 0.6, 0.4]], dtype=torch.float64)
    assert_close(circle_loss(level, *pair).item(), math.log(2), rtol=1e-12, atol=0)
    middle = torch.full((1, 3), 0.5, dtype=torch.float64)
    assert_close(multi_similarity_loss(middle, *pair).item(), math.log(2) * (1 / 2 + 1 / 50), rtol=1e-12, atol=0)
    rows, owned = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[0, 1.0, 0], [0, 0, 1.0]])
    loss = proxy_anchor_loss(rows, torch.tensor([0, 1]), owned, margin=0.0)
    assert_close(loss.item(), 2 * math.log(2), rtol=1e-6, atol=0)
