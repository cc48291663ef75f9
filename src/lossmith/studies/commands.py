"""The command line that a study is."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from lossmith.studies.config import SharedConfig
from lossmith.studies.recipes import GROUPS

FLAGS = {
    "model": "--model",
    "baseline": "--baseline",
    "shots": "--shots",
    "shots_total": "--shots-total",
    "metric": "--metric",
    "device": "--device",
    "text_column": "--text-column",
    "label_column": "--label-column",
    "data": "--data",
    "preset": "--preset",
}
"""Settings that have a flag of their own; the others are written as key=value."""


def compare_command(config: SharedConfig, folder: Path) -> str:
    """The shell command that makes `folder` again on the same machine with the same versions."""
    words = ["lossmith", "compare", config.task, "--losses", *config.losses]
    seeds = config.seeds if isinstance(config.seeds, int) else ",".join(str(seed) for seed in config.seeds)
    words += ["--seeds", str(seeds)]
    loose: list[str] = []
    for name, value in _changed(config).items():
        if name in FLAGS:
            words += [FLAGS[name], str(value)]
        elif name in GROUPS and value is not None:
            loose += [f"{name}.{key}={_yaml(inner)}" for key, inner in value.items()]
        elif name not in ("task", "losses", "seeds"):
            loose.append(f"{name}={_yaml(value)}")
    return shlex.join([*words, "--out", str(folder), *loose])


def _changed(config: SharedConfig) -> dict[str, Any]:
    """Settings that differ from the defaults of their task and preset, and the ones that everyone wants to see."""
    settings = config.settings()
    default = type(config)(**{name: settings[name] for name in ("task", "preset") if name in settings}).settings()
    always = ["model", "baseline"] + ["preset"] * (settings.get("preset", "corrected") != "corrected")
    return {name: value for name, value in settings.items() if name in always or value != default[name]}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...").strip()
