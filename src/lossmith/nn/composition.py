"""Composition strings: `0.6*cross_entropy + 0.4*lovasz_softmax[answer]`, read by Python's own parser, never run."""

import ast
import math
import re
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import CompositionError, ObjectiveInputError
from lossmith.objectives import ObjectiveRecord, get_record

MAX_LENGTH = 2000
_SHOWN = 40
"""Characters of the string that a message shows on each side of its caret."""


@dataclass(frozen=True)
class Term:
    """One weighted loss of a composition."""

    record: ObjectiveRecord
    weight: float = 1.0
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Only those written in the string and different from the default."""
    scope: str | None = None
    """Name of the label scope, or None for all labels."""
    written: frozenset[str] = field(default=frozenset(), compare=False)
    """Hyper-parameters written in the string, defaults included: a keyword must not contradict them."""

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        call = f"{self.record.name}({inside})" if inside else self.record.name
        return f"{call}[{self.scope}]" if self.scope else call


@dataclass(frozen=True)
class Composition:
    """A weighted sum of losses; `str()` gives the canonical string that builds it again."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        parts: list[str] = []
        for term in self.terms:
            size = abs(term.weight)
            sign = "-" if term.weight < 0 else "+"
            body = str(term) if size == 1 else f"{_number(size)}*{term}"
            parts.append(body if not parts and sign == "+" else f"{sign} {body}" if parts else f"-{body}")
        return " ".join(parts)

    @property
    def required(self) -> tuple[str, ...]:
        """Sizes (`num_classes`, `embedding_dim`) that some term needs."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.record.required))

    @property
    def reads_embeddings(self) -> bool:
        """Whether some term reads embeddings, not only logits."""
        return any(term.record.family == "metric" for term in self.terms)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def parse_composition(text: str) -> Composition:
    """Read a composition string.

    The grammar is that of Python expressions, cut down to numbers, `+ - * /`, parentheses, loss names,
    `name(hyperparameter=literal)` and a label scope `name[scope]`. Nothing is evaluated.

    Args:
        text: For example `"0.6*cross_entropy + 0.4*lovasz_softmax"` or `"focal(gamma=1)*0.5 + cross_entropy*0.5"`.

    Returns:
        The terms in the order written, aliases and defaults resolved.

    Raises:
        CompositionError: With a caret under the place that cannot be read.

    Example:
        >>> str(parse_composition("focal(gamma=1)*0.5 + 0.5 * lovasz"))
        '0.5*focal(gamma=1.0) + 0.5*lovasz_softmax'
    """
    if not text.strip():
        raise CompositionError("A composition must name at least one loss, got an empty string.")
    if len(text) > MAX_LENGTH:
        raise CompositionError(f"A composition must be at most {MAX_LENGTH} characters long, got {len(text)}.")
    text = text.strip().replace("\n", " ")
    for place, character in enumerate(text):
        if not character.isascii() or not character.isprintable():
            raise _at(text, place, f"A composition is plain ASCII, got {character!r}")
        if character == "#":
            raise _at(text, place, "A composition has no comments")
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        # The parser reports an early end as offset 0.
        raise _at(text, error.offset - 1 if error.offset else len(text), "This composition cannot be read") from None
    except (ValueError, MemoryError, RecursionError):
        raise CompositionError("This composition is nested too deeply to be read.") from None
    try:
        return Composition(tuple(_sum(tree.body, 1.0, text)))
    except RecursionError:
        raise CompositionError("This composition is nested too deeply to be read.") from None


def _at(text: str, place: int, message: str, more: str = "") -> CompositionError:
    """An error with a caret under `place`; long strings are cut around it, and `more` follows it."""
    place = min(max(place, 0), len(text))
    start, end = max(place - _SHOWN, 0), min(place + _SHOWN, len(text))
    left, right = "..." if start else "", "..." if end < len(text) else ""
    end_mark = "" if message.endswith(("?", ".")) else ":"
    lines = [f"{message}{end_mark}", f"  {left}{text[start:end]}{right}", f"  {' ' * (len(left) + place - start)}^"]
    return CompositionError("\n".join([*lines, *textwrap.wrap(more, 100)]))


def _sum(node: ast.expr, factor: float, text: str) -> list[Term]:
    """Terms of an expression, each weight multiplied by `factor`."""
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            sign = 1.0 if isinstance(node.op, ast.Add) else -1.0
            return _sum(node.left, factor, text) + _sum(node.right, sign * factor, text)
        case ast.BinOp(op=ast.Mult()):
            left, right = _constant(node.left), _constant(node.right)
            if (left is None) == (right is None):
                what = "no number" if left is None else "no loss"
                raise _at(text, node.col_offset, f"A term is a number times a loss, this product has {what}")
            return _sum(node.right if right is None else node.left, factor * (left or right or 0.0), text)
        case ast.BinOp(op=ast.Div()):
            divisor = _constant(node.right)
            if divisor is None or divisor == 0:
                raise _at(text, node.right.col_offset, "A loss can only be divided by a number other than 0")
            return _sum(node.left, factor / divisor, text)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _sum(node.operand, -factor if isinstance(node.op, ast.USub) else factor, text)
        case ast.Name() | ast.Call() | ast.Subscript():
            if factor == 0 or not math.isfinite(factor):
                raise _at(text, node.col_offset, f"A weight must be a finite number other than 0, this is {factor}")
            return [_term(node, factor, text)]
        case ast.Constant():
            raise _at(text, node.col_offset, "A term needs a loss, this is only a number")
        case _:
            raise _at(text, node.col_offset, "Only + - * / ( ), numbers, loss names and name(key=value) can stand here")


def _constant(node: ast.expr) -> float | None:
    """Value of an expression made of numbers only, or None where a loss is in it."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            # An int of 400 digits overflows a float; as infinity it is refused with every other such weight.
            return float(value) if abs(value) <= sys.float_info.max else math.inf
        case ast.UnaryOp(op=ast.USub()):
            inner = _constant(node.operand)
            return None if inner is None else -inner
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            left, right = _constant(node.left), _constant(node.right)
            if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
                return None
            return left * right if isinstance(node.op, ast.Mult) else left / right
        case _:
            return None


