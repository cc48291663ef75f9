"""Proposers in a run: what the engine tells them, how the command line names them, and what people put in a folder."""

import json
import re
from contextlib import ExitStack
from dataclasses import replace

import pytest
from proposer_cases import FOCAL, LRML, PADLL, context, elites

import judge_server as scripted
from lossmith.discovery import ladder, start
from lossmith.discovery.compiler import compile_source
from lossmith.discovery.costs import Budget
from lossmith.discovery.engine import Engine
from lossmith.discovery.history import open_history
from lossmith.discovery.program import to_json
from lossmith.discovery.proposers.arms import ARMS, kind_of, make_arms
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.human import HumanProposer
from lossmith.discovery.proposers.portfolio import Portfolio
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.scripted import ScriptedProposer
from lossmith.discovery.race.halving import Decision
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import World, simulated_setup
from lossmith.discovery.rungs.toy import ToyPreference
from lossmith.discovery.store.archive import Archive, StoredProgram
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.errors import ConfigurationError, EvidenceError, LossmithError

RACE = RaceSettings(candidates=6, blocks=(1, 2), elites=2, rounds=2, finalists=2, confirmation_blocks=5)
SMALLEST = start.Size(8, 2, 1, 0, 1, 5, each=2)
WORLD = {"pairs": 64, "batch": 32, "steps": 4, "test_prompts": 32}
UNLIKE = """
def f(similarities, same, different):
    return mean_masked(torch.exp(similarities), different) - mean_masked(torch.exp(similarities), same)
"""


class Ear:
    """Hands everything to another proposer, and keeps what is said to it."""

    def __init__(self, inner):
        self._inner, self.contexts, self.events = inner, [], []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def propose(self, context, n):
        self.contexts.append(context)
        return self._inner.propose(context, n)

    def observe(self, events):
        self.events += events
        self._inner.observe(events)


def test_a_proposer_is_told_what_each_rung_measures_and_one_unit_for_all():
    setup = simulated_setup(3, settings=RACE, world=World(seed=5, scale=4.0))
    ear = Ear(setup.proposer)
    with Engine(None, replace(setup, proposer=ear)) as engine:
        engine.run()
        decided = {(each.program, each.rung, each.step): each for each in engine.decisions.all()}
    assert ear.contexts[0].metrics == {rung.name: rung.fitness_name for rung in setup.rungs}
    measured = [event for event in ear.events if event.kind == "measured"]
    assert {event.standing.rung for event in measured} == {"tiny", "small"}
    assert {event.cheapest.rung for event in measured} == {"tiny"}
    for event in measured:
        assert event.cheapest.mean == decided[event.key, "tiny", event.step].mean
        assert event.standing.mean == decided[event.key, event.standing.rung, event.step].mean


# ---- words of the command line


def a_run(folder, family: str, *programs, elites: bool = True):
    """A folder with the database of a run that admitted some programs."""
    with Database(folder) as database:
        database.open_run(identity={"family": family}, settings={"family": family})
        archive, kind = Archive(database), "elite" if elites else "stopped"
        for place, program in enumerate(programs):
            archive.add_program(
                StoredProgram(
                    key=program.key, role="candidate", name=f"n{place}", proposer="gp", step=0, call=0, position=place,
                    payload=to_json(program),
                )
            )  # fmt: skip
        numbers = {"step": 0, "rung": "toy", "kind": kind, "lower": 0.0, "mean": 0.1, "sd": 0.1, "blocks": 2}
        Decisions(database).save(
            [Decision(program=program.key, rank=place, **numbers) for place, program in enumerate(programs)]
        )
    return folder


def nobody(word):
    raise AssertionError(f"asked for {word}")


def arms(words, family="preference", *, folder=None):
    return make_arms(words, family, folder=folder, ask=lambda word: ScriptedProposer([], name=kind_of(word)))


