"""Where results go: checked before anything is measured, written at the end."""

import os
from pathlib import Path

from lossmith._extras import require
from lossmith.bench.results import Results
from lossmith.errors import ConfigurationError

PICTURES = (".svg", ".png")


def check_outputs(*, json: Path | None = None, plot: Path | None = None) -> None:
    """Raise unless these files can be written: nobody wants to learn that after minutes.

    Raises:
        ConfigurationError: For a folder, a picture of another kind, or a place that cannot be written.
        MissingExtraError: For a picture without matplotlib.
    """
    if plot is not None:
        if plot.suffix.lower() not in PICTURES:
            raise ConfigurationError(f"`--plot` writes {' or '.join(PICTURES)} files, got '{plot.name}'.")
        require("matplotlib", extra="train", purpose="draw the benchmark")
    for name, path in (("--json", json), ("--plot", plot)):
        if path is None:
            continue
        if path.is_dir():
            raise ConfigurationError(f"`{name}` needs a file, '{path}' is a folder.")
        existing = next((place for place in (path, *path.parents) if place.exists()), None)
        if existing is None or (existing != path and not existing.is_dir()) or not os.access(existing, os.W_OK):
            raise ConfigurationError(f"`{name}` cannot write '{path}'.")


def write_outputs(results: Results, *, json: Path | None = None, plot: Path | None = None) -> None:
    """Write what was asked for, and the folders that it needs."""
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(results.to_json(), encoding="utf-8")
    if plot is not None:
        # Imported here: a benchmark without a picture needs no matplotlib.
        from lossmith.bench.picture import write_picture

        write_picture(results, plot)
