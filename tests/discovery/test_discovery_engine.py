"""The loop on simulated rungs: what every block holds, what stops a run, and that a run can be broken off anywhere."""

import json
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import judge_server
from lossmith.discovery.admission import Admission
from lossmith.discovery.controls import control_of
from lossmith.discovery.costs import ZERO, Budget, Cost
from lossmith.discovery.engine import Engine
from lossmith.discovery.proposers.base import Batch, Context, Proposal
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.genetic import GeneticProposer
from lossmith.discovery.proposers.llm import LLMProposer
from lossmith.discovery.proposers.model import Model, open_endpoint
from lossmith.discovery.proposers.portfolio import Portfolio, PortfolioSettings
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.scripted import ScriptedProposer
from lossmith.discovery.race.blocks import make_blocks
from lossmith.discovery.race.canaries import Canary
from lossmith.discovery.race.halving import RETESTED
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import (
    CANARIES,
    CONTROL,
    SimulatedProgram,
    SimulatedRung,
    World,
    simulated_setup,
)
from lossmith.discovery.replay import replay
from lossmith.discovery.rounds import CHEATS, Desk
from lossmith.discovery.rungs.base import (
    Block,
    HarnessError,
    InfrastructureError,
    Metrics,
)
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.database import Database
from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evaluation.judging import CallCache

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

SMALL = RaceSettings(
    candidates=6, blocks=(1, 2), elites=2, rounds=2, finalists=2, confirmation_blocks=5, audit_share=0.4
)
WORLD = World(seed=5, scale=4.0)


def small(seed: int = 3, **changes: Any) -> Setup:
    return simulated_setup(seed, settings=SMALL, world=WORLD, fragile=0.5) if not changes else replace(
        simulated_setup(seed, settings=SMALL, world=WORLD, fragile=0.5), **changes
    )  # fmt: skip


def dump_of(folder: Path | None, setup: Setup) -> dict[str, list[tuple]]:
    with Engine(folder, setup) as engine:
        assert engine.run().status == "finished"
        return engine.database.dump()


class Changed:
    """A rung that does something else first."""

    def __init__(self, rung: SimulatedRung, first: Callable[[SimulatedProgram, Block], Metrics | None]):
        self._rung, self._first = rung, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rung, name)

    def evaluate(self, program: SimulatedProgram, block: Block) -> Metrics:
        return self._first(program, block) or self._rung.evaluate(program, block)


def with_rungs(first: Callable[[SimulatedProgram, Block], Metrics | None], **changes: Any) -> Setup:
    setup = small()
    return replace(setup, rungs=[Changed(rung, first) for rung in setup.rungs], **changes)


# ---- what a run holds


@pytest.fixture(scope="module")
def finished():
    with Engine(None, small()) as engine:
        outcome = engine.run()
        yield engine, outcome


def test_every_block_holds_control_twin_canary_and_all_elites(finished):
    engine, _ = finished
    rows = engine.database.rows("SELECT rung, split, block, program, twin FROM evaluation")
    blocks: dict[tuple, set] = {}
    for rung, split, block, program, twin in rows:
        blocks.setdefault((rung, split, block), set()).add((program, twin))
    measured = [each.program.key for each in CANARIES if each.program is not None]
    # Nobody is left open by the first ground of the confirmation, so the second is not asked.
    assert len(blocks) == 2 * (1 + 2) + 5
    for (rung, split, index), programs in blocks.items():
        assert {(CONTROL.key, 0), (CONTROL.key, 1)} <= programs
        assert {key for key, _ in programs} & set(measured) == {measured[index % 3]}
        if split == "search" and index >= {"tiny": 1, "small": 2}[rung]:
            elites = {(each.program, 0) for each in engine.decisions.elites(0)}
            assert len(elites) == 2
            assert elites <= programs
            again = {(each.program, 0) for each in engine.decisions.retested(0)}
            assert len(again) > 2
            # Challengers are measured again on the last rung alone.
            assert (again <= programs) == (rung == engine.setup.rungs[-1].name)


def test_only_who_was_promoted_or_audited_is_measured_on_the_next_rung(finished):
    engine, _ = finished
    for step in range(2):
        decided = engine.decisions.all(step=step, rung="tiny")
        up = {each.program for each in decided if each.kind in ("promoted", "audited")}
        above = {each.program for each in engine.decisions.all(step=step, rung="small") if each.kind not in RETESTED}
        assert up == above
    kinds = Counter(each.kind for each in engine.decisions.all(rung="tiny"))
    assert kinds["promoted"] == 4
    assert kinds["audited"] > 0
    assert kinds["rejected"] > 0


@pytest.fixture(scope="module")
def half_open():
    """A run whose first ground leaves one finalist of two open, whom the second refutes."""
    with Engine(None, small(seed=13)) as engine:
        outcome = engine.run()
        yield engine, outcome


def test_confirmation_uses_seeds_and_a_split_that_the_search_never_used(half_open):
    engine, outcome = half_open
    seeds: dict[str, set] = {"search": set(), "confirmation": set()}
    for split, seed in engine.database.rows("SELECT split, seed FROM evaluation"):
        seeds[split].add(seed)
    assert len(seeds["confirmation"]) == 2 * 5 * 2
    assert not seeds["search"] & seeds["confirmation"]
    assert [[each.ground for each in claim.grounds] for claim in outcome.claims] == [
        ["small"],
        ["small", "small-unseen"],
    ]
    assert [result.unseen for result in outcome.claims[1].grounds] == [False, True]


def test_a_ground_is_asked_about_those_alone_that_may_yet_be_announced(half_open):
    engine, outcome = half_open
    first, second = outcome.claims
    assert first.p_holm > 0.05
    assert second.grounds[0].comparison.p_value < 0.05 < second.grounds[1].comparison.p_value == second.p_value
    asked = engine.database.rows(
        "SELECT rung, program FROM evaluation WHERE split = 'confirmation' AND program IN (?, ?) GROUP BY 1, 2",
        [first.program, second.program],
    )
    on_both = [("small", first.program), ("small", second.program), ("small-unseen", second.program)]
    assert sorted(asked) == sorted(on_both)


