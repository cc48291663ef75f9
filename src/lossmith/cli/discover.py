"""`lossmith discover`: check, explain and selftest; runs are in the same group."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from lossmith.cli.shared import plain
from lossmith.errors import ConfigurationError

discover_app = typer.Typer(
    help="Find a loss that nobody has written down, and believe it.", no_args_is_help=True, rich_markup_mode=None
)
READ_AT_MOST = 1 << 16
"""Bytes of a file that are looked at; a candidate has 8,192 at most."""

File = Annotated[Path, typer.Argument(metavar="FILE", help="Python file with one function; - for standard input.")]
Family = Annotated[str, typer.Option(help="preference, token or metric.")]
Signature = Annotated[str, typer.Option(help="native, or discopop for the names of the paper and self.beta.")]


@discover_app.command("check")
def check_file(
    file: File,
    family: Family = "preference",
    signature: Signature = "native",
    against: Annotated[
        str, typer.Option(help="Which published losses it may not repeat: control, or library for all of them.")
    ] = "control",
    direction: Annotated[bool, typer.Option(help="Whether it must push the right way; a penalty need not.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Compile and check one candidate without running it: exit 0 if it is accepted, 1 if not."""
    from lossmith.discovery import check

    verdict = check(_source_of(file), family, signature=signature, against=against, direction=direction)
    _refuse_wrong_use(verdict.category, verdict.reason)
    if as_json:
        print(json.dumps(verdict.to_dict(), allow_nan=False))
    else:
        _say(str(verdict))
        if verdict.flags:
            _say(f"flags: {', '.join(verdict.flags)}")
        if verdict.nearest is not None:
            near = (
                "the same"
                if verdict.nearest.distance < 1e-3
                else "a neighbour"
                if verdict.nearest.distance < 0.05
                else ""
            )
            words = f", {near}" if near else ": none of the published losses is near"
            _say(f"nearest: {verdict.nearest.loss} at distance {verdict.nearest.distance:.2g}{words}")
    raise typer.Exit(0 if verdict.accepted else 1)


@discover_app.command("explain")
def explain_file(
    file: File,
    family: Family = "preference",
    signature: Signature = "native",
    out: Annotated[Path | None, typer.Option(help="Also draw it there, as a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all but the curves as JSON.")] = False,
) -> None:
    """Say what a candidate is, draw it beside the closest known loss, and name that one: exit as `check`."""
    from lossmith.discovery.describe import describe_candidate
    from lossmith.report.discovery_candidate import print_description, write_picture

    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise ConfigurationError(f"`--out` must be a file that ends in .png, got '{out}'.")
    name = "candidate" if str(file) == "-" else file.stem
    description = describe_candidate(_source_of(file), family, signature=signature, name=name)
    verdict = description.verdict
    _refuse_wrong_use(verdict.category, verdict.reason)
    if out is not None and not description.curves:
        raise ConfigurationError(f"There is nothing to draw, so `--out {out}` is not written: {verdict}")
    if as_json:
        print(json.dumps(description.to_dict(), allow_nan=False))
    else:
        print_description(description, Console(highlight=False))
    if out is not None:
        write_picture(description, out)
        if not as_json:
            _say(f"Picture: {out}")
    raise typer.Exit(0 if verdict.accepted else 1)


@discover_app.command("selftest")
def selftest() -> None:
    """Check the shipped corpus and race programs of known worth on this machine: exit 1 for any surprise."""
    from lossmith.cli.discover_run import require_discovery
    from lossmith.discovery.selftest import run_corpus

    report = run_corpus()
    for sentence in report.sentences:
        _say(sentence)
    require_discovery()
    from lossmith.discovery.selftest_canaries import run_canaries

    lines = run_canaries()
    _say(f"{len(lines)} canaries, {sum(not line.passed for line in lines)} off.")
    for line in lines:
        _say(line.sentence)
    raise typer.Exit(0 if report.passed and all(line.passed for line in lines) else 1)


def _source_of(file: Path) -> str:
    """The text of a file as it is; what is no text is for the checks to refuse.

    Raises:
        ConfigurationError: If it cannot be read.
    """
    try:
        if str(file) == "-":
            content = typer.get_binary_stream("stdin").read(READ_AT_MOST)
        else:
            with file.open("rb") as stream:
                content = stream.read(READ_AT_MOST)
    except OSError as error:
        raise ConfigurationError(f"Cannot read `{file}`: {error.strerror or error}.") from None
    return content.decode("utf-8", errors="surrogateescape")


def _refuse_wrong_use(category: str, reason: str) -> None:
    if category == "usage":
        raise ConfigurationError(reason)


