"""From a few words to a run: control, canaries, gate, proposers and the largest race that the budget carries."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from lossmith.discovery.admission import Admission
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.costs import Budget, show_amount
from lossmith.discovery.gate import Gate
from lossmith.discovery.ladder import Ladder
from lossmith.discovery.proposers.arms import ASKING, make_arms, place_of
from lossmith.discovery.proposers.base import ProgramLike, Proposer
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.genetic import GeneticProposer
from lossmith.discovery.proposers.portfolio import Portfolio
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.sieve import behaviour
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.database import FILE_NAME, Database
from lossmith.discovery.store.preflight import forecast
from lossmith.errors import ConfigurationError, EvidenceError


class Size(NamedTuple):
    """How large a race is; `RaceSettings` has the words, `each` is for the blocks of a rung."""

    candidates: int
    elites: int
    challengers: int
    playoff_blocks: int
    finalists: int
    confirmation_blocks: int
    each: int


ALONE = Size(16, 6, 10, 16, 3, 16, each=2)
"""The race of a single rung, where all is measured to the end: as many are tried again as come in."""
ALONE_FROM = 10
"""Rounds that must fit for it."""
SIZES = (
    Size(24, 4, 4, 8, 3, 16, each=3),
    Size(24, 4, 4, 4, 3, 12, each=2),
    Size(16, 3, 2, 2, 2, 8, each=2),
    Size(12, 2, 1, 0, 1, 6, each=1),
    Size(6, 1, 1, 0, 1, 5, each=1),
)
"""Races from large to small; a run takes the first of which two rounds fit into its budget."""
REPLIES = "replies.sqlite"


@dataclass(frozen=True, kw_only=True)
class ModelAddress:
    """Which language model proposes, and what it asks for."""

    base_url: str | None = None
    model: str | None = None
    prices: tuple[float, float] | None = None
    """Dollars per million tokens read and written; None where they are not known, which is not free of charge."""

    @property
    def usd_per_million_read(self) -> float:
        """0 where it is not known."""
        return 0.0 if self.prices is None else self.prices[0]

    @property
    def usd_per_million_written(self) -> float:
        """0 where it is not known."""
        return 0.0 if self.prices is None else self.prices[1]

    @property
    def host(self) -> str:
        """Name and port of the address, which can hold no key; see `Endpoint`."""
        return urlsplit(self.base_url or "").netloc


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
    provenance: Mapping[str, Any] | None = None,
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
        provenance: Of this session, as in `Setup`; the model's host and prices are added.

    Raises:
        ConfigurationError: For proposers that there are not, or that lack an address; for a budget in money where
            nobody says what a model costs.
        EvidenceError: If the folder holds a run on other rungs.
    """
    asks = [name for name in proposers if name in ASKING]
    _check_prices(asks, address, budget)
    _check_rungs(folder, ladder)
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
        sources=_sources(proposers, asks, address),
        provenance={**(provenance or {}), **_asked(asks, address)},
    )


def _check_prices(asks: Sequence[str], address: ModelAddress | None, budget: Budget) -> None:
    prices = None if address is None else address.prices
    if prices is not None and not asks:
        raise ConfigurationError("`--prices` are for `--proposer llm`, which is not asked for.")
    if prices is not None and not all(0 <= price < math.inf for price in prices):
        raise ConfigurationError(f"`--prices` must be two finite numbers >= 0, got {prices[0]:g},{prices[1]:g}.")
    if asks and prices is None and budget.money_usd is not None:
        raise ConfigurationError(
            f"`budget` of {show_amount('money_usd', budget.money_usd)} needs `--prices`: without them nobody knows "
            f"what `--proposer {asks[0]}` costs. Give dollars per million tokens read and written, as in "
            "--prices 0.15,0.6, or 0,0 for a model that costs nothing."
        )


def _check_rungs(folder: Path | None, ladder: Ladder) -> None:
    """Before the stored race, which fits the stored rungs alone, is taken for others."""
    stored, given = _stored(folder).get("ladder"), [rung.name for rung in ladder.rungs]
    if stored is not None and stored != given:
        raise EvidenceError(
            f"`{folder}` holds a run on the rungs {','.join(stored)}, and this one is on {','.join(given)}: choose "
            f"another --out, or --rungs {','.join(stored)}."
        )


