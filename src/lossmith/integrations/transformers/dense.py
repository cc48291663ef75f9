"""A lossmith loss as the `compute_loss_func` of a plain Trainer, on logits that the model has built."""

import warnings
from typing import Any

import transformers
from packaging.version import Version
from torch import Tensor

from lossmith.errors import ConfigurationError, LossmithWarning, ObjectiveInputError
from lossmith.integrations.batches import align
from lossmith.integrations.transformers.families import build_loss, check_on_logits
from lossmith.integrations.transformers.items import item_kinds
from lossmith.integrations.transformers.setup import loss_scopes
from lossmith.nn import IGNORE_INDEX, LossModule


class DenseLoss:
    """What `compute_loss` returns: called by the Trainer with the model's output, labels and the number of items."""

    def __init__(self, loss: LossModule, shift: bool | None):
        self.loss = loss
        self.shift = shift
        self._counts = [kind.name for kind in item_kinds(loss)]

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        """The loss of one micro-batch.

        Args:
            outputs: With `logits` [batch, seq, vocab] or [batch, classes].
            labels: [batch, seq] or [batch], -100 where they do not count.
            num_items_in_batch: Labels that count in the whole accumulated batch, of all ranks where the Trainer
                multiplies the loss by their number; None for those of this batch.

        Raises:
            ObjectiveInputError: Where labels are missing, a model is of unclear kind, or a region loss is accumulated.
            ConfigurationError: For a mixture of experts that returns a loss of its own.
        """
        if labels is None:
            raise ObjectiveInputError("`labels` must be in the batch, got none: add a column `labels` or a collator.")
        if isinstance(getattr(outputs, "aux_loss", None), Tensor):
            raise ConfigurationError(
                "The model returns an `aux_loss` that balances its experts, which a `compute_loss_func` would drop: "
                "use lossmith.integrations.transformers.LossTrainer, or set `output_router_logits=False`."
            )
        shift = self._shifts(outputs)
        batch = align({"labels": labels.to(outputs.logits.device)}, shift=shift)
        num_items = self._num_items(batch.labels, num_items_in_batch)
        return self.loss(logits=outputs.logits, labels=batch.labels, num_items=num_items)

    def _num_items(self, labels: Tensor, given: Any) -> dict[str, Any] | None:
        if given is None:
            return None
        if self._counts == ["token"]:
            return {"token": given.clamp(min=1) if isinstance(given, Tensor) else max(given, 1)}
        if float(given) == float((labels != IGNORE_INDEX).sum()):
            # This micro-batch is the whole batch.
            return None
        raise ObjectiveInputError(
            f"'{self.loss}' counts {' and '.join(self._counts)}, but a `compute_loss_func` is told the number of "
            f"tokens only, so under gradient accumulation or on several ranks it cannot be exact: use "
            f"lossmith.integrations.transformers.LossTrainer."
        )

    def _shifts(self, outputs: Any) -> bool:
        if self.shift is not None:
            return self.shift
        kind = type(outputs).__name__
        if outputs.logits.ndim == 2 or kind in ("TokenClassifierOutput", "MaskedLMOutput"):
            return False
        if "CausalLM" in kind or kind.endswith("LMHeadModelOutput"):
            return True
        raise ObjectiveInputError(
            f"From a {kind} it is not clear whether the model predicts the next token: give "
            f"compute_loss(loss, shift=True) for a causal language model, shift=False where labels stand at the "
            f"place of their logits."
        )


def compute_loss(loss: str | LossModule, *, shift: bool | None = None) -> DenseLoss:
    """A loss for `Trainer(..., compute_loss_func=compute_loss("focal"))`.

    The logits are built by the model, as with every `compute_loss_func`; `LossTrainer` does without them, knows the
    attention mask (so that left padding and packed rows are exact), and logs the plain NLL beside the loss.

    Args:
        loss: A token or region loss, or a sum of such, by its string or from `lossmith.loss`.
        shift: Whether the model predicts the next token; None to tell by its output.

    Raises:
        ObjectiveInputError: For a loss that cannot be read.
        ConfigurationError: For a loss of another family (which integration fits it is said), or with label scopes.
    """
    check_on_logits(loss, "a compute_loss_func")
    if Version(transformers.__version__) < Version("5.6"):
        warnings.warn(
            f"transformers {transformers.__version__} divides the loss of a compute_loss_func by the micro-batches of "
            f"a step once more (mended in 5.6): under gradient accumulation use LossTrainer.",
            LossmithWarning,
            stacklevel=2,
        )
    built = build_loss(loss)
    if loss_scopes(built):
        raise ConfigurationError(
            f"'{built}' names label scopes, but a `compute_loss_func` is told the labels only: use "
            f"lossmith.integrations.transformers.LossTrainer."
        )
    return DenseLoss(built, shift)
