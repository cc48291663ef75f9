"""Normal form by sound rewrites: sums as linear forms, products as monomials, one sign, one order.

Every rewrite keeps the value in exact arithmetic wherever the original is finite, and the gradient but at isolated
kinks; what could turn a non-finite value into a finite one (x - x of a logarithm, 0 times an exponential) stays. The
normal form is for identity; programs run as they were written.
"""

import math
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from lossmith.discovery.program.nodes import Node, const, make, order
from lossmith.discovery.program.operators import FLOATS, MASKS, OPERATORS, ProgramError

Form = tuple[float, dict[Node, float]]
"""A number plus coefficients of nodes that are no sums: `k + sum c_i t_i`."""
MAX_DISTRIBUTED = 12
"""Terms of a sum that a single factor is multiplied into; beyond, the product stays."""
VANISHED = 1e-12
"""A sum of coefficients this small beside its terms is 0 but for rounding."""


def canonical_form(root: Node) -> Node:
    """The normal form of an expression without hyper-parameters, an expression again."""
    for node in order(root):
        if "canonical" not in node.cache:
            try:
                node.cache["canonical"] = _mask(node) if node.type in MASKS else _form(node)
            except ProgramError:
                # An argument has folded to a narrower type than its place takes: this part stays as it was written.
                node.cache["canonical"] = node if node.type in MASKS else _single(node)
    found = root.cache["canonical"]
    return found if isinstance(found, Node) else node_of(found)


def exact_hash(family: str, canonical: Node) -> str:
    """Hash of a normal form; constants count to 12 digits."""
    for node in order(canonical):
        _digest(node)
    return blake2b(family.encode() + _digest(canonical), digest_size=16).hexdigest()


def skeleton_hash(family: str, canonical: Node) -> str:
    """Hash of a normal form with every constant as the same slot; commuting arguments in the order of their slots."""
    seen: dict[Node, bytes] = {}
    for node in order(canonical):
        if node.op in ("add", "mul"):
            parts = sorted(seen[part] for part in _flat(node, node.op))
        elif node.op == "const":
            parts = []
        else:
            parts = [seen[arg] for arg in node.args]
            parts = sorted(parts) if node.args and OPERATORS[node.op].commutes else parts
        name = str(node.value) if node.op == "input" else ""
        seen[node] = blake2b(f"{node.op}|{name}|".encode() + b"".join(parts), digest_size=12).digest()
    return blake2b(family.encode() + seen[canonical], digest_size=16).hexdigest()


def _flat(node: Node, op: str) -> list[Node]:
    found: list[Node] = []
    stack = [node]
    while stack:
        part = stack.pop()
        if part.op == op:
            stack += part.args
        else:
            found.append(part)
    return found


def _digest(node: Node) -> bytes:
    """Digest of a node whose arguments have theirs or are shallow; it orders sums and products in every process."""
    found = node.cache.get("digest")
    if found is None:
        if node.op == "const":
            text = f"{node.value:.12g}".encode()
        elif node.op == "input":
            text = str(node.value).encode()
        else:
            text = node.op.encode() + b"".join([arg.cache.get("digest") or _digest(arg) for arg in node.args])
        found = node.cache["digest"] = blake2b(text, digest_size=12).digest()
    return found


# Linear forms.


def node_of(form: Form) -> Node:
    """The expression of a linear form: terms in the order of their digests, the number last."""
    number, terms = form
    total: Node | None = None
    for term in sorted(terms, key=_digest):
        factor = terms[term]
        part = term if factor == 1 else make("mul", const(factor), term)
        total = part if total is None else make("add", total, part)
    if total is None:
        return const(number)
    return total if number == 0 else make("add", total, const(number))


def _single(node: Node) -> Form:
    return 0.0, {node: 1.0}


def _plus(a: Form, b: Form, factor: float = 1.0) -> Form:
    number = _sum(a[0], factor * b[0])
    terms = dict(a[1])
    for term, coefficient in b[1].items():
        new = _sum(terms.get(term, 0.0), factor * coefficient)
        if new == 0 and term.tame:
            terms.pop(term, None)
        else:
            terms[term] = new
    return number, terms


def _sum(a: float, b: float) -> float:
    total = a + b
    return 0.0 if abs(total) <= VANISHED * (abs(a) + abs(b)) else total


