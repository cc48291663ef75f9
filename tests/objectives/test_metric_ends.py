"""Metric objectives at the ends: batches that lack something, huge and equal scores, half precision, mistakes."""

import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import oracles_metric as oracle
from lossmith import ObjectiveInputError
from lossmith.objectives import (
    arcface_loss,
    contrastive_loss,
    get_record,
    lifted_structure_loss,
    nca_loss,
    normalized_softmax_loss,
    nt_xent_loss,
    supcon_loss,
    triplet_margin_loss,
)
from metric_inputs import (
    EVERY,
    LABELS,
    ON_PROXIES,
    ON_ROWS,
    embeddings,
    losses_of,
    mean_of,
    proxies,
    statistics,
)

# Batches that lack something: defined values, finite gradients, and the graph is kept.

LACKING = {
    "one class": [1, 1, 1],
    "no positives": [0, 1, 2],
    "one row": [3],
    "nothing": [],
}


@pytest.mark.parametrize("labels", LACKING.values(), ids=list(LACKING))
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_batch_that_lacks_something(name: str, labels: list[int], dtype: torch.dtype) -> None:
    rows = embeddings(len(labels)).to(dtype).requires_grad_()
    owned = proxies(name).to(dtype).requires_grad_() if name in ON_PROXIES else None
    classes = torch.tensor(labels, dtype=torch.long)
    losses = losses_of(name, rows, classes, owned)
    assert losses.dtype == dtype
    leaves = [rows] if owned is None else [rows, owned]
    slopes = torch.autograd.grad(losses.sum(), leaves)
    fixed = () if owned is None else (owned.tolist(),)
    expected = getattr(oracle, name)(rows.tolist(), labels, *fixed)
    exact = 1e-12 if dtype is torch.float64 else 1e-4
    assert_close(losses.reshape(-1), torch.tensor(expected, dtype=dtype), rtol=exact, atol=exact)
    for slope in slopes:
        assert bool(torch.isfinite(slope).all())
        if not labels:
            assert bool((slope == 0).all())
    without_negatives = ("nt_xent", "nca", "n_pairs", "triplet_margin", "circle", "lifted_structure")
    without_positives = (*without_negatives, "supcon")
    if (len(set(labels)) < 2 and name in without_negatives) or (labels == [0, 1, 2] and name in without_positives):
        assert bool((losses == 0).all())
        assert bool((slopes[0] == 0).all())
        assert not torch.signbit(losses).any()


def test_a_row_alone_in_its_class_neither_counts_nor_moves_as_an_anchor() -> None:
    """Its loss is 0 and its own similarities are not asked for; as a negative it still acts."""
    for name in ("supcon", "nca", "circle"):
        record = get_record(name)
        read = statistics(embeddings(), torch.tensor(LABELS))
        scores = read[record.reads[0]].clone().requires_grad_()
        losses = record.function(scores, read["same"], read["different"])
        (slopes,) = torch.autograd.grad(losses.sum(), scores)
        assert losses[7] == 0
        assert bool((slopes[7] == 0).all())
        assert bool((slopes[:7, 7] != 0).any())
        assert_close(mean_of(name, losses), losses[:7].mean())


@pytest.mark.parametrize("name", [name for name in ON_ROWS if name != "n_pairs"])
def test_a_row_is_never_compared_with_itself(name: str) -> None:
    record = get_record(name)
    read = statistics(embeddings(), torch.tensor(LABELS))
    before = record.function(*[read[part] for part in record.reads])
    scores = record.reads[0]
    read[scores] = read[scores] + torch.diag(torch.linspace(-40.0, 90.0, 8, dtype=torch.float64))
    assert torch.equal(record.function(*[read[part] for part in record.reads]), before)


