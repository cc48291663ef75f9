"""Studies of written answers: paired blocks, presets, tests by generation, saved models; all on a tiny random model."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from lossmith.errors import ConfigurationError, DataError, EvidenceError, LossmithWarning, ModelError
from lossmith.evidence import VOLATILE_FIELDS
from lossmith.integrations.causal_lm.generation import generate
from lossmith.studies import (
    CompletionConfig,
    apply_overrides,
    compare,
    compare_command,
    make_config,
    open_results,
    train,
)
from lossmith.studies.comparison import open_setting
from lossmith.studies.run import run_block, train_and_test

# What transformers 5.23 says of PEFT's own code.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LOVASZ = "0.6*cross_entropy + 0.4*lovasz_softmax[answer]"
DICE = "0.6*cross_entropy + 0.4*generalized_dice[answer]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.1)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sums(tmp_path_factory.mktemp("data") / "sums")


@pytest.fixture
def settings(model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    return {
        "task": str(task),
        "model": str(model),
        "losses": ["cross_entropy", LOVASZ],
        "seeds": 2,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "max_length": 64,
        "max_new_tokens": 12,
        "curve_points": 2,
        "device": "cpu",
    }


@pytest.fixture
def run(settings: dict, tmp_path: Path):
    def go(text: str = LOVASZ, seed: int = 0, **changes: object):
        return run_block(open_setting(make_config(settings | changes)), text, seed, tmp_path / "trainer")

    return go


def lasting(record) -> dict:
    return {name: value for name, value in record.to_dict().items() if name not in VOLATILE_FIELDS}


def test_compare_trains_every_loss_on_every_seed_and_judges_the_answers(settings, tmp_path, listener):
    config = make_config(settings)
    study = compare(config, tmp_path / "out", listener=listener)
    assert isinstance(config, CompletionConfig)
    assert (study.summary.finished, study.summary.metric) == (4, "exact_match")
    for record in study.records:
        assert len(record.outputs) == len(record.outcomes) == len(record.scores["exact_match"]) == 8
        assert set(record.metrics) >= {"exact_match", "released_exact_match", "nll", "stopped", "answered", "iou"}
        assert record.metrics["exact_match"] == sum(record.scores["exact_match"]) / 8
        assert record.config["adapted_modules"] == [
            "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
        ]  # fmt: skip
        assert [step for step, _ in record.curves["validation_nll"]] == [3.0, 6.0]
        assert len(record.config["samples"]) == 8
    assert study.summary.rows[1].by_example is not None
    assert open_results(tmp_path / "out").summary.rows[1].values == study.summary.rows[1].values
    assert "--losses" in compare_command(config, tmp_path / "out")


def test_training_teaches_the_answers_and_their_end(run):
    record = run("cross_entropy", epochs=30, learning_rate=1e-2, lora=None, max_new_tokens=30)
    first, last = record.curves["train_nll"][0][1], record.curves["train_nll"][-1][1]
    assert last < 0.4 * first
    assert record.metrics["stopped"] > 0.8
    assert record.metrics["answered"] > 0.8


def test_the_same_run_twice_is_equal_and_blocks_differ(run):
    first = run(seed=1)
    torch.rand(5)
    assert lasting(run(seed=1)) == lasting(first)
    assert run(seed=2).curves["train_nll"] != first.curves["train_nll"]


def test_losses_of_one_block_share_adapters_rows_order_and_dropout(settings, tmp_path):
    setting = open_setting(make_config(settings | {"train_examples": 16}))
    drawn = [setting.drawn(seed).rows for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 16
    seen = []
    for text in ("cross_entropy", LOVASZ):
        trainer = setting.prepare(text, 3, tmp_path, lambda share: None)
        adapters = [v.clone() for name, v in trainer.model.named_parameters() if "lora_A" in name]
        order = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
        seen.append((adapters, order))
    assert all(torch.equal(a, b) for a, b in zip(seen[0][0], seen[1][0], strict=True))
    assert seen[0][1] == seen[1][1]


def test_the_first_step_is_the_same_forward_under_every_loss(run):
    curves = [run(text, epochs=1, batch_size=24).curves["train_nll"] for text in ("cross_entropy", LOVASZ)]
    assert curves[0] == curves[1]


def test_the_released_preset_is_spelled_out_and_can_be_undone_one_by_one(settings):
    released = make_config(settings | {"preset": "released", "order": "shuffled"})
    assert isinstance(released, CompletionConfig)
    assert (released.masking, released.end, released.encoding) == ("zeroed", "masked", "released")
    assert released.order == "shuffled"
    assert released.metric == "released_exact_match"


def test_the_released_preset_trains_no_end_and_shuffles_nothing(run, settings, tmp_path):
    record = run(DICE, preset="released", epochs=20, learning_rate=3e-2, lora=None)
    assert record.metrics["stopped"] == 0.0
    assert record.config["masking"] == "zeroed"
    setting = open_setting(make_config(settings | {"preset": "released"}))
    trainer = setting.prepare(DICE, 0, tmp_path, lambda share: None)
    batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    rows = [row.input_ids for row in setting.train.rows]
    padded = [[0] * (len(batch[0]) - len(row)) + row for batch in [batches[0]] for row in rows[: len(batch)]]
    assert batches[0].tolist() == padded


def test_the_released_dice_trains_nothing_beyond_its_share_of_cross_entropy(run):
    released, corrected = (
        [run(text, preset=preset, lora=None).curves["train_nll"] for text in (DICE, "0.6*cross_entropy")]
        for preset in ("released", "corrected")
    )
    assert released[0] == released[1]
    assert abs(corrected[0][-1][1] - corrected[1][-1][1]) > 1e-4


@pytest.mark.parametrize(
    "alone", [{"masking": "zeroed"}, {"end": "masked"}, {"order": "file"}, {"encoding": "released"}]
)
def test_each_released_behaviour_can_be_had_alone(run, alone):
    record = run(epochs=1, **alone)
    assert record.status == "finished"
    assert record.outputs != []


def test_rows_in_the_order_of_the_file_stay_so_when_they_are_drawn(settings):
    setting = open_setting(make_config(settings | {"train_examples": 12, "order": "file"}))
    whole = [row.input_ids for row in setting.train.rows]
    places = [[whole.index(row.input_ids) for row in setting.drawn(seed).rows] for seed in (0, 1)]
    assert all(found == sorted(found) for found in places)
    assert places[0] != places[1]


def test_the_printed_command_makes_the_same_settings(settings, tmp_path):
    config = make_config(settings | {"preset": "released", "order": "shuffled", "metric": "exact_match", "lora": None})
    words = shlex.split(compare_command(config, tmp_path))
    loose = [word for word in words if re.match(r"[a-z_.]+=", word)]
    flags = {name: words[words.index(f"--{name}") + 1] for name in ("preset", "metric", "model", "baseline", "device")}
    again = make_config(apply_overrides(settings | {"task": words[2]} | flags, loose))
    assert again == config


def test_no_row_left_is_said_before_training(settings):
    with pytest.raises(DataError, match="No train row is left"):
        open_setting(make_config(settings | {"preset": "released", "max_length": 12}))


def test_a_warm_up_longer_than_the_run_is_noticed(settings):
    sentence = "The learning rate rises for 500 steps and a run has 6: it never reaches its peak."
    with pytest.warns(LossmithWarning, match=sentence):
        setting = open_setting(make_config(settings | {"warmup_steps": 500}))
    assert sentence in setting.notices


def test_train_saves_what_transformers_loads_and_generates_the_same(settings, tmp_path):
    config = make_config(settings | {"losses": [LOVASZ], "baseline": LOVASZ, "seeds": [3]})
    record = train(config, tmp_path / "saved")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    prompt = tokenizer(record.config["samples"][0]["prompt"], return_tensors="pt")
    written = network.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == record.outputs[0]
    assert json.loads((tmp_path / "saved" / "result.json").read_text())["loss"] == LOVASZ
    adapters = train(make_config(config.settings() | {"save": "adapter"}), tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert adapters.outputs == record.outputs


def test_another_preset_is_another_study(settings, tmp_path, listener):
    here = settings | {"losses": ["cross_entropy"], "seeds": 1, "epochs": 1}
    compare(make_config(here), tmp_path / "out", listener=listener)
    with pytest.raises(EvidenceError, match="masking"):
        compare(make_config(here | {"preset": "released"}), tmp_path / "out", listener=listener)


def test_a_model_that_writes_nothing_to_read_is_reported_as_such(run):
    record = run("cross_entropy", epochs=1, learning_rate=1e-6)
    assert record.metrics["answered"] == 0.0
    assert any("seed 0" in notice and "####" in notice for notice in record.config["notices"])


def test_votes_are_sampled_by_the_seed(run):
    first, again = (run("cross_entropy", votes=3, temperature=1.0, epochs=1) for _ in range(2))
    assert first.outputs == again.outputs
    assert first.outputs != run("cross_entropy", epochs=1).outputs


def test_vllm_gets_the_merged_weights_and_its_answers_are_judged_alike(settings, tmp_path, monkeypatch):
    asked = {}

    def stand_in(folder, prompts, *, tokenizer, dtype, max_new_tokens, votes, stop_token_ids, **rest):
        asked.update(dtype=dtype, votes=votes, stops=stop_token_ids)
        network = AutoModelForCausalLM.from_pretrained(folder).eval()
        return generate(network, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=4)

    setting = open_setting(make_config(settings))
    expected = run_block(setting, LOVASZ, 0, tmp_path / "a")
    monkeypatch.setattr("lossmith.studies.answers.generate_with_vllm", stand_in)
    record, trainer = train_and_test(dataclasses.replace(setting, backend="vllm"), LOVASZ, 0, tmp_path / "b")
    assert record.outputs == expected.outputs
    assert asked == {"dtype": "float32", "votes": 1, "stops": [1]}
    assert any("lora_A" in name for name, _ in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"losses": ["0.4*cross_entropy + 0.6*supcon"]}, "is a metric loss"),
        ({"losses": ["cross_entropy + focal[steps]"]}, "the label scope [steps]"),
        ({"votes": 5}, "needs a `temperature` above 0"),
        ({"top_p": 0.9}, "`top_p` = 0.9 needs a `temperature` above 0"),
        ({"encoding": "released", "prompts": "chat"}, "`prompts` must be plain where `encoding` is released"),
        ({"save": "adapter", "lora": None}, "`save` must be merged where `lora` is null"),
        ({"trainer": {"train_sampling_strategy": "random"}}, "use `order`"),
        ({"shots": 5}, "there is no setting `shots`"),
        ({"max_length": 4096}, "`max_length` must be <= 128"),
        ({"max_new_tokens": 128}, "`max_new_tokens` must be < 128"),
        ({"lora": {"target_modules": ["nothing_like_it"]}}, "The `lora` settings are refused"),
        ({"lora": {"rank": 3}}, "lora.rank"),
        ({"prompts": "chat"}, "chat template"),
        ({"metric": "f1"}, "f1"),
        ({"preset": "paper"}, "`preset`"),
    ],
)
def test_bad_settings_are_said_before_training(settings, changes, part):
    with pytest.raises(ConfigurationError) as caught:
        open_setting(make_config(settings | changes))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_longer_than_a_row_is_refused(settings):
    with pytest.raises(DataError, match="max_length"):
        open_setting(make_config(settings | {"max_length": 12}))


def test_an_encoder_writes_nothing(settings, tmp_path):
    with pytest.raises(ModelError, match="is saved as BertModel, which writes no text"):
        open_setting(make_config(settings | {"model": str(tiny.write_model(tmp_path / "bert"))}))


def test_more_rows_than_there_are(settings):
    with pytest.raises((DataError, ConfigurationError), match="24"):
        open_setting(make_config(settings | {"train_examples": 25}))
