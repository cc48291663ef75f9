"""What one row of the table of operators holds, and how the usual kinds of rows are made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lossmith.discovery.program.types import Rule, compared, numbers


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What everything in discovery knows about one operation."""

    name: str
    arity: int
    rule: Rule
    """(op, types of the arguments) -> type of the result; raises `ProgramError`."""
    torch: Callable[..., Any]
    """On tensors; plain numbers may stand for some arguments, never for all (`numpy` serves there)."""
    numpy: Callable[..., Any]
    """On arrays of `arrays.py`."""
    vjps: tuple[Callable[..., Any] | None, ...] = ()
    """For each argument (g, result, *arguments) -> its gradient; None, or no entry at all, passes nothing on."""
    python: str
    """Source text with {0} ... for the arguments."""
    latex: str
    level: int = 9
    """Binding strength of the source text: 1 comparison ... 7 power, 9 call."""
    literal: tuple[int, ...] = ()
    """Arguments that must be numbers or hyper-parameters."""
    commutes: bool = False
    tame: bool = True
    """Finite wherever its arguments are (sums, products and squares taken to be): 0 times it is 0."""
    typed: bool = False
    """Whether the torch function must be told the floating type of the inputs."""
    kind: str = "number"
    """`number`, `comparison`, `logic`, `choice`, `cast`, `reduction` or `gate` (detach): what proposers group by."""


def unary(name: str, torch: Any, numpy: Any, vjp: Any, python: str, latex: str, **facts: Any) -> Operator:
    """A function of one number."""
    return Operator(
        name=name,
        arity=1,
        rule=numbers,
        torch=torch,
        numpy=numpy,
        vjps=() if vjp is None else (vjp,),
        python=python,
        latex=latex,
        **facts,
    )


def binary(name: str, torch: Any, numpy: Any, vjps: Any, python: str, latex: str, level: int, **facts: Any) -> Operator:
    """An operator between two."""
    return Operator(
        name=name,
        arity=2,
        rule=facts.pop("rule", numbers),
        torch=torch,
        numpy=numpy,
        vjps=vjps,
        python=python,
        latex=latex,
        level=level,
        **facts,
    )


def comparison(name: str, function: Any, text: str, latex: str) -> Operator:
    """A comparison of two numbers, the same function for torch and numpy."""
    return binary(
        name,
        function,
        function,
        (),
        f"{{0}} {text} {{1}}",
        f"{{0}} {latex} {{1}}",
        1,
        rule=compared,
        kind="comparison",
        commutes=name in ("eq", "ne"),
    )
