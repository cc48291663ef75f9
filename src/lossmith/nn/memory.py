"""A queue of embeddings of earlier batches: a cross-batch memory."""

from typing import Any, final

import torch
from torch import nn

from lossmith._typing import Float, Int, Tensor
from lossmith.engines.similarity import IGNORED
from lossmith.errors import ObjectiveInputError


@final
class EmbeddingMemory(nn.Module):
    """The newest `size` embeddings with their labels, in `state_dict`; empty places are labelled -100.

    Args:
        size: Rows that it holds.
        embedding_dim: Length of a row.
    """

    embeddings: Tensor
    labels: Tensor
    pushed: Tensor

    def __init__(self, size: int, embedding_dim: int):
        super().__init__()
        self.size = size
        self.register_buffer("embeddings", torch.zeros(size, embedding_dim))
        self.register_buffer("labels", torch.full((size,), IGNORED))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_pre_hook(_check_saved_rows)

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "rows dim"], labels: Int[Tensor, " rows"]) -> None:
        """Let rows in, in the place of the oldest ones."""
        embeddings, labels = embeddings[-self.size :], labels[-self.size :]
        places = (self.pushed + torch.arange(len(labels), device=labels.device)) % self.size
        # New tensors, not writes in place: the rows of this batch's memory are part of its graph.
        self.embeddings = self.embeddings.index_copy(0, places, embeddings.to(self.embeddings.dtype))
        self.labels = self.labels.index_copy(0, places, labels)
        self.pushed = self.pushed + len(labels)


def _check_saved_rows(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    saved, own = state.get(f"{prefix}embeddings"), tuple(module.get_buffer("embeddings").shape)
    if isinstance(saved, Tensor) and tuple(saved.shape) != own:
        raise ObjectiveInputError(
            f"The saved memory has shape {tuple(saved.shape)}, this loss needs (memory_size, embedding_dim) = {own}."
        )