def _times(form: Form, factor: float) -> Form:
    if factor == 0:
        return 0.0, {term: 0.0 for term in form[1] if not term.tame}
    return form[0] * factor, {term: coefficient * factor for term, coefficient in form[1].items()}


def _lead(form: Form) -> float:
    """Coefficient of the first term that has one; 0 for a number alone."""
    leading = min((term for term, c in form[1].items() if c != 0), key=_digest, default=None)
    return 0.0 if leading is None else form[1][leading]


def _normal(form: Form) -> tuple[float, Form]:
    """(c, form / c) with the leading coefficient of the second 1; (1, form) for a number alone."""
    lead = _lead(form)
    return (1.0, form) if lead in (0.0, 1.0) else (lead, _scaled_down(form, lead))


def _scaled_down(form: Form, lead: float) -> Form:
    return form[0] / lead, {term: coefficient / lead for term, coefficient in form[1].items()}


def _is_tame(form: Form) -> bool:
    return all(term.tame for term in form[1])


# Products.


def _factors(term: Node) -> dict[Node, int]:
    """A node that is no sum as base -> whole exponent > 0; what divides is a base `x ** -1` of its own."""
    found: dict[Node, int] = {}
    for part in _flat(term, "mul"):
        base, exponent = part, 1
        if part.op == "pow" and float(part.args[1].value or 0).is_integer():
            base, exponent = part.args[0], int(float(part.args[1].value or 0))
        if exponent < 0:
            base, exponent = make("pow", base, const(-1)), -exponent
        found[base] = found.get(base, 0) + exponent
    return found


def _monomial(factors: dict[Node, int]) -> Node:
    product: Node | None = None
    for base in sorted(factors, key=_digest):
        exponent = factors[base]
        part = base
        if exponent > 1 and base.op == "pow" and base.args[1].value == -1:
            part = make("pow", base.args[0], const(-exponent))
        elif exponent > 1:
            part = make("pow", base, const(exponent))
        product = part if product is None else make("mul", product, part)
    assert product is not None
    return product


def _as_product(form: Form) -> tuple[float, dict[Node, int]]:
    """A form as a number times factors; a sum becomes one factor with leading coefficient 1."""
    number, terms = form
    if number == 0 and len(terms) == 1:
        ((term, coefficient),) = terms.items()
        if coefficient != 0:
            return coefficient, _factors(term)
    factor, rest = _normal(form)
    return factor, {node_of(rest): 1}


def _product(a: Form, b: Form) -> Form:
    for one, other in ((a, b), (b, a)):
        if not one[1]:
            return _times(other, one[0])
    for one, other in ((a, b), (b, a)):
        if one[0] == 0 and len(one[1]) == 1 and 1 < len(other[1]) + (other[0] != 0) <= MAX_DISTRIBUTED:
            return _distributed(one, other)
    first, factors = _as_product(a)
    second, more = _as_product(b)
    merged = dict(factors)
    for base, exponent in more.items():
        merged[base] = merged.get(base, 0) + exponent
    return 0.0, {_monomial(merged): first * second}


def _distributed(one: Form, other: Form) -> Form:
    result = _times(one, other[0])
    for term, coefficient in other[1].items():
        result = _plus(result, _product(one, (0.0, {term: coefficient})))
    return result


def _raised(form: Form, exponent: int) -> Form:
    if not form[1]:
        return _evaluated("pow", [form[0], float(exponent)]) or _single(make("pow", const(form[0]), const(exponent)))
    number, factors = _as_product(form)
    powers: dict[Node, int] = {}
    for base, power in factors.items():
        # x * 1/x is not 1 at 0, so a reciprocal is a factor of its own and never cancels.
        powers[base if exponent > 0 else make("pow", base, const(-1))] = power * abs(exponent)
    with np.errstate(all="ignore"):
        scale = float(np.power(number, float(exponent)))
    if not math.isfinite(scale) or scale == 0:
        return _single(make("pow", node_of(form), const(exponent)))
    return 0.0, {_monomial(powers): scale}


def _evaluated(op: str, numbers: list[float]) -> Form | None:
    """The value of an operator on numbers alone, where it is finite."""
    with np.errstate(all="ignore"):
        value = float(OPERATORS[op].numpy(*numbers))
    return (value, {}) if math.isfinite(value) else None


