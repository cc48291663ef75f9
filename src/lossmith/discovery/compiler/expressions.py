"""Expressions of the Python subset to nodes, one function per kind of syntax."""

import ast
from collections.abc import Callable
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.discovery.compiler.errors import CompileError, forbidden
from lossmith.discovery.compiler.functions import CONSTANTS, FUNCTIONS, INSTEAD, METHODS, Callee
from lossmith.discovery.compiler.signatures import DISCOPOP_BETA, RESERVED, Signature, finite
from lossmith.discovery.program import (
    MAX_AST_NODES,
    MAX_DEPTH,
    Node,
    ProgramError,
    check_size,
    const,
    make,
    order,
    setting,
)

BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.BitAnd: "and", ast.BitOr: "or"}
COMPARISONS = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}
MODULES = ("torch", "F", "math")


class Scope:
    """Names and their expressions while one function is compiled; counts what it sees."""

    def __init__(self, signature: Signature):
        self.names = dict(signature.names)
        self.hyperparameters = dict(signature.hyperparameters)
        self.names |= {name: setting(name) for name in self.hyperparameters}
        self.self_beta = signature.self_beta
        self.seen = 0

    def count(self, node: ast.AST, depth: int) -> None:
        """One more node of syntax.

        Raises:
            CompileError: Beyond 500 nodes or a depth of 60.
        """
        self.seen += 1
        if self.seen <= MAX_AST_NODES and depth <= MAX_DEPTH:
            return
        if self.seen > MAX_AST_NODES:
            raise CompileError("too-large", f"The source has more than {MAX_AST_NODES} nodes of syntax.")
        raise CompileError("too-large", f"An expression is nested more than {MAX_DEPTH} deep.", _line(node))

    def bind(self, target: ast.expr, value: Node) -> None:
        """Give a local name to an expression.

        Raises:
            CompileError: For anything but a plain local name.
        """
        if not isinstance(target, ast.Name):
            what = (
                "Assign one name at a time" if isinstance(target, ast.Tuple | ast.List) else "Only names are assigned"
            )
            raise forbidden(target, f"{what}, as in `x = ...`.")
        if target.id in RESERVED or target.id in self.hyperparameters or target.id.startswith("__"):
            raise forbidden(target, f"`{target.id}` cannot be assigned.")
        self.names[target.id] = value


def compile_expression(node: ast.expr, scope: Scope, depth: int = 1) -> Node:
    """The node of one expression.

    Raises:
        CompileError: For anything that the subset does not have, with its line and what to write instead.
    """
    scope.count(node, depth)
    handler = _HANDLERS.get(type(node))
    if handler is None:
        raise forbidden(node, _ADVICE.get(type(node), f"`{type(node).__name__}` is not allowed in a candidate."))
    try:
        made = handler(node, scope, depth)
        if made.args:
            check_size(made)
    except ProgramError as error:
        large = "more than" in str(error)
        raise CompileError("too-large" if large else "bad-type", str(error), _line(node)) from None
    return made


def _line(node: ast.AST) -> int | None:
    return getattr(node, "lineno", None)


def _constant(node: ast.Constant, scope: Scope, depth: int) -> Node:
    if type(node.value) not in (int, float):
        what = "Texts are" if isinstance(node.value, str | bytes) else f"`{str(node.value)[:20]}` is"
        raise forbidden(node, f"{what} not allowed in a candidate, only numbers.")
    return const(finite(node))


def _name(node: ast.Name, scope: Scope, depth: int) -> Node:
    found = scope.names.get(node.id)
    if found is not None:
        return found
    if node.id in MODULES:
        raise forbidden(node, f"`{node.id}` alone is no value.")
    raise forbidden(node, f"`{node.id}` is not defined.{did_you_mean(node.id, scope.names)}")


def _binary(node: ast.BinOp, scope: Scope, depth: int) -> Node:
    if type(node.op) is ast.Pow:
        left = compile_expression(node.left, scope, depth + 1)
        return METHODS["pow"].build(left, compile_expression(node.right, scope, depth + 1))
    op = BINARY.get(type(node.op))
    if op is None:
        raise forbidden(
            node, f"The operator `{type(node.op).__name__}` is not allowed: + - * / ** and & | of booleans."
        )
    left = compile_expression(node.left, scope, depth + 1)
    return make(op, left, compile_expression(node.right, scope, depth + 1))


