"""Proposers that take candidates from elsewhere: people, other runs; and the portfolio of all."""

import json
import os

import numpy as np
import pytest
from proposer_cases import LRML, PADLL, SOURCES, context, control, keys, same_after_restore

from lossmith.discovery.compiler import compile_source
from lossmith.discovery.costs import Cost
from lossmith.discovery.program import Program, to_json
from lossmith.discovery.proposers.base import Batch, Event, Proposal
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.genetic import GeneticProposer
from lossmith.discovery.proposers.human import HumanProposer
from lossmith.discovery.proposers.portfolio import Portfolio, PortfolioSettings
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.replay import ReplayProposer
from lossmith.discovery.proposers.scripted import ScriptedProposer
from lossmith.discovery.race.halving import Decision
from lossmith.discovery.store.archive import Archive, StoredProgram
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.errors import ConfigurationError, EvidenceError, LossmithWarning

HOSTILE = "open('DROP/touched', 'w').write('x')\nraise SystemExit\n"


def sources(batch) -> list[str]:
    return [proposal.source for proposal in batch.proposals]


def test_a_persons_files_are_proposed_once_by_content_and_never_run(tmp_path):
    marker = tmp_path / "touched"
    (tmp_path / "b.py").write_text(LRML)
    (tmp_path / "a.py").write_text(HOSTILE.replace("DROP/touched", str(marker)))
    (tmp_path / "c.discopop.py").write_text(PADLL)
    (tmp_path / "notes.txt").write_text("def f(): pass")
    (tmp_path / "folder.py").mkdir()
    arm = HumanProposer(tmp_path)
    first = arm.propose(context(), 2)
    assert [each.name for each in first.proposals] == ["a", "b"]
    kept = json.loads(json.dumps(arm.state()))
    arm = HumanProposer(tmp_path)
    arm.restore(kept)
    (last,) = arm.propose(context(), 5).proposals
    assert (last.name, last.signature, last.source) == ("c.discopop", "discopop", PADLL)
    assert arm.propose(context(), 5).proposals == ()
    (tmp_path / "b.py").write_text(PADLL.replace("0.45", "0.5"))
    (tmp_path / "d.py").write_text(LRML)
    changed = arm.propose(context(), 5)
    assert sources(changed) == [PADLL.replace("0.45", "0.5")]
    assert not marker.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.py", "b.py", "c.discopop.py", "d.py", "folder.py", "notes.txt",
    ]  # fmt: skip


def test_odd_files_do_no_harm(tmp_path):
    (tmp_path / "big.py").write_bytes(b"#" * 50_000)
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00def f")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    found = HumanProposer(tmp_path).propose(context(), 9)
    assert [each.name for each in found.proposals] == ["big", "bytes"]
    assert len(sources(found)[0]) == 8193
    with pytest.raises(ConfigurationError, match="must be a folder"):
        HumanProposer(tmp_path / "nothing")


def test_one_text_is_two_losses_under_two_signatures(tmp_path):
    (tmp_path / "a.py").write_text(PADLL)
    (tmp_path / "b.discopop.py").write_text(PADLL)
    (tmp_path / "c.py").write_text(PADLL)
    found = HumanProposer(tmp_path).propose(context(), 9).proposals
    assert [(each.name, each.signature) for each in found] == [("a", "native"), ("b.discopop", "discopop")]


def test_a_folder_without_files_is_said(tmp_path):
    with pytest.warns(LossmithWarning, match="holds no .py file yet"):
        arm = HumanProposer(tmp_path)
    (tmp_path / "late.py").write_text(LRML)
    assert [each.name for each in arm.propose(context(), 9).proposals] == ["late"]


@pytest.fixture
def other_run(tmp_path):
    """A folder with the database of a run of four candidates, two of them elites of some round."""
    programs = [compile_source(source) for source in (LRML, PADLL, LRML.replace("0.05", "0.1"), SOURCES["preference"])]
    with Database(tmp_path / "other") as database:
        archive = Archive(database)
        for place, program in enumerate(programs):
            archive.add_program(stored(program, place))
        other_beta = Program("preference", control("preference").root, {"beta": 0.3})
        archive.add_program(stored(other_beta, 9, role="canary"))
        decided = [decision(programs[2].key, "elite", 0), decision(programs[0].key, "elite", 1)]
        Decisions(database).save([*decided, decision(programs[1].key, "stopped", 2)])
    return tmp_path / "other", programs


def stored(program, place: int, role: str = "candidate") -> StoredProgram:
    return StoredProgram(
        key=program.key, role=role, name=f"n{place}", proposer="gp", step=0, call=0, position=place,
        payload=to_json(program),
    )  # fmt: skip


def decision(key: str, kind: str, rank: int) -> Decision:
    return Decision(step=0, rung="toy", program=key, kind=kind, rank=rank, lower=0.0, mean=0.1, sd=0.1, blocks=2)