# One node.


def _form(node: Node) -> Form:
    if node.op == "const":
        return float(node.value or 0.0), {}
    if not node.args:
        return _single(node)
    given = [arg.cache["canonical"] for arg in node.args]
    if OPERATORS[node.op].kind == "number" and not any(form[1] for form in given):
        found = _evaluated(node.op, [form[0] for form in given])
        if found is not None:
            return found
    rewrite = _REWRITES.get(node.op)
    if rewrite is None:
        return _single(make(node.op, *[part if isinstance(part, Node) else node_of(part) for part in given]))
    return rewrite(*given)


def _divide(a: Form, b: Form) -> Form:
    if not b[1]:
        return _single(make("div", node_of(a), const(0))) if b[0] == 0 else _times(a, 1 / b[0])
    return _product(a, _raised(b, -1))


def _power(a: Form, exponent: Form) -> Form:
    number = exponent[0]
    if number.is_integer() and number != 0:
        return _raised(a, int(number))
    if number == 0 and _is_tame(a):
        return 1.0, {}
    if number == 0.5:
        return _single(make("sqrt", node_of(a)))
    return _single(make("pow", node_of(a), const(number)))


def _exp(a: Form) -> Form:
    offset = math.exp(a[0]) if abs(a[0]) < 300 else 1.0
    return 0.0, {make("exp", node_of((0.0 if offset != 1.0 else a[0], a[1]))): offset}


def _log(a: Form) -> Form:
    number, terms = a
    if number == 0 and len(terms) == 1:
        ((term, coefficient),) = terms.items()
        if term.op == "exp" and coefficient > 0:
            return _plus((math.log(coefficient), {}), _again(term.args[0]))
        if coefficient > 0:
            return math.log(coefficient), {make("log", term): 1.0}
    return _single(make("log", node_of(a)))


def _again(node: Node) -> Form:
    """The form of a node that is canonical already."""
    canonical_form(node)
    return node.cache["canonical"]


def _softplus(a: Form) -> Form:
    # softplus(-s) = softplus(s) - s: one sign for both, so that smoothed losses come out as sums.
    if _lead(a) < 0 and _is_tame(a):
        turned = _times(a, -1)
        return _plus(_single(make("softplus", node_of(turned))), turned, -1)
    return _single(make("softplus", node_of(a)))


def _sigmoid(a: Form) -> Form:
    if _lead(a) < 0:
        return 1.0, {make("sigmoid", node_of(_times(a, -1))): -1.0}
    return _single(make("sigmoid", node_of(a)))


def _relu(a: Form) -> Form:
    if not a[1]:
        return max(a[0], 0.0), {}
    lead, rest = _normal(a)
    if lead < 0 and _is_tame(a):
        # relu(-s) = relu(s) - s.
        return _times(_plus(_single(make("relu", node_of(rest))), rest, -1), -lead)
    if lead < 0:
        return 0.0, {make("relu", node_of(_times(rest, -1))): -lead}
    return 0.0, {make("relu", node_of(rest)): lead}


def _abs(a: Form) -> Form:
    if _is_tame(a):
        return _plus(_times(_relu(a), 2), a, -1)
    lead, rest = _normal(a)
    return 0.0, {make("abs", node_of(rest)): abs(lead)}


def _max(a: Form, b: Form) -> Form:
    if _is_tame(a) and _is_tame(b):
        return _plus(b, _relu(_plus(a, b, -1)))
    return _single(make("max", *sorted((node_of(a), node_of(b)), key=_digest)))


def _min(a: Form, b: Form) -> Form:
    return _times(_max(_times(a, -1), _times(b, -1)), -1)


def _clamp(a: Form, low: Form, high: Form) -> Form:
    if not _is_tame(a):
        return _single(make("clamp", node_of(a), const(low[0]), const(high[0])))
    above = a if low[0] == -math.inf else _max(a, low)
    return above if high[0] == math.inf else _min(above, high)


def _odd(op: str) -> Callable[[Form], Form]:
    def rewrite(a: Form) -> Form:
        sign = -1.0 if _lead(a) < 0 else 1.0
        return 0.0, {make(op, node_of(_times(a, sign))): sign}

    return rewrite


