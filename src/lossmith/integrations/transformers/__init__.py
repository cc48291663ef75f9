"""lossmith losses in transformers' Trainer.

    >>> from lossmith.integrations.transformers import LossMixin, LossTrainer, compute_loss

`LossTrainer(model, args, loss="0.6*cross_entropy + 0.4*lovasz_softmax", ...)` computes the loss at the output embedding
and never builds the logits; `LossMixin` does that to a trainer of your own; `compute_loss(loss)` is the one-line
`compute_loss_func` of a plain Trainer, on dense logits.
"""

from lossmith.integrations._versions import require_version

require_version("transformers", "5.2", "6", extra="train")

from lossmith.integrations.transformers.dense import DenseLoss, compute_loss  # noqa: E402
from lossmith.integrations.transformers.trainer import LossMixin, LossTrainer  # noqa: E402

__all__ = ["DenseLoss", "LossMixin", "LossTrainer", "compute_loss"]
