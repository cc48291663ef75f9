"""From a batch of token ids to aligned labels: the one place where labels of a causal language model are shifted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from lossmith._typing import Bool, Int, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.nn import IGNORE_INDEX


def sequence_starts(
    like: Int[Tensor, "batch seq"],
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Whether a token is the first of its sequence, however the batch was padded or packed.

    Args:
        like: Token ids or labels, for the shape.
        attention_mask: [batch, seq], 0 on padding; packed sequences may carry different numbers. Masks of other shapes
            (4-D) say nothing about sequences.
        position_ids: [batch, seq]; a position that does not exceed the one before it begins a sequence.
        cu_seq_lens: Offsets of the sequences in the flattened batch, ascending from 0, its length last or left out.

    Raises:
        ObjectiveInputError: For shapes that do not fit, or offsets outside the batch.
    """
    # Not `zeros_like`, which keeps the strides of a transposed tensor.
    starts = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    starts[:, :1] = True
    if attention_mask is not None and attention_mask.ndim == 2:
        _check_shape("attention_mask", attention_mask, like)
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    if position_ids is not None:
        if position_ids.ndim != 2 or position_ids.shape[1] != like.shape[1]:
            raise ObjectiveInputError(
                f"`position_ids` must be [batch, seq] = {tuple(like.shape)}, got {tuple(position_ids.shape)}."
            )
        starts[:, 1:] |= position_ids[:, 1:] <= position_ids[:, :-1]
    if cu_seq_lens is not None:
        if cu_seq_lens.ndim != 1 or cu_seq_lens.is_floating_point():
            raise ObjectiveInputError(
                f"`cu_seq_lens` must be integer offsets [sequences + 1], got {cu_seq_lens.dtype} "
                f"{tuple(cu_seq_lens.shape)}."
            )
        offsets, flat = cu_seq_lens.cpu().long(), starts.view(-1)
        if bool(((offsets < 0) | (offsets > flat.numel())).any()):
            raise ObjectiveInputError(
                f"`cu_seq_lens` must be offsets into the {flat.numel()} tokens of the batch, got {offsets.tolist()}."
            )
        flat[offsets[offsets < flat.numel()].to(like.device)] = True
    return starts


