"""Answers that the models of preference studies sample: divergence, reward, win rates, frontier; tiny models."""

import json
import random
import string

import pytest
import torch

import sentiment_cases
import tiny
from lossmith.cli.studies import write_page
from lossmith.errors import ConfigurationError, DataError
from lossmith.evaluation.divergence import sequence_kl
from lossmith.evaluation.judging import likelihood_score
from lossmith.evaluation.rewards import open_reward
from lossmith.evaluation.sampling import sample_answers
from lossmith.integrations.causal_lm.divergence import row_divergences
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.studies import compare, make_config
from lossmith.studies.comparison import open_setting
from lossmith.studies.run import run_block, train_and_test
from lossmith.tasks.preference import Message

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sampled")
    return {
        "model": str(tiny.write_causal_model(folder / "policy")),
        "judge": str(tiny.write_causal_model(folder / "judge", seed=11)),
        "reward": str(sentiment_cases.write_reward(folder / "reward")),
        "one": str(sentiment_cases.write_reward(folder / "one", names=("score",))),
        "pairs": str(tiny.write_pairs(folder / "prefs.jsonl")),
        "rated": str(tiny.write_rated(folder / "rated.jsonl")),
        "cache": str(folder / "cache"),
    }


@pytest.fixture
def settings(places, monkeypatch) -> dict:
    monkeypatch.setenv("LOSSMITH_CACHE", places["cache"])
    return {
        "task": places["pairs"],
        "model": places["model"],
        "losses": ["dpo"],
        "seeds": 1,
        "learning_rate": 1e-2,
        "lora": None,
        "max_length": 64,
        "curve_examples": 0,
        "shown_answers": 0,
        "sampled_prompts": 6,
        "sampled_tokens": 8,
        "device": "cpu",
    }


def test_divergence_reward_and_win_rates_are_those_of_the_answers(settings, places, tmp_path):
    config = make_config(settings | {"reward": places["reward"], "likelihood": places["judge"], "sampling_seed": 3})
    setting = open_setting(config)
    record, trainer = train_and_test(setting, "dpo", 0, tmp_path / "run")
    assert record.status == "finished", record.error
    start, tokenizer = load_causal_lm(resolve_model(places["model"]))
    prompts = [setting.sampling.prompt_ids, setting.sampling.prompts]
    assert len({tuple(ids) for ids in prompts[0]}) == len(prompts[1]) == 6
    drawn = {
        name: [
            own[0]
            for own in sample_answers(
                model, tokenizer, prompts[0], seed=3, max_new_tokens=8, batch_size=config.eval_batch_size
            )
        ]
        for name, model in (("after", trainer.model), ("before", start))
    }
    rows = [(answer.row_ids, len(answer.prompt_ids)) for answer in drawn["after"]]
    compared = row_divergences(trainer.model, start, rows, padding=0, batch_size=2)
    assert record.metrics["kl"] == pytest.approx(sequence_kl(compared), rel=1e-4)
    assert record.metrics["kl"] > 0.05
    assert sum(record.scores["kl"]) / 6 == pytest.approx(record.metrics["kl"])
    reward, judge = open_reward(places["reward"]), load_causal_lm(resolve_model(places["judge"]))
    values = {}
    for name, answers in drawn.items():
        texts = [answer.answer for answer in answers]
        values[name] = (
            reward.score([prompt + text for prompt, text in zip(prompts[1], texts, strict=True)]),
            likelihood_score(*judge)(list(zip(prompts[1], texts, strict=True))),
        )
    assert record.metrics["reward"] == pytest.approx(sum(values["after"][0]) / 6, abs=1e-6)
    assert record.metrics["start_reward"] == pytest.approx(sum(values["before"][0]) / 6, abs=1e-6)
    for place, name in enumerate(("reward_win_rate", "likelihood_win_rate")):
        same = [a.answer == b.answer for a, b in zip(drawn["after"], drawn["before"], strict=True)]
        pairs = zip(values["after"][place], values["before"][place], same, strict=True)
        won = [0.5 if equal else float(a > b) for a, b, equal in pairs]
        assert not all(same)
        assert record.scores[name] == won
        assert record.metrics[name] == sum(won) / 6


def test_a_model_that_did_not_move_wins_half_and_has_no_divergence(settings, places, tmp_path):
    changes = {"reward": places["reward"], "likelihood": places["judge"], "learning_rate": 1e-12}
    record = run_block(open_setting(make_config(settings | changes)), "dpo", 0, tmp_path / "run")
    assert record.metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert record.metrics["reward_win_rate"] == record.metrics["likelihood_win_rate"] == 0.5
    assert record.metrics["reward"] == record.metrics["start_reward"]


def test_rated_answers_are_sampled_too_and_a_reward_model_gives_scores(settings, places, tmp_path):
    changes = {"task": places["rated"], "losses": ["kto"], "reward": places["one"], "metric": "reward_score"}
    record = run_block(open_setting(make_config(settings | changes)), "kto", 0, tmp_path / "run")
    assert record.metrics["kl"] > 0
    assert "reward" not in record.metrics
    # A score and no probability.
    assert not all(0 <= value <= 1 for value in record.scores["reward_score"])
    assert "sampling" not in record.config


def test_the_divergence_is_from_a_reference_of_its_own(settings, places, tmp_path):
    changes = {"reference": places["judge"], "learning_rate": 1e-12, "reward": places["reward"]}
    record = run_block(open_setting(make_config(settings | changes)), "dpo", 0, tmp_path / "run")
    assert record.metrics["kl"] > 0.05
    # There is no frontier from a start that is not at KL 0.
    assert "sampling" not in record.config


