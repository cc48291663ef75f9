"""Expressions: immutable, hash-consed nodes, so that `is` is structural equality and sharing costs nothing."""

import math
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, Self, final

from lossmith.discovery.program.operators import OPERATORS, result_type
from lossmith.discovery.program.types import ProgramError

_INFINITE = (math.inf, -math.inf)
LEAVES = ("const", "input", "hyperparameter")
"""Ops of the nodes without arguments."""


@final
class Node:
    """One operation on other nodes; made by `make`, `const`, `read` and `setting` only.

    `size` counts nodes as a printer without names would write them, so a chain of `x = x + x` has 2^n of them.
    """

    __slots__ = ("__weakref__", "args", "canonical", "depth", "digest", "held", "op", "size", "tame", "type", "value")

    op: str
    args: tuple["Node", ...]
    value: float | str | None
    type: str
    size: int
    depth: int
    tame: bool
    """Finite at every finite input, so that 0 times it is 0."""
    held: bool
    """Whether something in it is held constant: it may stand still at a kink, at every input."""
    canonical: Any
    """What `canonical` keeps of its normal form once it was asked for."""
    digest: bytes | None
    """Its digest once it was asked for."""

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


class _Entry(weakref.ref[Node]):
    """A reference to a node that knows under which key it stands in the table."""

    __slots__ = ("key",)
    key: tuple[Any, ...]


# A node lives as long as somebody holds it, and its key holds its arguments meanwhile. A WeakValueDictionary does the
# same; its wrappers in Python cost as much as all the rest of `make`.
_NODES: dict[tuple[Any, ...], _Entry] = {}
# Candidates come in streams and share most of their parts, so the last ones are held a while.
_LATEST: deque[Node] = deque(maxlen=10_000)


def _forget(entry: _Entry, table: dict[tuple[Any, ...], _Entry] = _NODES) -> None:
    # The table is bound here: nodes die at the interpreter's end too, when the names of modules may be gone.
    if table.get(entry.key) is entry:
        del table[entry.key]


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
    key = (op, args)
    entry = _NODES.get(key)
    known = None if entry is None else entry()
    if known is not None:
        return known
    operator = OPERATORS.get(op)
    if operator is None:
        raise ProgramError(f"No operator named '{op}'.")
    if len(args) != operator.arity:
        raise ProgramError(f"`{op}` takes {operator.arity} arguments, got {len(args)}.")
    if operator.literal:
        _check_literals(op, operator.literal, args)
    size, depth, tame, held = 1, 0, operator.tame or _mild_power(op, args), op == "detach"
    for arg in args:
        size += arg.size
        if arg.depth > depth:
            depth = arg.depth
        if not arg.tame:
            tame = False
        if arg.held:
            held = True
        if arg.value in _INFINITE and not operator.literal:
            raise ProgramError(f"`{op}` of an infinite constant.")
    type = result_type(op, *[arg.type for arg in args])
    return _new(key, op, args, None, type, tame, held, size, depth + 1)


def _check_literals(op: str, places: tuple[int, ...], args: tuple[Node, ...]) -> None:
    for place, arg in enumerate(args):
        if arg.value in _INFINITE and not (op == "clamp" and place in places):
            raise ProgramError(f"`{op}` of an infinite constant.")
        if place in places and arg.op not in ("const", "hyperparameter"):
            raise ProgramError(f"Argument {place + 1} of `{op}` must be a number or a hyper-parameter.")
    if op == "clamp" and not _bounds(args[1].value, args[2].value):
        raise ProgramError("`clamp` needs a bound: a number or a hyper-parameter below, above or on both sides.")


def _bounds(low: object, high: object) -> bool:
    """Whether two bounds of `clamp` hold anything back, and leave anything."""
    return low != math.inf and high != -math.inf and (low, high) != (-math.inf, math.inf)


def _mild_power(op: str, args: tuple[Node, ...]) -> bool:
    exponent = args[1].value if op == "pow" else None
    return isinstance(exponent, float) and exponent > 0 and exponent.is_integer()


def _leaf(op: str, value: float | str, type: str) -> Node:
    key = (op, value, type)
    entry = _NODES.get(key)
    known = None if entry is None else entry()
    return _new(key, op, (), value, type, True, False, 1, 1) if known is None else known


def _new(
    key: tuple[Any, ...],
    op: str,
    args: tuple[Node, ...],
    value: float | str | None,
    type: str,
    tame: bool,
    held: bool,
    size: int,
    depth: int,
) -> Node:
    node = object.__new__(Node)
    node.op, node.args, node.value, node.type = op, args, value, type
    node.tame, node.size, node.depth = tame, size, depth
    node.held = held
    node.canonical = node.digest = None
    entry = _Entry(node, _forget)
    entry.key = key
    _NODES[key] = entry
    _LATEST.append(node)
    return node


def _again(op: str, args: tuple[Node, ...], value: float | str | None, type: str) -> Node:
    return _leaf(op, value, type) if value is not None else make(op, *args)


def order(*roots: Node) -> list[Node]:
    """Every node below the roots once, arguments before those that use them; no recursion, so any depth will do."""
    # A dictionary keeps the order in which nodes were done.
    done: dict[Node, None] = {}
    for root in roots:
        if root not in done:
            _below(root, done)
    return list(done)


def _below(root: Node, done: dict[Node, None]) -> None:
    stack = [root]
    while stack:
        node = stack[-1]
        for arg in node.args:
            if arg not in done:
                if arg.args:
                    stack.append(arg)
                    break
                done[arg] = None
        else:
            done[node] = None
            stack.pop()


def replace(root: Node, changes: dict[Node, Node]) -> Node:
    """The expression with each key of `changes` replaced by its value.

    Raises:
        ProgramError: If a replacement has a type that its place does not take.
    """
    new = dict(changes)
    for node in order(root):
        for arg in node.args:
            if arg in new and node not in new:
                new[node] = make(node.op, *[new.get(arg, arg) for arg in node.args])
                break
    return new.get(root, root)


def names_of(nodes: Iterable[Node], op: str) -> list[str]:
    """Names of the inputs or hyper-parameters among nodes, in their order."""
    return [str(node.value) for node in nodes if node.op == op]
