"""A transformer of a few thousand weights, drawn from a generator of its own and never from torch's global one."""

import math

import numpy as np
import torch
from torch import Tensor, nn


class TinyTransformer(nn.Module):
    """Two blocks of attention and MLP before a normalised output; reads token ids [rows, places].

    Args:
        vocabulary: Number of tokens.
        places: Longest row.
        width: Of the hidden states.
        causal: Whether a place sees only those before it.
        draw: Gives the initial weights.
    """

    def __init__(self, vocabulary: int, places: int, *, width: int, causal: bool, draw: np.random.Generator):
        super().__init__()
        self.causal = causal
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(places, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    size = 0.3 if parameter is self.tokens.weight else 1 / math.sqrt(parameter.shape[1])
                    drawn = draw.standard_normal(tuple(parameter.shape), dtype=np.float32)
                    parameter.copy_(torch.from_numpy(drawn) * size)

    def hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states [rows, places, width]."""
        states = self.tokens(ids) + 0.3 * self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            states = block(states, self.causal)
        return self.norm(states)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [rows, places, vocabulary]."""
        return self.head(self.hidden(ids))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        with torch.no_grad():
            for layer in (self.mix, self.out, self.up, self.down):
                layer.bias.zero_()

    def forward(self, states: Tensor, causal: bool) -> Tensor:
        rows, places, width = states.shape
        mixed = self.mix(self.norms[0](states)).view(rows, places, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        states = states + self.out(found.transpose(1, 2).reshape(rows, places, width))
        return states + self.down(nn.functional.gelu(self.up(self.norms[1](states))))


def answer_logps(network: TinyTransformer, rows: Tensor, prompt: int, lengths: Tensor) -> Tensor:
    """Summed log-probability of each row's answer: `lengths` tokens after the first `prompt`.

    Rows [rows, places] are padded on the right with anything.
    """
    logps = torch.log_softmax(network(rows[:, :-1])[:, prompt - 1 :], -1)
    answer = rows[:, prompt:]
    taken = logps.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
    return (taken * (torch.arange(answer.shape[1]) < lengths[:, None])).sum(-1)
