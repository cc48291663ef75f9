"""Worked steps between `<<` and `>>`: parsed, compared with the target's, and counted by kind of error."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lossmith.evaluation.expressions import Expression, canonical, operands, parse_expression, skeleton, value
from lossmith.evaluation.programs import parse_call

OVERLAPS = ("iou", "overlap", "dice", "recall", "precision", "real_iou")
"""Agreement of predicted steps with the target's, higher is better."""
STEP_ERRORS = ("wrong_operators", "inverted_operands", "missing_steps", "extra_steps", "repetitions")
"""Kinds of errors, lower is better; `wrong_results` joins them where steps are arithmetic."""

_STEP = re.compile(r"<<([^<>]+)>>")


@dataclass(frozen=True, slots=True)
class Step:
    """One step, reduced to what comparisons need."""

    text: str
    """As written, without white space."""
    written: Hashable
    """Equal for steps that say the same in the same order: `48 / 2 = 24` and `$48/2=24.0`."""
    meaning: Hashable
    """Equal for steps that differ only by moving terms and factors: `2*3=6` and `3*2=6`."""
    left: Hashable
    """`meaning` of what is left of the first equals sign."""
    skeleton: str | None
    """Operators of the left side with their grouping; None for a step that cannot be parsed."""
    operands: tuple[Fraction | str, ...]
    """Operands of the left side, from left to right."""
    is_program: bool
    """Whether the step is an operation of a program, which states no result."""
    holds: bool
    """Whether every side has the value of the first (a side with decimals: rounded there); True without any."""


def find_steps(text: str) -> list[Step]:
    """The steps of a text, in order, repeated ones included.

    Example:
        >>> [(step.text, step.holds) for step in find_steps("<<48 / 2=24>> <<10/3=3.33>> <<2+2=5>> #### 5")]
        [('48/2=24', True), ('10/3=3.33', True), ('2+2=5', False)]
    """
    return [parse_step(inside) for inside in _STEP.findall(text)]


def parse_step(text: str) -> Step:
    """One step from what stands between `<<` and `>>`; any text is a step, what cannot be parsed is compared as text.

    Example:
        >>> parse_step("2*9=18").meaning == parse_step("$9 x 2 = 18.0").meaning
        True
        >>> parse_step("add(n0,n1)").meaning == parse_step("add(n1, n0)").meaning
        True
    """
    plain = "".join(text.split())
    call = parse_call(plain)
    if call is not None:
        named = ("call", call.operation, *call.operands)
        return Step(plain, named, call.canonical(), call.canonical(), call.skeleton(), call.operands, True, True)
    parsed = [parse_expression(side) for side in plain.split("=")]
    sides = [side for side in parsed if side is not None]
    if len(sides) < len(parsed):
        as_text = ("text", plain.casefold())
        return Step(plain, as_text, as_text, as_text, None, (), False, False)
    meanings = tuple(canonical(side) for side in sides)
    first = sides[0]
    return Step(
        text=plain,
        written=tuple((skeleton(side), operands(side)) for side in sides),
        meaning=meanings,
        left=meanings[0],
        skeleton=skeleton(first),
        operands=operands(first),
        is_program=False,
        holds=_all_equal(sides, plain.split("=")),
    )


