"""The JSON schema of a recipe, by which editors complete and check it."""

import json
from typing import Any

from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import LoraConfig, StudyConfig
from lossmith.studies.preference_config import PreferenceConfig, RatedConfig
from lossmith.studies.recipes import kind_of_study
from lossmith.studies.sentiment_config import SentimentConfig
from lossmith.studies.tuning_config import TuningConfig
from lossmith.studies.tuning_ranges import RANGES
from lossmith.studies.tuning_space import SETTINGS


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe: a comparison of any kind, or a tuning."""
    kinds = [
        kind.model_json_schema()
        for kind in (StudyConfig, CompletionConfig, PreferenceConfig, RatedConfig, SentimentConfig)
    ]
    definitions: dict[str, Any] = {"space_entry": _SPACE_ENTRY}
    for schema in kinds:
        definitions |= schema.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lossmith study",
        "anyOf": [*kinds, _tuning(kinds[0])],
        "$defs": definitions,
    }


def described_settings(task: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting that a study of a task has, as a recipe or `key=value` names them.

    Example:
        >>> [row[:2] for row in described_settings("mr") if row[0] in ("epochs", "lora.r")]
        [('epochs', '15'), ('lora.r', '8')]
    """
    rows = []
    for name, field in kind_of_study({"task": task}).model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else json.dumps(default, default=str)
        rows.append((name, shown, " ".join((field.description or "").split())))
        if name == "lora":
            rows += [
                (f"lora.{inner}", json.dumps(value), " ".join((about.description or "").split()))
                for inner, about in LoraConfig.model_fields.items()
                for value in [getattr(default or LoraConfig(), inner)]
            ]
    return rows


_SPACE_ENTRY: dict[str, Any] = {
    "title": "What is tried",
    "description": "A range, values to try beside the written one, or null to leave it as it is written.",
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "low": {"type": "number", "description": "Lower end."},
                "high": {"type": "number", "description": "Upper end."},
                "log": {"type": "boolean", "description": "Whether it is searched by its logarithm."},
            },
            "additionalProperties": False,
            "minProperties": 1,
        },
        {"type": "array", "minItems": 1, "items": {"type": ["boolean", "number", "string"]}},
        {"type": "null"},
    ],
}


def _tuning(study: dict[str, Any]) -> dict[str, Any]:
    """A tuning as it is written: the settings of its study, which is the first kind, and its own beside them."""
    own = TuningConfig.model_json_schema()
    shared = {name: {"$ref": f"#/anyOf/0/properties/{name}"} for name in study["properties"]}
    settings = {name: about for name, about in own["properties"].items() if name != "study"}
    entry = {"$ref": "#/$defs/space_entry"}
    names = (*SETTINGS, "b", *(f"{loss}.{name}" for loss, ranges in RANGES.items() for name in ranges))
    # Other hyper-parameters may be named too; whether a loss of the study has one is checked when it is read.
    settings["space"] |= {"properties": dict.fromkeys(names, entry), "additionalProperties": entry}
    return {
        "additionalProperties": False,
        "description": own["description"],
        "properties": shared | settings,
        "title": own["title"],
        "type": "object",
    }
