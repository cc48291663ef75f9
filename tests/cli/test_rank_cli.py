"""`lossmith rank` on results folders, and every mistake in one sentence."""

import html
import json
import math
import shlex
from pathlib import Path

import pytest

from lossmith import cli
from lossmith.evidence import EvidenceStore, RunRecord, rank_losses
from lossmith.studies import make_config, open_results
from lossmith.studies.ranking import dataset_name, rank_studies

LOSSES = ["cross_entropy", "focal", "0.4*cross_entropy + 0.6*supcon"]


@pytest.fixture
def results(tmp_path):
    """Makes a results folder without training: `results(name, task=..., shots=...)`."""

    def make(name, *, failed=(), missing=(), gain=0.02, metrics=("accuracy", "nll"), **settings):
        config = make_config({"task": "mr", "losses": LOSSES, "seeds": 3, "device": "cpu", **settings})
        folder = tmp_path / name
        with EvidenceStore(folder) as store:
            store.open_study(identity=config.identity(), config=config.settings())
            for place, loss in enumerate(config.all_losses):
                for seed in config.blocks:
                    if (loss, seed) not in missing:
                        value = 0.6 + gain * place + 0.01 * math.sin(7 * seed + 3 * place)
                        store.finish(record(loss, seed, value, metrics, failed=(loss, seed) in failed))
        return str(folder)

    return make


def record(loss, seed, value, metrics, *, failed):
    return RunRecord(
        loss=loss,
        seed=seed,
        status="failed" if failed else "finished",
        config={"attribution": "Pang and Lee."},
        metrics={} if failed else dict.fromkeys(metrics, value),
        error="It diverged." if failed else None,
    )


def rank(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["rank", *words])
    return stop.value.code


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs `lossmith rank` and returns its one sentence; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert rank(*words) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert len(captured.err.strip().splitlines()) == 1
        assert not list(tmp_path.glob("**/ranks.html"))
        return captured.err

    return run


def test_rank_writes_page_tables_and_pictures_and_says_what_it_says(results, tmp_path, capsys):
    folders = [
        results("mr"),
        results("cr", task="cr", gain=0.01),
        results("subj", task="subj", shots_total=100, gain=0.05),
    ]
    out = tmp_path / "ranks"
    assert rank(*folders, "--out", str(out)) == 0
    assert {path.name for path in out.iterdir()} == {
        "ranks.html", "ranks.csv", "ranks_datasets.csv", "ranks.md", "critical_difference.png", "differences.png",
        "average_differences.png",
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "cross_entropy: the baseline: average rank" in shown
    assert f"Report: {out / 'ranks.html'}" in shown
    assert "on subj (100 rows)" in shown
    page = (out / "ranks.html").read_text(encoding="utf-8")
    assert f"lossmith rank {folders[0]}" in page
    assert "Pang and Lee." in page
    places = [tmp_path / name for name in ("mr", "cr", "subj")]
    names = ("mr", "cr", "subj (100 rows)")
    summaries = {name: open_results(place).summary for name, place in zip(names, places, strict=True)}
    assert rank_studies(places).ranking == rank_losses(summaries)


def test_another_metric_is_ranked_on_request(results, tmp_path):
    folders = [results("mr"), results("cr", task="cr")]
    found = rank_studies([tmp_path / "mr", tmp_path / "cr"], "nll")
    assert found.ranking.metric == "nll"
    assert found.ranking.rows[0].average_rank == 1.0  # the lowest value, which is best here
    assert rank(*folders, "--metric", "nll", "--out", str(tmp_path / "out")) == 0


def test_what_weakens_a_ranking_is_said(results, tmp_path):
    results("a", shots_total=20)
    results("b", shots_total=100)
    results("c", task="cr", epochs=3)
    notices = rank_studies([tmp_path / name for name in "abc"]).notices
    assert notices[0].startswith("mr comes 2 times, with other numbers of shots")
    assert notices[1] == (
        "The studies differ in `epochs` too, so that a difference between data sets can come from there."
    )
    assert len(notices) == 2


def test_a_tuned_folder_is_made_by_tune_and_said_to_be_tuned(results, tmp_path):
    folders = [Path(results(name, task=name)) for name in ("mr", "cr", "subj")]
    for folder, trials in zip(folders, (20, 30), strict=False):
        study = make_config({"task": folder.name, "losses": LOSSES, "seeds": 3, "device": "cpu"}).settings()
        (folder / "tuning.json").write_text(json.dumps(study | {"trials": trials}), encoding="utf-8")
    found = rank_studies(folders)
    assert [shlex.split(command)[1:3] for command in found.commands] == [
        ["tune", "mr"],
        ["tune", "cr"],
        ["compare", "subj"],
    ]
    assert "trials=30" in shlex.split(found.commands[1])
    assert found.notices[:2] == (
        "The losses were tuned on mr, cr and not on subj, so that a difference between data sets can come from there.",
        "The studies differ in `trials` too, so that a difference between data sets can come from there.",
    )
    assert rank(*map(str, folders), "--out", str(tmp_path / "ranks")) == 0
    page = html.unescape((tmp_path / "ranks" / "ranks.html").read_text(encoding="utf-8"))
    assert all(command in page for command in found.commands)
    assert f"lossmith compare {folders[0].name} " not in page


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"task": "mr"}, "mr"),
        ({"task": "mr", "shots": 20}, "mr (20 per class)"),
        ({"task": "mr", "shots_total": 100}, "mr (100 rows)"),
        ({"task": "some/where/films.v2.csv"}, "films"),
        ({"task": "gsm8k", "train_examples": 64}, "gsm8k (64 rows)"),
    ],
)
def test_data_sets_are_named_by_task_and_amount(settings, name):
    assert dataset_name(make_config(settings)) == name


