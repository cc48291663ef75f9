"""Preferences from the command line: the task first or behind --task, one model, a comparison, bad input."""

import json

import pytest

import tiny
from lossmith import cli
from lossmith.cli.shared import one_task
from lossmith.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:The good completions lose",
    r"ignore:The \d validation rows were cut:lossmith.errors.LossmithWarning",
)
SMALL = ("epochs=1", "max_length=64", "shown_answers=0", "curve_examples=0", "--device", "cpu")


@pytest.fixture
def lossmith(tmp_path, monkeypatch):
    tiny.write_causal_model(tmp_path / "model")
    tiny.write_pairs(tmp_path / "prefs.jsonl")
    tiny.write_rated(tmp_path / "rated.jsonl")
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        return int(stop.value.code or 0)

    return run


def test_train_on_a_file_of_pairs_behind_the_flag(lossmith, tmp_path, capsys):
    words = ("--task", "prefs.jsonl", "--loss", "lrml(beta=0.05)", "--model", "model", "--out", "out", *SMALL)
    assert lossmith("train", *words) == 0
    assert "lrml, seed 0: preference_accuracy" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["config"]["max_length"] == 64
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_train_on_rated_answers_behind_the_flag(lossmith, tmp_path, capsys):
    words = ("--task", "rated.jsonl", "--model", "model", "--out", "out", *SMALL)
    assert lossmith("train", *words) == 0
    shown = capsys.readouterr().out
    assert "Training kto on rated.jsonl, seed 0, the default: --loss names another." in shown
    assert "kto: 100% done" in shown
    assert "kto, seed 0: auc" in shown
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_is_asked_of_a_file_is_compared_with_what_it_has(lossmith, capsys):
    assert lossmith("compare", "prefs.jsonl", "test_examples=500", *SMALL[1:]) == 2
    message = capsys.readouterr().err
    assert "pairs to test: lower it or leave it out, or change `test_fraction`, which is 0.2 of the prompts." in message
    assert lossmith("compare", "none.jsonl", "train_examples=8") == 2
    assert "There is no file or folder `none.jsonl`" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["lrml", "kto", "dpo + 0.1*cross_entropy"])
def test_a_file_without_columns_of_pairs_is_no_table_of_texts_for_a_preference_loss(lossmith, tmp_path, capsys, loss):
    (tmp_path / "other.jsonl").write_text('{"question": "Q", "good": "a", "bad": "b"}\n' * 3, encoding="utf-8")
    assert lossmith("train", "--task", "other.jsonl", "--loss", loss, "--out", "out") == 2
    message = capsys.readouterr().err
    assert "must have the columns of a preference layout: `chosen` and `rejected`" in message
    assert "got `question`, `good`, `bad`." in message


def test_adapters_that_are_given_in_part_keep_the_other_defaults_of_their_study():
    from lossmith.studies import apply_overrides, described_settings, make_config

    config = make_config(apply_overrides({"task": "polite_pairs"}, ["lora.r=4"]))
    assert (config.lora.r, config.lora.dropout) == (4, 0.0)
    shown = {task: dict(row[:2] for row in described_settings(task))["lora.dropout"] for task in ("polite_pairs", "mr")}
    assert shown == {"polite_pairs": "0.0", "mr": "0.05"}


def test_compare_rated_answers(lossmith, tmp_path, capsys):
    words = ("rated.jsonl", "--losses", "kto", "cross_entropy", "--seeds", "1", "--model", "model", "--out", "out")
    assert lossmith("compare", *words, *SMALL) == 0
    assert {"objectives.png", "shifts.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "training rated answers per seed (" in page
    assert "AUC of the implied reward" in page
    capsys.readouterr()
    assert lossmith("explain", "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "must be one of a classification, got one of the task 'rated.jsonl', whose models are trained on" in said


def test_compare_a_file_of_pairs(lossmith, tmp_path, capsys):
    words = ("prefs.jsonl", "--losses", "dpo", "kto", "--seeds", "1", "--model", "model", "--out", "out", *SMALL)
    assert lossmith("compare", *words) == 0
    assert "kto" in capsys.readouterr().out
    assert (tmp_path / "out" / "objectives.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "a.jsonl", "--task", "b.jsonl"), "The task is given twice, as 'a.jsonl' and as --task 'b.jsonl'"),
        (("train",), "Say what to train on"),
        (("train", "prefs.jsonl", "betas=[0.1,0.2]", "--loss", "dpo"), "One model has one beta"),
        (("train", "rated.jsonl", "--loss", "dpo", "--model", "model"), "answers are rated one by one: take an"),
        (("compare", "prefs.jsonl", "--losses", "triplet_margin", "--model", "model"), "is a metric loss"),
        (("compare", "mr", "betas=[0.1]", "--losses", "focal"), "none of focal takes a beta"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(lossmith, capsys, words, message):
    assert lossmith(*words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_task_first_and_behind_the_flag_are_one():
    assert one_task("mr", "mr", None, command="train") == ("mr", None)
    assert one_task("epochs=2", "mr", ["seeds=1"], command="train") == ("mr", ["epochs=2", "seeds=1"])
    with pytest.raises(ConfigurationError, match="--task FILE"):
        one_task(None, None, None, command="train")
