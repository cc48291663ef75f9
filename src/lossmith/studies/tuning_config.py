"""What a tuning is: a comparison, and how many trials every loss gets within each block's training rows."""

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError
from lossmith.evidence import METRICS
from lossmith.studies.commands import compare_command
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import StudyConfig
from lossmith.studies.recipes import apply_overrides, checked, make_config
from lossmith.studies.tuning_space import Parameter, check_names, search_space


class TuningConfig(BaseModel):
    """A comparison of losses in which each of them is tuned alike, on the training rows alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, title="lossmith tuning")

    study: StudyConfig
    """What is compared; its settings and losses are the untuned ones."""
    trials: Annotated[int, Field(ge=1)] = 20
    """Trials of every loss in every block, the untuned first; pruned and failed ones count."""
    inner_folds: Annotated[int, Field(ge=2)] = 3
    """Parts of a block's training rows; each in turn is what a trial is scored on."""
    inner_metric: str | None = None
    """Metric that a trial is scored by; None is the study's `metric`."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Name -> `{low, high, log}`, a list of values to try, or null: in place of what is tuned by itself."""

    @field_validator("trials", "inner_folds", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must not be {value}: no setting is switched on or off")
        return value

    @model_validator(mode="after")
    def _usable(self) -> "TuningConfig":
        settings = self.study.settings()
        try:
            type(self.study).model_validate(settings | {"metric": self.objective})
        except ValidationError:
            raise ValueError(
                f"`inner_metric` must be a metric of the test, got '{self.inner_metric}'."
                f"{did_you_mean(self.objective, METRICS)}"
            ) from None
        check_names(self.study, self.space)
        if not any(self.spaces.values()):
            raise ValueError("`space` leaves nothing to tune: every parameter is null.")
        return self

    @property
    def objective(self) -> str:
        """The metric that a trial is scored by."""
        return self.inner_metric or self.study.metric

    @cached_property
    def spaces(self) -> dict[str, tuple[Parameter, ...]]:
        """Loss -> what is tuned for it."""
        return {loss: search_space(self.study, loss, self.space) for loss in self.study.all_losses}

    @property
    def own(self) -> dict[str, Any]:
        """The settings that a comparison does not have, as JSON values."""
        return json.loads(self.model_dump_json(exclude={"study"}))

    def settings(self) -> dict[str, Any]:
        """Everything as plain JSON values, in the form of a recipe."""
        return self.study.settings() | self.own


def make_tuning_config(values: dict[str, Any], *, place: str = "settings") -> TuningConfig:
    """A checked `TuningConfig` from the settings of a recipe: those of a comparison, and those of the tuning.

    Raises:
        ConfigurationError: One sentence on the first setting that does not fit.

    Example:
        >>> make_tuning_config({"task": "mr", "shots": 20, "trials": 30}).trials
        30
    """
    fields = [name for name in TuningConfig.model_fields if name != "study"]
    for name in values:
        if name not in StudyConfig.model_fields and name not in fields and (near := did_you_mean(name, fields)):
            raise ConfigurationError(f"{place}: there is no setting `{name}`.{near}")
    own = {name: value for name, value in values.items() if name in fields}
    study = make_config({name: value for name, value in values.items() if name not in own}, place=place)
    if not isinstance(study, StudyConfig):
        written = isinstance(study, CompletionConfig)
        raise ConfigurationError(
            f"{place}: `lossmith tune` is for classification, and '{study.task}' "
            f"{'has written answers' if written else 'is trained on preferences'}: use `lossmith compare` with the "
            f"settings that you want{'' if written else ', such as betas=[0.05,0.1,0.5]'}."
        )
    return checked(TuningConfig, own | {"study": study}, place)


def apply_tuning_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """As `apply_overrides`, and `space.NAME=...` beside them.

    Example:
        >>> apply_tuning_overrides({}, ["space.soft_triple.margin=[0.1, 0.7]", "epochs=5"])
        {'epochs': 5, 'space': {'soft_triple.margin': [0.1, 0.7]}}
    """
    inner = [word.removeprefix("space.") for word in overrides if word.startswith("space.")]
    result = apply_overrides(values, [word for word in overrides if not word.startswith("space.")])
    if inner:
        # Behind `space.` comes a whole name, dots included.
        named = [word.partition("=") for word in inner]
        read = apply_overrides({}, [f"{place}{equals}{text}" for place, (_, equals, text) in enumerate(named)])
        space = dict(result.get("space") or {})
        result["space"] = space | {name: read[str(place)] for place, (name, _, _) in enumerate(named)}
    return result


def tune_command(config: TuningConfig, folder: Path) -> str:
    """The shell command that makes `folder` again on the same machine with the same versions."""
    words = shlex.split(compare_command(config.study, folder))
    words[1] = "tune"
    for name, value in config.own.items():
        if value != TuningConfig.model_fields[name].get_default(call_default_factory=True):
            words.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return shlex.join(words)