@pytest.mark.parametrize("run", ["finished", "half_open"])
def test_every_decision_is_made_again_from_the_rows(run, request):
    engine, outcome = request.getfixturevalue(run)
    found = replay(engine.database)
    assert found.mismatches == ()
    assert found.decisions == len(engine.decisions.all())
    assert found.claims == len(outcome.claims) == 2


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE evaluation SET fitness = fitness + 3 WHERE rung = 'small' AND split = 'search' AND block = 1 "
        "AND program IN (SELECT program FROM decision WHERE rung = 'small')",
        "UPDATE evaluation SET fitness = fitness + 3 WHERE rung = 'small-unseen' "
        "AND program IN (SELECT program FROM verdict)",
        "UPDATE decision SET kind = 'rejected' WHERE kind = 'promoted' AND step = 1 AND rung = 'tiny'",
        "UPDATE decision SET mean = mean + 0.001 WHERE kind = 'elite' AND step = 0 AND rank = 0",
        "UPDATE verdict SET announced = 1 - announced WHERE rank = 0",
        "UPDATE evaluation SET seed = seed + 1 WHERE rung = 'tiny' AND block = 0 AND twin = 1",
        "UPDATE evaluation SET program = (SELECT program FROM verdict WHERE rank = 0) WHERE rung = 'small-unseen' "
        "AND program = (SELECT program FROM verdict WHERE rank = 1)",
    ],
)
def test_a_changed_row_is_found_by_the_replay(tampering, tmp_path):
    dump_of(tmp_path, small(seed=13))
    with sqlite3.connect(tmp_path / "discovery.sqlite") as connection:
        assert connection.execute(tampering).rowcount > 0
    with Database(tmp_path, read_only=True) as database:
        assert replay(database).mismatches


def test_another_seed_is_another_run_and_the_same_seed_the_same(finished):
    engine, _ = finished
    assert dump_of(None, small()) == engine.database.dump()
    other = dump_of(None, small(seed=4))
    assert other["program"] != engine.database.dump()["program"]


def test_workers_change_no_row(finished):
    engine, _ = finished
    assert dump_of(None, small(workers=3)) == engine.database.dump()


def test_events_say_what_became_of_each_proposal():
    good, bad = SimulatedProgram((1,) * 6, 3.0), SimulatedProgram((2,) * 6, -3.0)
    broken = SimulatedProgram((7,) * 6, 1.0, "", 1.0)
    proposals = [
        Proposal(proposer="x", program=good),
        Proposal(proposer="x", program=bad, parents=("p",)),
        Proposal(proposer="y", program=good),
        Proposal(proposer="y", source="import os"),
        Proposal(proposer="y", program=broken),
    ]
    proposer = ScriptedProposer(proposals, cost=Cost(tokens=50))
    settings = replace(SMALL, candidates=5, calls=1, rounds=1, audit_share=0.0)
    with Engine(None, small(proposer=proposer, settings=settings)) as engine:
        engine.run()
        told = {(event.position, event.kind, event.category, event.rank) for event in proposer.heard}
        assert told == {
            (0, "measured", "ok", 0),
            (1, "measured", "ok", 1),
            (2, "duplicate", "duplicate-of-run", None),
            (3, "rejected", "syntax", None),
            (4, "failed", "ok", 2),
        }
        first, second, third, *_ = sorted(proposer.heard, key=lambda event: event.position)
        assert first.standing is not None
        assert first.standing.rung == "small"
        assert first.standing.mean > 1 > 0 > second.standing.mean
        assert second.standing.rung == "tiny"
        assert third.standing == first.standing
        assert second.parents == ("p",)
        assert first.cost_share.tokens == 10
        assert engine.ledger.spent().tokens == 50
        assert engine.archive.failures() == {"syntax": 1}
        assert engine.database.rows("SELECT status FROM evaluation WHERE program = ?", (broken.key,)) == [
            ("candidate_error",)
        ]


def test_the_context_tells_what_is_known():
    seen: list[Context] = []

    class Asking(ScriptedProposer):
        def propose(self, context: Context, n: int) -> Batch:
            seen.append(context)
            return super().propose(context, n)

    programs = [SimulatedProgram((i,) * 6, float(-i)) for i in range(5)]
    proposals = [Proposal(proposer="x", program=program) for program in [programs[0], *programs]]
    settings = replace(SMALL, candidates=2, calls=3, rounds=2)
    with Engine(None, small(proposer=Asking(proposals), settings=settings)) as engine:
        engine.run()
    assert [(context.step, context.call) for context in seen] == [(0, 0), (0, 1), (1, 0)]
    assert programs[0].key in seen[1].seen
    assert programs[0].key not in seen[0].seen
    assert seen[0].elites == ()
    assert seen[2].elites[0].key == programs[0].key
    assert seen[2].elites[0].low < seen[2].elites[0].mean < seen[2].elites[0].high
    assert seen[2].draw("a").random() != seen[1].draw("a").random()


# ---- who is at fault


def test_a_job_that_the_machine_failed_is_done_again_and_scored_as_if_nothing_had_been(finished):
    failures: Counter = Counter()

    def flaky(program: SimulatedProgram, block: Block) -> None:
        failures[program.key, block] += 1
        if random.Random(f"{program.key}{block}").random() < 0.3 and failures[program.key, block] <= 2:
            raise InfrastructureError("No memory.")

    with Engine(None, with_rungs(flaky)) as engine:
        assert engine.run().status == "finished"
        assert engine.database.dump() == finished[0].database.dump()
        assert engine.database.rows("SELECT MAX(failures), MAX(attempts) FROM job") == [(2, 3)]
        assert engine.ledger.spent().jobs == finished[0].ledger.spent().jobs


def test_a_candidate_on_which_the_machine_always_fails_is_dropped_without_a_score():
    def first_candidate(program: SimulatedProgram, block: Block) -> None:
        if program.genes and program.key == unlucky:
            raise InfrastructureError("No memory.")

    with Engine(None, small()) as engine:
        engine.run()
        unlucky = engine.decisions.all(step=0, rung="tiny")[0].program
    with Engine(None, with_rungs(first_candidate)) as engine:
        assert engine.run().status == "finished"
        (decided,) = [each for each in engine.decisions.all(step=0) if each.program == unlucky]
        assert (decided.kind, decided.mean) == ("unmeasured", None)
        assert engine.database.rows("SELECT status, fitness FROM evaluation WHERE program = ?", (unlucky,)) == [
            ("infrastructure_error", None)
        ]


