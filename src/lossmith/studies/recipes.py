"""Settings from recipes and command lines: YAML, `key=value`, and which kind of study they make."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, LossmithError
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import SharedConfig, StudyConfig
from lossmith.studies.preference_config import RATED_DECIDING, PreferenceConfig, RatedConfig
from lossmith.studies.sentiment_config import SentimentConfig
from lossmith.tasks import (
    is_completion_task,
    is_preference_task,
    is_unpaired_task,
    list_completion_tasks,
    list_preference_tasks,
)
from lossmith.tasks.sentiment import is_sentiment_task

Settings = TypeVar("Settings", bound=BaseModel)

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
GROUPS = ("trainer", "lora")
"""Settings that have settings below them."""


def make_config(values: dict[str, Any], *, place: str = "settings") -> SharedConfig:
    """Checked settings: written answers, preferences, rated answers or sentiment by the task, else `StudyConfig`.

    Args:
        values: Settings by name.
        place: What to call them in an error message: a recipe's file name, or "settings".

    Raises:
        ConfigurationError: One sentence on the first setting that does not fit.
    """
    return checked(kind_of_study(values), values, place)


def kind_of_study(values: dict[str, Any]) -> type[SharedConfig]:
    """Which settings a study has, by its task, or by a setting that only one kind has where the task's file is gone."""
    task = str(values.get("task", ""))
    if is_completion_task(task):
        return CompletionConfig
    if is_sentiment_task(task):
        return SentimentConfig
    if values.get("metric") in RATED_DECIDING or (task and is_unpaired_task(task)):
        return RatedConfig
    return PreferenceConfig if "betas" in values or (task and is_preference_task(task)) else StudyConfig


def checked(kind: type[Settings], values: dict[str, Any], place: str) -> Settings:
    """Settings of one kind, or one sentence on the first that does not fit; see `make_config`."""
    known = kind.model_fields
    task = Path(str(values.get("task", "")))
    for name in values:
        if name not in known:
            if kind is StudyConfig and task.suffix in FILES and not task.exists():
                # Which settings it may have is decided by what it holds.
                raise ConfigurationError(f"There is no file or folder `{task}` (looked from `{Path.cwd()}`).")
            raise ConfigurationError(
                f"{place}: there is no setting `{name}`.{_elsewhere(name, kind, values) or did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if first["type"] == "value_error" and cause is not None:
            name = ".".join(str(part) for part in first["loc"])
            named = f"`{name}` {cause}" if name and not isinstance(cause, LossmithError) else str(cause)
            raise ConfigurationError(f"{place}: {named}") from None
        name = ".".join(str(part) for part in first["loc"] if part != "LoraConfig") or "settings"
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigurationError(f"{place}: `{name}`: {message}, got {first['input']!r}.") from None


def _elsewhere(name: str, kind: type[BaseModel], values: dict[str, Any]) -> str:
    """Where a setting of the other kind of study belongs."""
    if kind is StudyConfig and name in CompletionConfig.model_fields:
        known, task = [str(task) for task in list_completion_tasks()], str(values.get("task"))
        return (
            f" It belongs to tasks with written answers ({', '.join(known)}, a task file), and the task is '{task}'."
            f"{did_you_mean(task, known)}"
        )
    if kind is StudyConfig and name in PreferenceConfig.model_fields:
        known, task = [str(task) for task in list_preference_tasks()], str(values.get("task"))
        return (
            f" It belongs to preferences ({', '.join(known)}, a file of pairs), and the task is '{task}'."
            f"{did_you_mean(task, known)}"
        )
    if kind is CompletionConfig and name in StudyConfig.model_fields:
        return " It belongs to classification; rows of a task with written answers are drawn by `train_examples`."
    return ""


def read_recipe(path: Path) -> dict[str, Any]:
    """Settings of a YAML recipe, by safe loading.

    Raises:
        ConfigurationError: If the file cannot be read or is no mapping of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigurationError(f"The recipe {path} must be a mapping of settings, such as `task: mr`.")
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Settings with `key=value`, `trainer.key=value` and `lora.key=value` overrides, each value read as YAML.

    Raises:
        ConfigurationError: For a word that is no `key=value`, or a value that is no YAML.

    Example:
        >>> apply_overrides({"epochs": 3}, ["epochs=5", "trainer.optim=sgd"])
        {'epochs': 5, 'trainer': {'optim': 'sgd'}}
    """
    result = {**values}
    for word in overrides:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"An override is written as key=value, got '{word}'.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigurationError(f"The value of override '{word}' is not valid YAML.") from None
        group, dot, inner = name.partition(".")
        if dot:
            if group not in GROUPS:
                raise ConfigurationError(f"Only {' and '.join(GROUPS)} have settings below them, got '{word}'.")
            result[group] = {**(result.get(group) or {}), inner: value}
        else:
            result[name] = value
    return result
