"""A world where the truth is known: programs are genes, their worth is a formula, and a rung adds noise and bias.

Nothing is trained, so thousands of runs fit in a minute: how often the race finds the best, and how often it claims a
winner where there is none, are counted and not argued.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lossmith.discovery.costs import ZERO, Budget, Cost
from lossmith.discovery.draws import draw
from lossmith.discovery.proposers.base import Batch, Context, Event, ProgramLike, Proposal
from lossmith.discovery.race.canaries import Canary
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rungs.base import Block, CandidateError, Metrics
from lossmith.discovery.setup import Setup

NoiseShape = Literal["normal", "heavy", "skewed", "counted"]
GENES, LEVELS = 6, 8


@dataclass(frozen=True)
class SimulatedProgram:
    """A program that is nothing but its genes, or a canary with a worth of its own."""

    genes: tuple[int, ...]
    fixed_worth: float | None = None
    """True difference to the control, for canaries; None for what the world's formula says."""
    label: str = ""
    """Name of the control or a canary, which no rung is wrong about."""
    fragile: float = 0.0
    """Chance to break in a block, by its own fault."""

    @property
    def key(self) -> str:
        """Hash of its JSON."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    def to_json(self) -> list[Any]:
        """Genes, worth, label, fragility."""
        return [list(self.genes), self.fixed_worth, self.label, self.fragile]


def program_from_json(payload: Any) -> SimulatedProgram:
    """The program that `to_json` wrote."""
    genes, worth, label, fragile = payload
    return SimulatedProgram(tuple(genes), worth, label, fragile)


CONTROL = SimulatedProgram((), 0.0, "control")
CANARIES = (
    Canary(name="known-good", kind="good", program=SimulatedProgram((), 2.0, "good")),
    Canary(name="disguised", kind="disguised", program=SimulatedProgram((), 0.0, "disguised")),
    Canary(name="known-bad", kind="bad", program=SimulatedProgram((), -2.0, "bad")),
    Canary(
        name="cheat", kind="cheating", proposal=Proposal(proposer="canary", program=SimulatedProgram((), 9.0, "cheat"))
    ),
)
"""One of each kind."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Truth: the worth of every program, as a difference to the control in units of the noise."""

    seed: int = 0
    scale: float = 1.0
    """Worth of the planted best program; 0 for a world in which no program is better or worse than another."""
    floor: float = 0.0
    """What every candidate is worth beside that."""

    def best(self) -> SimulatedProgram:
        """The planted program."""
        return SimulatedProgram(tuple(int(g) for g in draw(self.seed, 0, "best").integers(LEVELS, size=GENES)))

    def worth(self, program: SimulatedProgram) -> float:
        """True difference to the control: `scale` at the best, 0.6 of it less per gene that is as far as can be."""
        if program.fixed_worth is not None:
            return program.fixed_worth
        distance = np.abs(np.array(program.genes) - np.array(self.best().genes)) / (LEVELS - 1)
        # Two genes interact, so that one gene at a time is not the whole way.
        return self.floor + self.scale * float(1.0 - 0.6 * distance.sum() - 0.6 * distance[0] * distance[1])


@dataclass(frozen=True, kw_only=True)
class SimulatedRung:
    """A rung that draws what training would have measured."""

    name: str
    world: World
    noise: float = 1.0
    """Standard deviation of a program's own noise in a block."""
    block_sd: float = 3.0
    """Standard deviation of what a block adds to all of its programs; pairing takes it out."""
    bias: float = 0.0
    """Standard deviation of what this rung wrongly adds to a program in every block."""
    shape: NoiseShape = "normal"
    task: str = "simulated"
    cost: Cost = Cost(device_seconds=1.0, jobs=1.0)  # noqa: RUF009
    seconds: float = 0.0
    """Time that an evaluation really takes."""
    environment: str = "simulation-1"
    fitness_name: str = "worth"

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (self.task, "simulated")

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """Block effect, worth, bias and noise, all drawn from their names."""
        assert isinstance(program, SimulatedProgram)
        if self.seconds:
            time.sleep(self.seconds)
        place = f"{self.name}/{self.task}/{block.split}"
        own = draw(block.training_seed, block.index, f"{place}/{program.key}")
        if own.random() < program.fragile:
            raise CandidateError("The loss stopped being finite.")
        common = self.block_sd * draw(block.seed, block.index, f"{place}/block").standard_normal()
        bias = 0.0 if program.label else self.bias * _bias(self, program)
        fitness = common + self.world.worth(program) + bias + self.noise * _noise(own, self.shape, program)
        return Metrics(
            fitness=float(fitness), values={"common": float(common)}, device_seconds=self.cost.device_seconds
        )


class SimulatedGate:
    """Admits every program but those that are labelled cheats."""

    family = "preference"

    def check(self, proposal: Proposal) -> "SimulatedVerdict":
        """Accepted, unless it is a cheat or a text."""
        program = proposal.program
        if not isinstance(program, SimulatedProgram):
            return SimulatedVerdict(accepted=False, category="syntax", reason="Only programs are simulated.", line=1)
        if program.label == "cheat":
            return SimulatedVerdict(accepted=False, category="wrong-sign", reason="A cheat.")
        return SimulatedVerdict(accepted=True, category="ok", program=program)

    def remember(self, name: str, program: ProgramLike) -> None:
        """Nothing to remember: equal genes have equal keys."""

    def from_json(self, payload: Any) -> SimulatedProgram:
        """The program of a stored row."""
        return program_from_json(payload)