def test_a_dead_machine_stops_the_run_which_goes_on_later(tmp_path, finished):
    dead = [True]

    def machine(program: SimulatedProgram, block: Block) -> None:
        if dead[0]:
            raise InfrastructureError("The disk is gone.")

    with Engine(tmp_path, with_rungs(machine)) as engine:
        outcome = engine.run()
    assert outcome.status == "machine"
    assert "The disk is gone. The run goes on where it stopped with the same --out." in outcome.sentence
    dead[0] = False
    assert dump_of(tmp_path, with_rungs(machine)) == finished[0].database.dump()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (lambda program, block: 1 / 0 if program.genes else None, "Our own code broke .*ZeroDivisionError"),
        (
            lambda program, block: Metrics(fitness=float("nan")) if not program.genes else None,
            "The control itself failed",
        ),
        (
            lambda program, block: Metrics(fitness=0.0, values={"x": float("nan")}) if program.genes else None,
            "metrics are not finite",
        ),
    ],
)
def test_a_broken_harness_stops_the_run_and_loses_nothing(trouble, words, tmp_path, finished):
    broken = [True]

    def first(program: SimulatedProgram, block: Block) -> Metrics | None:
        return trouble(program, block) if broken[0] and block.index == 1 else None

    with Engine(tmp_path, with_rungs(first)) as engine, pytest.raises(HarnessError, match=words):
        engine.run()
    broken[0] = False
    assert dump_of(tmp_path, with_rungs(first)) == finished[0].database.dump()


def test_a_canary_that_is_off_stops_the_run():
    def swapped(program: SimulatedProgram, block: Block) -> Metrics | None:
        return Metrics(fitness=500.0 + block.index) if program.label == "bad" else None

    settings = replace(SMALL, blocks=(6, 6))
    with Engine(None, with_rungs(swapped, settings=settings)) as engine:
        with pytest.raises(HarnessError, match=r"Canary `known-bad` .* is off on rung `tiny`"):
            engine.run()
        assert engine.database.rows("SELECT ended FROM session") == [("harness",)]


def test_the_verdict_on_each_cheat_is_kept_with_the_run(finished):
    engine, _ = finished
    cheats = [each.name for each in CANARIES if each.kind == "cheating"]
    kept = engine.archive.stage(-1, CHEATS)
    assert kept is not None
    assert list(kept) == cheats
    assert cheats
    for verdict in kept.values():
        assert verdict["category"] not in ("", "ok")


def test_an_admitted_cheat_stops_the_run_before_anything_is_measured():
    cheat = Canary(name="cheat", kind="cheating", proposal=Proposal(proposer="x", program=SimulatedProgram((1,), 9.0)))
    with Engine(None, small(canaries=[cheat])) as engine:
        with pytest.raises(HarnessError, match="cheating canary `cheat` was admitted"):
            engine.run()
        assert engine.database.rows("SELECT COUNT(*) FROM evaluation") == [(0,)]


def test_a_program_that_its_json_does_not_keep_is_not_measured():
    class Lossy(SimulatedProgram):
        def to_json(self) -> list:
            return SimulatedProgram(self.genes[:3]).to_json()

        @property
        def key(self) -> str:
            return "lossy"

    proposer = ScriptedProposer([Proposal(proposer="x", program=Lossy((1, 2, 3, 4, 5, 6)))])
    with Engine(None, small(proposer=proposer)) as engine, pytest.raises(HarnessError, match="read back from its own"):
        engine.run()


def test_a_proposer_that_cannot_be_reached_is_asked_again_in_its_old_state(finished):
    class Flaky(type(small().proposer)):
        failures = 0

        def propose(self, context: Context, n: int) -> Batch:
            found = super().propose(context, n)
            if self.failures < 2:
                self.failures += 1
                raise InfrastructureError("429")
            self.failures = 0
            return found

    setup = small(proposer=Flaky(learns=True, fragile=0.5))
    assert dump_of(None, setup) == finished[0].database.dump()
    setup.proposer.failures = -100
    with Engine(None, setup) as engine:
        assert "gives no answer: 429" in engine.run().sentence


# ---- the setup


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unseen": []}, "`unseen` must hold a rung on a task or model that the search never sees"),
        ({"settings": RaceSettings(blocks=(1, 1, 1), rounds=1)}, "3 numbers and 2 rungs"),
        ({"settings": RaceSettings(blocks=(1, 1))}, "Give a `budget` or a number of `rounds`"),
        ({"control": CANARIES[1].program}, "must be different programs"),
        ({"workers": -1}, "`workers`"),
    ],
)
def test_a_setup_whose_parts_do_not_fit_is_refused(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        small(**changes)


def test_a_seen_task_is_no_unseen_ground():
    setup = small()
    with pytest.raises(ConfigurationError, match="the search never sees"):
        replace(setup, unseen=[replace(setup.unseen[0], task=setup.rungs[-1].task)])  # type: ignore[type-var]


def test_another_spelling_of_a_seen_file_is_no_unseen_ground(tmp_path):
    setup, file = small(), tmp_path / "pairs.jsonl"
    file.touch()
    rungs = [*setup.rungs[:-1], replace(setup.rungs[-1], task=str(file))]  # type: ignore[type-var]
    unseen = replace(setup.unseen[0], task=f"{tmp_path}/../{tmp_path.name}/pairs.jsonl")  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match="the search never sees"):
        replace(setup, rungs=rungs, unseen=[unseen])


def test_a_run_is_not_continued_with_other_settings_or_elsewhere(tmp_path):
    dump_of(tmp_path, small())
    for changes, words in (
        ({"settings": replace(SMALL, keep=0.5)}, r"`race\.keep` is 0\.33.* there, 0\.5 here"),
        ({"rungs": [replace(rung, environment="other") for rung in small().rungs]}, r"`rungs\.small\.environment`"),
        ({"seed": 4}, "`seed` is 3 there, 4 here"),
    ):
        with pytest.raises(EvidenceError, match=words):
            Engine(tmp_path, small(**changes))


# ---- budgets


def test_the_search_ends_where_a_round_and_its_confirmation_no_longer_fit():
    plan = Engine(None, small()).forecast()
    settings = replace(SMALL, rounds=None)
    budget = Budget(jobs=3 * plan.round.jobs + plan.confirmation.jobs)
    with Engine(None, small(settings=settings, budget=budget)) as engine:
        outcome = engine.run()
        assert outcome.status == "finished"
        closed = engine.archive.find_stage("closed")
        assert closed is not None
        assert closed[1]["reason"] == "budget"
        assert closed[1]["rounds"] >= 3
        assert engine.ledger.spent().jobs <= budget.jobs
        assert len(outcome.claims) == 2


def in_order(worths: Sequence[float]) -> Setup:
    programs = [SimulatedProgram((place,) * 6, worth) for place, worth in enumerate(worths)]
    proposer = ScriptedProposer([Proposal(proposer="x", program=program) for program in programs])
    return small(proposer=proposer, settings=replace(SMALL, rounds=None, audit_share=0.0), budget=Budget(jobs=1e9))


