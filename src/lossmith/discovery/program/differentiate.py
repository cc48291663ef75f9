"""Value and gradient of a program on numpy arrays: a lean reverse mode over the DAG, many batches at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lossmith.discovery.program.arrays import Array, total
from lossmith.discovery.program.nodes import Node, order
from lossmith.discovery.program.operators import OPERATORS

_FUNCTIONS = {name: operator.numpy for name, operator in OPERATORS.items()}
_VJPS = {name: operator.vjps for name, operator in OPERATORS.items() if operator.vjps}


def evaluate(root: Node, inputs: Mapping[str, Array]) -> Array:
    """The value of an expression without hyper-parameters on arrays [batches, items, candidates]."""
    with np.errstate(all="ignore"):
        return _forward(order(root), inputs)[root]


def value_and_gradients(
    root: Node, inputs: Mapping[str, Array], wanted: tuple[str, ...]
) -> tuple[Array, dict[str, Array]]:
    """The value, and the gradient of its sum over all items with respect to each wanted input that it depends on.

    What is detached or compared passes nothing on, as in torch; an input that is not among the gradients has no path.

    Args:
        root: Expression without hyper-parameters.
        inputs: Name -> array [batches, items, candidates], axes of length 1 where there are none.
        wanted: Inputs to differentiate.
    """
    nodes = order(root)
    with np.errstate(all="ignore"):
        values = _forward(nodes, inputs)
        moving = {node for node in nodes if node.op == "input" and node.value in wanted}
        through: list[Node] = []
        for node in nodes:
            if node.op in _VJPS:
                for arg in node.args:
                    if arg in moving:
                        moving.add(node)
                        through.append(node)
                        break
        if root not in moving:
            return values[root], {}
        gradients: dict[Node, Any] = {root: np.ones(np.shape(values[root]))}
        for node in reversed(through):
            upstream = gradients.get(node)
            if upstream is not None:
                _pass_on(node, upstream, values, moving, gradients)
        found = {str(node.value): gradients[node] for node in nodes if node.op == "input" and node in gradients}
    return values[root], found


def _pass_on(
    node: Node, upstream: Array, values: dict[Node, Array], moving: set[Node], gradients: dict[Node, Array]
) -> None:
    """Add what a node passes on to the gradients of its arguments, of those alone that lead to a wanted input."""
    args, value = node.args, values[node]
    given = [values[arg] for arg in args]
    for arg, vjp in zip(args, _VJPS[node.op], strict=True):
        if arg not in moving or vjp is None:
            continue
        part = vjp(upstream, value, *given)
        if arg.type != node.type:
            part = _narrowed(part, np.shape(values[arg]))
        known = gradients.get(arg)
        gradients[arg] = part if known is None else known + part


def _forward(nodes: list[Node], inputs: Mapping[str, Array]) -> dict[Node, Array]:
    values: dict[Node, Array] = {}
    for node in nodes:
        if node.args:
            values[node] = _FUNCTIONS[node.op](*[values[arg] for arg in node.args])
        elif node.op == "const":
            # A numpy float divides by zero as an array does.
            values[node] = np.float64(node.value)
        else:
            values[node] = inputs[str(node.value)]
    return values


def _narrowed(part: Array, shape: tuple[int, ...]) -> Array:
    """A gradient summed over the axes along which its argument was repeated."""
    for axis, size in enumerate(shape):
        if size == 1 and part.shape[axis] != 1:
            part = total(part, axis)
    return part
