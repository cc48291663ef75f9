"""Genetic programming over the typed grammar: the default, offline and deterministic."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Node, Program, ProgramError
from lossmith.discovery.proposers.base import Batch, Context, Event, Standing
from lossmith.discovery.proposers.grammar import Grammar, grammar
from lossmith.discovery.proposers.programs import Novelty, Sieve, dice_of, proposal, read_stored, stored, to_program
from lossmith.discovery.proposers.variation import Variation
from lossmith.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class GeneticSettings:
    """How the population is kept and varied."""

    population: int = 48
    """Measured programs that are remembered as parents, >= 2."""
    fresh: float = 0.15
    """Share of proposals without parents, in [0, 1]."""
    tournament: int = 4
    """Members that compete to be a parent, >= 1."""
    parsimony: float = 0.15
    """Places in the order of the population that one node costs."""
    patience: int = 8
    """Rounds without a new best program after which the population is given up, >= 1."""
    rest: int = 2
    """Rounds after that in which the elites are no parents, so that something else can grow."""
    tries: int = 60
    """Children that may be made for each that is asked for."""

    def __post_init__(self):
        if self.population < 2 or self.tournament < 1 or self.patience < 1 or not 0 <= self.fresh <= 1:
            raise ConfigurationError(
                "`population` must be >= 2, `tournament` and `patience` >= 1 and `fresh` in [0, 1], got "
                f"{self.population}, {self.tournament}, {self.patience} and {self.fresh}."
            )


@dataclass(frozen=True)
class Member:
    """A program that was measured."""

    program: Program
    rung: str
    low: float
    mean: float

    def worth(self, rungs: Sequence[str]) -> tuple[int, float, float]:
        """Higher rungs first, then the bound on which the race decides."""
        return (rungs.index(self.rung) if self.rung in rungs else -1, self.low, self.mean)


class GeneticProposer:
    """Varies what was measured best, beside some fresh programs.

    Args:
        name: Of the arm.
        settings: Of the search.
        sieve: Leaves out what the checks would refuse and what does the same as a parent or another child.
    """

    def __init__(self, *, name: str = "gp", settings: GeneticSettings | None = None, sieve: Sieve | None = None):
        self.name = name
        self.settings = settings or GeneticSettings()
        self._sieve = sieve
        self._members: dict[str, Member] = {}
        self._family = ""
        self._best = ""
        self._best_since = 0
        self._rests_until = 0
        self.restarts = 0

    def expected_cost(self, n: int) -> Cost:
        """Processor time only."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """`n` children and fresh programs that the run does not know."""
        self._family = context.family
        self._take_elites(context)
        self._restart_where_stuck(context, self._ranked(context.rungs))
        parents = list(self._members.values())
        dice, words = dice_of(context, self.name), grammar(context.family)
        breeder = Breeder(words, self.settings, [each.program for each in parents])
        new = Novelty.of(context, self._sieve, breeder.parents)
        found = []
        for _ in range(n * self.settings.tries):
            if len(found) == n:
                break
            child, origin = breeder.next(dice)
            if child is None:
                continue
            try:
                program = Program(context.family, child)
            except ProgramError:
                continue
            if new.admit(program):
                found.append(proposal(self.name, program, origin))
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Remember what was measured, whoever proposed it; what broke is no parent."""
        for event in events:
            if event.kind == "measured" and event.standing is not None:
                self._remember(event.standing)
            elif event.kind == "failed" and event.key is not None:
                self._members.pop(event.key, None)

    def state(self) -> dict[str, Any]:
        """The population and when its best came."""
        return {
            "family": self._family,
            "members": [[stored(m.program), m.rung, m.low, m.mean] for m in self._members.values()],
            "best": self._best,
            "best_since": self._best_since,
            "rests_until": self._rests_until,
            "restarts": self.restarts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a population."""
        self._family = str(state["family"])
        self._members = {}
        for text, rung, low, mean in state["members"]:
            program = read_stored(text, self._family)
            self._members[program.key] = Member(program, str(rung), float(low), float(mean))
        self._best, self._best_since = str(state["best"]), int(state["best_since"])
        self._rests_until, self.restarts = int(state["rests_until"]), int(state["restarts"])

    def _take_elites(self, context: Context) -> None:
        """Elites are measured again in every block: their newest standing counts."""
        if context.step < self._rests_until:
            for elite in context.elites:
                self._members.pop(elite.key, None)
            return
        for elite in context.elites:
            self._remember(elite)

    def _remember(self, standing: Standing) -> None:
        program = standing.program
        if not isinstance(program, Program) or (self._family and to_program(program, self._family) is None):
            return
        self._family = program.family
        # Without hyper-parameters: their values are constants that vary like any other.
        plain = Program(program.family, program.literal_root)
        self._members[standing.key] = Member(plain, standing.rung, standing.low, standing.mean)

    def _ranked(self, rungs: Sequence[str]) -> list[Member]:
        """The population, best first, cut to its size; equal ones in the order of their keys."""
        order = sorted(self._members.items(), key=lambda each: (_down(each[1].worth(rungs)), each[0]))
        self._members = dict(order[: self.settings.population])
        return list(self._members.values())

    def _restart_where_stuck(self, context: Context, ranked: Sequence[Member]) -> None:
        best = ranked[0].program.key if ranked else ""
        if best != self._best:
            self._best, self._best_since = best, context.step
        elif ranked and context.step - self._best_since >= self.settings.patience:
            self._members, self._best, self._best_since = {}, "", context.step
            self._rests_until = context.step + self.settings.rest
            self.restarts += 1


class Breeder:
    """Draws parents by tournament and makes children of them."""

    def __init__(self, words: Grammar, settings: GeneticSettings, parents: list[Program]):
        self.parents = parents
        self._words, self._settings = words, settings
        self._variation = Variation(words)
        # Place in the order of worth, and what its size costs: smaller of two that are about as good.
        self._score = [place + settings.parsimony * each.root.size for place, each in enumerate(parents)]

    def next(self, dice: random.Random) -> tuple[Node | None, tuple[Program, ...]]:
        """A child and its parents; or a fresh program, which has none; or None where a change failed."""
        if not self.parents or dice.random() < self._settings.fresh:
            try:
                return self._words.ramped(dice), ()
            except ProgramError:
                return None, ()
        mother, father = self._winner(dice), self._winner(dice)
        child = self._variation.child(dice, mother.root, father.root)
        while child is not None and dice.random() < 0.3:
            # Now and then several changes at once, or a valley between two good programs is never crossed.
            child = self._variation.child(dice, child, father.root)
        return child, (mother, father)

    def _winner(self, dice: random.Random) -> Program:
        places = [int(dice.random() * len(self.parents)) for _ in range(self._settings.tournament)]
        return self.parents[min(places, key=self._score.__getitem__)]


def _down(worth: tuple[int, float, float]) -> tuple[float, float, float]:
    return (-worth[0], -worth[1], -worth[2])
