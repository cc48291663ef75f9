"""Models of a study are trained again, compared with the records, looked into once, and never pickled."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lossmith
import tiny
from lossmith.errors import ConfigurationError, EvidenceError
from lossmith.evidence import EvidenceStore, RunRecord
from lossmith.studies import compare, make_config, open_results
from lossmith.studies import explained as module
from lossmith.studies import explained_results as results_module
from lossmith.studies.explained import explain_study
from lossmith.studies.explained_run import disputed_places, draw_sample, proxies_of
from lossmith.tasks import Example

JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"
LOOK = {"examples": 20, "attributed": 4}


class Silent(module.Unheard):
    """A listener that only remembers."""

    def __init__(self):
        self.began: list[tuple[str, int]] = []

    def study_began(self, planned: int, finished: int) -> None:
        self.planned, self.finished = planned, finished

    def run_began(self, loss: str, seed: int) -> None:
        self.began.append((loss, seed))

    def run_moved(self, share: float) -> None:
        assert 0 <= share <= 1


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("explained")
    return {
        "task": str(tiny.write_data(folder / "films.jsonl", count=120)),
        "model": str(tiny.write_model(folder / "tiny")),
        "losses": ["cross_entropy", JOINT],
        "seeds": 2,
        "shots": 8,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "device": "cpu",
        "head": "pooled",
    }


@pytest.fixture(scope="module")
def results(setup, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "out"
    compare(make_config(setup), folder, listener=Silent())
    return folder


@pytest.fixture(scope="module")
def explained(results):
    return explain_study(results, **LOOK)


@pytest.fixture
def untrained(monkeypatch):
    """Training a model again is a failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was trained again")

    monkeypatch.setattr(module, "train_and_test", refuse)


def test_every_loss_is_looked_at_with_the_same_examples_and_comes_out_as_recorded(explained, results):
    assert explained.losses == ("cross_entropy", JOINT)
    assert explained.seeds == (0, 1)
    (few,) = set(explained.notices) - set(open_results(results).notices)
    assert few.startswith("20 held-out examples are few: a decile holds some 2 of them")
    with EvidenceStore(results, create=False) as store:
        for loss in explained.losses:
            for seed in explained.seeds:
                record = store.get(loss, seed)
                rows = explained.samples[seed].rows
                assert explained.samples[seed].labels.tolist() == [record.labels[int(row)] for row in rows]
                right = np.array(record.predictions)[rows] == np.array(record.labels)[rows]
                parts = [p for p in explained.by_length.parts if (p.model, p.seed) == (loss, seed) and p.count]
                assert sum(p.count * p.accuracy for p in parts) == pytest.approx(right.sum())


def test_all_analyses_are_there_for_every_run(explained):
    runs = {(loss, seed) for loss in explained.losses for seed in explained.seeds}
    for found in (explained.geometry.runs, explained.faithfulness.rows, explained.by_own_distance.parts):
        assert {(row.model, row.seed) for row in found} == runs
    assert {(row["model"], row["seed"]) for row in explained.weights.rows} == runs
    kinds = [part.proxy_kind for part in explained.maps.maps]
    assert kinds == ["class means", "proxies"]
    assert explained.maps.maps[1].proxy_labels.tolist() == [0, 0, 1, 1]
    assert [pair.seeds for pair in explained.stability.pairs] == [(0, 1)] * 6
    assert [len(one.texts) for one in explained.attributions[JOINT].values()] == [4, 4]
    # A pooled head is a map of the embedding, so cross-entropy reaches the embedding too.
    assert any(row["place"] == "embeddings" and row["model"] == "cross_entropy" for row in explained.weights.rows)


def test_a_second_call_trains_and_attributes_nothing_and_says_the_same(explained, results, untrained, monkeypatch):
    monkeypatch.setattr(results_module, "pretrained_outputs", None)
    monkeypatch.setattr(results_module, "embedding_maps", None)
    heard = Silent()
    again = explain_study(results, **LOOK, listener=heard)
    assert (heard.planned, heard.finished, heard.began) == (4, 4, [])
    for name in (
        "geometry",
        "faithfulness",
        "stability",
        "disagreements",
        "weights",
        "calibration",
        "maps",
        "by_length",
    ):
        one, other = (getattr(value, name).frame() for value in (explained, again))
        assert one.equals(other), name
    for loss, seeds in explained.attributions.items():
        for seed, attributions in seeds.items():
            assert attributions.frame().equals(again.attributions[loss][seed].frame())


def test_nothing_kept_is_a_pickle(explained, results):
    files = [file for file in (results / "explain").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".npz", ".json"}
    for file in files:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                assert all(array.dtype.kind in "fiub" for array in arrays.values())
        else:
            json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_other_examples_are_another_look(results, untrained):
    with pytest.raises(AssertionError, match="trained again"):
        explain_study(results, examples=21, attributed=4)


def test_a_run_that_was_made_again_is_looked_at_again(explained, results, untrained):
    study = open_results(results)
    renewed = tuple(dataclasses.replace(record, finished_at="later") for record in study.records)
    with pytest.raises(AssertionError, match="trained again"):
        explain_study(dataclasses.replace(study, records=renewed), **LOOK, out=results / "explain")


