"""Metric and joint losses in sentence-transformers: the trainer, the loss module, class-balanced batches.

Two lines of a script change: the import of the trainer, and `loss=`:

    from lossmith.integrations.sentence_transformers import LossTrainer, PKBatches

    arguments = SentenceTransformerTrainingArguments("out", batch_sampler=PKBatches(), per_device_train_batch_size=32)
    LossTrainer(model, args=arguments, train_dataset=data, loss="0.4*cross_entropy + 0.6*soft_triple").train()

The loss also fits the unchanged trainer: `SentenceTransformerTrainer(loss=EmbeddingLoss(model, "supcon"), ...)`.
"""

from lossmith._extras import require
from lossmith.integrations._versions import require_version

# The version first: where it does not fit, imports below may fail with less clear words.
require_version("sentence-transformers", "6.2", "7", extra="metric")
require("datasets", extra="train", purpose="train with sentence-transformers")

from lossmith.integrations.sentence_transformers.batches import PKBatches  # noqa: E402
from lossmith.integrations.sentence_transformers.loss import EmbeddingLoss  # noqa: E402
from lossmith.integrations.sentence_transformers.trainer import LossMixin, LossTrainer  # noqa: E402

__all__ = ["EmbeddingLoss", "LossMixin", "LossTrainer", "PKBatches"]
