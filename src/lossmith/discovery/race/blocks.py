"""Blocks with common random numbers: what is measured together, and the paired differences that come of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lossmith.discovery.draws import draw_seed
from lossmith.discovery.race.settings import PLAYOFF_LEGS, RaceSettings
from lossmith.discovery.rungs.base import Block, Split
from lossmith.discovery.store.jobs import Evaluation, Job


def make_blocks(run_seed: int, ground: str, split: Split, first: int, count: int) -> list[Block]:
    """`count` blocks of a rung from number `first` on; block and seed are the same whenever they are asked for.

    Rungs and splits draw different seeds: what was learnt in the search cannot be met again in the confirmation.
    """
    return [
        Block(index=index, seed=draw_seed(run_seed, index, f"block/{ground}/{split}"), split=split)
        for index in range(first, first + count)
    ]


def jobs_of_blocks(
    rung: str,
    environment: str,
    blocks: Sequence[Block],
    *,
    control: str,
    canaries: Sequence[str],
    programs: Sequence[str],
) -> list[Job]:
    """All evaluations of some blocks: in each the control, its twin, one canary in turn, and then the programs."""
    jobs = []
    for block in blocks:
        canary = [canaries[block.index % len(canaries)]] if canaries else []
        together = [(control, block), (control, twin_of(block)), *((key, block) for key in [*canary, *programs])]
        jobs += [Job(program=key, rung=rung, environment=environment, block=each) for key, each in together]
    return jobs


def playoff_blocks(run_seed: int, ground: str, rounds: int, settings: RaceSettings) -> tuple[list[list[Block]], range]:
    """The blocks of each leg of the play-off after `rounds` rounds, and the numbers of those that it leaves out.

    What was measured of a round that the budget ended in its middle decides nothing: how far it came is the clock's.
    """
    abandoned = range(rounds * settings.blocks[-1], (rounds + 1) * settings.blocks[-1])
    firsts = [abandoned.stop + leg * settings.playoff_blocks for leg in range(PLAYOFF_LEGS)]
    return [make_blocks(run_seed, ground, "search", first, settings.playoff_blocks) for first in firsts], abandoned


def twin_of(block: Block) -> Block:
    """The control's second run in a block."""
    return replace(block, twin=True)


@dataclass(kw_only=True)
class RungData:
    """The evaluations of one rung and split, as a table."""

    control: dict[int, float] = field(default_factory=dict)
    """Block -> fitness of the control."""
    twin: dict[int, float] = field(default_factory=dict)
    """Block -> fitness of the control's twin."""
    fitness: dict[str, dict[int, float]] = field(default_factory=dict)
    """Program -> block -> fitness."""
    failed: dict[str, str] = field(default_factory=dict)
    """Program -> status of its first failure by its own fault; one is enough to be out."""

    def differences(self, key: str) -> list[float]:
        """Program minus control in each block that has both, by block."""
        own = self.fitness.get(key, {})
        return [own[block] - self.control[block] for block in sorted(own) if block in self.control]

    def pairs(self, key: str) -> tuple[list[float], list[float]]:
        """Control and program in each block that has both, by block."""
        own = self.fitness.get(key, {})
        shared = [block for block in sorted(own) if block in self.control]
        return [self.control[block] for block in shared], [own[block] for block in shared]

    def twin_differences(self) -> list[float]:
        """Twin minus control in each block, by block."""
        return [self.twin[block] - self.control[block] for block in sorted(self.twin) if block in self.control]


def table(evaluations: Iterable[Evaluation], control: str) -> RungData:
    """Sort evaluations into a table; what the machine failed to measure is in none of its columns."""
    data = RungData()
    for row in evaluations:
        if row.status == "candidate_error":
            data.failed.setdefault(row.program, row.status)
        elif row.status == "ok" and row.fitness is not None:
            if row.program == control:
                (data.twin if row.twin else data.control)[row.block] = row.fitness
            else:
                data.fitness.setdefault(row.program, {})[row.block] = row.fitness
    return data