def test_a_stopped_call_keeps_what_it_saw(results, tmp_path):
    class Stopping(Silent):
        def run_began(self, loss, seed):
            super().run_began(loss, seed)
            if len(self.began) == 2:
                raise KeyboardInterrupt

    stopped, going = Stopping(), Silent()
    with pytest.raises(KeyboardInterrupt):
        explain_study(results, **LOOK, seeds=1, out=tmp_path / "look", listener=stopped)
    explain_study(results, **LOOK, seeds=1, out=tmp_path / "look", listener=going)
    assert going.finished == 1
    assert going.began == stopped.began[1:]


def test_a_run_that_comes_out_differently_is_noticed(setup, tmp_path):
    folder = tmp_path / "out"
    compare(make_config(setup | {"losses": ["cross_entropy"], "seeds": 1}), folder, listener=Silent())
    with EvidenceStore(folder, create=False) as store:
        record = store.get("cross_entropy", 0)
        store.forget("cross_entropy", 0)
        turned = [1 - value for value in record.predictions[:3]] + record.predictions[3:]
        store.finish(dataclasses.replace(record, predictions=turned))
    (notice,) = [text for text in explain_study(folder, **LOOK).notices if "trained again" in text]
    assert notice.startswith("cross_entropy, seed 0: trained again, 3 test predictions differ from the recorded ones")


def test_losses_and_seeds_can_be_chosen_and_the_baseline_comes_along(results, untrained):
    found = explain_study(
        results, **LOOK, losses=["0.40*cross_entropy + 0.6*soft_triple(centers_per_class=2)"], seeds=[1]
    )
    assert (found.losses, found.seeds) == (("cross_entropy", JOINT), (1,))
    assert found.stability.pairs == ()
    assert explain_study(results, **LOOK, losses=["cross_entropy"]).disagreements.losses == ()


def test_failed_and_missing_runs_are_left_out_with_a_word(results, tmp_path, setup, untrained):
    study = open_results(results)
    records = [
        dataclasses.replace(record, status="failed") if (record.loss, record.seed) == (JOINT, 1) else record
        for record in study.records
    ]
    found = explain_study(dataclasses.replace(study, records=tuple(records)), **LOOK, out=results / "explain")
    assert f"The run of {JOINT}, seed 1, failed: it is not explained." in found.notices
    assert {(run.model, run.seed) for run in found.geometry.runs} == {
        ("cross_entropy", 0), ("cross_entropy", 1), (JOINT, 0),
    }  # fmt: skip
    alone = [record for record in study.records if record.loss == JOINT]
    with pytest.raises(EvidenceError, match="no finished run of its baseline"):
        explain_study(dataclasses.replace(study, records=tuple(alone)), **LOOK, out=results / "explain")


def test_folds_have_examples_of_their_own(setup, tmp_path):
    folder = tmp_path / "out"
    config = make_config(setup | {"folds": 2, "losses": ["cross_entropy"]})
    compare(config, folder, listener=Silent())
    found = explain_study(folder, **LOOK)
    texts = [{example.text for example in found.samples[seed].examples} for seed in (0, 1)]
    assert not texts[0] & texts[1]
    assert found.stability.pairs == ()
    assert any("fold of its own" in notice for notice in found.notices)


def test_the_first_gained_and_lost_examples_have_highlighted_tokens(setup, tmp_path):
    results = tmp_path / "out"
    # One learns and the other unlearns, so that they differ about many examples.
    changed = {"seeds": 1, "losses": ["cross_entropy", "-0.5*cross_entropy"]}
    compare(make_config(setup | changed), results, listener=Silent())
    explained = explain_study(results, **LOOK)
    one = explained.disagreements.losses[0]
    wanted = {*one.gained[0][:3], *one.lost[0][:3]}
    assert wanted - set(explained.samples[0].attributed.tolist()), (
        "the sample attributes all of them: the test would show nothing"
    )
    for loss in explained.losses:
        table = explained.highlights.texts[loss]
        assert wanted <= set(table)
        for place in wanted:
            pieces = "".join(piece for piece, _ in table[place].highlights("integrated_gradients"))
            assert pieces == explained.samples[0].examples[place].text
            assert table[place].target == explained_prediction(results, explained, loss, place)


def explained_prediction(results, explained, loss, place):
    with EvidenceStore(results, create=False) as store:
        return store.get(loss, 0).predictions[int(explained.samples[0].rows[place])]


