"""Look into the models of a finished comparison: what did each loss change, on the same held-out examples?"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmith._extras import require
from lossmith.errors import ConfigurationError
from lossmith.evaluation.calibration import softmax
from lossmith.evidence import RunRecord, check_writable
from lossmith.explain import (
    AccuracyByDecile,
    AttributionStability,
    Calibration,
    Disagreements,
    EmbeddingMap,
    EmbeddingMaps,
    Faithfulness,
    Geometry,
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
from lossmith.studies.classification import ClassificationSetting, open_classification
from lossmith.studies.comparison import Listener, Study, open_results
from lossmith.studies.config import StudyConfig
from lossmith.studies.explained_asked import asked_losses, asked_seeds, check_unchanged, recorded_runs
from lossmith.studies.explained_run import ExplainedRun, Sample, draw_sample, look_into, pretrained_outputs
from lossmith.studies.explained_store import RunFiles, kept_arrays
from lossmith.studies.run import TRAINING_SHARE, train_and_test


class Unheard:
    """A `Listener` that hears nothing."""

    def study_began(self, planned: int, finished: int) -> None:
        """See `Listener`."""

    def run_began(self, loss: str, seed: int) -> None:
        """See `Listener`."""

    def run_moved(self, share: float) -> None:
        """See `Listener`."""

    def run_ended(self, record: RunRecord) -> None:
        """See `Listener`."""

    def waiting(self, loss: str, seed: int) -> None:
        """See `Listener`."""


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
    notices: tuple[str, ...]
    """What a reader must know."""
    attribution: str
    """Whose data these are and under which licence."""

    @property
    def baseline(self) -> str:
        """The loss that the others are compared with."""
        return self.losses[0]


def explain_study(
    study: Path | str | Study,
    *,
    losses: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    examples: int = 1000,
    attributed: int = 64,
    seed: int = 0,
    out: Path | None = None,
    listener: Listener | None = None,
) -> ExplainedStudy:
    """Look into the models of a classification study.

    Studies keep no weights, so every run is trained again, which gives the same model on the same machine; predictions
    are compared with the recorded ones and a difference is a notice. What is seen of a run is kept at once in
    `out/runs`, so that a stopped call continues and a second one repeats nothing.

    Args:
        study: Results folder of `lossmith compare`, or the study itself (then with `out`).
        losses: Names or compositions of the study; None for all. The baseline always comes along.
        seeds: How many of the study's first seeds, or which; None for the first 3.
        examples: Held-out examples, the same for every loss, >= 20; all where there are fewer.
        attributed: Those of them whose tokens are attributed, >= 1.
        seed: Of the draw of examples, of t-SNE and of perturbations.
        out: Where to keep; None for `explain` in the study's folder.
        listener: Is told of progress.

    Raises:
        ConfigurationError: For a study of another kind, a loss or seed that it does not hold, or a wrong count.
        EvidenceError: If data or weights have changed since, no run is there, or `out` cannot be written.
    """
    require("captum", extra="explain", purpose="explain models")
    require("pandas", extra="explain", purpose="give results as data frames")
    for name, value, low in (("examples", examples, 20), ("attributed", attributed, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigurationError(f"`{name}` must be an int >= {low}, got {value}.")
    found = study if isinstance(study, Study) else open_results(Path(study))
    if out is None:
        if isinstance(study, Study):
            raise ConfigurationError("`out` must say where to keep what is seen of a study that is given as a value.")
        out = Path(study) / "explain"
    config = found.config
    if not isinstance(config, StudyConfig):
        raise ConfigurationError(
            f"`study` must be one of a classification, got one of the task '{config.task}', whose models write answers."
        )
    names, blocks = asked_losses(config, losses), asked_seeds(config, seeds)
    records, notices = recorded_runs(found, names, blocks)
    setting = open_classification(config)
    check_unchanged(setting, list(records.values()))
    check_writable(out)
    samples = {
        block: draw_sample(setting.task_of(block).test, examples=examples, attributed=attributed, seed=seed)
        for block in dict.fromkeys(block for _, block in records)
    }
    files = RunFiles(out, {"examples": examples, "attributed": attributed, "seed": seed})
    runs = _all_runs(setting, records, samples, files, listener or Unheard())
    notices += _differing(list(runs.values()))
    return _assembled(setting, runs, samples, out, [*found.notices, *notices], found.attribution)


def _all_runs(
    setting: ClassificationSetting,
    records: Mapping[tuple[str, int], RunRecord],
    samples: Mapping[int, Sample],
    files: RunFiles,
    listener: Listener,
) -> dict[tuple[str, int], ExplainedRun]:
    """Every run as kept, or trained and looked into now."""
    runs = {place: kept for place, record in records.items() if (kept := files.read(record)) is not None}
    listener.study_began(len(records), len(runs))
    for (loss, seed), record in records.items():
        if (loss, seed) in runs:
            continue
        listener.run_began(loss, seed)
        with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
            retrained, trainer = train_and_test(
                setting,
                loss,
                seed,
                Path(workspace) / "trainer",
                progress=lambda share: listener.run_moved(TRAINING_SHARE * share),
            )
        run = look_into(
            setting,
            trainer,
            record,
            retrained,
            samples[seed],
            lambda share: listener.run_moved(TRAINING_SHARE + (1 - TRAINING_SHARE) * share),
        )
        files.write(record, run)
        runs[loss, seed] = run
        listener.run_ended(record)
    return {place: runs[place] for place in records}


def _differing(runs: Sequence[ExplainedRun]) -> list[str]:
    """A sentence for every run that did not come out as it was recorded."""
    return [
        f"{run.loss}, seed {run.seed}: trained again, {run.changed} test predictions differ from the recorded ones; "
        f"what is shown is the new model. Another machine, other versions or another number of threads can do this."
        for run in runs
        if run.changed
    ]


def _assembled(
    setting: ClassificationSetting,
    runs: Mapping[tuple[str, int], ExplainedRun],
    samples: Mapping[int, Sample],
    out: Path,
    notices: Sequence[str],
    attribution: str,
) -> ExplainedStudy:
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
        notices=tuple(dict.fromkeys([*notices, *_about_samples(samples)])),
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
        "fold": None if setting.config.folds is None else seed % setting.config.folds,
    }
    return kept_arrays(out / "pretrained", key, lambda: pretrained_outputs(setting, seed, sample))


def _same_examples(samples: Mapping[int, Sample]) -> bool:
    first, *others = samples.values()
    return all(sample.examples == first.examples for sample in others)


def _about_samples(samples: Mapping[int, Sample]) -> list[str]:
    if _same_examples(samples):
        return []
    return [
        "Every seed is tested on a fold of its own, so its examples differ: attributions of different seeds cannot be "
        "compared."
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
