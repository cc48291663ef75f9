"""How likely a causal language model finds given texts: options of a choice, answers of a test set."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lossmith.engines import Demand, LinearLogits, LinearSource
from lossmith.errors import ConfigurationError, DataError
from lossmith.integrations.causal_lm.generation import OnBatch, check_room, evaluating
from lossmith.integrations.lm_head import HeadLoss
from lossmith.nn import IGNORE_INDEX

Row = tuple[Sequence[int], int]
"""Token ids, and the place of the first one that counts."""


def option_logps(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> list[list[float]]:
    """Log-probability of each option after its prompt, summed over the option's tokens, in nats, <= 0.

    Options of one token are read from a single pass over their prompt. Batches and padding change nothing but the
    last bits. No table of tokens x vocabulary is built, only one row of it per prompt.

    Args:
        model: A transformers model, or one with adapters.
        tokenizer: Its tokenizer, for the padding token.
        prompts: Token ids of each prompt, at least one.
        options: For each prompt, the token ids of each option, at least one.
        batch_size: Rows per forward pass, >= 1.
        on_batch: Called after every batch with the rows that are done and all there are.

    Returns:
        For each prompt one number per option.

    Raises:
        ConfigurationError: If `batch_size` is not positive.
        DataError: For an empty prompt or option, or a different number of prompts and lists of options.
        ModelError: If a row is longer than the model reads, or its output embedding is no linear map in floating point.
    """
    if len(prompts) != len(options):
        raise DataError(f"There must be one list of options per prompt, got {len(prompts)} and {len(options)}.")
    for number, own in enumerate(options):
        if not all(len(option) for option in own):
            raise DataError(f"An option of prompt {number} has no token: give each at least one.")
    single = [row for row, own in enumerate(options) if any(len(option) == 1 for option in own)]
    longer = [(row, place) for row, own in enumerate(options) for place, option in enumerate(own) if len(option) > 1]
    shared = [prompts[row] for row in single]
    whole = [([*prompts[row], *options[row][place]], len(prompts[row])) for row, place in longer]
    found = [[0.0] * len(own) for own in options]

    def moved(done: int, before: int) -> None:
        if on_batch is not None:
            on_batch(before + done, len(single) + len(longer))

    with _Passes(model, tokenizer, batch_size) as passes:
        wanted = [[option[0] for option in options[row] if len(option) == 1] for row in single]
        for row, values in zip(single, passes.next_token_logps(shared, wanted, lambda n, _: moved(n, 0)), strict=True):
            places = [place for place, option in enumerate(options[row]) if len(option) == 1]
            for place, value in zip(places, values, strict=True):
                found[row][place] = value
        sums = passes.token_logps(whole, lambda n, _: moved(n, len(single)))
        for (row, place), values in zip(longer, sums, strict=True):
            found[row][place] = sum(values)
    return found


def completion_nll(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, batch_size: int, on_batch: OnBatch | None = None
) -> tuple[float, int]:
    """Negative log-likelihood of answers, each token given the true ones before it.

    Draws no random numbers and leaves the model in the mode that it was in, so that calling it in the middle of
    training changes nothing.

    Args:
        model: A transformers model, or one with adapters.
        tokenizer: Its tokenizer, for the padding token.
        rows: Token ids of prompt and answer, and the place where the answer begins; the first token of a row has none
            before it and never counts.
        batch_size: Rows per forward pass, >= 1.
        on_batch: Called after every batch with the rows that are done and all there are.

    Returns:
        Nats, summed over all answer tokens, and the number of these tokens; their ratio is the mean.

    Raises:
        ConfigurationError: If `batch_size` is not positive.
        DataError: For a row without a token.
        ModelError: If a row is longer than the model reads, or its output embedding is no linear map in floating point.
    """
    with _Passes(model, tokenizer, batch_size) as passes:
        found = passes.token_logps(rows, on_batch)
    return -sum(sum(values) for values in found) + 0.0, sum(len(values) for values in found)


class _Passes:
    """Forward passes over rows padded on the right, whose logits are never built; rows of like length together."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int):
        if batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be >= 1, got {batch_size}.")
        self._model, self._batch_size, self._head = model, batch_size, HeadLoss(model)
        self._padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._quiet = ExitStack()

    def __enter__(self) -> "_Passes":
        self._quiet.enter_context(evaluating(self._model))
        return self

    def __exit__(self, *raised: object) -> None:
        self._quiet.close()

    def token_logps(self, rows: Sequence[Row], on_batch: OnBatch | None) -> list[list[float]]:
        """Log-probabilities of the tokens of each row from its place on."""
        found: list[list[float]] = [[] for _ in rows]
        for batch, inputs in self._batches([ids for ids, _ in rows], on_batch):
            width = inputs["input_ids"].shape[1]
            # The place of a label is that of the token before it.
            targets = [self._targets(*rows[row], width) for row in batch]
            labels = torch.tensor(targets, device=inputs["input_ids"].device)
            values = iter(self._head(self._model, inputs, partial(_logps_of, labels)).loss.double().tolist())
            for row, count in zip(batch, (labels != IGNORE_INDEX).sum(1).tolist(), strict=True):
                found[row] = list(islice(values, count))
        return found

    def next_token_logps(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], on_batch: OnBatch | None
    ) -> list[list[float]]:
        """Log-probabilities of some tokens, each as the next one after a prompt."""
        found: list[list[float]] = [[] for _ in prompts]
        for batch, inputs in self._batches(prompts, on_batch):
            last = inputs["attention_mask"].sum(1) - 1
            logps = self._head(self._model, inputs, partial(_logps_after, last)).loss.double().cpu()
            for row, own in zip(batch, logps, strict=True):
                found[row] = own[list(tokens[row])].tolist()
        return found

    def _batches(
        self, rows: Sequence[Sequence[int]], on_batch: OnBatch | None
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of the rows of each batch, and what the model reads of them."""
        for number, ids in enumerate(rows):
            if not len(ids):
                raise DataError(f"Row {number} has no token: give each at least one.")
        check_room(self._head.base, max((len(ids) for ids in rows), default=0))
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        device = self._model.device
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            width = len(rows[batch[0]])
            ids = [[*rows[row], *[self._padding] * (width - len(rows[row]))] for row in batch]
            seen = [[1] * len(rows[row]) + [0] * (width - len(rows[row])) for row in batch]
            yield (
                batch,
                {
                    "input_ids": torch.tensor(ids, device=device),
                    "attention_mask": torch.tensor(seen, device=device),
                    "use_cache": False,
                },
            )
            if on_batch is not None:
                on_batch(start + len(batch), len(order))

    @staticmethod
    def _targets(ids: Sequence[int], start: int, width: int) -> list[int]:
        first = max(start, 1)
        targets = [IGNORE_INDEX] * (first - 1) + list(ids[first:])
        return targets + [IGNORE_INDEX] * (width - len(targets))


def _logps_of(labels: Tensor, linear: LinearLogits) -> Tensor:
    """Log-probabilities of the labels that count, row after row."""
    if not bool((labels != IGNORE_INDEX).any()):
        return linear.hidden.new_zeros(0)
    demand = Demand(labels=labels, names=("token_logps",))
    return LinearSource(linear, [demand]).tokens(labels, demand.names)["token_logps"]


def _logps_after(last: Tensor, linear: LinearLogits) -> Tensor:
    """Log-probabilities [batch, vocab] of what follows the last token of each row."""
    hidden = linear.hidden[torch.arange(len(last), device=last.device), last]
    return torch.log_softmax(linear.with_parts(hidden, linear.weight, linear.bias).dense(), dim=-1)
