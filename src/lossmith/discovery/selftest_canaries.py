"""The canaries on the user's own machine: programs of known worth, raced on the cheapest rung of every family."""

import math
from dataclasses import dataclass
from typing import cast

from lossmith.discovery.admission import Admission
from lossmith.discovery.attempts import attempt
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.ladder import FAMILIES, make_ladder
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.race.blocks import jobs_of_blocks, make_blocks, table
from lossmith.discovery.race.canaries import Canary, CanaryFinding, inspect
from lossmith.discovery.race.estimates import estimate
from lossmith.discovery.rungs.base import HarnessError, Rung
from lossmith.discovery.store.jobs import Evaluation, Job

BLOCKS = 8
"""Enough for every canary to be told from chance, at a second or two a family."""
SEED = 0
_MUST_BE = {"good": "better", "disguised": "equal", "bad": "worse"}


@dataclass(frozen=True, kw_only=True)
class CanaryLine:
    """What one canary came to."""

    sentence: str
    passed: bool
    """Whether it is as expected; here `not yet known` is a failure too, as the blocks are chosen to decide it."""


def run_canaries() -> list[CanaryLine]:
    """Every canary of every family on the rung `toy`, against the control in the same blocks."""
    return [line for family in FAMILIES for line in canaries_on(make_ladder(family, ["toy"]).rungs[0], family)]


def canaries_on(rung: Rung, family: str) -> list[CanaryLine]:
    """The canaries of one family on a rung with turned labels."""
    canaries = canaries_of(family, synthetic=True)
    programs: dict[str, ProgramLike] = {each.program.key: each.program for each in canaries if each.program is not None}
    # Type checkers do not take a cached property for a property.
    control = cast(ProgramLike, control_of(family))
    jobs = jobs_of_blocks(
        rung.name,
        rung.environment,
        make_blocks(SEED, rung.name, "search", 0, BLOCKS),
        control=control.key,
        canaries=[],
        programs=list(programs),
    )
    try:
        rows = [_measure(rung, programs.get(job.program), control, job) for job in jobs]
    except HarnessError as error:
        return [CanaryLine(sentence=f"{family}: {error}", passed=False)]
    data = table(rows, control.key)
    noise, _ = estimate(data, list(programs))
    found = [_told(family, each) for each in inspect(rung.name, data, canaries, noise)]
    return found + [_refused(family, each) for each in canaries if each.proposal is not None]


def _measure(rung: Rung, program: ProgramLike | None, control: ProgramLike, job: Job) -> Evaluation:
    found = attempt(rung, program or control, job)
    # A canary may break, and is off then; without the control nothing is known of any of them.
    if found.status != "ok" and (program is None or found.status != "candidate_error"):
        raise HarnessError(f"rung `{rung.name}` cannot be measured here: {found.error}")
    fitness = None if found.metrics is None else found.metrics.fitness
    block = job.block
    return Evaluation(program=job.program, block=block.index, twin=block.twin, status=found.status, fitness=fitness)


def _told(family: str, found: CanaryFinding) -> CanaryLine:
    numbers = "broke in training"
    if math.isfinite(found.mean):
        numbers = f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}] to the control in {found.blocks} blocks"
    passed = found.state == "as expected"
    must = _MUST_BE[found.kind]
    return CanaryLine(sentence=f"{family}, {found.name}: must be {must}, {numbers}: {_state(passed)}", passed=passed)


def _refused(family: str, canary: Canary) -> CanaryLine:
    """A cheating canary meets the gate of a real run."""
    assert canary.proposal is not None
    verdict = Admission(family, SEED).check(canary.proposal)
    said = "was accepted" if verdict.accepted else f"refused as {verdict.category}"
    # A refusal for anything but its gradient (an unknown function, say) would not show that cheats are caught.
    passed = verdict.category == "wrong-sign"
    return CanaryLine(sentence=f"{family}, {canary.name}: must be refused, {said}: {_state(passed)}", passed=passed)


def _state(passed: bool) -> str:
    return "as expected." if passed else "OFF."
