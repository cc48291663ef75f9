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

    __slots__ = ("__weakref__", "args", "cache", "depth", "op", "size", "type", "value")

    op: str
    args: tuple["Node", ...]
    value: float | str | None
    type: str
    size: int
    depth: int
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
    return _node("const", (), number, "scalar")


def read(name: str, type: str = "item") -> Node:
    """An input, a name of the family's vocabulary."""
    return _node("input", (), name, type)


def setting(name: str) -> Node:
    """A hyper-parameter; `Program` has its default."""
    return _node("hyperparameter", (), name, "scalar")


def make(op: str, *args: Node) -> Node:
    """The node of an operator, the same object for the same op and arguments.

    Raises:
        ProgramError: For an unknown operator, a wrong number of arguments, or types that it does not take.

    Example:
        >>> x = read("token_logps")
        >>> make("exp", x) is make("exp", x), make("lt", x, const(0)).type, make("mean_batch", x).type
        (True, 'mask', 'scalar')
    """
    key = (op, args)
    known = _NODES.get(key)
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
    return _node(op, args, None, operator.rule(op, tuple(arg.type for arg in args)))


def _node(op: str, args: tuple[Node, ...], value: float | str | None, type: str) -> Node:
    key = (op, args) if value is None else (op, value, type)
    known = _NODES.get(key)
    if known is not None:
        return known
    node = object.__new__(Node)
    node.op, node.args, node.value, node.type = op, args, value, type
    node.size = 1 + sum([arg.size for arg in args])
    node.depth = 1 + max([arg.depth for arg in args], default=0)
    node.cache = {}
    _NODES[key] = node
    return node


def _again(op: str, args: tuple[Node, ...], value: float | str | None, type: str) -> Node:
    return _node(op, args, value, type) if value is not None else make(op, *args)


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
