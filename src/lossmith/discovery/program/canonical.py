"""Normal form by sound rewrites: sums as linear forms, products as monomials, one sign, one order.

Every rewrite keeps the value in exact arithmetic wherever the original is finite, and the gradient but at isolated
kinks; what could turn a non-finite value into a finite one (x - x of a logarithm, 0 times an exponential) stays. The
normal form is for identity; programs run as they were written.
"""

import math
from collections.abc import Callable
from typing import Any

from lossmith.discovery.program.forms import (
    Form,
    evaluated,
    has_kinks_apart,
    is_tame,
    lead_of,
    node_of,
    normal,
    plus,
    product,
    raised,
    single,
    times,
    times_exactly,
)
from lossmith.discovery.program.hashes import digest
from lossmith.discovery.program.nodes import Node, const, make, order
from lossmith.discovery.program.operators import OPERATORS
from lossmith.discovery.program.types import FLOATS, MASKS, ProgramError

_NUMBERS = frozenset(name for name, operator in OPERATORS.items() if operator.kind == "number")
"""Operators that fold where their arguments are numbers."""
_ITSELF = object()
"""Kept by a node that is its own normal form: one that held itself would wait for the garbage collector."""


def canonical_form(root: Node) -> Node:
    """The normal form of an expression without hyper-parameters, an expression again."""
    found = _normal_form(root)
    return found if isinstance(found, Node) else node_of(found)


def _normal_form(root: Node) -> Any:
    """The linear form of a number, the node of a boolean; every node below keeps its own."""
    if root.canonical is None:
        stack = [root]
        while stack:
            node = stack[-1]
            for arg in node.args:
                if arg.canonical is None:
                    stack.append(arg)
                    break
            else:
                found = _of_node(node)
                node.canonical = _ITSELF if _is_itself(found, node) else found
                stack.pop()
    return _known(root)


def _is_itself(found: Any, node: Node) -> bool:
    if node.type in MASKS:
        return found is node
    number, terms = found
    return number == 0 and len(terms) == 1 and terms.get(node) == 1


def _known(node: Node) -> Any:
    found = node.canonical
    if found is not _ITSELF:
        return found
    return node if node.type in MASKS else single(node)


def _of_node(node: Node) -> Form | Node:
    mask = node.type in MASKS
    try:
        return _mask(node) if mask else _form(node)
    except ProgramError:
        # An argument has folded to a narrower type than its place takes, or a coefficient leaves the range of floats:
        # this part stays as it was written.
        return node if mask else single(node)


def _form(node: Node) -> Form:
    if node.op == "const":
        return float(node.value or 0.0), {}
    if not node.args:
        return single(node)
    given = [_known(arg) for arg in node.args]
    if node.op in _NUMBERS and not any(form[1] for form in given):
        found = evaluated(node.op, [form[0] for form in given])
        if found is not None:
            return found
    rewrite = _REWRITES.get(node.op)
    if rewrite is None:
        return single(make(node.op, *[part if isinstance(part, Node) else node_of(part) for part in given]))
    return rewrite(*given)


def _divide(a: Form, b: Form) -> Form:
    if not b[1]:
        return single(make("div", node_of(a), const(0))) if b[0] == 0 else times(a, 1 / b[0])
    return product(a, raised(b, -1))


def _power(a: Form, exponent: Form) -> Form:
    number = exponent[0]
    if number.is_integer() and number != 0:
        return raised(a, int(number))
    if number == 0 and is_tame(a):
        return 1.0, {}
    if number == 0.5:
        return single(make("sqrt", node_of(a)))
    return single(make("pow", node_of(a), const(number)))


def _exp(a: Form) -> Form:
    offset = math.exp(a[0]) if abs(a[0]) < 300 else 1.0
    return 0.0, {make("exp", node_of((0.0 if offset != 1.0 else a[0], a[1]))): offset}


def _log(a: Form) -> Form:
    number, terms = a
    if number == 0 and len(terms) == 1:
        ((term, coefficient),) = terms.items()
        if term.op == "exp" and coefficient > 0:
            return plus((math.log(coefficient), {}), _normal_form(term.args[0]))
        if coefficient > 0:
            return math.log(coefficient), {make("log", term): 1.0}
    return single(make("log", node_of(a)))


def _softplus(a: Form) -> Form:
    # softplus(-s) = softplus(s) - s: one sign for both, so that smoothed losses come out as sums.
    if lead_of(a) < 0 and is_tame(a):
        turned = times(a, -1)
        return plus(single(make("softplus", node_of(turned))), turned, -1)
    return single(make("softplus", node_of(a)))


def _sigmoid(a: Form) -> Form:
    if lead_of(a) < 0:
        return 1.0, {make("sigmoid", node_of(times(a, -1))): -1.0}
    return single(make("sigmoid", node_of(a)))


def _relu(a: Form) -> Form:
    if not a[1]:
        return max(a[0], 0.0), {}
    lead, rest = normal(a)
    if lead < 0 and has_kinks_apart(a):
        # relu(-s) = relu(s) - s.
        return times(plus(single(make("relu", node_of(rest))), rest, -1), -lead)
    if lead < 0:
        return 0.0, {make("relu", node_of(times(rest, -1))): -lead}
    return 0.0, {make("relu", node_of(rest)): lead}


def _abs(a: Form) -> Form:
    if has_kinks_apart(a):
        return plus(times(_relu(a), 2), a, -1)
    lead, rest = normal(a)
    return 0.0, {make("abs", node_of(rest)): abs(lead)}


def _max(a: Form, b: Form) -> Form:
    if has_kinks_apart(a) and has_kinks_apart(b):
        return plus(b, _relu(plus(a, b, -1)))
    return single(make("max", *sorted((node_of(a), node_of(b)), key=digest)))


