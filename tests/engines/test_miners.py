"""What a miner leaves of an anchor's row: against scalar loops, with ties, without one side, with NaN."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lossmith import ObjectiveInputError, list_losses
from lossmith.engines.miners import MINERS, Miner, hard, make_miner, multi_similarity, semi_hard_pairs
from lossmith.engines.similarity import IGNORED, SimilarityRows
from lossmith.objectives import get_record

LABELS = torch.tensor([2, 0, 2, 1, 0, 2, 1, 3, 2])
"""Class 3 has one row."""
ROWS = ("similarities", "same", "different")


def _tables(seed: int, labels: Tensor = LABELS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Closeness in tenths, so that there are ties, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    closeness = torch.randint(-9, 10, (len(labels), len(labels)), generator=generator).to(dtype) / 10
    same = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool)
    return closeness, same, labels[:, None] != labels[None, :]


def _sides(same: Tensor, different: Tensor, i: int) -> tuple[list[int], list[int]]:
    return same[i].nonzero().flatten().tolist(), different[i].nonzero().flatten().tolist()


def _hardest(close: list[float], positives: list[int], negatives: list[int]) -> tuple[list[int], list[int]]:
    if not positives or not negatives:
        return [], []
    farthest, nearest = positives[0], negatives[0]
    for k in positives:
        farthest = k if close[k] < close[farthest] else farthest
    for k in negatives:
        nearest = k if close[k] > close[nearest] else nearest
    return [farthest], [nearest]


def _wang(close: list[float], positives: list[int], negatives: list[int]) -> tuple[list[int], list[int]]:
    left = [p for p in positives if any(close[p] < close[n] + 0.25 for n in negatives)]
    return left, [n for n in negatives if any(close[n] > close[p] - 0.25 for p in positives)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("mine", "by_hand"), [(hard, _hardest), (lambda *tables: multi_similarity(*tables, epsilon=0.25), _wang)]
)
def test_what_is_left_by_hand(mine: Callable, by_hand: Callable, seed: int) -> None:
    closeness, same, different = _tables(seed)
    left = mine(closeness, same, different)
    assert not torch.equal(left[0], same)
    assert not torch.equal(left[1], different)
    for i in range(len(LABELS)):
        assert _sides(*left, i) == by_hand(closeness[i].tolist(), *_sides(same, different, i)), i


@pytest.mark.parametrize("seed", range(3))
def test_semi_hard_by_hand(seed: int) -> None:
    closeness, same, different = _tables(seed)
    made = semi_hard_pairs(closeness, {"distances": -closeness, "same": same, "different": different})
    rows = 0
    for i in range(len(LABELS)):
        positives, negatives = _sides(same, different, i)
        for p in positives:
            farther = [n for n in negatives if closeness[i, n] < closeness[i, p]]
            assert _sides(made["same"], made["different"], rows) == ([p], farther)
            assert torch.equal(made["distances"][rows], -closeness[i])
            rows += 1
    assert len(made["same"]) == len(made["different"]) == len(made["distances"]) == rows


def test_of_equals_the_first_is_the_hardest() -> None:
    closeness = torch.tensor([[9.0, 0.5, 0.2, 0.2, 0.7, 0.7, 0.1]])
    same = torch.tensor([[False, True, True, True, False, False, False]])
    different = torch.tensor([[False, False, False, False, True, True, True]])
    assert [side.nonzero()[:, 1].tolist() for side in hard(closeness, same, different)] == [[2], [4]]
    assert [side.sum().item() for side in hard(torch.ones(1, 7), same, different)] == [1, 1]


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", MINERS[1:])
def test_with_one_side_nothing_is_left(name: str, labels: list[int]) -> None:
    closeness, same, different = _tables(0, torch.tensor(labels))
    made = Miner(name=name).mine({"similarities": closeness, "same": same, "different": different})
    assert not bool(made["different"].any())
    assert not bool(made["same"].any()) or name == "semi_hard"


def test_of_an_anchor_both_sides_are_left_or_neither() -> None:
    """Also where the slack is just the gap of the two hardest, in float32."""
    closeness, same, different = _tables(3, torch.arange(60) % 7, torch.float32)
    for epsilon in (0.0, 0.1, 0.2, 0.3, 0.7):
        left = multi_similarity(closeness, same, different, epsilon=epsilon)
        assert torch.equal(left[0].any(-1), left[1].any(-1))
    closeness = closeness.masked_fill(same, 0.55).masked_fill(different, 0.45)
    for epsilon in (0.1, 0.09999999, 0.10000001):
        left = multi_similarity(closeness, same, different, epsilon=epsilon)
        assert torch.equal(left[0].any(-1), left[1].any(-1))


@pytest.mark.parametrize("name", MINERS[1:])
def test_what_is_no_number_stays_to_be_seen(name: str) -> None:
    closeness, same, different = _tables(1)
    closeness[:, 4] = math.nan
    made = Miner(name=name).mine({"similarities": closeness, "same": same, "different": different})
    read = made["similarities"].masked_fill(~(made["same"] | made["different"]), 0.0)
    assert bool(read.isnan().any())


def test_distances_are_mined_the_other_way_round_and_held_constant() -> None:
    closeness, same, different = _tables(2)
    for name in MINERS[1:]:
        distances = (3 - closeness).requires_grad_()
        by_distance = Miner(name=name).mine({"distances": distances, "same": same, "different": different})
        by_closeness = Miner(name=name).mine({"similarities": closeness - 3, "same": same, "different": different})
        for side in ("same", "different"):
            assert torch.equal(by_distance[side], by_closeness[side])
            assert not by_distance[side].requires_grad
        assert by_distance["distances"].requires_grad


@pytest.mark.parametrize("chunks", [[slice(0, 9)], [slice(0, 2), slice(2, 7), slice(7, 9)]])
@pytest.mark.parametrize("name", ["hard", "multi_similarity"])
def test_which_anchors_are_left(name: str, chunks: list[slice]) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(5)), dim=1)
    vectors[1] = vectors[4] = torch.tensor([0.0, 0.0, 1.0])  # An easy class: nothing of it is left by Wang's miner.
    vectors[[0, 2, 3, 5, 6, 7, 8], 2] = -vectors[[0, 2, 3, 5, 6, 7, 8], 2].abs() - 0.2
    candidates = torch.cat([vectors, torch.zeros(2, 3)])
    rows = SimilarityRows(vectors, LABELS, candidates, torch.cat([LABELS, torch.tensor([IGNORED, IGNORED])]))
    left = Miner(name=name).left(rows, ROWS, chunks)
    easy = name == "multi_similarity"
    assert left.tolist() == [True, not easy, True, True, not easy, True, True, False, True]
    assert left.tolist() == Miner(name=name).mine(rows.statistics(ROWS))["same"].any(-1).tolist()


@pytest.mark.parametrize("name", ["hard", "multi_similarity"])
def test_empty_places_of_a_memory_are_no_negatives(name: str) -> None:
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    labels = torch.tensor([4, 4, 4, IGNORED, IGNORED])
    rows = SimilarityRows(vectors[:3], labels[:3], vectors, labels)
    assert not bool(Miner(name=name).left(rows, ROWS, [slice(0, 3)]).any())
    labels[4] = 5
    assert bool(Miner(name="hard").left(rows, ROWS, [slice(0, 3)]).all())


@pytest.mark.parametrize("name", MINERS[1:])
def test_no_rows_at_all(name: str) -> None:
    nothing = torch.zeros(0, 3)
    rows = SimilarityRows(nothing, LABELS[:0], nothing, LABELS[:0])
    made = Miner(name=name).mine(rows.statistics(ROWS))
    assert [made[part].shape for part in ROWS] == [(0, 0)] * 3
    assert Miner(name=name).left(rows, ROWS, []).shape == (0,)


def test_which_losses_take_a_miner() -> None:
    taken = [record.name for record in list_losses() if record.takes_miner]
    assert taken == [
        "circle", "contrastive", "lifted_structure", "multi_similarity", "nca", "nt_xent", "supcon", "triplet_margin"
    ]  # fmt: skip
    for record in list_losses():
        assert ("miner" in record.settings) == ("miner_epsilon" in record.settings) == (record.name in taken)


@pytest.mark.parametrize(
    ("loss", "name", "epsilon", "message"),
    [
        (
            "supcon",
            "hrd",
            0.1,
            r"^`miner` must be one of 'none', 'hard', 'semi_hard', 'multi_similarity', got 'hrd'\.$",
        ),
        ("supcon", "multi_similarity", -0.1, r"^`miner_epsilon` must be >= 0, got -0\.1\.$"),
        (
            "supcon",
            "hard",
            0.2,
            r"^`miner_epsilon` belongs to miner='multi_similarity', got it with miner='hard'\.$",
        ),
        ("supcon", "semi_hard", 0.1, r"^'supcon' cannot use miner='semi_hard', .* such as triplet_margin; give 'hard'"),
        ("soft_triple", "hard", 0.1, r"^'soft_triple' has no `miner`: .* such as triplet_margin, multi_similarity or"),
    ],
)
def test_a_miner_that_cannot_be(loss: str, name: str, epsilon: float, message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        make_miner(get_record(loss), name, epsilon)


def test_none_is_no_miner() -> None:
    assert make_miner(get_record("soft_triple"), "none", 0.1) is None
    assert make_miner(get_record("supcon"), "multi_similarity", 0.3) == Miner(name="multi_similarity", epsilon=0.3)
