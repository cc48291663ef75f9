"""The figures of a report, in the order of the page, with the words that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.report.confusion import confusion_figure
from lossmith.report.figures import curves_figure, forest_figure, seeds_figure
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


def study_figures(summary: StudySummary, records: Sequence[RunRecord]) -> tuple[ReportFigure, ...]:
    """All figures of a report."""
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
            caption="Thick: mean over finished seeds. Thin: each seed; dotted: a run that failed. The NLL is plain "
            "cross-entropy under every loss, so that the curves can be compared.",
            description=f"Training NLL and validation accuracy by optimiser step for {'; '.join(losses)}",
            figure=curves_figure(records, losses, baseline=summary.baseline),
        ),
        ReportFigure(
            name="confusion",
            title="Confusion matrices",
            caption="Test predictions of all finished seeds added up. Colour and percent: share of the true class; "
            "the number is the count of predictions.",
            description=f"Rows are true classes, columns predicted classes, one matrix per loss: {'; '.join(losses)}",
            figure=confusion_figure(records, losses),
        ),
    )