def test_contrastive_leaves_out_pairs_within_their_margins() -> None:
    distances = torch.tensor([[0.0, 0.2, 0.7], [0.2, 0.0, 3.0], [0.7, 3.0, 0.0]], dtype=torch.float64)
    read = statistics(embeddings(3), torch.tensor([0, 0, 1]))
    # Positives are 0.2 apart, within 0.3; of the negatives only 0.7 violates, twice.
    loss = contrastive_loss(distances, read["same"], read["different"], pos_margin=0.3)
    assert_close(loss.item(), 0.3, rtol=1e-12, atol=0)


def test_triplets_come_in_order_and_only_where_they_violate() -> None:
    distances = torch.tensor([[0.0, 0.5, 0.4, 9.0], [0.5, 0.0, 0.3, 0.2]])
    same = torch.tensor([[False, True, False, False], [True, False, False, False]])
    different = torch.tensor([[False, False, True, True], [False, False, True, True]])
    losses = triplet_margin_loss(distances, same, different, margin=0.25)
    assert_close(losses, torch.tensor([0.35, 0.45, 0.55]))
    assert triplet_margin_loss(distances, same, different, margin=0.0).shape == (3,)
    # A gap of exactly 0 does not violate.
    level = torch.tensor([[0.0, 0.5, 0.5, 9.0]])
    assert triplet_margin_loss(level, same[:1], different[:1], margin=0.0).shape == (0,)


# The ends of the range.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("name", [n for n in ON_ROWS if get_record(n).reads[0] == "similarities"])
def test_huge_similarities_are_finite_with_the_right_sign(name: str, size: float, dtype: torch.dtype) -> None:
    """The positive far above (size > 0) or far below the negatives.

    Circle's weights are 0 on both sides where the similarities are past their optima, and log(1 + 2 pairs) is left.
    """
    scores = torch.tensor([[0.0, size, -size, -size / 2]], dtype=dtype, requires_grad=True)
    same = torch.tensor([[False, True, False, False]])
    different = torch.tensor([[False, False, True, True]])
    losses = get_record(name).function(scores, same, different)
    (slopes,) = torch.autograd.grad(losses.sum(), scores)
    assert bool(torch.isfinite(losses).all())
    assert bool(torch.isfinite(slopes).all())
    if size > 0:
        assert bool((losses >= 0).all())
        assert bool((losses <= (math.log(3) + 1e-6 if name == "circle" else 1e-6)).all())
    else:
        assert bool((losses >= 1e4).all())
        assert slopes[0, 1] < 0
        assert slopes[0, 2] > 0
    assert bool((slopes[0, 1] <= 0) & (slopes[0, 2:] >= 0).all())


@pytest.mark.parametrize("name", ON_PROXIES)
def test_huge_logits_of_proxies(name: str) -> None:
    """Lengths of 100 without normalisation: dot products of 1e4, right and wrong."""
    owned = 100 * torch.eye(3)[:, None] if name == "soft_triple" else 100 * torch.eye(3)
    for label, sign in ((0, 1), (1, -1)):
        rows = torch.tensor([[100.0, 1.0, 0.0]], requires_grad=True)
        losses = losses_of(name, rows, [label], owned, normalize=False)
        (slopes,) = torch.autograd.grad(losses.sum(), rows)
        assert bool(torch.isfinite(losses).all())
        assert bool(torch.isfinite(slopes).all())
        if name != "proxy_anchor":
            assert (losses.item() < 1e-6) if sign > 0 else (losses.item() > 1e3)
        if sign < 0:
            assert slopes[0, 0] > 0
            # A dot product of 100 with its own proxy satisfies proxy_anchor, which looks at each proxy alone.
            assert slopes[0, 1] == 0 if name == "proxy_anchor" else slopes[0, 1] < 0


