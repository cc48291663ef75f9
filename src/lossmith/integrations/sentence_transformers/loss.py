"""The loss module that sentence-transformers calls: metric and joint losses on the embeddings of one text column."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from lossmith.errors import ConfigurationError, LossmithWarning, ModelError, ObjectiveInputError
from lossmith.integrations.saving import read_config, read_state, write_state
from lossmith.integrations.transformers.families import check_families
from lossmith.nn import LossModule, MetricLoss, ObjectiveModule, RegionLoss, parse_composition
from lossmith.nn import loss as build_loss


@final
class EmbeddingLoss(nn.Module):
    """A metric or joint loss on sentence embeddings, as sentence-transformers calls it.

    Proxies, and for a joint loss a linear classification head on the embeddings, are parameters of this module, which
    the trainer's optimiser finds. They serve training only: the saved model is an ordinary `SentenceTransformer`.

    Args:
        model: Makes the embeddings.
        loss: A composition with a metric term, such as `"supcon(temperature=0.1)"` or `"0.4*cross_entropy +
            0.6*soft_triple"`, or a module from `lossmith.loss`.
        num_classes: Classes of the labels; needed by proxies and by the head of a joint loss. Proxies that are built
            already may stand for more.
        **settings: As for `lossmith.loss`: hyper-parameters, `gather=True` (compare the rows of all ranks),
            `memory_size=4096` (and of earlier batches).

    Raises:
        ObjectiveInputError: For a loss that reads no embeddings or has proxies for fewer classes.
        ConfigurationError: For a loss that needs what a sentence does not have.
        ModelError: If the model does not say how long its embeddings are, or proxies have another length.
    """

    num_items: Mapping[str, float] | None
    """By kind of item, what an exact mean over the accumulated batch divides by; None for the rows of the call."""

    def __init__(
        self, model: SentenceTransformer, loss: str | LossModule, *, num_classes: int | None = None, **settings: Any
    ):
        super().__init__()
        self.model = model
        self.embedding_dim = _embedding_dim(model)
        _check_family(loss)
        self.loss = _build(loss, num_classes, self.embedding_dim, settings)
        _check_regions(self.loss)
        self.head: nn.Linear | None = None
        self.num_classes = num_classes
        for term in _metric_terms(self.loss):
            _check_dim(term, self.embedding_dim)
            _check_classes(term, num_classes)
            self.num_classes = term.num_classes or self.num_classes
        if "logits" in self.loss.inputs:
            if not self.num_classes:
                raise ObjectiveInputError(_missing_classes(self.loss))
            self.head = nn.Linear(self.embedding_dim, self.num_classes)
        self.num_items = None
        self._kept_by_trainer = False

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: The tokens of one text column, as the collator of sentence-transformers makes them.
            labels: Class ids [batch], -100 for a row that does not count.

        Raises:
            ObjectiveInputError: For several text columns, labels missing, not integer or out of range.
        """
        features = list(sentence_features)
        if len(features) != 1:
            raise ObjectiveInputError(several_columns(self.loss, f"{len(features)} text columns"))
        if labels is None:
            raise ObjectiveInputError(
                f"'{self.loss}' needs the class of each sentence: give the data a `label` column."
            )
        # The trainer turns its model alone to evaluation; a memory must not be filled there.
        self.loss.train(self.model.training)
        self._warn_of_own_parameters()
        embeddings = self.model(features[0])["sentence_embedding"]
        inputs: dict[str, Any] = {"embeddings": embeddings, "labels": labels}
        if self.head is not None:
            inputs["logits"] = self.head(embeddings.to(self.head.weight.dtype))
        return self.loss(**inputs, num_items=self.num_items)

    def named_own_parameters(self) -> dict[str, nn.Parameter]:
        """Proxies and head by name: every parameter but the model's."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("model.")}

    def own_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the model: proxies, head, memory, progress of a schedule."""
        parts = (("loss", self.loss), *([] if self.head is None else [("head", self.head)]))
        return {f"{part}.{name}": value for part, own in parts for name, value in own.state_dict().items()}

    def save(self, folder: str | Path) -> None:
        """Write `own_state` and the composition string into `folder`, beside a saved model."""
        write_state(Path(folder), self.own_state(), self.get_config_dict())

    def load(self, folder: str | Path) -> None:
        """Read back what `save` wrote.

        Raises:
            ConfigurationError: If `folder` holds no loss, another one, or not its whole state.
        """
        saved, own = read_config(Path(folder)), self.get_config_dict()
        if saved != own:
            raise ConfigurationError(
                f"{folder} was saved with the loss {saved}, this one is {own}: give the same loss."
            )
        # All but the model, which the trainer restores.
        self.load_state_dict(read_state(Path(folder), self.loss, self.own_state()), strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"loss": str(self.loss), "num_classes": self.num_classes, "embedding_dim": self.embedding_dim}

    @property
    def citation(self) -> str:
        """One BibTeX entry per objective, for the model card."""
        entries = {}
        for module in self.loss.modules():
            if isinstance(module, ObjectiveModule):
                name = module.record.name
                entries[name] = f"@misc{{{name},\n    title={{{name}}},\n    url={{{module.record.source}}}\n}}"
        return "\n" + "\n".join(entries.values()) + "\n"

    def _warn_of_own_parameters(self) -> None:
        if self._kept_by_trainer or not self.model.training or not self.named_own_parameters():
            return
        self._kept_by_trainer = True
        warnings.warn(
            f"'{self.loss}' owns parameters, which only lossmith.integrations.sentence_transformers.LossTrainer saves "
            f"in checkpoints and synchronises over ranks: use it, or `save` and `load` of this loss.",
            LossmithWarning,
            stacklevel=4,
        )