def test_a_search_with_nothing_to_confirm_yet_goes_on_and_what_it_finds_late_waits_for_more_budget(tmp_path):
    plan = Engine(None, in_order([])).forecast()
    # A second round would not fit beside the confirmation.
    budget = Budget(jobs=2.1 * plan.round.jobs + 0.8 * plan.confirmation.jobs)
    ended = {}
    for name, worths in {
        "at once": [3.0 - place / 100 for place in range(60)],
        "never": [-3.0 - place / 100 for place in range(60)],
        "late": [-3.0] * 12 + [3.0] * 48,
    }.items():
        with Engine(tmp_path / name, replace(in_order(worths), budget=budget)) as engine:
            outcome = engine.run()
            closed = engine.archive.find_stage("closed")
            ended[name] = (outcome.status, None if closed is None else closed[1]["rounds"], len(outcome.claims))
            assert engine.ledger.spent().jobs <= budget.jobs
    assert ended["at once"] == ("finished", 1, 2)
    assert ended["never"] == ("finished", 3, 0)
    assert ended["late"] == ("budget", None, 0)
    with Engine(tmp_path / "late", in_order([-3.0] * 12 + [3.0] * 6)) as engine:
        assert engine.run().announced


def test_a_budget_that_cannot_pay_the_baseline_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot finish its own baseline"):
        Engine(tmp_path / "run", small(budget=Budget(jobs=20)))
    with pytest.raises(ConfigurationError, match="the search would have no end"):
        Engine(tmp_path / "run", small(budget=Budget(money_usd=1), settings=replace(SMALL, rounds=None)))
    assert not any(tmp_path.iterdir())


def test_a_run_that_goes_on_must_have_an_end_too(tmp_path):
    with Engine(tmp_path, small()) as engine:
        crash_after(engine, 20)
        with pytest.raises(Crash):
            engine.run()
    with pytest.raises(ConfigurationError, match="the search would have no end"):
        Engine(tmp_path, small(budget=Budget(money_usd=1), settings=replace(SMALL, rounds=None)))


@pytest.mark.parametrize("extra", range(0, 40, 3))
def test_as_many_rounds_are_done_as_were_said_to_fit_and_no_other_is_begun(extra):
    settings = replace(SMALL, rounds=None, blocks=(2,), audit_share=0.0)
    plain = small(settings=settings, budget=Budget(jobs=1e9), rungs=small().rungs[-1:])
    plan = Engine(None, plain).forecast()
    budget = Budget(jobs=plan.needed.jobs + extra)
    with Engine(None, replace(plain, budget=budget)) as engine:
        said = engine.forecast().rounds(budget)
        assert engine.run().status == "finished"
        closed = engine.archive.find_stage("closed")
        # A first round has no elites beside it yet, so there may be one more.
        assert closed in [(rounds, {"reason": "budget", "rounds": rounds}) for rounds in (said, said + 1)]
        assert engine.database.rows("SELECT COUNT(*) FROM job WHERE state != 'done'") == [(0,)]
        assert engine.ledger.spent().jobs <= budget.jobs


def test_each_session_is_kept_with_its_provenance(tmp_path):
    for command in ("first", "second"):
        with Engine(tmp_path, small(provenance={"command": command})) as engine:
            engine.run()
            sessions = engine.database.settings()["sessions"]
    assert [each["command"] for each in sessions] == ["first", "second"]
    assert all(each["started_at"].startswith("20") and each["lossmith"] for each in sessions)


def test_proposals_of_another_source_are_another_run(tmp_path):
    dump_of(tmp_path, small(sources={"model": "a"}))
    with pytest.raises(EvidenceError, match=r'`sources\.model` is "a" there, "b" here'):
        Engine(tmp_path, small(sources={"model": "b"}))
    assert "sources" not in small().identity()


