"""Tune the constants of the elites: the skeleton stays, Optuna chooses the numbers.

Optuna's samplers cannot be written down, so they are not kept: the trials are, and every call makes the study anew
from them with a sampler that is seeded by the run. What it asks for then follows from trials and seed alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lossmith._extras import require
from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Node, Program, ProgramError
from lossmith.discovery.program import const as number
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal, Standing
from lossmith.discovery.proposers.programs import (
    Novelty,
    Sieve,
    dice_of,
    proposal,
    read_stored,
    stored,
    to_program,
)
from lossmith.discovery.proposers.variation import numbers, put

REACH = 8.0
"""A constant is tried from this many times smaller to this many times larger."""
MOST_CONSTANTS = 12
"""Programs with more are left out: there would be too few trials for each."""
MOST_SKELETONS = 16
"""Those worked on longest ago are forgotten."""


@dataclass
class Search:
    """The tuning of one skeleton."""

    program: Program
    """The first elite with it; its numbers are the middle of the ranges."""
    trials: list[tuple[list[float], str, float]] = field(default_factory=list)
    """Numbers, rung and mean difference of what was measured."""
    pending: dict[str, list[float]] = field(default_factory=dict)
    """Key -> numbers of what was proposed and not heard of yet."""

    def suggest(self, rungs: Sequence[str], seed: int, count: int) -> list[list[float]]:
        """`count` choices of the numbers, by TPE on the trials so far."""
        optuna = require("optuna", extra="tune", purpose="tune the constants of programs")
        slots = ranges(self.program)
        space = {
            f"c{place}": optuna.distributions.FloatDistribution(low, high) for place, (low, high) in enumerate(slots)
        }
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=True, constant_liar=True)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(sampler=sampler, direction="maximize")
            for values, place in self._ordered(rungs):
                params = {f"c{slot}": value for slot, value in enumerate(values)}
                study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=float(place)))
            asked = [study.ask(space).params for _ in range(count)]
        finally:
            optuna.logging.set_verbosity(verbosity)
        return [[params[f"c{slot}"] for slot in range(len(slots))] for params in asked]

    def _ordered(self, rungs: Sequence[str]) -> list[tuple[list[float], int]]:
        """Trials with their place, the worst 0: differences on different rungs have no common scale."""
        height = {rung: place for place, rung in enumerate(rungs)}
        by_worth = sorted(range(len(self.trials)), key=lambda i: (height.get(self.trials[i][1], -1), self.trials[i][2]))
        places = {trial: place for place, trial in enumerate(by_worth)}
        return [(values, places[i]) for i, (values, _, _) in enumerate(self.trials)]


class ConstantsProposer:
    """Proposes elites with other constants.

    Args:
        name: Of the arm.
        sieve: Leaves out what the checks would refuse.
    """

    def __init__(self, *, name: str = "constants", sieve: Sieve | None = None):
        self.name = name
        self._sieve = sieve
        self._searches: dict[str, Search] = {}
        self._family = ""

    def expected_cost(self, n: int) -> Cost:
        """Processor time only."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """Up to `n` programs, in turn from the skeletons of the elites, the best one first; none without elites."""
        self._family = context.family
        skeletons = self._open(context)
        if not skeletons or n < 1:
            return Batch(proposals=())
        new = Novelty.of(context, self._sieve)
        found: list[Proposal] = []
        for place, skeleton in enumerate(skeletons):
            share = n // len(skeletons) + (place < n % len(skeletons))
            if share == 0:
                break
            search = self._searches[skeleton]
            seed = dice_of(context, f"{self.name}/{skeleton}").getrandbits(31)
            for values in search.suggest(context.rungs, seed, 2 * share):
                program = with_numbers(search.program, values)
                if share and program is not None and new.admit(program):
                    search.pending[program.key] = values
                    found.append(proposal(self.name, program, (search.program,)))
                    share -= 1
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Learn from every program with a skeleton that is worked on, whoever proposed it."""
        for event in events:
            for search in self._searches.values():
                values = search.pending.pop(event.key or "", None)
                if values is not None and event.standing is not None and event.kind == "measured":
                    search.trials.append((values, event.standing.rung, event.standing.mean))
                elif values is not None:
                    search.trials.append((values, "", 0.0))

    def state(self) -> dict[str, Any]:
        """All trials."""
        return {
            "family": self._family,
            "searches": [
                {"skeleton": skeleton, "program": stored(each.program), "trials": each.trials, "pending": each.pending}
                for skeleton, each in self._searches.items()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the trials."""
        self._family = str(state["family"])
        self._searches = {}
        for each in state["searches"]:
            trials = [([float(v) for v in values], str(rung), float(mean)) for values, rung, mean in each["trials"]]
            pending = {str(key): [float(v) for v in values] for key, values in each["pending"].items()}
            self._searches[str(each["skeleton"])] = Search(read_stored(each["program"], self._family), trials, pending)

    def _open(self, context: Context) -> list[str]:
        """Skeletons of the elites, best first; new ones begin with the elite itself as their first trial."""
        found: list[str] = []
        for standing in context.elites:
            program = to_program(standing.program, context.family)
            if program is None or program.skeleton in found:
                continue
            plain = Program(program.family, program.literal_root)
            if not 0 < len(ranges(plain)) <= MOST_CONSTANTS:
                continue
            search = self._searches.pop(program.skeleton, None) or _begin(plain, standing)
            self._searches[program.skeleton] = search
            found.append(program.skeleton)
        for old in list(self._searches)[:-MOST_SKELETONS]:
            del self._searches[old]
        return found


def _begin(plain: Program, standing: Standing) -> Search:
    middle = [float(node.value or 0.0) for _, node in numbers(plain.root)]
    return Search(plain, [(_to_slots(middle, middle), standing.rung, standing.mean)])


def _to_slots(values: Sequence[float], middle: Sequence[float]) -> list[float]:
    """Numbers as places in their ranges: the logarithm of the ratio to the middle, or the number where that is 0."""
    return [math.log(value / base) if base else value for value, base in zip(values, middle, strict=True)]


def ranges(program: Program) -> list[tuple[float, float]]:
    """Low and high of each slot: logarithms of ratios to the constant, or numbers where it is 0."""
    reach = math.log(REACH)
    return [(-reach, reach) if node.value else (-1.0, 1.0) for _, node in numbers(program.root)]


def with_numbers(program: Program, slots: Sequence[float]) -> Program | None:
    """The program with other constants, to three digits; None where one does not fit its place."""
    root: Node = program.root
    try:
        for (path, node), slot in zip(numbers(program.root), slots, strict=True):
            base = float(node.value or 0.0)
            root = put(root, path, number(float(f"{base * math.exp(slot) if base else slot:.3g}")))
        return Program(program.family, root)
    except ProgramError:
        return None
