"""What each loss's model wrote for the same few test problems, as text that can stand on any page."""

from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.errors import EvidenceError
from lossmith.evidence.records import RunRecord
from lossmith.explain.text import one_line
from lossmith.report.outcomes import CORRECT, outcome_name

MAX_PROBLEMS = 12
MAX_CHARACTERS, MAX_LINES = 900, 24
"""How much of a text is shown."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one loss's model wrote."""

    loss: str
    """The loss."""
    lines: tuple[str, ...]
    """Its text; empty where it wrote nothing."""
    outcome: str
    """What became of it, in words; empty where it was not judged."""
    correct: bool
    """Whether the answer is right."""


@dataclass(frozen=True, kw_only=True)
class SampleProblem:
    """One test problem, and what was written for it."""

    title: str
    """Its place in the test set, and its first line."""
    prompt: tuple[str, ...]
    """What the models read, line by line."""
    target: tuple[str, ...]
    """What should follow."""
    written: tuple[Written, ...]
    """One per loss that finished."""


def sample_seed(records: Sequence[RunRecord]) -> int | None:
    """The first seed at which most losses left outputs and that names samples; None where there is none."""
    seeds = [run.seed for run in records if run.outputs]
    named = [run.seed for run in records if run.outputs and run.config.get("samples")]
    return min(named, key=lambda seed: (-seeds.count(seed), seed), default=None)


def sample_problems(records: Sequence[RunRecord], losses: Sequence[str]) -> tuple[SampleProblem, ...]:
    """The problems that the runs name as samples, with the text of every loss at one seed; at most a dozen.

    Raises:
        EvidenceError: If a run lacks the output of a sample.
    """
    seed = sample_seed(records)
    runs = {run.loss: run for run in records if run.seed == seed and run.outputs}
    samples = next((run.config["samples"] for run in runs.values() if run.config.get("samples")), [])
    for loss, run in runs.items():
        missing = [sample["index"] for sample in samples if not 0 <= sample["index"] < len(run.outputs)]
        if missing:
            raise EvidenceError(
                f"The run of '{loss}', seed {seed}, must hold an output for each of its samples: it holds "
                f"{len(run.outputs)} outputs, and the samples ask for {missing}."
            )
    return tuple(
        SampleProblem(
            title=f"Test problem {sample['index'] + 1}: {_first_words(sample['prompt'])}",
            prompt=shown_lines(sample["prompt"]),
            target=shown_lines(sample["target"]),
            written=tuple(_written(runs[loss], sample["index"]) for loss in losses if loss in runs),
        )
        for sample in samples[:MAX_PROBLEMS]
    )


def shown_lines(text: str) -> tuple[str, ...]:
    r"""Foreign text line by line, without what would steer a page, and not longer than a page can bear.

    Example:
        >>> shown_lines("a\tb\r\n<i>\x1b[0m"), shown_lines(" ")
        (('a b', '<i> [0m'), ())
    """
    lines = [one_line(line) for line in text.strip("\n")[:MAX_CHARACTERS].splitlines()]
    hidden = len(text) > MAX_CHARACTERS or len(lines) > MAX_LINES
    shown = lines[:MAX_LINES]
    if not any(line.strip() for line in shown):
        shown = []
    return (*shown, f"… ({len(text):,} characters in all)") if hidden else tuple(shown)


def _written(run: RunRecord, index: int) -> Written:
    outcome = run.outcomes[index] if run.outcomes else ""
    return Written(
        loss=run.loss,
        lines=shown_lines(run.outputs[index]),
        outcome=outcome_name(outcome) if outcome else "",
        correct=outcome in CORRECT,
    )


def _first_words(prompt: str) -> str:
    flat = " ".join(one_line(prompt).split())
    return flat if len(flat) <= 90 else flat[:89].rstrip() + "…"