def step_metrics(predicted: Sequence[Step], target: Sequence[Step]) -> dict[str, float]:
    r"""Agreement and errors of one answer's steps against the target's.

    P and L are the distinct steps of prediction and target (`Step.written`), i the number of common ones. Where both
    are empty the six overlaps are 1; where one is empty they are 0.

    Returns:
        - `iou` i / |P ∪ L|, `overlap` i / min(|P|, |L|), `dice` 2i / (|P| + |L|), `recall` i / |L|,
          `precision` i / |P|.
        - `real_iou`: the same as `iou` with steps of one meaning matched one to one; in [0, 1], at least `iou`, and the
          same with prediction and target exchanged.
        - `wrong_operators` and `inverted_operands`: shares of the wrong predicted steps (distinct ones whose meaning no
          step of the target has; 0 where there is none). The first have the operands of a missing step in its order
          with other operators or another grouping; the second its operators and grouping with its operands in another
          order. A step is counted in one of them at most, and the first goes first.
        - `missing_steps` |L \ P| / |L| and `extra_steps` |P \ L| / |L| (which may exceed 1; divided by 1 where the
          target has no step), and `repetitions`, the share of predicted steps that occurred before, beyond the number
          of times that the target has them.
        - `wrong_results`: share of predicted steps whose sides do not agree (see `Step.holds`) or cannot be read.
          Not defined for programs, and not in the result if the target has any.

    Example:
        >>> metrics = step_metrics(find_steps("<<9*2=18>> <<18*2=36>>"), find_steps("<<2*9=18>> <<18+2=20>>"))
        >>> [round(metrics[name], 3) for name in ("iou", "real_iou", "wrong_operators", "missing_steps")]
        [0.0, 0.333, 1.0, 1.0]
    """
    says, should = {step.written for step in predicted}, {step.written for step in target}
    wrong, missing = unmatched(predicted, target)
    kinds = [error_kind(step, missing) for step in wrong]
    metrics = {
        **_overlaps(len(says), len(should), len(says & should)),
        "real_iou": _real_iou(predicted, target),
        "wrong_operators": kinds.count("wrong_operators") / max(len(wrong), 1),
        "inverted_operands": kinds.count("inverted_operands") / max(len(wrong), 1),
        "missing_steps": len(should - says) / max(len(should), 1),
        "extra_steps": len(says - should) / max(len(should), 1),
        "repetitions": _repeated(predicted, target) / max(len(predicted), 1),
    }
    if not any(step.is_program for step in target):
        metrics["wrong_results"] = sum(not step.holds for step in predicted) / max(len(predicted), 1)
    return metrics


def unmatched(predicted: Sequence[Step], target: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """Distinct steps of each side whose meaning the other side does not have, in order."""
    says, should = {step.meaning for step in predicted}, {step.meaning for step in target}
    wrong = {step.written: step for step in reversed(predicted) if step.meaning not in should}
    missing = {step.written: step for step in reversed(target) if step.meaning not in says}
    return [*reversed(wrong.values())], [*reversed(missing.values())]


def error_kind(step: Step, missing: Sequence[Step]) -> str | None:
    """`wrong_operators`, `inverted_operands` or None: what a wrong step has in common with a missing one.

    Example:
        >>> error_kind(parse_step("2/48=0.04"), [parse_step("48/2=24")])
        'inverted_operands'
    """
    if step.skeleton is None:
        return None
    others = [other for other in missing if other.skeleton is not None and other.left != step.left]
    if any(other.operands == step.operands for other in others):
        return "wrong_operators"
    same_numbers = Counter(step.operands)
    if any(other.skeleton == step.skeleton and Counter(other.operands) == same_numbers for other in others):
        return "inverted_operands"
    return None


def _overlaps(says: int, should: int, common: int) -> dict[str, float]:
    if not says and not should:
        return dict.fromkeys(OVERLAPS[:-1], 1.0)
    return {
        "iou": common / (says + should - common),
        "overlap": common / max(min(says, should), 1),
        "dice": 2 * common / (says + should),
        "recall": common / max(should, 1),
        "precision": common / max(says, 1),
    }


def _real_iou(predicted: Sequence[Step], target: Sequence[Step]) -> float:
    says = Counter(meaning for _, meaning in {(step.written, step.meaning) for step in predicted})
    should = Counter(meaning for _, meaning in {(step.written, step.meaning) for step in target})
    matched = (says & should).total()
    union = says.total() + should.total() - matched
    return matched / union if union else 1.0


def _repeated(predicted: Sequence[Step], target: Sequence[Step]) -> int:
    allowed = Counter(step.written for step in target)
    counts = Counter(step.written for step in predicted)
    return sum(count - max(1, min(count, allowed[written])) for written, count in counts.items())


def _all_equal(sides: Sequence[Expression], texts: Sequence[str]) -> bool:
    values = [value(side) for side in sides]
    first = values[0]
    if first is None:
        return False
    return all(
        other is not None and abs(first - other) <= _rounding(text)
        for other, text in zip(values[1:], texts[1:], strict=True)
    )


def _rounding(text: str) -> Fraction:
    """Half a unit of the last decimal of a side that is one number with decimals; 0 for all others."""
    found = re.fullmatch(r"[^0-9.]?[^0-9.]?[0-9,]*\.([0-9]+)", text)
    return Fraction(1, 2 * 10 ** len(found[1])) if found else Fraction(0)
