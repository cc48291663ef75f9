"""The rung of small models: a candidate is trained by a study as any other loss is."""

import json
import pickle
from pathlib import Path

import pytest

import tiny
from lossmith.discovery.controls import control_of
from lossmith.discovery.rungs.base import Block
from lossmith.discovery.rungs.small import SmallRung
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
    same = run_block(pairs_rung._setting("search"), "dpo", 5, tmp_path / "run")
    assert found.fitness == pytest.approx(same.metrics["margin"], rel=1e-4)
    assert pairs_rung.evaluate(control_of("preference"), block) == found
    twin = pairs_rung.evaluate(control_of("preference"), Block(index=0, seed=5, twin=True))
    assert twin.fitness != found.fitness


def test_search_and_confirmation_share_no_row(pairs_rung):
    rows = {}
    for split in ("search", "confirmation"):
        folder = Path(pairs_rung._setting(split).config.task)
        for part in ("train", "test"):
            lines = (folder / f"{part}.jsonl").read_text().splitlines()
            rows[split, part] = {json.dumps(json.loads(line), sort_keys=True) for line in lines}
            assert rows[split, part]
    for part in ("train", "test"):
        assert not rows["search", part] & rows["confirmation", part]


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
    assert not {each.text for each in one.test} & {each.text for each in other.test}
    assert len(one.test) == 6
