"""Command line: parses and calls; decides nothing."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

from lossmith.cli import baseline, discover, explain, judge, library, predict, rank, studies, tune
from lossmith.cli.shared import plain
from lossmith.errors import ConfigurationError, LossmithError, LossmithWarning

__all__ = ["app", "main"]

app = typer.Typer(
    help="Which loss should fine-tune my language model? Paired seeds, intervals, one report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order of the help.
for command in (
    studies.compare,
    tune.tune,
    studies.train,
    predict.predict,
    studies.report,
    explain.explain,
    rank.rank,
    baseline.baseline,
    judge.answer,
    judge.judge,
    studies.tokenize,
    library.bench,
    studies.settings,
    studies.schema,
    library.doctor,
    library.version,
):
    app.command()(command)
app.add_typer(library.losses_app, name="losses")
app.add_typer(discover.discover_app, name="discover")

SPREAD = {
    "compare": ("--losses",),
    "explain": ("--losses",),
    "tune": ("--losses",),
    "bench": ("--tokens", "--hidden", "--vocab", "--ignored", "--dtype", "--loss", "--engine", "--against"),
}
"""Options of a command that take one or more values."""


def spread_values(words: Sequence[str]) -> list[str]:
    """`--losses a b` as `--losses a --losses b`, which is how click reads several values of one option."""
    options = SPREAD.get(words[0], ()) if words else ()
    result: list[str] = []
    collecting = ""
    named = 0
    for word in [*words, "--"]:
        # A setting begins with `key=`; a composition never does.
        ends = word.startswith("--") or re.match(r"[a-z_][a-z0-9_.]*=", word)
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
        app(spread_values(sys.argv[1:] if words is None else words))
    except BrokenPipeError:
        # Whoever read our output has gone; what is finished is kept.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except LossmithError as error:
        errors.print(plain(f"error: {error}"), markup=False)
        sys.exit(2)


_shown_warnings: set[str] = set()


def _show_warning(message: Any, category: Any, *rest: Any) -> None:
    """Our own warnings as one line; those of other packages are not the user's business here."""
    if issubclass(category, LossmithWarning) and str(message) not in _shown_warnings:
        _shown_warnings.add(str(message))
        Console(stderr=True, soft_wrap=True, highlight=False).print(plain(f"note: {message}"), markup=False)
