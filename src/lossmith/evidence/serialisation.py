"""Records as strict JSON: readable by any tool, canonical where a fingerprint is taken, and exact on the way back."""

import hashlib
import json
import math
import re
from typing import Any

from lossmith.errors import EvidenceError
from lossmith.evidence.records import RunRecord

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Starts and ends at raw line breaks, which JSON allows between values only: text in quotes cannot match.
_INDENTED_NUMBERS = re.compile(r"\[\n\s*([^\[\]{}\"]+?)\n\s*\]")


def record_to_json(record: RunRecord) -> str:
    """The record as one line of strict JSON; JSON has no NaN, so a diverged curve holds the word instead."""
    return _dumps(record.to_dict())


def record_from_json(text: str) -> RunRecord:
    """The record that `record_to_json` wrote."""
    values = _loads(text)
    values["metrics"] = {name: _number(value) for name, value in values.get("metrics", {}).items()}
    values["curves"] = {
        name: [[_number(value) for value in point] for point in points]
        for name, points in values.get("curves", {}).items()
    }
    return RunRecord.from_dict(values)


def settings_to_json(settings: dict[str, Any]) -> str:
    """Settings as canonical JSON: equal settings give equal text, whatever the order of their keys."""
    return _dumps(settings, sort_keys=True)


def settings_from_json(text: str) -> dict[str, Any]:
    """The settings that `settings_to_json` wrote."""
    return _loads(text)


def fingerprint(settings: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `settings`."""
    return hashlib.sha256(settings_to_json(settings).encode()).hexdigest()


def readable(text: str) -> str:
    """JSON for a person: indented, with each list of numbers on one line.

    Example:
        >>> print(readable('{"loss": "focal", "labels": [1, 0, 2]}'))
        {
          "loss": "focal",
          "labels": [1, 0, 2]
        }
    """
    indented = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return _INDENTED_NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", indented)


def differing_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Each setting that two configurations disagree about, with both values.

    Example:
        >>> differing_settings({"shots": 20, "model": {"name": "a"}}, {"shots": 40, "model": {"name": "a"}})
        ['`shots` is 20 there, 40 here']
    """
    there, here = _flat(old), _flat(new)
    return [
        f"`{key}` is {_shown(there, key)} there, {_shown(here, key)} here"
        for key in sorted(there.keys() | here.keys())
        if _shown(there, key) != _shown(here, key)
    ]


def _dumps(values: dict[str, Any], *, sort_keys: bool = False) -> str:
    try:
        return json.dumps(_finite(values), sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise EvidenceError(f"Settings and records must hold plain JSON values: {error}.") from error


def _loads(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise EvidenceError(f"A stored row is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise EvidenceError(f"A stored row must be a JSON object, got {text[:40]!r}.")
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _number(value: float | int | str) -> float | int:
    return _NOT_FINITE[value] if isinstance(value, str) else value


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "absent"