def _sources(proposers: Sequence[str], asks: Sequence[str], address: ModelAddress | None) -> dict[str, Any]:
    """The model and the folders that proposals come from; empty where there are none."""
    folders = sorted({place for name in proposers if (place := place_of(name)) is not None})
    model = {"model": address.model} if asks and address is not None else {}
    return model | ({"folders": folders} if folders else {})


def _asked(asks: Sequence[str], address: ModelAddress | None) -> dict[str, Any]:
    if not asks or address is None:
        return {}
    return {
        "model": address.model,
        "host": address.host,
        "prices": None if address.prices is None else [*address.prices],
    }


@contextmanager
def nothing_left(folder: Path, stack: ExitStack) -> Iterator[None]:
    """Where a run is refused before it has a database, remove the store of replies and the folders that were made."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    stored = (folder / REPLIES).exists()
    try:
        yield
    except BaseException:
        if stored or (folder / FILE_NAME).exists() or not folder.is_dir():
            raise
        stack.close()
        for name in (REPLIES, f"{REPLIES}-wal", f"{REPLIES}-shm", f".{REPLIES}.lock"):
            (folder / name).unlink(missing_ok=True)
        for each in made:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
        raise


def fitting_race(ladder: Ladder, proposer: Proposer, budget: Budget, workers: int = 0) -> RaceSettings:
    """The largest race of which two rounds and the confirmation fit; else the smallest, for the preflight to judge."""
    found = [(_race(size, len(ladder.rungs)), 2) for size in SIZES]
    if len(ladder.rungs) == 1:
        found.insert(0, (_race(ALONE, 1), ALONE_FROM))
    grounds = (ladder.rungs[-1], *ladder.unseen)
    for settings, rounds in found:
        plan = forecast(settings, ladder.rungs, grounds, proposer, workers=workers)
        if plan.rounds(budget) >= rounds:
            return settings
    return found[-1][0]


def _race(size: Size, rungs: int) -> RaceSettings:
    sizes = {name: value for name, value in size._asdict().items() if name != "each"}
    # The cheapest rung is so cheap that one block more costs nothing.
    blocks = (size.each + (rungs > 1), *[size.each] * (rungs - 1))
    return RaceSettings(blocks=blocks, **sizes)


def stored_race(folder: Path | None) -> RaceSettings | None:
    """The race of a run that is in the folder already; None where there is none."""
    stored = _stored(folder).get("race")
    return None if not stored else RaceSettings(**(stored | {"blocks": tuple(stored["blocks"])}))


def _stored(folder: Path | None) -> dict[str, Any]:
    """The settings of a run that is in the folder already; empty where there is none."""
    if folder is None or not (folder / FILE_NAME).is_file():
        return {}
    try:
        with Database(folder, read_only=True) as database:
            return database.settings()
    except EvidenceError:
        return {}  # the engine opens it to write, and says what is wrong


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
    asks = [name for name in names if name in ASKING]
    if address is not None and (address.base_url or address.model) and not asks:
        raise ConfigurationError("`--base-url` and `--llm-model` are for `--proposer llm`, which is not asked for.")
    arms = make_arms(
        names,
        family,
        folder=folder,
        ask=lambda name: _asking(name, family, gate, ladder, control, address, folder, stack),
    )
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
        cache=stack.enter_context(CallCache(folder / REPLIES)),
        usd_per_million_read=address.usd_per_million_read,
        usd_per_million_written=address.usd_per_million_written,
    )
    if name == "llm":
        return LLMProposer(model, check=gate.check)
    if name == "best-of:llm":
        return LLMProposer(model, name="best-of-llm", blind=True)
    if family != "preference":
        raise ConfigurationError(f"`--proposer discopop` is the paper's protocol for preference losses, not {family}.")
    return DiscoPOPProposer(model, rung=ladder.rungs[0], control=control_of(family), check=gate.check)