def test_every_word_makes_its_arm_and_two_of_a_kind_have_two_names(tmp_path):
    pairs = a_run(tmp_path / "pairs", "preference", compile_source(LRML))
    tokens = a_run(tmp_path / "tokens", "token", compile_source(FOCAL, "token"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(LRML)
    words = [
        "random", "gp", "best-of", "enumeration", "constants", "llm", "best-of:llm", "discopop", f"replay:{pairs}",
        f"transplant:{tokens}", str(tmp_path / "one"), f"{tmp_path}/one/", str(tmp_path / "two"), "gp",
    ]  # fmt: skip
    made = arms(words)
    assert [arm.name for arm in made] == [
        "gp", "enumeration", "constants", "llm", "best-of-llm", "discopop", "replay", "transplant", "human", "human-2",
    ]  # fmt: skip
    assert {word.split(":RUN")[0] for word in ARMS} == {word.split(f":{tmp_path}")[0] for word in words[:10]}
    (again,) = made[6].propose(context(), 3).proposals
    assert (again.name, again.program.key) == ("n0", compile_source(LRML).key)
    (carried, *_) = made[7].propose(context(), 3).proposals
    assert carried.program.family == "preference"
    assert made[1].propose(context(), 3).proposals
    assert made[2].propose(context(), 3).proposals == ()


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("replay", "write replay:RUN with its folder"),
        ("transplant:", "write transplant:RUN with its folder"),
        ("replay:{at}/none", "holds no discovery run"),
        ("replay:{at}/begun", "has not begun"),
        ("replay:{at}/tokens", "must be a run of family 'preference', as this one is, got one of 'token'"),
        ("transplant:{at}/pairs", "another family than 'preference': replay:"),
        ("transplant:{at}/no-elites", "it has no elite yet"),
        ("transplant:{at}/odd", "no counterpart in family 'preference'"),
        ("replay:{at}/out", "must be another run than the one in --out"),
        ("replay:{at}/nothing", "there is nothing to replay"),
        ("enumerate", "got 'enumerate'. Did you mean 'enumeration'?"),
        ("best-of:gp", "must name some of gp, random"),
    ],
)
def test_a_word_that_cannot_be_is_one_sentence(tmp_path, word, match):
    a_run(tmp_path / "pairs", "preference", compile_source(LRML))
    a_run(tmp_path / "tokens", "token", compile_source(FOCAL, "token"))
    a_run(tmp_path / "no-elites", "token", compile_source(FOCAL, "token"), elites=False)
    a_run(tmp_path / "odd", "metric", compile_source(UNLIKE, "metric"))
    a_run(tmp_path / "out", "preference", compile_source(LRML))
    a_run(tmp_path / "nothing", "preference")
    Database(tmp_path / "begun").close()
    with pytest.raises(LossmithError, match=re.escape(match)) as caught:
        arms([word.format(at=tmp_path)], folder=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigurationError | EvidenceError)


# ---- what people put in a folder


def people(folder, count: int):
    """A folder of so many different candidates."""
    folder.mkdir()
    for place in range(count):
        (folder / f"p{place:02}.py").write_text(PADLL.replace("0.45", f"0.{45 + place}"))
    return folder


def portfolio(*queues):
    return Portfolio([RandomProposer(), BestOfProposer(RandomProposer(name="blind")), *queues])


def test_peoples_files_come_first_whatever_the_shares(tmp_path):
    arm = portfolio(
        HumanProposer(people(tmp_path / "one", 5)), HumanProposer(people(tmp_path / "two", 9), name="human-2")
    )
    arm.tallies["random"].novelty, arm.tallies["random"].proposed = 500.0, 500
    first = arm.propose(context(), 4)
    assert [each.name for each in first.proposals] == ["p00", "p01", "p02", "p03"]
    kept = json.loads(json.dumps(arm.state()))
    arm = portfolio(HumanProposer(tmp_path / "one"), HumanProposer(tmp_path / "two", name="human-2"))
    arm.restore(kept)
    (tmp_path / "one" / "p09.py").write_text(LRML)
    second = [(each.proposer, each.name) for each in arm.propose(context(call=1), 14).proposals]
    assert second[:2] == [("human", "p04"), ("human", "p09")]
    assert [name for arm, name in second if arm == "human-2"] == [f"p{place:02}" for place in range(9)]
    assert len(second) == 14
    later = [each.proposer for each in arm.propose(context(step=1), 14).proposals]
    assert set(later) == {"random", "best-of"}
    assert arm.untried() == []


