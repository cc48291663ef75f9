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
        str, typer.Option(help="Which published losses it may not repeat: the control, or all of the library.")
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
            _say(f"nearest: {verdict.nearest.loss} at distance {verdict.nearest.distance:.2g}")
    raise typer.Exit(0 if verdict.accepted else 1)


@discover_app.command("explain")
def explain_file(
    file: File,
    family: Family = "preference",
    signature: Signature = "native",
    out: Annotated[Path | None, typer.Option(help="Also draw it there, as a PNG.")] = None,
) -> None:
    """Say what a candidate is, draw it beside the closest known loss, and name that one: exit as `check`."""
    from lossmith.discovery.describe import describe_candidate
    from lossmith.report.discovery_candidate import print_description, write_picture

    name = "candidate" if str(file) == "-" else file.stem
    description = describe_candidate(_source_of(file), family, signature=signature, name=name)
    verdict = description.verdict
    _refuse_wrong_use(verdict.category, verdict.reason)
    if out is not None and not description.curves:
        raise ConfigurationError(f"There is nothing to draw, so `--out {out}` is not written: {verdict}")
    console = Console(highlight=False)
    print_description(description, console)
    if out is not None:
        write_picture(description, out)
        _say(f"Picture: {out}")
    raise typer.Exit(0 if verdict.accepted else 1)


@discover_app.command("selftest")
def selftest() -> None:
    """Check the shipped corpus of hostile, broken and benign candidates on this machine: exit 1 for any surprise."""
    from lossmith.discovery.selftest import run_corpus

    report = run_corpus()
    for sentence in report.sentences:
        _say(sentence)
    raise typer.Exit(0 if report.passed else 1)


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
