"""What the commands share: options, settings from words, and how text is shown."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lossmith._extras import require
from lossmith.errors import ConfigurationError

_TASK = typer.Argument(
    metavar="TASK", help="Shipped task, data file, folder with train and test, task.yaml or recipe.yaml."
)
Task = Annotated[str, _TASK]
TaskOrFlag = Annotated[str | None, _TASK]
TaskFlag = Annotated[str | None, typer.Option("--task", help="The same as TASK.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of a recipe; `lossmith settings` lists them."),
]
Model = Annotated[str | None, typer.Option(help="embedded: name, folder or hub id.")]
Shots = Annotated[int | None, typer.Option(help="Training texts per class, drawn per seed.")]
ShotsTotal = Annotated[int | None, typer.Option(help="Training texts in total, drawn per seed.")]
Data = Annotated[str | None, typer.Option(help="Rows of a known task: shipped, a folder, hub or hub:owner/name.")]
Preset = Annotated[str | None, typer.Option(help="corrected, or released: as the released code of the paper does it.")]
Votes = Annotated[
    int | None, typer.Option(help="Answers sampled per problem, the most frequent counts; with temperature=0.7.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of a data file that holds the text.")]
TextPairColumn = Annotated[str | None, typer.Option(help="Column that holds the second text, where texts are pairs.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of a data file that holds the label.")]

TRAIN_MODULES = (
    "pydantic",
    "yaml",
    "transformers",
    "accelerate",
    "peft",
    "scipy",
    "pyarrow",
    "sklearn",
    "filelock",
    "matplotlib",
    "jinja2",
)


def config_of(task: str, overrides: list[str] | None, flags: dict[str, Any], *, one_loss: bool = False) -> Any:
    """The checked settings of a comparison: the recipe or task, then key=value, then flags."""
    from lossmith import studies
    from lossmith.tasks import is_preference_task, is_unpaired_task
    from lossmith.tasks.sentiment import is_sentiment_task

    values, given, place = settings_of(task, overrides or [], flags, apply=studies.apply_overrides)
    if one_loss and "losses" not in given:
        losses = values.get("losses")
        if isinstance(losses, list) and len(losses) > 1:
            raise ConfigurationError(f"The recipe names {len(losses)} losses: say which with --loss.")
        name = str(values.get("task"))
        compares = is_preference_task(name) or is_sentiment_task(name)
        compared = "kto" if is_unpaired_task(name) else "dpo"
        given["losses"] = losses or [compared if compares else "cross_entropy"]
    if one_loss and (values | given).get("betas"):
        raise ConfigurationError("One model has one beta: write it into the loss, as in --loss 'dpo(beta=0.05)'.")
    return studies.make_config(values | given, place=place)


def settings_of(
    task: str,
    overrides: list[str],
    flags: dict[str, Any],
    *,
    apply: Callable[[dict[str, Any], list[str]], dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Settings of the recipe or task with key=value, those of the flags, and what to call them in an error message.

    Raises:
        ConfigurationError: If a setting is given both as a flag and as key=value, or the recipe cannot be read.
    """
    from lossmith import studies
    from lossmith.tasks import is_completion_task

    is_recipe = task.endswith((".yaml", ".yml")) and not is_completion_task(task)
    values = apply(studies.read_recipe(Path(task)) if is_recipe else {"task": task}, overrides)
    given = {name: value for name, value in flags.items() if value is not None}
    for word in overrides:
        name = word.partition("=")[0]
        if name in given:
            raise ConfigurationError(f"`{name}` is given twice, as a flag and as '{word}': keep one.")
    return values, given, task if is_recipe else "settings"


def one_task(
    task: str | None, flag: str | None, overrides: list[str] | None, *, command: str
) -> tuple[str, list[str] | None]:
    """The task, which may stand first or behind --task, and the overrides.

    Raises:
        ConfigurationError: If it is missing, or both are given and differ.
    """
    if flag is not None and task is not None and "=" in task and not Path(task).exists():
        # With --task the first word may be a setting.
        task, overrides = None, [task, *(overrides or [])]
    if task is None and flag is None:
        raise ConfigurationError(f"Say what to train on, as in `lossmith {command} mr` or --task FILE.")
    if task is not None and flag is not None and task != flag:
        raise ConfigurationError(f"The task is given twice, as '{task}' and as --task '{flag}': keep one.")
    return str(flag if task is None else task), overrides


def seeds_of(text: str | None) -> int | list[int] | None:
    """A number of seeds, or a list.

    Raises:
        ConfigurationError: For anything else.
    """
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigurationError(f"`--seeds` must be a number of seeds or a list such as 0,3,7, got '{text}'.")
    return [int(part) for part in text.split(",")] if "," in text else int(text)


def folder_name(task: str) -> str:
    """A name for the results of a task, safe on every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).name.split(".")[0]) or "study"


def plain(text: str) -> str:
    """Text without control characters but line ends: labels and file names must not steer the terminal."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def require_train_extra() -> None:
    """Say which extra is missing before anything is imported.

    Raises:
        MissingExtraError: If a package of the train extra is not installed.
    """
    for module in TRAIN_MODULES:
        require(module, extra="train", purpose="run studies")
