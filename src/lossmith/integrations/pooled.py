"""A classifier whose head reads the pooled hidden states: one linear map of the embedding that metric losses see."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lossmith.errors import ModelError
from lossmith.integrations.models import EMBEDDED, ResolvedModel, quiet_transformers
from lossmith.integrations.pooling import pool

HEAD_WEIGHTS = "head.safetensors"


class PooledClassifier(nn.Module):
    """Any encoder or decoder with a linear head on its pooled last hidden states.

    transformers' own heads read the first or the last token, whatever the model was trained to pool. Here head and
    metric loss read one embedding.

    Args:
        trunk: What `AutoModel` loads.
        num_classes: Classes; the head is drawn from torch's global generator.
        pooling: "mean", "cls" or "last".
        dropout: Before the head, in [0, 1).
    """

    base_model_prefix = "trunk"

    def __init__(self, trunk: PreTrainedModel, *, num_classes: int, pooling: str, dropout: float):
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size(trunk), num_classes)
        spread = getattr(trunk.config.get_text_config(), "initializer_range", 0.02)
        nn.init.normal_(self.classifier.weight, std=spread)
        nn.init.zeros_(self.classifier.bias)

    @property
    def config(self) -> Any:
        """The trunk's configuration, which names the classes."""
        return self.trunk.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier.weight.device

    @property
    def base_model(self) -> nn.Module:
        """The trunk."""
        return self.trunk

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's token embeddings."""
        return self.trunk.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits [batch, classes], and the last hidden states where they are asked for.

        `labels` are taken and not read: the loss is the trainer's.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        hidden = self.trunk(**given, return_dict=True).last_hidden_state
        mask = attention_mask if attention_mask is not None else torch.ones(hidden.shape[:2], device=hidden.device)
        logits = self.classifier(self.dropout(pool(hidden, mask, self.pooling)))
        return SequenceClassifierOutput(
            logits=logits,
            # Only the last ones: they are what embeddings are made of.
            hidden_states=(hidden,) if output_hidden_states else None,  # pyright: ignore[reportArgumentType]
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the trunk, which `AutoModel` loads, and the head beside it."""
        self.trunk.save_pretrained(folder)
        tensors = {name: value.contiguous().cpu() for name, value in self.classifier.state_dict().items()}
        safetensors.torch.save_file(tensors, Path(folder) / HEAD_WEIGHTS)


def hidden_size(network: Any) -> int:
    """Width of the last hidden states.

    Raises:
        ModelError: If the model's configuration does not say.
    """
    size = getattr(network.config.get_text_config(), "hidden_size", None)
    if not isinstance(size, int):
        raise ModelError(
            f"{type(network).__name__} does not say its hidden size: neither metric losses nor `head=pooled` can be "
            f"used with it."
        )
    return size


def load_pooled(model: ResolvedModel, label_names: tuple[str, ...], *, pooling: str) -> tuple[PooledClassifier, Any]:
    """A `PooledClassifier` with a fresh head and its tokenizer, in float32 on the CPU; no remote code is ever run.

    The head is drawn from torch's global generator: seed it first.

    Raises:
        ModelError: If transformers cannot load the model.
    """
    names = dict(enumerate(label_names))
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(model.location, trust_remote_code=False)
            trunk: Any = AutoModel.from_pretrained(
                model.location, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"`--model {model.name}` cannot be loaded: {first_line} Give another folder or hub id, or one of "
            f"{', '.join(EMBEDDED)}."
        ) from error
    trunk.config.id2label = names
    trunk.config.label2id = {name: index for index, name in names.items()}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trunk.config.pad_token_id = tokenizer.pad_token_id
    classifier = PooledClassifier(
        trunk, num_classes=len(names), pooling=pooling, dropout=_head_dropout(trunk.config.get_text_config())
    )
    return classifier, tokenizer


def _head_dropout(config: Any) -> float:
    """The dropout before a head that the configuration asks for; 0 where it says nothing."""
    stated = [getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout_prob")]
    return float(next((value for value in stated if value is not None), 0.0))


def reads_backwards_only(network: Any) -> bool:
    """Whether a token sees only those before it, so that the first one says nothing of its text."""
    kind = network.config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def load_head(folder: Path, classifier: PooledClassifier) -> None:
    """Bring back the head that `save_pretrained` wrote.

    Raises:
        ModelError: If it is not there, or of another shape.
    """
    file = folder / HEAD_WEIGHTS
    if not file.is_file():
        raise ModelError(f"`{folder}` lacks {HEAD_WEIGHTS}, the head of its classifier: save the model again.")
    state = safetensors.torch.load_file(file)
    own = {name: tuple(value.shape) for name, value in classifier.classifier.state_dict().items()}
    if {name: tuple(value.shape) for name, value in state.items()} != own:
        raise ModelError(f"{file} must hold {own}, the head of a model with these classes: it belongs to another one.")
    classifier.classifier.load_state_dict(state)
