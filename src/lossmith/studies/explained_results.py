"""All analyses of a comparison, from what was seen of its runs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmith.evaluation.calibration import softmax
from lossmith.evidence.metrics import split_metric
from lossmith.explain import (
    AccuracyByDecile,
    AttributedText,
    AttributionStability,
    Calibration,
    Disagreements,
    EmbeddingMap,
    EmbeddingMaps,
    Faithfulness,
    Geometry,
    Highlights,
    TokenAttributions,
    WeightCurves,
    accuracy_by_decile,
    attribution_stability,
    calibration,
    centroid_distances,
    embedding_geometry,
    embedding_maps,
    find_disagreements,
    weight_curves,
)
from lossmith.integrations.pooling import TOKENS
from lossmith.nn import parse_composition
from lossmith.studies.classification import ClassificationSetting
from lossmith.studies.config import StudyConfig
from lossmith.studies.explained_run import HIGHLIGHTS, ExplainedRun, Sample, pretrained_outputs
from lossmith.studies.explained_store import kept_arrays

FEW = 100
"""Held-out examples below which the page says how few they are."""


@dataclass(frozen=True, kw_only=True)
class ExplainedStudy:
    """All analyses of a comparison; losses in the order of the study, the baseline first."""

    config: StudyConfig
    """The study."""
    losses: tuple[str, ...]
    """Losses that were looked into."""
    seeds: tuple[int, ...]
    """Blocks that were looked into."""
    label_names: tuple[str, ...]
    """Name of each class id."""
    samples: Mapping[int, Sample]
    """Seed -> the examples that were looked at."""
    maps: EmbeddingMaps
    """t-SNE of the first seed."""
    planes: EmbeddingMaps
    """PCA of the first seed."""
    by_common_distance: AccuracyByDecile
    """By the distance to the centroid of the pretrained embeddings, which all losses share."""
    by_own_distance: AccuracyByDecile
    """By the distance to the centroid of each model's own embeddings."""
    by_length: AccuracyByDecile
    """By the length in tokens."""
    geometry: Geometry
    calibration: Calibration
    faithfulness: Faithfulness
    stability: AttributionStability
    """Empty with one seed, or where every seed has other examples."""
    disagreements: Disagreements
    weights: WeightCurves
    attributions: Mapping[str, Mapping[int, TokenAttributions]]
    """Loss -> seed -> token attributions of the sample's attributed examples."""
    highlights: Highlights
    """Integrated gradients by loss and place in the first seed's sample: the attributed examples, and the first that
    the loss gained or lost."""
    notices: tuple[str, ...]
    """What a reader must know."""
    attribution: str
    """Whose data these are and under which licence."""

    @property
    def baseline(self) -> str:
        """The loss that the others are compared with."""
        return self.losses[0]


def assembled(
    setting: ClassificationSetting,
    runs: Mapping[tuple[str, int], ExplainedRun],
    samples: Mapping[int, Sample],
    out: Path,
    notices: Sequence[str],
    attribution: str,
) -> ExplainedStudy:
    """Put what was seen of every run together.

    Args:
        setting: The study.
        runs: (Loss, seed) -> what was seen; the baseline is there for every seed.
        samples: Seed -> its examples.
        out: Where maps and pretrained embeddings are kept.
        notices: What a reader must know of the runs.
        attribution: Whose data these are.
    """
    config, names = setting.config, setting.task.label_names
    seeds = tuple(samples)
    losses = tuple(loss for loss in config.all_losses if any(place[0] == loss for place in runs))

    def each(look: Callable[[ExplainedRun], Any]) -> dict[str, dict[int, Any]]:
        return {loss: {seed: look(runs[loss, seed]) for seed in seeds if (loss, seed) in runs} for loss in losses}

    labels = {seed: sample.labels for seed, sample in samples.items()}
    correct = each(lambda run: run.logits.argmax(axis=1) == labels[run.seed])
    common = {seed: _pretrained(setting, seed, sample, out) for seed, sample in samples.items()}
    attributions = each(lambda run: run.attributions)
    first = [runs[loss, seeds[0]] for loss in losses if (loss, seeds[0]) in runs]
    return ExplainedStudy(
        config=config,
        losses=losses,
        seeds=seeds,
        label_names=names,
        samples=samples,
        maps=_maps(first, labels[seeds[0]], names, "tsne", samples[seeds[0]].seed, out),
        planes=_maps(first, labels[seeds[0]], names, "pca", samples[seeds[0]].seed, out),
        by_common_distance=accuracy_by_decile(
            correct,
            {seed: centroid_distances(own["embeddings"]) for seed, own in common.items()},
            quantity="distance to the centroid, pretrained embeddings",
        ),
        by_own_distance=accuracy_by_decile(
            correct,
            each(lambda run: centroid_distances(run.embeddings)),
            quantity="distance to the centroid, own embeddings",
        ),
        by_length=accuracy_by_decile(
            correct, {seed: own["lengths"] for seed, own in common.items()}, quantity="length in tokens"
        ),
        geometry=embedding_geometry(each(lambda run: run.embeddings), labels),
        calibration=calibration(each(lambda run: softmax(run.logits)), labels),
        faithfulness=Faithfulness.joined(runs[place].faithfulness for place in runs),
        stability=attribution_stability(attributions if _same_examples(samples) else {}),
        disagreements=find_disagreements(each(lambda run: run.logits.argmax(axis=1)), labels, baseline=losses[0]),
        weights=weight_curves(each(lambda run: run.weights)),
        attributions=attributions,
        highlights=Highlights(
            texts={run.loss: _highlights(run, samples[seeds[0]]) for run in first}, method=HIGHLIGHTS, seed=seeds[0]
        ),
        notices=tuple(
            dict.fromkeys(
                [
                    *notices,
                    *_about_samples(samples),
                    *_about_sizes(samples),
                    *_about_tokens(config),
                    *_about_heads(config, losses),
                ]
            )
        ),
        attribution=attribution,
    )


