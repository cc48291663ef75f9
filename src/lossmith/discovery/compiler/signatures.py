"""Parameters of a candidate: names of the vocabulary, then hyper-parameters."""

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass

from lossmith._checks import did_you_mean
from lossmith.discovery.compiler.errors import MAX_SHOWN, CompileError, forbidden, line_of, shown
from lossmith.discovery.program import INPUTS, KEPT, Node, inputs_of

DISCOPOP = {
    "policy_chosen_logps": "chosen_logps",
    "policy_rejected_logps": "rejected_logps",
    "reference_chosen_logps": "ref_chosen_logps",
    "reference_rejected_logps": "ref_rejected_logps",
}
"""Names of the paper's signature -> ours."""
DISCOPOP_BETA = 0.05
"""`self.beta` of the paper's search."""
RESERVED = ("torch", "F", "math", "self", "mean_batch", "var_batch", "std_batch", "mean_masked", "abs", "number")
"""Names that mean something in every candidate."""
_KEPT = (
    "Candidates do not read `{}`, a running mean of objectives that have a `beta`: write mean_batch(x), over a batch."
)


@dataclass
class Signature:
    """What the names of a candidate mean before its first line."""

    names: dict[str, Node]
    """Parameter -> input."""
    hyperparameters: dict[str, float]
    """Hyper-parameter -> default."""
    self_beta: bool
    """Whether `self.beta` may be read."""


def read_signature(function: ast.FunctionDef, family: str, kind: str) -> Signature:
    """Read the parameters; annotations and the returned type are dropped, never looked at.

    Raises:
        CompileError: For a parameter that is neither of the vocabulary nor a hyper-parameter.
    """
    arguments = function.args
    line = function.lineno
    if function.name in RESERVED:
        raise CompileError("signature", f"The function cannot be called `{function.name}`, which it may call.", line)
    if getattr(function, "type_params", None):
        raise CompileError("signature", "A candidate has no type parameters: leave out `[...]` behind its name.", line)
    starred = arguments.vararg or arguments.kwarg
    if starred:
        raise CompileError(
            "signature", "Parameters are named one by one, without `*args` and `**kwargs`.", starred.lineno
        )
    if arguments.posonlyargs:
        raise CompileError(
            "signature", "Parameters are not positional-only: leave out `/`.", arguments.posonlyargs[-1].lineno
        )
    positional = list(arguments.args)
    if arguments.defaults:
        wrong = positional[len(positional) - len(arguments.defaults)]
        name = shown(wrong.arg)
        raise CompileError(
            "signature",
            f"`{name}` has a default: a hyper-parameter stands after `*`, as in `*, {name}=0.1`.",
            wrong.lineno,
        )
    seen: set[str] = set()
    for argument in [*positional, *arguments.kwonlyargs]:
        if argument.arg in seen:
            raise CompileError("signature", f"The parameter `{shown(argument.arg)}` stands twice.", argument.lineno)
        seen.add(argument.arg)
    kinds: dict[str, Callable[..., Signature]] = {"native": _native, "discopop": _discopop}
    found = kinds[kind](positional, family, line)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        _check_new_name(argument, found, family)
        found.hyperparameters[argument.arg] = _default(argument, default)
    return found


def _native(positional: list[ast.arg], family: str, line: int) -> Signature:
    nodes = inputs_of(family)
    names: dict[str, Node] = {}
    for argument in positional:
        name = shown(argument.arg)
        if name == "self" or name in DISCOPOP:
            raise CompileError(
                "signature",
                f"`{name}` is of the paper's signature, not of family '{family}': say signature=\"discopop\" "
                "(--signature discopop on the command line; in a folder of candidates, end the file's name with "
                ".discopop.py).",
                argument.lineno,
            )
        if name in KEPT:
            raise CompileError("signature", _KEPT.format(name), argument.lineno)
        if argument.arg not in nodes:
            raise CompileError(
                "signature",
                f"`{name}` is not in the vocabulary of family '{family}'."
                f"{did_you_mean(name, nodes)} Known: {', '.join(nodes)}; hyper-parameters stand after `*`.",
                argument.lineno,
            )
        names[argument.arg] = nodes[argument.arg]
    if not names:
        raise CompileError("signature", f"The function reads nothing. Known: {', '.join(nodes)}.", line)
    return Signature(names, {}, self_beta=False)


