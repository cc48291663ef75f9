"""The mistakes that `mutate.py` plants: one small change of one function each, read off its syntax tree.

A mutation is planned from the source alone. Its key (file, function, text) has no line number, so that the list of
equivalent mutations survives edits elsewhere in the file.
"""

import ast
import copy
import types
from collections.abc import Iterator
from dataclasses import dataclass

GROWTH = 1.01
AXIS_CALLS = {
    "all", "any", "arange", "cumsum", "flatten", "gather", "index_add", "index_select", "mean", "pad", "reshape",
    "scatter", "scatter_reduce", "squeeze", "sum", "unsqueeze", "view",
}  # fmt: skip
"""Calls whose literal arguments name axes or sizes."""
AXIS_KEYWORDS = {"as_tuple", "dim", "keepdim", "minlength", "stable"}
GUARDS = {"clamp": "its bounds", "relu": "its floor", "square": "the square", "abs": "the sign"}
"""Calls that are dropped with what they do."""
FLIPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPS = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One planted mistake."""

    file: str
    function: str
    """Name of the function, or of the constant of the module."""
    line: int
    kind: str
    text: str
    """Before and after, as in `a + b -> a - b`; a second place that reads the same is numbered."""
    code: types.CodeType | None = None
    """Compiled body of the function; None where a value outside the body changes."""
    value: str = ""
    """Keyword-only parameter whose default grows, `function` itself for a constant of the module."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it in the list of equivalent ones."""
        return self.file, self.function, self.text


def grown(value: float) -> float:
    """1% more, 0.01 where there is nothing to grow; the opposite of a switch.

    >>> grown(2.0), grown(0), grown(False)
    (2.02, 0.01, True)
    """
    if isinstance(value, bool):
        return not value
    return value * GROWTH if value else 0.01


def plan(source: str, file: str) -> list[Mutation]:
    """Every mutation of the functions and numeric constants at the top level of a file, in order."""
    found: list[Mutation] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and _is_number(node.value) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            text = f"{name} = {ast.unparse(node.value)} -> 1% more"
            found.append(Mutation(file=file, function=name, line=node.lineno, kind="constant", text=text, value=name))
        elif isinstance(node, ast.FunctionDef) and "check" not in node.name:
            found += [*_defaults(node, file), *_bodies(file, node)]
    return _numbered(found)


def controls(source: str, file: str) -> list[Mutation]:
    """Every function unchanged, compiled the way of the mutations: what no test may fail on."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return [
        Mutation(file=file, function=f.name, line=f.lineno, kind="control", text="unchanged", code=_compiled(f, file))
        for f in functions
    ]


def _numbered(mutations: list[Mutation]) -> list[Mutation]:
    seen: dict[tuple[str, str, str], int] = {}
    unique: list[Mutation] = []
    for mutation in mutations:
        seen[mutation.key] = seen.get(mutation.key, 0) + 1
        place = seen[mutation.key]
        text = mutation.text if place == 1 else f"{mutation.text} (place {place})"
        unique.append(Mutation(**{**vars(mutation), "text": text}))
    return unique


def _defaults(function: ast.FunctionDef, file: str) -> Iterator[Mutation]:
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is None or (isinstance(default, ast.Constant) and isinstance(default.value, str)):
            continue
        switch = isinstance(default, ast.Constant) and isinstance(default.value, bool)
        yield Mutation(
            file=file,
            function=function.name,
            line=argument.lineno,
            kind="switch" if switch else "default",
            text=f"{argument.arg}={ast.unparse(default)} -> {'the opposite' if switch else '1% more'}",
            value=argument.arg,
        )


def _bodies(file: str, function: ast.FunctionDef) -> Iterator[Mutation]:
    """Mutations of a body, made in the tree, compiled and undone; two that read the same afterwards are one."""
    texts = {ast.unparse(function)}
    for change in _Finder(function).changes:
        before = ast.unparse(change.shown())
        change.make(change.new)
        after = ast.unparse(function)
        if after not in texts:
            texts.add(after)
            text = f"{before} -> {ast.unparse(change.shown())}"
            code = _compiled(function, file)
            yield Mutation(file=file, function=function.name, line=change.line, kind=change.kind, text=text, code=code)
        change.make(change.old)


def _compiled(function: ast.FunctionDef, file: str) -> types.CodeType:
    module = ast.fix_missing_locations(ast.Module([function], type_ignores=[]))
    constants = compile(module, file, "exec").co_consts
    return next(c for c in constants if isinstance(c, types.CodeType) and c.co_name == function.name)


@dataclass(frozen=True)
class _Change:
    """A node of the tree and what can stand in its place."""

    kind: str
    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST
    show: ast.AST | None
    """The expression to show; None for the node itself."""

    @property
    def line(self) -> int:
        """Where it is."""
        return getattr(self.old, "lineno", getattr(self.parent, "lineno", 0))

    def make(self, node: ast.AST) -> None:
        """Put `node` into the place."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node

    def shown(self) -> ast.AST:
        """What stands there now, or the expression around it."""
        if self.show is not None:
            return self.show
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]