def test_another_run_is_replayed_in_order_and_once(other_run):
    folder, programs = other_run
    arm = ReplayProposer(folder)
    known = frozenset([programs[1].key])
    first = arm.propose(context(seen=known), 2)
    assert keys(first) == [programs[0].key, programs[2].key]
    assert [each.name for each in first.proposals] == ["n0", "n2"]
    kept = json.loads(json.dumps(arm.state()))
    again = ReplayProposer(folder)
    again.restore(kept)
    assert keys(again.propose(context(), 9)) == keys(arm.propose(context(), 9)) == [programs[3].key]
    assert arm.propose(context(), 9).proposals == ()
    assert keys(ReplayProposer(folder, elites_only=True).propose(context(), 9)) == [programs[0].key, programs[2].key]


def test_a_replay_that_cannot_be_is_one_sentence(other_run, tmp_path):
    folder, _ = other_run
    with pytest.raises(EvidenceError, match="no discovery run"):
        ReplayProposer(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="cannot replay"):
        ReplayProposer(folder).propose(context("token"), 1)
    with pytest.raises(EvidenceError, match="has changed"):
        ReplayProposer(folder).restore({"next": 2, "last": "other"})
    with Database(tmp_path / "empty"):
        pass
    with pytest.raises(ConfigurationError, match="nothing to replay"):
        ReplayProposer(tmp_path / "empty")


def best_of(name: str = "best-of") -> BestOfProposer:
    return BestOfProposer(RandomProposer(name=f"{name}-inner"), name=name)


def portfolio(*arms, **settings) -> Portfolio:
    return Portfolio([RandomProposer(), best_of(), *arms], settings=PortfolioSettings(**settings))


class Arm:
    """Proposes `name-1`, `name-2`, ... at a price, up to a limit."""

    def __init__(self, name: str, *, tokens: float = 0.0, limit: int = 10**9):
        self.name, self.tokens, self.limit, self.made, self.heard = name, tokens, limit, 0, 0

    def expected_cost(self, n):
        return Cost(tokens=self.tokens * n)

    def propose(self, context, n):
        count = min(n, self.limit - self.made)
        self.made += count
        found = tuple(Proposal(proposer=self.name, source=f"{self.name}-{self.made - i}") for i in range(count))
        return Batch(proposals=found, cost=Cost(tokens=self.tokens * count))

    def observe(self, events):
        self.heard += len(events)

    def state(self):
        return {"made": self.made}

    def restore(self, state):
        self.made = state["made"]


def play(arm, rates: dict, rounds: int, n: int = 10, *, distance: float | None = None) -> dict[str, int]:
    """Rounds in which each arm's proposals are admitted at its rate; proposals by arm."""
    count, generator = dict.fromkeys(rates, 0), np.random.default_rng(0)
    for step in range(rounds):
        batch = arm.propose(context(step=step), n)
        assert len(batch.proposals) == n
        told = []
        for position, each in enumerate(batch.proposals):
            count[each.proposer] += 1
            kind = "measured" if generator.random() < rates[each.proposer] else "rejected"
            told.append(
                Event(
                    step=step, call=0, position=position, proposer=each.proposer, kind=kind, category="ok",
                    distance=distance, rank=None if kind == "rejected" else 0,
                )
            )  # fmt: skip
        arm.observe(told)
    return count


def test_a_portfolio_needs_its_baselines_and_different_names():
    with pytest.raises(ConfigurationError, match="`best-of`"):
        Portfolio([RandomProposer(), GeneticProposer()])
    with pytest.raises(ConfigurationError, match="`random`"):
        Portfolio([best_of(), GeneticProposer()])
    with pytest.raises(ConfigurationError, match="different names"):
        Portfolio([RandomProposer(), RandomProposer(), best_of()])
    with pytest.raises(ConfigurationError, match="floor"):
        portfolio(floor=0.6)


def test_it_spends_more_where_more_is_admitted_and_keeps_the_floor():
    arm = Portfolio([Arm("random"), Arm("best-of"), Arm("good"), Arm("bad")], settings=PortfolioSettings(floor=0.08))
    count = play(arm, {"random": 0.3, "best-of": 0.3, "good": 0.9, "bad": 0.05}, 60)
    assert count["good"] > 300
    # The floor is of all proposals at any time, to one in rounding.
    assert min(count.values()) >= 0.08 * 600 - 1
    assert count["bad"] < 80


