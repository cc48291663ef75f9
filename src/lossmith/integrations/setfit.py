"""Metric and joint losses in SetFit: the body learns by them on single texts in class-balanced batches.

Two lines of a script change: `Trainer` is imported from here, and `TrainingArguments(loss=loss("supcon"))`.

SetFit 1.2 makes pairs of texts for every loss but five classes of its own, and for those five too it trains on random
batches: it asks whether the built loss is one of the five classes, which an object never is (setfit#644). So a trainer
of our own gives the loss single texts with their classes, and batches with several rows of each class.
"""

import inspect
from dataclasses import dataclass, field, fields
from typing import Any

from lossmith._checks import check_positive
from lossmith._extras import require
from lossmith.errors import ConfigurationError, ObjectiveInputError
from lossmith.integrations._versions import require_version
from lossmith.integrations.sentence_transformers import EmbeddingLoss, LossMixin, PKBatches
from lossmith.nn import parse_composition

require_version("setfit", "1.2", "2", extra="metric")
require("setfit", extra="metric", purpose="train SetFit models")

import setfit  # noqa: E402
from datasets import Dataset  # noqa: E402
from sentence_transformers.sentence_transformer.training_args import BatchSamplers  # noqa: E402
from setfit.model_card import ModelCardCallback  # noqa: E402
from setfit.trainer import BCSentenceTransformersTrainer  # noqa: E402

_OF_PAIRS = ("margin", "distance_metric", "num_iterations", "sampling_strategy")
"""Training arguments that only SetFit's own losses and its pairs read."""


@dataclass(frozen=True)
class Loss:
    """What `setfit.TrainingArguments(loss=...)` holds: builds the loss once the model and the classes are known."""

    text: str
    samples_per_class: int = 4
    proxy_lr_multiplier: float = 10.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        # SetFit's model card calls its loss by this name.
        return self.text

    def __call__(self, model: Any, num_classes: int | None = None) -> EmbeddingLoss:
        """The loss on embeddings of `model`.

        Raises:
            ConfigurationError: Under SetFit's own trainer, which makes pairs of texts and does not count the classes.
        """
        if num_classes is None:
            raise ConfigurationError(
                f"'{self.text}' takes single texts with their classes, but setfit.Trainer makes pairs of texts: use "
                f"lossmith.integrations.setfit.Trainer in its place."
            )
        return EmbeddingLoss(model, self.text, num_classes=num_classes, **self.settings)


def loss(text: str, /, *, samples_per_class: int = 4, proxy_lr_multiplier: float = 10.0, **settings: Any) -> Loss:
    """A loss for `setfit.TrainingArguments(loss=...)`, trained by this module's `Trainer`.

    Args:
        text: A composition with a metric term, such as `"supcon"` or `"0.4*cross_entropy + 0.6*soft_triple"`.
        samples_per_class: Least number of rows of a class in a batch, >= 2; see `PKBatches`.
        proxy_lr_multiplier: Proxies and head learn at the body's learning rate times this.
        **settings: As for `lossmith.loss`: hyper-parameters, `gather=True`, `memory_size=512`.

    Raises:
        CompositionError: For a string that cannot be read, with a caret under the place.
        ObjectiveInputError: For a built loss, or a `proxy_lr_multiplier` that is not positive.
    """
    if not isinstance(text, str):
        raise ObjectiveInputError(
            f"`text` must be a composition such as 'supcon', got {type(text).__name__}: the loss is built when the "
            f"classes are known."
        )
    parse_composition(text)
    check_positive("proxy_lr_multiplier", proxy_lr_multiplier)
    return Loss(text, samples_per_class, proxy_lr_multiplier, settings)


class _BodyTrainer(LossMixin, BCSentenceTransformersTrainer):
    """SetFit's trainer of the body, keeping the parameters of the loss."""


class Trainer(setfit.Trainer):
    """`setfit.Trainer` for lossmith losses; with SetFit's own losses it does what `setfit.Trainer` does.

    Takes what `setfit.Trainer` takes. Labels may be integers or strings, one per text.

    Raises:
        ConfigurationError: For several labels per text, fewer than two classes with two rows or more, or arguments that
            only reach SetFit's own losses.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        given = inspect.signature(setfit.Trainer).bind(*args, **kwargs).arguments.get("callbacks") or []
        # setfit.Trainer makes its trainer of the body itself, from a fixed class.
        self.st_trainer = _BodyTrainer(
            setfit_model=self.model, setfit_args=self.args, callbacks=[*given, ModelCardCallback(self)]
        )
        self._classes: list[Any] = []

    def train_embeddings(
        self, x_train: Any, y_train: Any = None, x_eval: Any = None, y_eval: Any = None, args: Any = None
    ) -> None:
        """Train the body, in class-balanced batches where the loss is lossmith's."""
        args = args or self.args
        self.st_trainer.args.batch_sampler = BatchSamplers.BATCH_SAMPLER
        if isinstance(args.loss, Loss):
            _check_arguments(args)
            self._classes = _classes(args.loss, y_train)
            self.st_trainer.args.batch_sampler = PKBatches(args.loss.samples_per_class)
            self.st_trainer.proxy_lr_multiplier = args.loss.proxy_lr_multiplier
            # An optimiser of an earlier call holds the proxies of the loss of that call.
            self.st_trainer.optimizer = None
        super().train_embeddings(x_train, y_train, x_eval, y_eval, args=args)

    def get_dataset(self, x: Any, y: Any, args: Any, max_pairs: int = -1) -> Any:
        """Texts with class ids and the built loss; pairs of texts for SetFit's own losses."""
        if not isinstance(args.loss, Loss):
            return super().get_dataset(x, y, args, max_pairs)
        unknown = [label for label in y if label not in self._classes]
        if unknown:
            raise ConfigurationError(f"The class {unknown[0]!r} is in `eval_dataset` but not in `train_dataset`.")
        ids = {label: index for index, label in enumerate(self._classes)}
        data = Dataset.from_dict({"sentence": list(x), "label": [ids[label] for label in y]})
        # A class-balanced batch that cannot be made says so here, not at the first evaluation.
        PKBatches(args.loss.samples_per_class)(data, args.embedding_batch_size, drop_last=True)
        module = args.loss(self.model.model_body, len(ids)).to(self.model.device)
        return data, module


def _check_arguments(args: Any) -> None:
    """Refuse what a lossmith loss would leave without effect."""
    defaults = {field.name: field.default for field in fields(setfit.TrainingArguments)}
    for name in _OF_PAIRS:
        if getattr(args, name) != defaults[name]:
            raise ConfigurationError(
                f"`{name}` only reaches SetFit's own losses and pairs, not '{args.loss.text}': leave it out, and write "
                f"hyper-parameters into the loss, as in loss('triplet_margin(margin=0.2)')."
            )


def _classes(loss: Loss, labels: Any) -> list[Any]:
    """The classes in order; a class id is a place in this list."""
    labels = [None] if labels is None else list(labels)
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ConfigurationError(
                f"'{loss.text}' needs one class per text, an integer or a string, got the label {label!r}."
            )
    return sorted(set(labels), key=lambda label: (isinstance(label, str), label))