@dataclass(frozen=True, kw_only=True)
class SimulatedVerdict:
    """What the simulated gate says."""

    accepted: bool
    category: str
    reason: str = ""
    line: int | None = None
    flags: tuple[str, ...] = ()
    nearest: None = None
    program: SimulatedProgram | None = None


class GeneProposer:
    """Draws genes at random, or changes those of the elites: a stand-in for every proposer that learns."""

    def __init__(self, *, learns: bool, fragile: float = 0.0):
        self.name = "climber" if learns else "random"
        self._learns = learns
        self._fragile = fragile
        self._asked = 0

    def expected_cost(self, n: int) -> Cost:
        """Nothing."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """`n` programs, two thirds of them children of elites where there are any."""
        self._asked += n
        generator = context.draw(self.name)
        proposals = []
        for _ in range(n):
            parents = context.elites if self._learns and generator.random() < 2 / 3 else ()
            genes = generator.integers(LEVELS, size=GENES)
            keys: tuple[str, ...] = ()
            if parents:
                parent = parents[int(generator.integers(len(parents)))]
                assert isinstance(parent.program, SimulatedProgram)
                keys = (parent.key,)
                genes = np.array(parent.program.genes)
                for place in generator.choice(GENES, size=int(generator.integers(1, 3)), replace=False):
                    genes[place] = np.clip(genes[place] + generator.choice([-2, -1, 1, 2]), 0, LEVELS - 1)
            # Some regions of any real space of losses diverge: here all with the highest first gene.
            fragile = self._fragile if genes[0] == LEVELS - 1 else 0.0
            program = SimulatedProgram(tuple(int(gene) for gene in genes), fragile=fragile)
            proposals.append(Proposal(proposer=self.name, program=program, parents=keys))
        return Batch(proposals=tuple(proposals))

    def observe(self, events: Sequence[Event]) -> None:
        """The elites of the context say enough."""

    def state(self) -> dict[str, Any]:
        """How many were asked for; draws need no state."""
        return {"asked": self._asked}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._asked = int(state["asked"])


def simulated_ladder(
    world: World, *, shape: NoiseShape = "normal", seconds: float = 0.0, bias: float = 1.0
) -> list[SimulatedRung]:
    """Three rungs: cheap and misleading, dearer and less so, and the target itself."""
    common: dict[str, Any] = {"world": world, "shape": shape, "seconds": seconds}
    return [
        SimulatedRung(name="toy", bias=0.5 * bias, cost=Cost(device_seconds=0.1, jobs=1), **common),
        SimulatedRung(name="tiny", bias=0.25 * bias, cost=Cost(device_seconds=1, jobs=1), **common),
        SimulatedRung(name="small", cost=Cost(device_seconds=10, jobs=1), **common),
    ]


def unseen_ground(rung: SimulatedRung, world: World | None = None) -> SimulatedRung:
    """The same rung on a task that the search never saw, where another world may hold."""
    return replace(rung, name=f"{rung.name}-unseen", task="unseen", world=world or rung.world)


def simulated_setup(
    seed: int,
    *,
    settings: RaceSettings,
    world: World | None = None,
    elsewhere: World | None = None,
    learns: bool = True,
    fragile: float = 0.0,
    shape: NoiseShape = "normal",
    bias: float = 1.0,
    seconds: float = 0.0,
    workers: int = 0,
    budget: Budget | None = None,
) -> Setup:
    """A whole run in a simulated world.

    Args:
        seed: Of the run; the world has its own.
        settings: Of the race.
        world: Truth on the search's task.
        elsewhere: Truth on the unseen task; the same where it is left out.
        learns: Whether the proposer climbs, or draws at random.
        fragile: Chance to break, in each block, of programs from one region.
        shape: Of the noise.
        bias: Of the cheap rungs, as a multiple of their usual one.
        seconds: What an evaluation really takes.
        workers: As in `Setup`.
        budget: As in `Setup`.
    """
    truth = world or World()
    rungs = simulated_ladder(truth, shape=shape, seconds=seconds, bias=bias)[-len(settings.blocks) :]
    return Setup(
        seed=seed,
        gate=SimulatedGate(),
        proposer=GeneProposer(learns=learns, fragile=fragile),
        rungs=rungs,
        unseen=[unseen_ground(rungs[-1], elsewhere)],
        control=CONTROL,
        canaries=CANARIES,
        settings=settings,
        workers=workers,
        budget=budget or Budget(),
    )


def _bias(rung: SimulatedRung, program: SimulatedProgram) -> float:
    return float(draw(rung.world.seed, 0, f"bias/{rung.name}/{program.key}").standard_normal())


def _noise(generator: np.random.Generator, shape: NoiseShape, program: SimulatedProgram) -> float:
    """Mean 0 and standard deviation 1 in every shape."""
    if shape == "heavy":
        return float(generator.standard_t(3)) / np.sqrt(3)
    if shape == "skewed" and not program.label:
        # Mostly a little better and now and then far worse; the control is not, or the difference would be symmetric.
        return 1.0 - float(generator.exponential())
    if shape == "counted":  # the mean of 40 coins: a metric that counts examples
        return float(generator.binomial(40, 0.5) - 20) / np.sqrt(10)
    return float(generator.standard_normal())
