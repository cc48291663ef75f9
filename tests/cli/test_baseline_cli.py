"""`lossmith baseline` as a person uses it, on a tiny model."""

import json
import shlex
from pathlib import Path

import pytest

import tiny
from lossmith import cli
from lossmith.studies import baseline_answers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    return str(tiny.write_sums(tmp_path_factory.mktemp("data") / "sums"))


def lossmith(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == code


def test_it_says_table_notice_and_place(model, task, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--model", model, "--task", task, "--few-shot", "2", "--max-new-tokens", "4", "--device", "cpu"]
    lossmith("baseline", *words, "--out", str(out))
    shown = capsys.readouterr().out
    assert "exact match" in shown
    assert "0.0 [0.0, 32.4]" in shown
    assert f"note: {model}: None of the 8 answers holds a number after ####" in shown
    assert f"Report: {out / 'baseline.md'}" in shown
    settings = json.loads((out / "result.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["few_shot"], settings["max_new_tokens"], settings["prompts"]) == (2, 4, "auto")
    page = (out / "baseline.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("lossmith baseline"))
    lossmith(*shlex.split(command)[1:])
    assert "0.0 [0.0, 32.4]" in capsys.readouterr().out


def test_every_flag_arrives(model, task, tmp_path):
    words = [
        "--votes", "2", "--temperature", "0.5", "--top-p", "0.8", "--no-chat", "--limit", "3", "--batch-size", "2",
        "--weights", "bfloat16", "--backend", "transformers", "--seed", "4", "--max-new-tokens", "2",
    ]  # fmt: skip
    lossmith("baseline", "--model", model, "--task", task, *words, "--device", "cpu", "--out", str(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["problems"] == 3
    assert result["settings"] == {
        "task": task, "data": "shipped", "models": [model], "few_shot": 0, "prompts": "plain", "limit": 3,
        "max_new_tokens": 2, "batch_size": 2, "votes": 2, "temperature": 0.5, "top_p": 0.8, "seed": 4,
        "weights": "bfloat16", "device": "cpu", "backend": "transformers",
    }  # fmt: skip


def test_stopping_is_one_sentence(model, task, tmp_path, capsys, monkeypatch):
    def generate(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(baseline_answers, "generate", generate)
    words = [
        "--model",
        model,
        "--task",
        task,
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    lossmith("baseline", *words, code=130)
    assert "Stopped. Finished answers are kept; the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    lossmith("baseline", *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--votes", "3"], "error: settings: `votes` = 3 needs a `temperature` above 0"),
        (["--chat"], "has no chat template: leave --chat out"),
        (["--few-shot", "99"], "`few_shot` is 99 and the training split of 'sums' has 24 problems: lower --few-shot."),
        (["--task", "gsm9k"], "error: No completion task named 'gsm9k'. Did you mean 'gsm8k'?"),
        (["--device", "gpu"], "`device`: input should be 'auto', 'cpu', 'cuda' or 'mps', got 'gpu'."),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, model, task, tmp_path, capsys):
    lossmith("baseline", "--model", model, "--task", task, "--out", str(tmp_path / "out"), *words, code=2)
    assert sentence in capsys.readouterr().err


def test_the_folder_is_named_after_the_task(model, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lossmith("baseline", "--model", model, "--task", task, "--max-new-tokens", "1", "--limit", "1", "--device", "cpu")
    assert (Path("runs") / "baseline-sums" / "baseline.md").is_file()
