"""The metrics of the released segmentation-loss code, as it computes them: beside the corrected ones, to show the gap.

Its rules are reproduced with their defects (`docs/metrics.md` lists them); what would raise there is counted instead.
"""

import math
import re
from dataclasses import dataclass, field
from itertools import product

_NUMBER = re.compile(r"#### (\d+[\.,]*\d*)")
_LETTER = re.compile(r"Answer: (.)")
_COMMUTATIVE = {"+", "*", "add", "multiply"}


@dataclass(slots=True)
class ReleasedScore:
    """The released metrics of one answer."""

    metrics: dict[str, float]
    """By the names of the corrected metrics."""
    raises: bool
    """Whether the released code stops with an error on this pair: `float("1,234")`, or a step of brackets alone."""


@dataclass(slots=True)
class _Formula:
    operators: list[str]
    operands: list[float | str]
    result: float
    raised: bool

    def key(self) -> str:
        return repr((self.operators, self.operands, self.result))

    def equals(self, other: "_Formula") -> bool:
        if self.operators == other.operators and self.operands == other.operands:
            return True
        same = set(self.operands) == set(other.operands) and set(self.operators) == set(other.operators)
        return same and set(self.operators) <= _COMMUTATIVE


@dataclass(slots=True)
class _Reading:
    """A number as the released code reads it; `raised` once `float` would have stopped it."""

    raised: bool = field(default=False)

    def number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            found = re.match(r"\d+[\.,]+\d*", text)
        if found is None:
            return 0  # not 0.0: steps are told apart by how their numbers are printed
        try:
            return float(found[0])
        except ValueError:
            self.raised = True
            return math.nan


def released_math(predicted: str, target: str) -> ReleasedScore:
    """Released metrics of one generated text against its target.

    A number that the released code cannot read (`#### 1,234`) stops it; here the answer counts as wrong and `raises`
    is set. A step that stops it resembles no other step.

    Example:
        >>> released_math("#### 1,234", "#### 1,234").raises, released_math("#### -5", "#### -5").metrics["exact_match"]
        (True, 0.0)
    """
    said, should = _written_formulas(predicted), _written_formulas(target)
    match, match_raises = _same_number(predicted, target)
    distinct, wanted = set(said), set(should)
    common, union = len(distinct & wanted), len(distinct | wanted)
    formulas = {text: _formula(text) for text in distinct | wanted}
    wrong = [formulas[text] for text in distinct - wanted]
    missing = [formulas[text] for text in wanted - distinct]
    operators = {one.key() for one, other in product(wrong, missing) if _same_operands(one, other)}
    inverted = operators | {one.key() for one, other in product(wrong, missing) if _is_inverted(one, other)}
    found = sum(any(formulas[text].equals(formulas[other]) for other in wanted) for text in distinct)
    metrics = {
        "exact_match": float(match),
        "iou": _share(common, union),
        "overlap": _share(common, min(len(said), len(should))),
        "dice": _share(2 * common, len(said) + len(should)),
        "recall": _share(common, len(should)),
        "precision": _share(common, len(said)),
        "wrong_operators": _share(len(operators), len(wrong)),
        "inverted_operands": _share(len(inverted), len(wrong)),
        "real_iou": _share(found, union),
        "missing_steps": _share(len(missing), len(wanted)) if should else 1.0,
        "extra_steps": _share(len(wrong), len(wanted)),
        "repetitions": _share(len(said) - len(distinct), len(said)),
    }
    return ReleasedScore(metrics, match_raises or any(formula.raised for formula in formulas.values()))


def released_choice(predicted: str, target: str) -> float:
    """Released accuracy of one choice: 1 where the first character behind `Answer: ` is the same in both, else 0.

    Args:
        predicted: Prompt and generated answer, as one text.
        target: Prompt and right answer, as one text.

    Example:
        >>> released_choice("Question: ..? Answer: B", "Question: ..? Answer: B.")
        1.0
        >>> released_choice("Pick one. Answer: 5 or 6? Answer: A", "Pick one. Answer: 5 or 6? Answer: B")
        1.0
    """
    said, should = _LETTER.search(predicted), _LETTER.search(target)
    return float(said is not None and should is not None and said[1] == should[1])


def _written_formulas(text: str) -> list[str]:
    """What `re.findall(r"<<([^>]+)>>", text)` gives, in time linear in the text."""
    found = []
    start = text.find("<<")
    while start >= 0 and (end := text.find(">", start + 2)) >= 0:
        if end > start + 2 and text.startswith(">>", end):
            found.append(text[start + 2 : end])
            end += 1
        start = text.find("<<", end + 1)
    return found


def _same_number(predicted: str, target: str) -> tuple[bool, bool]:
    said, should = _NUMBER.search(predicted), _NUMBER.search(target)
    if said is None or should is None:
        return False, False
    try:
        return math.isclose(float(said[1]), float(should[1])), False
    except ValueError:
        return False, True


def _formula(text: str) -> _Formula:
    reading = _Reading()
    result = 0
    if re.search(r"[-+*/=]", text):
        operators = re.findall(r"[-+*/]", text)
        parts = re.split(r"[-+*/=]", text)
        if "=" in text:
            result = float(reading.number(parts.pop()))
    else:
        parts = re.findall(r"[^(),.]+", text)
        if not parts:
            return _Formula([], [text], 0.0, True)
        operators, parts = parts[:1], [part.removeprefix("CONST_") for part in parts[1:]]
    parts = parts[: len(operators) + 1]
    operands: list[float | str] = [*parts]
    if set(operators) & set("+-*/"):
        operands = [reading.number(part) for part in parts]
    return _Formula(operators, [text] if reading.raised else operands, result, reading.raised)


def _same_operands(one: _Formula, other: _Formula) -> bool:
    return one.operands == other.operands


def _is_inverted(one: _Formula, other: _Formula) -> bool:
    same = set(one.operands) == set(other.operands) and one.operators == other.operators
    return same and not one.equals(other)


def _share(count: int, of: int) -> float:
    return count / of if of else 0.0
