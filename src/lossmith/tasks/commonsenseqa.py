"""CommonsenseQA: everyday questions with five options and no context."""

from lossmith.tasks._choices import choice_problem
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import CHOICE_INSTRUCTION

COMMONSENSEQA = CompletionRecord(
    name="commonsenseqa",
    kind="choice",
    title="everyday knowledge, five options",
    citation=(
        "Alon Talmor, Jonathan Herzig, Nicholas Lourie, Jonathan Berant. CommonsenseQA: a question answering challenge "
        "targeting commonsense knowledge. NAACL 2019. https://www.tau-nlp.org/commonsenseqa"
    ),
    licence="MIT",
    source=(
        "https://github.com/kojima-takeshi188/zero_shot_cot, commit 5ef330fcdeec0cd26aee27943504f91f8ec1c33c, "
        "dataset/CommonsenseQA"
    ),
    splits="test is the official dev file (the test answers are hidden); validation is 10% of train, seed 20240",
    split_sizes=(8767, 974, 1221),
    instruction=CHOICE_INSTRUCTION,
    hub="tau/commonsense_qa",
    hidden_test=True,
    layout="`question`, `choices` (`label` and `text`) and `answerKey`",
)


def read_row(fields: Fields) -> Problem:
    """`Question: ...`, the options, `Answer: ` -> the letter."""
    return choice_problem(fields, "question")
