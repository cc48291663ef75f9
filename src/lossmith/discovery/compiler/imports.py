"""Imports that a file needs to be Python: dropped where they can change nothing, name by name."""

import ast
from collections.abc import Sequence

from lossmith.discovery.compiler.errors import CompileError, forbidden, shown
from lossmith.discovery.compiler.signatures import RESERVED

MODULES = (
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "math",
    "typing",
    "collections.abc",
    "jaxtyping",
    "lossmith",
    "lossmith.discovery",
)
"""Modules of which anything may be imported: a name that the compiler does not know is refused where it is used."""
_OBJECTIVE = "lossmith.objective"


def check_import(statement: ast.Import | ast.ImportFrom, before: Sequence[ast.stmt]) -> set[str]:
    """Check that an import may be dropped.

    A name that means something in every candidate (`torch`, `F`, `math`, ...) must be that very thing; any other one
    only makes a name that a candidate cannot use.

    Args:
        statement: `import ...` or `from ... import ...`.
        before: The statements above it.

    Returns:
        How the source may call the decorator of an objective now: nothing, or one name.

    Raises:
        CompileError: For another module, and for a known name that would mean something else.
    """
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return _future(statement, before)
    objectives: set[str] = set()
    for alias in statement.names:
        whole = alias.name
        if isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (statement.module or "")
            whole = f"{module}.{alias.name}"
        else:
            module = alias.name
        if module not in MODULES or alias.name == "*":
            raise _refused(statement, f"`{shown(module)}` is not imported")
        # `import torch.nn` gives the name `torch`, to torch itself.
        dotted = isinstance(statement, ast.Import) and alias.asname is None
        meant = whole.split(".")[0] if dotted else whole
        name = alias.asname or (meant if dotted else alias.name)
        if name in RESERVED and meant not in _MEANINGS.get(name, ()):
            raise _refused(statement, f"`{name}` means something else in a candidate than `{shown(meant)}`")
        if name == "lossmith" and meant != "lossmith":
            raise _refused(statement, "`lossmith` is another module")
        if meant == "lossmith":
            objectives.add(f"{name}.objective")
        elif meant == _OBJECTIVE:
            objectives.add(name)
    return objectives


_MEANINGS = {
    "torch": ("torch",),
    "F": ("torch.nn.functional",),
    "math": ("math",),
    **{
        name: (f"lossmith.discovery.{name}",)
        for name in ("mean_batch", "var_batch", "std_batch", "mean_masked", "number")
    },
}
"""Name that a candidate knows -> what it may be imported from."""


def _future(statement: ast.ImportFrom, before: Sequence[ast.stmt]) -> set[str]:
    if any(alias.name != "annotations" for alias in statement.names):
        raise _refused(statement, "Of `__future__` there is `annotations` alone")
    if any(not _early(other) for other in before):
        raise CompileError("syntax", "`from __future__ import ...` stands at the top of the source.", statement.lineno)
    return set()


def _early(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) or (
        isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    )


def _refused(statement: ast.stmt, reason: str) -> CompileError:
    return forbidden(
        statement,
        f"{reason}: nothing is imported but from {', '.join(MODULES)}, and torch, F and math are there anyway.",
    )