def test_files_of_one_name_are_told_apart_by_their_folders(results, tmp_path):
    results("a", task=str(tmp_path / "x" / "films.csv"))
    results("b", task=str(tmp_path / "y" / "films.csv"))
    names = [data.name for data in rank_studies([tmp_path / "a", tmp_path / "b"]).ranking.datasets]
    assert names == [f"films, {tmp_path / 'a'}", f"films, {tmp_path / 'b'}"]


def test_fewer_than_two_folders(refused, results):
    assert "at least 2 data sets, got 0: none." in refused()
    folder = results("mr")
    assert f"at least 2 data sets, got 1: {folder}." in refused(folder)


def test_other_losses_or_another_baseline(refused, results):
    first = results("mr")
    fewer = results("cr", task="cr", losses=LOSSES[:2])
    assert f"'{LOSSES[2]}' is on mr, not on cr" in refused(first, fewer)
    other = results("subj", task="subj", baseline="focal")
    assert "The baseline must be the same on all data sets, got 'cross_entropy' on mr, 'focal' on subj" in refused(
        first, other
    )


def test_unfinished_and_failed_runs(refused, results):
    first = results("mr")
    unfinished = results("cr", task="cr", missing={("focal", 2)})
    assert "on cr 'focal' has 2 of 3 (the study is not complete)" in refused(first, unfinished)
    failed = results("subj", task="subj", failed={("focal", 1), ("focal", 2)})
    message = refused(first, failed)
    assert "on subj 'focal' has 1 of 3 (2 failed)" in message
    assert "--retry-failed" in message


def test_one_task_and_shots_twice(refused, results):
    first, again = results("mr", shots=5), results("again", shots=5, epochs=2)
    message = refused(first, again)
    assert f"`{first}` and `{again}` hold the same task with the same number of shots (mr (5 per class))" in message
    assert "hold the same task" in refused(first, first)


def test_metrics_that_are_unknown_or_not_there_or_not_agreed(refused, results):
    first, second = results("mr"), results("cr", task="cr", metric="nll")
    assert "`metric` must be one of" in refused(first, second, "--metric", "f1")
    message = refused(first, second, "--metric", "mixture_accuracy")
    assert f"`{first}`: The finished run of 'cross_entropy', seed 0, must hold a finite 'mixture_accuracy'" in message
    assert "judged by different metrics (accuracy on mr, nll on cr): say which with --metric." in refused(first, second)


def test_a_folder_that_is_no_study(refused, results, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"`{tmp_path / 'empty'}` holds no study" in refused(results("mr"), str(tmp_path / "empty"))
    assert "`nowhere` holds no study" in refused("nowhere", "nowhere-else")


def test_tasks_that_share_texts_are_named(results):
    folders = [results(name, task=name, data="hub") for name in ("mr", "sst2")]
    ranked = rank_studies([Path(folder) for folder in folders])
    assert sum("mr and sst2 share texts" in notice for notice in ranked.notices) == 1
    others = [results(f"{name}-alone", task=name) for name in ("mr", "subj")]
    assert not any("share texts" in notice for notice in rank_studies([Path(folder) for folder in others]).notices)
