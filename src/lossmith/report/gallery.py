"""The figures of a report, in the order of the page, with the words that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.report.completions import is_completion
from lossmith.report.confusion import confusion_figure
from lossmith.report.figures import CURVES, curves_figure, forest_figure, seeds_figure
from lossmith.report.outcomes import in_order, outcome_counts, outcome_name, outcomes_figure
from lossmith.report.wording import level, level_unit, metric_name


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """One figure and its words."""

    name: str
    """Name of the PNG without its ending, and prefix of the ids of the inline SVG."""
    title: str
    """Heading."""
    caption: str
    """How to read it."""
    description: str
    """What it shows, for whoever cannot see it."""
    figure: Figure
    """The picture."""


LEARNING = (
    "Thick: mean over finished seeds. Thin: each seed; dotted: a run that failed. The NLL is plain cross-entropy under "
    "every loss, so that the curves can be compared"
)


def study_figures(summary: StudySummary, records: Sequence[RunRecord]) -> tuple[ReportFigure, ...]:
    """All figures of a report."""
    completion = is_completion(records)
    answers = completion and any(run.curves.get("validation_nll") for run in records)
    losses = [row.loss for row in summary.rows]
    sentences = "; ".join(f"{row.loss}: {row.sentence}" for row in summary.rows)
    unit = level_unit(summary.metric)
    values = "; ".join(
        f"{row.loss}: {', '.join(level(value, summary.metric) for value in row.values.values()) or 'no finished run'}"
        for row in summary.rows
    )
    return (
        ReportFigure(
            name="forest",
            title=f"Difference to {summary.baseline}",
            caption=f"Each line is the 95% interval of the paired difference to {summary.baseline}. Filled points "
            "are decided after Holm's correction, hollow ones are not. The shaded band is the noise floor: how far two "
            "means of the baseline itself, over different seeds, would be apart. Pairing takes out what seeds share.",
            description=sentences,
            figure=forest_figure(summary),
        ),
        ReportFigure(
            name="seeds",
            title="Every seed",
            caption="One point per finished run. A thin line follows one seed through the losses: where the lines run "
            "in parallel, a loss moves every seed alike, and its difference is clear though the seeds are far apart.",
            description=f"{metric_name(summary.metric)} in {unit} by loss, one value per seed. {values}",
            figure=seeds_figure(summary),
        ),
        ReportFigure(
            name="learning_curves",
            title="Learning curves",
            caption=f"{LEARNING}{'; that of validation is over answer tokens' if answers else ''}.",
            description=f"{_curve_names(records, completion)} by optimiser step for {'; '.join(losses)}",
            figure=curves_figure(records, losses, baseline=summary.baseline),
        ),
        *([_outcomes(records, losses)] if completion else []),
        *([_confusion(records, losses)] if not completion or any(run.predictions for run in records) else []),
    )


def _curve_names(records: Sequence[RunRecord], completion: bool) -> str:
    if not completion:
        return "Training NLL and validation accuracy"
    return ", ".join(title for name, title in CURVES.items() if any(run.curves.get(name) for run in records))


def _outcomes(records: Sequence[RunRecord], losses: Sequence[str]) -> ReportFigure:
    counts = outcome_counts(records, losses)
    shares = (
        f"{loss}: " + ", ".join(f"{found[name] / found.total():.1%} {outcome_name(name)}" for name in in_order(found))
        for loss, found in counts.items()
    )
    return ReportFigure(
        name="outcomes",
        title="What became of the answers",
        caption="Every test answer of all finished seeds, by what became of it; the classes exclude each other, and "
        "the first that applies counts. Green: the answer is right.",
        description="; ".join(shares) or "No run finished.",
        figure=outcomes_figure(records, losses),
    )


def _confusion(records: Sequence[RunRecord], losses: Sequence[str]) -> ReportFigure:
    return ReportFigure(
        name="confusion",
        title="Confusion matrices",
        caption="Test predictions of all finished seeds added up. Colour and percent: share of the true class; "
        "the number is the count of predictions.",
        description=f"Rows are true classes, columns predicted classes, one matrix per loss: {'; '.join(losses)}",
        figure=confusion_figure(records, losses),
    )
