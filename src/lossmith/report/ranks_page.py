"""The ranking as files: one self-contained page, its figures as PNG, and its tables as CSV and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lossmith.evidence.folders import cannot_write
from lossmith.evidence.ranking import Ranking
from lossmith.explain.text import one_line
from lossmith.report.markdown import prose
from lossmith.report.ranks_tables import (
    differences_table,
    means_table,
    pairs_table,
    ranking_table,
    raw_datasets_table,
    raw_ranking_table,
)
from lossmith.report.tables import to_csv, to_markdown

MARK_NOTE = (
    "▲ and ▼ are better and worse after Holm's correction over the losses of that data set alone; nothing is corrected "
    "for the number of data sets."
)


def write_ranking(
    folder: Path | str,
    *,
    ranking: Ranking,
    title: str,
    commands: Sequence[str],
    attributions: Mapping[str, str],
    notices: Sequence[str] = (),
) -> Path:
    """Write a ranking into `folder`, and return the path of its page.

    Writes `ranks.html`, `ranks.csv` (a row per loss), `ranks_datasets.csv` (a row per data set and loss), `ranks.md`,
    `critical_difference.png`, `differences.png` and `average_differences.png`. Each file is whole or absent, and equal
    inputs give equal files.

    Args:
        folder: Where to write; made if it is not there.
        ranking: From `lossmith.evidence.rank_losses`.
        title: Heading of the page.
        commands: Command lines that make it again.
        attributions: Name of a data set -> source and licence of its data.
        notices: What a reader must know before believing it.

    Raises:
        EvidenceError: If the folder cannot be written.
        MissingExtraError: If matplotlib or jinja2 is not installed.
    """
    from lossmith._extras import require

    for package in ("matplotlib", "jinja2"):
        require(package, extra="train", purpose="write a ranking")
    from lossmith.explain.canvas import png_bytes
    from lossmith.report.ranks_gallery import ranking_figures
    from lossmith.report.write import write_files

    folder = Path(folder)
    figures = ranking_figures(ranking)
    page = render_ranking(ranking, figures, title=title, commands=commands, attributions=attributions, notices=notices)
    files = {f"{figure.name}.png": png_bytes(figure.figure) for figure in figures} | {
        "ranks.csv": to_csv(raw_ranking_table(ranking)).encode("utf-8", "replace"),
        "ranks_datasets.csv": to_csv(raw_datasets_table(ranking)).encode("utf-8", "replace"),
        "ranks.md": ranking_markdown(ranking, title=title, notices=notices).encode("utf-8", "replace"),
        "ranks.html": page.encode("utf-8", "replace"),
    }
    try:
        write_files(folder, files)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder / "ranks.html"


def render_ranking(
    ranking: Ranking,
    figures: Sequence[Any],
    *,
    title: str,
    commands: Sequence[str],
    attributions: Mapping[str, str],
    notices: Sequence[str],
) -> str:
    """The whole page; every foreign text in it is escaped."""
    from markupsafe import Markup

    from lossmith.explain.canvas import loss_styles
    from lossmith.report.html import figure_svg, page_environment, script_hash, script_json

    environment = page_environment()
    script = environment.get_template("report.js").render()
    looks = loss_styles([row.loss for row in ranking.rows], ranking.baseline)
    return environment.get_template("ranks.html.j2").render(
        title=title,
        ranking=ranking,
        answer=ranking_answer(ranking),
        table=ranking_table(ranking),
        means=means_table(ranking),
        pairs=pairs_table(ranking),
        colours={loss: look.colour for loss, look in looks.items()},
        figures=[(figure, Markup(figure_svg(figure))) for figure in figures],
        notices=notices,
        commands=[line for command in commands for line in command.split("\n")],
        attributions=attributions,
        data=Markup(script_json(_page_data(ranking, title, commands))),
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(environment.get_template("report.css").render()),
    )


def ranking_answer(ranking: Ranking) -> str:
    """The ranking in one sentence."""
    better = [row for row in ranking.rows if row.verdict == "better"]
    best = min(better or ranking.rows, key=lambda row: row.average_rank)
    if better:
        return f"{best.loss} {best.sentence}."
    few = ", which are too few to show it" if any(row.verdict == "undecided" for row in ranking.rows) else ""
    return (
        f"No loss was shown to beat {ranking.baseline} over the {len(ranking.datasets)} data sets{few}. "
        f"{best.loss} has the best average rank, {best.average_rank:.2f}."
    )


def ranking_markdown(ranking: Ranking, *, title: str, notices: Sequence[str]) -> str:
    """The ranking as a Markdown page."""
    pairs = pairs_table(ranking)
    blocks = [
        f"# {prose(one_line(title))}",
        prose(one_line(ranking_answer(ranking))),
        *(f"> {prose(one_line(said))}" for said in notices),
        "\n".join(f"- {prose(one_line(f'{row.loss}: {row.sentence}.'))}" for row in ranking.rows),
        to_markdown(ranking_table(ranking)).strip(),
        "\n".join(f"- {prose(one_line(f'{said}.'))}" for said in ranking.sentences),
        "## Means, ranks in brackets",
        to_markdown(means_table(ranking)).strip(),
        f"## Differences to {prose(one_line(ranking.baseline))}",
        MARK_NOTE,
        to_markdown(differences_table(ranking)).strip(),
    ]
    if pairs is not None:
        blocks += ["## All pairs: p of Nemenyi's test", to_markdown(pairs).strip()]
    return "\n\n".join(blocks) + "\n"


def _page_data(ranking: Ranking, title: str, commands: Sequence[str]) -> dict[str, Any]:
    """The numbers of the page; pairs of losses become lists, since JSON has names only."""
    values = asdict(ranking)
    if values["nemenyi"]:
        values["nemenyi"]["p_values"] = [[*pair, p] for pair, p in values["nemenyi"]["p_values"].items()]
    return {"title": title, "commands": list(commands), "ranking": values}
