"""Steps of annotated programs: an operation and its operands, `divide(#0,const_2)`."""

import re
from dataclasses import dataclass

MAX_LENGTH = 400
"""Characters of a step; a longer one is not parsed."""
COMMUTATIVE = frozenset({"add", "multiply", "gcd", "lcm", "max", "min"})
"""Operations whose operands may change places."""

_CALL = re.compile(r"([a-z][a-z_]*)\(([^()]*)\)")
_OPERAND = re.compile(r"#?[-+.\w]+")


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a program."""

    operation: str
    """Its name in lower case."""
    operands: tuple[str, ...]
    """Numbers of the question (`n0`), constants (`const_2`) and results of earlier steps (`#0`), as written."""

    def canonical(self) -> tuple:
        """Equal for calls that differ only in the order of the operands of a commutative operation."""
        inside = sorted(self.operands) if self.operation in COMMUTATIVE else self.operands
        return ("call", self.operation, *inside)

    def skeleton(self) -> str:
        """The operation and how many operands it takes."""
        return f"{self.operation}/{len(self.operands)}"


def parse_call(text: str) -> Call | None:
    """Read one step of a program; None where it is none.

    Example:
        >>> parse_call(" divide( #0, const_2 )")
        Call(operation='divide', operands=('#0', 'const_2'))
        >>> parse_call("48/2=24") is None
        True
    """
    if len(text) > MAX_LENGTH:
        return None
    found = _CALL.fullmatch(re.sub(r"\s+", "", text).lower())
    if found is None:
        return None
    operands = tuple(found[2].split(","))
    if not all(_OPERAND.fullmatch(operand) for operand in operands):
        return None
    return Call(found[1], operands)
