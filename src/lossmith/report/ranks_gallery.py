"""The figures of a ranking, in the order of its page, with the words that stand beside them."""

from lossmith.evidence.ranking import Ranking
from lossmith.report.gallery import ReportFigure
from lossmith.report.ranks import average_differences_figure, critical_difference_figure, differences_figure
from lossmith.report.wording import difference_with_interval


def ranking_figures(ranking: Ranking) -> tuple[ReportFigure, ...]:
    """All figures of a ranking."""
    order = sorted(ranking.rows, key=lambda row: row.average_rank)
    tested = [row for row in ranking.rows if row.tests]
    cells = "; ".join(
        f"{data.name}: {row.loss} {difference_with_interval(data.within(row.loss).comparison, ranking.metric)}"
        for data in ranking.datasets
        for row in tested
    )
    return (
        ReportFigure(
            name="critical_difference",
            title="Average ranks",
            caption="Each loss at its average rank over the data sets; 1 would be the best on every one. A bar joins "
            "losses within Nemenyi's critical difference, so that ranks do not tell them apart. What it says of two "
            "losses depends on which others are ranked; the verdicts above do not.",
            description=", ".join(f"{row.loss} {row.average_rank:.2f}" for row in order),
            figure=critical_difference_figure(ranking),
        ),
        ReportFigure(
            name="differences",
            title="Every data set",
            caption=f"Paired difference to {ranking.baseline} with its 95% interval over the blocks of the data set; "
            "blue is better, orange worse. ▲ and ▼ are verdicts after Holm's correction over the losses of that data "
            "set alone; nothing is corrected for the number of data sets. The last row is the mean with the interval "
            "for data sets like these, and the verdict of the signed ranks.",
            description=cells,
            figure=differences_figure(ranking),
        ),
        ReportFigure(
            name="average_differences",
            title="Average differences",
            caption="Thin: the 95% interval where the data sets are a sample, for another data set of their kind. "
            "Thick: where these data sets are all there is and only the blocks are a sample. Dots are the data sets. "
            "Filled points are decided by the signed ranks after Holm's correction.",
            description="; ".join(f"{row.loss}: {row.sentence}" for row in tested),
            figure=average_differences_figure(ranking),
        ),
    )
