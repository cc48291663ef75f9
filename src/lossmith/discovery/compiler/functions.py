"""The allow-list: what may be called, under which names, and what it builds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lossmith.discovery.program import FLOATS, MASKS, OPERATORS, Node, const, make, order
from lossmith.discovery.program.types import ProgramError

ZERO, ONE = 0.0, 1.0
INFINITY = float("inf")


@dataclass(frozen=True)
class Callee:
    """A callable of candidates: how its result is built, and the names of its parameters in order."""

    build: Callable[..., Node]
    parameters: tuple[str, ...]
    required: int
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Keyword of torch -> its default: written out it is dropped, anything else is refused unless it is a parameter."""


def _operator(op: str, *parameters: str, **defaults: object) -> Callee:
    return Callee(lambda *args: make(op, *args), parameters, len(parameters), defaults)


def is_number(node: Node) -> bool:
    """Whether an expression is one number in Python, made of numbers and hyper-parameters alone."""
    return node.type == "scalar" and all(part.op != "input" for part in order(node))


def folded(node: Node, what: str) -> Node:
    """The constant of an expression of numbers alone; one that reads a hyper-parameter stays as it is.

    Raises:
        ProgramError: If its value is not finite, where Python would raise.
    """
    parts = order(node)
    if node.op == "const" or any(part.op == "hyperparameter" for part in parts):
        return node
    values: dict[Node, np.generic] = {}
    with np.errstate(all="ignore"):
        for part in parts:
            found = OPERATORS[part.op].numpy(*[values[arg] for arg in part.args]) if part.args else part.value
            values[part] = np.bool_(found) if part.type in MASKS else np.float64(found)
            if not np.isfinite(values[part]):
                raise ProgramError(f"{what} is not a finite number.")
    return const(float(values[node]))


def _mean(x: Node) -> Node:
    return make("mean_batch", x)


def _spread(op: str) -> Callee:
    return _operator(op, "input", unbiased=True, correction=1)


def _clamp(x: Node, low: Node | None = None, high: Node | None = None) -> Node:
    if low is None and high is None:
        raise ProgramError("`clamp` needs `min`, `max` or both.")
    low, high = _bound(low), _bound(high)
    if (low is None or not low.args) and (high is None or not high.args):
        return make("clamp", x, low or const(-INFINITY), high or const(INFINITY))
    # The operator takes no arithmetic on hyper-parameters. torch bounds from below first, and passes the gradient on
    # where the value lies on a bound: so does `where`, and `maximum` would not.
    if low is not None:
        x = make("where", make("lt", x, low), low, x) if low.args else make("clamp", x, low, const(INFINITY))
    if high is not None:
        x = make("where", make("gt", x, high), high, x) if high.args else make("clamp", x, const(-INFINITY), high)
    return x


def _bound(bound: Node | None) -> Node | None:
    if bound is not None and not is_number(bound):
        raise ProgramError("The bounds of `clamp` are numbers; use torch.minimum or torch.maximum between tensors.")
    return None if bound is None else folded(bound, "A bound of `clamp`")


def _pow(x: Node, exponent: Node) -> Node:
    if not is_number(exponent):
        raise ProgramError(
            "The exponent must be a number or a hyper-parameter; write torch.exp(y * torch.log(x)) for a positive x."
        )
    exponent = folded(exponent, "The exponent")
    if exponent.args:
        raise ProgramError(
            "The exponent must be a number or one hyper-parameter, without arithmetic on it: "
            "give the whole exponent a name of its own after `*`, or write it out as a number."
        )
    return make("square", x) if exponent.value == 2 else make("pow", x, exponent)


def _softplus(x: Node, beta: Node | None = None, threshold: Node | None = None) -> Node:
    # Above the threshold softplus is the identity: with the same one for the inner call nothing changes.
    if threshold is not None and threshold.value != 20:
        raise ProgramError("The `threshold` of softplus is 20: leave it out.")
    if beta is None:
        return make("softplus", x)
    if not is_number(beta):
        raise ProgramError("The `beta` of softplus is a number: write F.softplus(y * x) / y.")
    beta = folded(beta, "The `beta` of softplus")
    return make("softplus", x) if beta.value == 1 else make("div", make("softplus", make("mul", beta, x)), beta)


def _of_two(op: str) -> Callee:
    def build(a: Node, b: Node) -> Node:
        if is_number(b):
            # torch.max(x, 0) is a pair: the largest values along axis 0, and where they are.
            bound = "min" if op == "max" else "max"
            raise ProgramError(
                f"A number behind torch.{op} is an axis: write torch.clamp(x, {bound}=...) for the {op} with a number."
            )
        return make(op, a, b)

    return Callee(build, ("input", "other"), 2)


def _cast(x: Node) -> Node:
    return make("cast", x) if x.type in ("flag", "mask", "table_mask") else x


def _up(x: Node) -> Node:
    if x.type not in FLOATS or is_number(x):
        raise ProgramError("The helper `_up` of an exported file is for tensors.")
    return x


def _number(value: Node, like: Node) -> Node:
    if value.type not in FLOATS or like.type not in FLOATS or is_number(like):
        raise ProgramError("`number` takes a number and a tensor, whose kind the number gets.")
    return value


