"""Proposers that make programs: random, genetic, best-of, enumeration, constants, transplants."""

import itertools
import random

import numpy as np
import pytest
from programs import random_inputs
from proposer_cases import (
    FOCAL,
    LRML,
    PADLL,
    Drive,
    context,
    control,
    elites,
    events,
    keys,
    same_after_restore,
    standing,
)

from lossmith.discovery.compiler import compile_source
from lossmith.discovery.identity import fingerprint
from lossmith.discovery.program import (
    OPERATORS,
    Program,
    ProgramError,
    canonical_form,
    const,
    from_json,
    make,
    one_line,
    order,
    to_json,
    torch_function,
)
from lossmith.discovery.program.differentiate import value_and_gradients
from lossmith.discovery.proposers.best_of import BestOfProposer
from lossmith.discovery.proposers.constants import ConstantsProposer, with_numbers
from lossmith.discovery.proposers.enumeration import EnumerationProposer, enumerate_programs, leaves_of
from lossmith.discovery.proposers.genetic import GeneticProposer, GeneticSettings
from lossmith.discovery.proposers.grammar import grammar
from lossmith.discovery.proposers.programs import MAX_SIZE
from lossmith.discovery.proposers.random import RandomProposer
from lossmith.discovery.proposers.sieve import behaviour
from lossmith.discovery.proposers.transplant import TransplantProposer, gates, linear, transplanted
from lossmith.discovery.proposers.variation import SWAPS, Variation, numbers, put, sites
from lossmith.discovery.proposers.vocabulary import vocabulary
from lossmith.errors import ConfigurationError, EvidenceError

FAMILIES = ("preference", "token", "metric")
MAKERS = {
    "random": RandomProposer,
    "random-sieved": lambda: RandomProposer(sieve=behaviour),
    "gp": GeneticProposer,
    "gp-sieved": lambda: GeneticProposer(sieve=behaviour),
    "best-of": lambda: BestOfProposer(RandomProposer(name="best-of-random")),
    "enumeration": lambda: EnumerationProposer(max_size=4),
    "transplant": lambda: TransplantProposer(
        [compile_source(LRML), compile_source(PADLL), compile_source(FOCAL, "token")]
    ),
}


def rebuilt(program: Program) -> bool:
    """Whether every node is what its operator makes of its arguments, and the root is a number per item."""
    fresh = from_json(to_json(program))
    return fresh.root is program.root and program.root.type == "item"


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_proposer_is_deterministic_resumable_typed_and_repeats_nothing(name, family):
    heard = same_after_restore(MAKERS[name], family)
    assert all(heard[0]), name
    everything = [key for batch in heard for key in batch]
    assert len(set(everything)) == len(everything)
    batch = MAKERS[name]().propose(context(family), 40)
    assert 0 < len(batch.proposals) <= 40
    assert all(rebuilt(each.program) and each.program.family == family for each in batch.proposals)
    assert {each.proposer for each in batch.proposals} == {MAKERS[name]().name}
    assert len(set(keys(batch))) == len(keys(batch))


@pytest.mark.parametrize("name", ["random", "gp", "best-of"])
def test_draws_follow_run_seed_step_call_and_name(name):
    first = keys(MAKERS[name]().propose(context(), 5))
    for other in (context(run_seed=8), context(step=1), context(call=1)):
        assert set(first).isdisjoint(keys(MAKERS[name]().propose(other, 5)))
    assert set(first).isdisjoint(keys(RandomProposer(name="another").propose(context(), 5)))


@pytest.mark.parametrize("name", ["random", "gp", "enumeration", "transplant"])
def test_what_the_run_knows_is_not_proposed(name):
    first = keys(MAKERS[name]().propose(context("token"), 5))
    again = keys(MAKERS[name]().propose(context("token", seen=frozenset(first)), 5))
    assert again
    assert set(first).isdisjoint(again)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_programs_use_the_whole_grammar_and_stay_small(family):
    dice, words = random.Random(1), grammar(family)
    roots = [words.ramped(dice) for _ in range(1500)]
    assert {root.type for root in roots} == {"item"}
    used = {node.op for root in roots for node in order(root) if node.args}
    never = {"log", "eq", "ne", "or", "and", "not", "pow", "ge", "le", "mean_masked", "log1p", "div", "std_batch"}
    assert set(OPERATORS) - used <= never
    assert len(set(roots)) > 1200
    assert np.mean([root.size for root in roots]) < 40


