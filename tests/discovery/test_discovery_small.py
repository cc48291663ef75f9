"""The rung of small models: a candidate is trained by a study as any other loss is."""

import json
import pickle
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from lossmith.discovery.controls import control_of
from lossmith.discovery.rungs.base import Block
from lossmith.discovery.rungs.pools import assign_halves, same_text
from lossmith.discovery.rungs.small import SmallRung, _Measured
from lossmith.errors import DataError
from lossmith.studies.run import run_block
from sentiment_cases import write_reviews, write_reward

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.1)


@pytest.fixture
def pairs_rung(model, tmp_path, monkeypatch) -> SmallRung:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    settings = {
        "task": str(tiny.write_pairs(tmp_path / "prefs.jsonl")),
        "model": str(model),
        "epochs": 1,
        "learning_rate": 1e-2,
        "max_length": 64,
        "curve_examples": 0,
        "shown_answers": 0,
        "device": "cpu",
        "metric": "margin",
    }
    return SmallRung(name="small", family="preference", settings=settings)


def test_it_is_measured_apart_and_can_be_sent_there(pairs_rung):
    sent = pickle.loads(pickle.dumps(pairs_rung))  # noqa: S301
    assert sent.apart is True
    assert (sent.environment, sent.ground, sent.cost) == (pairs_rung.environment, pairs_rung.ground, pairs_rung.cost)


def test_the_control_as_a_candidate_is_the_library_s_dpo(pairs_rung, tmp_path):
    block = Block(index=0, seed=5)
    found = pairs_rung.evaluate(control_of("preference"), block)
    same = run_block(pairs_rung.setting_of(block), "dpo", 5, tmp_path / "run")
    assert found.fitness == pytest.approx(same.metrics["margin"], rel=1e-4)
    assert pairs_rung.evaluate(control_of("preference"), block) == found
    twin = pairs_rung.evaluate(control_of("preference"), Block(index=0, seed=5, twin=True))
    assert twin.fitness != found.fitness


def texts_of(folder, name):
    return {
        part: [same_text(json.loads(line)[name]) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "validation", "test")
        if (folder / f"{part}.jsonl").is_file()
    }


def pool_texts(rung, name):
    """All texts of both splits, by split of the data."""
    return [texts_of(rung._pool(split), name) for split in ("search", "confirmation")]


def check_apart(one, other):
    """No text is in both, wherever it stands, and both have about as many rows of each split."""
    assert not {text for part in one.values() for text in part} & {text for part in other.values() for text in part}
    assert one.keys() == other.keys() >= {"train", "test"}
    for part in one:
        assert abs(len(one[part]) - len(other[part])) <= 3


def test_pairs_of_one_prompt_are_in_one_half(pairs_rung, tmp_path):
    rows = [
        {"prompt": f"Question {place}?", "chosen": f"good {place} {way}", "rejected": f"bad {place} {way}"}
        for place in range(40)
        for way in range(2)
    ]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rung = SmallRung(name="small", family="preference", settings={"task": str(path), "model": pairs_rung.config.model})
    one, other = pool_texts(rung, "prompt")
    check_apart(one, other)
    assert sum(len(part) for half in (one, other) for part in half.values()) == 80


