"""`lossmith tune`: every loss tuned alike, then compared."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lossmith._extras import require
from lossmith.cli.shared import (
    Data,
    Device,
    LabelColumn,
    Model,
    Overrides,
    Shots,
    ShotsTotal,
    Task,
    TextColumn,
    TextPairColumn,
    folder_name,
    plain,
    require_train_extra,
    seeds_of,
    settings_of,
)


def tune(
    task: Task,
    overrides: Overrides = None,
    model: Model = None,
    losses: Annotated[list[str] | None, typer.Option(help="Names or compositions, one or more after the flag.")] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials of every loss in every seed, the untuned first; 20.")
    ] = None,
    inner_folds: Annotated[int | None, typer.Option(help="Folds of a seed's training rows; 3.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Number of paired seeds, or a list such as 0,3,7.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The loss that the others are compared with.")] = None,
    shots: Shots = None,
    shots_total: ShotsTotal = None,
    data: Data = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, macro_f1, nll, proxies_accuracy ...")] = None,
    device: Device = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Test failed runs once more.")] = False,
    out: Annotated[Path | None, typer.Option(help="Results folder; continued if it holds this tuning.")] = None,
) -> None:
    """Tune every loss alike on each seed's training rows, then compare them on the test.

    Nested: no test row takes part in choosing. What is tuned, by name: space.learning_rate='{low: 1e-5, high: 1e-3,
    log: true}', space.soft_triple.margin='[0.1, 0.7]', space.epochs=null.
    """
    require_train_extra()
    require("optuna", extra="tune", purpose="tune losses")
    from lossmith.report.tuning_live import TuningProgress
    from lossmith.studies.tuning import tune as run
    from lossmith.studies.tuning_config import apply_tuning_overrides, make_tuning_config

    flags = {
        "model": model,
        "losses": losses,
        "trials": trials,
        "inner_folds": inner_folds,
        "seeds": seeds_of(seeds),
        "baseline": baseline,
        "shots": shots,
        "shots_total": shots_total,
        "data": data,
        "metric": metric,
        "device": device,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
    }
    values, given, place = settings_of(task, overrides or [], flags, apply=apply_tuning_overrides)
    config = make_tuning_config(values | given, place=place)
    folder = out or Path("runs") / f"tune-{folder_name(config.study.task)}"
    console = Console()
    try:
        with TuningProgress(
            console, metric=config.study.metric, objective=config.objective, trials=config.trials
        ) as progress:
            tuning = run(config, folder, listener=progress, retry_failed=retry_failed)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Finished trials are kept; the same command continues and repeats none.")
        raise typer.Exit(130) from None
    show_tuning(tuning, folder, console)
    if tuning.study.summary.finished == 0:
        raise typer.Exit(1)


def show_tuning(tuning: Any, folder: Path, console: Console) -> None:
    """Write both pages, and say what they say."""
    from lossmith.report.tables import comparison_table, to_rich
    from lossmith.report.tuning import tuning_answers, write_tuning
    from lossmith.report.write import write_report
    from lossmith.studies.sensitivity import sensitivity
    from lossmith.studies.tuning_config import tune_command

    task = Path(tuning.config.study.task).name
    commands = [tune_command(tuning.config, folder), shlex.join(["lossmith", "report", str(folder)])]
    page = write_report(
        folder,
        summary=tuning.study.summary,
        records=tuning.study.records,
        title=f"Which loss is best for {task}, each tuned?",
        settings=tuning.config.settings(),
        commands=commands,
        attribution=tuning.study.attribution,
        notices=tuning.notices,
    )
    found = sensitivity(tuning)
    tuned_page = write_tuning(folder, tuning, found, title=f"What does tuning change for {task}?", commands=commands)
    console.print(to_rich(comparison_table(tuning.study.summary)))
    lines = tuning_answers(tuning, found)
    lines += [*(f"note: {notice}" for notice in tuning.notices), f"Report: {page}", f"Tuning: {tuned_page}"]
    for line in lines:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