def test_what_was_not_tried_is_said(tmp_path):
    arm = HumanProposer(people(tmp_path / "one", 12))
    (tmp_path / "one" / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "one" / "folder.py").mkdir()
    assert arm.waiting() == 12
    arm.propose(context(), 2)
    waiting, odd, gone = portfolio(arm).untried()
    names = ", ".join(f"p{place:02}.py" for place in range(2, 10))
    assert waiting.startswith(f"Not tried: 10 files of `{tmp_path / 'one'}` ({names} and 2 more);")
    assert odd == f"Not tried: `folder.py` of `{tmp_path / 'one'}` cannot be read: it is no ordinary file."
    assert gone.endswith("`gone.py` of `{}` cannot be read: No such file or directory.".format(tmp_path / "one"))


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=1)])
def test_a_session_ends_with_what_was_not_tried(tmp_path, budget):
    folder = people(tmp_path / "one", 9)
    (folder / "gone.py").symlink_to(tmp_path / "nowhere")
    setup, said = quick_setup(tmp_path / "run", [str(folder)], rounds=1), []
    with Engine(tmp_path / "run", setup, say=said.append) as engine:
        engine.run()
    history = open_history(tmp_path / "run")
    assert [each.proposer for each in history.proposals[:8]] == ["human"] * 8
    assert [sentence for sentence in said if "p08.py" in sentence and "1 file" in sentence]
    assert any("gone.py" in sentence for sentence in said)


# ---- a whole run with the chat of DiscoPOP behind other arms


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Worlds of a few milliseconds, and a race of a few candidates."""
    monkeypatch.setitem(ladder._OURS, "preference", {"toy": ToyPreference(**WORLD)})
    elsewhere = {"toy": ToyPreference(name="toy-unseen", skewed=True, **WORLD)}
    monkeypatch.setitem(ladder._ELSEWHERE, "preference", elsewhere)
    monkeypatch.setattr(start, "SIZES", (SMALLEST,))
    monkeypatch.setattr(start, "ALONE", SMALLEST)


def quick_setup(folder, proposers, *, budget: Budget | None = None, **changes):
    return start.make_setup(
        "preference", ladder.make_ladder("preference", ["toy"]), seed=3, budget=budget or Budget(), folder=folder,
        proposers=proposers, **changes,
    )  # fmt: skip


def objective(place: int) -> str:
    """The paper's function, a different one for each number; every third is refused, every fifth the one before."""
    strength = 0.02 * (place - (place % 5 == 4)) + 0.01
    name = "policy_chosen_logps - policy_rejected_logps - reference_chosen_logps + reference_rejected_logps"
    sign = "" if place % 3 == 2 else "-"
    code = (
        "def o(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):\n"
        f"    rho = {name}\n    return F.softplus({sign}{strength} * rho) + {0.001 * place + 0.01} * rho.square()"
    )
    return json.dumps({"thought": "t", "name": "n", "code": code})


@pytest.mark.parametrize("others", [["gp"], ["gp", "enumeration"]])
def test_the_chat_hears_of_its_own_objectives_behind_other_arms(tmp_path, others, monkeypatch):
    measured = []
    evaluate = ToyPreference.evaluate

    def counted(self, program, block):
        measured.append((self.name, program.key, block.index))
        return evaluate(self, program, block)

    monkeypatch.setattr(ToyPreference, "evaluate", counted)
    # More than the floor for the arm, so that it writes several a round.
    monkeypatch.setattr(start.Portfolio, "shares", lambda self, generator, n: share_out(self, n))
    folder = tmp_path / "run"
    with scripted.judge_server(lambda body: objective(len(server.bodies))) as server, ExitStack() as stack:
        address = start.ModelAddress(base_url=server.base_url, model="writer")
        setup = quick_setup(folder, [*others, "discopop"], address=address, rounds=2, stack=stack)
        assert measured == []
        engine = stack.enter_context(Engine(folder, setup))
        assert measured == []
        engine.run()
        turns = setup.proposer.state()["arms"]["discopop"]["turns"]
        history = open_history(folder)
    own = [each for each in history.proposals if each.proposer == "discopop"]
    assert len(own) >= 8
    assert {"admitted", "rejected"} <= {each.kind for each in own}
    first = {each.program: each for each in reversed(history.decisions) if each.rung == "toy" and each.mean is not None}
    heard = {tuple(place): told for _, told, place in turns}
    place_in_call: dict = {}
    for each in own:
        place = place_in_call[each.step, each.call] = place_in_call.get((each.step, each.call), -1) + 1
        told = heard[each.step, each.call, place]
        if each.kind == "admitted" and each.step == 1:
            assert told.startswith(f"Fitness on the rung toy: {first[each.key].mean:+.4g},")
        if each.kind == "rejected":
            assert told.startswith(f"The code is not valid. {each.category}:")
        assert told
    assert sum(each.jobs for kind, each in history.spend.items() if kind.startswith("propose")) == 20


