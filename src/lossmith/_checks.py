"""Checks of what callers gave, as one clear sentence each."""

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lossmith._debug import debugging
from lossmith.errors import ObjectiveInputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or an empty string.

    Example:
        >>> did_you_mean("focall", ["focal", "poly1"])
        " Did you mean 'focal'?"
    """
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_positive(name: str, value: float) -> None:
    """Raise `ObjectiveInputError` unless `value` is a finite number > 0."""
    # Comparisons alone: torch.compile traces a second value of a hyper-parameter as a symbol, which isfinite refuses.
    if not 0 < value < math.inf:
        raise ObjectiveInputError(f"`{name}` must be > 0, got {value}.")


def check_not_negative(name: str, value: float) -> None:
    """Raise `ObjectiveInputError` unless `value` is a finite number >= 0."""
    if not 0 <= value < math.inf:
        raise ObjectiveInputError(f"`{name}` must be >= 0, got {value}.")


def check_unit_interval(name: str, value: float) -> None:
    """Raise `ObjectiveInputError` unless 0 <= `value` < 1."""
    if not 0 <= value < 1:
        raise ObjectiveInputError(f"`{name}` must be in [0, 1), got {value}.")


def check_finite(name: str, value: float) -> None:
    """Raise `ObjectiveInputError` unless `value` is a finite number."""
    if not -math.inf < value < math.inf:
        raise ObjectiveInputError(f"`{name}` must be a finite number, got {value}.")


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise `ObjectiveInputError` unless `value` is one of the `allowed` words."""
    if value not in allowed:
        words = ", ".join(f"'{word}'" for word in allowed)
        raise ObjectiveInputError(f"`{name}` must be one of {words}, got {value!r}.")


def check_labels(labels: Tensor, shape: tuple[int, ...], *, scores: str) -> None:
    """Raise `ObjectiveInputError` unless `labels` are integers of `shape`, on the rows of `scores`."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ObjectiveInputError(f"`labels` must be integers (class ids), got {labels.dtype}.")
    if tuple(labels.shape) != shape:
        raise ObjectiveInputError(
            f"`labels` must have one entry per row of `{scores}`, {shape}, got {tuple(labels.shape)}."
        )


def check_same_device(**tensors: Tensor) -> None:
    """Raise `ObjectiveInputError` unless all tensors lie on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        places = ", ".join(f"`{name}` on {tensor.device}" for name, tensor in tensors.items())
        raise ObjectiveInputError(f"All inputs must be on one device, got {places}.")


def check_label_range(labels: Tensor, size: int, *, size_name: str, ignore_index: int) -> None:
    """Raise `ObjectiveInputError` for labels outside [0, size); reads values: on the CPU, or under `debug()`."""
    if (labels.device.type != "cpu" and not debugging()) or labels.numel() == 0:
        return
    counted = labels[labels != ignore_index]
    if counted.numel() == 0:
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0:
        raise ObjectiveInputError(f"`labels` must be >= 0 (or {ignore_index} to ignore a row), got {low}.")
    if high >= size:
        hint = " Is the tokenizer larger than the output layer?" if size > 1000 else ""
        raise ObjectiveInputError(f"`labels` reach {high} but `{size_name}` is {size}.{hint}")


def check_below_half(name: str, value: float) -> None:
    """Raise `ObjectiveInputError` unless 0 <= `value` < 1/2: from there on a label says nothing, or the opposite."""
    if not 0 <= value < 0.5:
        raise ObjectiveInputError(f"`{name}` must be in [0, 0.5), got {value}.")
