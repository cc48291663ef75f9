"""Command line: parses and calls; decides nothing."""

import json
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lossmith._extras import require
from lossmith._version import __version__
from lossmith.errors import ConfigurationError, LossmithError, LossmithWarning

app = typer.Typer(
    help="Which loss should fine-tune my language model? Paired seeds, intervals, one report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
losses_app = typer.Typer(help="The library of losses.", invoke_without_command=True, rich_markup_mode=None)
app.add_typer(losses_app, name="losses")

Task = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="Shipped task, data file, folder with train and test, task.yaml or recipe.yaml."
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of a recipe.")]
Model = Annotated[str | None, typer.Option(help="embedded: name, folder or hub id.")]
Shots = Annotated[int | None, typer.Option(help="Training texts per class, drawn per seed.")]
ShotsTotal = Annotated[int | None, typer.Option(help="Training texts in total, drawn per seed.")]
Data = Annotated[
    str | None, typer.Option(help="Data of a task with answers: shipped, a folder, hub or hub:owner/name.")
]
Preset = Annotated[str | None, typer.Option(help="corrected, or released: as the released code of the paper does it.")]
Votes = Annotated[
    int | None, typer.Option(help="Answers sampled per problem, the most frequent counts; with temperature=0.7.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of a data file that holds the text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of a data file that holds the label.")]


TRAIN_MODULES = (
    "pydantic",
    "yaml",
    "transformers",
    "accelerate",
    "scipy",
    "sklearn",
    "filelock",
    "matplotlib",
    "jinja2",
)


@app.command()
def compare(
    task: Task,
    overrides: Overrides = None,
    model: Model = None,
    losses: Annotated[list[str] | None, typer.Option(help="Names or compositions, one or more after the flag.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Number of paired seeds, or a list such as 0,3,7.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The loss that the others are compared with.")] = None,
    shots: Shots = None,
    shots_total: ShotsTotal = None,
    data: Data = None,
    preset: Preset = None,
    votes: Votes = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, macro_f1, nll, exact_match ...")] = None,
    device: Device = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs once more.")] = False,
    out: Annotated[Path | None, typer.Option(help="Results folder; continued if it holds this study.")] = None,
) -> None:
    """Train every loss on every seed, then say which is best and how sure that is.

    Classification: mr, subj, cr, banking77, a table of texts. Written answers: gsm8k, mathqa, svamp, qasc, hellaswag
    and others, or a task file.
    """
    _require_train_extra()
    from lossmith import studies
    from lossmith.report.live import LiveProgress

    flags = {
        "model": model,
        "losses": losses,
        "seeds": _seeds(seeds),
        "baseline": baseline,
        "shots": shots,
        "shots_total": shots_total,
        "data": data,
        "preset": preset,
        "votes": votes,
        "metric": metric,
        "device": device,
        "text_column": text_column,
        "label_column": label_column,
    }
    config = _config(task, overrides, flags)
    folder = out or Path("runs") / _folder_name(config.task)
    console = Console()
    try:
        with LiveProgress(console, config.metric) as progress:
            study = studies.compare(config, folder, listener=progress, retry_failed=retry_failed)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Finished runs are kept; the same command continues and repeats none.")
        raise typer.Exit(130) from None
    _show(study, folder, console)
    if study.summary.finished == 0:
        raise typer.Exit(1)


@app.command()
def train(
    task: Task,
    overrides: Overrides = None,
    model: Model = None,
    loss: Annotated[str | None, typer.Option(help="Name or composition.")] = None,
    seed: Annotated[int, typer.Option(help="The block: head, shots, order and dropout.")] = 0,
    shots: Shots = None,
    shots_total: ShotsTotal = None,
    data: Data = None,
    preset: Preset = None,
    votes: Votes = None,
    device: Device = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    out: Annotated[Path, typer.Option(help="Folder of the saved model; must not exist yet.")] = Path("runs/model"),
) -> None:
    """Train one model with one loss and save it so that transformers loads it."""
    _require_train_extra()
    from rich.progress import Progress

    from lossmith import studies
    from lossmith.evidence import format_value

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
        "label_column": label_column,
    }
    config = _config(task, overrides, flags, one_loss=True)
    console = Console()
    try:
        with Progress(console=console, transient=True) as bar:
            line = bar.add_task(escape(config.losses[0]), total=1.0)
            record = studies.train(config, out, progress=lambda share: bar.update(line, completed=share))
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped; nothing was saved.")
        raise typer.Exit(130) from None
    shown = ", ".join(
        f"{name} {format_value(value, name)}" for name, value in record.metrics.items() if "released_" not in name
    )
    console.print(f"{record.loss}, seed {record.seed}: {shown}", markup=False, highlight=False)
    console.print(f"Saved to {out}: transformers' {config.loaded_by} loads it.", markup=False)


