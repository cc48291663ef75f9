"""How likely a causal language model finds given texts: options of a choice, answers of a test set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lossmith.engines import Demand, LinearLogits, LinearSource
from lossmith.errors import ConfigurationError, DataError
from lossmith.integrations.causal_lm.generation import OnBatch, evaluating
from lossmith.integrations.lm_head import HeadLoss, base_model
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
        ModelError: If the model's output embedding is no linear map in floating point.
    """
    _check(prompts, options, batch_size)
    found = [[0.0] * len(own) for own in options]
    single = [row for row, own in enumerate(options) if any(len(option) == 1 for option in own)]
    longer = [(row, place) for row, own in enumerate(options) for place, option in enumerate(own) if len(option) > 1]
    total = len(single) + len(longer)

    def moved(before: int) -> OnBatch:
        return lambda done, _: on_batch(before + done, total) if on_batch is not None else None

    last = _in_batches(
        model,
        tokenizer,
        [(prompts[row], len(prompts[row])) for row in single],
        _next_token_logps([[option[0] for option in options[row] if len(option) == 1] for row in single]),
        batch_size,
        moved(0),
    )
    for row, values in zip(single, last, strict=True):
        places = [place for place, option in enumerate(options[row]) if len(option) == 1]
        for place, value in zip(places, values, strict=True):
            found[row][place] = value
    sums = _in_batches(
        model,
        tokenizer,
        [([*prompts[row], *options[row][place]], len(prompts[row])) for row, place in longer],
        _token_logps,
        batch_size,
        moved(len(single)),
    )
    for (row, place), values in zip(longer, sums, strict=True):
        found[row][place] = sum(values)
    return found


def completion_nll(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    batch_size: int,
    on_batch: OnBatch | None = None,
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
        ModelError: If the model's output embedding is no linear map in floating point.
    """
    _check([ids for ids, _ in rows], None, batch_size)
    found = _in_batches(model, tokenizer, rows, _token_logps, batch_size, on_batch)
    return -sum(sum(values) for values in found) + 0.0, sum(len(values) for values in found)


Read = Callable[[LinearLogits, list[int], Tensor, Tensor], Tensor]
"""From unbuilt logits [batch, seq, vocab], the numbers of the rows, their lengths and labels, to one line of numbers
for each row; those behind its own are ignored."""


def _token_logps(linear: LinearLogits, rows: list[int], lengths: Tensor, labels: Tensor) -> Tensor:
    """Of each label that counts, at its place."""
    logps = torch.zeros(labels.shape, dtype=linear.dtype, device=linear.device)
    counted = labels != IGNORE_INDEX
    if bool(counted.any()):
        demand = Demand(labels=labels, names=("token_logps",))
        logps[counted] = LinearSource(linear, [demand]).tokens(labels, demand.names)["token_logps"]
    return logps


def _next_token_logps(tokens: list[list[int]]) -> Read:
    """Of each of these tokens behind the last one of its row."""

    def read(linear: LinearLogits, rows: list[int], lengths: Tensor, labels: Tensor) -> Tensor:
        hidden = linear.hidden[torch.arange(len(rows), device=linear.device), lengths - 1]
        logps = torch.log_softmax(linear.with_parts(hidden, linear.weight, linear.bias).dense(), dim=-1)
        width = max(len(tokens[row]) for row in rows)
        wanted = torch.tensor([tokens[row] + [0] * (width - len(tokens[row])) for row in rows], device=linear.device)
        return logps.gather(1, wanted)

    read.counts = [len(own) for own in tokens]  # pyright: ignore[reportFunctionMemberAccess]
    return read
