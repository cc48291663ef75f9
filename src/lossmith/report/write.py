"""The report of a study: one self-contained page, its figures as PNG, and its table in three formats."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossmith.evidence.folders import cannot_write
from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.report.tables import comparison_table, raw_table, to_csv, to_latex, to_markdown


def write_report(
    folder: Path | str,
    *,
    summary: StudySummary,
    records: Sequence[RunRecord],
    title: str,
    settings: Mapping[str, Any],
    commands: Sequence[str],
    attribution: str = "",
    notices: Sequence[str] = (),
) -> Path:
    """Write the report of a study into `folder`, and return the path of its page.

    Writes `report.html`, `table.csv`, `table.md`, `table.tex`, `forest.png`, `seeds.png`, `learning_curves.png` and
    `confusion.png`; where language models wrote the answers also `steps.csv`, `steps.md` and `outcomes.png`, and
    `confusion.png` only where they chose among options; where classifiers were asked in several ways also
    `inference.csv` and `inference.md`; where language models were trained on pairs of answers also `preferences.csv`,
    `preferences.md`, `objectives.png`, `shifts.png` and, for several betas, `beta_sweep.png`, but no `confusion.png`.
    With sampled answers and their rewards `frontier.csv`, `frontier.md`, `areas.md` and `frontier.png` stand in their
    place, beside `objectives.png`. Each file is whole or absent, and equal inputs give equal files.

    Args:
        folder: Where to write; made if it is not there.
        summary: The verdicts, from `lossmith.evidence.summary.summarize`.
        records: The runs behind them; runs of other losses or seeds are left out.
        title: Heading of the page.
        settings: The resolved settings of the study.
        commands: Command lines that reproduce it.
        attribution: Source and licence of the data.
        notices: What a reader must know before believing it, such as texts that stand in training and test data.

    Raises:
        EvidenceError: If the folder cannot be written.
        MissingExtraError: If matplotlib or jinja2 is not installed.
    """
    from lossmith._extras import require

    for package in ("matplotlib", "jinja2"):
        require(package, extra="train", purpose="write a report")
    from lossmith.explain.canvas import png_bytes
    from lossmith.report.completions import completion_parts
    from lossmith.report.frontier import frontier_parts
    from lossmith.report.gallery import study_figures
    from lossmith.report.html import render_html
    from lossmith.report.inference import inference_parts
    from lossmith.report.preferences import preference_parts

    folder = Path(folder)
    order = {row.loss: place for place, row in enumerate(summary.rows)}
    runs = [record for record in records if record.loss in order and record.seed in summary.seeds]
    runs.sort(key=lambda run: (order[run.loss], run.seed))
    sentiment = frontier_parts(summary, runs, settings)
    figures = study_figures(summary, runs, sentiment=sentiment)
    parts = completion_parts(summary, runs)
    inference = inference_parts(summary, runs)
    preferences = preference_parts(summary, runs)
    page = render_html(
        summary=summary,
        records=runs,
        figures=figures,
        title=title,
        settings=settings,
        commands=commands,
        attribution=attribution,
        notices=notices,
        parts=parts,
        inference=inference,
        preferences=preferences,
        sentiment=sentiment,
        # Written beside it by `lossmith explain`.
        explained=(folder / "explain" / "explain.html").is_file(),
    )
    texts = _tables(summary, parts, inference, preferences, sentiment) | {"report.html": page}
    files = {f"{figure.name}.png": png_bytes(figure.figure) for figure in figures}
    # The page comes last: where it is, the rest is.
    try:
        write_files(folder, files | {name: text.encode("utf-8", "replace") for name, text in texts.items()})
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder / "report.html"


def _tables(summary: StudySummary, parts: Any, inference: Any, preferences: Any, sentiment: Any) -> dict[str, str]:
    """File name -> the table in it; of parts that a study has not, none."""
    texts = {
        "table.csv": to_csv(raw_table(summary)),
        "table.md": to_markdown(comparison_table(summary)),
        "table.tex": to_latex(comparison_table(summary)),
    }
    if parts is not None:
        texts |= {"steps.csv": to_csv(parts.raw_steps), "steps.md": to_markdown(parts.steps)}
    if inference is not None:
        texts |= {"inference.csv": to_csv(inference.raw), "inference.md": inference.markdown}
    if preferences is not None:
        texts |= {"preferences.csv": to_csv(preferences.raw), "preferences.md": to_markdown(preferences.levels)}
    if sentiment is not None:
        texts |= {"frontier.csv": to_csv(sentiment.raw), "frontier.md": to_markdown(sentiment.points)}
        texts["areas.md"] = to_markdown(sentiment.areas)
    return texts


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write each file whole, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write_whole(folder / name, content)


def _write_whole(path: Path, content: bytes) -> None:
    """Write `path` at once: a reader sees the old file or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