def test_disputed_examples_are_read_off_the_records():
    test = tuple(Example(f"text {place}", place % 2) for place in range(40))
    sample = draw_sample(test, examples=20, attributed=3, seed=1)
    truth = [example.label for example in test]
    record = RunRecord(loss="cross_entropy", seed=0, status="finished", config={}, metrics={})
    turned = {int(row) for row in sample.rows[4:12]}
    wrong = [1 - label if place in turned else label for place, label in enumerate(truth)]
    records = {
        "cross_entropy": dataclasses.replace(record, predictions=wrong),
        "focal": dataclasses.replace(record, predictions=truth),
        "poly": dataclasses.replace(record, predictions=[1 - label for label in truth]),
        "short": dataclasses.replace(record, predictions=truth[:3]),
    }
    found = disputed_places(records, "cross_entropy", sample, most=2)
    known = set(sample.attributed.tolist())
    assert found["focal"] == tuple(place for place in (4, 5) if place not in known)
    assert found["poly"] == tuple(place for place in (0, 1) if place not in known)
    assert set(found["cross_entropy"]) == {*found["focal"], *found["poly"]}
    assert "short" not in found


def test_the_sample_is_seeded_and_its_attributed_rows_lie_within():
    test = tuple(range(50))
    one, same, other = (draw_sample(test, examples=20, attributed=5, seed=seed) for seed in (0, 0, 1))
    assert one.rows.tolist() == same.rows.tolist() != other.rows.tolist()
    assert len(set(one.rows.tolist())) == 20
    assert one.examples == tuple(one.rows.tolist())
    assert max(one.attributed) < 20
    everything = draw_sample(test[:7], examples=20, attributed=9, seed=0)
    assert (everything.rows.tolist(), everything.attributed.tolist()) == (list(range(7)), list(range(7)))


def test_proxies_come_flat_with_the_class_of_each():
    loss = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    assert proxies_of(loss) is None
    loss[1].proxies = torch.nn.Parameter(torch.arange(24.0).reshape(3, 2, 4))
    found = proxies_of(loss)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.vectors[3].tolist() == [12, 13, 14, 15]


def test_the_proxies_of_a_phase_that_training_has_left_are_not_drawn():
    sizes = {"num_classes": 3, "embedding_dim": 4}
    loss = lossmith.loss("0.9*cross_entropy + 0.1*soft_triple -> 0.1*cross_entropy + 0.9*proxy_anchor @ 0.3", **sizes)
    np.testing.assert_array_equal(proxies_of(loss).vectors, loss.terms[3].proxies.detach().numpy())
    assert proxies_of(lossmith.loss("soft_triple -> cross_entropy @ 0.3", **sizes)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ["focl"]}, "No objective named 'focl'"),
        ({"losses": ["focal"]}, "`losses` must name losses of the study, got 'focal'"),
        ({"seeds": [7]}, "`seeds` must be seeds of the study, 0, 1, got 7"),
        ({"seeds": 3}, "`seeds` must be from 1 to 2, the seeds of the study, got 3"),
        ({"seeds": []}, "`seeds` must be seeds of the study, 0, 1, got none"),
        ({"examples": 0}, "`examples` must be an int >= 20, got 0"),
        ({"attributed": 0}, "`attributed` must be an int >= 1, got 0"),
    ],
)
def test_mistakes_are_named_before_any_training(results, untrained, change, message):
    with pytest.raises(ValueError, match=message):
        explain_study(results, **(LOOK | change))


def test_other_folders_and_kinds_of_study_are_refused(tmp_path, untrained):
    with pytest.raises(EvidenceError, match="holds no study"):
        explain_study(tmp_path)
    config = make_config({"task": str(tiny.write_sums(tmp_path / "sums")), "model": "any"})
    study = open_study_of(config)
    with pytest.raises(ConfigurationError, match="`study` must be one of a classification"):
        explain_study(study, out=tmp_path)
    with pytest.raises(ConfigurationError, match="`out` must say where"):
        explain_study(study)


def open_study_of(config):
    """A study without runs."""
    from lossmith.evidence import summarize
    from lossmith.studies import Study

    summary = summarize(
        (), losses=config.all_losses, baseline=config.baseline, metric=config.metric, seeds=config.blocks
    )
    return Study(config, (), summary)


def test_changed_data_are_refused(setup, tmp_path, untrained):
    data = tmp_path / "films.jsonl"
    data.write_bytes(Path(setup["task"]).read_bytes())
    study = open_study_of(make_config(setup | {"task": str(data)}))
    with EvidenceStore(_results_of(setup, tmp_path, data), create=False) as store:
        study = dataclasses.replace(study, records=tuple(store.records()))
    data.write_text(data.read_text(encoding="utf-8").replace("good", "fine", 1), encoding="utf-8")
    with pytest.raises(EvidenceError, match="The data have changed since the study was made"):
        explain_study(study, **LOOK, out=tmp_path / "look")


def _results_of(setup, tmp_path, data):
    folder = tmp_path / "out"
    config = make_config(setup | {"task": str(data), "losses": ["cross_entropy"], "seeds": 1})
    compare(config, folder, listener=Silent())
    return folder


def test_a_broken_file_says_what_to_do(results, explained):
    (file, *_) = sorted((results / "explain" / "runs").rglob("*.npz"))
    before = file.read_bytes()
    file.write_bytes(b"no numbers")
    try:
        with pytest.raises(EvidenceError, match="cannot be read"):
            explain_study(results, **LOOK)
    finally:
        file.write_bytes(before)
    assert all(math.isfinite(run.purity) for run in explain_study(results, **LOOK).geometry.runs)
