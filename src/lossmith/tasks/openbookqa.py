"""OpenBookQA: elementary science, four options and the fact that answers; not shipped, its licence is unclear."""

from lossmith.tasks._choices import choice_problem
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import CompletionRecord
from lossmith.tasks.completion import Problem
from lossmith.tasks.templates import CHOICE_INSTRUCTION

OPENBOOKQA = CompletionRecord(
    name="openbookqa",
    kind="choice",
    title="elementary science, four options, with the fact as context",
    citation=(
        "Todor Mihaylov et al. Can a suit of armor conduct electricity? A new dataset for open book question "
        "answering. EMNLP 2018. https://allenai.org/data/open-book-qa"
    ),
    licence="not stated clearly (Apache-2.0 on the authors' repository, unknown on the hub)",
    source="https://allenai.org/data/open-book-qa",
    splits="official",
    split_sizes=None,
    instruction=CHOICE_INSTRUCTION,
    hub="allenai/openbookqa",
    hub_config="additional",
    layout="`question_stem`, `choices` (`text` and `label`), `answerKey` and `fact1` (as in train_complete.jsonl)",
)


def read_row(fields: Fields) -> Problem:
    """`Question: ...`, the options, `Context: <fact1>` where there is one, `Answer: ` -> the letter."""
    if not fields.has("fact1"):
        fields.note("have no `fact1`: their prompts have no `Context:` line, unlike the paper's")
        return choice_problem(fields, "question_stem", "question")
    return choice_problem(fields, "question_stem", "question", context=fields.text("fact1"))
