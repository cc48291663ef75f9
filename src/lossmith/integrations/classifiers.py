"""Classifiers as studies train and save them: which head, which adapters, and everything that `predict` needs."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import lossmith
from lossmith.errors import ConfigurationError, ModelError, ObjectiveInputError
from lossmith.integrations.causal_lm.loading import add_lora
from lossmith.integrations.lm_head import base_model
from lossmith.integrations.models import ResolvedModel, load_classifier, quiet_transformers
from lossmith.integrations.pooled import PooledClassifier, hidden_size, load_head, load_pooled
from lossmith.integrations.pooling import POOLINGS, TOKENS
from lossmith.integrations.saving import LOSS_CONFIG, give_ordinary_permissions, read_config, read_state, save_loss
from lossmith.nn import LossModule, WeightedSum, parse_composition

HEADS = ("own", "pooled")
REFERENCE_WEIGHTS = "reference.safetensors"
COLUMNS = ("text_column", "text_pair_column", "label_column")
"""Fields of `Inference` that a saved file may lack, as those of older models do."""


def load_network(
    model: ResolvedModel,
    label_names: tuple[str, ...],
    *,
    head: str,
    pooling: str,
    lora: Mapping[str, Any] | None,
) -> tuple[Any, Any]:
    """A classifier with a fresh head, perhaps with adapters, and its tokenizer.

    Head and adapters are drawn from torch's global generator: seed it first.

    Args:
        model: Where the pretrained weights are.
        label_names: Name of each class id.
        head: "own", the one that transformers gives to the architecture, or "pooled", a linear map of the pooled last
            hidden states.
        pooling: For the pooled head: "mean", "cls" or "last"; "tokens" means "mean" here.
        lora: Arguments of `add_lora`; None trains all weights.

    Raises:
        ModelError: If transformers cannot load the model as a classifier.
        ConfigurationError: If PEFT refuses the adapters.
    """
    if head == "pooled":
        network, tokenizer = load_pooled(model, label_names, pooling="mean" if pooling == TOKENS else pooling)
    else:
        network, tokenizer = load_classifier(model, label_names)
    if lora is None:
        return network, tokenizer
    settings = dict(lora)
    trunk, heads = _parts(network)
    if settings.get("target_modules", "all-linear") == "all-linear":
        # By name, since PEFT's own "all-linear" takes transformers models only, and would put adapters on fresh heads.
        settings["target_modules"] = [name for name in trunk if isinstance(network.get_submodule(name), nn.Linear)]
    return add_lora(network, **settings, heads=heads), tokenizer


def _parts(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names of all modules within the pretrained trunk, and of the children with weights outside it."""
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    trunk = [name for name, _ in network.named_modules() if name.startswith(prefix)]
    heads = [
        name
        for name, child in network.named_children()
        if f"{name}." != prefix and any(True for _ in child.parameters())
    ]
    return trunk, heads


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What a trained classifier needs beside its weights to be asked in every way."""

    pooling: str
    """"mean", "cls", "last" or "tokens"."""
    head: str
    """"own" or "pooled"."""
    mixture: float
    """Share of the head in the mixture."""
    max_length: int
    """Tokens per text."""
    pairs: bool
    """Whether it reads pairs of texts."""
    task: str = ""
    """Name of the task that it was trained on."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Method -> the temperature fitted on rows that were not trained on; empty where there were none."""
    text_column: str | None = None
    """Column of the file that it was trained on with the texts, of pairs the first; None where nobody wrote it down."""
    text_pair_column: str | None = None
    """Column with the second texts of pairs."""
    label_column: str | None = None
    """Column with the labels."""


@dataclass(frozen=True, kw_only=True)
class SavedClassifier:
    """A saved classifier, read back."""

    model: Any
    tokenizer: Any
    label_names: tuple[str, ...]
    loss: LossModule | None
    """The loss with its trained proxies; None for a model that was not saved by lossmith."""
    inference: Inference | None
    """None for a model that was not saved by lossmith: only its head can be asked."""
    support: tuple[Tensor, Tensor] | None
    """Embeddings [texts, dim] and labels [texts] of the training texts."""


def save_classifier(
    network: Any,
    tokenizer: Any,
    loss: LossModule,
    folder: Path,
    *,
    inference: Inference,
    support: tuple[Tensor, Tensor] | None,
) -> None:
    """Write model, tokenizer, loss, and what the ways of inference need.

    With the model's own head, `AutoModelForSequenceClassification.from_pretrained` loads the folder, with a pooled one
    `AutoModel` does, and `load_saved` loads both. Adapters are merged, which changes `network` for good.
    """
    with quiet_transformers():
        if isinstance(network, PeftModel):
            network = network.merge_and_unload()
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    save_loss(loss, folder, **{name: getattr(inference, name) for name in Inference.__dataclass_fields__})
    if support is not None:
        tensors = {"embeddings": support[0].contiguous(), "labels": support[1].contiguous()}
        safetensors.torch.save_file(tensors, folder / REFERENCE_WEIGHTS)
    give_ordinary_permissions(folder)