def share_out(self, n: int) -> dict[str, int]:
    """The same for all that are asked, and the rest for the chat."""
    names = [name for name in self.tallies if not name.startswith("human")]
    shares = dict.fromkeys(names, min(1, n // len(names)))
    shares["discopop"] += n - sum(shares.values())
    return shares


def test_known_objectives_are_not_measured_again_in_another_session(tmp_path, monkeypatch):
    measured, evaluate = [], ToyPreference.evaluate
    monkeypatch.setattr(
        ToyPreference, "evaluate", lambda self, program, block: measured.append(1) or evaluate(self, program, block)
    )
    monkeypatch.setattr(start.Portfolio, "shares", lambda self, generator, n: share_out(self, n))
    with scripted.judge_server(lambda body: objective(len(server.bodies))) as server:
        address = start.ModelAddress(base_url=server.base_url, model="writer")
        counts = []

        def stop(sentence):
            if sentence.startswith("Round 1:") and not counts:
                raise KeyboardInterrupt

        for _ in range(2):
            with ExitStack() as stack:
                setup = quick_setup(tmp_path / "run", ["discopop"], address=address, rounds=2, stack=stack)
                engine = stack.enter_context(Engine(tmp_path / "run", setup, say=stop))
                try:
                    engine.run()
                except KeyboardInterrupt:
                    assert counts == []
                counts.append(engine.ledger.spent().jobs)
            assert len(measured) == counts[-1]
    assert counts[0] < counts[1]
    spend = open_history(tmp_path / "run").spend
    assert sum(each.jobs for kind, each in spend.items() if kind.startswith("propose")) == 20


def test_a_budget_that_cannot_pay_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(ToyPreference, "evaluate", lambda self, program, block: measured.append(1))
    with scripted.judge_server(lambda body: objective(len(server.bodies))) as server, ExitStack() as stack:
        address = start.ModelAddress(base_url=server.base_url, model="writer")
        setup = quick_setup(tmp_path / "run", ["discopop"], address=address, budget=Budget(jobs=5), stack=stack)
        with pytest.raises(ConfigurationError, match="cannot finish"):
            Engine(tmp_path / "run", setup)
    assert measured == []
    assert server.bodies == []


def test_best_of_a_model_is_told_nothing(tmp_path):
    with scripted.judge_server(lambda body: json.dumps({"candidates": []})) as server, ExitStack() as stack:
        address = start.ModelAddress(base_url=server.base_url, model="writer")
        setup = quick_setup(tmp_path / "run", ["llm", "best-of:llm"], address=address, rounds=1, stack=stack)
        arms = setup.proposer._arms
        told = context(elites=elites(compile_source(LRML)), failures={"wrong-sign": 3})
        texts = {}
        for name in ("llm", "best-of-llm"):
            arms[name].propose(told, 1)
            texts[name] = server.bodies[-1]["messages"][-1]["content"]
    assert "wrong-sign 3 times" in texts["llm"]
    assert "Difference to the control" in texts["llm"]
    assert "none so far" in texts["best-of-llm"]
    assert "nothing yet" in texts["best-of-llm"]
    assert arms["best-of-llm"].expected_cost(4).tokens < arms["llm"].expected_cost(4).tokens
