"""SIGKILL at random instants: a run of the discovery engine that is killed and resumed ends with the same database.

    python benchmarks/discovery_kill.py            # bar: 100 kills, all dumps equal but for times and attempt counts

Each run is done twice on simulated rungs with real files, processes and signals: once undisturbed, once killed at a
random instant of every life (start and resume included) until it is finished. Runs are repeated with further seeds,
with and without worker threads, until there were enough kills.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import World, simulated_setup
from lossmith.discovery.store.database import Database

PROCESSES = multiprocessing.get_context("forkserver")
"""The libraries are imported once, by the server; every life is a process of its own."""
PROCESSES.set_forkserver_preload(
    ["lossmith.discovery.engine", "lossmith.discovery.race.simulation", "lossmith.evidence"]
)

SETTINGS = RaceSettings(
    candidates=6,
    blocks=(1, 1, 1),
    elites=2,
    rounds=3,
    playoff_blocks=2,
    finalists=2,
    confirmation_blocks=5,
    audit_share=0.3,
)


def life(folder: str, seed: int, seconds: float, workers: int) -> None:
    """One process's part of a run: all of it, unless it is killed."""
    from lossmith.discovery.engine import Engine

    setup = simulated_setup(
        seed, settings=SETTINGS, world=World(seed=seed, scale=3.0), fragile=0.5, seconds=seconds, workers=workers
    )
    with Engine(folder, setup) as engine:
        assert engine.run().status == "finished"


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """What became of one run that was killed."""

    kills: int
    lost: int
    """Evaluations that a kill interrupted and that were done again."""
    evaluations: int
    differences: list[str]
    """Tables whose rows differ from those of the undisturbed run."""


def compare(folder: Path, seed: int, *, kills: int, seconds: float, workers: int, draw: random.Random) -> Disturbed:
    """Do one run undisturbed and one with up to `kills` kills."""
    begun = time.perf_counter()
    calm = start(folder / "calm", seed, seconds, workers)
    calm.join(timeout=300)
    whole = time.perf_counter() - begun
    assert calm.exitcode == 0, f"the undisturbed run ended with {calm.exitcode}"
    done = 0
    while True:
        process = start(folder / "killed", seed, seconds, workers)
        if done < kills:
            process.join(timeout=draw.uniform(0.0, 2.0 * whole / max(kills, 4)))
        else:
            process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            process.join(timeout=60)
        if process.exitcode != -9:  # it was done, perhaps just before the signal came
            assert process.exitcode == 0, f"a resumed run ended with {process.exitcode}"
            break
        done += 1
    expected, found = dump(folder / "calm"), dump(folder / "killed")
    with Database(folder / "killed", read_only=True) as database:
        evaluations, attempts = database.rows("SELECT COUNT(*), SUM(attempts) FROM job")[0]
    return Disturbed(
        kills=done,
        lost=attempts - evaluations,
        evaluations=evaluations,
        differences=[table for table in expected if expected[table] != found[table]],
    )


def start(folder: Path, seed: int, seconds: float, workers: int) -> Any:
    process = PROCESSES.Process(target=life, args=(str(folder), seed, seconds, workers))
    process.start()
    return process


def warm_up() -> None:
    """Let the server import everything, so that no life is measured with it."""
    process = PROCESSES.Process(target=nothing)
    process.start()
    process.join()


def nothing() -> None:
    pass


def dump(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    with Database(folder, read_only=True) as database:
        return database.dump()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=10, help="kills of one run at most")
    parser.add_argument("--seconds", type=float, default=0.003, help="what an evaluation takes")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw, kills, lost, seed, differing = random.Random(chosen.seed), 0, 0, chosen.seed, []
    warm_up()
    with tempfile.TemporaryDirectory() as workspace:
        while kills < chosen.kills:
            wanted = min(chosen.per_run, chosen.kills - kills)
            found = compare(
                Path(workspace) / str(seed), seed, kills=wanted, seconds=chosen.seconds, workers=seed % 3, draw=draw
            )
            kills, lost, seed = kills + found.kills, lost + found.lost, seed + 1
            differing += found.differences
            print(
                f"run {seed}: {found.kills} kills, {found.lost} evaluations interrupted of {found.evaluations}, "
                f"tables that differ: {found.differences or 'none'}",
                flush=True,
            )
    print(
        f"{kills} kills in {seed - chosen.seed} runs, {lost} interrupted evaluations, {len(differing)} differing tables"
    )
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
