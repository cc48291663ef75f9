"""A ranking as tables: losses over data sets, data sets by losses, and all pairs."""

from collections.abc import Callable, Sequence

from lossmith.evidence.metrics import format_interval, metric_style
from lossmith.evidence.ranking import DatasetRanks, RankedLoss, Ranking
from lossmith.explain.text import MISSING, one_line
from lossmith.report.ranks import MARKS
from lossmith.report.tables import Table, number_column, raw_column, text_column
from lossmith.report.wording import (
    decimal,
    difference,
    difference_with_interval,
    known,
    level,
    level_unit,
    metric_name,
    p_value,
)

Value = str | float | None


def ranking_table(ranking: Ranking) -> Table:
    """One row per loss, for people."""
    metric, rows = ranking.metric, ranking.rows
    unit = metric_style(metric).unit
    return Table(
        columns=(
            text_column("loss", "loss", [(row.loss, row.loss) for row in rows]),
            number_column("average_rank", "average rank", [(decimal(r.average_rank, 2), r.average_rank) for r in rows]),
            number_column(
                "mean",
                f"mean {metric_name(metric)} ({level_unit(metric)})",
                [(level(r.mean, metric), r.mean) for r in rows],
            ),
            number_column(
                "difference",
                f"mean difference to {one_line(ranking.baseline)} [95% interval for data sets like these] ({unit})",
                [_difference(row, metric) for row in rows],
            ),
            number_column("alone", "[95% interval for exactly these]", [_alone(row, metric) for row in rows]),
            number_column("least", "least", [_extreme(row, metric, "least") for row in rows]),
            number_column("most", "most", [_extreme(row, metric, "most") for row in rows]),
            number_column("won", "data sets won", [_won(row) for row in rows]),
            number_column("holm_p", "p (signed ranks, Holm)", [_p(row.tests and row.tests.holm_p) for row in rows]),
            number_column(
                "rank_p", "p (average ranks, Holm)", [_p(row.tests and row.tests.rank_z_holm_p) for row in rows]
            ),
        )
    )


def short_table(ranking: Ranking) -> Table:
    """The columns of `ranking_table` that a terminal has room for."""
    wanted = ("loss", "average_rank", "mean", "difference", "won", "holm_p")
    return Table(columns=tuple(column for column in ranking_table(ranking).columns if column.name in wanted))


def means_table(ranking: Ranking) -> Table:
    """One row per data set: the mean of every loss, and its rank in brackets."""
    return _by_dataset(ranking, [row.loss for row in ranking.rows], _placed)


def differences_table(ranking: Ranking) -> Table:
    """One row per data set: the paired difference of every loss, its interval and Holm's verdict within it."""
    return _by_dataset(ranking, [row.loss for row in ranking.rows if not row.is_baseline], _within)


def _by_dataset(
    ranking: Ranking, losses: Sequence[str], cell: Callable[[DatasetRanks, str, str], tuple[str, float | None]]
) -> Table:
    """A row per data set and a column per loss."""
    return Table(
        columns=(
            text_column("dataset", "data set", [(data.name, data.name) for data in ranking.datasets]),
            *(
                number_column(loss, one_line(loss), [cell(data, loss, ranking.metric) for data in ranking.datasets])
                for loss in losses
            ),
        )
    )


def pairs_table(ranking: Ranking) -> Table | None:
    """Nemenyi's p of every pair, a row and a column per loss; None where there is no such test."""
    if ranking.nemenyi is None:
        return None
    found = ranking.nemenyi.p_values
    losses = [row.loss for row in ranking.rows]
    return Table(
        columns=(
            text_column("loss", "loss", [(loss, loss) for loss in losses]),
            *(
                number_column(
                    column,
                    one_line(column),
                    [_p(found.get((row, column), found.get((column, row)))) for row in losses],
                )
                for column in losses
            ),
        )
    )


def raw_ranking_table(ranking: Ranking) -> Table:
    """One row per loss, for machines: fractions instead of percent, every number in its own column."""
    return _raw([_raw_row(row) for row in ranking.rows])


def raw_datasets_table(ranking: Ranking) -> Table:
    """One row per data set and loss, for machines."""
    return _raw(
        [
            {
                "dataset": data.name,
                "loss": row.loss,
                "mean": data.means[row.loss],
                "rank": data.ranks[row.loss],
                "difference": row.comparison and row.comparison.difference,
                "low": row.comparison and row.comparison.low,
                "high": row.comparison and row.comparison.high,
                "p": row.comparison and row.comparison.p_value,
                "holm_p": row.holm_p,
                "blocks": len(row.values),
                "verdict": row.verdict,
            }
            for data in ranking.datasets
            for row in (data.within(ranked.loss) for ranked in ranking.rows)
        ]
    )


def _raw_row(row: RankedLoss) -> dict[str, Value]:
    tests = row.tests
    return {
        "loss": row.loss,
        "average_rank": row.average_rank,
        "mean": row.mean,
        "difference": tests and tests.over_datasets.difference,
        "low": tests and tests.over_datasets.low,
        "high": tests and tests.over_datasets.high,
        "low_of_these": tests and tests.over_blocks.low,
        "high_of_these": tests and tests.over_blocks.high,
        "least": tests and tests.differences[tests.least],
        "least_on": tests and tests.least,
        "most": tests and tests.differences[tests.most],
        "most_on": tests and tests.most,
        "datasets_won": tests and tests.over_datasets.wins,
        "datasets": tests and tests.over_datasets.blocks,
        "signed_rank_p": tests and tests.signed_ranks.p_value,
        "signed_rank_holm_p": tests and tests.holm_p,
        "rank_z": tests and tests.rank_z,
        "rank_z_holm_p": tests and tests.rank_z_holm_p,
        "verdict": row.verdict,
    }


def _raw(rows: list[dict[str, Value]]) -> Table:
    return Table(columns=tuple(raw_column(name, [row[name] for row in rows]) for name in rows[0]))


def _difference(row: RankedLoss, metric: str) -> tuple[str, float | None]:
    if row.tests is None:
        return "baseline", None
    return difference_with_interval(row.tests.over_datasets, metric), row.tests.over_datasets.difference


def _alone(row: RankedLoss, metric: str) -> tuple[str, float | None]:
    if row.tests is None or not known(row.tests.over_blocks.low):
        return MISSING, None
    return format_interval(row.tests.over_blocks.low, row.tests.over_blocks.high, metric), row.tests.over_blocks.low


def _extreme(row: RankedLoss, metric: str, which: str) -> tuple[str, float | None]:
    if row.tests is None:
        return MISSING, None
    name = str(getattr(row.tests, which))
    value = row.tests.differences[name]
    return f"{difference(value, metric)} on {one_line(name)}", value


def _won(row: RankedLoss) -> tuple[str, float | None]:
    if row.tests is None:
        return MISSING, None
    pairs = row.tests.over_datasets
    ties = f" ({pairs.ties} tied)" if pairs.ties else ""
    return f"{pairs.wins} of {pairs.blocks}{ties}", pairs.wins


def _placed(data: DatasetRanks, loss: str, metric: str) -> tuple[str, float | None]:
    return f"{level(data.means[loss], metric)} ({data.ranks[loss]:g})", data.means[loss]


def _within(data: DatasetRanks, loss: str, metric: str) -> tuple[str, float | None]:
    row = data.within(loss)
    pairs = row.comparison
    return difference_with_interval(pairs, metric) + MARKS.get(row.verdict, ""), pairs and pairs.difference


def _p(value: float | None) -> tuple[str, float | None]:
    return p_value(value), value
