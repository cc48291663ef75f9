"""MathQA: word problems with an operation program; the target is the program and the number of the right option."""

import re
from fractions import Fraction

from lossmith.errors import DataError
from lossmith.tasks._choices import right_option
from lossmith.tasks._fields import Fields
from lossmith.tasks._numbers import read_number, write_number
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import QUESTION_TEMPLATE, fill

MATHQA = CompletionRecord(
    name="mathqa",
    kind="math",
    title="math problems with an operation program; the program's steps, then a number",
    citation=(
        "Aida Amini et al. MathQA: towards interpretable math word problem solving with operation-based formalisms. "
        "NAACL 2019. https://math-qa.github.io"
    ),
    licence="Apache-2.0",
    source="https://math-qa.github.io, MathQA.zip: dev.json and test.json",
    splits="train and validation (400 rows, seed 20240) are the official dev file; test is the official one",
    split_sizes=(4075, 400, 2985),
    instruction=(
        "Solve the problem. Write every step as <<operation(a,b)>>, where n0, n1, ... are the numbers of the problem "
        "in order, #0, #1, ... earlier results and const_2 the constant 2, and end with #### and the number."
    ),
    hub="allenai/math_qa",
    # The hub's own files need a script, which is never run; this branch holds the same rows as parquet.
    hub_revision="refs/convert/parquet",
    layout="`Problem`, `options` (such as `a ) 38 , b ) 27.675 , ...`), `correct` and `linear_formula`",
)

NOT_A_NUMBER = "have a right option that is not one number and are left out, as in the paper"
"""Completes "3 of 10 train rows ..."."""

_LETTERS = "abcde"
_PREFIX = r"(?:[a-e] \) )?(?P<money>(?:rs|s) ?[.:]? ?|euro |\[ ?|\$ ?)?(?P<word>(?:[a-z][a-z ]*[=:.]? ?)?)"
_NUMBER = r"(?P<sign>[-+]? ?)(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\. ?\d+)"
_SUFFIX = r"(?P<unit>[a-z%$°²³. \])]*)"
_OPTION = re.compile(_PREFIX + _NUMBER + _SUFFIX)
_EXPONENT = re.compile(r"(?<=[0-9] )((?:sq )?(?:mm|cm|dm|m|km|ft|in|inch|inches|meters?|metres?)) ?\^? ?[23]\b")
# Words that make the digits a part of a larger expression.
_FACTORS = re.compile(r"\b(?:pi|sqrt|root|x(?! =)|[mb]illion|thousand|hundred|lakh|crore|dozen)\b")
_PER = re.compile(r"(?<=[a-z]) / (?=(?:h|hr|hour|min|s|sec)\b)")


def read_row(fields: Fields) -> Problem | None:
    """`Question: ...` -> `<<add(n0,n1)>> <<divide(#0,const_2)>> #### 38.0`, or None where the option is no number."""
    question = fields.text("question", "Problem")
    number = option_number(_right_option(fields))
    if number is None:
        fields.note(NOT_A_NUMBER)
        return None
    steps = [step.strip() for step in fields.text("program", "linear_formula").split("|")]
    return Problem(
        id=fields.id,
        prompt=fill(QUESTION_TEMPLATE, {"question": question}),
        question=question,
        target=" ".join([*(f"<<{step}>>" for step in steps if step), f"#### {_as_float(number)}"]),
        answer=write_number(number),
    )


def split_options(options: str) -> tuple[str, ...]:
    """The five options of a released `options` string, split at their letters and never at a comma alone.

    Raises:
        ValueError: If the letters a to e do not follow one another.

    Example:
        >>> split_options("a ) rs . 1,000 , b ) 2 , 3 , c ) d ) 57 , d ) 1 / 2 , e ) none of these")
        ('rs . 1,000', '2 , 3', 'd ) 57', '1 / 2', 'none of these')
        >>> split_options("['a ) 1,000', 'b ) 20', 'c ) 3', 'd ) 4', 'e ) 5']")
        ('1,000', '20', '3', '4', '5')
    """
    text = options.strip()
    quoted = text.startswith("[") and text.endswith("]")
    text = text[1:-1] if quoted else text
    starts: list[re.Match[str]] = []
    for letter in _LETTERS:
        before = r"\s*" if letter == "a" else r"\s*,\s*"
        pattern = re.compile(rf"{before}['\"]?{letter}\s*\)\s*")
        found = pattern.match(text) if letter == "a" else pattern.search(text, starts[-1].end())
        if found is None:
            raise ValueError(f"no option {letter}")
        starts.append(found)
    ends = [start.start() for start in starts[1:]] + [len(text)]
    pieces = [text[start.end() : end].strip() for start, end in zip(starts, ends, strict=True)]
    return tuple(piece.rstrip("'\"").rstrip() if quoted else piece for piece in pieces)


def option_number(option: str) -> Fraction | None:
    """The number that an option is, units and currency aside; None for fractions, ratios, lists, roots and words.

    Example:
        >>> [str(option_number(text)) for text in ("rs . 1,500", "− 7 %", "54 cm 2", "d ) 57", ". 09")]
        ['1500', '-7', '54', '57', '9/100']
        >>> [option_number(text) for text in ("1 / 16", "3 : 4", "2,4", "52 π", "w - 4", "none of these")]
        [None, None, None, None, None, None]
    """
    text = _PER.sub(" per ", " ".join(re.sub("[−–]", "-", option.lower()).replace(")", " )").split()))
    found = _OPTION.fullmatch(_EXPONENT.sub(r"\1", text))
    if found is None or _FACTORS.search(f"{found['word']} {found['unit']}"):
        return None
    sign = found["sign"].strip()
    if sign and found["word"].strip():
        return None
    return read_number(sign + found["digits"].replace(" ", ""))


def _right_option(fields: Fields) -> str:
    if fields.has("choices"):
        choices = fields.texts("choices")
        return choices[right_option(fields, _LETTERS[: len(choices)], fields.value("label"))]
    written = fields.text("options")
    try:
        options = split_options(written)
    except ValueError as error:
        raise DataError(f"{fields} must have options `a ) ... , b ) ...` to e, got {written!r} ({error}).") from error
    return options[right_option(fields, _LETTERS, fields.text("correct"))]


def _as_float(number: Fraction) -> str:
    """As the paper's targets write it: 38.0."""
    written = write_number(number)
    return written if "." in written else f"{written}.0"