def test_confident_anchors_keep_their_last_digits() -> None:
    """-log p where p rounds to 1: log-softmax gives 0, or a multiple of the rounding unit."""
    rows, owned = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    losses = normalized_softmax_loss(rows, torch.tensor([0]), owned, temperature=0.02)
    assert_close(losses.item(), math.exp(-50), rtol=1e-5, atol=0)
    (slopes,) = torch.autograd.grad(losses.sum(), rows)
    assert_close(slopes[0, 1].item(), 50 * math.exp(-50), rtol=1e-5, atol=0)
    scores = torch.tensor([[0.0, 1.0, -1.0]])
    pair = torch.tensor([[False, True, False]]), torch.tensor([[False, False, True]])
    assert_close(nt_xent_loss(scores, *pair, temperature=0.04).item(), math.exp(-50), rtol=1e-4, atol=0)
    assert_close(nca_loss(torch.tensor([[0.0, 1.0, 7.0]]), *pair).item(), math.exp(-48), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("margin", [0.0, 28.6, 90.0])
def test_arcface_at_angles_of_0_and_180_degrees(margin: float, dtype: torch.dtype) -> None:
    owned = torch.tensor([[1.0, 2.0, 2.0], [2.0, -1.0, 0.5]], dtype=dtype, requires_grad=True)
    turn = math.radians(margin)
    for factor, own in ((3.0, math.cos(turn)), (-0.7, -1 - turn * math.sin(turn))):
        rows = (factor * owned[:1]).detach().requires_grad_()
        losses = arcface_loss(rows, torch.tensor([0]), owned, margin=margin, scale=2.0)
        other = math.copysign(1.0, factor) * float(F.cosine_similarity(owned[:1], owned[1:]).detach())
        expected = math.log1p(math.exp(2 * (other - own)))
        if factor > 0 or margin > 0:
            assert_close(losses.item(), expected, rtol=1e-6, atol=1e-7)
        for slope in torch.autograd.grad(losses.sum(), (rows, owned)):
            assert bool(torch.isfinite(slope).all())
            assert float(slope.abs().max()) < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("angle", [1e-6, 0.01, 1.0, 2.0, 2.6, 2.7, 3.0, math.pi - 1e-6])
def test_arcface_always_turns_an_anchor_towards_its_proxy(angle: float, dtype: torch.dtype) -> None:
    """Against the angle's own slope: -sin(angle + margin), and -sin(angle) beyond 180 degrees less the margin."""
    owned = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    rows = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=dtype, requires_grad=True)
    losses = arcface_loss(rows, torch.tensor([0]), owned, scale=1.5)
    (slopes,) = torch.autograd.grad(losses.sum(), rows)
    turned = angle + math.radians(28.6)
    own = math.cos(turned) if turned <= math.pi else math.cos(angle) - math.radians(28.6) * math.sin(math.radians(28.6))
    wrong = 1 / (1 + math.exp(1.5 * own))
    falling = math.sin(turned) if turned <= math.pi else math.sin(angle)
    along = -slopes[0, 0] * math.sin(angle) + slopes[0, 1] * math.cos(angle)
    assert_close(along.item(), 1.5 * wrong * falling, rtol=1e-5 if dtype is torch.float32 else 1e-9, atol=1e-7)
    assert along > 0