def _discopop(positional: list[ast.arg], family: str, line: int) -> Signature:
    if family != "preference":
        raise CompileError("signature", f"The signature 'discopop' is for preference losses, not for '{family}'.", line)
    nodes = inputs_of(family)
    names: dict[str, Node] = {}
    for place, argument in enumerate(positional):
        if argument.arg == "self" and place == 0:
            continue
        if argument.arg not in DISCOPOP:
            name = shown(argument.arg)
            raise CompileError(
                "signature",
                f"`{name}` is not in the paper's signature.{did_you_mean(name, DISCOPOP)} Known: "
                f"self, {', '.join(DISCOPOP)}.",
                argument.lineno,
            )
        names[argument.arg] = nodes[DISCOPOP[argument.arg]]
    if not names:
        raise CompileError("signature", f"The function reads nothing. Known: {', '.join(DISCOPOP)}.", line)
    # The paper's bodies read `self.beta` also where the signature they were asked for has no `self`.
    return Signature(names, {}, self_beta=True)


def _check_new_name(argument: ast.arg, found: Signature, family: str) -> None:
    name = argument.arg
    if name in KEPT:
        raise CompileError("signature", _KEPT.format(name), argument.lineno)
    if name in INPUTS[family] or name in found.names:
        raise CompileError(
            "signature", f"`{name}` is an input: it stands before `*`, without a default.", argument.lineno
        )
    if name in RESERVED or name.startswith("_"):
        raise CompileError("signature", f"A hyper-parameter cannot be called `{shown(name)}`.", argument.lineno)
    if len(name) > MAX_SHOWN:
        raise CompileError(
            "signature",
            f"The name of a hyper-parameter has {MAX_SHOWN} letters at most, got {len(name)}.",
            argument.lineno,
        )


def _default(argument: ast.arg, default: ast.expr | None) -> float:
    name = argument.arg
    if default is None:
        raise CompileError("signature", f"Hyper-parameter `{name}` needs a numeric default.", argument.lineno)
    sign, value = 1.0, default
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        sign, value = -1.0, value.operand
    if not isinstance(value, ast.Constant) or type(value.value) not in (int, float):
        raise CompileError("signature", f"The default of `{name}` must be written as a number.", default.lineno)
    return sign * finite(value)


def check_decorators(function: ast.FunctionDef, family: str, names: frozenset[str]) -> None:
    """Drop the decorator of an exported file, `@lossmith.objective(...)`, which says what the caller says anyway.

    Args:
        function: The candidate.
        family: What the caller says.
        names: How the source may call the decorator, by its imports.

    Raises:
        CompileError: For any other one, for one of another family, and for one that says more than literals.
    """
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or _called(decorator) not in names or decorator.args:
            raise forbidden(
                decorator,
                "Decorators are not allowed on a candidate, but `@lossmith.objective(...)` under `import lossmith`, "
                "which is dropped.",
            )
        for keyword in decorator.keywords:
            if keyword.arg is None:
                raise forbidden(keyword.value, "The decorator of a candidate names its settings, without `**`.")
            try:
                said = ast.literal_eval(keyword.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                raise forbidden(keyword.value, "The decorator of a candidate says plain values only.") from None
            if keyword.arg == "family" and said != family:
                told = shown(said) if isinstance(said, str) else type(said).__name__
                raise CompileError(
                    "signature", f"The decorator says family '{told}', the check '{family}'.", line_of(keyword.value)
                )


def _called(call: ast.Call) -> str | None:
    """The name of what is called, of one part or two: a longer one is none of ours."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return None


def finite(constant: ast.Constant) -> float:
    """The float of a literal.

    Raises:
        CompileError: If it is too large for one.
    """
    try:
        number = float(constant.value)  # type: ignore[arg-type]
    except (OverflowError, ValueError, TypeError):
        number = math.inf
    if not math.isfinite(number):
        raise CompileError("forbidden", "A number must be finite as float64.", constant.lineno)
    return number
