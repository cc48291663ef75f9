"""Commands that train: compare, train, and what belongs to them."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lossmith.cli.shared import (
    Data,
    Device,
    LabelColumn,
    Model,
    Overrides,
    Preset,
    Shots,
    ShotsTotal,
    Task,
    TaskFlag,
    TaskOrFlag,
    TextColumn,
    TextPairColumn,
    Votes,
    config_of,
    folder_name,
    one_task,
    plain,
    require_train_extra,
    seeds_of,
)
from lossmith.cli.tune import show_tuning


def compare(
    task: Task,
    overrides: Overrides = None,
    model: Model = None,
    losses: Annotated[
        list[str] | None,
        typer.Option(help="Names or compositions such as '0.4*cross_entropy + 0.6*supcon', one or more."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Number of paired seeds, or a list such as 0,3,7.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The loss that the others are compared with.")] = None,
    shots: Shots = None,
    shots_total: ShotsTotal = None,
    data: Data = None,
    preset: Preset = None,
    votes: Votes = None,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, macro_f1, nll, exact_match, preference_accuracy ...")
    ] = None,
    device: Device = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs once more.")] = False,
    out: Annotated[Path | None, typer.Option(help="Results folder; continued if it holds this study.")] = None,
) -> None:
    """Train every loss on every seed, then say which is best and how sure that is.

    Classification: mr, subj, cr, banking77, a table of texts. Written answers: gsm8k, mathqa, svamp, qasc, hellaswag
    and others, or a task file. Preferences: polite_pairs, pandalm, persona_pairs, a file of pairs.
    Sentiment-controlled generation: sentiment.
    """
    require_train_extra()
    from lossmith import studies
    from lossmith.report.live import LiveProgress

    flags = {
        "model": model,
        "losses": losses,
        "seeds": seeds_of(seeds),
        "baseline": baseline,
        "shots": shots,
        "shots_total": shots_total,
        "data": data,
        "preset": preset,
        "votes": votes,
        "metric": metric,
        "device": device,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
    }
    config = config_of(task, overrides, flags)
    folder = out or Path("runs") / folder_name(config.task)
    console = Console()
    try:
        with LiveProgress(console, config.metric) as progress:
            study = studies.compare(config, folder, listener=progress, retry_failed=retry_failed)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Finished runs are kept; the same command continues and repeats none.")
        raise typer.Exit(130) from None
    show(study, folder, console)
    if study.summary.finished == 0:
        raise typer.Exit(1)


def train(
    task: TaskOrFlag = None,
    overrides: Overrides = None,
    model: Model = None,
    task_flag: TaskFlag = None,
    loss: Annotated[
        str | None, typer.Option(help="Name or composition; cross_entropy, or dpo for pairs, kto for rated answers.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The block: head, shots, order and dropout.")] = 0,
    shots: Shots = None,
    shots_total: ShotsTotal = None,
    data: Data = None,
    preset: Preset = None,
    votes: Votes = None,
    device: Device = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    out: Annotated[Path, typer.Option(help="Folder of the saved model; must not exist yet.")] = Path("runs/model"),
) -> None:
    """Train one model with one loss and save it so that transformers loads it."""
    require_train_extra()
    from lossmith import studies
    from lossmith.evidence import format_value
    from lossmith.report.share import ShareProgress

    flags = {
        "model": model,
        "losses": [loss] if loss else None,
        "baseline": loss,
        "seeds": [seed],
        "shots": shots,
        "shots_total": shots_total,
        "data": data,
        "preset": preset,
        "votes": votes,
        "device": device,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
    }
    task, overrides = one_task(task, task_flag, overrides, command="train")
    config = config_of(task, overrides, flags, one_loss=True)
    console = Console()
    chosen = "" if loss else ", the default: --loss names another"
    _line(console, f"Training {config.losses[0]} on {config.task}, seed {seed}{chosen}. First data and model are read.")
    try:
        with ShareProgress(console, config.losses[0]) as bar:
            record = studies.train(config, out, progress=bar.moved)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped; nothing was saved.")
        raise typer.Exit(130) from None
    shown = ", ".join(
        f"{name} {format_value(value, name)}"
        for name, value in record.metrics.items()
        if not name.startswith("start_") and "released_" not in name
    )
    console.print(f"{record.loss}, seed {record.seed}: {shown}", markup=False, highlight=False)
    for notice in record.config.get("notices", []):
        _line(console, f"note: {notice}")
    console.print(f"Saved to {out}: transformers' {config.loaded_by} loads it.", markup=False)


def tokenize(
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder of train.parquet, validation.parquet and test.parquet.")],
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    preset: Preset = None,
) -> None:
    """Write a task's prompts and answers as token rows, in the layout that the released code reads."""
    require_train_extra()
    from lossmith import studies

    config = config_of(task, overrides, {"model": model, "data": data, "preset": preset})
    for file, what in studies.write_tokens(config, out).items():
        Console().print(f"{out / file}: {what}", markup=False, highlight=False, soft_wrap=True)


def report(folder: Annotated[Path, typer.Argument(help="Results folder of `lossmith compare` or `tune`.")]) -> None:
    """Write the report of a results folder again, without training."""
    require_train_extra()
    from lossmith import studies
    from lossmith.studies.tuning import is_tuning, open_tuning

    if is_tuning(folder):
        show_tuning(open_tuning(folder), folder, Console())
    else:
        show(studies.open_results(folder), folder, Console())


def settings(task: Annotated[str, typer.Argument(metavar="TASK", help="As for compare.")] = "mr") -> None:
    """Every setting of a study of this task, with its default: what a recipe or `key=value` may name."""
    require_train_extra()
    from rich.table import Table

    from lossmith import studies

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, default, meaning in studies.described_settings(task):
        table.add_row(escape(f"{name}={default}"), escape(meaning))
    Console().print(table)


def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    require_train_extra()
    from lossmith import studies

    print(json.dumps(studies.json_schema(), indent=2))


def write_page(study: Any, folder: Path) -> Path:
    """Write the report of a study into its folder."""
    from lossmith.report.write import write_report
    from lossmith.studies import compare_command

    return write_report(
        folder,
        summary=study.summary,
        records=study.records,
        title=f"Which loss is best for {Path(study.config.task).name}?",
        settings=study.config.settings(),
        commands=[compare_command(study.config, folder), shlex.join(["lossmith", "report", str(folder)])],
        attribution=study.attribution,
        notices=study.notices,
    )


def show(study: Any, folder: Path, console: Console) -> None:
    """Write the report, and say what it says."""
    from lossmith.report.inference import ways_table
    from lossmith.report.tables import comparison_table, to_rich

    page = write_page(study, folder)
    console.print(to_rich(comparison_table(study.summary)))
    ways = ways_table(study.summary, study.records)
    if ways is not None:
        console.print(to_rich(ways))
    for row in study.summary.rows:
        _line(console, f"{row.loss}: {row.sentence}")
    for notice in study.notices:
        _line(console, f"note: {notice}")
    _line(console, f"Report: {page}")


def _line(console: Console, text: str) -> None:
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)