def _term(node: ast.expr, weight: float, text: str) -> Term:
    scope = None
    if isinstance(node, ast.Subscript):
        if not isinstance(node.slice, ast.Name):
            raise _at(text, node.slice.col_offset, "A label scope is a plain name, as in focal[answer]")
        scope, node = node.slice.id, node.value
    given: dict[str, tuple[Any, int]] = {}
    called = node
    if isinstance(node, ast.Call):
        if node.args:
            raise _at(text, node.args[0].col_offset, "Hyper-parameters are written as name=value")
        called, given = node.func, _keywords(node, text)
    if not isinstance(called, ast.Name):
        raise _at(text, called.col_offset, "A loss is named by a plain word")
    try:
        record = get_record(called.id)
    except ObjectiveInputError as error:
        raise _quoting(error, text, called.col_offset) from None
    for name, (value, place) in given.items():
        try:
            check_hyperparameters(record, {name: value})
        except ObjectiveInputError as error:
            raise _quoting(error, text, place) from None
    hyperparameters = check_hyperparameters(record, {name: value for name, (value, _) in given.items()})
    return Term(record, weight, hyperparameters, scope, frozenset(given))


def _quoting(error: ObjectiveInputError, text: str, place: int) -> CompositionError:
    """The sentences of `error` with a caret; a list of what is known comes after it, where it hides nothing."""
    sentence, *names = re.split(r" (?=Known: |It takes )", str(error), maxsplit=1)
    return _at(text, place, sentence, "".join(names))


def _keywords(node: ast.Call, text: str) -> dict[str, tuple[Any, int]]:
    """Hyper-parameter -> its value and its place in the text."""
    given: dict[str, tuple[Any, int]] = {}
    for keyword in node.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise _at(
                text, keyword.value.col_offset, "A hyper-parameter must be a number, True, False or 'text'"
            ) from None
        if keyword.arg is None or not isinstance(value, bool | int | float | str):
            raise _at(text, keyword.value.col_offset, "A hyper-parameter must be a number, True, False or 'text'")
        if keyword.arg in given:
            raise _at(text, keyword.col_offset, f"`{keyword.arg}` is given twice")
        given[keyword.arg] = (value, keyword.col_offset)
    return given


def check_hyperparameters(record: ObjectiveRecord, given: dict[str, Any]) -> dict[str, Any]:
    """The given hyper-parameters in signature order, in the type of their default, defaults dropped.

    Raises:
        ObjectiveInputError: For an unknown name (with the nearest one) or a value of another kind.
    """
    known = record.hyperparameters
    for name in given:
        if name not in known:
            accepted = f"It takes {', '.join(f'`{n}`' for n in known)}." if known else "It has none."
            raise ObjectiveInputError(
                f"'{record.name}' has no hyper-parameter `{name}`.{did_you_mean(name, known)} {accepted}"
            )
    values = {name: _in_type_of(default, name, given[name]) for name, default in known.items() if name in given}
    return {name: value for name, value in values.items() if value != known[name]}


def _in_type_of(default: Any, name: str, value: Any) -> Any:
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and not abs(value) <= sys.float_info.max:
            raise ObjectiveInputError(f"`{name}` must be a finite number, got {str(value)[:20]}.")
        if fits and isinstance(default, float):
            return float(value)
        fits = fits and float(value).is_integer()
        value = int(value) if fits else value
    else:
        fits = isinstance(value, type(default))
    if not fits:
        raise ObjectiveInputError(f"`{name}` must be of type {type(default).__name__}, got {value!r}.")
    return value
