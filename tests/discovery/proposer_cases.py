"""Contexts, events and drives for the tests of proposers."""

import json
from dataclasses import replace

from lossmith.discovery.compiler import compile_source
from lossmith.discovery.costs import Cost
from lossmith.discovery.program import Program
from lossmith.discovery.proposers.base import Context, Event, Standing
from lossmith.discovery.rungs.base import CandidateError, Metrics

SOURCES = {
    "preference": """
def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    return F.softplus(-beta * ((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)))
""",
    "token": "def f(token_logps): return -token_logps",
    "metric": """
def f(similarities, same, different):
    return F.softplus(10.0 * (mean_masked(similarities, different) - mean_masked(similarities, same)))
""",
}
LRML = """
def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.05):
    rho = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    gate = torch.sigmoid(rho)
    return (1 - gate) * F.softplus(-beta * rho) + gate * torch.exp(-beta * rho)
"""
PADLL = """
def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    rho = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    return torch.where(rho < 0, 0.45, 0.9) * F.softplus(-0.05 * rho)
"""
FOCAL = "def f(token_logps): return -((-torch.expm1(token_logps)) ** 2.0) * token_logps"


def control(family: str = "preference") -> Program:
    return compile_source(SOURCES[family], family)


def context(family: str = "preference", *, step: int = 0, call: int = 0, run_seed: int = 7, **changes) -> Context:
    return Context(
        run_seed=run_seed,
        step=step,
        call=call,
        family=family,
        rungs=("toy", "tiny"),
        metrics={"toy": "reward_at_equal_kl", "tiny": "preference_accuracy"},
        control=control(family),
        **changes,
    )


def standing(program: Program, mean: float, *, rung: str = "toy", proposer: str = "", blocks: int = 3) -> Standing:
    return Standing(
        key=program.key,
        program=program,
        rung=rung,
        mean=mean,
        low=mean - 0.1,
        high=mean + 0.1,
        blocks=blocks,
        proposer=proposer,
    )


def elites(*programs: Program) -> tuple[Standing, ...]:
    return tuple(standing(program, 1.0 - 0.1 * place, rung="tiny") for place, program in enumerate(programs))


def events(found, step: int, call: int = 0, *, worth=None, kind: str = "measured", **changes) -> list[Event]:
    """What the engine would tell of a batch of programs."""
    told = []
    for position, proposal in enumerate(found):
        program = proposal.program
        measured = kind == "measured" and program is not None
        told.append(
            Event(
                step=step,
                call=call,
                position=position,
                proposer=proposal.proposer,
                kind=kind,
                category="ok",
                key=None if program is None else program.key,
                program=program,
                parents=proposal.parents,
                standing=standing(program, worth(program) if worth else 0.1) if measured else None,
                **changes,
            )
        )
    return told


def keys(batch) -> list[str]:
    return [proposal.program.key for proposal in batch.proposals]


def smaller_is_better(program: Program) -> float:
    return -float(program.root.size)


class TableRung:
    """A rung on which a program's fitness is read off a table by key, and 1 more in each further block."""

    name, ground, environment, fitness_name = "toy", ("table", "none"), "table-1", "reward_at_equal_kl"
    cost = Cost(jobs=1, device_seconds=0.25, wall_seconds=0.5)

    def __init__(self, table=None, *, broken: str | None = None):
        self.table, self.broken = table or {}, broken
        self.asked: list[tuple[str, int, int]] = []

    def evaluate(self, program, block):
        self.asked.append((program.key, block.index, block.seed))
        if program.key == self.broken:
            raise CandidateError("its loss is not finite")
        return Metrics(fitness=self.table.get(program.key, 0.0) + block.index)


class Drive:
    """A little engine: rounds of one proposer, in which everything is measured by a formula."""

    def __init__(self, proposer, family: str = "preference", *, run_seed: int = 7, worth=smaller_is_better, n: int = 6):
        self.proposer, self.family, self.run_seed, self.worth, self.n = proposer, family, run_seed, worth, n
        self.measured: dict[str, Standing] = {}
        self.heard: list[list[str]] = []

    def round(self, step: int) -> list[str]:
        best = sorted(self.measured.values(), key=lambda each: (-each.mean, each.key))[:4]
        asked = context(
            self.family, step=step, run_seed=self.run_seed, elites=tuple(best), seen=frozenset(self.measured)
        )
        batch = self.proposer.propose(asked, self.n)
        told = events(batch.proposals, step, worth=self.worth)
        self.measured |= {event.key: replace(event.standing, rung="tiny") for event in told}
        self.proposer.observe(told)
        self.heard.append(keys(batch))
        return self.heard[-1]


def same_after_restore(
    make, family: str = "preference", *, rounds: int = 4, at: int = 2, **settings
) -> list[list[str]]:
    """Run `rounds`; run again and put the state into a fresh proposer in the middle; both must say the same."""
    one = Drive(make(), family, **settings)
    for step in range(rounds):
        one.round(step)
    other = Drive(make(), family, **settings)
    for step in range(rounds):
        if step == at:
            kept = json.loads(json.dumps(other.proposer.state(), allow_nan=False))
            other.proposer = make()
            other.proposer.restore(kept)
            assert json.loads(json.dumps(other.proposer.state(), allow_nan=False)) == kept
        other.round(step)
    assert one.heard == other.heard
    assert one.proposer.state() == other.proposer.state()
    return one.heard
