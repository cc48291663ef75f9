"""Look into the models of a finished comparison: what did each loss change, on the same held-out examples?"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lossmith._extras import require
from lossmith.errors import ConfigurationError
from lossmith.evidence import RunRecord, check_writable
from lossmith.studies.classification import ClassificationSetting, open_classification
from lossmith.studies.comparison import Listener, Study, open_results
from lossmith.studies.config import StudyConfig
from lossmith.studies.explained_asked import asked_losses, asked_seeds, check_unchanged, recorded_runs
from lossmith.studies.explained_results import ExplainedStudy, assembled
from lossmith.studies.explained_run import ExplainedRun, Sample, disputed_places, draw_sample, look_into
from lossmith.studies.explained_store import RunFiles
from lossmith.studies.preference_config import PreferenceFields
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
        what = "are trained on preferences" if isinstance(config, PreferenceFields) else "write answers"
        raise ConfigurationError(
            f"`study` must be one of a classification, got one of the task '{config.task}', whose models {what}."
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
    disputed = _disputed(found, records, samples)
    files = RunFiles(out, {"examples": examples, "attributed": attributed, "seed": seed})
    runs = _all_runs(setting, records, samples, disputed, files, listener or Unheard())
    notices += _differing(list(runs.values()))
    return assembled(setting, runs, samples, out, [*found.notices, *notices], found.attribution)


def _all_runs(
    setting: ClassificationSetting,
    records: Mapping[tuple[str, int], RunRecord],
    samples: Mapping[int, Sample],
    disputed: Mapping[tuple[str, int], Sequence[int]],
    files: RunFiles,
    listener: Listener,
) -> dict[tuple[str, int], ExplainedRun]:
    """Every run as kept, or trained and looked into now."""
    runs = {
        place: kept
        for place, record in records.items()
        if (kept := files.read(record, disputed.get(place, ()))) is not None
    }
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
            disputed.get((loss, seed), ()),
            lambda share: listener.run_moved(TRAINING_SHARE + (1 - TRAINING_SHARE) * share),
        )
        files.write(record, run)
        runs[loss, seed] = run
        listener.run_ended(record)
    return {place: runs[place] for place in records}


def _disputed(
    study: Study, records: Mapping[tuple[str, int], RunRecord], samples: Mapping[int, Sample]
) -> dict[tuple[str, int], tuple[int, ...]]:
    """What every run attributes for the sake of its disagreements with the baseline.

    Of all losses and seeds, asked for or not: what is kept of a run then serves a later call too.
    """
    found = {}
    for seed, sample in samples.items():
        own = {record.loss: record for record in study.records if record.seed == seed and record.status == "finished"}
        own |= {loss: record for (loss, block), record in records.items() if block == seed}
        places = disputed_places(own, study.config.all_losses[0], sample)
        found |= {(loss, seed): chosen for loss, chosen in places.items()}
    return found


def _differing(runs: Sequence[ExplainedRun]) -> list[str]:
    """A sentence for every run that did not come out as it was recorded."""
    return [
        f"{run.loss}, seed {run.seed}: trained again, {run.changed} test predictions differ from the recorded ones; "
        f"what is shown is the new model. Another machine, other versions or another number of threads can do this."
        for run in runs
        if run.changed
    ]
