"""The allow-list: what may be called, under which names, and what it builds."""

from collections.abc import Callable
from dataclasses import dataclass

from lossmith.discovery.program import Node, const, make
from lossmith.discovery.program.types import ProgramError

ZERO, ONE = 0.0, 1.0
INFINITY = float("inf")


@dataclass(frozen=True)
class Callee:
    """A callable of candidates: how its result is built, and the names of its parameters in order."""

    build: Callable[..., Node]
    parameters: tuple[str, ...]
    required: int


def _operator(op: str, *parameters: str) -> Callee:
    return Callee(lambda *args: make(op, *args), parameters, len(parameters))


def _mean(x: Node) -> Node:
    return make("mean_batch", x)


def _spread(op: str) -> Callable[..., Node]:
    def build(x: Node, unbiased: Node | None = None) -> Node:
        if unbiased is not None and unbiased.value != 1:
            raise ProgramError("The spread over the batch has divisor n - 1: leave the argument out.")
        return make(op, x)

    return build


def _clamp(x: Node, low: Node | None = None, high: Node | None = None) -> Node:
    if low is None and high is None:
        raise ProgramError("`clamp` needs `min`, `max` or both.")
    for bound in (low, high):
        if bound is not None and bound.op not in ("const", "hyperparameter"):
            raise ProgramError("The bounds of `clamp` are numbers; use torch.minimum or torch.maximum between tensors.")
    return make("clamp", x, low or const(-INFINITY), high or const(INFINITY))


def _pow(x: Node, exponent: Node) -> Node:
    if exponent.op not in ("const", "hyperparameter"):
        raise ProgramError("The exponent must be a number or a hyper-parameter; write torch.exp(y * torch.log(x)).")
    return make("square", x) if exponent.value == 2 else make("pow", x, exponent)


def _softplus(x: Node, beta: Node | None = None) -> Node:
    if beta is None or beta.value == 1:
        return make("softplus", x)
    return make("div", make("softplus", make("mul", beta, x)), beta)


def _cast(x: Node) -> Node:
    return make("cast", x) if x.type in ("flag", "mask", "table_mask") else x


def _like(value: float) -> Callable[[Node], Node]:
    def build(x: Node) -> Node:
        number = _cast(x)
        return make("add", make("mul", const(ZERO), make("detach", number)), const(value))

    return build


def _full_like(x: Node, value: Node) -> Node:
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
    **{op: _operator(op, "input", "other") for op in ("add", "sub", "mul", "div", *_COMPARISONS)},
    "absolute": _operator("abs", "input"),
    "arctan": _operator("atan", "input"),
    "neg": _operator("neg", "input"),
    "negative": _operator("neg", "input"),
    "subtract": _operator("sub", "input", "other"),
    "multiply": _operator("mul", "input", "other"),
    "divide": _operator("div", "input", "other"),
    "true_divide": _operator("div", "input", "other"),
    "less": _operator("lt", "input", "other"),
    "less_equal": _operator("le", "input", "other"),
    "greater": _operator("gt", "input", "other"),
    "greater_equal": _operator("ge", "input", "other"),
    "minimum": _operator("min", "input", "other"),
    "maximum": _operator("max", "input", "other"),
    "min": _operator("min", "input", "other"),
    "max": _operator("max", "input", "other"),
    "logical_and": _operator("and", "input", "other"),
    "logical_or": _operator("or", "input", "other"),
    "logical_not": _operator("not", "input"),
    "pow": Callee(_pow, ("input", "exponent"), 2),
    "reciprocal": Callee(lambda x: make("div", const(ONE), x), ("input",), 1),
    "sign": Callee(_sign, ("input",), 1),
    "clamp": Callee(_clamp, ("input", "min", "max"), 1),
    "clip": Callee(_clamp, ("input", "min", "max"), 1),
    "clamp_min": Callee(lambda x, low: _clamp(x, low), ("input", "min"), 2),
    "clamp_max": Callee(lambda x, high: _clamp(x, None, high), ("input", "max"), 2),
    "mean": Callee(_mean, ("input",), 1),
    "var": Callee(_spread("var_batch"), ("input", "unbiased"), 1),
    "std": Callee(_spread("std_batch"), ("input", "unbiased"), 1),
}
"""As functions of torch and as methods."""
_ACTIVATIONS: dict[str, Callee] = {
    "softplus": Callee(_softplus, ("input", "beta"), 1),
    "logsigmoid": _operator("logsigmoid", "input"),
    "relu": _operator("relu", "input"),
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
INSTEAD = {
    "sum": "the trainer reduces the losses; `.mean()` is the mean over the batch",
    "item": "losses stay tensors",
    "to": "cast a boolean by `.float()`; types and devices are not chosen here",
    "bool": "compare with 0 instead",
    "log_softmax": "use F.logsigmoid for two completions",
    "softmax": "use torch.sigmoid for two completions",
    "log_sigmoid": "use F.logsigmoid",
    "exponential": "use torch.exp",
    "median": "use `.mean()`",
    "norm": "use `.std()` or the root of the mean of squares",
    "tensor": "write the number itself",
    "unsqueeze": "a loss is one number per item",
    "view": "a loss is one number per item",
    "reshape": "a loss is one number per item",
    "rand_like": "a loss must be deterministic",
    "randn_like": "a loss must be deterministic",
    "no_grad": "use `.detach()`",
    "numel": "a loss does not depend on the size of the batch; use `.mean()`",
    "size": "a loss does not depend on the size of the batch; use `.mean()`",
}
"""Name that candidates often want -> what to do instead."""
