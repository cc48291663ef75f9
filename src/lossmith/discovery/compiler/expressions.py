"""Expressions of the Python subset to nodes, one function per kind of syntax."""

import ast
from collections.abc import Callable
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.discovery.compiler.errors import CompileError, forbidden, line_of, shown
from lossmith.discovery.compiler.functions import CONSTANTS, FUNCTIONS, METHODS, Callee, is_number
from lossmith.discovery.compiler.hints import CALLED, hint
from lossmith.discovery.compiler.scope import Scope
from lossmith.discovery.compiler.signatures import DISCOPOP_BETA, finite
from lossmith.discovery.program import (
    MASKS,
    Node,
    ProgramError,
    check_size,
    const,
    make,
    setting,
)

BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.BitAnd: "and", ast.BitOr: "or"}
COMPARISONS = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}
MODULES = ("torch", "F", "math")
_TABLES = ("table", "table_mask")


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
            first = made.args[0]
            if first.op == "const" or first in scope.numbers:
                scope.check_number(made)
    except ProgramError as error:
        large = "more than" in str(error)
        raise CompileError("too-large" if large else "bad-type", str(error), line_of(node)) from None
    return made


def _constant(node: ast.Constant, scope: Scope, depth: int) -> Node:
    if type(node.value) not in (int, float):
        what = "Texts are" if isinstance(node.value, str | bytes) else f"`{str(node.value)[:20]}` is"
        raise forbidden(node, f"{what} not allowed in a candidate, only numbers.")
    return const(finite(node))


def _name(node: ast.Name, scope: Scope, depth: int) -> Node:
    found = scope.read(node)
    if found is not None:
        return found
    if node.id in MODULES:
        raise forbidden(node, f"`{node.id}` alone is no value.")
    raise forbidden(node, f"`{shown(node.id)}` is not defined.{did_you_mean(shown(node.id), scope.names)}")


def _binary(node: ast.BinOp, scope: Scope, depth: int) -> Node:
    if type(node.op) is ast.Pow:
        left = compile_expression(node.left, scope, depth + 1)
        return METHODS["pow"].build(left, compile_expression(node.right, scope, depth + 1))
    op = BINARY.get(type(node.op))
    if op is None:
        raise forbidden(
            node, f"The operator `{type(node.op).__name__}` is not allowed: + - * / ** and & | of booleans."
        )
    return _meeting(op, node, node.left, node.right, scope, depth)


def _meeting(op: str, node: ast.expr, left: ast.expr, right: ast.expr, scope: Scope, depth: int) -> Node:
    """An operation of two: the way of most expressions, so the rare table is looked for once."""
    if type(left) is ast.Call or type(right) is ast.Call:
        return make(op, *_operands(node, [left, right], scope, depth))
    first, second = compile_expression(left, scope, depth + 1), compile_expression(right, scope, depth + 1)
    if scope.tables:
        _check_widths(node, [first, second], [None, None])
    return make(op, first, second)


def _operands(node: ast.expr, parts: list[Any], scope: Scope, depth: int) -> list[Any]:
    """The nodes of what meets in one operation; parts that are no syntax stay as they are.

    Numbers per anchor get a last axis where they meet a table, which torch does for `.unsqueeze(-1)` alone: without it
    they would be laid along the rows. So it is asked for where that happens, and refused everywhere else.
    """
    inner: list[ast.expr | None] = []
    made: list[Any] = []
    for part in parts:
        found = _widened(part) if type(part) is ast.Call else None
        inner.append(found)
        made.append(compile_expression(found or part, scope, depth + 1) if isinstance(part, ast.expr) else part)
    if scope.tables or any(inner):
        _check_widths(node, made, inner)
    return made


def _check_widths(node: ast.expr, made: list[Any], inner: list[ast.expr | None]) -> None:
    table = any(isinstance(each, Node) and each.type in _TABLES for each in made)
    for each, found in zip(made, inner, strict=True):
        narrow = isinstance(each, Node) and each.type in ("item", "mask")
        if found is not None and not (narrow and table):
            raise forbidden(
                node, "`.unsqueeze(-1)` is for numbers per anchor that stand directly beside a table of candidates."
            )
        if narrow and table and found is None:
            raise forbidden(
                node,
                "Numbers per anchor beside a table of candidates: write `.unsqueeze(-1)` behind them, as in torch.",
            )


def _widened(part: ast.Call) -> ast.expr | None:
    """What `.unsqueeze(-1)` is called on, where a part is such a call."""
    if not (isinstance(part.func, ast.Attribute) and part.func.attr == "unsqueeze"):
        return None
    return part.func.value if len(part.args) == 1 and not part.keywords and _is_minus_one(part.args[0]) else None


def _is_minus_one(part: ast.expr) -> bool:
    if not (isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub) and isinstance(part.operand, ast.Constant)):
        return False
    return type(part.operand.value) is int and part.operand.value == 1


def _unary(node: ast.UnaryOp, scope: Scope, depth: int) -> Node:
    if isinstance(node.op, ast.Not):
        raise forbidden(node, "`not` of a tensor is not defined: use `~`.")
    value = compile_expression(node.operand, scope, depth + 1)
    if isinstance(node.op, ast.UAdd):
        if value.type in MASKS:
            raise ProgramError("`+` of a boolean is an error in torch: cast it by `.float()`.")
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
    return _meeting(op, node, node.left, node.comparators[0], scope, depth)


