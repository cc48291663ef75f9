"""`lossmith discover FAMILY`: from options to a run, with its preflight, progress, and report."""

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from lossmith._extras import require
from lossmith.cli.shared import plain
from lossmith.errors import ConfigurationError, EvidenceError

BRIEF_BELOW_S = 2 * 3600.0
"""Budgets of wall time below this get the brief form of `small`."""


def run_discovery(
    family: str,
    *,
    overrides: list[str],
    task: str | None,
    model: str | None,
    proposer: str,
    budget: str,
    rungs: str | None,
    unseen: str | None,
    seed: int,
    rounds: int | None,
    workers: int,
    base_url: str | None,
    llm_model: str | None,
    prices: str | None,
    out: Path | None,
) -> None:
    """Run, or go on with, one discovery.

    Raises:
        LossmithError: For every mistake of the user, in one sentence.
    """
    require_discovery()
    from lossmith.discovery.costs import Budget
    from lossmith.discovery.engine import Engine
    from lossmith.discovery.start import make_setup, nothing_left
    from lossmith.report.discovery_live import RaceProgress
    from lossmith.studies.provenance import commit

    limit = Budget.parse(budget)
    arms = [word.strip() for word in proposer.split(",") if word.strip()]
    if not arms:
        raise ConfigurationError("`--proposer` names nothing: write gp, another arm, or a folder of candidates.")
    small = task is not None or bool(overrides)
    model, llm_model, names = _models(model, llm_model, arms, rungs, small)
    folder = out or Path("runs") / f"discover-{family}"
    ladder = _ladder(family, names, task, model, unseen, overrides, limit, folder)
    console = Console(highlight=False)
    with ExitStack() as stack:
        with nothing_left(folder, stack):
            setup = make_setup(
                family,
                ladder,
                seed=seed,
                budget=limit,
                proposers=arms,
                address=_address(base_url, llm_model, prices),
                rounds=rounds,
                workers=workers,
                folder=folder,
                stack=stack,
                provenance={"command": shlex.join(["lossmith", *sys.argv[1:]]), "commit": commit()},
            )
            bar = RaceProgress(console)
            engine = stack.enter_context(
                Engine(folder, setup, say=lambda sentence: _say(console, sentence), moved=bar.moved)
            )
        _preflight(console, engine, setup, folder)
        try:
            with bar:
                outcome = engine.run()
        except KeyboardInterrupt:
            Console(stderr=True).print("Stopped. All that was measured is kept; the same command goes on.")
            raise typer.Exit(130) from None
    _say(console, outcome.sentence)
    _tell(console, folder, outcome.announced)
    if outcome.status != "finished":
        # Kept, and without a verdict: a script must not take it for one.
        raise typer.Exit(1)


def require_discovery() -> None:
    """Say which extra is missing before anything is imported.

    Raises:
        MissingExtraError: If a package of the train extra is not installed.
    """
    for module in ("numpy", "scipy", "filelock"):
        require(module, extra="discover", purpose="search for losses")


def _models(
    model: str | None, llm_model: str | None, arms: list[str], rungs: str | None, small: bool
) -> tuple[str | None, str | None, list[str]]:
    """The policy's model, the proposer's, and the rungs: `--model` is the policy's, unless no rung trains one."""
    asks = any(arm in ("llm", "best-of:llm", "discopop") for arm in arms)
    names = [word.strip() for word in rungs.split(",")] if rungs is not None else None
    trains = "small" in names if names is not None else small
    if asks and model is not None and llm_model is None:
        if not trains and not model.startswith("embedded:"):
            return None, model, names or ["toy", "tiny"]
        raise ConfigurationError(
            f"`--model {model}` is the model that the rung small trains: name the one that proposes by --llm-model."
        )
    trains = trains or (names is None and model is not None)
    return model, llm_model, names or (["toy", "tiny", "small"] if trains else ["toy", "tiny"])


def _ladder(
    family: str,
    names: list[str],
    task: str | None,
    model: str | None,
    unseen: str | None,
    overrides: list[str],
    limit: Any,
    folder: Path,
) -> Any:
    """The ladder; `small` in the form that the run in the folder has, else in the one that the budget allows."""
    from lossmith.discovery.ladder import make_ladder
    from lossmith.discovery.store.database import FILE_NAME, Database

    settings = {}
    if overrides:
        from lossmith.studies import apply_overrides

        settings = apply_overrides({}, overrides)
    told: dict[str, Any] = {"task": task, "model": model, "unseen": unseen, "settings": settings}
    brief = limit.wall_seconds is not None and limit.wall_seconds < BRIEF_BELOW_S
    ladder = make_ladder(family, names, **told, brief=brief)
    if "small" in names and (folder / FILE_NAME).is_file():
        try:
            with Database(folder, read_only=True) as database:
                stored = database.settings().get("rungs", {}).get("small", {})
        except EvidenceError:
            return ladder
        if stored and stored["environment"] != ladder.rungs[-1].environment:
            other = make_ladder(family, names, **told, brief=not brief)
            return other if other.rungs[-1].environment == stored["environment"] else ladder
    return ladder


def _address(base_url: str | None, llm_model: str | None, prices: str | None) -> Any:
    from lossmith.discovery.start import ModelAddress

    pair = None
    if prices is not None:
        try:
            read, written = (float(word) for word in prices.split(","))
            pair = read, written
        except ValueError:
            raise ConfigurationError(
                f"`--prices` must be dollars per million tokens read and written, as in 0.15,0.6, got '{prices}'."
            ) from None
    return ModelAddress(base_url=base_url, model=llm_model, prices=pair)


def _preflight(console: Console, engine: Any, setup: Any, folder: Path) -> None:
    """What the run is and what it will cost, before anything is spent."""
    grounds = ", ".join(f"{rung.name} ({rung.ground[0]}, {rung.fitness_name})" for rung in setup.rungs)
    unseen = ", ".join(f"{rung.name} ({rung.ground[0]})" for rung in setup.unseen)
    race = setup.settings
    _say(console, f"Rungs: {grounds}; confirmed on fresh rows and on {unseen}.")
    if engine.archive.find_stage("closed") is None:
        _say(
            console,
            f"Race: {race.candidates} candidates a round, {race.elites} elites, {race.challengers} challengers, "
            f"blocks {', '.join(map(str, race.blocks))}, {race.finalists} finalists over {race.confirmation_blocks} "
            "fresh blocks a ground.",
        )
        for sentence in engine.forecast().sentences(setup.budget, race.rounds):
            _say(console, f"  {sentence}")
    spent = engine.ledger.spent()
    if spent.jobs:
        _say(console, f"Goes on with the run in {folder}: {spent.jobs:.0f} evaluations are there.")


def _tell(console: Console, folder: Path, announced: tuple[str, ...]) -> None:
    from lossmith.discovery.history import open_history
    from lossmith.report.discovery import write_discovery

    _say(console, f"Report: {write_discovery(folder)}")
    best = announced[0][:8] if announced else "best" if open_history(folder).elites() else ""
    if best:
        _say(console, f"Take it along: {shlex.join(['lossmith', 'discover', 'export', str(folder), best])}")


def _say(console: Console, sentence: str) -> None:
    console.print(Text(plain(sentence)), soft_wrap=True)
    sys.stdout.flush()
