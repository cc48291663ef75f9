"""Studies of preferences: every kind of loss on the same pairs, betas, references, bad input; a tiny model."""

import json
import math
import random
import re
import shlex
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.evaluation.preferences import PairLogps, score_pairs
from lossmith.evidence import VOLATILE_FIELDS
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.integrations.preference_rows import encode_pairs
from lossmith.studies import (
    CompletionConfig,
    PreferenceConfig,
    StudyConfig,
    compare,
    compare_command,
    make_config,
    open_results,
    train,
)
from lossmith.studies.answer_kinds import swapped
from lossmith.studies.comparison import open_setting
from lossmith.studies.preference_training import make_preference_trainer
from lossmith.studies.run import run_block
from lossmith.tasks.preference import Pair

# What transformers 5.23 says of PEFT's own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    r"ignore:The \d validation rows were cut:lossmith.errors.LossmithWarning",
    "ignore:The good completions lose",
)
KINDS = ["dpo", "lrml", "simpo", "kto", "dpo + 0.1*cross_entropy", "cross_entropy"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pairs(tmp_path_factory.mktemp("data") / "prefs.jsonl")


@pytest.fixture
def settings(model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    return {
        "task": str(pairs),
        "model": str(model),
        "losses": ["dpo"],
        "seeds": 1,
        "epochs": 2,
        "learning_rate": 1e-2,
        "max_length": 64,
        "curve_points": 2,
        "shown_answers": 2,
        "shown_tokens": 4,
        "device": "cpu",
    }


@pytest.fixture
def run(settings: dict, tmp_path: Path):
    def go(text: str = "dpo", seed: int = 0, **changes: object):
        config = make_config(settings | {"losses": [text], "baseline": text} | changes)
        return run_block(open_setting(config), text, seed, tmp_path / "trainer")

    return go


def opened(settings: dict):
    """The setting, and all that was said on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        setting = open_setting(make_config(settings))
    return setting, " ".join(str(one.message) for one in caught)


def lasting(record) -> dict:
    return {name: value for name, value in record.to_dict().items() if name not in VOLATILE_FIELDS}


def test_compare_trains_every_kind_of_loss_and_measures_the_same_things(settings, tmp_path, listener):
    config = make_config(settings | {"losses": KINDS, "betas": [0.5]})
    assert isinstance(config, PreferenceConfig)
    study = compare(config, tmp_path / "out", listener=listener)
    assert (study.summary.finished, study.summary.metric) == (7, "preference_accuracy")
    wanted = {"preference_accuracy", "margin", "chosen_shift", "rejected_shift", "policy_accuracy", "nll"}
    for record in study.records:
        assert wanted | {f"start_{name}" for name in wanted} <= set(record.metrics)
        assert len(record.scores["preference_accuracy"]) == record.config["test_texts"] == 8
        assert math.isclose(
            record.metrics["margin"], record.metrics["chosen_shift"] - record.metrics["rejected_shift"], abs_tol=1e-9
        )
        assert record.metrics["start_margin"] == 0
        assert [step for step, _ in record.curves["validation_margin"]] == [4.0, 8.0]
        assert len(record.config["shown"]) == 2
        train, _, test = record.config["lengths"]
        assert (train["pairs"], test["pairs"], train["repeated"], train["chosen_longer"]) == (29, 8, 0, 0.0)
        assert (test["medians"]["chosen"], test["highs"]["rejected"]) == (7.0, 11.0)
        seen = record.config["rho"]
        assert (seen is None) == (record.loss == "cross_entropy")
        if seen:
            sides = 2 if record.loss.startswith("kto") else 1
            assert sum(map(sum, seen["counts"])) == 2 * sides * record.config["train_texts"]
    assert study.summary.rows[1].by_example is not None
    assert open_results(tmp_path / "out").summary.rows[1].values == study.summary.rows[1].values
    words = shlex.split(compare_command(config, tmp_path / "out"))
    assert "betas=[0.5]" in words
    # Stopped and started again, nothing is trained twice.
    began = len(listener.began)
    compare(config, tmp_path / "out", listener=listener)
    assert len(listener.began) == began


def test_training_teaches_the_preference_and_lrml_at_a_small_beta_the_contrary(run):
    taught = run("dpo", epochs=4)
    assert taught.metrics["preference_accuracy"] == 1.0
    assert taught.metrics["margin"] > 1.0
    # Its gradient at a margin of 0 is positive: a fresh pair is pushed down first.
    contrary = run("lrml", epochs=4)
    assert contrary.metrics["margin"] < -0.5
    said = [
        each for record in (taught, contrary) for each in record.config["notices"] if "rejected answers gained" in each
    ]
    assert [each[:13] for each in said] == ["lrml, seed 0:"]


def test_the_first_step_of_dpo_is_log_2_exactly(run):
    record = run("dpo", epochs=1, batch_size=32)
    assert record.curves["train_objective"][0][1] == pytest.approx(math.log(2), abs=1e-7)


def test_the_same_run_twice_is_equal_and_blocks_differ(run):
    first = run(seed=1)
    torch.rand(5)
    assert lasting(run(seed=1)) == lasting(first)
    assert run(seed=2).curves["train_nll"] != first.curves["train_nll"]


def test_losses_of_one_block_share_adapters_pairs_and_order(settings, tmp_path):
    setting = open_setting(make_config(settings | {"losses": KINDS, "train_examples": 16}))
    seen = []
    for text in ("dpo", "kto", "cross_entropy"):
        trainer = setting.prepare(text, 3, tmp_path, lambda share: None)
        adapters = [v.clone() for name, v in trainer.model.named_parameters() if "lora_A" in name]
        batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
        chosen = [ids[: len(ids) // 2] if text == "dpo" else ids[::2] if text == "kto" else ids for ids in batches]
        order = [[row[row != 0].tolist() for row in ids] for ids in chosen]
        seen.append((adapters, order))
    for adapters, order in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0][0], adapters, strict=True))
        assert order == seen[0][1]
    assert [len(batch) for batch in seen[0][1]] == [8, 8]
    assert setting.drawn(3).rows == setting.drawn(3).rows != setting.drawn(4).rows


def test_the_reference_is_computed_once_for_all_losses_and_seeds(settings, tmp_path, listener, monkeypatch):
    scored = {"train": 0, "stored": 0}

    def count(name: str, where: str, size):
        real = getattr(import_module(where.rpartition(".")[0]), where.rpartition(".")[2])

        def counted(*args, **kwargs):
            scored[name] += size(args)
            return real(*args, **kwargs)

        monkeypatch.setattr(where, counted)

    count("train", "lossmith.integrations.trl.references.completion_logps", lambda args: len(args[2]["input_ids"]))
    count("stored", "lossmith.evaluation.answer_logps.answer_logps", lambda args: len(args[1]))
    config = make_config(settings | {"losses": ["dpo", "ipo", "hinge"], "seeds": 2})
    study = compare(config, tmp_path / "out", listener=listener)
    sizes = study.records[0].config
    # Of each pair both answers; before the study each loss's trainer is made with 4 pairs that are not kept.
    assert scored["train"] == 2 * (sizes["train_texts"] + 4 * 3)
    assert scored["stored"] == 2 * (sizes["test_texts"] + 3)
    files = sorted(path.name for path in (tmp_path / "cache" / "references").rglob("*.safetensors"))
    assert files == ["test.safetensors", "train.safetensors", "validation.safetensors"]
    compare(make_config(settings | {"losses": ["dpo"], "seeds": [5]}), tmp_path / "more", listener=listener)
    assert scored["train"] == 2 * (sizes["train_texts"] + 4 * 4)
    assert scored["stored"] == 2 * (sizes["test_texts"] + 3)


def test_draws_of_one_set_share_the_reference_and_do_not_depend_on_who_was_first(settings, tmp_path, monkeypatch):
    setting = open_setting(make_config(settings | {"losses": ["dpo", "bco"], "train_examples": 12}))
    found = {}
    for place, seeds in (("all", (0, 1, 2)), ("alone", (2,))):
        monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / place))
        for seed in seeds:
            for text, column in (("dpo", "ref_rejected_logps"), ("bco", "ref_logps")):
                rows = setting.prepare(text, seed, tmp_path, lambda share: None).train_dataset
                found[place, seed, text] = list(rows[column])
    for text in ("dpo", "bco"):
        assert found["all", 2, text] == found["alone", 2, text]
    start = setting._network(setting.model)
    assert found["all", 1, "dpo"] == pytest.approx(setting.scores(start, setting.drawn(1)).rejected.tolist(), abs=1e-4)
    assert found["all", 1, "bco"][1::2] == pytest.approx(found["all", 1, "dpo"], abs=1e-4)
    # Each answer was scored once, whoever drew it.
    files = list((tmp_path / "all" / "references").rglob("train.safetensors"))
    union = {tuple(row.chosen_ids) for seed in range(3) for row in setting.drawn(seed).rows}
    assert 12 < len(union) < 29
    assert sorted(int(load_file(path)["rows_done"].sum()) for path in files) == [len(union), 2 * len(union)]


def test_betas_spread_losses_that_take_one(settings):
    config = make_config(settings | {"losses": ["dpo", "orpo", "ipo + 0.1*cross_entropy"], "betas": [0.05, 0.1]})
    assert config.all_losses == (
        "dpo", "dpo(beta=0.05)", "orpo", "ipo(beta=0.05) + 0.1*cross_entropy", "ipo + 0.1*cross_entropy",
    )  # fmt: skip
    assert make_config(config.settings()).all_losses == config.all_losses
    for changes, message in (
        ({"losses": ["dpo(beta=0.1)"], "betas": [0.5]}, "`betas` and 'dpo\\(beta=0.1\\)' both give beta"),
        ({"losses": ["orpo"], "betas": [0.5]}, "`betas` would do nothing: none of orpo takes a beta"),
        ({"betas": [0.5, 0.5]}, "`betas` must differ"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_config(settings | changes)


def test_the_split_of_one_file_follows_its_settings(settings):
    setting = open_setting(make_config(settings | {"test_fraction": 0.5}))
    assert len(setting.task.test) == 20
    other = open_setting(make_config(settings | {"test_fraction": 0.5, "split_seed": 1}))
    assert other.task.fingerprint != setting.task.fingerprint


def test_a_reference_of_its_own_makes_the_start_differ_from_it(run, tmp_path):
    other = tiny.write_causal_model(tmp_path / "other", seed=11)
    record = run("dpo", reference=str(other), epochs=1)
    assert record.metrics["start_margin"] != 0
    assert record.curves["train_objective"][0][1] != pytest.approx(math.log(2), abs=1e-4)


def test_a_reference_with_another_tokenizer_is_refused(settings, tmp_path):
    other = tiny.write_causal_model(tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"<unk>"', '"<huh>"'), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (other / name).exists():
            (other / name).write_text((other / name).read_text(encoding="utf-8").replace("<unk>", "<huh>"), "utf-8")
    with pytest.raises(ConfigurationError, match="has another tokenizer than the model: 2 tokens differ"):
        open_setting(make_config(settings | {"reference": str(other)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("supcon", "'supcon' of 'supcon' is a metric loss"),
        ("dpo + kto", "adds 'dpo', which compares the answers of a pair, to 'kto'"),
        ("cross_entropy[answer]", "names the label scope \\[answer\\]"),
    ],
)
def test_losses_of_other_families_are_refused_before_training(settings, text, message):
    with pytest.raises(ConfigurationError, match=message):
        open_setting(make_config(settings | {"losses": [text]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_examples": 900}, "`train_examples` is 900 and 'prefs' has"),
        ({"max_length": 500}, "`max_length` must be <= 128, the most that the model reads, got 500"),
        ({"max_prompt_length": 64}, "`max_prompt_length` must be below `max_length` = 64, got 64"),
        ({"save": "adapter", "lora": None}, "`save` must be merged where `lora` is null"),
        ({"metric": "accuracy"}, "`metric` must be one of preference_accuracy"),
        ({"shots": 8}, "there is no setting `shots`"),
        ({"shown_tokens": 128}, "`shown_tokens` must be < 128"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(settings, changes, message):
    with pytest.raises((ConfigurationError, DataError), match=message):
        open_setting(make_config(settings | changes))


def test_pairs_that_are_cut_or_swapped_are_said(settings, tmp_path):
    rows = [{"prompt": "z" * 90 + f"{i}", "chosen": f"q{i}", "rejected": f"w{i}{i}"} for i in range(70)]
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    setting, said = opened(settings | {"task": str(long)})
    assert "of 14 test pairs were cut on the left" in said
    assert "The prompts of 50 of 50 train pairs were cut on the left" in setting.described(0)["config"]["notices"][-1]
    assert "swapped" not in said


def test_small_updates_that_bfloat16_loses_are_said(settings):
    words = "All weights are trained in bfloat16"
    assert words in opened(settings | {"lora": None, "weights": "bfloat16"})[1]
    assert words not in opened(settings | {"weights": "bfloat16"})[1]
    assert words not in opened(settings | {"lora": None})[1]


def test_columns_that_the_reference_would_swap_are_said(settings, tmp_path):
    network, tokenizer = load_causal_lm(resolve_model(settings["model"]))
    draw = random.Random(4)
    answers = [["".join(draw.choices("abcdefgh", k=4)) for _ in range(2)] for _ in range(60)]
    rows = encode_pairs(tokenizer, [(f"{i}?", *both) for i, both in enumerate(answers)], max_length=64).rows
    found = score_pairs(network, rows, pad_token_id=0, batch_size=8)
    unlikely = [both[::-1] if c > r else both for both, c, r in zip(answers, found.chosen, found.rejected, strict=True)]
    for name, sides, said in (("swapped", ("chosen", "rejected"), True), ("right", ("rejected", "chosen"), False)):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"{i}?"} | dict(zip(sides, both, strict=True)) for i, both in enumerate(unlikely)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        setting, warned = opened(settings | {"task": str(path)})
        sentence = "The reference finds the rejected answer likelier, per token, in 12 of 12 test pairs"
        assert (sentence in warned) == said
        assert any(sentence in notice for notice in setting.described(0)["config"]["notices"]) == said


@pytest.mark.parametrize(("worse", "count", "warns"), [(8, 10, True), (7, 10, False), (9, 9, False)])
def test_columns_look_swapped_where_the_reference_prefers_what_is_called_worse(worse, count, warns):
    likely, unlikely, lengths = np.full(count, -8.0), np.full(count, -6.0), (np.full(count, 8.0), np.full(count, 2.0))
    # Per token: the chosen answers have -1, the rejected ones -3, but for the first `worse` pairs -0.5.
    unlikely[:worse] = -1.0
    logps = PairLogps(likely, unlikely, *lengths)
    found = swapped(logps)
    assert bool(found) == warns
    if warns:
        assert "in 8 of 10 test pairs" in found[0]


def test_a_diverged_run_is_recorded_and_the_others_go_on(settings, tmp_path, listener):
    changes = {"losses": ["dpo", "sppo_hard"], "learning_rate": 1e18, "max_grad_norm": 1e30, "lora": None, "epochs": 4}
    study = compare(make_config(settings | changes), tmp_path / "out", listener=listener)
    assert study.summary.failed >= 1
    failed = next(record for record in study.records if record.status == "failed")
    assert re.search(r"finite|nan", str(failed.error))


def test_train_saves_a_model_that_transformers_loads_or_the_adapter_alone(settings, tmp_path):
    config = make_config(settings | {"losses": ["lrml(beta=0.05)"], "baseline": "lrml(beta=0.05)"})
    record = train(config, tmp_path / "merged")
    assert record.loss == "lrml"
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    train(make_config(settings | {"save": "adapter"}), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(settings["model"])
    assert PeftModel.from_pretrained(base, tmp_path / "adapter").peft_config.keys() == {"default"}


def test_the_kind_of_a_study_follows_from_its_task(settings, tmp_path):
    films = tiny.write_data(tmp_path / "films.jsonl", count=20)
    assert type(make_config({"task": str(films)})) is StudyConfig
    assert type(make_config({"task": "gsm8k"})) is CompletionConfig
    assert type(make_config({"task": "polite_pairs"})) is PreferenceConfig
    # A results folder can be read without its data.
    gone = make_config(settings).settings() | {"task": str(tmp_path / "gone.jsonl")}
    assert type(make_config(gone)) is PreferenceConfig


def test_a_trainer_of_pairs_can_be_had_alone_and_says_what_it_left_out(settings, tmp_path):
    network, tokenizer = load_causal_lm(resolve_model(settings["model"]))
    pairs = [Pair(id=str(i), prompt=f"{i}?", chosen=f"a{i}", rejected=f"b{i}" if i else "a0") for i in range(9)]
    with pytest.warns(LossmithWarning, match="1 of 9 train pairs was left out: both answers are equal"):
        trainer = make_preference_trainer(
            make_config(settings), network, tokenizer, pairs, text="dpo", seed=0, workspace=tmp_path / "w",
            on_cpu=True, reference_cache=tmp_path / "cache", report=lambda share: None,
        )  # fmt: skip
    trainer.train()
    assert len(trainer.train_dataset) == 8
    assert trainer.training_seconds > 0
    assert trainer.curves["train_objective"]
