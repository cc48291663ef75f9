"""`lossmith tune` as a person uses it: real trainings of a tiny model, one after the other."""

import json
import signal
import subprocess
import sys

import pytest

import tiny
from lossmith import cli
from lossmith.evidence import EvidenceStore

pytest.importorskip("optuna", reason="the tune extra is not installed")


FOLDS = ("--inner-folds", "2")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("tiny")
    model, data = tiny.write_model(folder / "tiny"), tiny.write_data(folder / "films.jsonl")
    return [
        "tune", str(data), "--losses", "cross_entropy", "focal", "--model", str(model), "--seeds", "1", "--shots", "4",
        "--device", "cpu", "epochs=1", "batch_size=8", "space.epochs=null",
        "space.focal.gamma=[1, 3]", "space.cross_entropy.label_smoothing={low: 0, high: 0.2}",
    ]  # fmt: skip


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return int(stop.value.code or 0)


def test_tune_leaves_two_pages_and_its_records(words, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*words, *FOLDS, "--trials", "3", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "[1/2] seed 0  cross_entropy: accuracy " in shown
    assert "Each tuned alike: " in shown
    assert "3 trials over 2 folds of that seed's own training rows" in shown
    assert f"Tuning: {out / 'tune.html'}" in shown
    assert {path.name for path in out.iterdir()} >= {
        "report.html", "tune.html", "sensitivity.csv", "trials.csv", "tuning.csv", "tuning.json", "table.csv",
        "untuned",
    }  # fmt: skip
    with EvidenceStore(out, create=False) as store:
        records = store.records()
    assert [(record.loss, record.status) for record in records] == [
        ("cross_entropy", "finished"),
        ("focal", "finished"),
    ]
    for record in records:
        found = record.config["tuned"]
        assert len(found["trials"]) == 3
        assert set(found["space"]) == {
            "learning_rate",
            f"{record.loss}.{'gamma' if record.loss == 'focal' else 'label_smoothing'}",
        }
    assert {trial["values"]["focal.gamma"] for trial in records[1].config["tuned"]["trials"]} <= {1.0, 2.0, 3.0}
    settings = json.loads((out / "tuning.json").read_text(encoding="utf-8"))
    assert (settings["trials"], settings["inner_folds"]) == (3, 2)
    pages = (out / "tune.html").read_bytes(), (out / "report.html").read_bytes()
    assert "lossmith tune" in pages[1].decode()

    assert run("report", str(out)) == 0
    assert "Each tuned alike: " in capsys.readouterr().out
    assert pages == ((out / "tune.html").read_bytes(), (out / "report.html").read_bytes())


def test_an_interrupt_keeps_trials_and_the_same_command_goes_on(words, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lossmith", *words, *FOLDS, "--trials", "4", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # The second loss has begun its trials.
    assert process.stdout.readline().startswith("[1/2] seed 0  cross_entropy: accuracy ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Finished trials are kept; the same command continues" in errors
    assert "Traceback" not in errors
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are done already and are not repeated" in done.stdout
    with EvidenceStore(out, create=False) as store:
        assert [len(record.config["tuned"]["trials"]) for record in store.records()] == [4, 4]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "0"], "`trials`: input should be greater than or equal to 1, got 0"),
        (["--trials", "3", "trials=4"], "`trials` is given twice, as a flag and as 'trials=4'"),
        (["--inner-folds", "1"], "`inner_folds`: input should be greater than or equal to 2"),
        (["space.poly1.epsilon=[1]"], "no loss of this study has `poly1.epsilon` to tune"),
        (["space.learning_rate={low: 1, high: 0}"], "must have `low` < `high`, got low 1 and high 0"),
        (["inner_folds=9"], "Class 'negative' has 4 of the 8 training rows of seed 0"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_training(words, more, message, tmp_path, capsys):
    assert run(*words, *more, "--out", str(tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.glob("**/result.json"))


def test_written_answers_are_not_tuned(tmp_path, capsys):
    assert run("tune", "gsm8k", "--out", str(tmp_path / "out")) == 2
    assert "`lossmith tune` is for classification, and 'gsm8k' has written answers" in capsys.readouterr().err