def _min(a: Form, b: Form) -> Form:
    return times(_max(times(a, -1), times(b, -1)), -1)


def _clamp(a: Form, low: Form, high: Form) -> Form:
    if not has_kinks_apart(a):
        return single(make("clamp", node_of(a), const(low[0]), const(high[0])))
    above = a if low[0] == -math.inf else _max(a, low)
    return above if high[0] == math.inf else _min(above, high)


def _odd(op: str) -> Callable[[Form], Form]:
    def rewrite(a: Form) -> Form:
        sign = -1.0 if lead_of(a) < 0 else 1.0
        return 0.0, {make(op, node_of(times(a, sign))): sign}

    return rewrite


def _mean(a: Form) -> Form:
    result: Form = (a[0], {})
    for term, coefficient in a[1].items():
        average = term if term.type == "scalar" else make("mean_batch", term)
        result = plus(result, (0.0, {average: coefficient}))
    return result


def _spread(op: str, power: int) -> Callable[[Form], Form]:
    def rewrite(a: Form) -> Form:
        varying = {term: c for term, c in a[1].items() if term.type != "scalar"}
        if not varying:
            return 0.0, {}
        lead, rest = normal((0.0, varying))
        scale = abs(lead) if power == 1 else times_exactly(lead, lead)
        return 0.0, {make(op, node_of(rest)): scale}

    return rewrite


def _detach(a: Form) -> Form:
    result: Form = (a[0], {})
    for term, coefficient in a[1].items():
        held = make("detach", without_detach(term))
        result = plus(result, (0.0, {held: coefficient}))
    return result


def without_detach(node: Node) -> Node:
    """The same value where no gradient flows anyway."""
    new: dict[Node, Node] = {}
    for part in order(node):
        if part.op == "detach":
            new[part] = new.get(part.args[0], part.args[0])
        elif part.args and not new.keys().isdisjoint(part.args):
            new[part] = make(part.op, *[new.get(arg, arg) for arg in part.args])
    return canonical_form(new[node]) if node in new else node


def _cast(mask: Node) -> Form:
    if mask.op == "not":
        return 1.0, {make("cast", mask.args[0]): -1.0}
    return single(make("cast", mask))


def _where(mask: Node, a: Form, b: Form) -> Form:
    if mask.op == "not":
        mask, a, b = mask.args[0], b, a
    if is_tame(a) and is_tame(b):
        return plus(b, product(_cast(mask), plus(a, b, -1)))
    return single(make("where", mask, node_of(a), node_of(b)))


def _mean_masked(a: Form, mask: Node) -> Form:
    inner = make("cast", mask).type
    # The mean over nothing is 0, so what does not vary inside the mask is multiplied by whether there is anything.
    anything = single(make("mean_masked", make("cast", mask), mask))
    result = times(anything, a[0])
    for term, coefficient in a[1].items():
        if term.op == "cast" and (term.args[0] is mask or make("not", term.args[0]) is mask):
            part = anything if term.args[0] is mask else (0.0, {})
        else:
            part = single(make("mean_masked", term, mask)) if term.type == inner else product(single(term), anything)
        result = plus(result, part, coefficient)
    return result


def _mask(node: Node) -> Node:
    """A boolean as a comparison of a normal form with 0, perhaps negated, or logic on such ones."""
    if not node.args:
        return node
    given = [_known(arg) for arg in node.args]
    if node.op == "not":
        return given[0].args[0] if given[0].op == "not" else make("not", given[0])
    if node.op in ("and", "or"):
        return given[0] if given[0] is given[1] else make(node.op, *sorted(given, key=digest))
    first, second = (given[1], given[0]) if node.op in ("lt", "le") else (given[0], given[1])
    apart = plus(first, second, -1)
    lead, rest = normal(apart)
    left = without_detach(node_of(rest))
    if MASKS[FLOATS.index(left.type)] != node.type:
        raise ProgramError("The difference has lost its items.")
    if node.op in ("eq", "ne"):
        return make(node.op, left, const(0))
    strict = node.op in ("lt", "gt")
    if lead > 0:
        return make("gt" if strict else "ge", left, const(0))
    if not is_tame(apart):
        # Of NaN both `a < b` and `a >= b` are false: neither is the other one's negation.
        return make("lt" if strict else "le", left, const(0))
    return make("not", make("ge" if strict else "gt", left, const(0)))


_REWRITES: dict[str, Callable[..., Form]] = {
    "add": plus,
    "sub": lambda a, b: plus(a, b, -1),
    "neg": lambda a: times(a, -1),
    "mul": product,
    "div": _divide,
    "square": lambda a: raised(a, 2),
    "pow": _power,
    "exp": _exp,
    "expm1": lambda a: plus(_exp(a), (-1.0, {})),
    "log": _log,
    "log1p": lambda a: _log(plus(a, (1.0, {}))),
    "softplus": _softplus,
    "logsigmoid": lambda a: times(_softplus(times(a, -1)), -1),
    "sigmoid": _sigmoid,
    "tanh": lambda a: plus(times(_sigmoid(times(a, 2)), 2), (-1.0, {})),
    "relu": _relu,
    "abs": _abs,
    "max": _max,
    "min": _min,
    "clamp": _clamp,
    "erf": _odd("erf"),
    "atan": _odd("atan"),
    "mean_batch": _mean,
    "var_batch": _spread("var_batch", 2),
    "std_batch": _spread("std_batch", 1),
    "detach": _detach,
    "cast": _cast,
    "where": _where,
    "mean_masked": _mean_masked,
}
