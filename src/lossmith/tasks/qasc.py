"""QASC: science questions with eight options and the two facts that answer them."""

from lossmith.tasks._choices import choice_problem
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import CHOICE_INSTRUCTION

QASC = CompletionRecord(
    name="qasc",
    kind="choice",
    title="science, eight options, with two facts as context",
    citation=(
        "Tushar Khot et al. QASC: a dataset for question answering via sentence composition. AAAI 2020. "
        "https://allenai.org/data/qasc"
    ),
    licence="CC BY 4.0",
    source=(
        "https://github.com/allenai/aristo-leaderboard, commit 60d5be31b5a7d36f29d13223ece29a8d2bfa8b5f, "
        "qasc/data/dev.jsonl"
    ),
    splits="the official dev file, 70/10/20 by first fact, seed 20240: the official test answers are hidden",
    split_sizes=(648, 93, 185),
    instruction=CHOICE_INSTRUCTION,
    hub="allenai/qasc",
    hidden_test=True,
    layout="`question`, `choices` (`text` and `label`) or `formatted_question`, `answerKey`, `fact1` and `fact2`",
)


def read_row(fields: Fields) -> Problem:
    """`Question: ...`, the options, `Context: <fact1> <fact2>`, `Answer: ` -> the letter."""
    context = f"{fields.text('fact1')} {fields.text('fact2')}"
    return choice_problem(fields, "question", context=context)
