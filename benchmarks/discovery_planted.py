"""Whether the discovery engine finds a planted best program, and how that compares with chance at equal cost.

    python benchmarks/discovery_planted.py         # bar: at least 8 of 10 runs find it or better, and chance finds less

Simulated rungs, so the truth is known; costs are the rungs' declared device time. Two problems:

`climb`: a landscape of 262,144 programs. The planted one is worth 60% of the very best, 2.4 units of noise, and one
program in some 350 is as good. A run has found it when its first elite is truly worth as much. Against it stands the
same engine with a proposer that draws at random.

`pool`: 120 programs that the engine is shown once, the planted one worth 2.0 units of noise and no other more than 1.4.
A run has found it when it is the first elite. Against it stands what loops without races do at equal cost: single runs
on the dearest rung, the best one wins.
"""

import argparse
import sys
from dataclasses import dataclass, replace

import numpy as np

from lossmith.discovery.costs import Budget
from lossmith.discovery.draws import draw
from lossmith.discovery.engine import Engine
from lossmith.discovery.proposers.base import Proposal
from lossmith.discovery.proposers.scripted import ScriptedProposer
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import SimulatedProgram, World, simulated_ladder, simulated_setup
from lossmith.discovery.rungs.base import Block
from lossmith.discovery.setup import Setup

SCALE, TARGET = 4.0, 0.6
CLIMB_BUDGET = Budget(device_seconds=5_000)
POOL, PLANTED, NEXT_BEST = 120, 2.0, 1.4
POOL_SETTINGS = RaceSettings(candidates=24, blocks=(2, 2, 2))
POOL_BUDGET = Budget(device_seconds=6_000)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one run came to."""

    worth: float
    """True worth of its first elite."""
    estimate: float
    """What it says of it."""
    cost: float
    """Device time, as declared."""
    announced: int


def climb(seed: int, *, learns: bool) -> Found:
    world = World(seed=seed, scale=SCALE)
    return engine_run(
        simulated_setup(seed, settings=RaceSettings(), world=world, learns=learns, budget=CLIMB_BUDGET), world
    )


def pool(seed: int) -> tuple[list[SimulatedProgram], World]:
    """The programs in the order in which they are shown, and their world."""
    generator = draw(seed, 0, "pool")
    worths = [PLANTED, *np.minimum(generator.normal(-0.5, 0.8, size=POOL - 1), NEXT_BEST)]
    order = generator.permutation(POOL)
    return [SimulatedProgram((int(i),), float(worths[i])) for i in order], World(seed=seed)


def race_of_pool(seed: int) -> Found:
    programs, world = pool(seed)
    proposer = ScriptedProposer([Proposal(proposer="scripted", program=program) for program in programs])
    setup = simulated_setup(seed, settings=POOL_SETTINGS, world=world, budget=POOL_BUDGET)
    return engine_run(replace(setup, proposer=proposer), world)


def single_runs_of_pool(seed: int, cost: float) -> Found:
    """Programs at random, one paired run each on the dearest rung, until as much is spent; the best run wins."""
    programs, world = pool(seed)
    rung = simulated_ladder(world)[-1]
    best, estimate, spent, index = programs[0], -np.inf, 0.0, 0
    while spent + rung.cost.device_seconds <= cost:
        # The control's run in the block is free here, in favour of chance.
        block = Block(index=index, seed=1_000 + index)
        program = programs[index % len(programs)]
        measured = rung.evaluate(program, block)
        difference = measured.fitness - measured.values["common"]
        if difference > estimate:
            best, estimate = program, difference
        spent, index = spent + rung.cost.device_seconds, index + 1
    return Found(worth=world.worth(best), estimate=estimate, cost=spent, announced=0)


def engine_run(setup: Setup, world: World) -> Found:
    with Engine(None, setup) as engine:
        outcome = engine.run()
        closed = engine.archive.find_stage("closed")
        assert closed is not None
        first = engine.decisions.elites(closed[1]["rounds"] - 1)[0]
        program = engine.desk.programs[first.program]
        assert isinstance(program, SimulatedProgram)
        return Found(
            worth=world.worth(program),
            estimate=first.mean or 0.0,
            cost=engine.ledger.spent().device_seconds,
            announced=len(outcome.announced),
        )


def show(name: str, runs: list[Found], target: float) -> int:
    hits = sum(found.worth >= target - 1e-9 for found in runs)
    count = len(runs)
    worth, estimate, cost = (sum(getattr(f, name) for f in runs) / count for name in ("worth", "estimate", "cost"))
    print(
        f"{name}: {hits} of {count} find it or better; true worth {worth:.2f} on average, estimated {estimate:.2f}; "
        f"{sum(f.announced > 0 for f in runs)} announce a winner; cost {cost:.0f}",
        flush=True,
    )
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    seeds = range(chosen.seed, chosen.seed + chosen.runs)
    bar = 0.8 * chosen.runs
    climbed = show("climb, engine", [climb(seed, learns=True) for seed in seeds], TARGET * SCALE)
    drawn = show("climb, random at equal cost", [climb(seed, learns=False) for seed in seeds], TARGET * SCALE)
    raced = [race_of_pool(seed) for seed in seeds]
    found = show("pool, engine", raced, PLANTED)
    single = [single_runs_of_pool(seed, run.cost) for seed, run in zip(seeds, raced, strict=True)]
    lucky = show("pool, best single run at equal cost", single, PLANTED)
    sys.exit(not (climbed >= bar and climbed > drawn and found >= bar and found > lucky))


if __name__ == "__main__":
    main()
