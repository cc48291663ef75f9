"""What the report of a completion study shows beyond that of a classification: steps, outcomes, samples, its words."""

from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.evidence.metrics import STEP_ERRORS, STEP_GAINS
from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.explain.text import one_line
from lossmith.report.outcomes import mended_table
from lossmith.report.samples import SampleProblem, sample_problems, sample_seed
from lossmith.report.steps import raw_steps_table, step_rows, steps_table
from lossmith.report.tables import Table
from lossmith.report.wording import p_value

STEPS = frozenset({*STEP_GAINS, *STEP_ERRORS, "wrong_results"})
"""Metrics of worked steps."""


@dataclass(frozen=True, kw_only=True)
class CompletionParts:
    """The parts of a report that only completion studies have."""

    steps_title: str
    """Heading of the next."""
    steps: Table
    """Every metric, corrected and as released, for people."""
    raw_steps: Table
    """The same for machines."""
    mended: Table | None
    """Errors of the baseline that each loss mends, and right answers that it spoils; None without outcomes."""
    samples: tuple[SampleProblem, ...]
    """Problems with what each loss's model wrote."""
    sample_seed: int | None
    """The seed whose models wrote it."""


def is_completion(records: Sequence[RunRecord]) -> bool:
    """Whether the runs trained language models that write their answers; a failed run says so by its samples."""
    return any(run.outputs or run.outcomes or "samples" in run.config for run in records)


def completion_parts(summary: StudySummary, records: Sequence[RunRecord]) -> CompletionParts | None:
    """The parts that a completion study adds; None for a classification."""
    if not is_completion(records):
        return None
    rows = step_rows(summary, records)
    return CompletionParts(
        steps_title="Answers and reasoning steps" if {row.metric for row in rows} & STEPS else "Answers",
        steps=steps_table(rows),
        raw_steps=raw_steps_table(rows),
        mended=mended_table(summary, records),
        samples=sample_problems(records, [row.loss for row in summary.rows]),
        sample_seed=sample_seed(records),
    )


def grouped(table: Table) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The steps table by metric: its name, and per loss the loss and the cells behind it."""
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for metric, loss, *numbers in table.rows:
        groups.setdefault(metric.text, []).append((str(loss.value), [cell.text for cell in numbers]))
    return list(groups.items())


def example_rows(summary: StudySummary) -> dict[str, dict[str, str]]:
    """Loss -> the cells of its comparison by test example, for the table that puts all tests side by side."""
    return {
        row.loss: {
            "examples": f"{row.by_example.gained} / {row.by_example.lost}",
            "example_p": p_value(row.by_example.p_value),
            "per_seed": "; ".join(
                f"seed {one.seed}: {one.gained} / {one.lost}"
                + (f", p {p_value(one.p_value)}" if one.p_value is not None else "")
                for one in row.by_example.per_seed
            ),
        }
        for row in summary.rows
        if row.by_example
    }


def sizes(records: Sequence[RunRecord]) -> str:
    """How much data a run saw, as far as the records say."""
    finished = next((run for run in records if run.outputs or run.labels), None)
    if finished is None:
        return ""
    train = finished.config.get("train_texts")
    trained = f"{one_line(train)} training rows per seed, " if train else ""
    return f"{trained}{len(finished.outputs) or len(finished.labels)} test problems"
