"""Which runs of a study are to be explained, and whether they still can be."""

from collections.abc import Sequence

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evidence import RunRecord
from lossmith.nn import parse_composition
from lossmith.studies.classification import ClassificationSetting
from lossmith.studies.comparison import Study
from lossmith.studies.config import StudyConfig

DEFAULT_SEEDS = 3
"""Blocks that are explained unless others are asked for: the first ones of the study."""


def asked_losses(config: StudyConfig, losses: Sequence[str] | None) -> tuple[str, ...]:
    """The losses to look into, in the study's order, the baseline first.

    Raises:
        ConfigurationError: For one that the study does not hold.
    """
    if losses is None:
        return config.all_losses
    wanted = [str(parse_composition(text)) for text in losses]
    for text in wanted:
        if text not in config.all_losses:
            hint = did_you_mean(text, config.all_losses)
            raise ConfigurationError(
                f"`losses` must name losses of the study, got '{text}'.{hint} It holds: {', '.join(config.all_losses)}."
            )
    return tuple(text for text in config.all_losses if text in wanted or text == config.baseline)


def asked_seeds(config: StudyConfig, seeds: int | Sequence[int] | None) -> tuple[int, ...]:
    """The blocks to look into, in the study's order.

    Raises:
        ConfigurationError: For one that the study does not hold.
    """
    blocks = config.blocks
    if seeds is None:
        return blocks[:DEFAULT_SEEDS]
    if isinstance(seeds, int):
        if not 1 <= seeds <= len(blocks):
            raise ConfigurationError(f"`seeds` must be from 1 to {len(blocks)}, the seeds of the study, got {seeds}.")
        return blocks[:seeds]
    strange = [seed for seed in seeds if seed not in blocks]
    if strange or not seeds:
        what = f"got {strange[0]}" if strange else "got none"
        raise ConfigurationError(f"`seeds` must be seeds of the study, {', '.join(map(str, blocks))}, {what}.")
    return tuple(block for block in blocks if block in seeds)


def recorded_runs(
    study: Study, losses: Sequence[str], seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], RunRecord], list[str]]:
    """The finished runs that are asked for; a seed without its baseline run is left out."""
    known = {(record.loss, record.seed): record for record in study.records if record.status == "finished"}
    failed = {(record.loss, record.seed) for record in study.records if record.status != "finished"}
    notices = []
    found: dict[tuple[str, int], RunRecord] = {}
    for seed in seeds:
        for loss in losses:
            if (loss, seed) in known and (losses[0], seed) in known:
                found[loss, seed] = known[loss, seed]
                continue
            why = (
                "failed" if (loss, seed) in failed
                else "is not finished" if (loss, seed) not in known
                else f"has no finished run of {losses[0]} beside it"
            )  # fmt: skip
            notices.append(f"The run of {loss}, seed {seed}, {why}: it is not explained.")
    if not found:
        raise EvidenceError("The study holds no finished run of its baseline among those asked for: run it first.")
    return found, notices


def check_unchanged(setting: ClassificationSetting, records: Sequence[RunRecord]) -> None:
    """See that the runs can be trained again.

    Raises:
        EvidenceError: If data or weights are not those of the study.
    """
    now = {"task_fingerprint": setting.task.fingerprint, "model_fingerprint": setting.model.fingerprint}
    for record in records:
        for name, value in now.items():
            if record.config.get(name, value) != value:
                what = "data" if name.startswith("task") else "weights of the model"
                raise EvidenceError(
                    f"The {what} have changed since the study was made: its models cannot be trained again."
                )
