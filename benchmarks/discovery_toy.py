"""Whether real searches find the loss that is known to be best in the toy world, and chance at equal cost does not.

    python benchmarks/discovery_toy.py                     # bar: at least 8 of 10 runs; chance finds fewer
    python benchmarks/discovery_toy.py --family token --runs 3

Programs, checks, genetic programming, training and racing are those of `lossmith discover preference --rungs toy`.
A run has found the planted loss where its first finalist, which `lossmith discover export RUN best` takes along, gains
at least 95% of what the planted one gains over the control on fresh blocks that no run has seen; `better` counts those
that gain more. Both arms have the same number of evaluations, play-off and confirmation included.
"""

import argparse
import sys
import time

import numpy as np

from lossmith.discovery.controls import control_of
from lossmith.discovery.costs import Budget
from lossmith.discovery.draws import draw_seed
from lossmith.discovery.engine import Engine
from lossmith.discovery.ladder import make_ladder
from lossmith.discovery.program import Program, one_line
from lossmith.discovery.rungs.base import Block, CandidateError
from lossmith.discovery.rungs.toy import planted_program
from lossmith.discovery.rungs.toy_tables import planted_token_program
from lossmith.discovery.start import make_setup

PLANTED = {"preference": planted_program, "token": planted_token_program}
SHARE = 0.95


def found_by(family: str, seed: int, jobs: int, proposer: str) -> Program | None:
    """The first finalist of a run, what `lossmith discover export RUN best` takes along."""
    ladder = make_ladder(family, ["toy"])
    setup = make_setup(family, ladder, seed=seed, budget=Budget(jobs=jobs), proposers=[proposer], rounds=None)
    with Engine(None, setup) as engine:
        claims = engine.run().claims
        found = engine.desk.programs[claims[0].program] if claims else None
    return found if isinstance(found, Program) else None


def gain(family: str, program: Program, blocks: list[Block]) -> np.ndarray:
    """Fitness over the control's in each block."""
    rung, control = make_ladder(family, ["toy"]).rungs[0], control_of(family)
    try:
        return np.array([rung.evaluate(program, b).fitness - rung.evaluate(control, b).fitness for b in blocks])
    except CandidateError:
        return np.full(len(blocks), -np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(PLANTED), default="preference")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=3000, help="evaluations of a run, confirmation included")
    parser.add_argument("--blocks", type=int, default=120, help="fresh blocks on which gains are compared")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    given = parser.parse_args()
    fresh = [
        Block(index=place, seed=draw_seed(10**6, place, "fresh"), split="confirmation") for place in range(given.blocks)
    ]
    planted = gain(given.family, PLANTED[given.family](), fresh)
    print(f"planted: {planted.mean():+.4f} over the control (sd {planted.std(ddof=1):.4f}, {given.blocks} blocks)")
    found = {"gp": 0, "random": 0}
    for proposer in found:
        better = 0
        for seed in range(given.first, given.first + given.runs):
            begun = time.process_time()
            elite = found_by(given.family, seed, given.jobs, proposer)
            own = np.full(given.blocks, -np.inf) if elite is None else gain(given.family, elite, fresh)
            found[proposer] += own.mean() >= SHARE * planted.mean()
            better += own.mean() >= planted.mean()
            share = own.mean() / planted.mean()
            formula = "nothing" if elite is None else one_line(elite)[:110]
            print(
                f"{proposer} seed {seed}: {share:5.0%} of it, {time.process_time() - begun:.0f} s: {formula}",
                flush=True,
            )
        print(
            f"{proposer}: {found[proposer]} of {given.runs} found it ({better} better), {given.jobs} evaluations each"
        )
    sys.exit(0 if found["gp"] >= 0.8 * given.runs and found["gp"] > found["random"] else 1)


if __name__ == "__main__":
    main()