def load_saved(folder: Path) -> SavedClassifier:
    """A classifier that `lossmith train` saved, or any sequence classifier of transformers. No remote code is ever run.

    Raises:
        ModelError: If the folder holds no classifier, or its proxies belong to a model with other classes.
    """
    if not os.path.isfile(folder / "config.json"):  # Path.is_file raises on a name that is too long
        what = "must be the folder of a saved classifier, with config.json and safetensors"
        raise ModelError(f"`{folder}` {what}, got {'one without' if os.path.isdir(folder) else 'no folder'}.")
    try:
        config = read_config(folder) if (folder / LOSS_CONFIG).is_file() else None
    except ValueError as error:
        raise ModelError(f"{folder / LOSS_CONFIG} is not valid JSON ({error}): save the model again.") from error
    inference = None if config is None or "mixture" not in config else _inference(folder, config)
    model, tokenizer = _load_model(folder, inference)
    names = tuple(model.config.id2label[place] for place in range(len(model.config.id2label)))
    if inference is None:
        return SavedClassifier(
            model=model, tokenizer=tokenizer, label_names=names, loss=None, inference=None, support=None
        )
    assert config is not None
    loss = _load_loss(folder, str(config.get("loss")), num_classes=len(names), dim=hidden_size(model))
    support = _load_support(folder, classes=len(names), dim=hidden_size(model))
    return SavedClassifier(
        model=model, tokenizer=tokenizer, label_names=names, loss=loss, inference=inference, support=support
    )


def _inference(folder: Path, config: Mapping[str, Any]) -> Inference:
    try:
        needed = Inference.__dataclass_fields__.keys() - COLUMNS
        columns: dict[str, Any] = {name: config.get(name) for name in COLUMNS}
        found = Inference(**{name: config[name] for name in sorted(needed)}, **columns)
    except KeyError as error:
        raise ModelError(f"{folder / LOSS_CONFIG} lacks {error}: save the model again.") from error
    if found.head not in HEADS or found.pooling not in (*POOLINGS, TOKENS):
        raise ModelError(
            f"{folder / LOSS_CONFIG} names head '{found.head}' and pooling '{found.pooling}', which this version does "
            f"not know."
        )
    return found


def _load_model(folder: Path, inference: Inference | None) -> tuple[Any, Any]:
    if inference is not None and inference.head == "pooled":
        where = ResolvedModel(name=str(folder), location=str(folder), fingerprint="")
        with _said_of(folder):
            names = _label_names(folder)
            pooling = "mean" if inference.pooling == TOKENS else inference.pooling
            model, tokenizer = load_pooled(where, names, pooling=pooling)
            load_head(folder, model)
        return model.eval(), tokenizer
    model: Any
    with _said_of(folder), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise ModelError(
            f"`{folder}` lacks {', '.join(sorted(loading['missing_keys']))}: it is no trained classifier. Train one "
            f"with `lossmith train`."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"The tokenizer of `{folder}` has no padding token: set `pad_token` in tokenizer_config.json.")
    if model.config.pad_token_id is None:
        # Decoders find the last token of a padded text by it.
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


@contextlib.contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """What transformers and safetensors say of broken files, as one sentence about the folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, safetensors.SafetensorError) as error:
        if isinstance(error, ModelError) and error.__cause__ is None:
            raise
        said = error.__cause__ or error
        first_line = (str(said).strip() or type(said).__name__).splitlines()[0]
        raise ModelError(f"`{folder}` cannot be loaded as a classifier: {first_line}") from error


def _label_names(folder: Path) -> tuple[str, ...]:
    # By transformers, since names such as LABEL_0 are left out of the file.
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return tuple(config.id2label[place] for place in range(len(config.id2label)))


def _load_loss(folder: Path, text: str, *, num_classes: int, dim: int) -> LossModule:
    sizes = {"num_classes": num_classes, "embedding_dim": dim}
    loss = lossmith.loss(text, **{name: sizes[name] for name in parse_composition(text).required})
    try:
        loss.load_state_dict(read_state(folder, loss, loss.state_dict()))
    except (ConfigurationError, ObjectiveInputError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"The loss saved in `{folder}` does not fit its model, which has {num_classes} classes: "
            f"{' '.join(str(error).split())}"
        ) from error
    return loss.eval()


def _load_support(folder: Path, *, classes: int, dim: int) -> tuple[Tensor, Tensor] | None:
    file = folder / REFERENCE_WEIGHTS
    if not file.is_file():
        return None
    with _said_of(folder):
        found = safetensors.torch.load_file(file)
        embeddings, labels = found["embeddings"], found["labels"]
    if embeddings.shape[1] != dim or int(labels.max()) >= classes:
        raise ModelError(
            f"{file} holds embeddings of width {embeddings.shape[1]} of {int(labels.max()) + 1} classes or more, the "
            f"model has width {dim} and {classes} classes: they belong to another model."
        )
    return embeddings, labels


def trained_scores(loss: LossModule | None, embeddings: Tensor) -> Tensor | None:
    """Scores [rows, classes] of a loss's own proxies; None where it owns none that score classes.

    Where several terms own proxies, their log-probabilities are averaged; those of a phase that training has left
    behind are not asked.
    """
    parts: list[Any] = []
    if loss is not None:
        parts += [part for part in final_parts(loss) if getattr(part, "scores_classes", False)]
    if not parts:
        return None
    with torch.no_grad():
        scores = [part.class_scores(embeddings.to(next(part.parameters()).device)).cpu() for part in parts]
    return scores[0] if len(scores) == 1 else torch.stack([torch.log_softmax(part, -1) for part in scores]).mean(0)


def final_parts(loss: nn.Module) -> Iterator[nn.Module]:
    """All modules within a loss but those of terms that do not count at the end of training."""
    terms = [(loss, 1.0)] if not isinstance(loss, WeightedSum) else loss.weights_at(1.0)
    for term, weight in terms:
        if weight != 0:
            yield from term.modules()


def base_network(network: nn.Module) -> nn.Module:
    """The classifier within adapters, or the classifier itself."""
    return base_model(network)


__all__ = [
    "HEADS",
    "Inference",
    "PooledClassifier",
    "SavedClassifier",
    "base_network",
    "final_parts",
    "load_network",
    "load_saved",
    "save_classifier",
    "trained_scores",
]