def test_the_page_has_levels_and_the_frontier_over_betas(settings, places, tmp_path, listener):
    config = make_config(settings | {"betas": [0.05, 0.5], "reward": places["reward"], "metric": "kl"})
    study = compare(config, tmp_path / "out", listener=listener)
    page = write_page(study, tmp_path / "out").read_text(encoding="utf-8")
    for words in ("KL(policy || reference) per answer", "wins over the model before training, by the reward"):
        assert words in page
    assert {"frontier.png", "beta_sweep.png", "objectives.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_prompts_longer_than_the_reward_reads_leave_the_answers_whole_and_are_said(settings, places, tmp_path):
    long = tmp_path / "long.jsonl"
    rows = [{"prompt": "z" * 61 + f"{i}+{i}?", "chosen": f" yes {2 * i}", "rejected": f" no {i}"} for i in range(40)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"task": str(long), "reward": places["reward"], "max_length": 96, "train_examples": 8}
    setting = open_setting(make_config(settings | changes))
    record = run_block(setting, "dpo", 0, tmp_path / "run")
    assert record.status == "finished", record.error
    # 64 tokens would be the prompt alone, and all answers equal to those before.
    assert len(set(record.scores["reward"])) == 6
    assert record.metrics["reward"] != record.metrics["start_reward"]
    said = record.config["notices"]
    lost = "of 6 answers {} training 6 were scored without the beginning of their prompt."
    assert "The reward reads 64 tokens: " + lost.format("before") in said
    assert "dpo, seed 0: The reward reads 64 tokens: " + lost.format("after") in said


def test_columns_that_the_reward_would_swap_are_said(settings, places, tmp_path):
    reward = open_reward(places["one"], scores=True)
    draw = random.Random(4)
    answers = [["".join(draw.choices(string.ascii_lowercase, k=4)) for _ in range(2)] for _ in range(60)]
    values = [reward.score([f"{i}?{answer}" for answer in both]) for i, both in enumerate(answers)]
    # Every other pair of the 60 the wrong way is not enough, all of them are.
    for step, said in ((1, True), (2, False)):
        path, rows = tmp_path / f"by{step}.jsonl", []
        for i, (both, (first, second)) in enumerate(zip(answers, values, strict=True)):
            worse_first = both if first < second else both[::-1]
            chosen, rejected = worse_first if i % step == 0 else worse_first[::-1]
            rows.append({"prompt": f"{i}?", "chosen": chosen, "rejected": rejected})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        setting = open_setting(make_config(settings | {"task": str(path), "reward": places["one"]}))
        sentence = f"The reward `{places['one']}` is higher for the rejected answer in 12 of 12 test pairs"
        assert any(notice.startswith(sentence) for notice in setting.notices) == said
        assert any("is higher for the rejected" in notice for notice in setting.notices) == said


def test_a_likelihood_that_does_not_read_the_answers_is_refused_before_training(settings, places, tmp_path):
    changes = {"likelihood": places["judge"], "sampled_tokens": 125}
    with pytest.raises(
        ConfigurationError, match=r"`likelihood` .* reads at most 128 tokens, and a test prompt has 7 of"
    ):
        open_setting(make_config(settings | changes))


def test_nothing_is_sampled_unless_it_is_asked_for(settings):
    setting = open_setting(make_config(settings | {"sampled_prompts": 0}))
    assert setting.sampling is None
    assert not {"reward_fingerprint", "likelihood_fingerprint"} & set(setting.identity())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled_prompts": 0, "reward": "x"}, "`reward` needs sampled answers: give `sampled_prompts`"),
        ({"sampled_prompts": 0, "likelihood": "x"}, "`likelihood` needs sampled answers"),
        ({"sampled_prompts": 0, "metric": "kl"}, "`metric` kl is measured with `sampled_prompts` alone"),
        ({"metric": "reward"}, "`metric` reward is measured with `reward` alone"),
        ({"reward_label": "positive"}, "`reward_label` has nothing to act on without `reward`"),
        ({"sampled_prompts": 99}, "`sampled_prompts` is 99 and the test has 8 different prompts"),
        ({"sampled_tokens": 128}, "`sampled_tokens` must be < 128"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(settings, changes, message):
    with pytest.raises((ConfigurationError, DataError), match=message):
        open_setting(make_config(settings | changes))


def test_a_reward_says_what_it_is(settings, places):
    with pytest.raises(ConfigurationError, match="`metric` must be reward_score with this reward, got 'reward'"):
        open_setting(make_config(settings | {"reward": places["one"], "metric": "reward"}))
    with pytest.raises(ConfigurationError, match="has one output, got 'good'"):
        open_setting(make_config(settings | {"reward": places["one"], "reward_label": "good"}))


def test_chats_are_scored_as_the_rewards_template_puts_them(places):
    reward = open_reward(places["one"], scores=True)
    chat = (Message("user", "Hi."), Message("assistant", "Yes?"), Message("user", "Why?"))
    assert reward.answer_text(chat, "So.") == "user: Hi.\nassistant: Yes?\nuser: Why?\nassistant: So."
    reward.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert reward.answer_text(chat, "So.") == "<user>Hi.<assistant>Yes?<user>Why?<assistant>So."
    assert reward.answer_text("Hi.", " So.") == "Hi. So."
    assert reward.score(["aaa", "zzz"]) == pytest.approx(
        [reward.model(**reward.tokenizer([t], return_tensors="pt")).logits[0, 0].item() for t in ("aaa", "zzz")],
        abs=1e-5,
    )
    assert torch.is_grad_enabled()
