"""Composition strings: `0.6*cross_entropy + 0.4*lovasz_softmax[answer]`, read by Python's own parser, never run."""

import ast
import itertools
import math
import re
import sys
import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.engines.miners import no_miner
from lossmith.errors import CompositionError, ObjectiveInputError
from lossmith.objectives import ObjectiveRecord, get_record, list_losses

MAX_LENGTH = 2000
MINING = ("miner", "miner_epsilon")
"""Settings of losses that a miner restricts."""
MEMORY = "memory_size"
"""Setting of losses that also compare with earlier batches."""
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
    phase: int = 0
    """Place of the term's sum in a schedule."""

    @property
    def required(self) -> tuple[str, ...]:
        """Sizes that must be given as keywords: those of proxies, and of a memory."""
        memory = ("embedding_dim",) if self.hyperparameters.get("memory_size") else ()
        return tuple(dict.fromkeys((*self.record.required, *memory)))

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        call = f"{self.record.name}({inside})" if inside else self.record.name
        return f"{call}[{self.scope}]" if self.scope else call


@dataclass(frozen=True)
class Composition:
    """A weighted sum of losses, or a schedule of such sums; `str()` gives the canonical string that builds it again."""

    terms: tuple[Term, ...]
    handovers: tuple[tuple[float, float], ...] = ()
    """Between one phase and the next: shares of training where the hand-over begins and ends."""

    def __str__(self) -> str:
        phases = ["".join(_signed(term) for term in phase) for phase in self.phases]
        text = _lead(phases[0])
        for phase, (start, end) in zip(phases[1:], self.handovers, strict=True):
            text += f" -> {_lead(phase)} @ {_number(start)}" + ("" if end == 1 else f":{_number(end)}")
        return text

    @property
    def phases(self) -> tuple[tuple[Term, ...], ...]:
        """The terms of each phase; one phase without a schedule."""
        return tuple(
            tuple(term for term in self.terms if term.phase == phase) for phase in range(len(self.handovers) + 1)
        )

    def shares(self, progress: float) -> tuple[float, ...]:
        """How much each phase counts at a share of training in [0, 1]; they sum to 1.

        Example:
            >>> parse_composition("cross_entropy -> focal @ 0.2:0.6").shares(0.3)
            (0.75, 0.25)
        """
        begun = [1.0, *(_ramp(progress, start, end) for start, end in self.handovers), 0.0]
        return tuple(now - later for now, later in itertools.pairwise(begun))

    @property
    def required(self) -> tuple[str, ...]:
        """Sizes (`num_classes`, `embedding_dim`) that some term needs."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.required))

    @property
    def reads_embeddings(self) -> bool:
        """Whether some term reads embeddings, not only logits."""
        return any(term.record.family == "metric" for term in self.terms)


def _signed(term: Term) -> str:
    size = abs(term.weight)
    body = str(term) if size == 1 else f"{_number(size)}*{term}"
    return f" {'-' if term.weight < 0 else '+'} {body}"


def _lead(text: str) -> str:
    """Without the space and plus sign, or with the minus sign close, that `_signed` puts before a first term."""
    return text[3:] if text.startswith(" + ") else f"-{text[3:]}"


def _ramp(progress: float, start: float, end: float) -> float:
    if progress >= end:
        return 1.0
    # Rounded, so that 0.3 of the way from 0.2 to 0.6 prints as 0.25.
    return 0.0 if progress <= start else round((progress - start) / (end - start), 15)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def parse_composition(text: str) -> Composition:
    """Read a composition string.

    The grammar is that of Python expressions, cut down to numbers, `+ - * /`, parentheses, loss names,
    `name(hyperparameter=literal)` and a label scope `name[scope]`. Nothing is evaluated. Sums may follow each other
    over training: `A -> B @ 0.3` is A for the first 30% of it, then a linear hand-over that ends with training;
    `A -> B @ 0.3:0.5` ends it at 50% (`@ 0.3:0.3` switches at once), and a further `-> C @ 0.8` may follow.

    Args:
        text: For example `"0.6*cross_entropy + 0.4*lovasz_softmax"` or `"cross_entropy -> focal(gamma=1) @ 0.3"`.

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
    pieces = _pieces(text)
    terms: list[Term] = []
    handovers: list[tuple[float, float]] = []
    for phase, (arrow, start, end, at) in enumerate(pieces):
        if phase:
            after = handovers[-1][1] if handovers else 0.0
            handovers.append(
                _handover(text, arrow, at, pieces[phase + 1][0] if phase + 1 < len(pieces) else len(text), after)
            )
        elif at is not None:
            raise _at(text, at, "A place in training belongs to a hand-over, as in A -> B @ 0.3")
        terms += [replace(term, phase=phase) for term in _read_sum(text, start, end)]
    return Composition(tuple(terms), tuple(handovers))


