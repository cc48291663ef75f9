"""Values per row, computed once and kept on disk: one safetensors file, under a fingerprint, saved as it grows."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from lossmith._extras import require
from lossmith.engines import gather_rows, world_size
from lossmith.errors import ConfigurationError, ModelError, ObjectiveInputError
from lossmith.integrations.fingerprints import Fingerprint
from lossmith.integrations.models import cache_folder

Compute = Callable[[list[int]], Mapping[str, Tensor]]
"""From row numbers to values of those rows, [rows, ...] each."""

KIND = "lossmith reference log-probabilities"
DONE = "rows_done"

_WAY_OUT = "move it away to compute the reference log-probabilities again, or give another folder"

_OTHER = {
    "model": "another model",
    "adapter": "another adapter",
    "tokenizer": "another tokenizer",
    "template": "another chat template",
    "data": "other data",
    "settings": "other settings",
}

_Given = TypeVar("_Given")


class StaleReferenceError(ConfigurationError):
    """Reference log-probabilities on disk belong to another model, tokenizer, template, data or setting."""


class ReferenceCache:
    """Reference log-probabilities on disk: one safetensors file per data set.

    Args:
        folder: Where the files are. By default one folder per fingerprint below the user's cache (`$LOSSMITH_CACHE`,
            else `$XDG_CACHE_HOME/lossmith`, else `~/.cache/lossmith`), where nothing can be stale.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = None if folder is None else Path(folder).expanduser()

    def path(self, name: str, fingerprint: Fingerprint) -> Path:
        """File of the data set `name`."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigurationError(f"`name` must be of letters, digits, '_', '-' and '.', got {name!r}.")
        folder = self.folder or cache_folder() / "references" / fingerprint.digest[:32]
        return folder / f"{name}.safetensors"

    def load_or_compute(
        self,
        name: str,
        fingerprint: Fingerprint,
        num_rows: int,
        compute: Compute,
        *,
        rows_per_call: int = 8,
        save_every_seconds: float = 60.0,
        progress: bool = True,
        rows: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Values of all rows, of which only those that are not on disk yet are computed.

        Where torch.distributed is initialised, all ranks must call this with the same arguments. Each computes its
        share of every chunk with the same number of calls, so a sharded model works too; rank 0 reads and writes.
        Another process that computes the same file is waited for.

        Args:
            name: Name of the data set, such as "train"; the file is called after it.
            fingerprint: What the values depend on.
            num_rows: Rows of the data set.
            compute: From row numbers, on the rank that asks, to a tensor [rows, ...] by name; called without gradient.
            rows_per_call: Most rows that `compute` gets at once, >= 1.
            save_every_seconds: What a killed run loses at most, plus one chunk.
            progress: Whether to draw a bar, where stderr is a terminal.
            rows: Rows that are wanted, None for all; of others the values mean nothing unless they were known.

        Returns:
            A CPU tensor [num_rows, ...] by name; nothing where there are no rows.

        Raises:
            StaleReferenceError: If the file has another fingerprint.
            ConfigurationError: If the file is broken or foreign, or cannot be written. It is never deleted.
            ModelError: If a value is not a finite number.
        """
        if rows_per_call < 1:
            raise ConfigurationError(f"`rows_per_call` must be >= 1, got {rows_per_call}.")
        path = self.path(name, fingerprint)
        bar = _bar(progress and _is_main())
        with contextlib.ExitStack() as stack:
            # Files appear whole, so a complete one is read without a lock, also from a folder that cannot be written.
            table = _from_main(lambda: _read(path, fingerprint, num_rows))
            if table.pending(rows):
                stack.enter_context(bar)
                _from_main(lambda: _lock(stack, bar, path))
                # Whoever held the lock may have computed them.
                table = _from_main(lambda: _read(path, fingerprint, num_rows))
                _fill(table, table.pending(rows), compute, rows_per_call, save_every_seconds, bar)
        return table.values


@dataclass(kw_only=True)
class _Table:
    """Values of the rows that are known, and which those are."""

    path: Path
    fingerprint: Fingerprint
    done: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    saved: bool = True

    def pending(self, wanted: Sequence[int] | None) -> list[int]:
        missing = (~self.done).nonzero().squeeze(1).tolist()
        return missing if wanted is None else sorted({*missing} & {*wanted})

    def put(self, rows: list[int], found: dict[str, Tensor]) -> None:
        if not self.values:
            for name, value in found.items():
                self.values[name] = torch.zeros(len(self.done), *value.shape[1:], dtype=value.dtype)
        expected = {name: value[rows] for name, value in self.values.items()}
        if _forms(found) != _forms(expected):
            raise ObjectiveInputError(f"`compute` must return {_forms(expected)} here, got {_forms(found)}.")
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                row = rows[int((~value.isfinite()).flatten(1 if value.ndim > 1 else 0).nonzero()[0, 0])]
                raise ModelError(f"`{name}` of row {row} is not a finite number: the reference cannot score this row.")
            self.values[name][rows] = value
        self.done[rows] = True
        self.saved = False

    def write(self) -> None:
        described = {"kind": KIND, "fingerprint": json.dumps(self.fingerprint.parts), "rows": str(int(self.done.sum()))}
        # Only the holder of the lock writes: the name needs no random part, a killed run leaves one such file.
        draft = self.path.with_name(f".{self.path.name}.tmp")
        try:
            safetensors.torch.save_file({**self.values, DONE: self.done}, draft, metadata=described)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except (OSError, safetensors.SafetensorError) as error:
            raise _not_writable(self.path, error) from error
        self.saved = True


