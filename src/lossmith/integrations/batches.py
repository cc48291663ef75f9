"""From a batch of token ids to aligned labels: the one place where labels of a causal language model are shifted."""

from collections.abc import Mapping
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
        ObjectiveInputError: For shapes that do not fit.
    """
    starts = torch.zeros_like(like, dtype=torch.bool)
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
        offsets = cu_seq_lens.to(like.device).long()
        flat = starts.view(-1)
        flat[offsets[offsets < flat.numel()]] = True
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


def layout(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a batch says of its sequences, as keywords of `aligned_labels` and `sequence_starts`."""
    names = {"attention_mask": "attention_mask", "position_ids": "position_ids", "cu_seq_lens_q": "cu_seq_lens"}
    return {ours: inputs[theirs] for theirs, ours in names.items() if isinstance(inputs.get(theirs), Tensor)}


def sequence_numbers(starts: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Which sequence of the batch each token belongs to, from 0, padding with what stands before it."""
    return starts.flatten().cumsum(0).sub(1).view(starts.shape)


def _check_shape(name: str, given: Tensor, like: Tensor) -> None:
    if given.shape != like.shape:
        raise ObjectiveInputError(f"`{name}` must be [batch, seq] = {tuple(like.shape)}, got {tuple(given.shape)}.")