def several_columns(loss: object, got: str) -> str:
    """One sentence on data with more or less than one text column."""
    return (
        f"'{loss}' takes one text column and the class of each text, got {got}: keep one, as in "
        f"dataset.select_columns(['text', 'label'])."
    )


def _build(loss: str | LossModule, num_classes: int | None, dim: int, settings: dict[str, Any]) -> LossModule:
    if isinstance(loss, LossModule):
        if settings:
            raise ObjectiveInputError(f"'{loss}' is built already: give {', '.join(settings)} to lossmith.loss.")
        return loss
    composition = parse_composition(loss)
    sizes: dict[str, Any] = {}
    if "num_classes" in composition.required:
        if num_classes is None:
            raise ObjectiveInputError(_missing_classes(loss))
        sizes["num_classes"] = num_classes
    if "embedding_dim" in composition.required or settings.get("memory_size"):
        sizes["embedding_dim"] = dim
    return build_loss(loss, **sizes, **settings)


def _metric_terms(loss: LossModule) -> list[MetricLoss]:
    return [module for module in loss.modules() if isinstance(module, MetricLoss)]


def _check_family(loss: str | LossModule) -> None:
    if "metric" not in check_families(loss, ("metric", "token", "region"), "sentence-transformers"):
        raise ObjectiveInputError(
            f"'{loss}' reads no embeddings: combine it with a metric loss, as in '0.4*cross_entropy + 0.6*supcon', or "
            f"use lossmith.integrations.transformers, which trains on logits."
        )
    composition = parse_composition(loss) if isinstance(loss, str) else getattr(loss, "composition", None)
    if composition is not None and any(term.scope is not None for term in composition.terms):
        raise ObjectiveInputError(f"'{loss}' names a label scope, but a sentence has one label: leave the [scope] out.")


def _check_regions(loss: LossModule) -> None:
    for term in loss.modules():
        if isinstance(term, RegionLoss) and term.region == "sequence":
            raise ObjectiveInputError(
                f"'{term}' has one region per sequence, but a sentence has one label: leave `region` at 'batch'."
            )


def _missing_classes(loss: str | LossModule) -> str:
    return (
        f"'{loss}' needs `num_classes`, the number of classes: LossTrainer(loss=...) counts them in the training data, "
        f"otherwise give it here."
    )


def _embedding_dim(model: SentenceTransformer) -> int:
    # `truncate_dim` cuts what `encode` returns; training sees whole embeddings.
    with model.truncate_embeddings(None):
        dim = model.get_embedding_dimension()
    if dim is None:
        raise ModelError(
            "The model does not say how long its embeddings are: its last module needs get_embedding_dimension()."
        )
    return dim


def _check_classes(term: MetricLoss, num_classes: int | None) -> None:
    if num_classes is not None and term.num_classes is not None and num_classes > term.num_classes:
        raise ObjectiveInputError(
            f"`num_classes` is {num_classes}, but the proxies of '{term}' stand for {term.num_classes} classes: build "
            f"it with num_classes={num_classes}."
        )


def _check_dim(term: MetricLoss, dim: int) -> None:
    memory = None if term.memory is None else term.memory.embeddings
    for name, table in (("proxies", getattr(term, "proxies", None)), ("memory", memory)):
        if table is not None and table.shape[-1] != dim:
            raise ModelError(
                f"The {name} of '{term}' have `embedding_dim` {table.shape[-1]}, but the model's embeddings "
                f"have dim {dim}."
            )
