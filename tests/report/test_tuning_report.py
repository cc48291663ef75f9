"""The page of a tuning, and the numbers of its sensitivity, from runs whose outcome is a formula."""

import csv
import dataclasses
import json
import random
from statistics import fmean, median

import pytest
from report_page import parse_page

import tiny
from tuning_fakes import FakeRuns

pytest.importorskip("optuna", reason="the tune extra is not installed")

from lossmith.evidence import paired_t
from lossmith.report.tuning import tuning_answers, write_tuning
from lossmith.studies import tuning
from lossmith.studies.sensitivity import TrialPoint, importances, sensitivity
from lossmith.studies.tuning_config import make_tuning_config
from lossmith.studies.tuning_space import Parameter

JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"


UNTUNED = (
    "epochs",
    "proxy_lr_multiplier",
    *(f"soft_triple.{name}" for name in ("scale", "gamma", "centers_per_class")),
)


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    config = make_tuning_config(
        {
            "task": str(tiny.write_data(folder / "films.jsonl", count=300)),
            "model": str(tiny.write_model(folder / "tiny")),
            "losses": ["cross_entropy", JOINT],
            "seeds": 3,
            "shots": 12,
            "learning_rate": 1e-3,
            "device": "cpu",
            "trials": 8,
            "space": {"pooling": ["mean", "cls"]} | dict.fromkeys(UNTUNED),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "run_block", FakeRuns())
        return tuning.tune(config, folder / "out", listener=Silent())


@pytest.fixture(scope="module")
def found(made):
    return sensitivity(made)


@pytest.fixture(scope="module")
def folder(made, found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_tuning(folder, made, found, title="What <b>does</b> it change?", commands=["lossmith tune x"])
    return folder


def test_the_numbers_of_a_loss_are_those_of_its_trials(made, found):
    row = found[1]
    records = [record for record in made.study.records if record.loss == JOINT]
    trials = [record.config["tuned"]["trials"] for record in records]
    assert (row.loss, row.trials) == (JOINT, 24)
    assert row.pruned == sum(trial["state"] == "pruned" for block in trials for trial in block)
    finished = [[fmean(trial["folds"]) for trial in block if trial["state"] == "finished"] for block in trials]
    assert row.untuned == pytest.approx(fmean(fmean(block[0]["folds"]) for block in trials))
    assert row.middle == pytest.approx(fmean(map(median, finished)))
    assert row.best == pytest.approx(fmean(map(max, finished)))
    assert row.changed == sum(record.config["tuned"]["trial"] > 0 for record in records)
    before = [record.metrics["accuracy"] for record in made.untuned.records if record.loss == JOINT]
    assert row.gain == paired_t(before, [record.metrics["accuracy"] for record in records])
    assert row.gain.difference > 0
    assert len(row.points) == 24
    assert sum(point.chosen for point in row.points) == 3
    assert sum(not point.finished for point in row.points) == row.pruned
    assert [point.gain for point in row.points if point.values == trials[0][0]["values"]] == [0, 0, 0]


def test_the_learning_rate_is_what_matters_here(found):
    for row in found:
        shares = {part.name: part.importance for part in row.parameters}
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.__getitem__) == "learning_rate"
        for part in row.parameters:
            assert part.low <= part.high
            assert set(part.chosen) == {0, 1, 2}


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_importance_tells_what_matters_from_what_does_not(higher_is_better):
    draw = random.Random(3)
    space = (
        Parameter(name="rate", untuned=0.5, low=0, high=1),
        Parameter(name="idle", untuned=0.5, low=0, high=1),
        Parameter(name="word", untuned="a", choices=("a", "b")),
    )
    points = []
    for _ in range(60):
        values = {"rate": draw.random(), "idle": draw.random(), "word": draw.choice("ab")}
        gain = (0.1 - abs(values["rate"] - 0.8)) * (1 if higher_is_better else -1)
        points.append(TrialPoint(seed=0, values=values, gain=gain, finished=True, chosen=False))
    shares = importances(points, space, higher_is_better=higher_is_better)
    assert shares["rate"] > 0.8
    assert importances(points[:9], space, higher_is_better=higher_is_better) is None
    assert importances([points[0]] * 20, space, higher_is_better=higher_is_better) is None


def test_the_page_holds_all_it_shows_and_names_every_loss_and_parameter(folder, found, made):
    text = (folder / "tune.html").read_text(encoding="utf-8")
    page = parse_page(text)
    assert page.text("h1") == "What <b>does</b> it change?"
    assert not [element for element in page.all("link") if element.get("href") != "data:,"]
    assert not page.all("img")
    assert all("src" not in script for script in page.all("script"))
    links = {value for _, element in page.elements for key, value in element.items() if key.endswith("href")}
    assert all(link.startswith(("#", "data:")) for link in links)
    assert len(page.all("svg")) == 2
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    shown = page.text()
    for row in found:
        for part in row.parameters:
            assert part.name in shown
    assert "Each tuned alike:" in shown
    assert "As written:" in shown


def test_the_files_hold_every_trial_and_every_parameter(folder, found, made):
    assert {path.name for path in folder.iterdir()} == {
        "tune.html", "sensitivity.csv", "tuning.csv", "trials.csv", "sensitivity-0.png", "sensitivity-1.png",
    }  # fmt: skip
    tables = {
        name: list(csv.DictReader((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        for name in ("sensitivity", "tuning", "trials")
    }
    assert [(row["loss"], row["parameter"]) for row in tables["sensitivity"]] == [
        (row.loss, part.name) for row in found for part in row.parameters
    ]
    assert [float(row["importance"]) for row in tables["sensitivity"]] == [
        part.importance for row in found for part in row.parameters
    ]
    assert [float(row["gain"]) for row in tables["tuning"]] == [row.gain.difference for row in found]
    assert len(tables["trials"]) == 2 * 3 * 8
    assert sum(row["chosen"] == "1" for row in tables["trials"]) == 6
    assert json.loads(tables["trials"][0]["values"])["learning_rate"] == 1e-3


def test_equal_tunings_give_equal_pages(folder, made, found, tmp_path):
    write_tuning(tmp_path, made, found, title="What <b>does</b> it change?", commands=["lossmith tune x"])
    assert (tmp_path / "tune.html").read_bytes() == (folder / "tune.html").read_bytes()


def test_the_answer_says_what_tuning_changed(made, found):
    tuned, untuned, change = tuning_answers(made, found)
    assert tuned.startswith("Each tuned alike: ")
    assert untuned.startswith("As written: ")
    assert change.startswith(("Tuning changed the test of ", "Tuning was not shown"))
    clear = dataclasses.replace(found[1], gain=paired_t([0.50, 0.52, 0.51], [0.60, 0.63, 0.61]))
    noise = dataclasses.replace(found[0], gain=paired_t([0.50, 0.52, 0.51], [0.60, 0.43, 0.51]))
    assert tuning_answers(made, [noise, clear])[2] == f"Tuning changed the test of {JOINT} (+10.3 [8.9, 11.8] points)."
    assert tuning_answers(made, [noise])[2] == "Tuning was not shown to change any loss."
