"""Arithmetic as people write it between `<<` and `>>`, parsed by a real grammar and evaluated exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lossmith.evaluation.numbers import decimal

MAX_LENGTH = 400
"""Characters of a step; a longer one is not parsed."""
MAX_DEPTH = 30
"""Brackets, signs and powers within one another."""
MAX_BITS = 4096
"""Bits of a power; a larger one has no value."""

Operator = Literal["+", "-", "*", "/", "^"]


@dataclass(frozen=True, slots=True)
class Negated:
    """Minus something that is no number by itself: `-(2+3)`."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class Binary:
    """Two expressions and what is done with them."""

    operator: Operator
    left: "Expression"
    right: "Expression"


Expression = Fraction | Negated | Binary
"""A number, or numbers joined by operators."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<percent>\s*%)?"
    r"|(?P<symbol>\*\*|[-+*/^()]))"
)
_SPELLINGS = str.maketrans(
    {
        "×": "*",
        "·": "*",
        "÷": "/",
        "−": "-",
        "–": "-",
        "x": "*",
        "X": "*",
        "$": "",
        "€": "",
        "£": "",
        "[": "(",
        "]": ")",
    }
)
_BINDING: dict[str, int] = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 4}
_SIGN_BINDING = 3


class _Unreadable(Exception):
    """The text is no arithmetic, or beyond the bounds."""


def parse_expression(text: str) -> Expression | None:
    """Read one side of a step; None where it is no arithmetic.

    Numbers may have thousands commas, decimals, a currency sign (left out) and a percent sign (`20%` is 0.2). Products
    are written `*`, `x`, `×` or `·`, quotients `/` or `÷`, powers `^` or `**`; round and square brackets group. Powers
    bind tightest and to the right, then a leading minus, products and quotients, sums and differences, as in
    mathematics: `-2^2` is -4. At most 400 characters and 30 levels.

    Example:
        >>> str(value(parse_expression("(3+4) x 20%")))
        '7/5'
        >>> parse_expression("3 apples") is None
        True
    """
    if len(text) > MAX_LENGTH:
        return None
    try:
        reader = _Reader(_tokens(text.translate(_SPELLINGS)))
        expression = reader.expression(0, 0)
        reader.expect_end()
    except _Unreadable:
        return None
    return expression


def value(expression: Expression | None) -> Fraction | None:
    """Exact value; None for none, a division by zero, a root, or a power beyond 4,096 bits.

    Example:
        >>> value(parse_expression("1/3+1/6")), value(parse_expression("5/(2-2)")), value(parse_expression("9^9^9"))
        (Fraction(1, 2), None, None)
    """
    if expression is None or isinstance(expression, Fraction):
        return expression
    if isinstance(expression, Negated):
        inner = value(expression.of)
        return None if inner is None else -inner
    left, right = value(expression.left), value(expression.right)
    if left is None or right is None:
        return None
    if expression.operator == "+":
        return left + right
    if expression.operator == "-":
        return left - right
    if expression.operator == "*":
        return left * right
    if expression.operator == "/":
        return left / right if right else None
    return _power(left, right)


def canonical(expression: Expression) -> tuple:
    """A form that two expressions share if and only if one becomes the other by moving terms and factors.

    Sums and products are flattened and sorted, with a - b as a + (-b) and a / b as a times the inverse of b: `2*48`,
    `48*2` are one, `100-50-30` and `100-30-50` are one, `48/2*3` and `3*48/2` are one. Nothing is evaluated or
    multiplied out: `6` is not `2*3`, `a-(b+c)` is not `a-b-c`, `a/(b*c)` is not `a/b/c`.

    Example:
        >>> canonical(parse_expression("2*(3+4)")) == canonical(parse_expression("(4+3)*2"))
        True
        >>> canonical(parse_expression("48/2")) == canonical(parse_expression("2/48"))
        False
    """
    if isinstance(expression, Fraction):
        return ("number", str(expression))
    if isinstance(expression, Negated):
        return ("minus", canonical(expression.of))
    if expression.operator == "^":
        return ("^", canonical(expression.left), canonical(expression.right))
    if expression.operator in "+-":
        return ("+", *sorted(_terms(expression)))
    return ("*", *sorted(_factors(expression)))


def operands(expression: Expression) -> tuple[Fraction, ...]:
    """The numbers, from left to right.

    Example:
        >>> [str(number) for number in operands(parse_expression("5-(-10+2.5)"))]
        ['5', '-10', '5/2']
    """
    if isinstance(expression, Fraction):
        return (expression,)
    if isinstance(expression, Negated):
        return operands(expression.of)
    return (*operands(expression.left), *operands(expression.right))


def skeleton(expression: Expression) -> str:
    """The operators with their grouping, a dot for each number.

    Example:
        >>> skeleton(parse_expression("(3+4)*2")), skeleton(parse_expression("3+4*2"))
        ('((.+.)*.)', '(.+(.*.))')
    """
    if isinstance(expression, Fraction):
        return "."
    if isinstance(expression, Negated):
        return f"-{skeleton(expression.of)}"
    return f"({skeleton(expression.left)}{expression.operator}{skeleton(expression.right)})"


def _tokens(text: str) -> list[str | Fraction]:
    tokens: list[str | Fraction] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        found = _TOKEN.match(text, place, end)
        if found is None:
            raise _Unreadable
        if found["number"] is None:
            tokens.append("^" if found["symbol"] == "**" else found["symbol"])
        else:
            number = decimal(found["number"].replace(",", ""))
            if number is None:
                raise _Unreadable
            tokens.append(number / 100 if found["percent"] else number)
        place = found.end()
    return tokens


class _Reader:
    """Precedence climbing over a list of tokens."""

    def __init__(self, tokens: list[str | Fraction]):
        self._tokens = tokens
        self._place = 0

    def expression(self, binding: int, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise _Unreadable
        left = self._operand(depth)
        while isinstance(operator := self._peek(), str) and _BINDING.get(operator, -1) > binding:
            self._place += 1
            # A power takes another power on its right, everything else on its left.
            left = _joined(operator, left, self.expression(_BINDING[operator] - (operator == "^"), depth + 1))
        return left

    def expect_end(self) -> None:
        if self._place != len(self._tokens):
            raise _Unreadable

    def _operand(self, depth: int) -> Expression:
        token = self._peek()
        self._place += 1
        if isinstance(token, Fraction):
            return token
        if token == "(":
            inner = self.expression(0, depth + 1)
            if self._peek() != ")":
                raise _Unreadable
            self._place += 1
            return inner
        if token in ("-", "+"):
            inner = self.expression(_SIGN_BINDING, depth + 1)
            return inner if token == "+" else _negated(inner)
        raise _Unreadable

    def _peek(self) -> str | Fraction | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None


def _joined(operator: str, left: Expression, right: Expression) -> Binary:
    if operator == "+":
        return Binary("+", left, right)
    if operator == "-":
        return Binary("-", left, right)
    if operator == "*":
        return Binary("*", left, right)
    return Binary("/" if operator == "/" else "^", left, right)


def _negated(expression: Expression) -> Expression:
    if isinstance(expression, Fraction):
        return -expression
    return expression.of if isinstance(expression, Negated) else Negated(expression)


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        return None
    return Fraction(base ** int(exponent))


def _terms(expression: Expression) -> list[tuple]:
    if isinstance(expression, Binary) and expression.operator == "+":
        return [*_terms(expression.left), *_terms(expression.right)]
    if isinstance(expression, Binary) and expression.operator == "-":
        return [*_terms(expression.left), canonical(_negated(expression.right))]
    return [canonical(expression)]


def _factors(expression: Expression) -> list[tuple]:
    if isinstance(expression, Binary) and expression.operator == "*":
        return [*_factors(expression.left), *_factors(expression.right)]
    if isinstance(expression, Binary) and expression.operator == "/":
        return [*_factors(expression.left), ("inverse", canonical(expression.right))]
    return [canonical(expression)]