def aligned_labels(
    labels: Int[Tensor, "batch seq"],
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Int[Tensor, "batch seq"]:
    """Labels aligned with logits: at position t the token at t + 1, if it continues the same sequence.

    The first token of a sequence is nobody's target: not in a packed row, where the token before it belongs to
    another text, and not behind left padding. So packed, left-padded and right-padded batches count the same tokens.

    Args:
        labels: Token ids aligned with the inputs, -100 where they do not count.
        attention_mask: See `sequence_starts`; padding does not count.
        position_ids: See `sequence_starts`.
        cu_seq_lens: See `sequence_starts`.

    Returns:
        New labels, -100 at the last position.

    Example:
        >>> packed = torch.tensor([[5, 6, 7, 8, 9]])
        >>> aligned_labels(packed, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
        tensor([[   6,    7, -100,    9, -100]])
    """
    if labels.ndim != 2:
        raise ObjectiveInputError(f"`labels` must be [batch, seq], got {tuple(labels.shape)}.")
    starts = sequence_starts(labels, attention_mask=attention_mask, position_ids=position_ids, cu_seq_lens=cu_seq_lens)
    targets = labels.masked_fill(starts, IGNORE_INDEX)
    if attention_mask is not None and attention_mask.ndim == 2:
        targets = targets.masked_fill(attention_mask == 0, IGNORE_INDEX)
    return F.pad(targets[:, 1:], (0, 1), value=IGNORE_INDEX)


def aligned_mask(mask: Tensor) -> Bool[Tensor, "batch seq"]:
    """A mask over tokens, moved to the positions that predict them."""
    return F.pad(mask[:, 1:].bool(), (0, 1), value=False)


@dataclass(frozen=True, kw_only=True)
class AlignedBatch:
    """The labels of a batch as losses want them."""

    labels: Tensor
    """Aligned with the logits, -100 where they do not count, [batch, seq] or [batch]."""
    scopes: Mapping[str, Tensor] = field(default_factory=dict)
    """Masks of the shape of `labels` by the name of a label scope."""
    sequences: Tensor | None = None
    """The number of each place's sequence in the batch, from 0; None where each row is one."""
    embedding_labels: Tensor | None = None
    """Label of each token, -100 where it is padding or special, [batch, seq]; None where a text is one embedding."""

    def restricted(self, scope: str | None) -> Tensor:
        """The labels of a scope; all of them without one."""
        return self.labels if scope is None else self.labels.masked_fill(~self.scopes[scope], IGNORE_INDEX)

    def sequence_numbers(self) -> Tensor:
        """The number of each place's sequence, of the shape of `labels`."""
        if self.sequences is not None:
            return self.sequences
        rows = torch.arange(len(self.labels), device=self.labels.device)
        return rows.view(-1, *[1] * (self.labels.ndim - 1)).expand_as(self.labels)

    def num_sequences(self, scope: str | None = None) -> int:
        """Sequences with a label that counts."""
        return len(torch.unique(self.sequence_numbers()[self.restricted(scope) != IGNORE_INDEX]))

    def sequence_weights(self) -> Tensor:
        """For each label one over the labels of its sequence: their sum is the number of sequences that count."""
        numbers, valid = self.sequence_numbers(), self.labels != IGNORE_INDEX
        counts = torch.bincount(numbers[valid], minlength=1)
        weights = torch.zeros(self.labels.shape, device=self.labels.device)
        weights[valid] = 1.0 / counts[numbers[valid]].to(weights.dtype)
        return weights

    def rows_by_sequence(self) -> Tensor | None:
        """Places of the labels that count, a row per sequence, -1 behind a shorter one; None where rows are sequences.

        Packed rows hold several sequences; a loss of one region per sequence needs them apart.
        """
        if self.sequences is None:
            return None
        places = (self.labels != IGNORE_INDEX).flatten().nonzero().squeeze(1)
        found, numbers = torch.unique(self.sequences.flatten()[places], return_inverse=True)
        if len(found) == len(torch.unique(places // self.labels.shape[1])):
            return None
        counts = torch.bincount(numbers)
        starts = counts.cumsum(0) - counts
        rows = places.new_full((len(counts), int(counts.max())), -1)
        rows[numbers, torch.arange(len(places), device=places.device) - starts[numbers]] = places
        return rows

    def at(self, rows: Tensor) -> "AlignedBatch":
        """The labels at these places, one row per sequence."""
        here = rows >= 0
        labels = self.labels.flatten()[rows.clamp(min=0)].masked_fill(~here, IGNORE_INDEX)
        scopes = {name: mask.flatten()[rows.clamp(min=0)] & here for name, mask in self.scopes.items()}
        return AlignedBatch(labels=labels, scopes=scopes)


def align(inputs: Mapping[str, Any], scopes: Sequence[str] = (), *, shift: bool) -> AlignedBatch:
    """The labels of a batch, aligned with the logits of a model.

    Args:
        inputs: A batch as a collator makes it, with `labels` and, for each scope, a mask `<scope>_mask` of their shape.
        scopes: Label scopes that a loss names.
        shift: Whether the model predicts the next token (a causal language model).

    Raises:
        ObjectiveInputError: Where labels or a mask are missing or of another shape.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        raise ObjectiveInputError(
            f"A batch must hold `labels`, got {', '.join(f'`{name}`' for name in inputs)}: add a column `labels`, or a "
            f"collator that makes them (transformers' DataCollatorForLanguageModeling(mlm=False) for plain text)."
        )
    masks = {scope: _mask(inputs, scope, labels) for scope in scopes}
    if not shift:
        return AlignedBatch(labels=labels, scopes=masks)
    names = {"attention_mask": "attention_mask", "position_ids": "position_ids", "cu_seq_lens_q": "cu_seq_lens"}
    layout = {ours: inputs[theirs] for theirs, ours in names.items() if isinstance(inputs.get(theirs), Tensor)}
    starts = sequence_starts(labels, **layout)
    return AlignedBatch(
        labels=aligned_labels(labels, **layout),
        scopes={name: aligned_mask(mask) for name, mask in masks.items()},
        sequences=starts.flatten().cumsum(0).sub(1).view(starts.shape),
    )


def _mask(inputs: Mapping[str, Any], scope: str, labels: Tensor) -> Tensor:
    mask = inputs.get(f"{scope}_mask")
    if not isinstance(mask, Tensor) or mask.shape != labels.shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else "nothing"
        raise ObjectiveInputError(
            f"A batch must hold `{scope}_mask` of the shape of `labels`, {tuple(labels.shape)}, for the label scope "
            f"[{scope}], got {found}."
        )
    return mask.bool()


def _check_shape(name: str, given: Tensor, like: Tensor) -> None:
    if given.shape != like.shape:
        raise ObjectiveInputError(f"`{name}` must be [batch, seq] = {tuple(like.shape)}, got {tuple(given.shape)}.")


def token_labels(inputs: Mapping[str, Any], labels: Int[Tensor, " batch"]) -> Int[Tensor, "batch seq"]:
    """The label of a text at each of its own tokens, -100 on padding and special tokens.

    Raises:
        ObjectiveInputError: Where the batch does not say which tokens are special.
    """
    masks = [inputs.get(name) for name in ("attention_mask", "special_tokens_mask")]
    if not all(isinstance(mask, Tensor) for mask in masks):
        raise ObjectiveInputError(
            f"A batch must hold `attention_mask` and `special_tokens_mask` for `pooling` tokens, got "
            f"{', '.join(f'`{name}`' for name in inputs)}: tokenise with return_special_tokens_mask=True."
        )
    attention, special = masks
    assert attention is not None
    assert special is not None
    own = attention.bool() & ~special.bool()
    return labels[:, None].expand_as(own).masked_fill(~own, IGNORE_INDEX)