UP = Callee(_up, ("values",), 1)
"""The helper of an exported file: half precision as float32, which programs do by themselves."""


def _like(value: float) -> Callable[[Node], Node]:
    def build(x: Node) -> Node:
        number = _cast(x)
        return make("add", make("mul", const(ZERO), make("detach", number)), const(value))

    return build


def _full_like(x: Node, value: Node) -> Node:
    if not is_number(value):
        raise ProgramError("The `fill_value` of full_like is a number: write the tensor itself.")
    return make("add", make("mul", const(ZERO), make("detach", _cast(x))), value)


def _sign(x: Node) -> Node:
    up, down = make("gt", x, const(ZERO)), make("lt", x, const(ZERO))
    return make("sub", make("cast", up), make("cast", down))


def _logaddexp(a: Node, b: Node) -> Node:
    return make("add", a, make("softplus", make("sub", b, a)))


_UNARY = ("exp", "expm1", "log", "log1p", "sigmoid", "tanh", "relu", "abs", "square", "sqrt", "erf", "atan")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_SHARED: dict[str, Callee] = {
    **{op: _operator(op, "input") for op in _UNARY},
    **{op: _operator(op, "input", "other") for op in ("mul", *_COMPARISONS)},
    **{op: _operator(op, "input", "other", alpha=1) for op in ("add", "sub")},
    **{op: _operator("div", "input", "other", rounding_mode=None) for op in ("div", "divide")},
    "absolute": _operator("abs", "input"),
    "arctan": _operator("atan", "input"),
    "neg": _operator("neg", "input"),
    "negative": _operator("neg", "input"),
    "subtract": _operator("sub", "input", "other"),
    "multiply": _operator("mul", "input", "other"),
    "true_divide": _operator("div", "input", "other"),
    "less": _operator("lt", "input", "other"),
    "less_equal": _operator("le", "input", "other"),
    "greater": _operator("gt", "input", "other"),
    "greater_equal": _operator("ge", "input", "other"),
    "minimum": _operator("min", "input", "other"),
    "maximum": _operator("max", "input", "other"),
    "min": _of_two("min"),
    "max": _of_two("max"),
    "logical_and": _operator("and", "input", "other"),
    "logical_or": _operator("or", "input", "other"),
    "logical_not": _operator("not", "input"),
    "pow": Callee(_pow, ("input", "exponent"), 2),
    "reciprocal": Callee(lambda x: make("div", const(ONE), x), ("input",), 1),
    "sign": Callee(_sign, ("input",), 1),
    "clamp": Callee(_clamp, ("input", "min", "max"), 1, {"min": None, "max": None}),
    "clip": Callee(_clamp, ("input", "min", "max"), 1, {"min": None, "max": None}),
    "clamp_min": Callee(lambda x, low: _clamp(x, low), ("input", "min"), 2),
    "clamp_max": Callee(lambda x, high: _clamp(x, None, high), ("input", "max"), 2),
    "mean": Callee(_mean, ("input",), 1),
    "var": _spread("var_batch"),
    "std": _spread("std_batch"),
}
"""As functions of torch and as methods."""
_ACTIVATIONS: dict[str, Callee] = {
    "softplus": Callee(_softplus, ("input", "beta", "threshold"), 1),
    "logsigmoid": _operator("logsigmoid", "input"),
    "relu": _operator("relu", "input", inplace=False),
    "sigmoid": _operator("sigmoid", "input"),
    "tanh": _operator("tanh", "input"),
}
FUNCTIONS: dict[str, dict[str, Callee]] = {
    "torch": {
        **_SHARED,
        "where": _operator("where", "condition", "input", "other"),
        "logaddexp": Callee(_logaddexp, ("input", "other"), 2),
        "zeros_like": Callee(_like(ZERO), ("input",), 1),
        "ones_like": Callee(_like(ONE), ("input",), 1),
        "full_like": Callee(_full_like, ("input", "fill_value"), 2),
    },
    "F": _ACTIVATIONS,
    "math": {
        **{op: _operator(op, "x") for op in ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "erf", "atan")},
        "fabs": _operator("abs", "x"),
        "pow": Callee(_pow, ("x", "y"), 2),
    },
    "": {
        "abs": _operator("abs", "x"),
        "mean_batch": Callee(_mean, ("values",), 1),
        "var_batch": _operator("var_batch", "values"),
        "std_batch": _operator("std_batch", "values"),
        "mean_masked": _operator("mean_masked", "values", "mask"),
        "number": Callee(_number, ("value", "like"), 2),
    },
}
"""Module -> name -> what it builds."""
METHODS: dict[str, Callee] = {
    **_SHARED,
    "detach": _operator("detach", "input"),
    "float": Callee(_cast, ("input",), 1),
    "double": Callee(_cast, ("input",), 1),
    "where": Callee(lambda x, mask, other: make("where", mask, x, other), ("input", "condition", "other"), 3),
}
"""Methods; the first parameter is what they are called on."""
CONSTANTS = {
    ("math", "pi"): 3.141592653589793,
    ("torch", "pi"): 3.141592653589793,
    ("math", "e"): 2.718281828459045,
    ("torch", "e"): 2.718281828459045,
}
