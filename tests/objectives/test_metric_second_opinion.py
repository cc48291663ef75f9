"""A second opinion on the metric objectives: pytorch-metric-learning, values and gradients, on its own defaults too."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossmith.objectives import get_record

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CLASSES, DIM = 4, 5
LABELS = torch.tensor([1, 0, 3, 1, 0, 0, 2, 3, 1, 0, 3])
"""Class 2 has one row."""

SIZES = {"num_classes": CLASSES, "embedding_size": DIM}
CASES: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
    ("soft_triple", {}, lambda: losses.SoftTripleLoss(**SIZES, centers_per_class=3)),
    (
        "soft_triple",
        {"scale": 9.0, "gamma": 0.3, "margin": 0.2},
        lambda: losses.SoftTripleLoss(**SIZES, centers_per_class=3, la=9, gamma=0.3, margin=0.2),
    ),
    ("proxy_anchor", {}, lambda: losses.ProxyAnchorLoss(**SIZES)),
    ("proxy_anchor", {"alpha": 6.0, "margin": 0.3}, lambda: losses.ProxyAnchorLoss(**SIZES, alpha=6, margin=0.3)),
    ("proxy_nca", {}, lambda: losses.ProxyNCALoss(**SIZES)),
    ("proxy_nca", {"scale": 4.0}, lambda: losses.ProxyNCALoss(**SIZES, softmax_scale=4)),
    ("arcface", {}, lambda: losses.ArcFaceLoss(**SIZES)),
    ("arcface", {"margin": 80.0, "scale": 3.0}, lambda: losses.ArcFaceLoss(**SIZES, margin=80, scale=3)),
    ("cosface", {}, lambda: losses.CosFaceLoss(**SIZES)),
    ("cosface", {"margin": 0.1, "scale": 7.0}, lambda: losses.CosFaceLoss(**SIZES, margin=0.1, scale=7)),
    ("normalized_softmax", {}, lambda: losses.NormalizedSoftmaxLoss(**SIZES)),
    ("normalized_softmax", {"temperature": 0.6}, lambda: losses.NormalizedSoftmaxLoss(**SIZES, temperature=0.6)),
    ("supcon", {}, lambda: losses.SupConLoss()),
    ("supcon", {"temperature": 0.4}, lambda: losses.SupConLoss(temperature=0.4)),
    ("nt_xent", {}, lambda: losses.NTXentLoss()),
    ("nt_xent", {"temperature": 0.4}, lambda: losses.NTXentLoss(temperature=0.4)),
    ("nca", {}, lambda: losses.NCALoss()),
    ("nca", {"scale": 5.0}, lambda: losses.NCALoss(softmax_scale=5)),
    ("n_pairs", {"normalize": True}, lambda: losses.NPairsLoss()),
    ("n_pairs", {}, lambda: losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))),
    ("contrastive", {}, lambda: losses.ContrastiveLoss()),
    (
        "contrastive",
        {"pos_margin": 0.8, "neg_margin": 1.5},
        lambda: losses.ContrastiveLoss(pos_margin=0.8, neg_margin=1.5),
    ),
    ("triplet_margin", {}, lambda: losses.TripletMarginLoss()),
    ("triplet_margin", {"margin": 0.6}, lambda: losses.TripletMarginLoss(margin=0.6)),
    ("multi_similarity", {}, lambda: losses.MultiSimilarityLoss()),
    (
        "multi_similarity",
        {"alpha": 5.0, "beta": 11.0, "base": 0.1},
        lambda: losses.MultiSimilarityLoss(alpha=5, beta=11, base=0.1),
    ),
    ("circle", {}, lambda: losses.CircleLoss()),
    ("circle", {"margin": 0.25, "gamma": 7.0}, lambda: losses.CircleLoss(m=0.25, gamma=7)),
    ("lifted_structure", {}, lambda: losses.LiftedStructureLoss()),
    (
        "lifted_structure",
        {"neg_margin": 0.6, "pos_margin": 1.5},
        lambda: losses.LiftedStructureLoss(neg_margin=0.6, pos_margin=1.5),
    ),
]


def _embeddings(seed: int) -> Tensor:
    return torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _ours(name: str, rows: Tensor, proxies: Tensor | None, settings: dict[str, Any]) -> Tensor:
    record = get_record(name)
    points = torch.nn.functional.normalize(rows, dim=-1)
    equal = LABELS[:, None] == LABELS[None, :]
    itself = torch.eye(len(LABELS), dtype=torch.bool)
    apart = (points[:, None] - points[None, :]).square().sum(-1)
    read = {
        "embeddings": rows,
        "labels": LABELS,
        "proxies": proxies,
        "similarities": points @ points.T,
        "distances": apart.masked_fill(itself, 1.0).sqrt(),
        "same": equal & ~itself,
        "different": ~equal,
    }
    values = record.function(*[read[part] for part in record.reads], **settings)
    return values.sum() / 10 if record.needs_positives else values.mean()


def _theirs(name: str, module: Any, rows: Tensor, proxies: Tensor | None) -> Tensor:
    """Their loss with our proxies, whose layout differs from class to class."""
    if proxies is not None:
        layouts = {
            "soft_triple": ("fc", lambda: proxies.reshape(-1, DIM).T),
            "proxy_anchor": ("proxies", lambda: proxies),
            "proxy_nca": ("proxies", lambda: proxies),
        }
        attribute, layout = layouts.get(name, ("W", lambda: proxies.T))
        delattr(module, attribute)
        setattr(module, attribute, layout())
        # It moves the data of its own parameter; here the proxies have the right dtype already.
        module.cast_types = lambda dtype, device: None
    return module(rows, LABELS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "settings", "build"), CASES, ids=[f"{n}-{bool(s)}" for n, s, _ in CASES])
def test_same_value_and_gradients(name: str, settings: dict[str, Any], build: Callable[[], Any], seed: int) -> None:
    rows = _embeddings(seed).requires_grad_()
    leaves, proxies = [rows], None
    if get_record(name).proxy_shape:
        shape = (CLASSES, 3, DIM) if name == "soft_triple" else (CLASSES, DIM)
        generator = torch.Generator().manual_seed(90 + seed)
        proxies = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        leaves.append(proxies)
    ours = _ours(name, rows, proxies, settings)
    theirs = _theirs(name, build(), rows, proxies)
    assert_close(ours, theirs, rtol=1e-10, atol=0)
    for got, wanted in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert_close(got, wanted, rtol=1e-8, atol=1e-11)


def test_arcface_cases_reach_beyond_180_degrees() -> None:
    """Else the comparison would say nothing about the continuation."""
    generator = torch.Generator().manual_seed(90)
    proxies = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    cosines = torch.nn.functional.cosine_similarity(_embeddings(0), proxies[LABELS])
    assert bool((cosines.acos().rad2deg() > 100).any())


def test_every_metric_objective_of_theirs_is_compared() -> None:
    assert len({name for name, _, _ in CASES}) == 15


def test_where_they_differ_for_one_class_in_the_batch() -> None:
    """Their SupCon is 0 without negatives; ours, and the formula, still ask each row for all its positives alike."""
    rows = _embeddings(3)[:4]
    assert float(losses.SupConLoss()(rows, torch.zeros(4, dtype=torch.long))) == 0


def test_where_they_differ_for_a_hopeless_anchor() -> None:
    """Their NCA drops an anchor whose probability underflows to 0; here all four, and a mean of none is NaN."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3], [-1.0, 1e-3]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    assert losses.NCALoss(softmax_scale=1000)(rows, labels).isnan()
    points = torch.nn.functional.normalize(rows, dim=-1)
    equal = labels[:, None] == labels[None, :]
    d = (points[:, None] - points[None, :]).norm(dim=-1)
    values = get_record("nca").function(d, equal & ~torch.eye(4, dtype=torch.bool), ~equal, scale=1000.0)
    assert bool((values > 3900).all())
