"""Why a source is no candidate."""

import ast

from lossmith.errors import LossmithError

CATEGORIES = ("syntax", "too-large", "non-ascii", "signature", "forbidden", "bad-type")
"""Categories of the compiler; those of the checks are in `checks`."""


class CompileError(LossmithError, ValueError):
    """A source that the compiler refuses; `category`, `reason` and `line` are for machines, the text for people."""

    def __init__(self, category: str, reason: str, line: int | None = None):
        assert category in CATEGORIES
        self.category, self.reason, self.line = category, reason, line
        super().__init__(reason if line is None else f"Line {line}: {reason}")

    def __reduce__(self):
        return type(self), (self.category, self.reason, self.line)


def forbidden(node: ast.AST, reason: str) -> CompileError:
    """The refusal of something that a candidate may not contain."""
    return CompileError("forbidden", reason, line_of(node))


def line_of(node: ast.AST) -> int | None:
    """The line of a piece of syntax, where it has one."""
    return getattr(node, "lineno", None)


MAX_SHOWN = 40
"""Letters of a name that a reason repeats."""


def shown(name: str) -> str:
    """A name of the source as a reason may repeat it."""
    return name if len(name) <= MAX_SHOWN else f"{name[: MAX_SHOWN - 3]}..."


def line_at(source: str, place: int) -> int:
    """The line in which a character stands."""
    return source.count("\n", 0, place) + 1
