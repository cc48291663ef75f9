"""The commands on tasks whose answers a language model writes: as a person uses them, and with a person's mistakes."""

import html
import json
import shlex
from pathlib import Path

import pyarrow.parquet
import pytest
from transformers import AutoModelForCausalLM

import tiny
from lossmith import cli

# What transformers 5.23 says of PEFT's own code.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LOVASZ = "0.6*cross_entropy + 0.4*lovasz_softmax[answer]"
SMALL = ["epochs=1", "max_length=64", "max_new_tokens=12", "curve_points=1", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    return str(tiny.write_sums(tmp_path_factory.mktemp("data") / "sums"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))


def lossmith(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == code


def test_compare_writes_the_whole_report_and_a_command_that_makes_it_again(tmp_path, model, task, capsys):
    out = tmp_path / "out"
    lossmith("compare", task, "--model", model, "--losses", LOVASZ, "--seeds", "1", "--out", str(out), *SMALL)
    words = capsys.readouterr()
    assert "cross_entropy: the baseline: exact_match" in words.out
    assert "holds a number after ####" in words.out or "hold a number after ####" in words.out
    for name in ("report.html", "steps.csv", "steps.md", "outcomes.png", "learning_curves.png", "table.csv"):
        assert (out / name).stat().st_size > 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Answers side by side" in page
    again = next(line for line in page.split("Run it again")[1].splitlines() if "lossmith compare" in line)
    lossmith(*shlex.split(html.unescape(again).replace("<pre>", "").strip())[1:])
    assert "2 of 2 runs are done already" in capsys.readouterr().out


def test_train_saves_a_causal_language_model(tmp_path, model, task, capsys):
    out = tmp_path / "saved"
    lossmith("train", task, "--model", model, "--loss", LOVASZ, "--out", str(out), *SMALL)
    assert "AutoModelForCausalLM loads it" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 1000
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["metrics"]["nll"] > 0


def test_tokenize_writes_the_three_splits(tmp_path, model, task, capsys):
    lossmith("tokenize", task, "--model", model, "--out", str(tmp_path / "rows"), "max_length=64")
    assert "train.parquet: 24 rows of at most 64 tokens" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(tmp_path / "rows" / "test.parquet")
    assert table.column_names == ["input_ids", "attention_mask", "labels_position_id"]
    assert table.num_rows == 8


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["compare", "TASK", "--metric", "accuracy"], "for answers of the kind 'math', got 'accuracy'"),
        (["compare", "TASK", "--shots", "5"], "there is no setting `shots`"),
        (["compare", "TASK", "--votes", "3"], "needs a `temperature` above 0"),
        (["compare", "TASK", "--losses", "0.5*cross_entropy + 0.5*dpo"], "is a preference loss"),
        (["compare", "TASK", "--losses", "focal[steps]"], "the label scope [steps]"),
        (["compare", "openbookqa"], "data=FOLDER"),
        (["compare", "gsm8k", "--data", "no/such/folder"], "no/such/folder"),
        (["compare", "TASK", "max_length=5000"], "`max_length` must be <= 128"),
        (["compare", "TASK", "max_length=12"], "raise `max_length`"),
        (["compare", "gsm9k"], "Did you mean 'gsm8k'?"),
        (["compare", "gsm9k", "train_examples=8"], "the task is 'gsm9k'"),
        (["compare", "TASK", "train_examples=25"], "`train_examples` is 25 and 'sums' has 24 such rows"),
        (["train", "TASK", "--loss", "supcon"], "is a metric loss"),
        (["tokenize", "mr", "--out", "rows"], "has classes and no written answers"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, part, tmp_path, model, task, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [task if word == "TASK" else word for word in words]
    settings = [
        "--model",
        model,
        "--device",
        "cpu",
        "max_new_tokens=12",
        *([] if "max_length" in words[-1] else ["max_length=64"]),
    ]
    lossmith(*given, *([] if words[0] == "tokenize" else settings), code=2)
    errors = capsys.readouterr().err
    assert part in errors
    assert "Traceback" not in errors
    assert not list(Path(tmp_path).glob("**/result.json"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"target": "{worked}"}, "worked"),
        ({"kind": "sums"}, "kind"),
        ({"promt": "x"}, "promt"),
        ({"data": {"train": "train.jsonl", "test": "empty.jsonl"}}, "empty.jsonl"),
    ],
)
def test_a_task_file_with_a_mistake(change, part, tmp_path, model, capsys):
    task = tiny.write_sums(tmp_path / "own")
    (tmp_path / "own" / "empty.jsonl").write_text("", encoding="utf-8")
    task.write_text(json.dumps(json.loads(task.read_text(encoding="utf-8")) | change), encoding="utf-8")
    lossmith("compare", str(task), "--model", model, "--device", "cpu", "--out", str(tmp_path / "o"), code=2)
    assert part in capsys.readouterr().err