def test_wrong_forecasts_end_a_first_round_cleanly_and_more_budget_goes_on(tmp_path, finished):
    """Rungs that take ten times what they declare: the first round cannot be finished within the budget."""

    class Understated(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            return replace(super().evaluate(program, block), device_seconds=10 * self.cost.device_seconds)

    def setup(budget: Budget) -> Setup:
        plain = small()
        rungs = [Understated(**vars(rung)) for rung in plain.rungs]
        return replace(plain, rungs=rungs, budget=budget)

    plan = Engine(None, small()).forecast()
    enough = Budget(device_seconds=1.5 * (plan.round + plan.confirmation).device_seconds)
    with Engine(tmp_path, setup(enough)) as engine:
        outcome = engine.run()
        assert outcome.status == "budget"
        assert "goes on where it stopped with the same --out and more --budget" in outcome.sentence
        assert engine.ledger.spent().device_seconds <= enough.device_seconds
        assert engine.database.rows("SELECT COUNT(*) FROM evaluation") > [(0,)]
        assert engine.database.rows("SELECT COUNT(*) FROM job WHERE state = 'leased'") == [(0,)]
        assert engine.database.rows("SELECT ended FROM session") == [("budget",)]
    with Engine(tmp_path, setup(Budget(device_seconds=1e9))) as engine:
        assert engine.run().status == "finished"
        assert engine.database.dump() == finished[0].database.dump()


def test_a_later_round_that_does_not_fit_leaves_what_earlier_ones_found_confirmed():
    class Slowing(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            found = super().evaluate(program, block)
            slow = block.split == "search" and block.index >= 2
            return replace(found, device_seconds=(2 if slow else 1) * self.cost.device_seconds)

    plain = small(settings=replace(SMALL, rounds=None), budget=Budget(jobs=1e9))
    plan = Engine(None, small()).forecast()
    budget = Budget(device_seconds=2.0 * plan.round.device_seconds + 1.15 * plan.confirmation.device_seconds)
    with Engine(None, replace(plain, rungs=[Slowing(**vars(rung)) for rung in plain.rungs], budget=budget)) as engine:
        outcome = engine.run()
        assert outcome.status == "finished"
        closed = engine.archive.find_stage("closed")
        rows = engine.database.rows("SELECT COUNT(*) FROM job WHERE step = 1 AND split = 'search'")
        abandoned = {"candidates": 6, "evaluations": rows[0][0]}
        assert closed == (1, {"reason": "budget", "rounds": 1, "abandoned": abandoned})
        assert (
            f"its 6 candidates take no part in the end, and its {rows[0][0]} evaluations are left out"
            in outcome.sentence
        )
        assert engine.database.rows("SELECT COUNT(*) FROM job WHERE state != 'done'") == [(0,)]
        assert engine.database.rows("SELECT COUNT(*) FROM evaluation WHERE rung = 'small' AND block = 2")[0][0] > 0
        # By what an evaluation has taken so far, the budget carries the confirmation of one.
        assert [claim.program for claim in outcome.claims] == [each.program for each in engine.decisions.elites(0)][:1]
        assert engine.ledger.spent().device_seconds <= budget.device_seconds
        assert replay(engine.database).mismatches == ()


def test_what_was_abandoned_takes_no_part_in_the_play_off():
    plan = Engine(None, small(settings=PLAYED)).forecast()

    class Slowing(SimulatedRung):
        """Slow on the cheap rung in the second round, which the budget ends on the last one."""

        def evaluate(self, program: Any, block: Block) -> Metrics:
            found, second = super().evaluate(program, block), block.split == "search"
            slow = second and self.name == "tiny" and block.index == 1
            # What is abandoned would be far ahead.
            ahead = second and self.name == "small" and block.index in (2, 3) and program.fixed_worth is None
            seconds = self.cost.device_seconds + slow * 0.07 * plan.round.device_seconds
            return replace(found, fitness=found.fitness + 50.0 * ahead, device_seconds=seconds)

    plain = small(settings=replace(PLAYED, rounds=None), budget=Budget(jobs=1e9))
    budget = Budget(device_seconds=2.0 * plan.round.device_seconds + 1.01 * plan.held_back.device_seconds)
    with Engine(None, replace(plain, rungs=[Slowing(**vars(rung)) for rung in plain.rungs], budget=budget)) as engine:
        outcome = engine.run()
        closed = engine.archive.find_stage("closed")
        assert closed is not None
        assert closed[1]["abandoned"]["evaluations"] > 0
        assert engine.database.rows("SELECT COUNT(*) FROM evaluation WHERE rung = 'small' AND block = 2")[0][0] > 5
        assert engine.archive.find_stage("playoff") == (1, {"blocks": 6})
        new = {each.key for each in engine.archive.proposals(1)}
        decided = [each for each in engine.decisions.all(step=1, rung="small") if each.kind in RETESTED]
        assert decided
        assert not new & {each.program for each in decided}
        assert all((each.mean or 0) < 25 for each in decided)
        assert outcome.claims
        assert replay(engine.database).mismatches == ()


def test_the_wall_stops_a_run_between_jobs(tmp_path, monkeypatch, finished):
    clock = [0.0]
    monkeypatch.setattr("lossmith.discovery.store.database.time.monotonic", lambda: clock[0])

    def tick(program: SimulatedProgram, block: Block) -> None:
        clock[0] += 10

    with Engine(tmp_path, with_rungs(tick, budget=Budget.parse("5m"))) as engine:
        outcome = engine.run()
        assert outcome.status == "budget"
        assert "The budget of 5 min " in outcome.sentence
        assert 200 < engine.database.wall_seconds() <= 310
    assert dump_of(tmp_path, with_rungs(tick, budget=Budget.parse("5h"))) == finished[0].database.dump()


def test_a_finished_run_is_not_confirmed_twice(tmp_path):
    with Engine(tmp_path, small()) as engine:
        first = engine.run()
        before = engine.database.dump()
    with Engine(tmp_path, small(settings=replace(SMALL, rounds=5))) as engine:
        again = engine.run()
        assert engine.database.dump() == before
    assert again.announced == first.announced
    assert "begin another run with another seed" in again.sentence


def test_a_proposer_with_nothing_left_ends_the_search():
    programs = [SimulatedProgram((i,) * 6, 2.0 + i) for i in range(8)]
    proposer = ScriptedProposer([Proposal(proposer="x", program=program) for program in programs])
    with Engine(None, small(proposer=proposer, settings=replace(SMALL, rounds=9))) as engine:
        outcome = engine.run()
        assert engine.archive.find_stage("closed") == (2, {"reason": "the proposer has nothing new", "rounds": 2})
        assert outcome.announced


# ---- broken off anywhere


class Crash(BaseException):
    """Stands for SIGKILL between two commits."""


def crash_after(engine: Engine, commits: int) -> None:
    left = [commits]
    connection = engine.database._connection

    class Counting:
        in_transaction = property(lambda self: connection.in_transaction)

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        def execute(self, statement: str, values: Sequence = ()) -> sqlite3.Cursor:
            if statement == "COMMIT":
                if left[0] == 0:
                    raise Crash
                left[0] -= 1
            return connection.execute(statement, values)

    engine.database._connection = Counting()  # type: ignore[assignment]


def broken_off(folder: Path, make: Callable[[], Setup], commits: int) -> tuple[dict[str, list[tuple]], int]:
    """The dump of a run that is broken off after every so many commits, and the number of its lives."""
    lives = 1
    while True:
        engine = Engine(folder, make())
        crash_after(engine, commits)
        try:
            assert engine.run().status == "finished"
            return engine.database.dump(), lives
        except Crash:
            lives += 1
            assert lives < 2000
        finally:
            engine.close()


@pytest.mark.parametrize("commits", [4, 9])
def test_a_run_that_is_broken_off_after_every_few_commits_ends_the_same(commits, tmp_path, finished):
    # One opens the session, one queues, one leases a job, one keeps its result: with fewer no life gets anywhere.
    found, lives = broken_off(tmp_path, small, commits)
    assert lives > 20
    assert found == finished[0].database.dump()


def test_a_round_can_be_broken_off_between_its_calls(tmp_path):
    programs = [SimulatedProgram((i,) * 6, float(-i)) for i in range(3)]

    def make() -> Setup:
        proposals = [Proposal(proposer="x", program=programs[i]) for i in (0, 0, 0, 1, 1, 2)]
        settings = replace(SMALL, candidates=2, calls=4, rounds=1)
        return small(proposer=ScriptedProposer(proposals, cost=Cost(tokens=5)), settings=settings)

    calm = dump_of(None, make())
    assert len(calm["call"]) == 3
    assert broken_off(tmp_path, make, 4)[0] == calm


def test_kills_at_random_instants_change_no_row(tmp_path):
    import discovery_kill

    discovery_kill.warm_up()
    draw, kills = random.Random(2), 0
    for seed, workers in ((1, 0), (2, 2)):
        found = discovery_kill.compare(tmp_path / str(seed), seed, kills=4, seconds=0.002, workers=workers, draw=draw)
        kills += found.kills
        assert found.differences == []
    assert kills >= 4


# ---- broken off while a model is asked


ALLOWED_TOKENS = 36_000
"""Fewer than the first round would take: some of its requests and repairs do not fit."""


def written(body: dict[str, Any]) -> dict[str, Any]:
    """One candidate per request, by its seed; every third is broken, and repaired when that is asked for."""
    seed = body["seed"]
    head = "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps): "
    margin = "((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps))"
    code = head + f"return torch.exp(-0.0{1 + seed % 89} * {margin}) - {0.001 * (seed % 97):.3f} * {margin}"
    if seed % 3 == 0:
        code = head + f"return chosen_logps - {seed % 101}.0"
    found = judge_server.completion(json.dumps({"candidates": [{"thought": "t", "name": f"n{seed}", "code": code}]}))
    # Dear, and yet within the bound: a token per character.
    read = sum(len(message["content"]) for message in body["messages"])
    found["usage"] = {"prompt_tokens": read, "completion_tokens": 50, "total_tokens": read + 50}
    return found


class CrashingCache(CallCache):
    """Dies after so many replies are stored; what is under way is lost."""

    left: int | None = None
    one_at_a_time = threading.Lock()

    def put(self, key: str, reply: Any) -> None:
        if self.left is not None:
            with self.one_at_a_time:
                if self.left == 0:
                    raise Crash
                self.left -= 1
        super().put(key, reply)


class Lengths(SimulatedRung):
    """Measures what can be read from a program without training: the length of its formula."""

    def evaluate(self, program: Any, block: Block) -> Metrics:
        return Metrics(fitness=-len(program.to_json()) + 0.1 * block.training_seed / 2**31)


def asking_setup(folder: Path, base_url: str, stack: ExitStack, replies: int | None) -> Setup:
    gate, plain = Admission("preference", 3), small()
    cache = stack.enter_context(CrashingCache(folder / "replies.sqlite"))
    cache.left = replies
    endpoint = stack.enter_context(open_endpoint(base_url))
    model = Model(model="writer", endpoint=endpoint, cache=cache, max_tokens=64, usd_per_million_read=1.0)
    arms = [
        LLMProposer(model, check=gate.check, per_call=1),
        BestOfProposer(GeneticProposer(name="blind")),
        RandomProposer(),
    ]
    return replace(
        plain,
        gate=gate,
        proposer=Portfolio(arms, settings=PortfolioSettings(floor=0.3)),
        rungs=[Lengths(**vars(rung)) for rung in plain.rungs],
        unseen=[Lengths(**vars(rung)) for rung in plain.unseen],  # type: ignore[arg-type]
        control=control_of("preference"),
        canaries=[],
        settings=replace(SMALL, candidates=30, blocks=(1, 1), calls=2),
        budget=Budget(tokens=ALLOWED_TOKENS),
    )


def asked_until_done(folder: Path, base_url: str, *, commits: int | None, replies: int | None) -> tuple[dict, int]:
    """The dump of a run that dies after so many commits or stored replies, and its lives."""
    folder.mkdir()
    lives = 0
    while True:
        lives += 1
        assert lives < 300
        with ExitStack() as stack:
            # Replies first: a life that is to die of a commit must get some.
            engine = Engine(folder, asking_setup(folder, base_url, stack, replies))
            stack.callback(engine.close)
            if commits is not None:
                crash_after(engine, commits)
            try:
                engine.run()
            except Crash:
                continue
            with closing(sqlite3.connect(folder / "replies.sqlite")) as stored:
                kept = [json.loads(row[0]) for row in stored.execute("SELECT reply FROM call")]
            spent = engine.ledger.spent()
            assert spent.tokens == sum(each["prompt_tokens"] + 50 for each in kept) <= ALLOWED_TOKENS
            assert spent.money_usd == pytest.approx(1e-6 * sum(each["prompt_tokens"] for each in kept))
            assert engine.database.rows("SELECT SUM(tokens_lost), SUM(money_usd_lost) FROM ledger") == [(0, 0)]
            return engine.database.dump(), lives


@pytest.mark.parametrize(("commits", "replies"), [(11, None), (None, 1), (11, 2)])
def test_a_run_that_asks_a_model_ends_the_same_and_pays_each_reply_once(commits, replies, tmp_path):
    with judge_server.judge_server(written) as server:
        calm, _ = asked_until_done(tmp_path / "calm", server.base_url, commits=None, replies=None)
        asked = len(server.bodies)
        found, lives = asked_until_done(tmp_path / "killed", server.base_url, commits=commits, replies=replies)
    assert lives > 3
    assert asked == 16
    assert {each[3] for each in calm["proposal"]} >= {"llm", "random", "best-of"}
    assert found == calm


def test_what_every_arm_takes_is_in_the_ledger(tmp_path):
    with judge_server.judge_server(written) as server, ExitStack() as stack:
        engine = stack.enter_context(Engine(tmp_path, asking_setup(tmp_path, server.base_url, stack, None)))
        engine.run()
        kinds = engine.ledger.by_kind()
        assert kinds["proposer/llm"].tokens == engine.ledger.spent().tokens > 0
        assert kinds["proposer/random"].tokens == kinds["proposer"].tokens == 0
        assert all(kinds[f"proposer/{arm}"].wall_seconds > 0 for arm in ("llm", "random", "best-of"))


# ---- rates


def test_nothing_is_announced_where_nothing_is_better():
    import discovery_null

    settings = RaceSettings(candidates=6, blocks=(1, 1), elites=2, rounds=1, finalists=2, confirmation_blocks=6)
    for kind in ("nothing", "elsewhere"):
        count = discovery_null.Count()
        for seed in range(24):
            discovery_null.one_run(seed, kind, discovery_null.SHAPES[seed % 4], count, settings)
        # At 2.5% a run, four of 24 come once in 400 such tests.
        assert count.announced <= 3
        assert count.finalists > 12


def test_the_planted_best_is_found_and_chance_does_not_find_it():
    import discovery_planted

    found = discovery_planted.race_of_pool(1)
    lucky = discovery_planted.single_runs_of_pool(1, found.cost)
    assert found.worth == discovery_planted.PLANTED
    assert found.cost <= discovery_planted.POOL_BUDGET.device_seconds
    assert abs(found.estimate - found.worth) < 1.0
    assert lucky.worth < found.worth
    assert lucky.estimate - lucky.worth > 1.0


def test_the_expected_cost_of_nothing_is_nothing():
    assert ScriptedProposer([]).expected_cost(3) == ZERO
    assert make_blocks(0, "a", "search", 0, 0) == []


# ---- the library's own checks


def test_the_librarys_checks_admit_for_a_run_and_reuse_what_is_known():
    from lossmith.discovery.admission import Admission
    from lossmith.discovery.program import Program

    head = "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps): "
    margin = "((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps))"
    sources = [
        head + f"return torch.exp(-0.01 * {margin})",
        head + f"return 5 * torch.exp({margin} * -0.01) + 1",  # another formula with the same gradients but for scale
        head + f"return torch.exp(0.01 * {margin})",
        head + f"return -F.logsigmoid(0.3 * {margin})",
        head + "import os",
    ]
    gate = Admission("preference", 3)

    class Lengths(SimulatedRung):
        """Measures what can be read from a program without training: the length of its formula."""

        def evaluate(self, program: Any, block: Block) -> Metrics:
            assert isinstance(program, Program)
            return Metrics(fitness=len(program.to_json()) + 0.1 * block.training_seed / 2**31)

    compiled = gate.check(Proposal(proposer="x", source=head + f"return torch.square({margin} - 3)")).program
    assert compiled is not None
    plain = small()
    proposer = ScriptedProposer([Proposal(proposer="x", source=source) for source in sources])
    setup = replace(
        plain,
        gate=gate,
        rungs=[Lengths(**vars(rung)) for rung in plain.rungs],
        unseen=[Lengths(**vars(rung)) for rung in plain.unseen],  # type: ignore[arg-type]
        proposer=proposer,
        control=compiled,
        canaries=[],
        settings=replace(SMALL, calls=1, rounds=1),
    )
    with Engine(None, setup) as engine:
        assert engine.run().status == "finished"
        told = engine.archive.proposals()
        assert [each.kind for each in told] == ["admitted", "duplicate", "rejected", "duplicate", "rejected"]
        assert told[1].key == told[0].key
        assert told[1].category == f"duplicate-of-{told[0].key}"
        assert [each.category for each in told[2:]] == ["wrong-sign", "duplicate-of-dpo", told[4].category]
        assert proposer.heard[1].standing == proposer.heard[0].standing is not None
        assert replay(engine.database).mismatches == ()


def test_the_confirmation_is_about_as_many_as_the_budget_carries_decided_once(tmp_path):
    plan = Engine(None, small()).forecast()
    tight = Budget(device_seconds=1.55 * plan.round.device_seconds + 1.15 * plan.confirmation.device_seconds)

    class Dear(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            found = super().evaluate(program, block)
            return replace(found, device_seconds=1.5 * self.cost.device_seconds)

    def setup(budget: Budget) -> Setup:
        dear = [Dear(**vars(rung)) for rung in small().rungs]
        return small(settings=replace(SMALL, rounds=1), budget=budget, rungs=dear)

    with Engine(tmp_path, setup(tight)) as engine:
        outcome = engine.run()
        stage = engine.archive.find_stage("finalists")
        assert stage is not None
        assert len(stage[1]["finalists"]) == 1
        assert len(engine.decisions.elites(0)) == 2
        assert outcome.status == "finished"
        assert [claim.program for claim in outcome.claims] == stage[1]["finalists"]
        assert replay(engine.database).mismatches == ()
    with Engine(tmp_path, setup(Budget(device_seconds=1e9))) as engine:
        engine.run()
        assert len(engine.database.rows("SELECT program FROM verdict")) == 1


def test_a_closed_search_says_that_it_stays_so(tmp_path):
    said: list[str] = []
    with Engine(tmp_path, small(), say=said.append) as engine:
        engine.run()
    assert not any("stays closed" in sentence for sentence in said)
    with Engine(tmp_path, small(settings=replace(SMALL, rounds=5)), say=said.append) as engine:
        engine.run()
    assert (
        said[-1] == "The search of this run was closed after 2 rounds and stays closed; `--rounds 5` changes nothing."
    )


# ---- the play-off


PLAYED = replace(SMALL, playoff_blocks=3)


@pytest.fixture(scope="module")
def played():
    """A finished run with a play-off."""
    with Engine(None, small(settings=PLAYED)) as engine:
        outcome = engine.run()
        yield engine, outcome


def test_the_play_off_measures_who_was_tried_again_and_then_the_elites(played):
    engine, outcome = played
    last = engine.setup.rungs[-1].name
    rows = engine.database.rows(
        "SELECT block, program FROM evaluation WHERE rung = ? AND split = 'search' AND NOT twin", [last]
    )
    by_block: dict[int, set[str]] = {}
    for block, program in rows:
        by_block.setdefault(block, set()).add(program)
    legs = [{key for block in range(first, first + 3) for key in by_block[block]} for first in (6, 9)]
    assert set(by_block) == {0, 1, 2, 3, *range(6, 12)}
    fixed = {CONTROL.key, *(each.program.key for each in CANARIES if each.program is not None)}
    tried = {each.program for each in engine.decisions.retested(1)}
    assert len(tried) == 4
    assert legs[0] - fixed == tried
    assert len(legs[1] - fixed) == 2
    after = engine.decisions.elites(2)
    assert [claim.program for claim in outcome.claims] == [each.program for each in after]
    # Two blocks of its round, or more, and the six of the play-off.
    assert min(each.blocks for each in after) >= 8
    assert replay(engine.database).mismatches == ()


def test_a_play_off_that_is_broken_off_ends_the_same(tmp_path, played):
    found, lives = broken_off(tmp_path, lambda: small(settings=PLAYED), 5)
    assert lives > 20
    assert found == played[0].database.dump()


@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        (
            [
                "DELETE FROM verdict",
                "DELETE FROM claim",
                "UPDATE stage SET detail = '{\"finalists\": []}' WHERE name IN ('finalists', 'confirmed')",
            ],
            "The finalists are [] and replayed they are",
        ),
        (
            [
                "DELETE FROM evaluation WHERE rung = 'small' AND split = 'search' AND block >= 9 AND program = "
                "(SELECT program FROM decision WHERE kind = 'elite' AND step = 2 AND rank = 1)"
            ],
            "was not measured in it",
        ),
    ],
)
def test_finalists_that_are_gone_and_a_leg_without_an_elite_are_found_by_the_replay(tampering, said, tmp_path):
    dump_of(tmp_path, small(settings=PLAYED))
    with sqlite3.connect(tmp_path / "discovery.sqlite") as connection:
        for each in tampering:
            assert connection.execute(each).rowcount > 0
    with Database(tmp_path, read_only=True) as database:
        assert any(said in each for each in replay(database).mismatches)


class Stop(BaseException):
    """Ends a session in the middle of an evaluation."""


def with_stop(setup: Setup, stops: Callable[[SimulatedRung, Block], bool]) -> Setup:
    class Stopping(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            if stops(self, block):
                raise Stop
            return super().evaluate(program, block)

    return replace(setup, rungs=[Stopping(**vars(rung)) for rung in setup.rungs])


@pytest.mark.parametrize("at", range(2, 15, 3))
def test_a_second_leg_that_is_broken_off_does_not_change_who_is_in_it(tmp_path, at):
    # A run in whose second leg others would be ahead after some of its evaluations.
    settings = RaceSettings(
        candidates=8,
        blocks=(2,),
        elites=2,
        challengers=3,
        playoff_blocks=3,
        finalists=1,
        confirmation_blocks=5,
        rounds=2,
    )

    def setup() -> Setup:
        return simulated_setup(4, settings=settings, world=World(seed=3, scale=1.0), budget=Budget(jobs=1e9))

    second_leg, seen = 3 * 2 + 3, [0]

    def stops(rung: SimulatedRung, block: Block) -> bool:
        seen[0] += block.split == "search" and block.index >= second_leg
        return seen[0] == at

    with Engine(tmp_path, with_stop(setup(), stops)) as engine, pytest.raises(Stop):
        engine.run()
    assert dump_of(tmp_path, setup()) == dump_of(None, setup())


@pytest.mark.parametrize("slower", [1.6, 2.0])
def test_a_play_off_that_takes_longer_leaves_a_verdict_on_one(slower):
    class Slowing(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            found, late = super().evaluate(program, block), block.split == "search" and block.index >= 6
            return replace(found, device_seconds=(slower if late else 1) * self.cost.device_seconds)

    settings = replace(SMALL, blocks=(2,), elites=3, playoff_blocks=6, audit_share=0.0)
    plain = small(settings=settings, rungs=small().rungs[-1:])
    plan = Engine(None, plain).forecast()
    budget = Budget(device_seconds=2 * plan.round.device_seconds + plan.held_back.device_seconds)
    rungs = [Slowing(**vars(rung)) for rung in plain.rungs]
    with Engine(None, replace(plain, rungs=rungs, budget=budget)) as engine:
        outcome = engine.run()
        assert outcome.status == "finished"
        assert outcome.claims
        found = engine.archive.find_stage("playoff")
        assert found is not None
        assert found[1]["blocks"] < 12
        assert engine.database.rows("SELECT COUNT(*) FROM job WHERE state != 'done'") == [(0,)]
        assert replay(engine.database).mismatches == ()


@pytest.mark.parametrize("last", [False, True])
def test_a_round_that_has_begun_is_ended_whatever_rounds_says_later(tmp_path, monkeypatch, last):
    """Killed in the middle of the third round, or between its last decisions and its end."""
    settings = replace(PLAYED, blocks=(2,), rounds=4)
    setup = small(settings=settings, rungs=small().rungs[-1:])
    if last:
        tell = Desk.tell

        def told(desk: Desk, step: int, *events: Any) -> None:
            if step == 2:
                raise Stop
            tell(desk, step, *events)

        monkeypatch.setattr(Desk, "tell", told)
        first = setup
    else:
        seen = [0]

        def stops(rung: SimulatedRung, block: Block) -> bool:
            seen[0] += block.split == "search" and block.index >= 4
            return seen[0] == 5

        first = with_stop(setup, stops)
    with Engine(tmp_path, first) as engine, pytest.raises(Stop):
        engine.run()
    monkeypatch.undo()
    with Engine(tmp_path, replace(setup, settings=replace(settings, rounds=2))) as engine:
        assert engine.run().status == "finished"
        assert engine.archive.find_stage("closed") == (3, {"reason": "rounds", "rounds": 3})
        assert engine.database.rows("SELECT COUNT(*) FROM job WHERE state != 'done'") == [(0,)]
        assert replay(engine.database).mismatches == ()


def test_the_forecast_holds_the_play_off_back(played):
    plan, without = Engine(None, small(settings=PLAYED)).forecast(), Engine(None, small()).forecast()
    # Two elites and two challengers beside three fixed runs, then the elites, in three blocks each, 10 s an evaluation.
    assert plan.playoff.jobs == 3 * (2 + 2 + 3) + 3 * (2 + 3)
    assert without.playoff.jobs == 0
    assert plan.needed.jobs > without.needed.jobs + plan.playoff.jobs
    assert any(sentence.startswith("play-off: ") for sentence in plan.sentences(Budget(), 1))


def test_a_budget_that_does_not_carry_the_play_off_goes_without_it():
    plan = Engine(None, small(settings=PLAYED)).forecast()

    class Slowing(SimulatedRung):
        def evaluate(self, program: Any, block: Block) -> Metrics:
            return replace(super().evaluate(program, block), device_seconds=1.6 * self.cost.device_seconds)

    rungs = [Slowing(**vars(rung)) for rung in small().rungs]
    whole = plan.playoff.device_seconds + plan.confirmation.device_seconds
    budget = Budget(device_seconds=1.7 * plan.round.device_seconds + 1.2 * whole)
    with Engine(None, small(settings=replace(PLAYED, rounds=1), budget=budget, rungs=rungs)) as engine:
        outcome = engine.run()
        assert outcome.status == "finished"
        assert engine.archive.find_stage("playoff") == (1, {"blocks": 0})
        best = [each.program for each in engine.decisions.elites(0)]
        assert [claim.program for claim in outcome.claims] == best[: len(outcome.claims)]
        assert replay(engine.database).mismatches == ()


@pytest.mark.parametrize(("slower", "status"), [(1.3, "finished"), (1.9, "budget")])
def test_a_confirmation_that_nearly_fits_is_begun(slower, status):
    class Slowing(SimulatedRung):
        """Slower than declared in the search, so that the forecast of the confirmation is too high."""

        def evaluate(self, program: Any, block: Block) -> Metrics:
            factor = slower if block.split == "search" else 0.9
            return replace(super().evaluate(program, block), device_seconds=factor * self.cost.device_seconds)

    settings = replace(SMALL, rounds=None, finalists=1)
    plan = Engine(None, small(settings=replace(settings, rounds=1))).forecast()
    budget = Budget(device_seconds=1.3 * plan.round.device_seconds + 1.1 * plan.confirmation.device_seconds)
    rungs = [Slowing(**vars(rung)) for rung in small().rungs]
    with Engine(None, small(settings=settings, budget=budget, rungs=rungs)) as engine:
        outcome = engine.run()
        assert outcome.status == status
        assert ("the confirmation of the most promising candidate needs" in outcome.sentence) == (status == "budget")
        assert (engine.archive.find_stage("closed") is None) == (status == "budget")
        assert engine.ledger.spent().device_seconds <= budget.device_seconds
