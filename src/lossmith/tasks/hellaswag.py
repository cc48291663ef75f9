"""HellaSwag: which of four endings continues a text?"""

from lossmith.tasks._choices import choice_problem
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import CHOICE_INSTRUCTION

HELLASWAG = CompletionRecord(
    name="hellaswag",
    kind="choice",
    title="the right one of four endings of a text (a part of the official validation file)",
    citation=(
        "Rowan Zellers et al. HellaSwag: can a machine really finish your sentence? ACL 2019. "
        "https://rowanzellers.com/hellaswag"
    ),
    licence="MIT",
    source=(
        "https://github.com/klosax/hellaswag_text_data, commit 1105d370f8340eac3c63a91fd1fa58e8999f9505, "
        "hellaswag_val_full.txt.bz2"
    ),
    splits=(
        "drawn from the official validation file (the official test answers are hidden), by activity, seed 20240: "
        "numbers are not comparable with published ones"
    ),
    split_sizes=(1500, 300, 1000),
    instruction=CHOICE_INSTRUCTION,
    hub="Rowan/hellaswag",
    hidden_test=True,
    layout="`ctx`, `endings` (a list) and `label` (0 to 3)",
)


def read_row(fields: Fields) -> Problem:
    """`Question: ...`, the endings, `Answer: ` -> the letter. As in the paper, the activity is not in the prompt."""
    if not fields.has("question"):
        return choice_problem(fields, "ctx", "question")
    activity = f"{fields.text('activity')}: " if fields.has("activity") else ""
    return choice_problem(fields, "question", stem=fields.text("question").removeprefix(activity))
