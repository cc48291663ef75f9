"""`lossmith predict` as a person uses it, on tiny models; every mistake is one sentence and exit code 2."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from lossmith import cli
from lossmith.evidence import EvidenceStore
from lossmith.studies import make_config, predict, train

LOSS = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"
ROWS = tiny.sentences(30, 11)


def train_tiny(folder: Path, data: Path, model: Path, **changes) -> Path:
    settings = {
        "task": str(data),
        "model": str(model),
        "losses": [LOSS],
        "baseline": LOSS,
        "seeds": [1],
        "shots": 8,
        "epochs": 8,
        "batch_size": 8,
        "learning_rate": 2e-2,
        "head": "pooled",  # whose head learns something of so little
        "device": "cpu",
    }
    train(make_config(settings | changes), folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train_tiny(folder / "saved", tiny.write_data(folder / "films.jsonl"), base)


@pytest.fixture(scope="module")
def pair_model(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("trained_pairs")
    rows = [{"a": row["text"], "b": "a film", "verdict": row["label"]} for row in tiny.sentences(40, 3)]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"text_column": "a", "text_pair_column": "b", "label_column": "verdict", "epochs": 1}
    return train_tiny(folder / "saved", data, base, **changes)


@pytest.fixture
def table(tmp_path) -> Path:
    """Thirty texts without labels, and an awkward one."""
    path = tmp_path / "new.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows([place, row["text"]] for place, row in enumerate(ROWS))
        writer.writerow([30, 'a "good", naïve\nfilm'])
    return path


@pytest.fixture
def lossmith(capsys, monkeypatch):
    """Runs a command; returns what it wrote to standard output and to standard error."""
    monkeypatch.setattr(cli, "_shown_warnings", set())

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()  # what saving a model for the test has said
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out, captured.err

    return run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


TEXTS = [*(row["text"] for row in ROWS), 'a "good", naïve\nfilm']


@pytest.mark.parametrize("method", ["head", "neighbours"])
def test_csv_on_standard_output_in_the_order_of_the_rows(lossmith, model, table, method):
    out, err = lossmith("predict", model, table, "--method", method, "--device", "cpu", "--batch-size", "7")
    assert err == ""
    rows = rows_of(out)
    assert list(rows[0]) == ["text", "label", "probability", "calibrated_probability", "abstained", "guess"]
    assert [row["text"] for row in rows] == TEXTS
    expected = predict(model, TEXTS, method=method, device="cpu")
    assert [row["label"] for row in rows] == [one.label for one in expected]
    for row, one in zip(rows, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(one.probability, rel=1e-4)
        assert float(row["calibrated_probability"]) == pytest.approx(one.calibrated_probability, rel=1e-4)
        assert row["abstained"] == "false"
    assert len({row["calibrated_probability"] for row in rows}) > 15


def test_a_threshold_empties_labels_and_says_what_it_acts_on(lossmith, model, tmp_path):
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    found = predict(model, [row["text"] for row in ROWS], method="proxies", device="cpu")
    threshold = sorted(one.calibrated_probability for one in found)[10] - 1e-6
    out, err = lossmith("predict", model, data, "--threshold", threshold, "--method", "proxies", "--device", "cpu")
    rows = rows_of(out)
    withheld = [one.calibrated_probability < threshold for one in found]
    assert sum(withheld) == 10
    assert [row["abstained"] for row in rows] == [str(value).lower() for value in withheld]
    assert [row["label"] == "" for row in rows] == withheld
    assert (
        f"20 of 30 texts are answered: the threshold {threshold:g} is on the calibrated probability of proxies" in err
    )
    right = [one.guess == row["label"] for one, row in zip(found, ROWS, strict=True)]
    answered = [value for value, held in zip(right, withheld, strict=True) if not held]
    assert f"accuracy {100 * sum(right) / 30:.1f}% of 30 labelled texts, coverage 66.7%" in err
    assert f"accuracy among the 20 answered {100 * sum(answered) / 20:.1f}%." in err


def test_labels_give_an_accuracy_and_strange_ones_a_note(lossmith, model, tmp_path):
    def errors_for(labels):
        data = tmp_path / "some.tsv"
        lines = [f"{row['text']}\t{label}\n" for row, label in zip(ROWS, labels, strict=True)]
        data.write_text("text\tgold\n" + "".join(lines), encoding="utf-8")
        return lossmith("predict", model, data, "--label-column", "gold", "--device", "cpu")[1]

    guesses = [one.guess for one in predict(model, [row["text"] for row in ROWS], device="cpu")]
    assert set(guesses) == {"negative", "positive"}
    assert errors_for(guesses) == "accuracy 100.0% of 30 labelled texts.\n"
    assert errors_for([*guesses[:20], *[""] * 10]) == "accuracy 100.0% of 20 labelled texts.\n"
    some = errors_for([*guesses[:27], *["odd"] * 3])
    assert "no classes of the model and count as wrong: got 'odd', it has 'negative', 'positive'." in some
    assert "accuracy 90.0% of 30" in some
    ids = errors_for(["0", "1"] * 15)
    assert ids == (
        "No label is a class of the model, so nothing is known of the accuracy: got '0', '1', it has 'negative', "
        "'positive'.\n"
    )


def test_names_of_labels_beside_their_numbers(lossmith, model, tmp_path):
    guesses = [one.guess for one in predict(model, [row["text"] for row in ROWS], device="cpu")]
    data = tmp_path / "numbers.csv"
    lines = [f"{row['text']},{place % 2},{name}\n" for place, (row, name) in enumerate(zip(ROWS, guesses, strict=True))]
    data.write_text("text,label,label_name\n" + "".join(lines), encoding="utf-8")
    assert lossmith("predict", model, data, "--device", "cpu")[1] == "accuracy 100.0% of 30 labelled texts.\n"


def test_files_are_written_whole(lossmith, model, table, tmp_path):
    to_screen, _ = lossmith("predict", model, table, "--device", "cpu")
    out, _ = lossmith("predict", model, table, "--device", "cpu", "--out", tmp_path / "p.csv")
    assert out == ""
    assert (tmp_path / "p.csv").read_bytes() == to_screen.encode("utf-8")
    lossmith("predict", model, table, "--threshold", "1", "--device", "cpu", "--out", tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    abstained = [row for row in rows if row["abstained"]]
    assert abstained
    assert all(row["label"] is None and row["calibrated_probability"] < 1 for row in abstained)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "p.csv", "p.jsonl"]


def test_pairs(lossmith, pair_model, tmp_path):
    data = tmp_path / "pairs.csv"
    data.write_text("a,b\ngood film,bad film\n", encoding="utf-8")
    words = ["--text-column", "a", "--text-pair-column", "b", "--device", "cpu"]
    (row,) = rows_of(lossmith("predict", pair_model, data, *words)[0])
    assert (row["text"], row["pair"]) == ("good film", "bad film")
    (expected,) = predict(pair_model, ["good film"], ["bad film"], device="cpu")
    assert float(row["probability"]) == pytest.approx(expected.probability, rel=1e-6)


def test_a_second_text_that_is_left_unread_is_told(lossmith, model, tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("text,text2\ngood film,bad film\n", encoding="utf-8")
    said = "The column 'text2' is not read: `--text-pair-column text2` makes it the second text, for a model of pairs."
    shown, told = lossmith("predict", model, path)
    assert len(rows_of(shown)) == 1
    assert said in told.splitlines()
    path.write_text("text,text2\ngood film,good\n", encoding="utf-8")
    assert "not read" not in lossmith("predict", model, path, "--label-column", "text2")[1]


def test_lines_from_standard_input(lossmith, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("good film\r\nnaïve, bad\n".encode())))
    assert [row["text"] for row in rows_of(lossmith("predict", model, "-")[0])] == ["good film", "naïve, bad"]


@pytest.mark.filterwarnings("always::lossmith.errors.LossmithWarning")
def test_a_model_of_transformers_alone_gets_a_note(lossmith, base, table, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "plain"
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    out, err = lossmith("predict", folder, table, "--threshold", "0.5", "--device", "cpu")
    assert "note:" in err
    assert "only its head can be asked, and its probabilities are not calibrated" in err
    assert "the threshold 0.5 is on the probability of head" in err
    assert {row["calibrated_probability"] for row in rows_of(out)} == {""}


def test_a_reader_that_leaves(model, table):
    words = [sys.executable, "-m", "lossmith", "predict", str(model), str(table), "--device", "cpu"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.close()
    _, errors = running.communicate()
    assert running.returncode > 0
    assert errors == b""


@pytest.fixture
def refused(lossmith, tmp_path):
    """Runs `lossmith predict` and returns its one sentence; no file may be left behind."""

    def run(*words: object) -> str:
        before = sorted(tmp_path.iterdir())
        out, err = lossmith("predict", *words, code=2)
        assert out == ""
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1
        assert sorted(tmp_path.iterdir()) == before
        return err

    return run


def test_models_that_cannot_be_asked(refused, base, table, tmp_path):
    assert "got no folder" in refused(tmp_path / "nowhere", table)
    causal = tiny.write_causal_model(tmp_path / "causal")
    assert "it is no trained classifier" in refused(causal, table)
    assert "it is no trained classifier" in refused(base, table)


def test_a_study_is_no_model(refused, table, tmp_path):
    EvidenceStore(tmp_path / "study").close()
    assert refused(tmp_path / "study", table) == (
        f"error: `{tmp_path / 'study'}` holds the results of a study, which keeps no model: `lossmith train ... "
        "--out FOLDER` saves one.\n"
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--method", "proxy"], "`method` must be one of head, proxies, mixture, neighbours, got 'proxy'."),
        (["--threshold", "0"], "`threshold` must be in (0, 1]"),
        (["--threshold", "1.5"], "`threshold` must be in (0, 1]"),
        (["--batch-size", "0"], "`batch_size` must be an integer >= 1"),
        (
            ["--text-column", "txt"],
            "has no column 'txt' (`--text-column`). Did you mean 'text'? Its columns: 'id', 'text'.",
        ),
        (["--label-column", "stars"], "has no column 'stars' (`--label-column`)"),
        (["--label-column", "text"], "`--text-column` and `--label-column` must differ, got 'text' for both."),
        (["--text-pair-column", "id"], "was trained on single texts, got pairs"),
    ],
)
def test_bad_settings(refused, model, table, words, part):
    assert part in refused(model, table, *words)


def test_files_that_cannot_be_read(refused, model, tmp_path):
    def said_of(content: str, name: str = "new.csv") -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return refused(model, tmp_path / name)

    assert "must hold at least one row" in said_of("text,label\n")
    assert "got an empty file" in said_of("")
    assert "must have a text in every row of column 'text'" in said_of("text\nfine\n''\n\" \"\n")
    assert "must be CSV, TSV, JSONL" in said_of("fine", "new.txt")
    assert "cannot be read: No such file" in refused(model, tmp_path / "none.csv")
    two = said_of("question,sentence\nwho,he\n")
    assert "two columns of texts, 'question' and 'sentence'" in two
    assert "name one of them with `--text-column`" in two


def forget_columns(model: Path, folder: Path) -> Path:
    """A copy of a model as it was saved before models remembered their columns."""
    shutil.copytree(model, folder)
    saved = json.loads((folder / "lossmith.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in saved.items() if not name.endswith("_column")}
    assert len(kept) == len(saved) - 3
    (folder / "lossmith.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def test_pairs_are_asked_for(refused, pair_model, tmp_path):
    (tmp_path / "new.csv").write_text("a,b\nx,y\n", encoding="utf-8")
    older = forget_columns(pair_model, tmp_path / "older")
    message = refused(older, tmp_path / "new.csv", "--text-column", "a")
    assert "was trained on pairs of texts, got single ones" in message
    assert "`--text-pair-column`" in message


def test_a_model_remembers_its_columns(lossmith, pair_model, tmp_path):
    lines = [f"{row['text']},a film,{row['label']}\n" for row in ROWS]
    (tmp_path / "new.csv").write_text("a,b,verdict\n" + "".join(lines), encoding="utf-8")
    named = ["--text-column", "a", "--text-pair-column", "b", "--label-column", "verdict"]
    older = forget_columns(pair_model, tmp_path / "older")
    expected = lossmith("predict", older, tmp_path / "new.csv", *named, "--device", "cpu")
    assert "of 30 labelled texts" in expected[1]
    assert lossmith("predict", pair_model, tmp_path / "new.csv", "--device", "cpu")[0] == expected[0]
    assert "of 30 labelled texts" in lossmith("predict", pair_model, tmp_path / "new.csv", "--device", "cpu")[1]


def test_a_named_column_wins_and_remembered_labels_may_be_missing(lossmith, pair_model, tmp_path):
    lines = [f"{row['text']},a film,{row['text'][::-1]}\n" for row in ROWS]
    (tmp_path / "new.csv").write_text("a,b,c\n" + "".join(lines), encoding="utf-8")
    out, err = lossmith("predict", pair_model, tmp_path / "new.csv", "--text-column", "c", "--device", "cpu")
    assert [row["text"] for row in rows_of(out)] == [row["text"][::-1] for row in ROWS]
    assert "labelled" not in err


def test_standard_input_that_cannot_be_read(refused, model, monkeypatch):
    def said_of(content: bytes, *words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return refused(model, "-", *words)

    assert "got nothing" in said_of(b"")
    assert "got an empty line 2" in said_of(b"fine\n \nbad\n")
    assert "must be UTF-8, got byte 0xff in line 2" in said_of(b"fine\n\xff\n")
    assert "`--text-column` names a column, and standard input has none" in said_of(b"fine\n", "--text-column", "a")


def test_places_that_cannot_be_written(refused, model, table, tmp_path):
    assert "must end in .csv or .jsonl" in refused(model, table, "--out", tmp_path / "p.txt")
    assert "is there already" in refused(model, table, "--out", table)
    assert "cannot be written: No such file or directory" in refused(model, table, "--out", tmp_path / "no" / "p.csv")
    assert "cannot be written" in refused(model, table, "--out", tmp_path / ("p" * 300 + ".csv"))


def test_proxies_of_a_model_with_other_classes(refused, model, table, tmp_path):
    import safetensors.torch

    folder = tmp_path / "saved"
    shutil.copytree(model, folder)
    proxies = safetensors.torch.load_file(folder / "loss.safetensors")
    grown = {name: value.repeat(2, 1, 1) for name, value in proxies.items()}
    safetensors.torch.save_file(grown, folder / "loss.safetensors")
    message = refused(folder, table, "--method", "proxies")
    assert "does not fit its model, which has 2 classes" in message
