"""Rungs: worlds whose best loss is known, training that repeats exactly, and whose fault a broken candidate is."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lossmith.discovery import start
from lossmith.discovery.compiler import compile_source
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.ladder import make_ladder
from lossmith.discovery.program import torch_function
from lossmith.discovery.rungs import tiny
from lossmith.discovery.rungs.base import Block, CandidateError, HarnessError
from lossmith.discovery.rungs.network import TinyTransformer, answer_logps
from lossmith.discovery.rungs.small import adapters_scaled, reward_at
from lossmith.discovery.rungs.tiny import TinyPreference
from lossmith.discovery.rungs.tiny_tables import TinyMetric, TinyToken
from lossmith.discovery.rungs.toy import ToyPreference, _World, planted_program
from lossmith.discovery.rungs.toy_tables import ToyMetric, ToyToken, planted_token_program
from lossmith.discovery.rungs.training import batches, fit, module_of
from lossmith.errors import ConfigurationError, LossmithWarning
from lossmith.objectives import get_record, recorded

FAMILIES = ("preference", "token", "metric")
TOY = {"preference": ToyPreference(), "token": ToyToken(test_examples=512), "metric": ToyMetric(steps=30)}
TINY = {
    "preference": TinyPreference(pairs=128, test_pairs=128, steps=24, flips=0.0),
    "token": TinyToken(rows=64, test_rows=32, steps=24),
    "metric": TinyMetric(classes=6, rows_per_class=12, steps=25, flips=0.0),
}
BAD = {
    family: next(each.program for each in canaries_of(family, synthetic=True) if each.kind == "bad")
    for family in FAMILIES
}


def blocks(count):
    return [Block(index=place, seed=40 + place) for place in range(count)]


def differences(rung, program, control, count):
    pairs = [(rung.evaluate(program, each).fitness, rung.evaluate(control, each).fitness) for each in blocks(count)]
    return np.array([own - other for own, other in pairs])


@pytest.mark.parametrize(
    ("family", "planted", "gain"), [("preference", planted_program(), 0.02), ("token", planted_token_program(), 0.04)]
)
def test_the_likelihood_of_the_world_beats_the_control(family, planted, gain):
    found = differences(TOY[family], planted, control_of(family), 4)
    assert found.mean() > gain
    assert found.mean() / (found.std(ddof=1) / math.sqrt(len(found))) > 2.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rungs", [TOY, TINY], ids=["toy", "tiny"])
def test_a_loss_that_pushes_the_wrong_way_is_worse(family, rungs):
    assert (differences(rungs[family], BAD[family], control_of(family), 1) < -0.03).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rungs", [TOY, TINY], ids=["toy", "tiny"])
def test_an_evaluation_repeats_to_the_last_bit_and_twin_and_split_do_not(family, rungs):
    rung, control = replace(rungs[family], steps=6), control_of(family)
    first = rung.evaluate(control, Block(index=0, seed=3))
    torch.manual_seed(99)
    assert rung.evaluate(control, Block(index=0, seed=3)) == first
    others = [Block(index=0, seed=3, twin=True), Block(index=0, seed=3, split="confirmation")]
    for other in others:
        assert rung.evaluate(control, other).values != first.values


@pytest.mark.parametrize("family", FAMILIES)
def test_the_disguised_control_is_the_control(family):
    disguised = next(each for each in canaries_of(family, synthetic=False) if each.kind == "disguised")
    assert disguised.program.key != control_of(family).key
    assert np.abs(differences(TOY[family], disguised.program, control_of(family), 1)).max() < disguised.tolerance


def test_the_planted_losses_are_likelihoods_by_hand():
    rows = {"chosen_logps": -3.0, "rejected_logps": -9.0, "ref_chosen_logps": -4.0, "ref_rejected_logps": -5.0}
    given = {name: torch.tensor([value], dtype=torch.float64) for name, value in rows.items()}
    z = 0.1 * ((-3.0 + 9.0) - (-4.0 + 5.0))
    expected = -math.log(0.5 / (1 + math.exp(-z)) + 0.25)
    assert torch_function(planted_program())(**given).item() == pytest.approx(expected, rel=1e-12)
    p = 0.3
    value = torch_function(planted_token_program())(torch.tensor([math.log(p)], dtype=torch.float64)).item()
    assert value == pytest.approx(-math.log(0.6 * p + 0.4 * (1 - p) / 9), rel=1e-12)


def test_reward_at_equal_kl_by_hand():
    """Two answers of worth 3 and 1: the policy whose KL to the uniform one is 0.2, found on the probability itself."""
    truth = torch.tensor([1.0, 0.0])
    test = torch.tensor([[[3.0, 0.5], [1.0, 0.7]]])
    none = torch.zeros(0)
    world = _World(truth, none, none, none, none, none, test)
    low, high = 0.5, 1.0
    for _ in range(60):
        p = (low + high) / 2
        far = p * math.log(p) + (1 - p) * math.log(1 - p) + math.log(2)
        low, high = (p, high) if far < 0.2 else (low, p)
    assert world.reward_at(0.01 * truth, 0.2) == pytest.approx(3 * p + (1 - p), abs=1e-3)
    assert world.reward_at(-5.0 * truth, 0.2) == pytest.approx(3 * (1 - p) + p, abs=1e-3)
    assert world.reward_at(torch.zeros(2), 0.2) == pytest.approx(2.0)


def test_labels_are_flipped_at_the_stated_rate():
    def share(flips):
        rung = ToyPreference(flips=flips, pairs=4000, test_prompts=1, scale=1e4)
        world = _World.drawn(rung, Block(index=0, seed=1))
        rewards = world.features @ world.truth
        rows = torch.arange(len(rewards))
        return float((rewards[rows, world.chosen] < rewards[rows, world.rejected]).float().mean())

    assert share(0.0) == 0.0
    assert share(0.25) == pytest.approx(0.25, abs=0.02)


def test_log_probabilities_of_answers_by_hand():
    network = TinyTransformer(5, 6, width=8, causal=True, draw=np.random.default_rng(0))
    rows = torch.tensor([[0, 1, 2, 3, 4, 4], [3, 3, 1, 0, 0, 2]])
    found = answer_logps(network, rows, 2, torch.tensor([4, 2]))
    logits = network(rows).tolist()
    for row, length in ((0, 4), (1, 2)):
        total = 0.0
        for place in range(2, 2 + length):
            scores = logits[row][place - 1]
            total += scores[rows[row, place]] - math.log(sum(math.exp(score) for score in scores))
        assert found[row].item() == pytest.approx(total, rel=1e-5)
    changed = rows.clone()
    changed[1, 4:] = 1  # beyond its length
    assert answer_logps(network, changed, 2, torch.tensor([4, 2]))[1].item() == pytest.approx(found[1].item(), rel=1e-6)


def test_pairs_and_reference_of_a_block_are_made_once():
    tiny._ground.cache_clear()
    rung = replace(TINY["preference"], steps=2)
    for program in (control_of("preference"), planted_program(), BAD["preference"]):
        rung.evaluate(program, Block(index=0, seed=8))
    assert tiny._ground.cache_info().misses == 1
    before = tiny._ground(rung, 8, 0, "search").network().head.weight
    assert torch.equal(before, tiny._ground(rung, 8, 0, "search").network().head.weight)


def test_search_and_confirmation_of_a_data_set_share_no_prompt():
    """Most prompts of pandalm stand several times, side by side."""
    rung = TinyPreference(task="pandalm", pairs=400, test_pairs=60)
    halves = [
        tiny._bytes(rung, np.random.default_rng(0), split)[0][0, :, : tiny.BYTES_PROMPT].tolist()
        for split in ("search", "confirmation")
    ]
    one, other = ({tuple(row) for row in half} for half in halves)
    assert len(one) > 40
    # Bytes of a prompt are cut on their left: a few different prompts end alike.
    assert len(one & other) <= 2


def test_a_candidate_that_breaks_is_its_own_fault():
    rung, block = TOY["preference"], Block(index=0, seed=1)
    overflow = compile_source(
        "def f(chosen_logps, rejected_logps): return torch.exp(torch.exp(50.0 + rejected_logps - chosen_logps))"
    )
    with pytest.raises(CandidateError, match="not finite"):
        rung.evaluate(overflow, block)
    deaf = compile_source("def f(ref_chosen_logps): return ref_chosen_logps * ref_chosen_logps")
    with pytest.raises(CandidateError, match="does not depend on the model"):
        rung.evaluate(deaf, block)
    with pytest.raises(HarnessError, match="family 'preference'"):
        rung.evaluate(control_of("token"), block)


def test_a_gradient_that_is_not_finite_stops_the_training():
    weights = torch.zeros(2, requires_grad=True)
    with pytest.raises(CandidateError, match="Step 1"):
        fit([weights], lambda step: torch.sqrt(weights).sum(), steps=3, learning_rate=0.1)


def test_batches_are_passes_over_all_rows():
    found = batches(6, 3, 4, np.random.default_rng(0))
    assert [sorted(torch.cat(found[i : i + 2]).tolist()) for i in (0, 2)] == [list(range(6))] * 2


def test_the_environment_tells_worlds_apart():
    one, other = ToyPreference(), ToyPreference(flips=0.2)
    assert one.environment == ToyPreference().environment != other.environment
    for family in FAMILIES:
        for rungs in (["toy"], ["toy", "tiny"]):
            ladder = make_ladder(family, rungs)
            assert ladder.unseen[0].ground not in {rung.ground for rung in ladder.rungs}


@pytest.mark.parametrize(
    ("family", "rungs", "told", "match"),
    [
        ("preferences", ["toy"], {}, "Did you mean 'preference'"),
        ("preference", ["tyny"], {}, "Did you mean 'tiny'"),
        ("preference", ["tiny", "toy"], {}, "the cheapest first"),
        ("preference", [], {}, "the cheapest first"),
        ("preference", ["toy"], {"task": "sentiment"}, "`task` is for the rung `small`"),
    ],
)
def test_ladders_that_cannot_be(family, rungs, told, match):
    with pytest.raises(ConfigurationError, match=match):
        make_ladder(family, rungs, **told)


TOLD = {"precision": "bf16", "weights": "bfloat16", "learning_rate": 2e-4, "batch_size": 4, "lora": {"r": 2}}
CARRIED = {**TOLD, "lora": {"r": 2, "alpha": 16.0, "dropout": 0.0, "target_modules": "all-linear"}}


@pytest.mark.parametrize(("task", "unseen"), [("sentiment", "polite_pairs"), ("polite_pairs", "sentiment")])
def test_the_unseen_ground_is_trained_as_the_search_is(task, unseen):
    ladder = make_ladder("preference", ["small"], task=task, unseen=unseen, settings=TOLD)
    grounds: list[Any] = [*ladder.rungs, *ladder.unseen]
    for rung in grounds:
        assert {name: rung.config.settings()[name] for name in CARRIED} == CARRIED
    assert [rung.ground[0] for rung in grounds] == [task, unseen]
    assert ladder.not_carried == ()


def test_what_is_not_carried_to_the_unseen_ground_is_said():
    told = {"learning_rate": 2e-4, "train_prompts": 32, "metric": "kl"}
    with pytest.warns(
        LossmithWarning, match="`train_prompts`, `metric` are for 'sentiment' alone: the confirmation on"
    ):
        ladder = make_ladder("preference", ["small"], settings=told, brief=True)
    assert ladder.not_carried == ("train_prompts", "metric")
    beside: Any = ladder.unseen[0]
    assert (beside.config.learning_rate, beside.config.metric) == (2e-4, "preference_accuracy")
    same: Any = make_ladder("preference", ["small"], task="persona_pairs", settings={"metric": "margin"}).unseen[0]
    assert same.fitness_name == "margin"
    token: Any = make_ladder("token", ["small"], settings={"pooling": "mean", "weight_decay": 0.1}).unseen[0]
    assert (token.config.pooling, token.config.weight_decay) == ("mean", 0.1)
    # `prompts` is of pairs, and acts on nothing where answers continue a text.
    with pytest.warns(LossmithWarning, match="`prompts` is for 'polite_pairs' alone"):
        make_ladder("preference", ["small"], task="polite_pairs", unseen="sentiment", settings={"prompts": "chat"})


def test_the_largest_race_that_fits_twice_is_taken():
    from lossmith.discovery.costs import Budget
    from lossmith.discovery.proposers.random import RandomProposer

    both = make_ladder("preference", ["toy", "tiny"])
    sizes = [
        start.fitting_race(both, RandomProposer(), Budget.parse(text)).candidates
        for text in ("2m", "10m", "10h", "5jobs")
    ]
    assert sizes == [*sorted(sizes[:3]), sizes[3]]
    assert sizes[0] < sizes[2]
    alone = make_ladder("preference", ["toy"])
    races = [start.fitting_race(alone, RandomProposer(), Budget.parse(text)) for text in ("3000jobs", "500jobs")]
    assert [race.candidates for race in races] == [start.ALONE.candidates, 24]
    assert [race.playoff_blocks for race in races] == [start.ALONE.playoff_blocks, 4]
    assert sizes[3] == start.SIZES[-1].candidates


@pytest.mark.parametrize("task", ["sentiment", "polite_pairs"])
@pytest.mark.parametrize("rungs", [("toy", "tiny", "small"), ("small",)])
def test_half_an_hour_begins_on_real_tasks_with_room_to_spare(task, rungs):
    from lossmith.discovery.costs import Budget
    from lossmith.discovery.proposers.random import RandomProposer
    from lossmith.discovery.store.preflight import forecast

    ladder, budget, proposer = (
        make_ladder("preference", rungs, task=task, brief=True),
        Budget.parse("30m"),
        RandomProposer(),
    )
    plan = forecast(
        start.fitting_race(ladder, proposer, budget), ladder.rungs, (ladder.rungs[-1], *ladder.unseen), proposer
    )
    plan.check(budget)
    assert plan.needed.wall_seconds < 0.98 * 1800


def test_adapters_are_scaled_and_left_as_they_were():
    layer = torch.nn.Linear(1, 1)
    layer.scaling = {"default": 2.0}  # pyright: ignore[reportAttributeAccessIssue]
    with adapters_scaled(torch.nn.Sequential(layer), 0.5):
        assert layer.scaling == {"default": 1.0}
    assert layer.scaling == {"default": 2.0}
    with pytest.raises(ConfigurationError, match="lora"), adapters_scaled(torch.nn.Linear(1, 1), 0.5):
        pass


def test_a_policy_that_never_came_so_far_has_what_it_reached():
    assert reward_at(1.0, 0.4, [(0.25, 0.5)]) == 0.5
    assert reward_at(0.0625, 0.4, [(0.25, 0.5)]) == pytest.approx(0.45)


def test_an_objective_is_in_the_library_only_for_a_while():
    record = module_of(control_of("preference"), "preference").record
    with recorded(record):
        assert get_record(record.name) is record
        with pytest.raises(ValueError, match="already recorded"), recorded(record):
            pass
    with pytest.raises(ValueError, match="No objective named"):
        get_record(record.name)