def test_arcfaces_score_falls_with_the_angle_everywhere() -> None:
    for margin in (10.0, 28.6, 60.0, 90.0):
        angles = torch.linspace(0.0, math.pi, 721, dtype=torch.float64)
        rows = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], -1)
        owned = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        losses = arcface_loss(rows, torch.zeros(721, dtype=torch.long), owned, margin=margin, scale=1.0)
        assert bool((losses.diff() > 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_raised_inside(name: str, dtype: torch.dtype) -> None:
    record = get_record(name)
    read = statistics(embeddings(), torch.tensor(LABELS)) | {"proxies": proxies(name)}
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in read.items()}
    raised = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    losses = record.function(*[half[key] for key in record.reads])
    assert losses.dtype == torch.float32
    assert torch.equal(losses, record.function(*[raised[key] for key in record.reads]))


@pytest.mark.parametrize("name", [name for name in ON_ROWS if name != "n_pairs"])
def test_positives_attract_and_negatives_repel(name: str) -> None:
    record = get_record(name)
    read = statistics(embeddings(), torch.tensor(LABELS))
    scores = read[record.reads[0]].requires_grad_()
    losses = record.function(scores, read["same"], read["different"])
    (slopes,) = torch.autograd.grad(losses.sum(), scores)
    nearer = slopes if record.reads[0] == "similarities" else -slopes
    if name != "supcon":  # A positive above its share in the softmax is pressed down there, in favour of the others.
        assert bool((nearer[read["same"]] <= 0).all())
    assert bool((nearer[read["same"]] < 0).any())
    assert bool((nearer[read["different"]] >= 0).all())
    assert bool((nearer[read["different"]] > 0).any())


# Mistakes of the caller.


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("proxy_anchor", {"alpha": 0.0}, "`alpha` must be > 0, got 0.0."),
        ("proxy_anchor", {"margin": math.inf}, "`margin` must be a finite number, got inf."),
        ("proxy_nca", {"scale": -1.0}, "`scale` must be > 0, got -1.0."),
        ("arcface", {"scale": 0.0}, "`scale` must be > 0, got 0.0."),
        ("arcface", {"margin": -1.0}, "`margin` must be >= 0, got -1.0."),
        ("arcface", {"margin": 90.5}, "`margin` must be an angle of at most 90 degrees, got 90.5."),
        ("cosface", {"scale": math.nan}, "`scale` must be > 0, got nan."),
        ("cosface", {"margin": math.nan}, "`margin` must be a finite number, got nan."),
        ("normalized_softmax", {"temperature": 0.0}, "`temperature` must be > 0, got 0.0."),
        ("soft_triple", {"gamma": 0.0}, "`gamma` must be > 0, got 0.0."),
        ("soft_triple", {"scale": 0.0}, "`scale` must be > 0, got 0.0."),
        ("soft_triple", {"margin": math.nan}, "`margin` must be a finite number, got nan."),
        ("supcon", {"temperature": -0.1}, "`temperature` must be > 0, got -0.1."),
        ("nt_xent", {"temperature": 0.0}, "`temperature` must be > 0, got 0.0."),
        ("nca", {"scale": 0.0}, "`scale` must be > 0, got 0.0."),
        ("contrastive", {"pos_margin": -0.1}, "`pos_margin` must be >= 0, got -0.1."),
        ("contrastive", {"neg_margin": 0.0}, "`neg_margin` must be > 0, got 0.0."),
        ("triplet_margin", {"margin": -0.1}, "`margin` must be >= 0, got -0.1."),
        ("multi_similarity", {"alpha": 0.0}, "`alpha` must be > 0, got 0.0."),
        ("multi_similarity", {"beta": 0.0}, "`beta` must be > 0, got 0.0."),
        ("multi_similarity", {"base": math.nan}, "`base` must be a finite number, got nan."),
        ("circle", {"gamma": 0.0}, "`gamma` must be > 0, got 0.0."),
        ("circle", {"margin": math.inf}, "`margin` must be a finite number, got inf."),
        ("lifted_structure", {"neg_margin": math.nan}, "`neg_margin` must be a finite number, got nan."),
        ("lifted_structure", {"pos_margin": math.inf}, "`pos_margin` must be a finite number, got inf."),
    ],
)
def test_hyperparameters_out_of_range(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        losses_of(name, embeddings(), owned=proxies(name) if name in ON_PROXIES else None, **settings)
    assert str(caught.value) == message


def test_lifted_structure_needs_a_square() -> None:
    read = statistics(embeddings(), torch.tensor(LABELS))
    with pytest.raises(jaxtyping.TypeCheckError):
        lifted_structure_loss(read["distances"][:3], read["same"][:3], read["different"][:3])


def test_supcon_reads_its_temperature() -> None:
    read = statistics(embeddings(), torch.tensor(LABELS))
    scores = read["similarities"]
    scaled = supcon_loss(scores / 0.3, read["same"], read["different"], temperature=1.0)
    assert_close(supcon_loss(scores, read["same"], read["different"], temperature=0.3), scaled, rtol=1e-12, atol=0)