def _unary(node: ast.UnaryOp, scope: Scope, depth: int) -> Node:
    if isinstance(node.op, ast.Not):
        raise forbidden(node, "`not` of a tensor is not defined: use `~`.")
    value = compile_expression(node.operand, scope, depth + 1)
    if isinstance(node.op, ast.UAdd):
        return value
    if isinstance(node.op, ast.Invert):
        return make("not", value)
    return const(-float(value.value or 0)) if value.op == "const" else make("neg", value)


def _compare(node: ast.Compare, scope: Scope, depth: int) -> Node:
    if len(node.ops) > 1:
        raise forbidden(node, "Comparisons of tensors do not chain: write `(a < b) & (b < c)`.")
    op = COMPARISONS.get(type(node.ops[0]))
    if op is None:
        raise forbidden(node, f"The comparison `{type(node.ops[0]).__name__}` is not allowed: < <= > >= == !=.")
    left = compile_expression(node.left, scope, depth + 1)
    return make(op, left, compile_expression(node.comparators[0], scope, depth + 1))


def _attribute(node: ast.Attribute, scope: Scope, depth: int) -> Node:
    if isinstance(node.value, ast.Name):
        owner = node.value.id
        if owner == "self" and scope.self_beta:
            if node.attr != "beta":
                raise forbidden(node, f"`self` has `beta` alone, not `{node.attr}`: write a number.")
            scope.hyperparameters.setdefault("beta", DISCOPOP_BETA)
            return setting("beta")
        if (owner, node.attr) in CONSTANTS:
            return const(CONSTANTS[owner, node.attr])
        if owner in MODULES:
            raise forbidden(node, _unknown(owner, node.attr))
    raise forbidden(node, f"The attribute `{node.attr}` is not allowed: only methods of the allow-list are called.")


def _call(node: ast.Call, scope: Scope, depth: int) -> Node:
    callee, module, first = _resolve(node, scope, depth)
    given = _arguments(node, callee, first)
    built: list[Any] = []
    for argument in given:
        if isinstance(argument, ast.expr):
            argument = _flag_or_value(argument, scope, depth + 1)
        built.append(argument)
    if module == "math":
        return _of_numbers(node, callee, built)
    return callee.build(*built)


def _flag_or_value(argument: ast.expr, scope: Scope, depth: int) -> Node:
    # `unbiased=True` is the one place where a boolean literal means something.
    if isinstance(argument, ast.Constant) and isinstance(argument.value, bool):
        raise forbidden(argument, "`True` and `False` are not allowed in a candidate.")
    return compile_expression(argument, scope, depth)


def _of_numbers(node: ast.Call, callee: Callee, built: list[Any]) -> Node:
    """A function of `math`: on numbers and hyper-parameters only, and a number where there are numbers only."""
    if any(part.op == "input" for argument in built for part in order(argument)):
        raise forbidden(node, "`math` is for numbers: use the function of the same name of `torch`.")
    made = callee.build(*built)
    if all(argument.op == "const" for argument in built):
        from lossmith.discovery.program.canonical import canonical_form

        folded = canonical_form(made)
        return folded if folded.op == "const" else made
    return made


def _resolve(node: ast.Call, scope: Scope, depth: int) -> tuple[Callee, str, Node | None]:
    """What is called, of which module, and the value that a method is called on."""
    function = node.func
    if isinstance(function, ast.Name):
        callee = FUNCTIONS[""].get(function.id)
        if callee is None:
            raise forbidden(node, f"`{function.id}(...)` is not allowed: functions come from torch, F and math.")
        return callee, "", None
    if not isinstance(function, ast.Attribute):
        raise forbidden(node, "Only functions of torch, F and math and methods of tensors are called.")
    module = _module(function.value, scope)
    if module is not None:
        callee = FUNCTIONS[module].get(function.attr)
        if callee is None:
            raise forbidden(node, _unknown(module, function.attr))
        return callee, module, None
    callee = METHODS.get(function.attr)
    if callee is None:
        raise forbidden(node, _unknown("", function.attr))
    return callee, "", compile_expression(function.value, scope, depth + 1)


