"""The one table of operators: types, torch function, numpy value and gradient, text, algebraic facts."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lossmith.discovery.program import arrays, functions
from lossmith.errors import LossmithError


class ProgramError(LossmithError, ValueError):
    """An expression that the typed grammar does not have."""


FLOATS = ("scalar", "item", "table")
"""Types of numbers: one for the batch, one per item, one per anchor and candidate; each broadcasts to the next."""
MASKS = ("flag", "mask", "table_mask")
"""Types of the booleans that belong to them."""
WORDS = {
    "scalar": "one number for the batch",
    "item": "a number per item",
    "table": "a number per anchor and candidate",
    "flag": "one boolean for the batch",
    "mask": "a boolean per item",
    "table_mask": "a boolean per anchor and candidate",
}
Rule = Callable[[str, tuple[str, ...]], str]


def _fail(op: str, types: tuple[str, ...], wanted: str) -> ProgramError:
    return ProgramError(f"`{op}` takes {wanted}, got {', '.join(WORDS[type] for type in types)}.")


def _widest(op: str, types: tuple[str, ...], kinds: tuple[str, ...], wanted: str) -> str:
    try:
        return kinds[max(kinds.index(type) for type in types)]
    except ValueError:
        raise _fail(op, types, wanted) from None


def _numbers(op: str, types: tuple[str, ...]) -> str:
    return _widest(op, types, FLOATS, "numbers (cast a boolean by `.float()`)")


def _compared(op: str, types: tuple[str, ...]) -> str:
    return MASKS[FLOATS.index(_numbers(op, types))]


def _booleans(op: str, types: tuple[str, ...]) -> str:
    return _widest(op, types, MASKS, "booleans")


def _chosen(op: str, types: tuple[str, ...]) -> str:
    if types[0] not in MASKS:
        raise _fail(op, types, "a boolean and two numbers")
    return _numbers(op, (FLOATS[MASKS.index(types[0])], *types[1:]))


def _cast(op: str, types: tuple[str, ...]) -> str:
    return FLOATS[MASKS.index(_booleans(op, types))]


def _over_batch(op: str, types: tuple[str, ...]) -> str:
    if types != ("item",):
        raise _fail(op, types, "a number per item")
    return "scalar"


def _over_mask(op: str, types: tuple[str, ...]) -> str:
    if types not in (("item", "mask"), ("table", "table_mask")):
        raise _fail(op, types, "numbers and booleans of the same kind")
    return "scalar" if types[0] == "item" else "item"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What everything in discovery knows about one operation."""

    name: str
    arity: int
    rule: Rule
    """(op, types of the arguments) -> type of the result; raises `ProgramError`."""
    torch: Callable[..., Any]
    """On tensors; plain numbers may stand for some arguments, never for all (`numpy` serves there)."""
    numpy: Callable[..., Any]
    """On arrays of `arrays.py`."""
    vjp: Callable[..., tuple[Any, ...]] | None
    """(g, result, *arguments) -> gradient of each argument; None where nothing is passed on."""
    python: str
    """Source text with {0} ... for the arguments."""
    latex: str
    level: int = 9
    """Binding strength of the source text: 1 comparison ... 7 power, 9 call."""
    literal: tuple[int, ...] = ()
    """Arguments that must be numbers or hyper-parameters."""
    commutes: bool = False
    tame: bool = True
    """Finite wherever its arguments are (sums, products and squares taken to be): 0 times it is 0."""
    typed: bool = False
    """Whether the torch function must be told the floating type of the inputs."""
    kind: str = "number"
    """`number`, `comparison`, `logic`, `choice`, `cast`, `reduction` or `gate` (detach): what proposers group by."""


def _unary(name: str, torch: Any, numpy: Any, vjp: Any, python: str, latex: str, **facts: Any) -> Operator:
    return Operator(
        name=name, arity=1, rule=_numbers, torch=torch, numpy=numpy, vjp=vjp, python=python, latex=latex, **facts
    )


def _binary(name: str, torch: Any, numpy: Any, vjp: Any, python: str, latex: str, level: int, **facts: Any) -> Operator:
    return Operator(
        name=name,
        arity=2,
        rule=facts.pop("rule", _numbers),
        torch=torch,
        numpy=numpy,
        vjp=vjp,
        python=python,
        latex=latex,
        level=level,
        **facts,
    )


def _comparison(name: str, function: Any, text: str, latex: str) -> Operator:
    return _binary(
        name,
        function,
        function,
        None,
        f"{{0}} {text} {{1}}",
        f"{{0}} {latex} {{1}}",
        1,
        rule=_compared,
        kind="comparison",
        commutes=name in ("eq", "ne"),
    )


