"""Linear forms, what the normal form computes with: sums with coefficients, products of powers, one leading sign.

Coefficients are finite and lose no digits: what would give another one raises, and stays as it was written.
"""

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from lossmith.discovery.program.hashes import digest, flat
from lossmith.discovery.program.nodes import Node, const, make
from lossmith.discovery.program.operators import OPERATORS
from lossmith.discovery.program.types import ProgramError

Form = tuple[float, dict[Node, float]]
"""A number plus coefficients of nodes that are no sums: `k + sum c_i t_i`."""
MAX_DISTRIBUTED = 12
"""Terms of a sum that a single factor is multiplied into; beyond, the product stays."""
VANISHED = 1e-12
"""A sum of coefficients this small beside its terms is 0 but for rounding."""
_TINY, _HUGE = sys.float_info.min, sys.float_info.max
"""Below the first a float has lost digits."""


def node_of(form: Form) -> Node:
    """The expression of a linear form: terms in the order of their digests, the number last."""
    number, terms = form
    total: Node | None = None
    for term in _sorted(terms):
        factor = terms[term]
        part = term if factor == 1 else make("mul", const(factor), term)
        total = part if total is None else make("add", total, part)
    if total is None:
        return const(number)
    return total if number == 0 else make("add", total, const(number))


def _sorted(nodes: dict[Node, Any]) -> Iterable[Node]:
    return sorted(nodes, key=digest) if len(nodes) > 1 else nodes


def single(node: Node) -> Form:
    """A node that is no sum."""
    return 0.0, {node: 1.0}


def plus(a: Form, b: Form, factor: float = 1.0) -> Form:
    """`a + factor * b`."""
    terms = dict(a[1])
    number, more = b if factor == 1 else times(b, factor)
    for term, coefficient in more.items():
        _add(terms, term, coefficient)
    return _sum(a[0], number), terms


def _add(terms: dict[Node, float], term: Node, coefficient: float) -> None:
    old = terms.get(term)
    new = coefficient if old is None else _sum(old, coefficient)
    if new == 0 and term.tame:
        terms.pop(term, None)
    else:
        terms[term] = new


def _sum(a: float, b: float) -> float:
    total, size = a + b, abs(a) + abs(b)
    if size > _HUGE:
        raise ProgramError("A sum of coefficients is too large.")
    return 0.0 if abs(total) <= VANISHED * size else total


def times_exactly(a: float, b: float) -> float:
    """The product of two coefficients.

    Raises:
        ProgramError: If it is too large for a float, or so small that digits are lost.
    """
    result = a * b
    if not _TINY <= abs(result) <= _HUGE and (result != 0 or (a != 0 and b != 0)):
        raise ProgramError("A coefficient is too large or too small.")
    return result


def times(form: Form, factor: float) -> Form:
    """`factor * form`; 0 times what may be infinite stays."""
    if factor == 1:
        return form
    if factor == 0:
        return 0.0, {term: 0.0 for term in form[1] if not term.tame}
    return times_exactly(form[0], factor), {t: times_exactly(coefficient, factor) for t, coefficient in form[1].items()}


def lead_of(form: Form) -> float:
    """Coefficient of the first term that has one; 0 for a number alone."""
    terms = [term for term, coefficient in form[1].items() if coefficient != 0]
    if not terms:
        return 0.0
    return form[1][terms[0] if len(terms) == 1 else min(terms, key=digest)]


def normal(form: Form) -> tuple[float, Form]:
    """(c, form / c) with the leading coefficient of the second 1; (1, form) for a number alone."""
    lead = lead_of(form)
    return (1.0, form) if lead in (0.0, 1.0) else (lead, _scaled_down(form, lead))


def _scaled_down(form: Form, lead: float) -> Form:
    return _ratio(form[0], lead), {term: _ratio(coefficient, lead) for term, coefficient in form[1].items()}


def _ratio(a: float, b: float) -> float:
    result = a / b
    if not _TINY <= abs(result) <= _HUGE and a != 0:
        raise ProgramError("A ratio of coefficients is too large or too small.")
    return result