def _module(node: ast.expr, scope: Scope) -> str | None:
    if isinstance(node, ast.Name):
        return node.id if node.id in MODULES else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
        inner = node.value
        if isinstance(inner.value, ast.Name) and (inner.value.id, inner.attr, node.attr) == (
            "torch",
            "nn",
            "functional",
        ):
            return "F"
    return None


def _unknown(module: str, name: str) -> str:
    known = FUNCTIONS[module] if module else METHODS
    text = f"`{module}.{name}`" if module else f"The method `{name}`"
    shown = text if len(name) <= 40 else text[:40] + "...`"
    hint = f" Instead: {INSTEAD[name]}." if name in INSTEAD else did_you_mean(name[:40], known)
    return f"{shown} is not allowed in a candidate.{hint}"


def _arguments(node: ast.Call, callee: Callee, first: Node | None) -> list[Any]:
    """Arguments in the order of the callee's parameters, None where one is left out."""
    names = callee.parameters
    values: list[Any] = list(node.args) if first is None else [first, *node.args]
    if len(values) > len(names):
        raise forbidden(node, f"This takes {len(names)} arguments ({', '.join(names)}), got {len(values)}.")
    for value in values:
        if isinstance(value, ast.Starred):
            raise forbidden(node, "Arguments are written one by one, without `*`.")
    if not node.keywords and len(values) >= callee.required:
        return values
    slots: dict[str, Any] = dict(zip(names, values, strict=False))
    for keyword in node.keywords:
        name = keyword.arg
        if name is None or name not in names or name in slots:
            shown = "**" if name is None else name[:40]
            raise forbidden(node, f"The keyword `{shown}` is not allowed here. Known: {', '.join(names)}.")
        slots[name] = _truth(keyword) if name == "unbiased" else keyword.value
    missing = [name for name in names[: callee.required] if name not in slots]
    if missing:
        raise forbidden(node, f"`{missing[0]}` is missing: it takes {', '.join(names)}.")
    filled = [slots.get(name) for name in names]
    while filled and filled[-1] is None:
        filled.pop()
    return filled


def _truth(keyword: ast.keyword) -> Any:
    value = keyword.value
    if isinstance(value, ast.Constant) and isinstance(value.value, bool):
        return const(float(value.value))
    return value


_HANDLERS: dict[type[ast.expr], Callable[..., Node]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.Attribute: _attribute,
    ast.Call: _call,
}
_ADVICE: dict[type[ast.expr], str] = {
    ast.IfExp: "`a if c else b` reads a tensor's truth: use torch.where(c, a, b).",
    ast.BoolOp: "`and` and `or` of tensors are not defined: use `&` and `|`.",
    ast.Lambda: "Functions are not defined inside a candidate.",
    ast.NamedExpr: "`:=` is not allowed: assign on a line of its own.",
    ast.Subscript: "Items are not picked by `[...]`: every item is treated alike; use torch.where or mean_masked.",
    ast.JoinedStr: "Texts are not allowed in a candidate, only numbers.",
    ast.Tuple: "A candidate returns one number per item, no tuple.",
    ast.List: "Lists are not allowed in a candidate.",
    ast.Dict: "Dictionaries are not allowed in a candidate.",
    ast.Set: "Sets are not allowed in a candidate.",
    ast.ListComp: "Loops are not allowed: operations act on all items at once.",
    ast.SetComp: "Loops are not allowed: operations act on all items at once.",
    ast.DictComp: "Loops are not allowed: operations act on all items at once.",
    ast.GeneratorExp: "Loops are not allowed: operations act on all items at once.",
    ast.Starred: "Arguments are written one by one, without `*`.",
    ast.Yield: "A candidate returns once.",
    ast.YieldFrom: "A candidate returns once.",
    ast.Await: "A candidate waits for nothing.",
}
