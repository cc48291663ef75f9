"""Where the numbers come from: versions, commit and hardware, and whether all runs of a study share them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.evidence.records import RunRecord
from lossmith.explain.text import one_line


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts about the runs of a study, and what in them weakens the comparison."""

    facts: tuple[tuple[str, str], ...]
    """Name and value; several values where runs differ."""
    warnings: tuple[str, ...]
    """Sentences for the reader."""


def provenance(records: Sequence[RunRecord]) -> Provenance:
    """Gather versions, commit and hardware of `records`; warn where they differ or a commit was dirty."""
    groups = {
        "versions": [record.versions for record in records],
        "hardware": [record.hardware for record in records],
        "commit": [{"commit": record.commit or "unknown"} for record in records],
    }
    facts, warnings = [], []
    for group, found in groups.items():
        values = _values_by_name(found)
        facts.extend((name, " / ".join(shown)) for name, shown in values.items())
        differing = [f"{name} ({', '.join(shown)})" for name, shown in values.items() if len(shown) > 1]
        if differing:
            warnings.append(f"The runs of this study do not share the same {group}: {'; '.join(differing)}.")
    dirty = sum(record.commit is not None and record.commit.endswith("+dirty") for record in records)
    if dirty:
        warnings.append(f"{dirty} of {len(records)} runs come from a source tree with uncommitted changes.")
    return Provenance(facts=tuple(facts), warnings=tuple(warnings))


def flat_settings(settings: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and one-line values.

    Example:
        >>> flat_settings({"model": {"name": "minilm"}, "seeds": [0, 1]})
        [('model.name', 'minilm'), ('seeds', '[0, 1]')]
    """
    rows = []
    for key, value in settings.items():
        name = f"{prefix}{one_line(key)}"
        if isinstance(value, Mapping) and value:
            rows.extend(flat_settings(value, f"{name}."))
        else:
            rows.append((name, _shown(value)))
    return rows


def _values_by_name(found: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name -> its different values over all runs, `not recorded` among them where a run lacks it."""
    values: dict[str, list[str]] = {}
    for name in sorted({name for mapping in found for name in mapping}):
        shown = [_shown(mapping[name]) if name in mapping else "not recorded" for mapping in found]
        values[one_line(name)] = sorted(set(shown))
    return values


def _shown(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))
