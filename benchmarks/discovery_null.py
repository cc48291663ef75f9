"""How often a run of the discovery engine announces a winner where there is none.

    python benchmarks/discovery_null.py            # bar: at most 28 of 400 runs announce one, in every kind of world
    python benchmarks/discovery_null.py --shared-items --runs 50       # what is too many, and why: no bar

Simulated rungs, no training. Three kinds of world, each with another shape of noise in turn (normal, heavy tails,
skewed, counted). In `nothing` no program differs from the control anywhere. In `misleading` the cheap rung is wrong
about every program by half a unit of noise, so the search has something to be fooled by. In `elsewhere` all are far
better on the search's task and equal to the control on the unseen one, which is where "better on every ground" is wrong
most often. Beside the rate stands how far the confirmed differences are off on average, over all finalists.

With `--shared-items` all blocks of a ground are tested on the same rows. What these rows say of a program, beyond what
it is worth, is then in every one of its differences: their spread does not show it, the t over blocks takes it for an
effect, and where one of two grounds is decided already, 12 of 50 runs announce a winner (95% intervals hold the truth
78% of the time). That is why every block of a real rung draws rows of its own (`SmallRung.setting_of`), and why
`SmallRung.items` says how many of theirs two blocks share.
"""

import argparse
import math
import sys
from dataclasses import dataclass, field, fields, replace

from lossmith.discovery.draws import draw
from lossmith.discovery.engine import Engine
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import NoiseShape, SimulatedProgram, SimulatedRung, World, simulated_setup
from lossmith.discovery.rungs.base import Block, Metrics

BAR = 28 / 400
SHAPES: tuple[NoiseShape, ...] = ("normal", "heavy", "skewed", "counted")
SETTINGS = RaceSettings(candidates=12, blocks=(1, 2), elites=3, rounds=2, finalists=3, confirmation_blocks=12)


@dataclass(kw_only=True)
class Count:
    """What came of the runs in one world."""

    runs: int = 0
    announced: int = 0
    finalists: int = 0
    errors: list[float] = field(default_factory=list)
    """Confirmed minus true difference, per finalist and ground."""
    covered: int = 0
    """Of these, those whose 95% interval holds the truth."""

    def line(self, name: str) -> str:
        mean = sum(self.errors) / max(1, len(self.errors))
        sd = math.sqrt(sum((error - mean) ** 2 for error in self.errors) / max(1, len(self.errors) - 1))
        error, held = sd / math.sqrt(max(1, len(self.errors))), self.covered / max(1, len(self.errors))
        return (
            f"{name}: {self.announced} of {self.runs} runs announce a winner ({self.announced / self.runs:.1%}, bar "
            f"{BAR:.1%}); {self.finalists} finalists; confirmed minus true difference {mean:+.3f} units of noise "
            f"(standard error {error:.3f}); {held:.1%} of 95% intervals hold the truth"
        )


@dataclass(frozen=True, kw_only=True)
class SharedItems(SimulatedRung):
    """A rung whose blocks are all tested on the same rows of their split."""

    items: float
    """Standard deviation of what these rows say of a program, in units of a block's noise."""

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """As any simulated rung, with what the rows of the ground say of the program in every block."""
        found = super().evaluate(program, block)
        assert isinstance(program, SimulatedProgram)
        if program.label:
            return found
        place = f"items/{self.name}/{self.task}/{block.split}/{program.key}"
        said = self.items * float(draw(self.world.seed, 0, place).standard_normal())
        return replace(found, fitness=found.fitness + said)


def sharing(rung: SimulatedRung, items: float) -> SharedItems:
    """The rung with rows that its blocks share."""
    return SharedItems(items=items, **{each.name: getattr(rung, each.name) for each in fields(rung)})


def one_run(
    seed: int,
    kind: str,
    shape: NoiseShape,
    count: Count,
    settings: RaceSettings = SETTINGS,
    *,
    shared_items: float | None = None,
) -> None:
    """Do one run and count what it says."""
    nothing = World(seed=seed, scale=0.0)
    # On the search's task every program is better by far, so that all finalists are decided on the unseen one.
    search = World(seed=seed, scale=0.0, floor=3.0) if kind == "elsewhere" else nothing
    setup = simulated_setup(
        seed,
        settings=settings,
        world=search,
        elsewhere=nothing,
        shape=shape,
        learns=bool(seed % 2),
        bias=0.0 if kind == "nothing" else 1.0,
    )
    if shared_items is not None:
        rungs, unseen = ([sharing(each, shared_items) for each in part] for part in (setup.rungs, setup.unseen))  # pyright: ignore[reportArgumentType]
        setup = replace(setup, rungs=rungs, unseen=unseen)
    with Engine(None, setup) as engine:
        outcome = engine.run()
        count.runs += 1
        count.announced += bool(outcome.announced)
        count.finalists += len(outcome.claims)
        for claim in outcome.claims:
            for result in claim.grounds:
                assert result.comparison is not None
                truth = nothing if result.unseen else search
                worth = truth.worth(engine.desk.programs[claim.program])  # pyright: ignore[reportArgumentType]
                count.errors.append(result.comparison.difference - worth)
                count.covered += result.comparison.low <= worth <= result.comparison.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["nothing", "misleading", "elsewhere"])
    parser.add_argument(
        "--shared-items",
        type=float,
        nargs="?",
        const=0.5,
        metavar="SD",
        help="all blocks of a ground share their test rows, whose noise has this share of a block's (0.5); no bar then",
    )
    chosen = parser.parse_args()
    worst = 0.0
    for kind in chosen.kinds:
        count = Count()
        for index in range(chosen.runs):
            one_run(chosen.seed + index, kind, SHAPES[index % len(SHAPES)], count, shared_items=chosen.shared_items)
        print(count.line(kind), flush=True)
        worst = max(worst, count.announced / count.runs)
    # That shared rows miss the bar is what they are shown for.
    sys.exit(chosen.shared_items is None and worst > BAR)


if __name__ == "__main__":
    main()
