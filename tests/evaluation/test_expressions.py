"""Arithmetic of steps: values and equivalences by hand, values against an evaluation of random trees."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.evaluation.expressions import canonical, operands, parse_expression, skeleton, value
from lossmith.evaluation.programs import Call, parse_call

VALUES = {
    "48/2": 24,
    "$0.2*50": 10,
    "20%*50": 10,
    "20 % * 50": 10,
    "1,000*3": 3000,
    "(3+4)*2": 14,
    "3+4*2": 11,
    "[3+4]*2": 14,
    "2x3": 6,
    "2 × 3 · 4": 24,
    "7÷2": "7/2",
    "10-3-2": 5,
    "100/5/2": 10,
    "10−3": 7,
    "-3+5": 2,
    "5--3": 8,
    "-(2+3)": -5,
    "--4": 4,
    "2^3^2": 512,
    "2**3": 8,
    "-2^2": -4,
    "2^-1": "1/2",
    "4^0": 1,
    ".5+5.": "5.5",
    "2*-3": -6,
    "-3*2": -6,
    "8/-2*3": -12,
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items())
def test_values(text, expected):
    assert value(parse_expression(text)) == Fraction(expected)


@pytest.mark.parametrize("text", ["5/0", "5/(2-2)", "0^-1", "4^0.5", "2^99999999", "9^9^9", "((2^64)^64)^64", "1+1/0"])
def test_readable_without_a_value(text):
    assert parse_expression(text) is not None
    assert value(parse_expression(text)) is None


@pytest.mark.parametrize(
    "text",
    ["", "()", "2+", "*3", "1 2", "2x", "x", "5 apples", "7%3", "(2", "2)", "0.5.5", "2=2", "2(3)", "a+b", "1e5"],
)
def test_no_arithmetic(text):
    assert parse_expression(text) is None


@pytest.mark.parametrize("text", ["(" * 31 + "1" + ")" * 31, "-" * 399 + "1", "2^" * 199 + "2", "1" * 401, "1+" * 201])
def test_too_long_or_too_deep(text):
    assert parse_expression(text) is None


SAME = [
    ("48*2", "2*48"),
    ("2*3*4", "4*(2*3)"),
    ("100-50-30", "100-30-50"),
    ("3-2", "-2+3"),
    ("48/2*3", "3*48/2"),
    ("2*(3+4)", "(4+3)*2"),
    ("(1+2)+3", "1+(2+3)"),
    ("20%*50", "50*0.2"),
    ("1,000+2", "2+1000.0"),
]
DIFFERENT = [
    ("48/2", "2/48"),
    ("3-2", "2-3"),
    ("2*3", "6"),
    ("2*3", "2+3"),
    ("10-(3+2)", "10-3-2"),
    ("2*(3+4)", "2*3+4"),
    ("2^3", "3^2"),
    ("100/(5*2)", "100/5/2"),
    ("2*2", "2*2*2"),
    ("-(2+3)", "2+3"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equivalent(one, other):
    assert canonical(parse_expression(one)) == canonical(parse_expression(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_equivalent(one, other):
    assert canonical(parse_expression(one)) != canonical(parse_expression(other))


def test_operands_and_grouping():
    expression = parse_expression("5-(-10+2.5)*3")
    assert operands(expression) == (5, -10, Fraction(5, 2), 3)
    assert skeleton(expression) == "(.-((.+.)*.))"
    assert skeleton(parse_expression("-(2+3)")) == "-(.+.)"


def drawn(rng, depth):
    """Text, value and text with the operands of sums and products exchanged, of one random tree."""
    if depth == 0 or rng.random() < 0.2:
        number = rng.choice(["7", "2.5", "1,250", "30%", "0.04"])
        amount = Fraction(number.replace(",", "").rstrip("%")) / (100 if number.endswith("%") else 1)
        return number, amount, number
    left, a, left_moved = drawn(rng, depth - 1)
    right, b, right_moved = drawn(rng, depth - 1)
    operator = rng.choice("+-*/")
    if operator == "+":
        return f"({left}+{right})", a + b, f"({right_moved}+{left_moved})"
    if operator == "*":
        return f"({left}*{right})", a * b, f"({right_moved}*{left_moved})"
    if operator == "-" or b == 0:
        return f"({left}-{right})", a - b, f"({left_moved}-{right_moved})"
    return f"({left}/{right})", a / b, f"({left_moved}/{right_moved})"


@pytest.mark.parametrize("seed", range(40))
def test_random_trees(seed):
    text, expected, moved = drawn(random.Random(seed), depth=4)
    assert value(parse_expression(text)) == expected
    assert canonical(parse_expression(moved)) == canonical(parse_expression(text))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789.,+-*/^()%$x =#an", max_size=40))
def test_any_text_can_be_tried(text):
    expression = parse_expression(text)
    if expression is not None:
        assert value(expression) is None or isinstance(value(expression), Fraction)
        hash(canonical(expression))
    parse_call(text)


@pytest.mark.parametrize(
    "text", ["(" * 400, "9^" * 199 + "9", "1/" * 199 + "7", "(2^64)*" * 57 + "1", "," * 400, "a(" * 200]
)
def test_hostile_text_has_a_bounded_value_or_none(text):
    found = value(parse_expression(text))
    assert found is None or found.numerator.bit_length() < 10_000
    assert parse_call(text) is None


def test_calls():
    assert parse_call("Divide( #0 ,const_2)") == Call("divide", ("#0", "const_2"))
    assert parse_call("sqrt(n0)") == Call("sqrt", ("n0",))
    assert parse_call("add(-3.5,const_0.25)") == Call("add", ("-3.5", "const_0.25"))
    for text in (
        "add(n0,n1",
        "add()",
        "add(n0,)",
        "add(add(n0,n1),n2)",
        "48/2",
        "(3+4)",
        "f(a,b)+1",
        "f(" + "a," * 300,
    ):
        assert parse_call(text) is None, text


@pytest.mark.parametrize(
    ("operation", "commutes"), [("add", True), ("multiply", True), ("subtract", False), ("power", False)]
)
def test_calls_that_commute(operation, commutes):
    one, other = parse_call(f"{operation}(n0,n1)"), parse_call(f"{operation}(n1,n0)")
    assert (one.canonical() == other.canonical()) is commutes
    assert one != other
