"""Types of expressions, and the rules by which operators give types."""

from collections.abc import Callable

from lossmith.errors import LossmithError


class ProgramError(LossmithError, ValueError):
    """An expression that the typed grammar does not have."""


FLOATS = ("scalar", "item", "table")
"""Types of numbers: one for the batch, one per item, one per anchor and candidate; each broadcasts to the next."""
MASKS = ("flag", "mask", "table_mask")
"""Types of the booleans that belong to them."""
WORDS = {
    "scalar": "one number for the batch",
    "item": "a number per item",
    "table": "a number per anchor and candidate",
    "flag": "one boolean for the batch",
    "mask": "a boolean per item",
    "table_mask": "a boolean per anchor and candidate",
}
Rule = Callable[[str, tuple[str, ...]], str]


def _fail(op: str, types: tuple[str, ...], wanted: str) -> ProgramError:
    return ProgramError(f"`{op}` takes {wanted}, got {', '.join(WORDS[type] for type in types)}.")


def _widest(op: str, types: tuple[str, ...], kinds: tuple[str, ...], wanted: str) -> str:
    try:
        return kinds[max(kinds.index(type) for type in types)]
    except ValueError:
        raise _fail(op, types, wanted) from None


def numbers(op: str, types: tuple[str, ...]) -> str:
    """The widest of some numbers."""
    return _widest(op, types, FLOATS, "numbers (cast a boolean by `.float()`)")


def compared(op: str, types: tuple[str, ...]) -> str:
    """The boolean of the widest of some numbers."""
    return MASKS[FLOATS.index(numbers(op, types))]


def booleans(op: str, types: tuple[str, ...]) -> str:
    """The widest of some booleans."""
    return _widest(op, types, MASKS, "booleans")


def chosen(op: str, types: tuple[str, ...]) -> str:
    """The widest of two numbers and what chooses between them."""
    if types[0] not in MASKS:
        raise _fail(op, types, "a boolean and two numbers")
    return numbers(op, (FLOATS[MASKS.index(types[0])], *types[1:]))


def cast(op: str, types: tuple[str, ...]) -> str:
    """The number of a boolean."""
    return FLOATS[MASKS.index(booleans(op, types))]


def over_batch(op: str, types: tuple[str, ...]) -> str:
    """One number for the batch."""
    if types != ("item",):
        raise _fail(op, types, "a number per item")
    return "scalar"


def over_mask(op: str, types: tuple[str, ...]) -> str:
    """One number less wide than what the mask is laid over."""
    if types not in (("item", "mask"), ("table", "table_mask")):
        raise _fail(op, types, "numbers and booleans of the same kind")
    return "scalar" if types[0] == "item" else "item"
