"""Expressions: immutable, hash-consed nodes, so that `is` is structural equality and sharing costs nothing."""

import math
import weakref
from collections.abc import Iterable
from typing import Any, Self, final

from lossmith.discovery.program.operators import OPERATORS, ProgramError

LEAVES = ("const", "input", "hyperparameter")
"""Ops of the nodes without arguments."""


@final
class Node:
    """One operation on other nodes; made by `make`, `const`, `read` and `setting` only.

    `size` counts nodes as a printer without names would write them, so a chain of `x = x + x` has 2^n of them.
    """

    __slots__ = ("__weakref__", "args", "cache", "depth", "op", "size", "tame", "type", "value")

    op: str
    args: tuple["Node", ...]
    value: float | str | None
    type: str
    size: int
    depth: int
    tame: bool
    """Finite at every finite input, so that 0 times it is 0."""
    cache: dict[str, Any]

    def __init__(self) -> None:
        raise ProgramError("Nodes are made by `make`, `const`, `read` and `setting`.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.op, self.args, self.value, self.type)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        inside = [repr(self.value)] if self.value is not None else [f"<{arg.op}>" for arg in self.args]
        return f"Node({self.op}, {', '.join(inside)}: {self.type})"


# Weak values: a node lives as long as somebody holds it, and its key holds its arguments meanwhile.
_NODES: "weakref.WeakValueDictionary[tuple[Any, ...], Node]" = weakref.WeakValueDictionary()


def const(value: float) -> Node:
    """A number. Minus zero becomes zero; an infinite one may only bound `clamp`.

    Raises:
        ProgramError: For NaN.
    """
    number = float(value) + 0.0
    if number != number:
        raise ProgramError("A constant must be a number, got nan.")
    return _leaf("const", number, "scalar")


def read(name: str, type: str = "item") -> Node:
    """An input, a name of the family's vocabulary."""
    return _leaf("input", name, type)


def setting(name: str) -> Node:
    """A hyper-parameter; `Program` has its default."""
    return _leaf("hyperparameter", name, "scalar")


def make(op: str, *args: Node) -> Node:
    """The node of an operator, the same object for the same op and arguments.

    Raises:
        ProgramError: For an unknown operator, a wrong number of arguments, or types that it does not take.

    Example:
        >>> x = read("token_logps")
        >>> make("exp", x) is make("exp", x), make("lt", x, const(0)).type, make("mean_batch", x).type
        (True, 'mask', 'scalar')
    """
    # The dictionary inside: its Python wrapper costs as much as the rest of this function.
    reference = _NODES.data.get((op, args))  # pyright: ignore[reportAttributeAccessIssue]
    known = None if reference is None else reference()
    if known is not None:
        return known
    operator = OPERATORS.get(op)
    if operator is None:
        raise ProgramError(f"No operator named '{op}'.")
    if len(args) != operator.arity:
        raise ProgramError(f"`{op}` takes {operator.arity} arguments, got {len(args)}.")
    for place, arg in enumerate(args):
        literal = place in operator.literal
        if literal and arg.op not in ("const", "hyperparameter"):
            raise ProgramError(f"Argument {place + 1} of `{op}` must be a number or a hyper-parameter.")
        if arg.op == "const" and not (literal and op == "clamp") and math.isinf(float(arg.value or 0)):
            raise ProgramError(f"`{op}` of an infinite constant.")
    tame = (operator.tame or _mild_power(op, args)) and all(arg.tame for arg in args)
    return _new((op, args), op, args, None, operator.rule(op, tuple([arg.type for arg in args])), tame)


def _mild_power(op: str, args: tuple[Node, ...]) -> bool:
    exponent = args[1].value if op == "pow" else None
    return isinstance(exponent, float) and exponent > 0 and exponent.is_integer()


def _leaf(op: str, value: float | str, type: str) -> Node:
    key = (op, value, type)
    known = _NODES.get(key)
    return _new(key, op, (), value, type, True) if known is None else known


def _new(
    key: tuple[Any, ...], op: str, args: tuple[Node, ...], value: float | str | None, type: str, tame: bool
) -> Node:
    node = object.__new__(Node)
    node.op, node.args, node.value, node.type, node.tame = op, args, value, type, tame
    node.size = 1 + sum([arg.size for arg in args])
    node.depth = 1 + max([arg.depth for arg in args], default=0)
    node.cache = {}
    _NODES[key] = node
    return node


def _again(op: str, args: tuple[Node, ...], value: float | str | None, type: str) -> Node:
    return _leaf(op, value, type) if value is not None else make(op, *args)


def order(*roots: Node) -> list[Node]:
    """Every node below the roots once, arguments before those that use them; no recursion, so any depth will do."""
    done: set[Node] = set()
    result: list[Node] = []
    stack = list(reversed(roots))
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        waiting = [arg for arg in reversed(node.args) if arg not in done]
        if waiting:
            stack += waiting
        else:
            done.add(node)
            result.append(node)
            stack.pop()
    return result


def replace(root: Node, changes: dict[Node, Node]) -> Node:
    """The expression with each key of `changes` replaced by its value.

    Raises:
        ProgramError: If a replacement has a type that its place does not take.
    """
    new: dict[Node, Node] = {}
    for node in order(root):
        if node in changes:
            new[node] = changes[node]
        elif any(new[arg] is not arg for arg in node.args):
            new[node] = make(node.op, *[new[arg] for arg in node.args])
        else:
            new[node] = node
    return new[root]


def names_of(nodes: Iterable[Node], op: str) -> list[str]:
    """Names of the inputs or hyper-parameters among nodes, in their order."""
    return [str(node.value) for node in nodes if node.op == op]
