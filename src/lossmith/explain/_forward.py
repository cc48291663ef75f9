"""A classifier as a function of its token embeddings, in batches of about equal length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lossmith._checks import check_one_of
from lossmith.errors import ModelError
from lossmith.explain.tokens import TokenizedText

SCORES = ("log_probability", "logit")
"""What of a class can be explained."""
TOKENS_AT_ONCE = 4096
"""Tokens of a forward pass, padding included."""


@contextmanager
def resting(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters inside; as before outside."""
    training, wanted = model.training, [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)


def padded(rows: Sequence[Mapping[str, Sequence[int]]], tokenizer: Any, device: torch.device) -> dict[str, Tensor]:
    """The rows as one batch, padded on the tokenizer's side."""
    fill = {
        "input_ids": tokenizer.pad_token_id or 0,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        "attention_mask": 0,
    }
    longest = max(len(row["input_ids"]) for row in rows)
    left = getattr(tokenizer, "padding_side", "right") == "left"
    batch = {}
    for name in rows[0]:
        table = torch.full((len(rows), longest), fill.get(name, 0), dtype=torch.long)
        for place, row in enumerate(rows):
            values = torch.tensor(row[name], dtype=torch.long)
            start = longest - len(values) if left else 0
            table[place, start : start + len(values)] = values
        batch[name] = table.to(device)
    return batch


def by_length(lengths: Sequence[int], rows_each: int = 1) -> Iterator[list[int]]:
    """Places in batches of about equal length, of at most `TOKENS_AT_ONCE` tokens if a place needs so many rows."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * rows_each * max(lengths[place], 1) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def target_scores(logits: Tensor, targets: Tensor, score: str) -> Tensor:
    """The explained number of each row: log-probability in nats, or logit, of its target class."""
    check_one_of("score", score, SCORES)
    values = logits.float().log_softmax(-1) if score == "log_probability" else logits.float()
    return values.gather(-1, targets[:, None])[:, 0]


class EmbeddingInput:
    """A classifier that is fed token embeddings in place of those it would look up.

    The ids go in as well: some models count positions by them.
    """

    def __init__(self, model: Any):
        layer = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        if layer is None:
            raise ModelError(f"{type(model).__name__} does not say its token embeddings: it cannot be attributed.")
        self.model, self.layer = model, layer
        self._given: Tensor | None = None

    @contextmanager
    def open(self) -> Iterator["EmbeddingInput"]:
        """Put the embeddings in inside."""
        handle = self.layer.register_forward_hook(lambda module, args, output: self._given)
        try:
            yield self
        finally:
            handle.remove()

    def look_up(self, ids: Tensor) -> Tensor:
        """The model's own embeddings [rows, seq, dim] of token ids."""
        self._given = None
        return self.layer(ids).detach()

    def logits(self, embeddings: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Logits [rows, classes] for these embeddings."""
        self._given = embeddings
        try:
            return self.model(**fields).logits
        finally:
            self._given = None


@torch.no_grad()
def text_logits(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Sequence[int]]],
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Logits [rows, classes] on the CPU, in the order given."""
    order: list[int] = []
    parts: list[Tensor] = []
    for batch in by_length([len(row["input_ids"]) for row in rows]):
        fields = padded([rows[place] for place in batch], tokenizer, model.device)
        parts.append(model(**fields).logits.float().cpu())
        order += batch
        if on_batch is not None:
            on_batch(len(batch))
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)


def chosen_rows(text: TokenizedText, places: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The text with the tokens at these places alone."""
    return {name: tuple(values[place] for place in places) for name, values in text.fields.items()}
