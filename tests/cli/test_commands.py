"""The commands as a person uses them, on a tiny model."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from lossmith import cli
from lossmith.studies import StudyConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LOSSES = ["cross_entropy", "0.5*cross_entropy + 0.5*soft_triple(centers_per_class=2)", "-0.1*focal + cross_entropy"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(tiny.write_data(tmp_path_factory.mktemp("data") / "films.jsonl"))


def lossmith(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory, model, data):
    folder = tmp_path_factory.mktemp("results") / "out"
    lossmith(
        "compare", data, "epochs=2", "--losses", *LOSSES, "--model", model, "--seeds", "0,4", "--shots", "6",
        "--device", "cpu", "--out", str(folder), "batch_size=6",
    )  # fmt: skip
    return folder


def test_compare_leaves_report_pictures_and_tables(results):
    assert {path.name for path in results.iterdir()} >= {
        "report.html", "table.csv", "table.md", "table.tex", "forest.png", "seeds.png", "learning_curves.png",
        "confusion.png", "evidence.sqlite",
    }  # fmt: skip
    with (results / "table.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["loss"].lstrip("'") for row in rows] == [LOSSES[0], LOSSES[1], LOSSES[2]]


def test_compare_says_table_words_and_place(results, capsys, model, data):
    lossmith("report", str(results))
    shown = capsys.readouterr().out
    assert "[95% interval]" in shown
    assert "cross_entropy: the baseline: accuracy" in shown
    assert f"Report: {results / 'report.html'}" in shown


def test_the_printed_command_makes_the_same_study(results, tmp_path, monkeypatch, capsys):
    from lossmith.studies import compare_command, open_results

    config = open_results(results).config
    words = shlex.split(compare_command(config, tmp_path / "again"))
    assert words[:2] == ["lossmith", "compare"]
    lossmith(*words[1:])
    assert open_results(tmp_path / "again").config == config
    assert open_results(tmp_path / "again").summary.rows[1].values == open_results(results).summary.rows[1].values


def test_recipe_with_overrides_equals_the_flags(results, tmp_path, model, data):
    import yaml

    from lossmith.studies import open_results

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"task": data, "model": model, "losses": LOSSES, "seeds": [0, 4], "shots": 99, "device": "cpu"}),
        encoding="utf-8",
    )
    lossmith("compare", str(recipe), "shots=6", "epochs=2", "batch_size=6", "--out", str(tmp_path / "out"))
    assert open_results(tmp_path / "out").summary.rows[1].values == open_results(results).summary.rows[1].values


def test_train_saves_what_transformers_loads(tmp_path, model, data, capsys):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lossmith.studies import make_config
    from lossmith.studies.classification import load_study_task

    folder = tmp_path / "saved"
    lossmith(
        "train", data, "--model", model, "--loss", LOSSES[1], "--shots", "6", "--seed", "3", "--device", "cpu",
        "--out", str(folder), "epochs=2",
    )  # fmt: skip
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert "Saved to" in capsys.readouterr().out
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [example.text for example in load_study_task(make_config({"task": data})).test]
    with torch.no_grad():
        logits = network(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert logits.argmax(-1).tolist() == record["predictions"]
    assert network.config.id2label == {0: "negative", 1: "positive"}
    (proxies,) = load_file(folder / "loss.safetensors").values()
    assert proxies.shape == (2, 2, 16)
    saved = json.loads((folder / "lossmith.json").read_text(encoding="utf-8"))
    assert saved["loss"] == LOSSES[1]
    assert not list(folder.glob("*.bin"))


def test_settings_lists_all_of_a_kind_with_their_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lossmith("settings", "banking77")
    shown = capsys.readouterr().out
    for name in StudyConfig.model_fields:
        assert re.search(rf"^{name}=", shown, re.M), name
    assert re.search(r'^head="own" +`own` is the head', shown, re.M)
    assert re.search(r"^lora\.r=8 +Rank\.", shown, re.M)
    lossmith("settings", "gsm8k")
    assert "votes=1" in capsys.readouterr().out


def test_schema_is_a_json_schema_of_recipes(capsys):
    lossmith("schema")
    schema = json.loads(capsys.readouterr().out)
    assert schema["anyOf"][0]["properties"]["shots"]["description"].startswith("Training texts per class")
    assert all(kind["additionalProperties"] is False for kind in schema["anyOf"])
    study, *_, tuning = (kind["properties"] for kind in schema["anyOf"])
    assert set(tuning) - set(study) == {"trials", "inner_folds", "inner_metric", "space"}
    assert all(about == {"$ref": f"#/anyOf/0/properties/{name}"} for name, about in tuning.items() if name in study)
    assert tuning["trials"]["description"].startswith("Trials of every loss in every block")
    assert {"learning_rate", "b", "soft_triple.margin"} <= set(tuning["space"]["properties"])
    # The copy that the recipes name for editors.
    assert schema == json.loads((RECIPES / "schema.json").read_text(encoding="utf-8"))


def test_every_recipe_is_valid():
    from lossmith.studies import make_config, read_recipe

    recipes = sorted(RECIPES.glob("**/*.yaml"))
    assert recipes
    assert all(make_config(read_recipe(path)) for path in recipes)


def test_recipes_of_the_papers_name_what_the_papers_leave_open():
    from lossmith.studies import read_recipe

    recipes = sorted((RECIPES / "few_shot").glob("paper*.yaml"))
    assert len(recipes) == 3
    for path in recipes:
        assert "proxy_lr_multiplier" in read_recipe(path), path
        comment = " ".join(line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
        assert "What differs" in comment, path
        assert "proxies learn at 10 times the learning rate" in comment, path


def test_losses_lists_and_shows(capsys):
    lossmith("losses")
    assert "soft_triple" in capsys.readouterr().out
    lossmith("losses", "show", "focal")
    shown = capsys.readouterr().out
    assert "1708.02002" in shown
    assert "gamma" in shown


def test_doctor(capsys):
    lossmith("doctor")
    assert "torch" in capsys.readouterr().out


def test_python_dash_m_and_help():
    done = subprocess.run([sys.executable, "-m", "lossmith", "--help"], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout
    assert done.stderr == ""


def test_losses_spread_only_up_to_the_next_option_or_setting():
    words = ["compare", "mr", "--losses", "a", "0.5*b(gamma=1)", "-c", "epochs=3", "--seeds", "2"]
    assert cli.spread_values(words) == [
        "compare", "mr", "--losses", "a", "--losses", "0.5*b(gamma=1)", "--losses", "-c", "epochs=3", "--seeds", "2",
    ]  # fmt: skip
