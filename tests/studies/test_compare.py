"""A study runs each run once, continues where it stopped, and refuses another study's folder."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import EvidenceStore
from lossmith.studies import compare, make_config, open_results
from lossmith.studies.run import Setting


def test_every_loss_runs_on_every_seed_with_the_baseline_first(settings, tmp_path, listener):
    study = compare(make_config(settings | {"losses": ["focal"]}), tmp_path / "out", listener=listener)
    assert listener.began == [(loss, seed) for seed in (0, 1) for loss in ("cross_entropy", "focal")]
    assert (study.summary.planned, study.summary.finished, study.summary.failed) == (4, 4, 0)
    assert [row.loss for row in study.summary.rows] == ["cross_entropy", "focal"]
    results = sorted((tmp_path / "out" / "runs").glob("*/seed-*/result.json"))
    assert len(results) == 4
    assert json.loads(results[0].read_text(encoding="utf-8"))["status"] == "finished"


def test_a_second_call_repeats_nothing_and_may_add_losses_and_seeds(settings, tmp_path, listener):
    compare(make_config(settings), tmp_path / "out", listener=listener)
    listener.began.clear()
    compare(make_config(settings), tmp_path / "out", listener=listener)
    assert listener.began == []
    assert listener.finished == 4
    more = settings | {"losses": [*settings["losses"], "focal"], "seeds": 3}
    study = compare(make_config(more), tmp_path / "out", listener=listener)
    assert listener.began == [
        ("focal", 0),
        ("focal", 1),
        *((loss, 2) for loss in ("cross_entropy", settings["losses"][1], "focal")),
    ]
    assert open_results(tmp_path / "out").summary == study.summary


def test_another_configuration_is_refused_with_the_difference(settings, tmp_path, listener):
    compare(make_config(settings | {"seeds": 1}), tmp_path / "out", listener=listener)
    with pytest.raises(EvidenceError, match=r"epochs.*2.*3.*choose another --out"):
        compare(make_config(settings | {"epochs": 3}), tmp_path / "out", listener=listener)


def test_changed_data_under_the_same_name_are_another_configuration(settings, tmp_path, listener):
    data = tmp_path / "films.jsonl"
    data.write_bytes(Path(settings["task"]).read_bytes())
    here = settings | {"task": str(data), "seeds": 1}
    compare(make_config(here), tmp_path / "out", listener=listener)
    data.write_text(data.read_text(encoding="utf-8").replace("good", "fine", 1), encoding="utf-8")
    with pytest.raises(EvidenceError, match="task_fingerprint"):
        compare(make_config(here), tmp_path / "out", listener=listener)


def test_a_failed_run_does_not_stop_the_study_and_can_be_retried(settings, tmp_path, listener, monkeypatch):
    from lossmith.studies import classification as run_module
    from lossmith.studies import compare as function

    real = run_module.build_loss

    def broken(text: str, seed: int, sizes: dict[str, int]):
        module = real(text, seed, sizes)
        if text == "focal" and seed == 1:
            module.register_forward_hook(lambda module, args, output: output * float("nan"))
        return module

    monkeypatch.setattr(run_module, "build_loss", broken)
    config = make_config(settings | {"losses": ["cross_entropy", "focal"]})
    study = function(config, tmp_path / "out", listener=listener)
    assert (study.summary.finished, study.summary.failed) == (3, 1)
    failed = next(record for record in study.records if record.status == "failed")
    assert (failed.loss, failed.seed) == ("focal", 1)
    assert "not finite at step 1" in str(failed.error)
    monkeypatch.setattr(run_module, "build_loss", real)
    listener.began.clear()
    again = function(config, tmp_path / "out", listener=listener, retry_failed=True)
    assert listener.began == [("focal", 1)]
    assert again.summary.failed == 0


def test_a_run_that_another_process_holds_is_waited_for_and_not_repeated(settings, tmp_path, listener, monkeypatch):
    from lossmith.studies import compare as function

    config = make_config(settings | {"seeds": 1})
    loss = config.all_losses[1]
    done = function(config, tmp_path / "done", listener=listener)
    record = next(record for record in done.records if record.loss == loss)
    release = threading.Event()
    holder = EvidenceStore(tmp_path / "out")
    claim = holder.claim(loss, 0)
    monkeypatch.setattr("lossmith.studies.comparison.POLL_SECONDS", 0.01)

    def finish_elsewhere(*pair: object) -> None:
        if not release.is_set():
            release.set()
            holder.begin(loss, 0)
            holder.finish(record)
            claim.release()

    listener.waiting = finish_elsewhere
    listener.began.clear()
    study = function(config, tmp_path / "out", listener=listener)
    assert release.is_set()
    assert listener.began == [("cross_entropy", 0)]
    assert study.summary.finished == 2


def test_two_processes_share_the_runs(settings, tmp_path):
    words = [sys.executable, "-m", "lossmith", "compare", *command_words(settings), "--out", str(tmp_path / "out")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    with EvidenceStore(tmp_path / "out", create=False) as store:
        records = store.records()
    assert len(records) == 4
    assert all(record.attempts == 1 for record in records)


def test_an_interrupt_stops_cleanly_and_the_same_command_continues(settings, tmp_path):
    words = [sys.executable, "-m", "lossmith", "compare", *command_words(settings | {"seeds": 6})]
    words += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("[ 1/12] seed 0  cross_entropy: accuracy ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "runs are done already and are not repeated" in done.stdout
    with EvidenceStore(tmp_path / "out", create=False) as store:
        assert len(store.records()) == 12


def test_an_interrupt_that_a_destructor_swallows_is_obeyed_before_the_next_run(
    settings, tmp_path, listener, monkeypatch
):
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def ended(record):
        Swallows()

    monkeypatch.setattr(listener, "run_ended", ended)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compare(make_config(settings), tmp_path / "out", listener=listener)
    assert listener.began == [("cross_entropy", 0)]
    assert signal.getsignal(signal.SIGINT) is before


def test_settings_hold_one_device(setting_of):
    assert isinstance(setting_of(), Setting)
    assert setting_of().device.type == "cpu"


def command_words(settings: dict) -> list[str]:
    """Arguments of `lossmith compare` for a dict of settings."""
    loose = [f"{name}={settings[name]}" for name in ("epochs", "batch_size", "learning_rate")]
    flags = ["--model", settings["model"], "--seeds", str(settings["seeds"]), "--shots", str(settings["shots"])]
    return [settings["task"], *loose, *flags, "--device", settings["device"], "--losses", *settings["losses"]]
