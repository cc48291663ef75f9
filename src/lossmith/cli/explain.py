"""`lossmith explain`: what each loss of a study changed."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lossmith.cli.shared import plain, require_train_extra, seeds_of
from lossmith.cli.studies import write_page


def explain(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Results folder of `lossmith compare`.")],
    losses: Annotated[list[str] | None, typer.Option(help="Losses of the study, one or more; all of them.")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many of its seeds, or a list such as 0,3; 3.")] = None,
    examples: Annotated[
        int, typer.Option(help="Held-out examples, 20 or more, the same for every loss; all where there are fewer.")
    ] = 1000,
    attributed: Annotated[int, typer.Option(help="Those of them whose tokens are attributed.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draw of examples and of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; `explain` in the study's folder.")] = None,
) -> None:
    """Look into the models of a classification study, on the same held-out examples for every loss.

    Embedding maps, accuracy by decile, geometry, calibration, token attributions and their faithfulness, disagreements
    and example weights, on one page. Models are trained again, which gives the same ones on the same machine.
    """
    require_train_extra()
    from lossmith.report.explanation import explanation_summary, write_explanation
    from lossmith.report.live import LiveProgress
    from lossmith.studies import open_results
    from lossmith.studies.explained import explain_study

    folder = out or study / "explain"
    console = Console()
    opened = open_results(study)
    try:
        with LiveProgress(console, opened.config.metric) as progress:
            explained = explain_study(
                opened,
                losses=losses,
                seeds=seeds_of(seeds),
                examples=examples,
                attributed=attributed,
                seed=seed,
                out=folder,
                listener=progress,
            )
        command = _command(study, losses, seeds, examples, attributed, seed, out)
        title = f"What did the losses change on {Path(explained.config.task).name}?"
        page = write_explanation(folder, explained, title=title, commands=[command])
        if out is None:
            # The study's own page links to this one from now on.
            write_page(opened, study)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. What was seen is kept; the same command continues and repeats none.")
        raise typer.Exit(130) from None
    said = explanation_summary(explained)
    for sentence in (*said["findings"], *said["disagreements"]):
        console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)
    for notice in said["notices"]:
        console.print(plain(f"note: {notice}"), markup=False, highlight=False, soft_wrap=True)
    console.print(plain(f"Report: {page}"), markup=False, highlight=False, soft_wrap=True)


def _command(
    study: Path,
    losses: list[str] | None,
    seeds: str | None,
    examples: int,
    attributed: int,
    seed: int,
    out: Path | None,
) -> str:
    """The command line that makes the page again."""
    words = ["lossmith", "explain", str(study), *(["--losses", *losses] if losses else [])]
    words += ["--seeds", seeds] if seeds else []
    words += ["--examples", str(examples), "--attributed", str(attributed)]
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words + (["--out", str(out)] if out else []))
