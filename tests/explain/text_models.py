"""Small classifiers of texts for attributions: one that is linear in its token embeddings, and the tiny BERT."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import tiny
from lossmith.integrations.models import load_classifier, resolve_model


class LinearBag(nn.Module):
    """Logits are the sum over all tokens of a linear map of their embeddings: every attribution is known exactly."""

    def __init__(self, vocabulary: int, dim: int = 5, classes: int = 3):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.head = nn.Linear(dim, classes, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(vocabulary, dim, generator=draw))
            self.head.weight.copy_(torch.randn(classes, dim, generator=draw) / 4)

    @property
    def device(self):
        return self.head.weight.device

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        summed = (self.embedding(input_ids) * attention_mask[..., None]).sum(1)
        return SimpleNamespace(logits=self.head(summed))


def tiny_classifier(folder: Path, *, spread: float = 0.5, classes: int = 2):
    """The tiny BERT with a head large enough for probabilities to move, and its tokenizer."""
    network, tokenizer = load_classifier(resolve_model(str(folder)), tuple("abc"[:classes]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        network.classifier.weight.normal_(std=spread)
    return network.eval(), tokenizer


def tiny_folder(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("explained") / "tiny")