@pytest.mark.parametrize("family", FAMILIES)
def test_more_than_a_third_of_fresh_programs_pass_the_sieve(family):
    dice, words = random.Random(2), grammar(family)
    found = [behaviour(Program(family, words.ramped(dice))) for _ in range(150)]
    assert 50 < sum(name is not None for name in found) < 150


def test_the_sieve_names_what_a_loss_does_and_refuses_the_wrong_way():
    rho = vocabulary("preference").margin
    x = make("mul", const(0.1), rho)
    dpo, same = make("softplus", make("neg", x)), make("neg", make("logsigmoid", x))
    scaled, moved = make("mul", const(3), dpo), make("add", dpo, const(1))
    names = [behaviour(Program("preference", root)) for root in (dpo, same, scaled, moved)]
    assert len(set(names)) == 1
    assert names[0] is not None
    assert behaviour(Program("preference", make("neg", dpo))) is None
    assert behaviour(Program("preference", make("exp", make("mul", const(-9), rho)))) is None
    assert behaviour(Program("preference", make("relu", make("sub", const(1), x)))) not in (None, names[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_variation_keeps_the_type_and_changes_something(family):
    dice, words = random.Random(3), grammar(family)
    variation = Variation(words)
    parents = [words.ramped(dice) for _ in range(60)]
    made = dict.fromkeys(("crossover", "subtree", "point", "constant", "hoist", "gate", "wrap"), 0)
    for mother, father in itertools.product(parents, parents[:8]):
        for name in made:
            arguments = (father,) if name == "crossover" else ()
            try:
                child = getattr(variation, name)(dice, mother, *arguments)
            except ProgramError:
                continue
            if child is not None and child is not mother:
                made[name] += 1
                assert child.type == "item"
                if name == "hoist":
                    assert child.size < mother.size
                    assert child in order(mother)
                if name == "gate":
                    assert child.size > mother.size
                if name == "point":
                    assert child.size == mother.size
    assert min(made.values()) > 150, made


def test_operators_that_swap_have_the_same_arguments_and_types():
    arguments = {"mean_batch": "item", "and": "mask"}
    for group in SWAPS:
        kind = arguments.get(group[0], "item")
        node = (
            vocabulary("preference").margin if kind == "item" else make("lt", vocabulary("preference").margin, const(0))
        )
        types = {make(op, *([node] * OPERATORS[op].arity)).type for op in group}
        assert len(types) == 1


def test_sites_and_put_agree_and_leave_literal_numbers_alone():
    rho = vocabulary("preference").margin
    power = make("pow", make("abs", rho), const(1.5))
    root = make("add", make("clamp", power, const(-1), const(float("inf"))), make("mul", const(2), rho))
    places = sites(root)
    assert len(places) == root.size - 3
    for path, node in places:
        assert put(root, path, node) is root
    assert sorted(node.value for _, node in numbers(root)) == [-1.0, 1.5, 2.0]
    whole = [node for _, node in sites(root, frozenset([rho]))]
    assert rho in whole
    assert not any(node.op == "input" for node in whole)
    path = next(path for path, node in places if node is power)
    assert put(root, path, rho) is make(
        "add", make("clamp", rho, const(-1), const(float("inf"))), make("mul", const(2), rho)
    )


def test_genetic_search_climbs_where_random_does_not():
    def worth(program: Program) -> float:
        """How close the loss is to LRML in what it does."""
        found = fingerprint(program)
        return -2.0 if found is None else -found.distance(target)

    target = fingerprint(compile_source(LRML))
    assert target is not None
    best = {}
    for name in ("gp-sieved", "random-sieved"):
        best[name] = []
        for seed in range(3):
            drive = Drive(MAKERS[name](), worth=worth, run_seed=seed, n=12)
            for step in range(12):
                drive.round(step)
            best[name].append(max(each.mean for each in drive.measured.values()))
    assert np.mean(best["gp-sieved"]) > np.mean(best["random-sieved"]) + 0.03, best
    assert sum(a > b for a, b in zip(best["gp-sieved"], best["random-sieved"], strict=True)) >= 2, best


def test_parents_are_drawn_from_elites_and_measured_programs_and_are_named():
    program = compile_source(LRML)
    batch = GeneticProposer().propose(context(elites=elites(program)), 30)
    named = {key for each in batch.proposals for key in each.parents}
    assert named == {program.key}
    learner = GeneticProposer()
    first = learner.propose(context(), 4)
    assert all(each.parents == () for each in first.proposals)
    learner.observe(events(first.proposals, 0))
    second = learner.propose(context(step=1, seen=frozenset(keys(first))), 30)
    assert {key for each in second.proposals for key in each.parents} <= set(keys(first))
    assert sum(bool(each.parents) for each in second.proposals) > 15


def test_what_broke_in_training_is_no_parent():
    learner = GeneticProposer()
    first = learner.propose(context(), 4)
    learner.observe(events(first.proposals, 0))
    learner.observe(events(first.proposals[:3], 1, kind="failed"))
    assert len(learner.state()["members"]) == 1


def test_higher_rungs_and_smaller_programs_win_tournaments():
    learner = GeneticProposer(settings=GeneticSettings(population=2, fresh=0.0))
    programs = [each.program for each in RandomProposer().propose(context(), 4).proposals]
    learner.observe(events_of(programs, ("toy", "toy", "tiny", "toy"), (0.9, 0.1, 0.0, 0.5)))
    learner.propose(context(step=1), 1)
    kept = [from_json(member[0]).key for member in learner.state()["members"]]
    assert kept == [programs[2].key, programs[0].key]


def events_of(programs, rungs, means):
    from lossmith.discovery.proposers.base import Event

    return [
        Event(
            step=0,
            call=0,
            position=place,
            proposer="x",
            kind="measured",
            category="ok",
            key=program.key,
            program=program,
            standing=standing(program, mean, rung=rung),
        )
        for place, (program, rung, mean) in enumerate(zip(programs, rungs, means, strict=True))
    ]


def test_parsimony_prefers_the_smaller_of_two_that_are_as_good():
    from lossmith.discovery.proposers.genetic import Breeder

    dice, words = random.Random(0), grammar("preference")
    small = Program("preference", make("softplus", make("neg", vocabulary("preference").margin)))
    large = Program("preference", make("add", small.root, make("tanh", make("square", words.ramped(random.Random(5))))))
    for parents in ([small, large], [large, small]):
        breeder = Breeder(words, GeneticSettings(fresh=0.0, parsimony=1.0), parents)
        drawn = [breeder.next(dice)[1][0] for _ in range(200)]
        assert drawn.count(small) > 150


def test_a_stuck_population_is_given_up_and_the_elites_rest():
    settings = GeneticSettings(patience=3, rest=2)
    learner, elite = GeneticProposer(settings=settings), compile_source(LRML)
    named = []
    for step in range(9):
        batch = learner.propose(context(step=step, elites=elites(elite)), 20)
        named.append(any(elite.key in each.parents for each in batch.proposals))
    assert named == [True, True, True, False, False, True, True, True, False]
    assert learner.restarts == 2


def test_programs_stay_below_the_limit_of_size():
    drive = Drive(GeneticProposer(), worth=lambda program: float(program.root.size), n=20)
    for step in range(6):
        drive.round(step)
    sizes = [each.program.root.size for each in drive.measured.values()]
    assert max(sizes) <= MAX_SIZE
    assert max(sizes) > MAX_SIZE / 2


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="population"):
        GeneticSettings(population=1)
    with pytest.raises(ConfigurationError, match="max_size"):
        EnumerationProposer(max_size=0)
    with pytest.raises(ConfigurationError, match="donors"):
        TransplantProposer([])


def test_best_of_is_blind():
    class Spy(RandomProposer):
        def propose(self, context, n):
            assert context.elites == ()
            assert context.failures == {}
            assert not context.seen
            return super().propose(context, n)

        def observe(self, events):
            raise AssertionError

    arm = BestOfProposer(Spy(name="spy"))
    told = context(elites=elites(control()), failures={"shape": 3}, seen=frozenset(["x"]))
    batch = arm.propose(told, 5)
    assert keys(batch) == keys(arm.propose(context(), 5)) == keys(RandomProposer(name="spy").propose(context(), 5))
    assert {each.proposer for each in batch.proposals} == {"best-of"}
    arm.observe(events(batch.proposals, 0))


def brute_force(family: str, size: int, unary, binary, constants) -> set:
    """Canonical forms of every tree up to a size, without any pruning."""
    trees = {1: [*leaves_of(family), *(const(value) for value in constants)]}
    for s in range(2, size + 1):
        trees[s] = [make(op, part) for op in unary for part in trees[s - 1]]
        for op in binary:
            for left in range(1, s - 1):
                trees[s] += [make(op, a, b) for a in trees[left] for b in trees[s - 1 - left]]
    forms = {canonical_form(node) for level in trees.values() for node in level if node.type == "item"}
    return {form for form in forms if form.op != "const"}


@pytest.mark.parametrize(("family", "size"), [("preference", 5), ("token", 3)])
def test_enumeration_finds_every_canonical_program_once_by_size(family, size):
    unary, binary, constants = ("neg", "softplus", "exp"), ("add", "mul", "sub"), (1.0,)
    found = list(enumerate_programs(family, size, unary=unary, binary=binary, constants=constants))
    forms = [canonical_form(program.root) for program in found]
    assert len(set(forms)) == len(forms)
    assert set(forms) == brute_force(family, size, unary, binary, constants)
    margin = leaves_of(family)[0]
    counted = [len_of(program.root, set(leaves_of(family))) for program in found]
    assert counted == sorted(counted)
    assert found[0].root is margin


def len_of(node, leaves) -> int:
    return 1 if node in leaves else 1 + sum(len_of(arg, leaves) for arg in node.args)


def test_enumeration_ends_and_refuses_another_family():
    arm = EnumerationProposer(max_size=2)
    everything = keys(arm.propose(context(), 1000))
    assert everything == [program.key for program in enumerate_programs("preference", 2)]
    assert arm.propose(context(), 10).proposals == ()
    with pytest.raises(EvidenceError, match="another family"):
        arm.propose(context("token"), 1)


def bowl(program: Program) -> float:
    """Best where beta is 0.4."""
    betas = [float(node.value) for _, node in numbers(program.literal_root) if node.value]
    return -sum(abs(np.log(abs(beta) / 0.4)) for beta in betas)


def without_numbers(program: Program) -> tuple:
    return tuple((path, node.op, None if node.op == "const" else node.value) for path, node in sites(program.root))


def test_constants_are_tuned_and_the_state_replays():
    elite = compile_source(LRML)

    class Fixed(Drive):
        def round(self, step):
            batch = self.proposer.propose(
                context(step=step, elites=elites(elite), seen=frozenset(self.measured)), self.n
            )
            told = events(batch.proposals, step, worth=bowl)
            self.measured |= {event.key: event.standing for event in told}
            self.proposer.observe(told)
            self.heard.append(keys(batch))
            return self.heard[-1]

    import json

    one, other = Fixed(ConstantsProposer(), n=5), Fixed(ConstantsProposer(), n=5)
    for step in range(6):
        one.round(step)
    for step in range(6):
        if step in (1, 3):
            kept = json.loads(json.dumps(other.proposer.state(), allow_nan=False))
            other.proposer = ConstantsProposer()
            other.proposer.restore(kept)
        other.round(step)
    assert one.heard == other.heard
    plain = Program("preference", elite.literal_root)
    assert {without_numbers(each.program) for each in one.measured.values()} == {without_numbers(plain)}
    means = [one.measured[key].mean for batch in one.heard for key in batch]
    assert max(means[10:]) > bowl(elite) + 0.5
    assert np.mean(means[15:]) > np.mean(means[:10])


def test_constants_learn_from_failures_and_ask_nothing_without_elites():
    arm = ConstantsProposer()
    assert arm.propose(context(), 5).proposals == ()
    batch = arm.propose(context(elites=elites(compile_source(PADLL))), 5)
    arm.observe(events(batch.proposals, 0, kind="failed"))
    (search,) = arm.state()["searches"]
    assert search["pending"] == {}
    assert [rung for _, rung, _ in search["trials"]] == ["tiny", *[""] * len(batch.proposals)]


def test_with_numbers_scales_what_is_there_and_keeps_signs():
    program = Program("preference", make("mul", const(-2.0), make("add", vocabulary("preference").margin, const(0))))
    new = with_numbers(program, [float(np.log(3)), 0.25])
    assert new is not None
    assert [float(node.value) for _, node in numbers(new.root)] == [-6.0, 0.25]


def value_of(program: Program, inputs: dict) -> np.ndarray:
    return value_and_gradients(program.literal_root, inputs, ())[0].reshape(-1)


def test_a_pair_loss_becomes_the_token_loss_of_the_log_odds():
    p = np.array([0.05, 0.4, 0.9]).reshape(1, -1, 1)
    inputs = {"token_logps": np.log(p), "complement_logps": np.log1p(-p)}
    moved = transplanted(compile_source(LRML), "token")
    assert moved is not None
    # LRML by hand at x = log-odds: its gate reads rho = x / beta.
    x = np.log(p / (1 - p)).reshape(-1)
    gate = 1 / (1 + np.exp(-x / 0.05))
    by_hand = (1 - gate) * np.log1p(np.exp(-x)) + gate * np.exp(-x)
    np.testing.assert_allclose(value_of(Program("token", moved), inputs), by_hand, rtol=1e-9)
    dpo = transplanted(control("preference"), "token")
    assert dpo is not None
    np.testing.assert_allclose(value_of(Program("token", dpo), inputs), -np.log(p).reshape(-1), rtol=1e-9)


def test_focal_loss_becomes_a_loss_of_pairs():
    moved = transplanted(compile_source(FOCAL, "token"), "preference")
    assert moved is not None
    program, inputs = Program("preference", moved), random_inputs(3, scale=20.0)
    given = {name: inputs[name] for name in program.inputs}
    rho = given["chosen_logps"] - given["rejected_logps"] - given["ref_chosen_logps"] + given["ref_rejected_logps"]
    right = 1 / (1 + np.exp(-0.1 * rho.detach().numpy()))
    got = torch_function(program)(**given).detach().numpy()
    np.testing.assert_allclose(got, -((1 - right) ** 2) * np.log(right), rtol=1e-9)


def test_sides_and_metric_margins_are_carried_and_the_rest_is_left():
    kto = compile_source("""
def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    chosen = chosen_logps - ref_chosen_logps
    rejected = rejected_logps - ref_rejected_logps
    return torch.sigmoid(-0.1 * chosen) + torch.sigmoid(0.2 * rejected)
""")
    found = transplanted(kto, "metric")
    assert found is not None
    assert "similarities" in one_line(Program("metric", found))
    back = transplanted(control("metric"), "preference")
    assert back is not None
    assert Program("preference", back).key == control("preference").key
    lengths = compile_source("def f(chosen_logps, chosen_lengths): return -chosen_logps / chosen_lengths")
    assert transplanted(lengths, "token") is None


def test_gates_of_donors_are_put_on_hosts():
    arm, host = MAKERS["transplant"](), control("token")
    batch = arm.propose(context("token", elites=elites(compile_source(FOCAL, "token"))), 200)
    hosted = [each for each in batch.proposals if each.parents]
    assert {each.parents[0] for each in hosted} == {host.key, compile_source(FOCAL, "token").key}
    assert any("detach" in one_line(each.program) for each in hosted)
    margin = vocabulary("token").margin
    x = make("mul", const(2), margin)
    assert gates(make("mul", make("sigmoid", x), make("softplus", x)), margin) == [
        make("sigmoid", x),
        make("softplus", x),
    ]
    assert linear(make("div", make("neg", margin), const(2))) == {"token_logps": -0.5, "complement_logps": 0.5}
