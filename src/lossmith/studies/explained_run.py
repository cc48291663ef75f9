"""One trained model looked into, and the held-out examples that all models are looked at with."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from lossmith.explain.attributions import ATTRIBUTION_METHODS
from lossmith.integrations.classification import predict_outputs
from lossmith.integrations.classifiers import base_network, final_parts
from lossmith.integrations.pooling import TOKENS
from lossmith.studies.asking import REFERENCE_TEXTS
from lossmith.studies.classification import ClassificationSetting
from lossmith.studies.draws import trained_on
from lossmith.studies.run import Progress
from lossmith.tasks import Example

SHARES = (0.15, 0.65, 0.95)
"""Progress of a look after the embeddings, the attributions and their faithfulness."""
HIGHLIGHTS = "integrated_gradients"
"""The method whose weights are shown behind the tokens of disputed texts."""
SCORE = "log_probability"
"""What of the predicted class is attributed to tokens."""
EMPTIED = "mask"
"""What a token is replaced with."""
DISPUTED = 3
"""Texts that a loss gained, and as many that it lost, with highlighted tokens."""


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
    disputed: tuple[int, ...]
    """Further places within the sample whose tokens are attributed: a loss and the baseline disagree about them."""
    highlights: TokenAttributions
    """Of the disputed examples, by integrated gradients alone."""


def look_into(
    setting: ClassificationSetting,
    trainer: Any,
    record: RunRecord,
    retrained: RunRecord,
    sample: Sample,
    disputed: Sequence[int],
    report: Progress,
) -> ExplainedRun:
    """Take every look at one trained model.

    Args:
        setting: The study.
        trainer: Holds the model and the loss.
        record: The run as the study recorded it.
        retrained: The run as it came out now.
        sample: The examples to look at.
        disputed: Further places within it whose tokens are attributed.
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
    highlights = _attributions(setting, trainer, sample, disputed, methods=(HIGHLIGHTS,))
    trainer.loss.set_progress(1.0)
    weights = weigh_examples(
        trainer.loss,
        logits=logits,
        embeddings=embeddings,
        labels=sample.labels,
        head=linear_head(setting, model),
        batch_size=config.batch_size,
        samples_per_class=config.samples_per_class if config.sampling == "balanced" else None,
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
        disputed=tuple(disputed),
        highlights=highlights,
    )


def disputed_places(
    records: Mapping[str, RunRecord], baseline: str, sample: Sample, *, most: int = DISPUTED
) -> dict[str, tuple[int, ...]]:
    """For every loss the first examples of the sample that it got right and the baseline wrong, and the reverse.

    They are read off the recorded predictions, so that every run can attribute its own while its model is there; those
    that the sample attributes anyway are left out, and the baseline has those of all losses.

    Args:
        records: Loss -> its finished run of one block, the baseline's among them.
        baseline: The loss that the others are compared with.
        sample: The block's examples.
        most: Of each kind.
    """
    right = {
        loss: np.asarray(record.predictions)[sample.rows] == sample.labels
        for loss, record in records.items()
        if len(record.predictions) > sample.rows.max()
    }
    known = set(sample.attributed.tolist())
    found: dict[str, tuple[int, ...]] = {}
    for loss, own in right.items():
        if baseline in right and loss != baseline:
            first = [np.flatnonzero(which)[:most] for which in (own & ~right[baseline], ~own & right[baseline])]
            found[loss] = tuple(sorted(set(np.concatenate(first).tolist()) - known))
    found[baseline] = tuple(sorted({place for places in found.values() for place in places}))
    return found


def _attributed(
    setting: ClassificationSetting, trainer: Any, record: RunRecord, sample: Sample, report: Progress
) -> tuple[TokenAttributions, Faithfulness]:
    model, tokenizer = trainer.model, trainer.processing_class
    done = [0, 0]

    def moved(step: int, count: int) -> None:
        done[step] += count
        report(SHARES[step] + (SHARES[step + 1] - SHARES[step]) * done[step] / len(sample.attributed))

    attributions = _attributions(setting, trainer, sample, sample.attributed.tolist(), lambda count: moved(0, count))
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


def _attributions(
    setting: ClassificationSetting,
    trainer: Any,
    sample: Sample,
    places: Sequence[int],
    on_text: Callable[[int], None] | None = None,
    methods: Sequence[str] = ATTRIBUTION_METHODS,
) -> TokenAttributions:
    """Token attributions of the examples at these places of the sample."""
    if not places:
        return TokenAttributions(texts=(), methods=tuple(methods), score=SCORE, baseline=EMPTIED)
    chosen = [sample.examples[place] for place in places]
    return attribute_tokens(
        trainer.model,
        trainer.processing_class,
        [example.text for example in chosen],
        pairs=[str(example.pair) for example in chosen] if setting.task.has_pairs else None,
        methods=methods,
        score=SCORE,
        baseline=EMPTIED,
        max_length=setting.max_length,
        on_text=on_text,
    )


def _changed(record: RunRecord, retrained: RunRecord) -> int:
    if retrained.status != "finished" or len(retrained.predictions) != len(record.predictions):
        return len(record.predictions)
    return sum(one != other for one, other in zip(record.predictions, retrained.predictions, strict=True))


def proxies_of(loss: nn.Module) -> Proxies | None:
    """The proxies of a loss, several per class included; None where it owns none.

    Of several terms the first counts whose phase training has not left behind.
    """
    for part in final_parts(loss):
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