def test_cost_counts_against_an_arm():
    arms = [Arm("random"), Arm("best-of"), Arm("cheap"), Arm("dear", tokens=100_000.0)]
    count = play(Portfolio(arms), dict.fromkeys(("random", "best-of"), 0.1) | {"cheap": 0.6, "dear": 0.9}, 40)
    assert count["cheap"] > 2 * count["dear"]
    free = [Arm("random"), Arm("best-of"), Arm("cheap"), Arm("dear")]
    count = play(Portfolio(free), dict.fromkeys(("random", "best-of"), 0.1) | {"cheap": 0.6, "dear": 0.9}, 40)
    assert count["dear"] > count["cheap"]


def told(proposer: str, kind: str, *, rank: int | None, distance: float | None = None) -> Event:
    return Event(
        step=0, call=0, position=0, proposer=proposer, kind=kind, category="ok", distance=distance, rank=rank
    )  # fmt: skip


def test_novelty_is_what_lies_far_from_known_losses():
    arm = Portfolio([Arm("random"), Arm("best-of")])
    cases = [(0.025, "measured", 0.5), (0.5, "measured", 1.0), (None, "measured", 1.0), (0.5, "failed", 0.0)]
    for distance, kind, expected in [*cases, (0.5, "duplicate", 0.0)]:
        before = arm.tallies["random"].novelty
        arm.observe([told("random", kind, rank=None if kind == "duplicate" else 0, distance=distance)])
        assert arm.tallies["random"].novelty - before == pytest.approx(expected)
    assert arm.tallies["random"].proposed == 5


def test_only_the_best_third_of_a_round_counts():
    arm = Portfolio([Arm("random"), Arm("best-of")])
    arm.observe([told("best-of" if rank < 2 else "random", "measured", rank=rank) for rank in range(6)])
    assert (arm.tallies["best-of"].novelty, arm.tallies["random"].novelty) == (2.0, 0.0)
    arm.observe([told("random", "measured", rank=rank) for rank in range(4)])
    assert (arm.tallies["random"].novelty, arm.tallies["random"].proposed) == (2.0, 8)


def test_random_takes_over_what_an_arm_does_not_deliver():
    arm = Portfolio([Arm("random"), Arm("best-of"), Arm("dry", limit=3)])
    count = play(arm, {"random": 0.5, "best-of": 0.5, "dry": 1.0}, 20)
    assert count["dry"] == 3
    assert sum(count.values()) == 200
    assert all(each.heard == 200 for each in arm._arms.values())


class Listener(Arm):
    """Keeps what it is told of its own proposals: position -> source."""

    def __init__(self, name: str):
        super().__init__(name)
        self.handed, self.told = [], {}

    def propose(self, context, n):
        batch = super().propose(context, n)
        self.handed.append([each.source for each in batch.proposals])
        return batch

    def observe(self, events):
        self.told = {(each.call, each.position): each.reason for each in events if each.proposer == self.name}


@pytest.mark.parametrize("order", [["one", "two"], ["two", "one"]])
def test_every_arm_is_told_by_the_places_of_its_own_answers(order):
    arms = {name: Listener(name) for name in order}
    arm = Portfolio([*arms.values(), Arm("best-of"), Arm("random")], settings=PortfolioSettings(floor=0.2))
    kinds, heard = ("measured", "duplicate", "rejected"), []
    for call in range(3):
        batch = arm.propose(context(call=call), 12)
        heard += [
            Event(
                step=0, call=call, position=position, proposer=each.proposer, kind=kinds[position % 3], category="ok",
                reason=each.source,
            )
            for position, each in enumerate(batch.proposals)
        ]  # fmt: skip
    # In whatever order the events come.
    arm.observe(heard[::-1])
    for each in arms.values():
        expected = {(call, place): said for call, batch in enumerate(each.handed) for place, said in enumerate(batch)}
        assert each.told == expected
        assert len(expected) > 3


def test_expected_cost_and_cost_are_summed():
    arm = portfolio(ScriptedProposer([], name="paid", cost=Cost(tokens=50, money_usd=0.1)), Arm("other", tokens=7.0))
    assert arm.expected_cost(3) == Cost(tokens=71, money_usd=0.1)
    assert arm.propose(context(), 60).cost.tokens >= 50


def test_a_portfolio_is_deterministic_and_resumable():
    heard = same_after_restore(lambda: portfolio(GeneticProposer()), n=8)
    everything = [key for batch in heard for key in batch]
    assert len(set(everything)) == len(everything)
    with pytest.raises(EvidenceError, match="begun with the arms"):
        portfolio().restore(portfolio(GeneticProposer()).state())


def test_shares_are_those_of_the_run_whatever_was_drawn_before():
    arm = portfolio(GeneticProposer())
    one = arm.shares(context(step=3).draw("portfolio/shares"), 20)
    assert one == arm.shares(context(step=3).draw("portfolio/shares"), 20)
    assert sum(one.values()) == 20
    arm.observe([told("random", "measured", rank=0)] * 90)
    assert arm.shares(context(step=3).draw("portfolio/shares"), 20)["random"] > one["random"]
