"""Labels are aligned once: the same targets however a batch is padded or packed, against a scalar loop."""

from typing import Any

import pytest
import torch
from causal_cases import IGNORED, Row, packed, padded, ragged_rows, targets_of
from torch import Tensor

from lossmith.errors import ObjectiveInputError
from lossmith.integrations.batches import AlignedBatch, align, aligned_labels, aligned_mask, sequence_starts

LENGTHS = (5, 9, 1, 4, 2, 7)
"""A row of one token, and with the fourth one whose labels are all ignored."""


@pytest.fixture
def rows() -> list[Row]:
    return ragged_rows(LENGTHS)


def expected(rows: list[Row]) -> list[int]:
    """Targets of all rows, one after the other."""
    return [target for row in rows for target in targets_of(row)]


def at_tokens(labels: Tensor, batch: dict[str, Tensor]) -> list[int]:
    """Aligned labels at the places that hold a token, row by row."""
    return labels[batch["attention_mask"] != 0].tolist()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_target(rows: list[Row], side: str) -> None:
    """Regressions 3 and 8."""
    batch = padded(side)(rows)
    labels = aligned_labels(batch["labels"], attention_mask=batch["attention_mask"])
    assert at_tokens(labels, batch) == expected(rows)
    assert (labels[batch["attention_mask"] == 0] == IGNORED).all()


def test_labels_on_padding_never_count(rows: list[Row]) -> None:
    """Collators that copy the ids leave the pad token among the labels."""
    for side in ("right", "left"):
        batch = padded(side)(rows)
        labels = batch["labels"].masked_fill(batch["attention_mask"] == 0, 7)
        found = aligned_labels(labels, attention_mask=batch["attention_mask"])
        assert at_tokens(found, batch) == expected(rows)
        assert (found[batch["attention_mask"] == 0] == IGNORED).all()