def _mean(a: Form) -> Form:
    result: Form = (a[0], {})
    for term, coefficient in a[1].items():
        average = term if term.type == "scalar" else make("mean_batch", term)
        result = _plus(result, (0.0, {average: coefficient}))
    return result


def _spread(op: str, power: int) -> Callable[[Form], Form]:
    def rewrite(a: Form) -> Form:
        varying = {term: c for term, c in a[1].items() if term.type != "scalar"}
        if not varying:
            return 0.0, {}
        lead, rest = _normal((0.0, varying))
        return 0.0, {make(op, node_of(rest)): abs(lead) ** power}

    return rewrite


def _detach(a: Form) -> Form:
    result: Form = (a[0], {})
    for term, coefficient in a[1].items():
        held = make("detach", without_detach(term))
        result = _plus(result, (0.0, {held: coefficient}))
    return result


def without_detach(node: Node) -> Node:
    """The same value where no gradient flows anyway."""
    new: dict[Node, Node] = {}
    for part in order(node):
        if part.op == "detach":
            new[part] = new[part.args[0]]
        elif any(new[arg] is not arg for arg in part.args):
            new[part] = make(part.op, *[new[arg] for arg in part.args])
        else:
            new[part] = part
    return node if new[node] is node else canonical_form(new[node])


def _cast(mask: Node) -> Form:
    if mask.op == "not":
        return 1.0, {make("cast", mask.args[0]): -1.0}
    return _single(make("cast", mask))


def _where(mask: Node, a: Form, b: Form) -> Form:
    if mask.op == "not":
        mask, a, b = mask.args[0], b, a
    if _is_tame(a) and _is_tame(b):
        return _plus(b, _product(_cast(mask), _plus(a, b, -1)))
    return _single(make("where", mask, node_of(a), node_of(b)))


def _mean_masked(a: Form, mask: Node) -> Form:
    inner = make("cast", mask).type
    # The mean over nothing is 0, so what does not vary inside the mask is multiplied by whether there is anything.
    anything = _single(make("mean_masked", make("cast", mask), mask))
    result = _times(anything, a[0])
    for term, coefficient in a[1].items():
        if term.op == "cast" and (term.args[0] is mask or make("not", term.args[0]) is mask):
            part = anything if term.args[0] is mask else (0.0, {})
        else:
            part = _single(make("mean_masked", term, mask)) if term.type == inner else _product(_single(term), anything)
        result = _plus(result, part, coefficient)
    return result


def _mask(node: Node) -> Node:
    """A boolean as a comparison of a normal form with 0, perhaps negated, or logic on such ones."""
    if not node.args:
        return node
    given = [arg.cache["canonical"] for arg in node.args]
    if node.op == "not":
        return given[0].args[0] if given[0].op == "not" else make("not", given[0])
    if node.op in ("and", "or"):
        return given[0] if given[0] is given[1] else make(node.op, *sorted(given, key=_digest))
    first, second = (given[1], given[0]) if node.op in ("lt", "le") else (given[0], given[1])
    apart = _plus(first, second, -1)
    lead, rest = _normal(apart)
    left = without_detach(node_of(rest))
    if MASKS[FLOATS.index(left.type)] != node.type:
        raise ProgramError("The difference has lost its items.")
    if node.op in ("eq", "ne"):
        return make(node.op, left, const(0))
    strict = node.op in ("lt", "gt")
    if lead > 0:
        return make("gt" if strict else "ge", left, const(0))
    return make("not", make("ge" if strict else "gt", left, const(0)))


_REWRITES: dict[str, Callable[..., Form]] = {
    "add": _plus,
    "sub": lambda a, b: _plus(a, b, -1),
    "neg": lambda a: _times(a, -1),
    "mul": _product,
    "div": _divide,
    "square": lambda a: _raised(a, 2),
    "pow": _power,
    "exp": _exp,
    "expm1": lambda a: _plus(_exp(a), (-1.0, {})),
    "log": _log,
    "log1p": lambda a: _log(_plus(a, (1.0, {}))),
    "softplus": _softplus,
    "logsigmoid": lambda a: _times(_softplus(_times(a, -1)), -1),
    "sigmoid": _sigmoid,
    "tanh": lambda a: _plus(_times(_sigmoid(_times(a, 2)), 2), (-1.0, {})),
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
