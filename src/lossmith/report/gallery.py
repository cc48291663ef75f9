"""The figures of a report, in the order of the page, with the words that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.report.completions import is_completion
from lossmith.report.confusion import confusion_figure
from lossmith.report.figures import CURVES, curves_figure, forest_figure, seeds_figure
from lossmith.report.frontier import FrontierParts, frontier_figure, is_sentiment
from lossmith.report.outcomes import in_order, outcome_counts, outcome_name, outcomes_figure
from lossmith.report.preference_figures import OTHERS, objectives_figure, shifts_figure, sweep_figure
from lossmith.report.preferences import better_and_worse, is_preference
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


def study_figures(
    summary: StudySummary, records: Sequence[RunRecord], *, sentiment: FrontierParts | None = None
) -> tuple[ReportFigure, ...]:
    """All figures of a report."""
    completion, preference = is_completion(records), is_preference(records)
    written = completion or preference or is_sentiment(records)
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
            description=f"{_curve_names(records, written)} by optimiser step for {'; '.join(losses)}",
            figure=curves_figure(records, losses, baseline=summary.baseline),
        ),
        *([_outcomes(records, losses)] if completion else []),
        *([_objectives(summary, records)] if preference or any(run.config.get("rho") for run in records) else []),
        *([_shifts(summary, records)] if preference else []),
        *([_frontier(sentiment)] if sentiment else []),
        *(_sweep(summary) if preference or sentiment else []),
        *([_confusion(records, losses)] if not written or any(run.predictions for run in records) else []),
    )


def _curve_names(records: Sequence[RunRecord], written: bool) -> str:
    if not written:
        return "Training NLL and validation accuracy"
    return ", ".join(title for name, title in CURVES.items() if any(run.curves.get(name) for run in records))


def _objectives(summary: StudySummary, records: Sequence[RunRecord]) -> ReportFigure:
    return ReportFigure(
        name="objectives",
        title="What each objective asks, and where training was",
        caption="Loss (solid) and gradient (dashed) along the margin: log-ratio of chosen minus that of rejected "
        "answers, or their log-probabilities where a loss has no reference; for losses that see answers one by one "
        "the log-ratio, its sign turned for rejected ones. Curves are of answers of 20 tokens. Behind: the margins "
        "that training saw, the later the "
        "darker, all seeds together. Where the gradient is 0 a pair is left alone. Terms on tokens are left out.",
        description="; ".join(row.loss for row in summary.rows),
        figure=objectives_figure(summary, records),
    )


def _shifts(summary: StudySummary, records: Sequence[RunRecord]) -> ReportFigure:
    better = better_and_worse(records)[-1]
    return ReportFigure(
        name="shifts",
        title="Displacement",
        caption=f"How far the log-probability of {better} and {OTHERS[better]} test answers moved from the "
        "reference, a point per seed. Above the diagonal the margin grew. Left below, both became less likely: "
        f"the margin was won by pushing the {OTHERS[better]} answers down faster, which is called displacement.",
        description="; ".join(f"{row.loss}: {row.sentence}" for row in summary.rows),
        figure=shifts_figure(summary, records),
    )


def _frontier(parts: FrontierParts) -> ReportFigure:
    points = (
        f"{point.loss}: reward {level(point.reward.difference, 'reward')}% at KL {point.kl.difference:.2f}"
        for point in parts.found.points
    )
    return ReportFigure(
        name="frontier",
        title="Reward against divergence",
        caption="Each loss from the policy before training over its betas, which stand at the points; lines along both "
        "axes are 95% intervals over training seeds. The pale band behind a line is its upper frontier: what the loss "
        "buys within a budget of KL. Higher and further left is better.",
        description="; ".join(points),
        figure=frontier_figure(parts.found),
    )


def _sweep(summary: StudySummary) -> list[ReportFigure]:
    sweep = sweep_figure(summary)
    figures: list[ReportFigure] = []
    if sweep is not None:
        figures.append(
            ReportFigure(
                name="beta_sweep",
                title="Over beta",
                caption="Means over seeds with their 95% intervals, which describe each beta alone, unpaired. "
                "Points of different losses are drawn side by side.",
                description=f"{metric_name(summary.metric)} over beta, a line per loss",
                figure=sweep,
            )
        )
    return figures


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
