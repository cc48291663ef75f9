"""Padded batches of completions: labels, masks of answers, and the losses that a trainer makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from causal_cases import arguments, causal_model
from torch import Tensor

from lossmith.errors import ConfigurationError, DataError, ObjectiveInputError
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.encoding import EncodedRow, EncodedSet
from lossmith.integrations.transformers import LossTrainer

ROWS = [
    {"input_ids": [11, 12, 13, 14, 2], "answer_start": 2},
    {"input_ids": [15, 2, 16, 2], "answer_start": 2},
    {"input_ids": [17, 18], "answer_start": 1},
]
"""Row 1 has an end-of-sequence token in its prompt as well; row 2 has none."""


def listed(batch: dict[str, Tensor]) -> dict[str, list[list[int]]]:
    return {name: value.int().tolist() for name, value in batch.items()}


def test_right_padding_behind_each_row() -> None:
    batch = CompletionCollator(2)(ROWS)
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "answer_mask": torch.bool,
    }
    # Padding is EOS here, and the EOS that closes a row is trained all the same.
    assert listed(batch) == {
        "input_ids": [[11, 12, 13, 14, 2], [15, 2, 16, 2, 2], [17, 18, 2, 2, 2]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]],
        "labels": [[11, 12, 13, 14, 2], [15, 2, 16, 2, -100], [17, 18, -100, -100, -100]],
        "answer_mask": [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0]],
    }


def test_left_padding_before_each_row() -> None:
    assert listed(CompletionCollator(9, side="left", labels="answer")(ROWS)) == {
        "input_ids": [[11, 12, 13, 14, 2], [9, 15, 2, 16, 2], [9, 9, 9, 17, 18]],
        "attention_mask": [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]],
        "labels": [[-100, -100, 13, 14, 2], [-100, -100, -100, 16, 2], [-100, -100, -100, -100, 18]],
        "answer_mask": [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]],
    }


@pytest.mark.parametrize("labels", ["all", "answer"])
def test_without_eos_no_label_is_one_wherever_it_stands(labels: str) -> None:
    batch = listed(CompletionCollator(9, labels=labels, eos_token_ids=[2, 13], train_eos=False)(ROWS))
    hidden = {"all": [[11, 12, -100, 14, -100], [15, -100, 16, -100, -100], [17, 18, -100, -100, -100]]}
    hidden["answer"] = [[-100, -100, -100, 14, -100], [-100, -100, 16, -100, -100], [-100, 18, -100, -100, -100]]
    assert batch["labels"] == hidden[labels]
    assert batch["answer_mask"] == [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert batch["attention_mask"][1] == [1, 1, 1, 1, 0]


def test_tensors_and_further_columns_are_taken() -> None:
    row: dict[str, Any] = {"input_ids": torch.tensor([5, 6, 7]), "answer_start": torch.tensor(1), "id": "a", "label": 3}
    assert listed(CompletionCollator(0)([row])) == {
        "input_ids": [[5, 6, 7]],
        "attention_mask": [[1, 1, 1]],
        "labels": [[5, 6, 7]],
        "answer_mask": [[0, 1, 1]],
    }


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"input_ids": [5, 6], "labels": [5, 6]},
            "Row 1 of a batch lacks `answer_start`, it has `input_ids`, `labels`: encode it first; a Trainer needs "
            "`remove_unused_columns=False` to leave such columns in.",
        ),
        ({}, "Row 1 of a batch lacks `input_ids` and `answer_start`, it has nothing: encode"),
        ({"input_ids": [], "answer_start": 0}, "`input_ids` of row 1 of a batch must be token ids, got shape (0,)."),
        (
            {"input_ids": [5, 6], "answer_start": 3},
            "`answer_start` of row 1 of a batch must be in 0 to 2, its number of tokens, got 3.",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as found:
        CompletionCollator(0)([ROWS[0], row])
    assert str(found.value).startswith(sentence)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`pad_token_id` must be a token id, got None: set `tokenizer\.pad_"):
        CompletionCollator(None)
    with pytest.raises(ConfigurationError, match="`train_eos=False` needs `eos_token_ids`"):
        CompletionCollator(0, train_eos=False)
    with pytest.raises(ObjectiveInputError, match="`side` must be one of 'right', 'left', got 'top'"):
        CompletionCollator(0, side="top")
    with pytest.raises(ObjectiveInputError, match="`labels` must be one of 'all', 'answer', got 'prompt'"):
        CompletionCollator(0, labels="prompt")


# In a trainer

ENCODED = EncodedSet(
    tuple(EncodedRow(row["input_ids"], row["answer_start"]) for row in ROWS), cut_rows=0, cut_tokens=0, max_length=8
)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_label_scope_reads_the_answers(tmp_path: Path, side: str) -> None:
    model = causal_model()
    trainer = LossTrainer(
        model=model,
        args=arguments(tmp_path, remove_unused_columns=False),
        train_dataset=ENCODED.examples,
        data_collator=CompletionCollator(0, side=side),
        loss="0.6*cross_entropy + 0.4*cross_entropy[answer]",
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        found = float(trainer.compute_loss(model.eval(), batch))
    nll = [[_surprise(model, row.input_ids, place) for place in range(len(row.input_ids))] for row in ENCODED.rows]
    everything = [value for values in nll for value in values[1:]]
    answers = [
        value for values, row in zip(nll, ENCODED.rows, strict=True) for value in values[max(1, row.answer_start) :]
    ]
    assert len(everything) == 8
    assert len(answers) == 6
    expected = 0.6 * sum(everything) / 8 + 0.4 * sum(answers) / 6
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_models_take_the_batch_as_it_is(kind: str) -> None:
    model = causal_model(kind)
    batch = CompletionCollator(0)(ENCODED.examples)
    with_mask = model(**batch).loss
    del batch["answer_mask"]
    assert torch.equal(with_mask, model(**batch).loss)


@torch.no_grad()
def _surprise(model: Any, ids: list[int], place: int) -> float:
    """Negative log-probability of one token of a row, run alone, in double precision."""
    if place == 0:
        return 0.0
    logits = model(input_ids=torch.tensor([ids])).logits[0, place - 1].double()
    return -float(logits[ids[place]] - logits.exp().sum().log())


def test_rows_of_lossmith_tokenize_lose_their_padding() -> None:
    row = {"input_ids": [9, 9, 5, 6, 7, 2], "attention_mask": [0, 0, 1, 1, 1, 1], "labels_position_id": [4]}
    batch = CompletionCollator(pad_token_id=9)([row, {"input_ids": [8, 2], "answer_start": 1}])
    assert batch["labels"].tolist() == [[5, 6, 7, 2], [8, 2, -100, -100]]
    assert batch["answer_mask"].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    with pytest.raises(DataError, match="`attention_mask` of row 0"):
        CompletionCollator(pad_token_id=9)([{**row, "attention_mask": [1]}])
