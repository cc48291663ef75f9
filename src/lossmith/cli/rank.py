"""`lossmith rank`: losses over several data sets."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lossmith.cli.shared import plain, require_train_extra


def rank(
    studies: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="STUDY STUDY ...", help="Results folders of `lossmith compare` or `tune`, one per data set."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, macro_f1, mixture_accuracy ...; by default the studies' own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the page, tables and pictures.")] = Path("runs/ranks"),
) -> None:
    """Rank losses over several data sets: average ranks, tests over data sets, mean differences with intervals."""
    require_train_extra()
    from lossmith.report.ranks_page import write_ranking
    from lossmith.report.ranks_tables import short_table
    from lossmith.report.tables import to_rich
    from lossmith.studies.ranking import rank_studies

    found = rank_studies(studies or [], metric)
    ranking = found.ranking
    names = [data.name for data in ranking.datasets]
    words = ["lossmith", "rank", *map(str, found.folders), "--metric", ranking.metric, "--out", str(out)]
    page = write_ranking(
        out,
        ranking=ranking,
        title=f"Which loss is best over {len(names)} data sets?",
        commands=[*found.commands, shlex.join(words)],
        attributions={
            name: study.attribution for name, study in zip(names, found.studies, strict=True) if study.attribution
        },
        notices=found.notices,
    )
    console = Console()
    console.print(to_rich(short_table(ranking)))
    lines = [f"{row.loss}: {row.sentence}" for row in ranking.rows]
    lines += [*ranking.sentences, *(f"note: {notice}" for notice in found.notices), f"Report: {page}"]
    for line in lines:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