@app.command()
def tokenize(
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder of train.parquet, validation.parquet and test.parquet.")],
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    preset: Preset = None,
) -> None:
    """Write a task's prompts and answers as token rows, in the layout that the released code reads."""
    _require_train_extra()
    from lossmith import studies

    config = _config(task, overrides, {"model": model, "data": data, "preset": preset})
    for file, what in studies.write_tokens(config, out).items():
        Console().print(f"{out / file}: {what}", markup=False, highlight=False, soft_wrap=True)


@app.command()
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
    _require_train_extra()
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
    folder = out or Path("runs") / f"baseline-{_folder_name(config.task)}"
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
        console.print(_plain(f"note: {notice}"), markup=False, highlight=False, soft_wrap=True)
    console.print(_plain(f"Report: {page}"), markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Results folder of `lossmith compare`.")]) -> None:
    """Write the report of a results folder again, without training."""
    _require_train_extra()
    from lossmith import studies

    _show(studies.open_results(folder), folder, Console())


@app.command()
def bench(
    tokens: Annotated[list[int] | None, typer.Option(help="Rows, one or more after the flag; 1024.")] = None,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of the hidden states; 576.")] = None,
    vocab: Annotated[list[int] | None, typer.Option(help="Classes; 8192.")] = None,
    ignored: Annotated[list[float] | None, typer.Option(help="Share of the tokens labelled -100; 0 0.6.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    labels: Annotated[str | None, typer.Option(help="How labels are drawn, uniform or zipf.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="Names or compositions of our engines.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="chunked, triton, dense; by default all.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Competitors; the first is the baseline.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Turns that count; 7.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write raw seconds here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time and memory, .svg or .png.")] = None,
) -> None:
    """Time and peak memory of forward and backward: our engines beside dense torch and everyone else's."""
    from lossmith.bench import Benchmark, Grid, check_outputs, results_of, write_outputs
    from lossmith.bench.shown import LiveBenchmark, results_view

    flags = {
        "tokens": tokens,
        "hidden": hidden,
        "vocab": vocab,
        "ignored": ignored,
        "dtype": dtype,
        "device": device,
        "labels": labels,
        "loss": loss,
        "engine": engine,
        "against": against,
        "repeats": repeats,
    }
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    settings: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
    grid = Grid(**settings)
    check_outputs(json=json_file, plot=plot)
    benchmark = Benchmark(grid.groups(), repeats=grid.repeats)
    errors = Console(stderr=True)
    try:
        with LiveBenchmark(errors) as progress:
            benchmark.run(progress)
    except KeyboardInterrupt:
        errors.print("Stopped; what was measured is kept.")
    results = results_of(benchmark, command=grid.command())
    Console().print(results_view(results))
    write_outputs(results, json=json_file, plot=plot)
    for file in (json_file, plot):
        if file is not None:
            errors.print(f"Wrote {file}")
    if not results.complete:
        raise typer.Exit(130)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    _require_train_extra()
    from lossmith import studies

    print(json.dumps(studies.json_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Say what is installed and what each missing extra would add."""
    from lossmith.report.doctor import doctor_report

    Console().print(doctor_report())


@losses_app.callback()
def losses_list(
    context: typer.Context, family: Annotated[str | None, typer.Option(help="token, region, metric ...")] = None
) -> None:
    """List the losses, or show one."""
    if context.invoked_subcommand is None:
        from lossmith.report.losses import losses_table

        Console().print(losses_table(family))


@losses_app.command("show")
def losses_show(
    name: Annotated[str, typer.Argument(help="Name or composition.")],
    png: Annotated[Path | None, typer.Option(help="Also write the curves as a picture.")] = None,
) -> None:
    """Formula, source, defaults, what it reads, its curve, its gradient and the target it implies."""
    from lossmith.report.losses import show_loss

    show_loss(name, Console(), png=png)


@losses_app.command("docs")
def losses_docs(
    out: Annotated[Path, typer.Option(help="Folder of the pages and pictures; files of the same name are replaced.")],
    readme: Annotated[Path | None, typer.Option(help="Also renew the list of losses between its marks here.")] = None,
) -> None:
    """Write the catalogue as Markdown: an index, a page per family, a picture per loss."""
    from lossmith.report.catalogue import update_readme, write_catalogue

    if readme is not None:
        update_readme(readme)
    written = write_catalogue(out)
    print(f"{len(written)} files in {out}, beginning with {written[0]}")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _config(task: str, overrides: list[str] | None, flags: dict[str, Any], *, one_loss: bool = False) -> Any:
    """Settings from the recipe or task, then key=value, then flags."""
    from lossmith import studies
    from lossmith.tasks import is_completion_task

    is_recipe = task.endswith((".yaml", ".yml")) and not is_completion_task(task)
    values = studies.read_recipe(Path(task)) if is_recipe else {"task": task}
    values = studies.apply_overrides(values, overrides or [])
    given = {name: value for name, value in flags.items() if value is not None}
    for word in overrides or []:
        name = word.partition("=")[0]
        if name in given:
            raise ConfigurationError(f"`{name}` is given twice, as a flag and as '{word}': keep one.")
    if one_loss and "losses" not in given:
        losses = values.get("losses")
        if isinstance(losses, list) and len(losses) > 1:
            raise ConfigurationError(f"The recipe names {len(losses)} losses: say which with --loss.")
        given["losses"] = losses or ["cross_entropy"]
    return studies.make_config(values | given, place=task if is_recipe else "settings")


def _seeds(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigurationError(f"`--seeds` must be a number of seeds or a list such as 0,3,7, got '{text}'.")
    return [int(part) for part in text.split(",")] if "," in text else int(text)


def _folder_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).name.split(".")[0]) or "study"


def _show(study: Any, folder: Path, console: Console) -> None:
    from lossmith.report.tables import comparison_table, to_rich
    from lossmith.report.write import write_report
    from lossmith.studies import compare_command

    page = write_report(
        folder,
        summary=study.summary,
        records=study.records,
        title=f"Which loss is best for {Path(study.config.task).name}?",
        settings=study.config.settings(),
        commands=[compare_command(study.config, folder), shlex.join(["lossmith", "report", str(folder)])],
        attribution=study.attribution,
        notices=study.notices,
    )
    console.print(to_rich(comparison_table(study.summary)))
    for row in study.summary.rows:
        console.print(_plain(f"{row.loss}: {row.sentence}"), markup=False, highlight=False, soft_wrap=True)
    for notice in study.notices:
        console.print(_plain(f"note: {notice}"), markup=False, highlight=False, soft_wrap=True)
    console.print(_plain(f"Report: {page}"), markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Text without control characters but line ends: labels and file names must not steer the terminal."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _require_train_extra() -> None:
    for module in (
        "pydantic",
        "yaml",
        "transformers",
        "accelerate",
        "scipy",
        "pyarrow",
        "sklearn",
        "matplotlib",
        "jinja2",
    ):
        require(module, extra="train", purpose="run studies")


SPREAD = {
    "compare": ("--losses",),
    "bench": ("--tokens", "--hidden", "--vocab", "--ignored", "--dtype", "--loss", "--engine", "--against"),
}
"""Options of a command that take one or more values."""


def _spread_values(words: Sequence[str]) -> list[str]:
    """`--losses a b` as `--losses a --losses b`, which is how click reads several values of one option."""
    options = SPREAD.get(words[0], ()) if words else ()
    result: list[str] = []
    collecting = ""
    named = 0
    for word in [*words, "--"]:
        # A setting begins with `key=`; a composition never does.
        ends = word.startswith("--") or re.match(r"[a-z_.]+=", word)
        if collecting and ends:
            if not named:
                what = "no loss: write one or more names or compositions" if collecting == "--losses" else "nothing"
                after = "" if collecting == "--losses" else ": write one or more values"
                raise ConfigurationError(f"`{collecting}` names {what}{after} after it.")
            collecting = ""
        if word in options:
            collecting, named = word, 0
        elif collecting:
            named += 1
            result += [collecting, word]
        else:
            result.append(word)
    return result[:-1]


def main(words: Sequence[str] | None = None) -> None:
    """Entry point: every mistake of the user is one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = _show_warning
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app(_spread_values(sys.argv[1:] if words is None else words))
    except BrokenPipeError:
        # Whoever read our output has gone; what is finished is kept.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except LossmithError as error:
        errors.print(_plain(f"error: {error}"), markup=False)
        sys.exit(2)


_shown_warnings: set[str] = set()


def _show_warning(message: Any, category: Any, *rest: Any) -> None:
    """Our own warnings as one line; those of other packages are not the user's business here."""
    if issubclass(category, LossmithWarning) and str(message) not in _shown_warnings:
        _shown_warnings.add(str(message))
        Console(stderr=True, soft_wrap=True, highlight=False).print(_plain(f"note: {message}"), markup=False)
