"""Studies of sentiment-controlled generation on tiny random models: pairs, training, reward and divergence."""

import json
import string
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import sentiment_cases
import tiny
from lossmith.cli.studies import write_page
from lossmith.errors import ConfigurationError, DataError, LossmithError, ModelError
from lossmith.evaluation.frontier import frontier, measured_points
from lossmith.evaluation.rewards import open_reward
from lossmith.evaluation.sampling import sample_answers
from lossmith.evidence import VOLATILE_FIELDS
from lossmith.integrations.causal_lm.divergence import row_divergences
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.studies import compare, make_config, sentiment, train
from lossmith.studies.recipes import checked
from lossmith.studies.run import run_block, train_and_test
from lossmith.studies.sentiment import open_sentiment
from lossmith.studies.sentiment_config import SentimentConfig

# What transformers 5.23 and TRL 1.16 say of names that have changed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sentiment")
    return {
        "model": str(tiny.write_causal_model(folder / "policy")),
        "reward": str(sentiment_cases.write_reward(folder / "reward")),
        "reviews": str(sentiment_cases.write_reviews(folder / "films")),
        "cache": str(folder / "cache"),
    }


@pytest.fixture
def settings(places, monkeypatch) -> dict:
    monkeypatch.setenv("LOSSMITH_CACHE", places["cache"])
    return {
        **{name: places[name] for name in ("model", "reward", "reviews")},
        "losses": ["dpo", "ipo"],
        "seeds": 2,
        "train_prompts": 24,
        "test_prompts": 12,
        "answers_per_prompt": 2,
        "max_new_tokens": 10,
        "learning_rate": 1e-2,
        "lora": None,
        "device": "cpu",
    }


@pytest.fixture
def setting_of(settings):
    def make(**changes):
        return open_sentiment(checked(SentimentConfig, settings | changes, "settings"))

    return make


def lasting(record) -> dict:
    return {name: value for name, value in record.to_dict().items() if name not in VOLATILE_FIELDS}


def test_losses_of_a_block_train_on_the_same_sampled_tokens(setting_of, tmp_path, monkeypatch):
    setting = setting_of()
    first = setting.pairs(0, lambda share: None)
    assert len(first.pairs) + first.facts["equal"] + first.facts["ties"] + first.facts["empty"] == 24
    for found in first.pairs:
        assert found.pair.chosen_score > found.pair.rejected_score
        for ids in (found.chosen_ids, found.rejected_ids):
            assert 1 <= len(ids) <= 10
            # A stop token is the last or nowhere; without one the answer is whole.
            assert 1 not in ids[:-1]
            assert ids[-1] == 1 or len(ids) == 10
    rewards = setting.reward.score([p.pair.prompt + p.pair.chosen for p in first.pairs])
    assert rewards == pytest.approx([p.pair.chosen_score for p in first.pairs], abs=1e-6)
    assert setting.pairs(1, lambda share: None).pairs != first.pairs
    # Found again, and not drawn again.
    monkeypatch.setattr("lossmith.studies.sentiment_samples.sample_answers", None)
    assert setting_of().pairs(0, lambda share: None) == first
    seen = []
    for text in ("dpo", "kto", "cross_entropy"):
        trainer = setting.prepare(text, 0, tmp_path, lambda share: None)
        rows = trainer.train_dataset
        if text == "kto":
            seen.append([row["completion_ids"] for row in rows if row["label"]])
        elif text == "dpo":
            seen.append([row["chosen_ids"] for row in rows])
        else:
            seen.append([row["input_ids"][row["answer_start"] :] for row in rows])
    assert seen[0] == seen[1] == seen[2] == [list(found.chosen_ids) for found in first.pairs]


def test_a_run_measures_reward_and_divergence_of_its_own_answers(setting_of, tmp_path):
    setting = setting_of(sampling_seeds=3)
    record, trainer = train_and_test(setting, "dpo", 0, tmp_path / "run")
    assert record.status == "finished", record.error
    sampling = record.config["sampling"]
    for name in ("reward", "kl", "kl_sampled", "kl_per_token", "kl_released", "start_reward", "stopped"):
        assert len(sampling[name]) == 3
        assert record.metrics[name] == pytest.approx(sum(sampling[name]) / 3)
    assert len(set(sampling["kl"])) == len(set(sampling["start_reward"])) == 3
    assert record.metrics["kl"] > 0.01
    assert record.metrics["kl_per_token"] == pytest.approx(record.metrics["kl"] / 10, rel=0.6)
    assert record.metrics["kl_released"] != pytest.approx(record.metrics["kl_per_token"], rel=0.01)
    # The same answers, drawn again and compared with the policy before training.
    start, _ = load_causal_lm(setting.model)
    asked = setting.asked([prompt.text for prompt in setting.prompts.test])
    every = []
    for seed in range(3):
        answers = [own[0] for own in sample_answers(trainer.model, setting.tokenizer, **asked, seed=seed)]
        rows = [(answer.row_ids, len(answer.prompt_ids)) for answer in answers]
        every.append([sum(row.kl) for row in row_divergences(trainer.model, start, rows, padding=0, batch_size=1)])
    assert record.scores["kl"] == pytest.approx([sum(each) / 3 for each in zip(*every, strict=True)], rel=1e-3)
    shown = record.config["answers"][0]
    assert setting.reward.score([shown["prompt"] + shown["answer"]])[0] == pytest.approx(shown["reward"], abs=1e-6)
    (found,) = measured_points([record])
    assert frontier([found], baseline="dpo", resamples=20).points[0].reward.difference == record.metrics["reward"]


