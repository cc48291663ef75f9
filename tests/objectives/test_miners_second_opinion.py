"""A second opinion on miners: pytorch-metric-learning's, with its losses; and who else must know of a miner."""

import warnings
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import lossmith
from lossmith import ObjectiveInputError
from lossmith.integrations.transformers.items import item_kinds
from mined_cases import LABELS, MINED, clustered, spread

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = pytest.importorskip("pytorch_metric_learning.distances")

pytestmark = pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")

THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "contrastive": (losses.ContrastiveLoss(0.1, 1.2), {"pos_margin": 0.1, "neg_margin": 1.2}),
    "triplet_margin": (losses.TripletMarginLoss(margin=0.3), {"margin": 0.3}),
    "supcon": (losses.SupConLoss(temperature=0.4), {"temperature": 0.4}),
    "nt_xent": (losses.NTXentLoss(temperature=0.4), {"temperature": 0.4}),
    "multi_similarity": (losses.MultiSimilarityLoss(3.0, 7.0, 0.2), {"alpha": 3.0, "beta": 7.0, "base": 0.2}),
    "circle": (losses.CircleLoss(m=0.3, gamma=5.0), {"margin": 0.3, "gamma": 5.0}),
    "lifted_structure": (losses.LiftedStructureLoss(1.3, 0.2), {"neg_margin": 1.3, "pos_margin": 0.2}),
}


def _their_miner(miner: str, name: str) -> Any:
    if miner == "hard":
        # Its pairs, not triplets: their LiftedStructureLoss reads pairs that occur once.
        return miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="hard")
    if miner == "semi_hard":
        return miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard")
    on_distances = "distances" in lossmith.objectives.get_record(name).reads
    return miners.MultiSimilarityMiner(0.2, **({"distance": distances.LpDistance()} if on_distances else {}))


@pytest.mark.parametrize(
    ("name", "miner"),
    [*((name, miner) for name in THEIRS for miner in ("hard", "multi_similarity")), ("triplet_margin", "semi_hard")],
)
@pytest.mark.parametrize("tight", [False, True])
def test_theirs_with_their_miner(name: str, miner: str, tight: bool) -> None:
    keep = LABELS != -100
    rows = (clustered() if tight else spread()).detach()[keep].requires_grad_()
    labels = LABELS[keep]
    theirs, settings = THEIRS[name]
    indices = _their_miner(miner, name)(rows, labels)
    wanted = theirs(rows, labels, indices)
    epsilon = {"miner_epsilon": 0.2} if miner == "multi_similarity" else {}
    value = lossmith.loss(name, miner=miner, **epsilon, **settings)(rows, labels)
    if name == "multi_similarity":
        # Their mean is over all anchors, ours over those of which something is left.
        wanted = wanted * len(labels) / len(indices[0].unique())
    assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(each, rows)[0] for each in (value, wanted)]
    assert float(slopes[1].abs().max()) > 1e-4
    assert_close(*slopes, rtol=1e-8, atol=1e-10)


def test_batch_hard_of_theirs() -> None:
    """Their miner by that name, with ties: duplicated rows."""
    rows = spread(9).detach()
    rows[4] = rows[1]
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    indices = miners.BatchHardMiner()(rows, labels)
    assert len(indices[0]) == 9
    value = lossmith.loss("triplet_margin(margin=0.5, miner='hard')")(rows, labels)
    assert_close(value, losses.TripletMarginLoss(margin=0.5)(rows, labels, indices), rtol=1e-10, atol=0)


def test_a_trainer_does_not_know_how_many_anchors_are_left() -> None:
    known = {text: item_kinds(lossmith.loss(text))[0].known for text in ("multi_similarity", MINED[2], MINED[3])}
    assert known == {"multi_similarity": True, MINED[2]: False, MINED[3]: False}


def test_a_miner_under_their_call() -> None:
    from lossmith.integrations.pytorch_metric_learning import to_pml

    rows, labels = spread(6), torch.arange(6) % 3
    theirs = to_pml("triplet_margin(miner='hard')")
    assert torch.equal(theirs(rows, labels), lossmith.loss("triplet_margin(miner='hard')")(rows, labels))
    indices = miners.BatchHardMiner()(rows, labels)
    with pytest.raises(ObjectiveInputError, match=r"chooses its rows itself: build it without `miner`, or give no"):
        theirs(rows, labels, indices)
