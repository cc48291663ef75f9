"""`lossmith.debug()`: checks that read tensor values, which make a GPU wait and are therefore off by default."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError


@dataclass
class _Session:
    """What one `debug()` block has seen: loss -> its number of classes and the classes that came."""

    classes: dict[int, tuple[str, int, set[int]]] = field(default_factory=dict)


_SESSION: ContextVar[_Session | None] = ContextVar("lossmith_debug", default=None)


@contextmanager
def debug() -> Iterator[None]:
    """Check values, on every device, for all losses that are called inside the `with` block.

    On top of the checks of shapes, types and (on the CPU) label ranges that always run: every input that counts must be
    finite (a logit may be -inf, a masked class), labels must be in range on every device, and every class of a loss
    with proxies must have come at least once when the block ends. Reading values makes a GPU wait.

    Raises:
        ObjectiveInputError: Naming the input and the first place that is wrong, or the classes that never came.

    Example:
        >>> import lossmith
        >>> with lossmith.debug():
        ...     lossmith.loss("focal")(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
        Traceback (most recent call last):
            ...
        lossmith.errors.ObjectiveInputError: `logits` must be finite where they count, got nan at [0].
    """
    session = _Session()
    token = _SESSION.set(session)
    try:
        yield
    finally:
        _SESSION.reset(token)
    # Not in `finally`: an error of the block itself is the one to show.
    for name, size, seen in session.classes.values():
        missing = sorted(set(range(size)) - seen)
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise ObjectiveInputError(
                f"`num_classes` of '{name}' is {size}, but no label was {shown} ({len(missing)} unused). Are the "
                f"labels those of this task?"
            )


def debugging() -> bool:
    """Whether a `debug()` block is open."""
    return _SESSION.get() is not None


def note_classes(key: int, name: str, size: int, labels: Tensor) -> None:
    """Remember which of `size` classes the loss `name` has seen; nothing outside of `debug()`."""
    session = _SESSION.get()
    if session is not None:
        session.classes.setdefault(key, (name, size, set()))[2].update(labels.unique().tolist())


def check_finite_rows(name: str, rows: Tensor, valid: Tensor, *, masked: bool = False) -> None:
    """Under `debug()`, raise `ObjectiveInputError` for a value that is not finite; -inf passes where `masked`.

    Args:
        name: Name of the input.
        rows: Its rows that count.
        valid: Which rows of the input those are; the message names a place in the input.
        masked: Whether -inf has a meaning (a class that is not possible).
    """
    if not debugging() or not rows.is_floating_point():
        return
    wrong = ~torch.isfinite(rows)
    if masked:
        wrong &= rows != -torch.inf
    if bool(wrong.any()):
        place = wrong.nonzero()[0]
        _refuse(name, rows[tuple(place)].item(), valid.nonzero()[place[0]])


def check_finite_weights(weights: Tensor | None, valid: Tensor) -> None:
    """Under `debug()`, raise `ObjectiveInputError` for a weight that is not finite and counts."""
    if debugging() and weights is not None and weights.shape == valid.shape:
        check_finite_rows("weights", weights[valid], valid)


def check_possible_labels(label_scores: Callable[[], Tensor], labels: Tensor, valid: Tensor) -> None:
    """Under `debug()`, raise `ObjectiveInputError` where the label's own logit is -inf: its loss is infinite."""
    if debugging() and len(labels):
        own = label_scores()
        if bool((own == -torch.inf).any()):
            place = (own == -torch.inf).nonzero()[0, 0]
            _refuse("logits", -torch.inf, valid.nonzero()[place], more=f" for the label {labels[place].item()}")


def _refuse(name: str, value: float, place: Tensor, more: str = "") -> None:
    where = ", ".join(map(str, place.tolist()))
    raise ObjectiveInputError(f"`{name}` must be finite where they count, got {value} at [{where}]{more}.")
