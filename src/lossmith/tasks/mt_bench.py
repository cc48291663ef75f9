"""MT-Bench: 80 two-turn questions in eight categories, with GPT-4's answers to those that have a right one."""

from dataclasses import dataclass

from lossmith.tasks._shipped import shipped_rows

MT_BENCH_SOURCE = (
    "https://github.com/lm-sys/FastChat, commit 0e6d3e4beaab66f4d3f93db72541a4abab8af28d, "
    "fastchat/llm_judge/data/mt_bench (Apache-2.0). Lianmin Zheng et al. Judging LLM-as-a-judge with MT-Bench and "
    "Chatbot Arena. NeurIPS 2023. https://arxiv.org/abs/2306.05685"
)
"""Where the questions are from, their licence, and whom to cite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Turns of a user, asked one after the other."""

    id: str
    """Its number in MT-Bench."""
    category: str
    """Such as writing or math."""
    turns: tuple[str, ...]
    """What the user says; the second turn follows the answer to the first."""
    references: tuple[str, ...] = ()
    """One right answer to each turn, written by GPT-4; empty outside of math, reasoning and coding."""


def load_mt_bench() -> tuple[Question, ...]:
    """The questions that travel in the package, in their published order.

    Example:
        >>> questions = load_mt_bench()
        >>> len(questions), questions[0].category, len(questions[0].turns), questions[30].category
        (80, 'writing', 2, 'math')
        >>> sorted({question.category for question in questions if question.references})
        ['coding', 'math', 'reasoning']
    """
    return tuple(
        Question(
            id=row["id"],
            category=row["category"],
            turns=tuple(row["turns"]),
            references=tuple(row["reference"]),
        )
        for row in shipped_rows("mt_bench", "test")
    )