def test_answers_longer_than_the_reward_reads_are_said(setting_of, tmp_path):
    setting = setting_of(max_new_tokens=70, train_prompts=8, test_prompts=4, sampling_seeds=1)
    record = run_block(setting, "dpo", 0, tmp_path)
    assert record.status == "finished", record.error
    said = " ".join(record.config["notices"])
    assert "The reward reads 64 tokens: of 4 answers before training (sampling seed 0)" in said
    assert "dpo, seed 0: The reward reads 64 tokens: of 4 test answers (sampling seed 0)" in said
    assert "Seed 0: The reward reads 64 tokens: of 16 answers to training prompts" in said
    assert "without the end of" in said


def test_training_raises_the_reward_and_moves_away_and_more_so_with_a_small_beta(setting_of, tmp_path):
    changes = {"train_prompts": 80, "test_prompts": 30, "answers_per_prompt": 6}
    setting = setting_of(**changes, epochs=10, learning_rate=3e-3)
    near, far = (run_block(setting, f"dpo(beta={beta})", 0, tmp_path) for beta in (5, 0.05))
    assert near.metrics["start_reward"] == far.metrics["start_reward"]
    assert far.metrics["reward"] > far.metrics["start_reward"] + 0.03
    assert far.metrics["kl"] > 3 * near.metrics["kl"] > 0


def test_the_policy_before_training_has_divergence_zero(setting_of, tmp_path):
    record = run_block(setting_of(learning_rate=1e-12, epochs=1), "dpo", 0, tmp_path)
    assert record.metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    assert record.metrics["kl_released"] == pytest.approx(0.0, abs=1e-6)
    assert record.metrics["reward"] == pytest.approx(record.metrics["start_reward"])


def test_with_adapters_the_divergence_is_that_of_the_model_beneath(setting_of, tmp_path):
    setting = setting_of(lora={"r": 4}, learning_rate=3e-2, sampling_seeds=1)
    record, trainer = train_and_test(setting, "dpo", 0, tmp_path)
    assert record.config["adapted_modules"]
    policy = trainer.model.eval()
    asked = setting.asked([prompt.text for prompt in setting.prompts.test])
    expected = []
    for own in sample_answers(policy, setting.tokenizer, **asked, seed=0, merge=True):
        ids, place = torch.tensor([own[0].row_ids]), len(own[0].prompt_ids)
        with torch.no_grad():
            after = policy(input_ids=ids).logits[0, place - 1 : -1].double().log_softmax(-1)
            with policy.disable_adapter():
                beneath = policy(input_ids=ids).logits[0, place - 1 : -1].double().log_softmax(-1)
        expected.append((after.exp() * (after - beneath)).sum().item())
    assert sum(expected) / len(expected) > 0.01
    assert record.scores["kl"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_same_run_twice_is_equal_and_blocks_differ(setting_of, tmp_path):
    first = run_block(setting_of(), "ipo", 1, tmp_path)
    torch.rand(3)
    assert lasting(run_block(setting_of(), "ipo", 1, tmp_path)) == lasting(first)
    assert run_block(setting_of(), "ipo", 0, tmp_path).metrics["kl"] != first.metrics["kl"]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"max_new_tokens": 200, "max_length": 300}, ConfigurationError, "`max_new_tokens` must be <= 120, got 200"),
        ({"max_new_tokens": 125}, ConfigurationError, "`max_length` must hold 8 tokens of a prompt"),
        ({"train_prompts": 5000}, DataError, "`train_prompts` is 5,000"),
        ({"prompt_tokens": [5, 2]}, ConfigurationError, "`prompt_tokens` must be two numbers"),
        ({"reward": "nowhere/at/all"}, ModelError, "no such model folder"),
        ({"reward_label": "happy"}, ConfigurationError, "Its classes: negative, positive"),
        ({"reviews": "films.csv"}, DataError, "must be a known set"),
        ({"metric": "accuracy"}, ConfigurationError, "got 'accuracy'"),
        ({"sampling_seeds": [1, 1]}, ConfigurationError, r"`sampling_seeds` must differ .* got \[1, 1\]"),
        ({"kl_range": [3, 2]}, ConfigurationError, "`kl_range` must be two numbers"),
        ({"reference": "gpt2"}, ConfigurationError, "`reference` has nothing to act on"),
        ({"pairs_data": "hub"}, ConfigurationError, "`pairs_data` has nothing to act on"),
        ({"losses": ["soft_triple"]}, ConfigurationError, "metric loss"),
    ],
)
def test_bad_input_is_one_sentence_before_training(setting_of, changes, kind, words):
    with pytest.raises(kind, match=words) as caught:
        setting_of(**changes)
    assert isinstance(caught.value, LossmithError)
    assert "\n" not in str(caught.value)