def _pretrained(setting: ClassificationSetting, seed: int, sample: Sample, out: Path) -> dict[str, np.ndarray]:
    """Embeddings before training and lengths; the same for all seeds that share their test set."""
    key = {
        "task": setting.task.fingerprint,
        "model": setting.model.fingerprint,
        "pooling": setting.config.pooling,
        "max_length": setting.max_length,
        "rows": sample.rows,
        # Folds, splits and cuts of the test choose what stands in these rows.
        "texts": hashlib.sha256(repr([(e.text, e.pair) for e in sample.examples]).encode()).hexdigest(),
        "fold": None if setting.config.folds is None else seed % setting.config.folds,
    }
    return kept_arrays(out / "pretrained", key, lambda: pretrained_outputs(setting, seed, sample))


def _highlights(run: ExplainedRun, sample: Sample) -> dict[int, AttributedText]:
    own = dict(zip(sample.attributed.tolist(), run.attributions.texts, strict=True))
    return own | dict(zip(run.disputed, run.highlights.texts, strict=True))


def _same_examples(samples: Mapping[int, Sample]) -> bool:
    first, *others = samples.values()
    return all(sample.examples == first.examples for sample in others)


def _about_sizes(samples: Mapping[int, Sample]) -> list[str]:
    count = min(len(sample.rows) for sample in samples.values())
    if count >= FEW:
        return []
    return [
        f"{count} held-out examples are few: a decile holds some {-(-count // 10)} of them, and a purity "
        f"over the nearest of {count - 1} others says little."
    ]


def _about_samples(samples: Mapping[int, Sample]) -> list[str]:
    if _same_examples(samples):
        return []
    return [
        "Every seed is tested on a fold of its own, so its examples differ: attributions of different seeds cannot be "
        "compared."
    ]


def _about_heads(config: StudyConfig, losses: Sequence[str]) -> list[str]:
    """Where the head is not what decided, or was never trained."""
    method = split_metric(config.metric)[0]
    notices = []
    if method != "head":
        notices.append(
            f"The study was decided by {method}; calibration, disagreements, accuracy by decile and attributions here "
            f"are those of the head."
        )
    notices += [
        f"{loss} never reads the logits, so its head was not trained: what is said of its predictions says nothing; "
        f"its embeddings do count."
        for loss in losses
        if all(term.record.family == "metric" for term in parse_composition(loss).terms)
    ]
    return notices


def _about_tokens(config: StudyConfig) -> list[str]:
    if config.pooling != TOKENS:
        return []
    return [
        "In training each token of a text was an embedding (`pooling` tokens); here a text is the mean of its tokens, "
        "in maps, geometry and example weights alike."
    ]


def _maps(
    runs: Sequence[ExplainedRun],
    labels: np.ndarray,
    names: tuple[str, ...],
    method: str,
    seed: int,
    out: Path,
) -> EmbeddingMaps:
    """The maps of one seed, each made once."""
    maps = []
    for run in runs:

        def draw(run: ExplainedRun = run) -> dict[str, np.ndarray]:
            own = {run.loss: run.proxies}
            (drawn,) = embedding_maps({run.loss: run.embeddings}, labels, method=method, proxies=own, seed=seed).maps
            return {"points": drawn.points, "proxies": drawn.proxies, "explained": np.array(drawn.explained)}

        key = {"method": method, "seed": seed, "embeddings": run.embeddings, "proxies": run.proxies.vectors}
        kept = kept_arrays(out / "maps", key, draw)
        maps.append(
            EmbeddingMap(
                model=run.loss,
                points=kept["points"],
                labels=labels,
                proxies=kept["proxies"],
                proxy_labels=np.asarray(run.proxies.labels),
                proxy_kind=run.proxies.kind,
                explained=float(kept["explained"]),
            )
        )
    return EmbeddingMaps(method=method, maps=tuple(maps), label_names=names)
