"""Names and what they stand for while one candidate is compiled."""

import ast
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lossmith.discovery.compiler.errors import CompileError, forbidden, line_of, shown
from lossmith.discovery.compiler.functions import Callee, is_number
from lossmith.discovery.compiler.signatures import RESERVED, Signature
from lossmith.discovery.program import MAX_AST_NODES, MAX_DEPTH, OPERATORS, Node, ProgramError, setting


class Scope:
    """Names and their expressions while one function is compiled; counts what it sees."""

    def __init__(
        self, signature: Signature, helpers: Mapping[str, Callee] = MappingProxyType({}), *, in_place: bool = True
    ):
        self.names = dict(signature.names)
        self.hyperparameters = dict(signature.hyperparameters)
        self.names |= {name: setting(name) for name in self.hyperparameters}
        self.declared = frozenset(signature.hyperparameters)
        self.tables = any(node.type in ("table", "table_mask") for node in self.names.values())
        """Whether an input has an axis of candidates: nothing else brings one in."""
        self.self_beta = signature.self_beta
        self.helpers = dict(helpers)
        self.seen = 0
        self.numbers: dict[Node, Any] = {}
        """Expression of numbers alone -> its value."""
        self.number_tensors = False
        """Whether a plain number was made a tensor somewhere, so that `+=` may change it in place too."""
        self.in_place = in_place
        """Whether the source has `+=` or its like at all: without it nothing is followed."""
        self.tensors: dict[str, object] = {}
        """Local name -> whose tensor it is; a name that is missing has its own."""
        self.changed: dict[str, str] = {}
        """Name -> the name under which its tensor was changed in place."""

    def count(self, node: ast.AST, depth: int) -> None:
        """One more node of syntax.

        Raises:
            CompileError: Beyond 500 nodes or a depth of 60.
        """
        self.seen += 1
        if self.seen <= MAX_AST_NODES and depth <= MAX_DEPTH:
            return
        if self.seen > MAX_AST_NODES:
            raise CompileError("too-large", f"The source has more than {MAX_AST_NODES} nodes of syntax.", line_of(node))
        raise CompileError(
            "too-large",
            f"An expression is nested more than {MAX_DEPTH} deep, as a long sum is too: split it into two assignments.",
            line_of(node),
        )

    def check_number(self, node: Node) -> None:
        """Follow what is made of numbers alone.

        Raises:
            ProgramError: Where Python would raise or has no finite number, as in `1 / 0`.
        """
        for arg in node.args:
            if arg.op != "const" and arg not in self.numbers:
                return
        values = [np.float64(arg.value) if arg.op == "const" else self.numbers[arg] for arg in node.args]
        with np.errstate(all="ignore"):
            found = OPERATORS[node.op].numpy(*values)
        if not np.isfinite(found):
            raise ProgramError("What is computed here of numbers alone is not finite.")
        self.numbers[node] = found

    def read(self, name: ast.Name) -> Node | None:
        """What a name stands for, None where it stands for nothing.

        Raises:
            CompileError: If the tensor has been changed in place under another name.
        """
        other = self.changed.get(name.id)
        if other is not None:
            raise forbidden(
                name,
                f"`{shown(name.id)}` and `{shown(other)}` are one tensor, which `+=` and its like change under both "
                f"names: write `{shown(other)} = {shown(other)} + ...`.",
            )
        return self.names.get(name.id)

    def check_target(self, target: ast.expr) -> str:
        """The name that an assignment gives.

        Raises:
            CompileError: For anything but a plain local name.
        """
        if not isinstance(target, ast.Name):
            if isinstance(target, ast.Tuple | ast.List):
                raise forbidden(target, "Assign one name at a time, as in `x = ...`, each on a line of its own.")
            raise forbidden(target, "Only names are assigned, as in `x = ...`.")
        if target.id in RESERVED or target.id.startswith("__"):
            raise forbidden(target, f"`{shown(target.id)}` cannot be assigned.")
        return target.id

    def bind(self, name: str, value: Node, source: ast.expr) -> None:
        """Give a local name to an expression, which hides a parameter of that name as in Python."""
        if self.in_place:
            owner = _same_tensor(source)
            self.tensors[name] = object() if owner is None else self.tensors.get(owner, owner)
            self.changed.pop(name, None)
        self.names[name] = value

    def rebind(self, target: ast.expr, value: Node) -> None:
        """Give the result of `+=` and its like to the same name.

        A plain number is a new one; a tensor is changed in place, so that other names of the same one may no longer be
        read: their expressions are those from before.

        Raises:
            CompileError: If the result does not fit in the tensor.
        """
        name = self.check_target(target)
        old = self.names[name]
        if self.number_tensors or not is_number(old):
            if old.type != value.type:
                raise CompileError(
                    "bad-type",
                    f"The result does not fit in `{shown(name)}`, which it would change in place: write "
                    f"`{shown(name)} = {shown(name)} + ...`.",
                    line_of(target),
                )
            mine = self.tensors.get(name, name)
            for other in self.names:
                if other != name and self.tensors.get(other, other) == mine:
                    self.changed[other] = name
        self.names[name] = value


UPWARDS = "_up"
"""The helper of an exported file: half precision as float32, which programs do by themselves."""
_SAME = ("detach", "float", "double")
"""Methods whose result may share its numbers with what they are called on."""


def _same_tensor(source: ast.expr) -> str | None:
    """The name whose tensor an expression is, where it is no new one."""
    while not isinstance(source, ast.Name):
        if isinstance(source, ast.UnaryOp) and isinstance(source.op, ast.UAdd):
            source = source.operand
        elif isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == UPWARDS:
            source = source.args[0]
        elif (
            isinstance(source, ast.Call)
            and not source.args
            and isinstance(source.func, ast.Attribute)
            and source.func.attr in _SAME
        ):
            source = source.func.value
        else:
            return None
    return source.id
