"""From a few words to a run: control, canaries, gate, proposers and the largest race that the budget carries."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lossmith.discovery.admission import Admission
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.costs import Budget
from lossmith.discovery.gate import Gate
from lossmith.discovery.ladder import Ladder
from lossmith.discovery.proposers.base import ProgramLike, Proposer
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.genetic import GeneticProposer
from lossmith.discovery.proposers.human import HumanProposer
from lossmith.discovery.proposers.portfolio import Portfolio
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.sieve import behaviour
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.database import FILE_NAME, Database
from lossmith.discovery.store.preflight import forecast
from lossmith.errors import ConfigurationError, EvidenceError

ARMS = ("gp", "random", "llm", "discopop")
"""Names of `--proposer`; a folder of candidates is one too."""
SIZES = (
    {"candidates": 24, "elites": 4, "challengers": 4, "finalists": 3, "confirmation_blocks": 16, "each": 3},
    {"candidates": 24, "elites": 4, "challengers": 4, "finalists": 3, "confirmation_blocks": 12, "each": 2},
    {"candidates": 16, "elites": 3, "challengers": 2, "finalists": 2, "confirmation_blocks": 8, "each": 2},
    {"candidates": 12, "elites": 2, "challengers": 1, "finalists": 1, "confirmation_blocks": 6, "each": 1},
    {"candidates": 6, "elites": 1, "challengers": 1, "finalists": 1, "confirmation_blocks": 5, "each": 1},
)
"""Races from large to small; a run takes the first of which two rounds fit into its budget."""
REPLIES = "replies.sqlite"


@dataclass(frozen=True, kw_only=True)
class ModelAddress:
    """Which language model proposes, and what it asks for."""

    base_url: str | None = None
    model: str | None = None
    usd_per_million_read: float = 0.0
    usd_per_million_written: float = 0.0


def make_setup(
    family: str,
    ladder: Ladder,
    *,
    seed: int,
    budget: Budget,
    proposers: Sequence[str] = ("gp",),
    address: ModelAddress | None = None,
    rounds: int | None = None,
    workers: int = 0,
    folder: Path | None = None,
    stack: ExitStack | None = None,
) -> Setup:
    """All parts of a run.

    Args:
        family: `preference`, `token` or `metric`.
        ladder: Where it measures.
        seed: Every draw follows from it.
        budget: The most that it may use.
        proposers: Names of `ARMS`, or folders of candidates; random and best-of-N are always added.
        address: Of the language model, for `llm` and `discopop`.
        rounds: Of the search; None for as many as the budget allows.
        workers: As in `Setup`.
        folder: Of the run: one that exists keeps its race; a model's replies are stored in it.
        stack: Closes what is opened.

    Raises:
        ConfigurationError: For proposers that there are not, or that lack an address.
    """
    # Type checkers do not take the cached key of a program for the property of `ProgramLike`.
    gate, control = cast(Gate, Admission(family, seed)), cast(ProgramLike, control_of(family))
    stack = stack or ExitStack()
    proposer = _portfolio(proposers, family, gate, ladder, control, address, folder, stack)
    settings = stored_race(folder) or fitting_race(ladder, proposer, budget, workers)
    return Setup(
        seed=seed,
        gate=gate,
        proposer=proposer,
        rungs=ladder.rungs,
        unseen=ladder.unseen,
        control=control,
        canaries=canaries_of(family, synthetic=ladder.synthetic),
        settings=replace(settings, rounds=rounds),
        budget=budget,
        workers=workers,
    )


def fitting_race(ladder: Ladder, proposer: Proposer, budget: Budget, workers: int = 0) -> RaceSettings:
    """The largest race of which two rounds and the confirmation fit; else the smallest, for the preflight to judge."""
    found = [_race(size, len(ladder.rungs)) for size in SIZES]
    grounds = (ladder.rungs[-1], *ladder.unseen)
    for settings in found:
        plan = forecast(settings, ladder.rungs, grounds, proposer, workers=workers)
        if plan.rounds(budget) >= 2:
            return settings
    return found[-1]


def _race(size: dict[str, int], rungs: int) -> RaceSettings:
    sizes = {name: value for name, value in size.items() if name != "each"}
    # The cheapest rung is so cheap that one block more costs nothing.
    blocks = (size["each"] + (rungs > 1), *[size["each"]] * (rungs - 1))
    return RaceSettings(blocks=blocks, **sizes)


def stored_race(folder: Path | None) -> RaceSettings | None:
    """The race of a run that is in the folder already; None where there is none."""
    if folder is None or not (folder / FILE_NAME).is_file():
        return None
    try:
        with Database(folder, read_only=True) as database:
            stored = database.settings().get("race")
    except EvidenceError:
        return None  # the engine opens it to write, and says what is wrong
    return None if not stored else RaceSettings(**(stored | {"blocks": tuple(stored["blocks"])}))


def _portfolio(
    names: Sequence[str],
    family: str,
    gate: Gate,
    ladder: Ladder,
    control: ProgramLike,
    address: ModelAddress | None,
    folder: Path | None,
    stack: ExitStack,
) -> Portfolio:
    arms: list[Proposer] = []
    asks = [name for name in names if name in ("llm", "discopop")]
    if address is not None and (address.base_url or address.model) and not asks:
        raise ConfigurationError("`--base-url` and `--llm-model` are for `--proposer llm`, which is not asked for.")
    for name in dict.fromkeys(names):
        if name == "gp":
            arms.append(GeneticProposer(sieve=behaviour))
        elif name in ("llm", "discopop"):
            arms.append(_asking(name, family, gate, ladder, control, address, folder, stack))
        elif name != "random":
            if not Path(name).is_dir():
                raise ConfigurationError(
                    f"`--proposer` must be one of {', '.join(ARMS)}, or a folder of candidates in .py files, "
                    f"got '{name}'."
                )
            arms.append(HumanProposer(name))
    # By arms: draws follow from the name, and must not depend on where a folder of candidates lies.
    name = "+".join(arm.name for arm in arms) or "random"
    arms.append(BestOfProposer(GeneticProposer(name="gp-blind", sieve=behaviour)))
    arms.append(RandomProposer(sieve=behaviour))
    return Portfolio(arms, name=name)


def _asking(
    name: str,
    family: str,
    gate: Gate,
    ladder: Ladder,
    control: ProgramLike,
    address: ModelAddress | None,
    folder: Path | None,
    stack: ExitStack,
) -> Proposer:
    from lossmith.discovery.proposers.discopop import DiscoPOPProposer
    from lossmith.discovery.proposers.llm import LLMProposer
    from lossmith.discovery.proposers.model import Model, open_endpoint
    from lossmith.evaluation.judging import CallCache

    if address is None or not address.base_url or not address.model:
        missing = "--base-url" if address is None or not address.base_url else "--llm-model"
        raise ConfigurationError(
            f"`--proposer {name}` asks a model: give `{missing}`, as in --base-url http://localhost:11434/v1 "
            "--llm-model qwen3:8b."
        )
    if folder is None:
        raise ConfigurationError(f"`--proposer {name}` keeps the model's replies: give a results folder.")
    model = Model(
        model=address.model,
        endpoint=stack.enter_context(open_endpoint(address.base_url)),
        cache=CallCache(folder / REPLIES),
        usd_per_million_read=address.usd_per_million_read,
        usd_per_million_written=address.usd_per_million_written,
    )
    if name == "llm":
        return LLMProposer(model, check=gate.check)
    if family != "preference":
        raise ConfigurationError(f"`--proposer discopop` is the paper's protocol for preference losses, not {family}.")
    return DiscoPOPProposer(model, rung=ladder.rungs[0], control=control_of(family), check=gate.check)
