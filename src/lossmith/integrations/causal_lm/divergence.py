"""How far the next-token distributions of two causal language models are apart, along given texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lossmith.engines import LinearLogits
from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.integrations.causal_lm.generation import OnBatch, check_room, evaluating
from lossmith.integrations.causal_lm.likelihood import Row
from lossmith.integrations.lm_head import HeadLoss

CHUNK_ELEMENTS = 2**23
"""Log-probabilities of one model that exist at a time: 32 MiB in float32."""


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """One row of prompt and answer under a policy and a reference, in nats."""

    logps: list[float]
    """Log-probability of each token of the answer under the policy, <= 0."""
    ref_logps: list[float]
    """The same under the reference."""
    kl: list[float]
    """KL(policy || reference) of the distribution that each token of the answer was drawn from, over the whole
    vocabulary, >= 0 up to rounding."""
    reverse_kl: list[float]
    """KL(reference || policy) of the distribution behind every token of the row, prompt and last token included."""


def row_divergences(
    policy: Any,
    reference: Any,
    rows: Sequence[Row],
    *,
    padding: int,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> list[RowDivergence]:
    """Compare two models along rows. Batches and padding change nothing but the last bits.

    Each model reads a batch once; their logits exist for a few tokens at a time. Draws no random numbers and leaves
    both models in the mode that they were in.

    Args:
        policy: A transformers model, or one with adapters.
        reference: Another of the same vocabulary; None takes `policy` with its adapters off.
        rows: Token ids of prompt and answer, and the place where the answer begins, >= 1.
        padding: A token id to fill up with.
        batch_size: Rows per forward pass, >= 1.
        on_batch: Called after every batch with the rows that are done and all there are.

    Returns:
        One entry per row, in the order given.

    Raises:
        ConfigurationError: If `batch_size` is not positive, or there is no reference and no adapter.
        DataError: For an answer that begins at the first token, or a row that ends before it.
        ModelError: If a row is longer than a model reads, or the vocabularies differ.
    """
    if batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be >= 1, got {batch_size}.")
    if reference is None and not isinstance(policy, PeftModel):
        raise ConfigurationError(
            "`reference` must be a model where the policy has no adapters to switch off, got None."
        )
    for number, (ids, start) in enumerate(rows):
        if not 1 <= start <= len(ids):
            raise DataError(f"The answer of row {number} must begin within [1, {len(ids)}], got {start}.")
    heads = HeadLoss(policy), HeadLoss(policy if reference is None else reference)
    if heads[0].vocab != heads[1].vocab:
        raise ModelError(
            f"Policy and reference must have one vocabulary, got {heads[0].vocab:,} and {heads[1].vocab:,} tokens."
        )
    for head in heads:
        check_room(head.base, max((len(ids) for ids, _ in rows), default=0))
    found: list[RowDivergence] = [RowDivergence([], [], [], []) for _ in rows]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
    with ExitStack() as quiet:
        for model in {id(model): model for model in (policy, reference) if model is not None}.values():
            quiet.enter_context(evaluating(model))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            values = _compare(policy, reference, heads, [rows[row][0] for row in batch], padding)
            for row, own in zip(batch, values, strict=True):
                found[row] = _of_row(own, rows[row][1])
            if on_batch is not None:
                on_batch(first + len(batch), len(order))
    return found


def _of_row(values: Tensor, start: int) -> RowDivergence:
    """From what was found behind each token [tokens, 4]; what comes behind the last one has no label."""
    answer = values[start - 1 : -1].T.tolist()
    return RowDivergence(logps=answer[0], ref_logps=answer[1], kl=answer[2], reverse_kl=values[:, 3].tolist())


def _compare(
    policy: Any, reference: Any, heads: tuple[HeadLoss, HeadLoss], rows: Sequence[Sequence[int]], padding: int
) -> list[Tensor]:
    """Per row [tokens, 4]: log-probability of the next token under both, KL and reverse KL, behind each token."""
    width, device = max(len(ids) for ids in rows), policy.device
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=device)
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    kept: list[LinearLogits] = []

    def keep(linear: LinearLogits) -> Tensor:
        kept.append(linear)
        return linear.hidden.new_zeros(())

    inputs = {"input_ids": ids, "attention_mask": seen, "use_cache": False}
    with _reference_of(policy, reference) as model:
        heads[1](model, {name: _to(value, model.device) for name, value in inputs.items()}, keep)
    heads[0](policy, inputs, keep)
    labels = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)  # behind the last token the label means nothing
    valid = seen.bool()
    values = _in_chunks(kept[1], kept[0], valid, labels[valid])
    return list(values.split([len(row) for row in rows]))


@contextmanager
def _reference_of(policy: Any, reference: Any) -> Iterator[Any]:
    if reference is not None:
        yield reference
        return
    with policy.disable_adapter():
        yield policy


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _in_chunks(policy: LinearLogits, reference: LinearLogits, valid: Tensor, labels: Tensor) -> Tensor:
    """The four numbers behind each valid token [tokens, 4], in float64 on the CPU."""
    rows = max(1, CHUNK_ELEMENTS // policy.vocab)
    scores = [_scores(linear, valid.to(linear.hidden.device)) for linear in (policy, reference)]
    found = []
    for start in range(0, len(labels), rows):
        chunk = slice(start, start + rows)
        logps, ref_logps = (torch.log_softmax(score(chunk).to(labels.device), dim=-1) for score in scores)
        own = labels[chunk].unsqueeze(-1)
        # A class that one of them rules out (-inf) adds nothing to its own expectation.
        gaps = [
            torch.where(left == -torch.inf, 0.0, left.exp() * (left - right)).sum(-1)
            for left, right in ((logps, ref_logps), (ref_logps, logps))
        ]
        found.append(torch.stack([logps.gather(-1, own)[:, 0], ref_logps.gather(-1, own)[:, 0], *gaps], dim=1))
    return torch.cat(found).double().cpu()


def _scores(linear: LinearLogits, valid: Tensor) -> Callable[[slice], Tensor]:
    """Logits of some of the valid tokens, in at least float32."""
    hidden = linear.hidden[valid]

    def of(chunk: slice) -> Tensor:
        scores = linear.with_parts(hidden[chunk], linear.weight, linear.bias).dense()
        return scores if scores.dtype == torch.float64 else scores.float()

    return of
