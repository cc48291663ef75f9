"""How large a candidate may be; the same numbers for every proposer, so that nobody's are cheaper."""

from lossmith.discovery.program.nodes import Node
from lossmith.discovery.program.types import ProgramError

MAX_BYTES = 8192
"""Source text."""
MAX_AST_NODES = 500
MAX_DEPTH = 60
"""Nesting of the source; a chain of assignments may build a deeper expression."""
MAX_NODES = 4000
"""Nodes of the expression *expanded*, as a printer without names would write it: 60 lines of x = x + x have 2^60."""
MAX_EXPRESSION_DEPTH = 400
"""Operations one behind the other."""


def check_size(root: Node) -> None:
    """Refuse an expression beyond the limits; reads two numbers that every node carries.

    Raises:
        ProgramError: With what is too large.
    """
    if root.size > MAX_NODES:
        told = f"{root.size:,}" if root.size < 10**12 else f"about 2^{root.size.bit_length() - 1}"
        raise ProgramError(f"The expression has {told} nodes written out, more than {MAX_NODES:,}.")
    if root.depth > MAX_EXPRESSION_DEPTH:
        raise ProgramError(f"The expression is {root.depth} operations deep, more than {MAX_EXPRESSION_DEPTH}.")
