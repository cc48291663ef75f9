"""From token rows to padded batches with labels and the mask of their answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossmith._checks import check_one_of
from lossmith.errors import ConfigurationError, DataError
from lossmith.nn import IGNORE_INDEX


class CompletionCollator:
    """Pads token rows into a batch for any causal language model, with a mask of the answer for the scope `[answer]`.

    A row is a mapping with `input_ids`, token ids of prompt and answer, and `answer_start`, the place of the answer's
    first token among them. Rows of `lossmith tokenize` are taken too: padding is told by `attention_mask` and left out,
    and `labels_position_id` is the place of the answer. Further columns are not read. Labels are aligned with the
    inputs: trainers shift them.

    Args:
        pad_token_id: Token to fill with. It may equal the end-of-sequence token: padding is told by place, not by id.
        side: Where to fill, "right" or "left".
        labels: "all" trains prompt and answer, "answer" the answer only.
        eos_token_ids: Tokens that end a sequence; needed for `train_eos=False` only.
        train_eos: Whether end-of-sequence tokens are labels. False leaves them out wherever they are, as collators do
            that mask every padding id where padding is EOS; nothing teaches a model to stop then.

    Raises:
        ObjectiveInputError: For a `side` or `labels` that is none of the above.
        ConfigurationError: Without a padding token, or with `train_eos=False` and no `eos_token_ids`.

    Example:
        >>> collate = CompletionCollator(pad_token_id=0)
        >>> batch = collate([{"input_ids": [5, 6, 7, 2], "answer_start": 2}, {"input_ids": [8, 2], "answer_start": 1}])
        >>> batch["labels"].tolist()
        [[5, 6, 7, 2], [8, 2, -100, -100]]
        >>> batch["answer_mask"].int().tolist()
        [[0, 0, 1, 1], [0, 1, 0, 0]]

        One term of a loss on all tokens, one on the answers; the Trainer must not remove `answer_start`:

        ```python
        trainer = LossTrainer(
            model=model,
            args=TrainingArguments("out", remove_unused_columns=False),
            train_dataset=[{"input_ids": prompt + answer, "answer_start": len(prompt)} for prompt, answer in rows],
            data_collator=CompletionCollator(tokenizer.pad_token_id),
            loss="0.6*cross_entropy + 0.4*lovasz_softmax[answer]",
        )
        ```
    """

    def __init__(
        self,
        pad_token_id: int | None,
        *,
        side: str = "right",
        labels: str = "all",
        eos_token_ids: Sequence[int] = (),
        train_eos: bool = True,
    ):
        check_one_of("side", side, ("right", "left"))
        check_one_of("labels", labels, ("all", "answer"))
        if pad_token_id is None:
            raise ConfigurationError(
                "`pad_token_id` must be a token id, got None: set `tokenizer.pad_token = tokenizer.eos_token` first."
            )
        if not train_eos and not eos_token_ids:
            raise ConfigurationError("`train_eos=False` needs `eos_token_ids`, the tokens to leave out, got none.")
        self.pad_token_id = pad_token_id
        self.side = side
        self.labels = labels
        self.eos_token_ids = tuple(eos_token_ids)
        self.train_eos = train_eos

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of rows.

        Returns:
            `input_ids`, `attention_mask` (1 on tokens), `labels` (-100 where nothing is trained), each int64, and
            `answer_mask`, bool; all [batch, seq].

        Raises:
            DataError: If a row lacks a column, has no tokens, or its answer begins outside it.
        """
        checked = [_checked(number, row) for number, row in enumerate(rows)]
        width = max(len(ids) for ids, _ in checked)
        shape = len(checked), width
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        answer_mask = torch.zeros(shape, dtype=torch.bool)
        for row, (ids, start) in enumerate(checked):
            first = width - len(ids) if self.side == "left" else 0
            input_ids[row, first : first + len(ids)] = ids
            attention_mask[row, first : first + len(ids)] = 1
            answer_mask[row, first + start : first + len(ids)] = True
        trained = answer_mask if self.labels == "answer" else attention_mask.bool()
        if not self.train_eos:
            others = ~torch.isin(input_ids, torch.tensor(self.eos_token_ids))
            trained, answer_mask = trained & others, answer_mask & others
        labels = input_ids.masked_fill(~trained, IGNORE_INDEX)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "answer_mask": answer_mask,
        }


def _checked(number: int, row: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Token ids and place of the answer of one row, without padding."""
    if "answer_start" not in row and "labels_position_id" in row:
        row = {**row, "answer_start": torch.as_tensor(row["labels_position_id"]).flatten()[0]}
    missing = [f"`{name}`" for name in ("input_ids", "answer_start") if name not in row]
    if missing:
        raise DataError(
            f"Row {number} of a batch lacks {' and '.join(missing)}, it has "
            f"{', '.join(f'`{name}`' for name in row) or 'nothing'}: encode it first; a Trainer needs "
            f"`remove_unused_columns=False` to leave such columns in."
        )
    ids, start = torch.as_tensor(row["input_ids"], dtype=torch.long), int(row["answer_start"])
    if ids.ndim != 1 or not len(ids):
        raise DataError(f"`input_ids` of row {number} of a batch must be token ids, got shape {tuple(ids.shape)}.")
    if not 0 <= start <= len(ids):
        raise DataError(
            f"`answer_start` of row {number} of a batch must be in 0 to {len(ids)}, its number of tokens, got {start}."
        )
    if "attention_mask" in row:
        kept = torch.as_tensor(row["attention_mask"]).bool()
        if kept.shape != ids.shape:
            raise DataError(
                f"`attention_mask` of row {number} of a batch must be as long as its {len(ids)} `input_ids`, got "
                f"{len(kept)}."
            )
        ids, start = ids[kept], int(kept[:start].sum())
    return ids, start
