"""One trained model looked into, and the held-out examples that all models are looked at with."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lossmith.evidence import RunRecord
from lossmith.explain import (
    ExampleWeights,
    Faithfulness,
    Proxies,
    TokenAttributions,
    attribute_tokens,
    class_means,
    measure_faithfulness,
    weigh_examples,
)
from lossmith.integrations.classification import predict_outputs
from lossmith.integrations.classifiers import base_network
from lossmith.integrations.pooling import TOKENS
from lossmith.studies.asking import REFERENCE_TEXTS
from lossmith.studies.classification import ClassificationSetting
from lossmith.studies.draws import trained_on
from lossmith.studies.run import Progress
from lossmith.tasks import Example

SHARES = (0.15, 0.65, 0.95)
"""Progress of a look after the embeddings, the attributions and their faithfulness."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The held-out examples of a block that are looked at, the same for every loss."""

    rows: np.ndarray
    """Their places in the block's test set, rising, [examples]."""
    attributed: np.ndarray
    """Places within `rows` whose tokens are attributed, rising, [attributed]."""
    examples: tuple[Example, ...]
    """The examples at `rows`."""
    seed: int
    """Of the draw."""

    @property
    def labels(self) -> np.ndarray:
        """Class ids, [examples]."""
        return np.array([example.label for example in self.examples])


def draw_sample(test: tuple[Example, ...], *, examples: int, attributed: int, seed: int) -> Sample:
    """Draw so many held-out examples, or all where there are fewer, and those of them to attribute."""
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = np.sort(draw.permutation(len(test))[:examples])
    few = np.sort(draw.permutation(len(rows))[:attributed])
    return Sample(rows=rows, attributed=few, examples=tuple(test[int(row)] for row in rows), seed=seed)


@dataclass(frozen=True, kw_only=True)
class ExplainedRun:
    """What was seen of one loss on one block."""

    loss: str
    """Canonical composition string."""
    seed: int
    """The block."""
    changed: int
    """Predictions of the whole test set that differ from the recorded ones; 0 where the run was reproduced."""
    logits: np.ndarray
    """[examples, classes], of the head."""
    embeddings: np.ndarray
    """[examples, dim]."""
    proxies: Proxies
    """The loss's own, or the mean directions of its training texts' classes."""
    weights: ExampleWeights
    """Gradient norms by example."""
    attributions: TokenAttributions
    """Of the attributed examples."""
    faithfulness: Faithfulness
    """Of these attributions."""


def look_into(
    setting: ClassificationSetting,
    trainer: Any,
    record: RunRecord,
    retrained: RunRecord,
    sample: Sample,
    report: Progress,
) -> ExplainedRun:
    """Take every look at one trained model.

    Args:
        setting: The study.
        trainer: Holds the model and the loss.
        record: The run as the study recorded it.
        retrained: The run as it came out now.
        sample: The examples to look at.
        report: Progress of the look.
    """
    model, tokenizer, config = trainer.model, trainer.processing_class, setting.config
    known = trained_on(setting, record.seed)[:REFERENCE_TEXTS]
    outputs = predict_outputs(
        model,
        tokenizer,
        setting.encoded(tokenizer, [*sample.examples, *known]),
        config.eval_batch_size,
        pooling=config.pooling,
        on_batch=lambda done, total: report(SHARES[0] * done / total),
    )
    logits, embeddings = outputs.logits.numpy()[: len(sample.examples)], outputs.embeddings.numpy()
    own = proxies_of(trainer.loss)
    if own is None:
        own = class_means(embeddings[len(sample.examples) :], np.array([example.label for example in known]))
    embeddings = embeddings[: len(sample.examples)]
    attributions, faithful = _attributed(setting, trainer, record, sample, report)
    trainer.loss.set_progress(1.0)
    weights = weigh_examples(
        trainer.loss,
        logits=logits,
        embeddings=embeddings,
        labels=sample.labels,
        head=linear_head(setting, model),
        batch_size=config.batch_size,
        seed=sample.seed,
    )
    report(1.0)
    return ExplainedRun(
        loss=record.loss,
        seed=record.seed,
        changed=_changed(record, retrained),
        logits=logits,
        embeddings=embeddings,
        proxies=own,
        weights=weights,
        attributions=attributions,
        faithfulness=faithful,
    )


def _attributed(
    setting: ClassificationSetting, trainer: Any, record: RunRecord, sample: Sample, report: Progress
) -> tuple[TokenAttributions, Faithfulness]:
    model, tokenizer = trainer.model, trainer.processing_class
    chosen = [sample.examples[int(place)] for place in sample.attributed]
    done = [0, 0]

    def moved(step: int, count: int) -> None:
        done[step] += count
        report(SHARES[step] + (SHARES[step + 1] - SHARES[step]) * done[step] / len(chosen))

    attributions = attribute_tokens(
        model,
        tokenizer,
        [example.text for example in chosen],
        pairs=[str(example.pair) for example in chosen] if setting.task.has_pairs else None,
        max_length=setting.max_length,
        on_text=lambda count: moved(0, count),
    )
    faithful = measure_faithfulness(
        model,
        tokenizer,
        attributions,
        name=record.loss,
        seed_of_run=record.seed,
        seed=sample.seed,
        on_text=lambda count: moved(1, count),
    )
    return attributions, faithful


def _changed(record: RunRecord, retrained: RunRecord) -> int:
    if retrained.status != "finished" or len(retrained.predictions) != len(record.predictions):
        return len(record.predictions)
    return sum(one != other for one, other in zip(record.predictions, retrained.predictions, strict=True))


def proxies_of(loss: nn.Module) -> Proxies | None:
    """The proxies of a loss, several per class included; None where it owns none. Of several terms the first counts."""
    for part in loss.modules():
        vectors = getattr(part, "proxies", None)
        if isinstance(vectors, torch.Tensor):
            table = vectors.detach().float().cpu()
            per_class = table[0].numel() // table.shape[-1]
            labels = np.arange(len(table)).repeat(per_class)
            return Proxies(vectors=table.reshape(-1, table.shape[-1]).numpy(), labels=labels)
    return None


def linear_head(setting: ClassificationSetting, model: nn.Module) -> Any:
    """The head as a function of the embedding that metric losses see; None where the head reads something else."""
    if setting.config.head != "pooled" or setting.config.pooling == TOKENS:
        return None
    return getattr(base_network(model), "classifier", None)


def pretrained_outputs(setting: ClassificationSetting, seed: int, sample: Sample) -> dict[str, np.ndarray]:
    """What does not depend on the loss: `embeddings` [examples, dim] before any training, and `lengths` in tokens."""
    with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
        trainer = setting.prepare(setting.config.baseline, seed, Path(workspace), lambda share: None)
        encoded = setting.encoded(trainer.processing_class, sample.examples)
        outputs = predict_outputs(
            trainer.model,
            trainer.processing_class,
            encoded,
            setting.config.eval_batch_size,
            pooling=setting.config.pooling,
        )
    lengths = np.array([len(row["input_ids"]) for row in encoded])
    return {"embeddings": outputs.embeddings.numpy(), "lengths": lengths}