def is_tame(form: Form) -> bool:
    """Whether it is finite at every finite input."""
    return all(term.tame for term in form[1])


def has_kinks_apart(form: Form) -> bool:
    """Whether it is finite at every finite input, and no kink of a function of it lasts: nothing in it is held."""
    return all(term.tame and not term.held for term in form[1])


def _factors(term: Node) -> dict[Node, int]:
    """A node that is no sum as base -> whole exponent > 0; what divides is a base `x ** -1` of its own.

    So is `x ** 0`, which is left where `x` may not be finite.
    """
    if term.op not in ("mul", "pow"):
        return {term: 1}
    found: dict[Node, int] = {}
    for part in flat(term, "mul"):
        base, exponent = part, 1
        if part.op == "pow" and (power := float(part.args[1].value or 0)).is_integer() and power != 0:
            base, exponent = part.args[0], int(power)
        if exponent < 0:
            base, exponent = make("pow", base, const(-1)), -exponent
        found[base] = found.get(base, 0) + exponent
    return found


def _monomial(factors: dict[Node, int]) -> Node:
    made: Node | None = None
    for base in _sorted(factors):
        exponent = factors[base]
        part = base
        if exponent > 1 and base.op == "pow" and base.args[1].value == -1:
            part = make("pow", base.args[0], const(-exponent))
        elif exponent > 1:
            part = make("pow", base, const(exponent))
        made = part if made is None else make("mul", made, part)
    assert made is not None
    return made


def _as_product(form: Form) -> tuple[float, dict[Node, int]]:
    """A form as a number times factors; a sum becomes one factor with leading coefficient 1."""
    number, terms = form
    if number == 0 and len(terms) == 1:
        ((term, coefficient),) = terms.items()
        if coefficient != 0:
            return coefficient, _factors(term)
    factor, rest = normal(form)
    return factor, {node_of(rest): 1}


def product(a: Form, b: Form) -> Form:
    """`a * b`; a single factor is multiplied into a sum that is not too long."""
    for one, other in ((a, b), (b, a)):
        if not one[1]:
            return times(other, one[0])
    for one, other in ((a, b), (b, a)):
        if one[0] == 0 and len(one[1]) == 1 and 1 < len(other[1]) + (other[0] != 0) <= MAX_DISTRIBUTED:
            return _distributed(one, other)
    first, factors = _as_product(a)
    second, more = _as_product(b)
    return 0.0, {_monomial(_merged(factors, more)): times_exactly(first, second)}


def _merged(factors: dict[Node, int], more: dict[Node, int]) -> dict[Node, int]:
    merged = dict(factors)
    for base, exponent in more.items():
        merged[base] = merged.get(base, 0) + exponent
    return merged


def _distributed(one: Form, other: Form) -> Form:
    number, scaled = times(one, other[0])
    terms = dict(scaled)
    first, factors = _as_product(one)
    for term, coefficient in other[1].items():
        second, more = _as_product((0.0, {term: coefficient}))
        _add(terms, _monomial(_merged(factors, more)), times_exactly(first, second))
    return _sum(number, 0.0), terms


def raised(form: Form, exponent: int) -> Form:
    """`form ** exponent`."""
    if not form[1]:
        return evaluated("pow", [form[0], float(exponent)]) or single(make("pow", const(form[0]), const(exponent)))
    number, factors = _as_product(form)
    powers: dict[Node, int] = {}
    for base, power in factors.items():
        # x * 1/x is not 1 at 0, so a reciprocal is a factor of its own and never cancels.
        powers[base if exponent > 0 else make("pow", base, const(-1))] = power * abs(exponent)
    with np.errstate(all="ignore"):
        scale = float(np.power(number, float(exponent)))
    if not _TINY <= abs(scale) <= _HUGE:
        return single(make("pow", node_of(form), const(exponent)))
    return 0.0, {_monomial(powers): scale}


def evaluated(op: str, numbers: list[float]) -> Form | None:
    """The value of an operator on numbers alone, where it is finite."""
    with np.errstate(all="ignore"):
        value = float(OPERATORS[op].numpy(*numbers))
    return (value, {}) if math.isfinite(value) else None