@pytest.mark.parametrize("family", ["token", "metric"])
def test_a_text_is_in_one_half(family, tmp_path, monkeypatch):
    """Texts that stand twice side by side, in columns of other names; both classes are in both halves."""
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    rows = [row for row in tiny.sentences(60, 3) for _ in range(2)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"said": row["text"], "is": row["label"]}) + "\n" for row in rows))
    settings = {
        "task": str(path),
        "text_column": "said",
        "label_column": "is",
        "test_fraction": 0.3,
        "model": str(tiny.write_model(tmp_path / "model")),
        "shots": 4,
        "epochs": 1,
        "device": "cpu",
        "metric": "accuracy" if family == "token" else "neighbours_accuracy",
    }
    rung = SmallRung(name="small", family=family, settings=settings)
    one, other = pool_texts(rung, "text")
    check_apart(one, other)
    own = [rung.setting_of(Block(index=index, seed=7 + index)) for index in range(3)]
    tested = [[example.text for example in each.task_of(7).test] for each in own]
    assert all(len(each) == len(one["test"]) * 2 // 3 for each in tested)
    assert all(first != second for first, second in pairwise(tested))
    assert rung.evaluate(control_of(family), Block(index=0, seed=7)).values["test_pool"] == len(one["test"])


def test_a_half_does_not_depend_on_the_order_of_the_rows():
    rows = [(f"text {place // 2}", "test") for place in range(200)]
    found = assign_halves(rows)
    assert found == assign_halves(rows[::-1])
    assert abs(sum(found.values()) - 50) <= 1


def test_a_task_of_one_prompt_has_no_two_halves(pairs_rung, tmp_path):
    path = tmp_path / "one.jsonl"
    rows = [{"prompt": f"{place % 3}", "chosen": f"a {place}", "rejected": f"b {place}"} for place in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rung = SmallRung(name="small", family="preference", settings={"task": str(path), "model": pairs_rung.config.model})
    with pytest.raises(DataError, match=r"3 different prompts of 'one' leave the \w+ no \w+ row"):
        pool_texts(rung, "prompt")


def test_every_block_of_pairs_draws_its_own_test_rows(pairs_rung):
    blocks = [Block(index=index, seed=5 + index) for index in range(4)]
    tested = [pairs_rung.setting_of(block).test for block in blocks]
    pool = pairs_rung._setting("search").task.test
    assert {len(each.encoded.rows) for each in tested} == {len(each.start.chosen) for each in tested}
    assert len(tested[0].encoded.rows) == len(pool) * 2 // 3
    drawn = [[tuple(row.chosen_ids) for row in each.encoded.rows] for each in tested]
    assert len({tuple(each) for each in drawn}) > 1
    twin = pairs_rung.setting_of(Block(index=0, seed=5, twin=True)).test
    assert [tuple(row.chosen_ids) for row in twin.encoded.rows] == drawn[0]
    found = pairs_rung.evaluate(control_of("preference"), blocks[0])
    assert (found.values["test_rows"], found.values["test_pool"]) == (len(drawn[0]), len(pool))
    assert pairs_rung.items.startswith(f"{len(drawn[0])} of {len(pool)} test pairs a block; two blocks share")
    # The training rows are encoded once for all blocks.
    assert pairs_rung.setting_of(blocks[1]).made is pairs_rung._setting("search").made


@pytest.mark.parametrize(("kl", "fitness", "strengths"), [(0.25, 0.7, [1.0]), (4.0, 0.6, [1.0, 0.5])])
def test_a_policy_that_stayed_near_is_measured_once(kl, fitness, strengths, monkeypatch):
    used = []

    @contextmanager
    def scaled(model, strength):
        used.append(strength)
        yield

    class Setting:
        def evaluate(self, trainer, report):
            # Reward grows as the root of the divergence: from 0.5 by 0.1 a root of a nat, or by 0.4.
            strength = used[-1]
            far = kl * strength**2
            return {"metrics": {"kl": far, "reward": 0.5 + (0.4 if kl < 1 else 0.1) * far**0.5, "start_reward": 0.5}}

    monkeypatch.setattr("lossmith.discovery.rungs.small.adapters_scaled", scaled)
    trainer = SimpleNamespace(args=SimpleNamespace(seed=0), model=None)
    found = _Measured(Setting(), Block(index=0, seed=1), several=True).evaluate(trainer, None)
    assert found["metrics"]["reward_at_equal_kl"] == pytest.approx(fitness)
    assert found["metrics"]["kl"] == kl
    assert used == strengths


def test_sentiment_is_judged_by_reward_at_equal_kl(model, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    settings = {
        "task": "sentiment",
        "reviews": str(write_reviews(tmp_path / "reviews")),
        "reward": str(write_reward(tmp_path / "reward")),
        "model": str(model),
        "train_prompts": 8,
        "test_prompts": 6,
        "answers_per_prompt": 2,
        "max_new_tokens": 6,
        "sampling_seeds": 1,
        "max_length": 64,
        "epochs": 1,
        "device": "cpu",
        "lora": {"r": 2},
    }
    rung = SmallRung(name="small", family="preference", settings=settings)
    assert rung.fitness_name == "reward_at_equal_kl"
    found = rung.evaluate(control_of("preference"), Block(index=0, seed=1))
    assert 0 <= found.fitness <= 1
    assert found.fitness == found.values["reward_at_equal_kl"]
    one, other = (rung._setting(split).prompts for split in ("search", "confirmation"))
    every = [
        {part: [same_text(each.text) for each in getattr(prompts, part)] for part in ("train", "test")}
        for prompts in (one, other)
    ]
    check_apart(*every)
    assert len(one.test) > 2 * 6
    assert rung.items.startswith(f"6 of {len(one.test)} test prompts a block")
    own = [rung.setting_of(Block(index=index, seed=1 + index)) for index in range(3)]
    for part, count in (("train", 8), ("test", 6)):
        drawn = [{each.text for each in getattr(setting.prompts, part)} for setting in own]
        assert [len(each) for each in drawn] == [count] * 3
        assert all(each <= {prompt.text for prompt in getattr(one, part)} for each in drawn)
        assert len({frozenset(each) for each in drawn}) == 3
    assert len({setting.config.drawing_seeds for setting in own}) == 3
    large = SmallRung(name="small", family="preference", settings=settings | {"test_prompts": 30})
    with pytest.raises(DataError, match=r"`test_prompts` must be <= \d+, the different beginnings .* got 30: lower it"):
        _ = large.items
    assert rung.setting_of(Block(index=0, seed=1, twin=True)).config.drawing_seeds == own[0].config.drawing_seeds


def test_given_pairs_of_sentiment_are_halved_too(model, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    settings = {
        "task": "sentiment",
        "reviews": str(write_reviews(tmp_path / "reviews")),
        "reward": str(write_reward(tmp_path / "reward")),
        "pairs": str(tiny.write_pairs(tmp_path / "prefs.jsonl")),
        "model": str(model),
        "test_prompts": 6,
        "max_new_tokens": 6,
        "sampling_seeds": 1,
        "device": "cpu",
    }
    rung = SmallRung(name="small", family="preference", settings=settings)
    given = [{pair.prompt for pair in rung._setting(split).given.train} for split in ("search", "confirmation")]
    assert given[0]
    assert not given[0] & given[1]