def test_compare_resumes_and_spreads_betas(settings, tmp_path, listener):
    config = make_config(settings | {"task": "sentiment", "betas": [0.05, 0.5], "baseline": "dpo(beta=0.05)"})
    assert config.all_losses == ("dpo(beta=0.05)", "dpo(beta=0.5)", "ipo(beta=0.05)", "ipo(beta=0.5)")
    study = compare(config, tmp_path / "out", listener=listener)
    assert (study.summary.finished, study.summary.metric) == (8, "reward")
    again = compare(config, tmp_path / "out", listener=type(listener)())
    assert again.summary == study.summary
    assert len(listener.began) == 8
    for record in study.records:
        assert sum(map(sum, record.config["rho"]["counts"])) == record.config["train_texts"] * config.epochs
    page = write_page(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "What each objective asks, and where training was" in page
    assert {"frontier.png", "objectives.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "shifts.png").exists()
    found = frontier(measured_points(study.records), baseline=config.baseline, resamples=20)
    assert [point.loss for point in found.points] == sorted(config.all_losses)
    assert [area.family for area in found.areas] == ["dpo", "ipo"]


def test_train_saves_a_policy_that_transformers_loads(settings, tmp_path):
    config = make_config(settings | {"task": "sentiment", "losses": ["lrml"], "baseline": "lrml", "seeds": [1]})
    record = train(config, tmp_path / "model")
    assert record.metrics["kl"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size > 100


def test_a_reward_that_says_the_same_of_everything_leaves_no_pair(setting_of, tmp_path):
    dull = sentiment_cases.write_reward(tmp_path / "dull", spread=0.0)
    setting = setting_of(reward=str(dull))
    with pytest.raises(DataError, match=r"No pair is left of 24 prompts: .* answers of equal reward"):
        setting.prepare("dpo", 0, tmp_path, lambda share: None)


def test_pairs_of_a_file_take_the_place_of_sampled_ones(setting_of, settings, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    lines = [f'{{"prompt": "the film {n}", "chosen": " good{n}", "rejected": " bad{n}"}}' for n in range(30)]
    pairs.write_text("\n".join(lines) + "\n")
    record = run_block(setting_of(pairs=str(pairs)), "dpo", 0, tmp_path / "run")
    assert record.status == "finished"
    assert record.config["train_texts"] < 30
    assert record.metrics["kl"] > 0


def test_a_pass_over_reviews_comes_first_once_and_is_the_start_of_the_divergence(setting_of, tmp_path, monkeypatch):
    plain, learnt = setting_of(), setting_of(sft_reviews=40)
    assert learnt.model.fingerprint != plain.model.fingerprint
    rows = [(plain.tokenizer(text)["input_ids"], 1) for text in ("the film was very good", "a plot and a cast")]
    models = [load_causal_lm(setting.model)[0] for setting in (plain, learnt)]
    compared = row_divergences(models[1], models[0], rows, padding=0, batch_size=2)
    # Reviews became likelier.
    assert all(sum(row.logps) > sum(row.ref_logps) for row in compared)
    monkeypatch.setattr("lossmith.studies.sentiment_start._train", None)
    assert setting_of(sft_reviews=40).model == learnt.model
    still = run_block(setting_of(sft_reviews=40, learning_rate=1e-2, epochs=1), "dpo(beta=1000)", 0, tmp_path)
    assert still.config["model_fingerprint"] == learnt.model.fingerprint
    assert still.metrics["kl"] < 1.0
    with pytest.raises(DataError, match=r"`sft_reviews` is 500 and .* has 120 training reviews"):
        setting_of(sft_reviews=500)


def test_pairs_of_a_file_that_the_reward_would_swap_are_said(setting_of, places, tmp_path):
    reward = open_reward(places["reward"])
    rows = []
    for number in range(60):
        both = [" " + letter * 6 for letter in string.ascii_lowercase[number % 13 :: 13]]
        worse, better = sorted(both, key=lambda answer: reward.score([f"the film {number}{answer}"])[0])
        rows.append({"prompt": f"the film {number}", "chosen": worse, "rejected": better})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "is higher for the rejected answer in 12 of 12 test pairs" in " ".join(
        setting_of(pairs=str(tmp_path / "pairs.jsonl")).notices
    )


def test_every_loss_is_checked_before_training_without_a_warning(setting_of, monkeypatch, tmp_path):
    setting = setting_of(losses=["dpo", "kto", "cross_entropy"])
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    checked, make = [], sentiment.make_trainer

    def watched(*args, **kwargs):
        checked.append(kwargs["text"])
        return make(*args, **kwargs)

    monkeypatch.setattr(sentiment, "make_trainer", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setting.check()
    assert checked == list(setting.config.all_losses)
    # Rows of no meaning leave no values in the user's cache.
    assert not (tmp_path / "cache").exists()