def _read(path: Path, fingerprint: Fingerprint, num_rows: int) -> _Table:
    """What is on disk, or a table without rows."""
    if not path.exists():
        return _Table(path=path, fingerprint=fingerprint, done=torch.zeros(num_rows, dtype=torch.bool))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            # Copies: the file is mapped into memory, and the tensors are written to.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        parts = json.loads(described["fingerprint"]) if described.get("kind") == KIND else None
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}): {_WAY_OUT}.") from error
    known = {part.name for part in fields(Fingerprint)}
    if not isinstance(parts, dict) or set(parts) != known or DONE not in tensors:
        raise ConfigurationError(f"{path} holds no reference log-probabilities of this format: {_WAY_OUT}.")
    differing = [_OTHER[part] for part in fingerprint.differing(Fingerprint(**parts))]
    if differing:
        named = ", ".join(differing[:-1]) + " and " * (len(differing) > 1) + differing[-1]
        raise StaleReferenceError(
            f"The reference log-probabilities in {path} were computed with {named}: delete the file to compute them "
            f"again, or give another folder."
        )
    done = tensors.pop(DONE)
    if any(len(value) != num_rows for value in (done, *tensors.values())):
        raise ConfigurationError(f"{path} holds {len(done)} rows where {num_rows} were asked for: {_WAY_OUT}.")
    return _Table(path=path, fingerprint=fingerprint, done=done, values=tensors)


def _fill(
    table: _Table,
    pending: list[int],
    compute: Compute,
    rows_per_call: int,
    save_every_seconds: float,
    bar: Progress,
) -> None:
    """Compute rows that are missing, and save now and then, at the end, and when something stops it."""
    ranks = world_size()
    task = bar.add_task(f"reference: {table.path.stem}", total=len(pending))
    saved_at = time.monotonic()
    try:
        for start in range(0, len(pending), rows_per_call * ranks):
            rows = pending[start : start + rows_per_call * ranks]
            with torch.no_grad():
                table.put(rows, _computed(compute, rows))
            bar.update(task, advance=len(rows))
            if _is_main() and time.monotonic() - saved_at >= save_every_seconds:
                table.write()
                saved_at = time.monotonic()
    finally:
        if _is_main() and not table.saved:
            table.write()


def _computed(compute: Compute, rows: list[int]) -> dict[str, Tensor]:
    """Values of these rows: every rank computes its share, and all get all of them."""
    ranks = world_size()
    share = -(-len(rows) // ranks)
    # A sharded model needs every rank in every forward, so the last row stands in where rows run out.
    padded = rows + rows[-1:] * (share * ranks - len(rows))
    first = share * (dist.get_rank() if ranks > 1 else 0)
    found = compute(padded[first : first + share])
    if not all(isinstance(value, Tensor) for value in found.values()):
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in sorted(found.items()))
        raise ObjectiveInputError(f"`compute` must return tensors by name, got {kinds}.")
    if not found or any(value.ndim < 1 or len(value) != share for value in found.values()):
        raise ObjectiveInputError(f"`compute` must return tensors of {share} rows by name, got {_forms(found)}.")
    gathered = {name: gather_rows(found[name].detach().contiguous()) for name in sorted(found)}
    return {name: value[: len(rows)].cpu() for name, value in gathered.items()}


def _lock(stack: contextlib.ExitStack, bar: Progress, path: Path) -> None:
    """Hold the lock of a file until the stack ends; the system frees that of a killed process."""
    filelock = require("filelock", extra="train", purpose="keep reference log-probabilities on disk")
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            task = bar.add_task(f"waiting for another process: {path.stem}", total=None)
            lock.acquire()
            bar.remove_task(task)
    except OSError as error:
        raise _not_writable(path, error) from error
    stack.callback(lock.release)


def _not_writable(path: Path, error: Exception) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ConfigurationError(
        f"Reference log-probabilities cannot be saved in {path.parent} ({reason}): give another folder, or set "
        f"LOSSMITH_CACHE to one with room."
    )


def _from_main(action: Callable[[], _Given]) -> _Given:
    """What `action` gives or raises on rank 0, on all ranks."""
    if world_size() == 1:
        return action()
    sent: list[Any] = [None, None]
    if _is_main():
        try:
            sent[0] = action()
        except Exception as error:  # raised below, on every rank: the others would wait for ever
            sent[1] = error
    dist.broadcast_object_list(sent, src=0)
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def _is_main() -> bool:
    return world_size() == 1 or dist.get_rank() == 0


def _bar(shown: bool) -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *times, console=console, transient=True, disable=not (shown and console.is_terminal))


def _forms(values: Mapping[str, Tensor]) -> str:
    """Names, dtypes and shapes."""
    return ", ".join(f"{name}: {value.dtype} {tuple(value.shape)}" for name, value in sorted(values.items())) or "{}"
