"""Which kind of mistake an answer makes: one class per answer, for confusion views."""

from collections.abc import Sequence
from fractions import Fraction

from lossmith.evaluation.steps import Step, error_kind, unmatched

MATH_OUTCOMES = (
    "correct",
    "correct_other_steps",
    "unparsed",
    "wrong_final_answer",
    "extra_steps",
    "missing_steps",
    "wrong_result",
    "wrong_operators",
    "inverted_operands",
    "wrong_operands",
)
"""Classes of answers with worked steps, in the order in which they are asked for."""
CHOICE_OUTCOMES = ("correct", "wrong", "unparsed")
"""Classes of letters and of free text."""


def math_outcome(answer: Fraction | None, right: Fraction, predicted: Sequence[Step], target: Sequence[Step]) -> str:
    """The first of these classes that applies.

    1. `unparsed`: no number after `####`.
    2. `correct`: the number is right and so are the steps, up to their order and to moving terms and factors (a target
       without steps accepts any). `correct_other_steps`: the number is right, the steps are not those of the target.
    3. `wrong_final_answer`: the steps are right (or the target has none), the number is not.
    4. `extra_steps`: all steps of the target are there, and others. `missing_steps`: no step is wrong, some
       are missing.
    5. By the first wrong step, the one that later ones may only carry on: `wrong_result`: its left side is that of a
       missing step, its result is not. `wrong_operators`: it has the operands of a missing step in its order.
       `inverted_operands`: it has the operators of a missing step with its operands in another order.
       `wrong_operands`: it has the operators and the grouping of a missing step with other operands.
    6. Where the first wrong step resembles no missing one: `missing_steps` or `extra_steps` if the number of distinct
       steps is less or more than the target's, else `wrong_operands`.

    Example:
        >>> from lossmith.evaluation.steps import find_steps
        >>> target = find_steps("<<48/2=24>> <<48+24=72>>")
        >>> math_outcome(Fraction(71), Fraction(72), find_steps("<<48/2=23>> <<48+23=71>>"), target)
        'wrong_result'
    """
    if answer is None:
        return "unparsed"
    wrong, missing = unmatched(predicted, target)
    same_steps = not target or not (wrong or missing)
    if answer == right:
        return "correct" if same_steps else "correct_other_steps"
    if same_steps:
        return "wrong_final_answer"
    if not wrong or not missing:
        return "missing_steps" if missing else "extra_steps"
    return _first_error(wrong[0], missing) or _by_number(predicted, target)


def _first_error(step: Step, missing: Sequence[Step]) -> str | None:
    if any(other.left == step.left for other in missing):
        return "wrong_result"
    kind = error_kind(step, missing)
    if kind is None and step.skeleton is not None and any(other.skeleton == step.skeleton for other in missing):
        return "wrong_operands"
    return kind


def _by_number(predicted: Sequence[Step], target: Sequence[Step]) -> str:
    says, should = len({step.written for step in predicted}), len({step.written for step in target})
    if says == should:
        return "wrong_operands"
    return "missing_steps" if says < should else "extra_steps"