def _say(text: str) -> None:
    Console(highlight=False).print(Text(plain(text)), soft_wrap=True)


Task = Annotated[
    str | None, typer.Option(help="What the rung `small` trains on: sentiment, a set or file of pairs; a set of texts.")
]
PolicyModel = Annotated[
    str | None, typer.Option("--model", help="What `small` trains: embedded: name, folder, hub id.")
]
Rungs = Annotated[str | None, typer.Option(help="Some of toy,tiny,small; small where --task or --model is given.")]
Arms = Annotated[
    str,
    typer.Option(
        "--proposer",
        help="Several with commas: gp, enumeration, constants, llm, best-of:llm, discopop, replay:RUN, transplant:RUN, "
        "or a folder of candidates; random and best-of are always there.",
    ),
]
RunBudget = Annotated[str, typer.Option("--budget", help="Such as 30m, 1h30m, '2h, 3usd, 500ktokens', 200jobs.")]
Seed = Annotated[int, typer.Option(help="Every draw of the run follows from it.", min=0)]
Out = Annotated[Path | None, typer.Option(help="Results folder; continued if it holds this run.")]
Unseen = Annotated[str | None, typer.Option(help="Task of the confirmation beside that of `small`.")]
Rounds = Annotated[int | None, typer.Option(help="Rounds of the search; as many as the budget allows.", min=1)]
Workers = Annotated[int, typer.Option(help="Evaluations at a time, in threads; 0 evaluates in the main one.", min=0)]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint of the model that proposes.")]
LlmModel = Annotated[
    str | None, typer.Option(help="The model that proposes; --model says it too where no rung trains a model.")
]
Price = Annotated[str | None, typer.Option("--prices", help="Dollars per million tokens read,written, as in 0.15,0.6.")]
StudySettings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the study of `small`.")
]


def _run_command(family: str) -> None:
    def run(
        overrides: StudySettings = None,
        task: Task = None,
        model: PolicyModel = None,
        proposer: Arms = "gp",
        budget: RunBudget = "30m",
        rungs: Rungs = None,
        unseen: Unseen = None,
        seed: Seed = 0,
        rounds: Rounds = None,
        workers: Workers = 0,
        base_url: BaseUrl = None,
        llm_model: LlmModel = None,
        prices: Price = None,
        out: Out = None,
    ) -> None:
        from lossmith.cli.discover_run import run_discovery

        run_discovery(
            family,
            overrides=overrides or [],
            task=task,
            model=model,
            proposer=proposer,
            budget=budget,
            rungs=rungs,
            unseen=unseen,
            seed=seed,
            rounds=rounds,
            workers=workers,
            base_url=base_url,
            llm_model=llm_model,
            prices=prices,
            out=out,
        )

    run.__doc__ = f"Search for a {family} loss: propose, check, race on rung after rung, confirm on fresh ground."
    discover_app.command(family)(run)


for _family in ("preference", "token", "metric"):
    _run_command(_family)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Results folder of a discovery.")]


@discover_app.command("report")
def report_run(run: RunFolder) -> None:
    """Write the report of a run again; also while it goes on."""
    from lossmith.cli.discover_run import require_discovery
    from lossmith.report.discovery import answers, write_discovery

    require_discovery()
    page = write_discovery(run)
    from lossmith.discovery.history import open_history

    for sentence in answers(open_history(run)):
        _say(sentence)
    _say(f"Report: {page}")


@discover_app.command("replay")
def replay_run(run: RunFolder) -> None:
    """Make every decision of a run again from its database alone: exit 0 if all follow, 1 with those that do not."""
    from lossmith.cli.discover_run import require_discovery

    require_discovery()
    from lossmith.discovery import replay

    found = replay.replay_run(run)
    for sentence in found.sentences:
        _say(sentence)
    raise typer.Exit(1 if found.mismatches else 0)


@discover_app.command("export")
def export_program(
    run: RunFolder,
    winner: Annotated[str, typer.Argument(help="First letters of a program's key, or winner, or best.")],
    name: Annotated[str | None, typer.Option(help="Of the objective.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; a folder in the run's by default.")] = None,
) -> None:
    """Write a program as an objective file with tests, a card with its evidence, and the commands to replay it."""
    from lossmith.cli.discover_run import require_discovery

    require_discovery()
    from lossmith.discovery.export import export

    exported = export(run, winner, out=out, name=name)
    for file in exported.files:
        _say(str(file))
    if not exported.announced:
        _say("note: the run did not announce this program; its card says what was measured.")
