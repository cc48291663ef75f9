"""The one table of operators: types, torch function, numpy value and gradient, text, algebraic facts."""

import math
import operator
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lossmith.discovery.program import arrays, functions
from lossmith.discovery.program.entries import Operator, binary, comparison, unary
from lossmith.discovery.program.types import booleans, cast, chosen, numbers, over_batch, over_mask


def _passed(g: Any, *_: Any) -> Any:
    return g


def _turned(g: Any, *_: Any) -> Any:
    return -g


def _where_above(g: Any, a: Any, b: Any) -> Any:
    """The gradient where a > b, half of it where they are equal; 0 elsewhere, also of an infinite one, as in torch."""
    return np.where(a > b, g, np.where(a == b, 0.5 * g, 0.0))


_SCALE = 2.0 / math.sqrt(math.pi)

_TABLE = (
    binary(
        "add",
        operator.add,
        operator.add,
        (_passed, _passed),
        "{0} + {1}",
        "{0} + {1}",
        4,
        commutes=True,
    ),
    binary("sub", operator.sub, operator.sub, (_passed, _turned), "{0} - {1}", "{0} - {1}", 4),
    binary(
        "mul",
        operator.mul,
        operator.mul,
        (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
        "{0} * {1}",
        r"{0} \, {1}",
        5,
        commutes=True,
    ),
    binary(
        "div",
        functions.divide,
        np.divide,
        (lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b),
        "{0} / {1}",
        r"\frac{{{0}}}{{{1}}}",
        5,
        tame=False,
    ),
    unary("neg", operator.neg, operator.neg, _turned, "-{0}", "-{0}", level=6),
    unary("exp", torch.exp, np.exp, lambda g, y, a: g * y, "torch.exp({0})", r"\exp\left({0}\right)", tame=False),
    unary(
        "expm1",
        torch.expm1,
        np.expm1,
        lambda g, y, a: g * (y + 1.0),
        "torch.expm1({0})",
        r"\left(e^{{{0}}} - 1\right)",
        tame=False,
    ),
    unary("log", torch.log, np.log, lambda g, y, a: g / a, "torch.log({0})", r"\log\left({0}\right)", tame=False),
    unary(
        "log1p",
        torch.log1p,
        np.log1p,
        lambda g, y, a: g / (1.0 + a),
        "torch.log1p({0})",
        r"\log\left(1 + {0}\right)",
        tame=False,
    ),
    unary(
        "softplus",
        F.softplus,
        arrays.softplus,
        lambda g, y, a: g * arrays.sigmoid(a),
        "F.softplus({0})",
        r"\operatorname{{softplus}}\left({0}\right)",
    ),
    unary(
        "logsigmoid",
        F.logsigmoid,
        lambda a: -arrays.softplus(-a),
        lambda g, y, a: g * arrays.sigmoid(-a),
        "F.logsigmoid({0})",
        r"\log\sigma\left({0}\right)",
    ),
    unary(
        "sigmoid",
        torch.sigmoid,
        arrays.sigmoid,
        lambda g, y, a: g * y * (1.0 - y),
        "torch.sigmoid({0})",
        r"\sigma\left({0}\right)",
    ),
    unary(
        "tanh",
        torch.tanh,
        np.tanh,
        lambda g, y, a: g * (1.0 - y * y),
        "torch.tanh({0})",
        r"\tanh\left({0}\right)",
    ),
    unary(
        "relu",
        torch.relu,
        lambda a: np.maximum(a, 0.0),
        lambda g, y, a: np.where(a > 0, g, 0.0),
        "torch.relu({0})",
        r"\max\left(0, {0}\right)",
    ),
    unary(
        "abs",
        torch.abs,
        np.abs,
        lambda g, y, a: g * np.sign(a),
        "torch.abs({0})",
        r"\left|{0}\right|",
    ),
    unary(
        "square",
        torch.square,
        np.square,
        lambda g, y, a: g * 2.0 * a,
        "torch.square({0})",
        r"\left({0}\right)^2",
    ),
    unary("sqrt", torch.sqrt, np.sqrt, lambda g, y, a: g * 0.5 / y, "torch.sqrt({0})", r"\sqrt{{{0}}}", tame=False),
    binary(
        "pow",
        functions.power,
        arrays.power,
        (arrays.pow_vjp, None),
        "{0} ** {1}",
        r"\left({0}\right)^{{{1}}}",
        7,
        literal=(1,),
        tame=False,
    ),
    Operator(
        name="clamp",
        arity=3,
        rule=numbers,
        torch=functions.clamp,
        numpy=lambda a, low, high: np.minimum(np.maximum(a, low), high),
        vjps=(arrays.clamp_vjp, None, None),
        python="torch.clamp({0}, {1}, {2})",
        latex=r"\operatorname{{clamp}}\left({0}, {1}, {2}\right)",
        literal=(1, 2),
    ),
    binary(
        "min",
        functions.minimum,
        np.minimum,
        (lambda g, y, a, b: _where_above(g, b, a), lambda g, y, a, b: _where_above(g, a, b)),
        "torch.minimum({0}, {1})",
        r"\min\left({0}, {1}\right)",
        9,
        commutes=True,
    ),
    binary(
        "max",
        functions.maximum,
        np.maximum,
        (lambda g, y, a, b: _where_above(g, a, b), lambda g, y, a, b: _where_above(g, b, a)),
        "torch.maximum({0}, {1})",
        r"\max\left({0}, {1}\right)",
        9,
        commutes=True,
    ),
    Operator(
        name="where",
        arity=3,
        rule=chosen,
        torch=functions.choose,
        numpy=np.where,
        vjps=(None, lambda g, y, m, a, b: np.where(m, g, 0.0), lambda g, y, m, a, b: np.where(m, 0.0, g)),
        python="torch.where({0}, {1}, {2})",
        latex=r"\begin{{cases}} {1} & \text{{if }} {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
        typed=True,
        kind="choice",
    ),
    unary(
        "erf",
        torch.erf,
        arrays.erf,
        lambda g, y, a: g * _SCALE * np.exp(-a * a),
        "torch.erf({0})",
        r"\operatorname{{erf}}\left({0}\right)",
    ),
    unary(
        "atan",
        torch.atan,
        np.arctan,
        lambda g, y, a: g / (1.0 + a * a),
        "torch.atan({0})",
        r"\arctan\left({0}\right)",
    ),
    unary(
        "detach",
        lambda a: a.detach(),
        lambda a: a,
        None,
        "{0}.detach()",
        r"\operatorname{{sg}}\left[{0}\right]",
        level=8,
        kind="gate",
    ),
    comparison("lt", operator.lt, "<", "<"),
    comparison("le", operator.le, "<=", r"\le"),
    comparison("gt", operator.gt, ">", ">"),
    comparison("ge", operator.ge, ">=", r"\ge"),
    comparison("eq", operator.eq, "==", "="),
    comparison("ne", operator.ne, "!=", r"\ne"),
    binary(
        "and",
        functions.logical_and,
        np.logical_and,
        (),
        "{0} & {1}",
        r"{0} \wedge {1}",
        3,
        rule=booleans,
        kind="logic",
        commutes=True,
    ),
    binary(
        "or",
        functions.logical_or,
        np.logical_or,
        (),
        "{0} | {1}",
        r"{0} \vee {1}",
        2,
        rule=booleans,
        kind="logic",
        commutes=True,
    ),
    Operator(
        name="not",
        arity=1,
        rule=booleans,
        torch=functions.logical_not,
        numpy=np.logical_not,
        python="~{0}",
        latex=r"\neg {0}",
        level=6,
        kind="logic",
    ),
    Operator(
        name="cast",
        arity=1,
        rule=cast,
        torch=functions.to_float,
        numpy=lambda m: m * 1.0,
        python="{0}.float()",
        latex=r"\left[{0}\right]",
        level=8,
        typed=True,
        kind="cast",
    ),
    Operator(
        name="mean_batch",
        arity=1,
        rule=over_batch,
        torch=torch.mean,
        numpy=arrays.mean_batch,
        vjps=(arrays.mean_batch_vjp,),
        python="torch.mean({0})",
        latex=r"\operatorname{{mean}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="var_batch",
        arity=1,
        rule=over_batch,
        torch=functions.var_batch,
        numpy=arrays.var_batch,
        vjps=(arrays.var_batch_vjp,),
        python="var_batch({0})",
        latex=r"\operatorname{{Var}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="std_batch",
        arity=1,
        rule=over_batch,
        torch=functions.std_batch,
        numpy=arrays.std_batch,
        vjps=(arrays.std_batch_vjp,),
        python="std_batch({0})",
        latex=r"\operatorname{{std}}\left[{0}\right]",
        kind="reduction",
    ),
    Operator(
        name="mean_masked",
        arity=2,
        rule=over_mask,
        torch=functions.mean_masked,
        numpy=arrays.mean_masked,
        vjps=(arrays.mean_masked_vjp, None),
        python="mean_masked({0}, {1})",
        latex=r"\operatorname{{mean}}_{{{1}}}\left[{0}\right]",
        kind="reduction",
    ),
)

OPERATORS: dict[str, Operator] = {entry.name: entry for entry in _TABLE}
"""Name -> operator, exactly the operators of a candidate."""


@cache
def result_type(op: str, *types: str) -> str:
    """Type of an operator's result on arguments of these types.

    Raises:
        ProgramError: If it does not take them.
    """
    return OPERATORS[op].rule(op, types)