def _attribute(node: ast.Attribute, scope: Scope, depth: int) -> Node:
    if isinstance(node.value, ast.Name):
        owner = node.value.id
        if owner == "self" and scope.self_beta:
            return _of_self(node, scope)
        if (owner, node.attr) in CONSTANTS:
            return const(CONSTANTS[owner, node.attr])
        if owner in MODULES:
            raise forbidden(node, _unknown(owner, node.attr))
    raise forbidden(
        node, f"The attribute `{shown(node.attr)}` is not allowed: only methods of the allow-list are called."
    )


def _of_self(node: ast.Attribute, scope: Scope) -> Node:
    name = shown(node.attr)
    if name != "beta":
        raise forbidden(
            node,
            f"`self` has `beta` alone, not `{name}`: write a number, or put `{name}` as a hyper-parameter behind the "
            f"inputs and `*`, as in `*, {name}=0.1`, and read it without `self`.",
        )
    if "beta" in scope.declared:
        raise forbidden(
            node, "`self.beta` and the hyper-parameter `beta` are two numbers under one name: rename `beta`."
        )
    scope.hyperparameters["beta"] = DISCOPOP_BETA
    return setting("beta")


def _call(node: ast.Call, scope: Scope, depth: int) -> Node:
    callee, module, first = _resolve(node, scope)
    if module == "math" and node.keywords:
        raise forbidden(node, "Functions of `math` take no keywords.")
    given = _arguments(node, callee, first)
    if callee is FUNCTIONS[""]["mean_masked"]:
        # Numbers and booleans of one kind: nothing grows an axis.
        built = [compile_expression(part, scope, depth + 1) for part in given]
    else:
        built = _operands(node, given, scope, depth)
    if callee is FUNCTIONS[""]["number"]:
        scope.number_tensors = True
    if module == "math":
        return _of_numbers(node, callee, built)
    return callee.build(*built)


def _of_numbers(node: ast.Call, callee: Callee, built: list[Any]) -> Node:
    """A function of `math`: on numbers and hyper-parameters only, and a number where there are numbers only."""
    if not all(is_number(argument) for argument in built):
        raise forbidden(node, "`math` is for numbers: use the function of the same name of `torch`.")
    made = callee.build(*built)
    if all(argument.op == "const" for argument in built):
        from lossmith.discovery.program.canonical import canonical_form

        value = canonical_form(made)
        if value.op != "const":
            raise forbidden(node, "This function of `math` has no finite value there.")
        return value
    return made


def _resolve(node: ast.Call, scope: Scope) -> tuple[Callee, str, ast.expr | None]:
    """What is called, of which module, and what a method is called on."""
    function = node.func
    if isinstance(function, ast.Name):
        callee = FUNCTIONS[""].get(function.id) or scope.helpers.get(function.id)
        if callee is None:
            instead = f" Instead: {CALLED[function.id]}." if function.id in CALLED else ""
            raise forbidden(
                node, f"`{shown(function.id)}(...)` is not allowed: functions come from torch, F and math.{instead}"
            )
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
    return callee, "", function.value


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
    text = f"`{module}.{shown(name)}`" if module else f"The method `{shown(name)}`"
    return f"{text} is not allowed in a candidate.{hint(module, name, FUNCTIONS, METHODS)}"


def _arguments(node: ast.Call, callee: Callee, first: ast.expr | None) -> list[Any]:
    """Arguments in the order of the callee's parameters, None where one is left out."""
    names = callee.parameters
    values: list[Any] = list(node.args) if first is None else [first, *node.args]
    if len(values) > len(names):
        raise forbidden(node, f"This takes {len(names)} arguments ({', '.join(names)}), got {len(values)}.")
    for place, value in enumerate(values):
        if isinstance(value, ast.Starred):
            raise forbidden(node, "Arguments are written one by one, without `*`.")
        if names[place] in callee.defaults and _is_default(value, callee.defaults[names[place]]):
            values[place] = None
    if not node.keywords and len(values) >= callee.required:
        return values
    slots: dict[str, Any] = dict(zip(names, values, strict=False))
    for keyword in node.keywords:
        name = keyword.arg
        if name is None or name in slots or (name not in names and name not in callee.defaults):
            word = "**" if name is None else shown(name)
            raise forbidden(node, f"The keyword `{word}` is not allowed here. Known: {', '.join(names)}.")
        slots[name] = _unless_default(keyword.value, name, callee)
    missing = [name for name in names[: callee.required] if name not in slots]
    if missing:
        raise forbidden(node, f"`{missing[0]}` is missing: it takes {', '.join(names)}.")
    filled = [slots.get(name) for name in names]
    while filled and filled[-1] is None:
        filled.pop()
    return filled


def _unless_default(value: ast.expr, name: str, callee: Callee) -> ast.expr | None:
    """What a keyword gives; None where it is torch's default written out."""
    if name not in callee.defaults:
        return value
    default = callee.defaults[name]
    if _is_default(value, default):
        return None
    if name in callee.parameters:
        return value
    if name in ("unbiased", "correction"):
        raise ProgramError("The spread over the batch has divisor n - 1: leave the argument out.")
    raise forbidden(value, f"`{name}` stays at its default, {default}: leave it out.")


def _is_default(value: Any, default: object) -> bool:
    return isinstance(value, ast.Constant) and type(value.value) is type(default) and value.value == default


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
