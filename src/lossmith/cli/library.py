"""Commands about losses and the machine: losses, bench, doctor, version."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lossmith._version import __version__

losses_app = typer.Typer(help="The library of losses.", invoke_without_command=True, rich_markup_mode=None)


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


def version() -> None:
    """Print the version."""
    print(__version__)
