"""How much memory one chunk of an engine may take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lossmith.errors import ObjectiveInputError

_DEFAULT_BYTES = {"cpu": 48 * 2**20, "cuda": 512 * 2**20, "mps": 256 * 2**20}
"""48 MiB of float32 are 256 rows of 49,152 classes: enough rows for full-speed products, little enough memory."""

_chosen: list[int | None] = [None]


def set_chunk_budget(num_bytes: int | None) -> None:
    """Set how many bytes of scores an engine may hold at a time, for the whole process.

    It changes speed and memory and, but for the rounding of sums, no number. Beside the scores an engine keeps a few
    tiles and vectors.

    Args:
        num_bytes: At least one row of the vocabulary in the dtype of the scores (float32 for half precision); None for
            the default: 48 MiB on a CPU, 512 MiB on CUDA, 256 MiB on MPS.

    Raises:
        ObjectiveInputError: If it is no integer >= 1.

    Example:
        >>> set_chunk_budget(32 * 2**20)
        >>> set_chunk_budget(None)
    """
    if num_bytes is not None and (isinstance(num_bytes, bool) or not isinstance(num_bytes, int) or num_bytes < 1):
        shown: Any = num_bytes
        raise ObjectiveInputError(f"`num_bytes` must be an int >= 1 (bytes), or None for the default, got {shown!r}.")
    _chosen[0] = num_bytes


@contextmanager
def within_budget(num_bytes: int | None) -> Iterator[None]:
    """`set_chunk_budget` for the length of a block."""
    before = _chosen[0]
    set_chunk_budget(num_bytes)
    try:
        yield
    finally:
        _chosen[0] = before


def chunk_budget(device: torch.device) -> int:
    """Bytes of scores that an engine may hold at a time on this device."""
    chosen = _chosen[0]
    return _DEFAULT_BYTES.get(device.type, _DEFAULT_BYTES["cpu"]) if chosen is None else chosen


def rows_within_budget(columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of `columns` scores fit the budget.

    Raises:
        ObjectiveInputError: If not one does.
    """
    row_bytes = max(columns, 1) * dtype.itemsize
    budget = chunk_budget(device)
    if row_bytes > budget:
        raise ObjectiveInputError(
            f"The chunk budget of {budget:,} bytes holds no row of {columns:,} scores in {str(dtype)[6:]}: "
            f"`lossmith.set_chunk_budget` needs at least {row_bytes:,} bytes."
        )
    return budget // row_bytes
