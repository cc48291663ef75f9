"""`lossmith baseline`: models as they are."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lossmith.cli.shared import (
    Data,
    Device,
    folder_name,
    plain,
    require_train_extra,
)


def baseline(
    model: Annotated[list[str] | None, typer.Option(help="embedded: name, folder or hub id; several times.")] = None,
    task: Annotated[str, typer.Option(help="Task with answers, or a task file (.yaml).")] = "gsm8k",
    few_shot: Annotated[int | None, typer.Option(help="Solved training problems before each prompt; 0.")] = None,
    votes: Annotated[int | None, typer.Option(help="Answers sampled per problem; the most frequent counts; 1.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0 decodes greedily.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of the probability that is sampled from; 1.")] = None,
    chat: Annotated[bool | None, typer.Option(help="Use the chat template; by default where there is one.")] = None,
    limit: Annotated[int | None, typer.Option(help="Test problems; by default all.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens per answer; 256.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Answers written at once; 16.")] = None,
    weights: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    device: Device = None,
    data: Data = None,
    backend: Annotated[str | None, typer.Option(help="auto, transformers or vllm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the few-shot problems and of samples; 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; continued if it holds these settings.")] = None,
) -> None:
    """Let models answer a task's test problems as they are: pass rates with intervals."""
    require_train_extra()
    from lossmith.report.baseline import baseline_notices, baseline_table, write_baseline
    from lossmith.report.live import BatchProgress
    from lossmith.report.tables import to_rich
    from lossmith.studies.baseline import run_baseline
    from lossmith.studies.baseline_config import make_baseline_config

    flags = {
        "models": model,
        "task": task,
        "few_shot": few_shot,
        "votes": votes,
        "temperature": temperature,
        "top_p": top_p,
        "prompts": None if chat is None else "chat" if chat else "plain",
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "weights": weights,
        "device": device,
        "data": data,
        "backend": backend,
        "seed": seed,
    }
    config = make_baseline_config({name: value for name, value in flags.items() if value not in (None, [])})
    folder = out or Path("runs") / f"baseline-{folder_name(config.task)}"
    console = Console()
    try:
        with BatchProgress(console) as progress:
            result = run_baseline(config, folder, progress=progress.moved)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Finished answers are kept; the same command continues and repeats none.")
        raise typer.Exit(130) from None
    page = write_baseline(folder, result, command=config.command(folder))
    console.print(to_rich(baseline_table(result)))
    for notice in baseline_notices(result):
        console.print(plain(f"note: {notice}"), markup=False, highlight=False, soft_wrap=True)
    console.print(plain(f"Report: {page}"), markup=False, highlight=False, soft_wrap=True)
