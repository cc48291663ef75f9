"""SVAMP: one- and two-step problems; the steps of the target are worked out from the gold equation."""

import ast
import operator
from fractions import Fraction

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields
from lossmith.tasks._numbers import read_number, write_number
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import MATH_INSTRUCTION, QUESTION_TEMPLATE, fill

SVAMP = CompletionRecord(
    name="svamp",
    kind="math",
    title="arithmetic word problems of one or two steps (a challenge set)",
    citation=(
        "Arkil Patel, Satwik Bhattamishra, Navin Goyal. Are NLP models really able to solve simple math word problems? "
        "NAACL 2021. https://arxiv.org/abs/2103.07191"
    ),
    licence="MIT",
    source="https://github.com/arkilpatel/SVAMP, commit 689d7ccac74b9983a2ac7cc3b264f441b99e7c53, SVAMP.json",
    splits="80/10/10, stratified by type, seed 20240: SVAMP was made as a test set and has no official split",
    split_sizes=(800, 100, 100),
    instruction=MATH_INSTRUCTION,
    hub="ChilleD/SVAMP",
    layout="`Body`, `Question`, `Equation` (such as `( 692.0 - 458.0 )`) and `Answer`",
)

_OPERATIONS = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def read_row(fields: Fields) -> Problem | None:
    """`Question: ...` -> `<<692+692=1384>> <<1384-458=926>> #### 926`, or None if the answer is another."""
    question = fields.text("question") if fields.has("question") else _question(fields)
    equation, written = fields.text("equation", "Equation"), fields.text("answer", "Answer")
    try:
        steps, result = solve(equation)
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise DataError(f"{fields} must have an equation of + - * / and numbers, got {equation!r}.") from error
    if read_number(written) != result:
        fields.note("have an answer that is not the value of their equation and are left out")
        return None
    answer = write_number(result)
    return Problem(
        id=fields.id,
        prompt=fill(QUESTION_TEMPLATE, {"question": question}),
        question=question,
        target=" ".join([*(f"<<{step}>>" for step in steps), f"#### {answer}"]),
        answer=answer,
    )


def solve(equation: str) -> tuple[list[str], Fraction]:
    """Steps of an equation, innermost first and left before right, and its exact value.

    Raises:
        ValueError: If it holds anything but numbers, + - * / and brackets.
        SyntaxError: If its brackets do not match.
        ZeroDivisionError: If it divides by zero.

    Example:
        >>> solve("( ( 692.0 + 692.0 ) - 458.0 )")
        (['692+692=1384', '1384-458=926'], Fraction(926, 1))
    """
    steps: list[str] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return Fraction(repr(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
            raise ValueError(f"not arithmetic: {equation}")
        sign, apply = _OPERATIONS[type(node.op)]
        left, right = value(node.left), value(node.right)
        result = apply(left, right)
        steps.append(f"{_operand(left, first=True)}{sign}{_operand(right)}={write_number(result)}")
        return result

    return steps, value(ast.parse(equation.strip(), mode="eval").body)


def _operand(number: Fraction, *, first: bool = False) -> str:
    written = write_number(number)
    return f"({written})" if "/" in written or (written.startswith("-") and not first) else written


def _question(fields: Fields) -> str:
    body = fields.text("Body")
    return f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {fields.text('Question')}"