class _Finder:
    """Walks a body and collects the changes that can be made to it, in a fixed order."""

    def __init__(self, function: ast.FunctionDef):
        self.changes: list[_Change] = []
        self.returns_numbers = function.returns is not None and "Float" in ast.unparse(function.returns)
        for statement in function.body:
            self._statement(statement)

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and (_is_text(statement.value) or _is_check(statement.value)):
            return
        if isinstance(statement, ast.If) and all(isinstance(inner, ast.Raise) for inner in statement.body):
            return
        if isinstance(statement, ast.Return) and self.returns_numbers and not _starts_with_minus(statement.value):
            assert statement.value is not None
            self._replace("sign", statement, "value", None, ast.UnaryOp(ast.USub(), statement.value))
        self._children(statement)

    def _children(self, node: ast.AST) -> None:
        for field, value in ast.iter_fields(node):
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.stmt):
                    self._statement(child)
                elif isinstance(child, ast.AST) and not _is_axis(node, field, child):
                    self._expression(node, field, index, child)
                    self._children(child)

    def _expression(self, parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
        for kind, new in _changes_of(node):
            self._replace(kind, parent, field, index, new)
        if isinstance(node, ast.Constant) and node.value in tuple(SWAPS):
            self._replace("bound", parent, field, index, ast.Constant(SWAPS[str(node.value)]), show=parent)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            self._replace("switch", parent, field, index, ast.Constant(not node.value), show=parent)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            self._replace("constant", parent, field, index, ast.Constant(grown(node.value)), show=parent)

    def _replace(
        self, kind: str, parent: ast.AST, field: str, index: int | None, new: ast.AST, *, show: ast.AST | None = None
    ) -> None:
        old = getattr(parent, field) if index is None else getattr(parent, field)[index]
        self.changes.append(_Change(kind, parent, field, index, old, new, show))


def _changes_of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What an expression can be replaced with, apart from literals."""
    if isinstance(node, ast.BinOp):
        yield from _changes_of_two(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield "sign", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in FLIPS:
        flipped = copy.copy(node)
        flipped.ops = [FLIPS[type(node.ops[0])]()]
        yield "comparison", flipped
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        inside = node.args[0] if name == "relu" and node.args else getattr(node.func, "value", None)
        if name == "detach" and inside is not None:
            yield "detach", inside
        elif name in GUARDS and inside is not None:
            yield "dropped call", inside
        if name in SWAPS and isinstance(node.func, ast.Name):
            yield "bound", ast.Call(ast.Name(SWAPS[name], ast.Load()), node.args, node.keywords)
        if any(keyword.arg in SWAPS for keyword in node.keywords):
            swapped = [ast.keyword(SWAPS.get(str(word.arg), word.arg), word.value) for word in node.keywords]
            yield "bound", ast.Call(node.func, node.args, swapped)


def _changes_of_two(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    left, right = node.left, node.right
    if isinstance(node.op, ast.Add):
        yield "sign", ast.BinOp(left, ast.Sub(), right)
        yield "dropped term", left
        yield "dropped term", right
    elif isinstance(node.op, ast.Sub):
        yield "sign", ast.BinOp(left, ast.Add(), right)
        yield "dropped term", left
        yield "dropped term", ast.UnaryOp(ast.USub(), right)
    elif isinstance(node.op, ast.Mult):
        yield "dropped factor", left
        yield "dropped factor", right
    elif isinstance(node.op, ast.Div | ast.Mod):
        yield "dropped factor", left
    elif isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield "dropped term", left
        yield "dropped term", right


def _is_axis(parent: ast.AST, field: str, child: ast.AST) -> bool:
    """Whether a child is a literal that names an axis, a size or a place, or no expression of values at all."""
    if isinstance(parent, ast.Subscript) and field == "slice":
        return not any(isinstance(inner, ast.BinOp | ast.Compare) for inner in ast.walk(child))
    if isinstance(parent, ast.keyword) and parent.arg in AXIS_KEYWORDS:
        return True
    if isinstance(parent, ast.Call) and field == "args" and isinstance(parent.func, ast.Attribute | ast.Name):
        name = parent.func.attr if isinstance(parent.func, ast.Attribute) else parent.func.id
        plain = (ast.Constant, ast.UnaryOp, ast.USub, ast.Tuple, ast.Load)
        numbers = all(isinstance(inner, plain) for inner in ast.walk(child))
        text = any(isinstance(inner, ast.Constant) and isinstance(inner.value, str) for inner in ast.walk(child))
        return name in AXIS_CALLS and numbers and not text
    return isinstance(child, ast.expr_context | ast.operator | ast.unaryop | ast.cmpop | ast.JoinedStr)


def _starts_with_minus(node: ast.expr | None) -> bool:
    """Whether the sign of a returned product is flipped anyway, where its minus is dropped; or nothing has a sign."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        node = node.left
    return node is None or isinstance(node, ast.Tuple) or isinstance(getattr(node, "op", None), ast.USub)


def _is_number(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and type(inner.value) in (int, float)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_check(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "check_" in node.func.id
