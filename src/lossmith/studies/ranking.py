"""Results folders of one set of losses on several data sets, read as one ranking."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evidence import Ranking, StudySummary, metric_style, rank_losses, summarize
from lossmith.studies.commands import compare_command
from lossmith.studies.comparison import Study, open_results
from lossmith.studies.config import SharedConfig
from lossmith.studies.tuning import is_tuning, read_tuning_config
from lossmith.studies.tuning_config import TuningConfig, tune_command
from lossmith.tasks import list_tasks

DATA_SETTINGS = frozenset(
    {"task", "data", "text_column", "text_pair_column", "label_column", "split_seed", "test_fraction", "shots",
     "shots_total", "draw", "folds", "fold_seed", "train_examples", "test_examples", "losses", "seeds", "metric"}
)  # fmt: skip
"""Settings in which the studies of a ranking may differ without a word: they are the data, or looked at elsewhere."""


@dataclass(frozen=True, kw_only=True)
class RankedStudies:
    """A ranking and the studies behind it."""

    ranking: Ranking
    """Losses over data sets."""
    studies: tuple[Study, ...]
    """One per data set, in the order given."""
    folders: tuple[Path, ...]
    """Their results folders."""
    commands: tuple[str, ...]
    """The command line that makes each folder."""
    notices: tuple[str, ...]
    """What a reader must know before believing the ranking."""


def rank_studies(folders: Sequence[Path], metric: str | None = None) -> RankedStudies:
    """Rank the losses of several results folders of `lossmith compare` or `tune`, one per data set or number of shots.

    Args:
        folders: At least two, of the same losses and baseline, every run finished.
        metric: What to rank; by default the metric that all of them are judged by.

    Raises:
        EvidenceError: If a folder holds no study, or the studies do not make one table.
        ConfigurationError: If there are fewer than two folders, two hold one task with one number of shots, or the
            metric is not said where they differ in it.
    """
    if len(folders) < 2:
        raise ConfigurationError(
            f"A ranking needs the results folders of at least 2 data sets, got {len(folders)}: "
            f"{', '.join(map(str, folders)) or 'none'}."
        )
    if metric is not None:
        metric_style(metric)
    studies = [open_results(folder) for folder in folders]
    tunings = [read_tuning_config(folder) if is_tuning(folder) else None for folder in folders]
    names = _names(folders, studies)
    wanted = metric or _shared_metric(names, studies)
    summaries = {
        name: _summary(folder, study, wanted) for name, folder, study in zip(names, folders, studies, strict=True)
    }
    return RankedStudies(
        ranking=rank_losses(summaries),
        studies=tuple(studies),
        folders=tuple(folders),
        commands=tuple(
            tune_command(tuning, folder) if tuning else compare_command(study.config, folder)
            for tuning, study, folder in zip(tunings, studies, folders, strict=True)
        ),
        notices=_notices(names, studies, tunings),
    )


def dataset_name(config: SharedConfig) -> str:
    """What a study's data set is called: its task, and how much of it is trained on."""
    settings = config.settings()
    task = Path(config.task).name.split(".")[0] or config.task
    if shots := settings.get("shots"):
        return f"{task} ({shots} per class)"
    if rows := settings.get("shots_total") or settings.get("train_examples"):
        return f"{task} ({rows} rows)"
    return task


def _names(folders: Sequence[Path], studies: Sequence[Study]) -> list[str]:
    """A name per study, all different."""
    seen: dict[tuple[object, ...], Path] = {}
    for folder, study in zip(folders, studies, strict=True):
        settings = study.config.settings()
        amount = tuple(settings.get(name) for name in ("shots", "shots_total", "train_examples"))
        key = (study.config.task, *amount)
        if (other := seen.get(key)) is not None:
            raise ConfigurationError(
                f"`{other}` and `{folder}` hold the same task with the same number of shots "
                f"({dataset_name(study.config)}): name one of them, since a ranking counts every folder as a data set."
            )
        seen[key] = folder
    names = [dataset_name(study.config) for study in studies]
    again = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name}, {folder}" if name in again else name for name, folder in zip(names, folders, strict=True)]


def _shared_metric(names: Sequence[str], studies: Sequence[Study]) -> str:
    metrics = {study.config.metric: name for name, study in zip(names, studies, strict=True)}
    if len(metrics) > 1:
        shown = ", ".join(f"{metric} on {name}" for metric, name in metrics.items())
        raise ConfigurationError(f"The studies are judged by different metrics ({shown}): say which with --metric.")
    return studies[0].config.metric


def _summary(folder: Path, study: Study, metric: str) -> StudySummary:
    config = study.config
    try:
        return summarize(
            study.records, losses=config.all_losses, baseline=config.baseline, metric=metric, seeds=config.blocks
        )
    except EvidenceError as error:
        raise EvidenceError(f"`{folder}`: {error}") from error


def _notices(names: Sequence[str], studies: Sequence[Study], tunings: Sequence[TuningConfig | None]) -> tuple[str, ...]:
    """What weakens the ranking, and what each study says of itself."""
    notices = []
    for task, count in Counter(study.config.task for study in studies).items():
        if count > 1:
            notices.append(
                f"{task} comes {count} times, with other numbers of shots: these share texts, so that there are fewer "
                f"independent data sets than the tests count. Rank each number of shots on its own to test it."
            )
    tasks = {study.config.task for study in studies}
    for record in list_tasks(shipped_only=False):
        for other in record.shares_texts_with:
            if {record.name, other} <= tasks and record.name < other:
                notices.append(
                    f"{record.name} and {other} share texts, so that they are less than the two data sets that the "
                    f"tests count: leave one of them out to test it."
                )
    tuned = [tuning for tuning in tunings if tuning]
    if 0 < len(tuned) < len(tunings):
        on = [name for name, tuning in zip(names, tunings, strict=True) if tuning]
        off = [name for name, tuning in zip(names, tunings, strict=True) if not tuning]
        notices.append(
            f"The losses were tuned on {', '.join(on)} and not on {', '.join(off)}, so that a difference between data "
            f"sets can come from there."
        )
    differing = _differing([study.config.settings() for study in studies]) + _differing([one.own for one in tuned])
    if differing:
        notices.append(
            f"The studies differ in {', '.join(f'`{name}`' for name in differing)} too, so that a difference between "
            f"data sets can come from there."
        )
    notices += [f"{name}: {said}" for name, study in zip(names, studies, strict=True) for said in study.notices]
    return tuple(notices)


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same everywhere, those of the data aside."""
    names = sorted({name for found in settings for name in found} - DATA_SETTINGS)
    return [name for name in names if any(found.get(name) != settings[0].get(name) for found in settings)]