def _pieces(text: str) -> list[tuple[int, int, int, int | None]]:
    """Phases of a schedule: place of the arrow, start and end of the sum, place of the `@` (None without)."""
    pieces: list[tuple[int, int, int, int | None]] = []
    arrow, start, at, quote = 0, 0, None, ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "@" and at is None:
            at = place
        elif text.startswith("->", place):
            pieces.append((arrow, start, place if at is None else at, at))
            arrow, start, at = place, place + 2, None
    return [*pieces, (arrow, start, len(text) if at is None else at, at)]


def _handover(text: str, arrow: int, at: int | None, end: int, after: float) -> tuple[float, float]:
    """The two shares of training behind an `@`; the second one is 1 unless given."""
    if at is None:
        raise _at(text, arrow, "A hand-over needs the share of training where it begins, as in A -> B @ 0.3")
    try:
        first, last = [float(number) for number in (*text[at + 1 : end].split(":"), "1")][:2]
    except ValueError:
        raise _at(text, at, "Behind @ stand one or two shares of training, as in @ 0.3 or @ 0.3:0.5") from None
    if not after <= first <= last <= 1:
        if after == 1 > first:
            raise _at(text, at, "The hand-over before this one ends at 1: give it an end, as in @ 0.3:0.5")
        raise _at(
            text, at, f"A hand-over must lie in {_number(after)} <= begin <= end <= 1, this is {first:g}:{last:g}"
        )
    return first, last


def _read_sum(text: str, start: int, end: int) -> list[Term]:
    """Terms of one phase, `text[start:end]`."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    try:
        tree = ast.parse(part.strip(), mode="eval")
    except SyntaxError as error:
        # The parser reports an early end as offset 0.
        place = start + error.offset - 1 if error.offset else start + len(part.strip())
        raise _at(text, place, "This composition cannot be read") from None
    except (ValueError, MemoryError, RecursionError):
        raise CompositionError("This composition is nested too deeply to be read.") from None
    try:
        for node in ast.walk(tree):
            # Places in the whole string, for the caret.
            if isinstance(node, ast.expr | ast.keyword):
                node.col_offset += start
        return _sum(tree.body, 1.0, text)
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
    if scope is not None and record.family in ("preference", "unpaired"):
        raise _at(text, called.col_offset, f"'{record.name}' reads no labels, so it has no label scope [{scope}]")
    for name, (value, place) in given.items():
        try:
            check_hyperparameters(record, {name: value})
        except ObjectiveInputError as error:
            raise _quoting(error, text, place) from None
    hyperparameters = check_hyperparameters(record, {name: value for name, (value, _) in given.items()})
    return Term(record, weight, hyperparameters, scope, frozenset(given))


def _quoting(error: ObjectiveInputError, text: str, place: int) -> CompositionError:
    """The sentences of `error` with a caret; a list of what is known comes after it, where it hides nothing."""
    sentence, *names = re.split(r" (?=Known: |It takes |`lossmith\.list_losses)", str(error), maxsplit=1)
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


def refer_to_another(record: ObjectiveRecord, name: str) -> str:
    """One sentence for a hyper-parameter that another objective has."""
    return f"'{record.name}' has no hyper-parameter `{name}`: use '{record.instead[name]}', which has it."


def no_memory(record: ObjectiveRecord) -> str:
    """One sentence for a metric loss that no cross-batch memory can serve."""
    why = "it compares rows with proxies" if record.proxy_shape else "it is computed from the whole batch"
    able = [other.name for other in list_losses("metric") if MEMORY in other.settings]
    return (
        f"'{record.name}' has no `{MEMORY}`: {why}, and has no form here that also compares with earlier batches, as "
        f"{', '.join(able[:-1])} and {able[-1]} have."
    )


def check_hyperparameters(record: ObjectiveRecord, given: dict[str, Any]) -> dict[str, Any]:
    """The given hyper-parameters and settings in their order, in the type of their default, defaults dropped.

    Raises:
        ObjectiveInputError: For an unknown name (with the nearest one) or a value of another kind.
    """
    known = {**record.hyperparameters, **record.settings}
    for name in given:
        if name in record.instead:
            raise ObjectiveInputError(refer_to_another(record, name))
        if name not in known and name in MINING:
            raise ObjectiveInputError(no_miner(record.name, name))
        if name not in known and name == MEMORY and record.family == "metric":
            raise ObjectiveInputError(no_memory(record))
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
