"""`compile_source`: Python text to a program; the text is parsed, never run."""

import ast
from dataclasses import dataclass

from lossmith.discovery.compiler.errors import CompileError, forbidden
from lossmith.discovery.compiler.expressions import compile_expression
from lossmith.discovery.compiler.functions import UP
from lossmith.discovery.compiler.hints import CALLED
from lossmith.discovery.compiler.scope import UPWARDS, Scope
from lossmith.discovery.compiler.signatures import check_decorators, read_signature
from lossmith.discovery.compiler.text import is_docstring, parse_source
from lossmith.discovery.program import INPUTS, Node, Program, ProgramError
from lossmith.errors import ObjectiveInputError

SIGNATURES = ("native", "discopop")
_ADVICE: dict[type[ast.stmt], str] = {
    ast.If: "`if` reads a tensor's truth: use torch.where(condition, a, b).",
    ast.For: "Loops are not allowed: operations act on all items at once.",
    ast.While: "Loops are not allowed: operations act on all items at once.",
    ast.With: "`with` is not allowed; use `.detach()` to hold something constant.",
    ast.Import: "Nothing is imported inside the function; `torch`, `F` and `math` are there.",
    ast.ImportFrom: "Nothing is imported inside the function; `torch`, `F` and `math` are there.",
    ast.FunctionDef: "Functions are not defined inside a candidate.",
    ast.ClassDef: "Classes are not defined inside a candidate.",
    ast.Assert: "`assert` is not allowed: the checks are made outside.",
    ast.Raise: "`raise` is not allowed: the checks are made outside.",
    ast.Try: "`try` is not allowed: the checks are made outside.",
    ast.Global: "A candidate has local names only.",
    ast.Nonlocal: "A candidate has local names only.",
    ast.Delete: "`del` is not allowed.",
    ast.Expr: "A line must assign or return: a value alone does nothing.",
}


@dataclass(frozen=True)
class Compiled:
    """A program and what its source said besides."""

    program: Program
    name: str
    """Name of the function."""
    flags: tuple[str, ...]
    """`unused:NAME` for each hyper-parameter that is declared and not read."""


def compile_source(source: str, family: str = "preference", *, signature: str = "native") -> Program:
    """The program of a source.

    Args:
        source: One Python function: parameters from the family's vocabulary, hyper-parameters after `*` with numeric
            defaults, assignments and one `return`.
        family: `preference`, `token` or `metric`.
        signature: `native`, or `discopop` for the names of Lu et al. 2024 and `self.beta`.

    Raises:
        CompileError: With category, reason and line for anything else.
        ObjectiveInputError: For an unknown `family` or `signature`.

    Example:
        >>> program = compile_source('''
        ... def f(chosen_logps, rejected_logps, *, beta=2.0):
        ...     return F.softplus(-beta * (chosen_logps - rejected_logps))
        ... ''')
        >>> program.inputs, dict(program.hyperparameters)
        (('chosen_logps', 'rejected_logps'), {'beta': 2.0})
    """
    return compile_candidate(source, family, signature).program


def compile_candidate(source: object, family: str = "preference", signature: str = "native") -> Compiled:
    """The same with the function's name and flags; takes anything for a source."""
    if family not in INPUTS:
        raise ObjectiveInputError(f"`family` must be one of {', '.join(INPUTS)}, got '{family}'.")
    if signature not in SIGNATURES:
        raise ObjectiveInputError(f"`signature` must be one of {', '.join(SIGNATURES)}, got '{signature}'.")
    found = parse_source(source)
    function = found.function
    check_decorators(function, family, found.objectives)
    in_place = any(type(statement) is ast.AugAssign for statement in function.body)
    scope = Scope(
        read_signature(function, family, signature), {UPWARDS: UP} if found.upwards else {}, in_place=in_place
    )
    root = _body(function, scope)
    try:
        program = Program(family, root, scope.hyperparameters)
    except ProgramError as error:
        raise CompileError("bad-type", str(error), function.lineno) from None
    unused = [name for name in scope.hyperparameters if name not in program.hyperparameters]
    return Compiled(program, function.name, tuple(f"unused:{name}" for name in unused))


def _body(function: ast.FunctionDef, scope: Scope) -> Node:
    body = function.body[1:] if is_docstring(function.body[0]) else function.body
    for place, statement in enumerate(body):
        scope.count(statement, 1)
        if isinstance(statement, ast.Return):
            if place != len(body) - 1:
                raise forbidden(body[place + 1], "Nothing may follow `return`.")
            if statement.value is None:
                raise forbidden(statement, "`return` needs a value, one number per item.")
            return compile_expression(statement.value, scope)
        _assign(statement, scope)
    raise CompileError("syntax", "The function must end with `return`.", function.lineno)


def _assign(statement: ast.stmt, scope: Scope) -> None:
    if isinstance(statement, ast.Assign):
        names = [scope.check_target(target) for target in statement.targets]
        value = compile_expression(statement.value, scope)
        for name in names:
            scope.bind(name, value, statement.value)
            if scope.in_place:
                # In `a = b = ...` both names are of one tensor.
                scope.tensors[name] = scope.tensors[names[0]]
    elif isinstance(statement, ast.AnnAssign):
        # Python looks at no annotation in a function; one without a value says nothing else.
        name = scope.check_target(statement.target)
        if statement.value is not None:
            scope.bind(name, compile_expression(statement.value, scope), statement.value)
    elif isinstance(statement, ast.AugAssign):
        _augment(statement, scope)
    elif not isinstance(statement, ast.Pass):
        raise forbidden(statement, _advice(statement))


def _advice(statement: ast.stmt) -> str:
    kind = type(statement)
    called = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(called, ast.Call) and isinstance(called.func, ast.Name) and called.func.id in CALLED:
        return f"`{called.func.id}(...)` alone does nothing in a candidate: {CALLED[called.func.id]}."
    return _ADVICE.get(kind, f"`{kind.__name__}` is not allowed in a candidate.")


def _augment(statement: ast.AugAssign, scope: Scope) -> None:
    """`x += y` as `x = x + y`: a new value under the old name, the caller's tensor stays as it is."""
    target = statement.target
    name = scope.check_target(target)
    as_read = ast.copy_location(ast.Name(name, ast.Load()), target)
    value = ast.copy_location(ast.BinOp(as_read, statement.op, statement.value), statement)
    scope.rebind(target, compile_expression(value, scope))
