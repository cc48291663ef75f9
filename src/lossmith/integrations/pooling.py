"""From the hidden states of a text to one embedding."""

import torch
from torch import Tensor

from lossmith._checks import check_one_of

POOLINGS = ("mean", "cls", "last")
"""Ways to make one embedding of a text."""
TOKENS = "tokens"
"""The way that makes none: each token of the text is an embedding of its own."""


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """One vector per text from the last hidden states.

    Args:
        hidden: Last hidden states, [batch, seq, dim].
        attention_mask: 1 on tokens, 0 on padding, [batch, seq].
        pooling: "mean" over the tokens, "cls" (the first token) or "last" (the last one, whatever side is padded).

    Returns:
        Embeddings, [batch, dim].

    Raises:
        ObjectiveInputError: For another `pooling`.
    """
    check_one_of("pooling", pooling, POOLINGS)
    if pooling == "mean":
        keep = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * keep).sum(1) / keep.sum(1).clamp(min=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    if pooling == "cls":
        index = torch.where(attention_mask.bool(), positions, hidden.shape[1]).amin(1)
    else:
        index = torch.where(attention_mask.bool(), positions, -1).amax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index.clamp(0, hidden.shape[1] - 1)]