def _ties(g: Any, a: Any, b: Any) -> tuple[Any, Any]:
    share = 0.5 * (np.asarray(a) == b)
    first = np.asarray(a > b) + share
    return g * first, g * (1.0 - first)


_SCALE = 2.0 / math.sqrt(math.pi)

_TABLE = (
    _binary("add", operator.add, operator.add, lambda g, y, a, b: (g, g), "{0} + {1}", "{0} + {1}", 4, commutes=True),
    _binary("sub", operator.sub, operator.sub, lambda g, y, a, b: (g, -g), "{0} - {1}", "{0} - {1}", 4),
    _binary(
        "mul",
        operator.mul,
        operator.mul,
        lambda g, y, a, b: (g * b, g * a),
        "{0} * {1}",
        r"{0} \, {1}",
        5,
        commutes=True,
    ),
    _binary(
        "div",
        functions.divide,
        np.divide,
        lambda g, y, a, b: (g / b, -g * y / b),
        "{0} / {1}",
        r"\frac{{{0}}}{{{1}}}",
        5,
        tame=False,
    ),
    _unary("neg", operator.neg, operator.neg, lambda g, y, a: (-g,), "-{0}", "-{0}", level=6),
    _unary("exp", torch.exp, np.exp, lambda g, y, a: (g * y,), "torch.exp({0})", r"\exp\left({0}\right)", tame=False),
    _unary(
        "expm1",
        torch.expm1,
        np.expm1,
        lambda g, y, a: (g * (y + 1.0),),
        "torch.expm1({0})",
        r"\left(e^{{{0}}} - 1\right)",
        tame=False,
    ),
    _unary("log", torch.log, np.log, lambda g, y, a: (g / a,), "torch.log({0})", r"\log\left({0}\right)", tame=False),
    _unary(
        "log1p",
        torch.log1p,
        np.log1p,
        lambda g, y, a: (g / (1.0 + a),),
        "torch.log1p({0})",
        r"\log\left(1 + {0}\right)",
        tame=False,
    ),
    _unary(
        "softplus",
        F.softplus,
        arrays.softplus,
        lambda g, y, a: (g * arrays.sigmoid(a),),
        "F.softplus({0})",
        r"\operatorname{{softplus}}\left({0}\right)",
    ),
    _unary(
        "logsigmoid",
        F.logsigmoid,
        lambda a: -arrays.softplus(-a),
        lambda g, y, a: (g * arrays.sigmoid(-a),),
        "F.logsigmoid({0})",
        r"\log\sigma\left({0}\right)",
    ),
    _unary(
        "sigmoid",
        torch.sigmoid,
        arrays.sigmoid,
        lambda g, y, a: (g * y * (1.0 - y),),
        "torch.sigmoid({0})",
        r"\sigma\left({0}\right)",
    ),
    _unary(
        "tanh",
        torch.tanh,
        np.tanh,
        lambda g, y, a: (g * (1.0 - y * y),),
        "torch.tanh({0})",
        r"\tanh\left({0}\right)",
    ),
    _unary(
        "relu",
        torch.relu,
        lambda a: np.maximum(a, 0.0),
        lambda g, y, a: (g * (a > 0),),
        "torch.relu({0})",
        r"\max\left(0, {0}\right)",
    ),
    _unary(
        "abs",
        torch.abs,
        np.abs,
        lambda g, y, a: (g * np.sign(a),),
        "torch.abs({0})",
        r"\left|{0}\right|",
    ),
    _unary(
        "square",
        torch.square,
        np.square,
        lambda g, y, a: (g * 2.0 * a,),
        "torch.square({0})",
        r"\left({0}\right)^2",
    ),
    _unary("sqrt", torch.sqrt, np.sqrt, lambda g, y, a: (g * 0.5 / y,), "torch.sqrt({0})", r"\sqrt{{{0}}}", tame=False),
    _binary(
        "pow",
        functions.power,
        arrays.power,
        arrays.pow_vjp,
        "{0} ** {1}",
        r"\left({0}\right)^{{{1}}}",
        7,
        literal=(1,),
        tame=False,
    ),
    Operator(
        name="clamp",
        arity=3,
        rule=_numbers,
        torch=functions.clamp,
        numpy=lambda a, low, high: np.minimum(np.maximum(a, low), high),
        vjp=arrays.clamp_vjp,
        python="torch.clamp({0}, {1}, {2})",
        latex=r"\operatorname{{clamp}}\left({0}, {1}, {2}\right)",
        literal=(1, 2),
    ),
    _binary(
        "min",
        functions.minimum,
        np.minimum,
        lambda g, y, a, b: _ties(g, b, a),
        "torch.minimum({0}, {1})",
        r"\min\left({0}, {1}\right)",
        9,
        commutes=True,
    ),
    _binary(
        "max",
        functions.maximum,
        np.maximum,
        lambda g, y, a, b: _ties(g, a, b),
        "torch.maximum({0}, {1})",
        r"\max\left({0}, {1}\right)",
        9,
        commutes=True,
    ),
    Operator(
        name="where",
        arity=3,
        rule=_chosen,
        torch=functions.choose,
        numpy=np.where,
        vjp=lambda g, y, m, a, b: (None, np.where(m, g, 0.0), np.where(m, 0.0, g)),
        python="torch.where({0}, {1}, {2})",
        latex=r"\begin{{cases}} {1} & \text{{if }} {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
        typed=True,
        kind="choice",
    ),
    _unary(
        "erf",
        torch.erf,
        arrays.erf,
        lambda g, y, a: (g * _SCALE * np.exp(-a * a),),
        "torch.erf({0})",
        r"\operatorname{{erf}}\left({0}\right)",
    ),
    _unary(
        "atan",
        torch.atan,
        np.arctan,
        lambda g, y, a: (g / (1.0 + a * a),),
        "torch.atan({0})",
        r"\arctan\left({0}\right)",
    ),
    _unary(
        "detach",
        lambda a: a.detach(),
        lambda a: a,
        None,
        "{0}.detach()",
        r"\operatorname{{sg}}\left[{0}\right]",
        level=8,
        kind="gate",
    ),
    _comparison("lt", operator.lt, "<", "<"),
    _comparison("le", operator.le, "<=", r"\le"),
    _comparison("gt", operator.gt, ">", ">"),
    _comparison("ge", operator.ge, ">=", r"\ge"),
    _comparison("eq", operator.eq, "==", "="),
    _comparison("ne", operator.ne, "!=", r"\ne"),
    _binary(
        "and",
        functions.logical_and,
        np.logical_and,
        None,
        "{0} & {1}",
        r"{0} \wedge {1}",
        3,
        rule=_booleans,
        kind="logic",
        commutes=True,
    ),
    _binary(
        "or",
        functions.logical_or,
        np.logical_or,
        None,
        "{0} | {1}",
        r"{0} \vee {1}",
        2,
        rule=_booleans,
        kind="logic",
        commutes=True,
    ),
    Operator(
        name="not",
        arity=1,
        rule=_booleans,
        torch=functions.logical_not,
        numpy=np.logical_not,
        vjp=None,
        python="~{0}",
        latex=r"\neg {0}",
        level=6,
        kind="logic",
    ),
    Operator(
        name="cast",
        arity=1,
        rule=_cast,
        torch=functions.to_float,
        numpy=lambda m: m * 1.0,
        vjp=None,
        python="{0}.float()",
        latex=r"\left[{0}\right]",
        level=8,
        typed=True,
        kind="cast",
    ),
    Operator(
        name="mean_batch",
        arity=1,
        rule=_over_batch,
        torch=torch.mean,
        numpy=arrays.mean_batch,
        vjp=arrays.mean_batch_vjp,
        python="torch.mean({0})",
        latex=r"\operatorname{{mean}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="var_batch",
        arity=1,
        rule=_over_batch,
        torch=functions.var_batch,
        numpy=arrays.var_batch,
        vjp=arrays.var_batch_vjp,
        python="var_batch({0})",
        latex=r"\operatorname{{Var}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="std_batch",
        arity=1,
        rule=_over_batch,
        torch=functions.std_batch,
        numpy=arrays.std_batch,
        vjp=arrays.std_batch_vjp,
        python="std_batch({0})",
        latex=r"\operatorname{{std}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="mean_masked",
        arity=2,
        rule=_over_mask,
        torch=functions.mean_masked,
        numpy=arrays.mean_masked,
        vjp=arrays.mean_masked_vjp,
        python="mean_masked({0}, {1})",
        latex=r"\operatorname{{mean}}_{{{1}}}\left[{0}\right]",
        kind="reduction",
    ),
)

OPERATORS: dict[str, Operator] = {entry.name: entry for entry in _TABLE}
"""Name -> operator, exactly the operators of a candidate."""
