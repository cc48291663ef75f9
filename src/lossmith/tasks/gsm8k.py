"""GSM8K: grade-school problems with worked steps; the target is the steps' calculations and the result."""

import re

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields
from lossmith.tasks._numbers import read_number, write_number
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import MATH_INSTRUCTION, QUESTION_TEMPLATE, fill

GSM8K = CompletionRecord(
    name="gsm8k",
    kind="math",
    title="grade-school math problems; worked steps, then a number",
    citation=(
        "Karl Cobbe et al. Training verifiers to solve math word problems. 2021. https://arxiv.org/abs/2110.14168"
    ),
    licence="MIT",
    source=(
        "https://github.com/openai/grade-school-math, commit 3101c7d5072418e28b9008a6636bde82a006892c, "
        "grade_school_math/data"
    ),
    splits="official train and test; validation is 500 rows of train, seed 20240",
    split_sizes=(6973, 500, 1319),
    instruction=MATH_INSTRUCTION,
    hub="openai/gsm8k",
    hub_config="main",
    layout="`question` and `answer` (steps with <<48/2=24>>, then `#### 72`)",
)

_STEP = re.compile(r"<<[^<>]+>>")


def read_row(fields: Fields) -> Problem:
    """`Question: ...` -> `<<48/2=24>> <<48+24=72>> #### 72`; steps from `solution`, or from `answer` as released."""
    written = fields.text("answer")
    solution, mark, result = written.rpartition("####")
    if not mark:
        if "solution" not in fields.values:
            raise DataError(f"{fields} must have an `answer` that ends in `#### number`, got {written[-60:]!r}.")
        solution = str(fields.values["solution"] or "")
    number = read_number(result)
    if number is None:
        raise DataError(f"{fields} must have a number as its answer, got {result.strip()!r}.")
    answer = write_number(number)
    question = fields.text("question")
    return Problem(
        id=fields.id,
        prompt=fill(QUESTION_TEMPLATE, {"question": question}),
        question=question,
        target=" ".join([*_STEP.findall(solution), f"#### {answer}"]),
        answer=answer,
    )