def layouts(rows: list[Row]) -> dict[str, dict[str, Tensor]]:
    """Ways to say where packed rows begin."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    positions = packed()(rows)["position_ids"]
    numbers = torch.repeat_interleave(torch.arange(1, len(rows) + 1), lengths)[None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return {
        "position ids": {"position_ids": positions},
        "positions from 2 on": {"position_ids": positions + 2},
        "numbers in the mask": {"attention_mask": numbers},
        "offsets": {"cu_seq_lens": offsets.int()},
        "offsets without the end": {"cu_seq_lens": offsets[:-1]},
        "all of them": {"position_ids": positions, "attention_mask": numbers, "cu_seq_lens": offsets},
        "positions and a mask of ones": {"position_ids": positions, "attention_mask": torch.ones_like(numbers)},
        "positions and a mask of four axes": {"position_ids": positions, "attention_mask": torch.ones(1, 1, 28, 28)},
    }


LAYOUTS = list(layouts(ragged_rows(LENGTHS)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_packing_changes_no_target(rows: list[Row], name: str) -> None:
    labels = packed()(rows)["labels"]
    layout = layouts(rows)[name]
    assert aligned_labels(labels, **layout)[0].tolist() == expected(rows)
    assert int(sequence_starts(labels, **layout).sum()) == len(rows)


def test_without_a_layout_a_row_is_one_sequence(rows: list[Row]) -> None:
    labels = packed()(rows)["labels"]
    assert aligned_labels(labels)[0].tolist() == [*labels[0, 1:].tolist(), IGNORED]


def test_offsets_go_over_all_rows() -> None:
    labels = torch.arange(10, 22).view(2, 6)
    found = aligned_labels(labels, cu_seq_lens=torch.tensor([0, 4, 6, 7, 12]))
    assert found.tolist() == [[11, 12, 13, IGNORED, 15, IGNORED], [IGNORED, 18, 19, 20, 21, IGNORED]]


def test_positions_of_padded_rows_that_count_from_an_offset() -> None:
    """RoBERTa counts from 2 and gives padding 1."""
    labels = torch.tensor([[4, 5, 6, IGNORED, IGNORED], [IGNORED, IGNORED, 7, 8, 9]])
    positions = torch.tensor([[2, 3, 4, 1, 1], [1, 1, 2, 3, 4]])
    found = aligned_labels(labels, position_ids=positions)
    # Position 1 before 2: the padding looks like a beginning of the second row, which the mask tells apart.
    assert found[0].tolist() == [5, 6, IGNORED, IGNORED, IGNORED]
    mask = (labels != IGNORED).long()
    found = aligned_labels(labels, position_ids=positions, attention_mask=mask)
    assert found.tolist() == [[5, 6, IGNORED, IGNORED, IGNORED], [IGNORED, IGNORED, 8, 9, IGNORED]]


def test_labels_need_not_lie_in_rows_in_memory(rows: list[Row]) -> None:
    batch = padded()(rows)
    turned = batch["labels"].T.contiguous().T
    plain = aligned_labels(batch["labels"], cu_seq_lens=torch.tensor([0, 3, 17]))
    assert torch.equal(aligned_labels(turned, cu_seq_lens=torch.tensor([0, 3, 17])), plain)


def test_nothing_is_written_over(rows: list[Row]) -> None:
    batch = padded("left")(rows)
    before = {name: value.clone() for name, value in batch.items()}
    align(batch, shift=True)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_a_mask_moves_with_its_labels(rows: list[Row]) -> None:
    batch = padded("right", "answer_mask")(rows)
    found = align(batch, ("answer",), shift=True)
    kept = [
        target
        for row in rows
        for target, answer in zip(targets_of(row), [*row["answer_mask"][1:], 0], strict=True)
        if answer and target != IGNORED
    ]
    restricted = found.restricted("answer")
    assert restricted[restricted != IGNORED].tolist() == kept
    assert 0 < len(kept) < sum(target != IGNORED for target in expected(rows))
    assert torch.equal(found.restricted(None), found.labels)
    assert aligned_mask(torch.tensor([[1, 0, 1]])).tolist() == [[False, True, False]]


def test_a_classifier_is_not_shifted() -> None:
    labels = torch.tensor([3, 1, IGNORED])
    batch = align({"labels": labels, "attention_mask": torch.ones(3, 4)}, shift=False)
    assert batch.labels is labels
    assert batch.sequence_numbers().tolist() == [0, 1, 2]
    assert batch.num_sequences() == 2
    assert batch.rows_by_sequence() is None


# Sequences


def batches(rows: list[Row]) -> dict[str, AlignedBatch]:
    def half_packed(rows: list[Row]) -> dict[str, Tensor]:
        """Two packed rows of the same length, the second filled up."""
        first, second = packed("answer_mask")(rows[:2]), packed("answer_mask")(rows[2:])
        return {name: torch.cat([first[name], second[name]]) for name in first}

    made: dict[str, Any] = {
        "right": padded("right", "answer_mask")(rows),
        "left": padded("left", "answer_mask")(rows),
        "packed": packed("answer_mask")(rows),
        "half packed": half_packed(rows),
    }
    return {name: align(batch, ("answer",), shift=True) for name, batch in made.items()}


@pytest.mark.parametrize("name", ["right", "left", "packed", "half packed"])
def test_sequences(rows: list[Row], name: str) -> None:
    batch = batches(rows)[name]
    counted = [[t for t in targets_of(row) if t != IGNORED] for row in rows]
    answers = [
        [t for t, a in zip(targets_of(row), [*row["answer_mask"][1:], 0], strict=True) if a and t != IGNORED]
        for row in rows
    ]
    assert batch.num_sequences() == sum(map(bool, counted)) == 4
    assert batch.num_sequences("answer") == sum(map(bool, answers))
    # Weighted by sequence every one counts once.
    weights = batch.sequence_weights()
    assert weights[batch.labels == IGNORED].abs().sum() == 0
    found = sorted(weights[batch.labels != IGNORED].tolist())
    assert found == pytest.approx(sorted(1 / len(row) for row in counted for _ in row))
    # A row per sequence.
    places = batch.rows_by_sequence()
    assert (places is None) == (name in ("right", "left"))
    apart = batch if places is None else batch.at(places)
    split = [[int(t) for t in row if t != IGNORED] for row in apart.labels]
    assert [row for row in split if row] == [row for row in counted if row]
    restricted = [[int(t) for t in row if t != IGNORED] for row in apart.restricted("answer")]
    assert [row for row in restricted if row] == [row for row in answers if row]


def test_nothing_counts() -> None:
    batch = align({"labels": torch.full((2, 5), IGNORED), "position_ids": torch.arange(5)[None]}, shift=True)
    assert batch.num_sequences() == 0
    assert batch.sequence_weights().abs().sum() == 0
    assert (batch.labels == IGNORED).all()
    assert batch.rows_by_sequence() is None


def test_rows_of_one_token_have_no_target() -> None:
    labels = torch.tensor([[5], [6]])
    assert aligned_labels(labels).tolist() == [[IGNORED], [IGNORED]]
    four = torch.tensor([[5, 6, 7, 8]])
    assert aligned_labels(four, position_ids=torch.zeros(1, 4, dtype=torch.long)).tolist() == [[IGNORED] * 4]


# Bad input

FIVE = torch.ones(2, 5, dtype=torch.long)

WRONG: dict[str, dict[str, Any]] = {
    "`labels` must be [batch, seq], got (5,).": {"labels": FIVE[0]},
    "`attention_mask` must be [batch, seq] = (2, 5), got (2, 4).": {"labels": FIVE, "attention_mask": FIVE[:, 1:]},
    "`position_ids` must be [batch, seq] = (2, 5), got (3, 2, 5).": {
        "labels": FIVE,
        "position_ids": FIVE.expand(3, 2, 5),
    },
    "`position_ids` must be [batch, seq] = (2, 5), got (2, 4).": {"labels": FIVE, "position_ids": FIVE[:, 1:]},
    "`cu_seq_lens` must be offsets into the 10 tokens of the batch, got [0, 3, 11].": {
        "labels": FIVE,
        "cu_seq_lens": torch.tensor([0, 3, 11]),
    },
    "`cu_seq_lens` must be integer offsets [sequences + 1], got torch.float32 (2,).": {
        "labels": FIVE,
        "cu_seq_lens": torch.tensor([0.0, 5.0]),
    },
}


@pytest.mark.parametrize("sentence", WRONG)
def test_shapes_that_do_not_fit(sentence: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        aligned_labels(**WRONG[sentence])
    assert str(caught.value) == sentence


def test_labels_and_masks_that_are_missing() -> None:
    with pytest.raises(ObjectiveInputError, match="A batch must hold `labels`, got `input_ids`: add a column"):
        align({"input_ids": FIVE}, shift=True)
    with pytest.raises(
        ObjectiveInputError, match=r"must hold `answer_mask` of the shape of `labels`, \(2, 5\), .*noth"
    ):
        align({"labels": FIVE}, ("answer",), shift=True)
    with pytest.raises(ObjectiveInputError, match=r"`answer_mask` .* for the label scope \[answer\], got \(2, 4\)"):
        align({"labels": FIVE, "answer_mask": FIVE[:, 1:]}, ("answer",), shift=True)
