"""Parameters of a candidate: names of the vocabulary, then hyper-parameters."""

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass

from lossmith._checks import did_you_mean
from lossmith.discovery.compiler.errors import CompileError
from lossmith.discovery.program import INPUTS, Node, inputs_of

DISCOPOP = {
    "policy_chosen_logps": "chosen_logps",
    "policy_rejected_logps": "rejected_logps",
    "reference_chosen_logps": "ref_chosen_logps",
    "reference_rejected_logps": "ref_rejected_logps",
}
"""Names of the paper's signature -> ours."""
DISCOPOP_BETA = 0.05
"""`self.beta` of the paper's search."""
RESERVED = ("torch", "F", "math", "self", "mean_batch", "var_batch", "std_batch", "mean_masked", "abs")
"""Names that mean something in every candidate."""


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
    if arguments.vararg or arguments.kwarg:
        raise CompileError("signature", "Parameters are named one by one, without `*args` and `**kwargs`.", line)
    if arguments.posonlyargs:
        raise CompileError("signature", "Parameters are not positional-only: leave out `/`.", line)
    positional = list(arguments.args)
    if arguments.defaults:
        wrong = positional[len(positional) - len(arguments.defaults)].arg
        raise CompileError(
            "signature", f"`{wrong}` has a default: a hyper-parameter stands after `*`, as in `*, {wrong}=0.1`.", line
        )
    kinds: dict[str, Callable[..., Signature]] = {"native": _native, "discopop": _discopop}
    found = kinds[kind](positional, family, line)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        _check_new_name(argument, found, family)
        found.hyperparameters[argument.arg] = _default(argument.arg, default, line)
    return found


def _native(positional: list[ast.arg], family: str, line: int) -> Signature:
    nodes = inputs_of(family)
    names: dict[str, Node] = {}
    for argument in positional:
        if argument.arg not in nodes:
            raise CompileError(
                "signature",
                f"`{argument.arg}` is not in the vocabulary of family '{family}'."
                f"{did_you_mean(argument.arg, nodes)} Known: {', '.join(nodes)}; hyper-parameters stand after `*`.",
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
            raise CompileError(
                "signature",
                f"`{argument.arg}` is not in the paper's signature.{did_you_mean(argument.arg, DISCOPOP)} Known: "
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
    if name in INPUTS[family] or name in found.names:
        raise CompileError(
            "signature", f"`{name}` is an input: it stands before `*`, without a default.", argument.lineno
        )
    if name in RESERVED or name.startswith("_"):
        raise CompileError("signature", f"A hyper-parameter cannot be called `{name}`.", argument.lineno)


def _default(name: str, default: ast.expr | None, line: int) -> float:
    if default is None:
        raise CompileError("signature", f"Hyper-parameter `{name}` needs a numeric default.", line)
    sign, value = 1.0, default
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        sign, value = -1.0, value.operand
    if not isinstance(value, ast.Constant) or type(value.value) not in (int, float):
        raise CompileError("signature", f"The default of `{name}` must be written as a number.", default.lineno)
    return sign * finite(value)


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
