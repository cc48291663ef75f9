"""A tuning is nested, gives every loss the same budget, tests the best once, and goes on after any stop."""

import dataclasses

import pytest

import tiny
from tuning_fakes import FakeRuns, quality

pytest.importorskip("optuna", reason="the tune extra is not installed")

from lossmith.errors import ConfigurationError, DataError, EvidenceError
from lossmith.evidence import VOLATILE_FIELDS, EvidenceStore
from lossmith.studies import compare, open_results, tuning
from lossmith.studies.comparison import open_setting
from lossmith.studies.draws import trained_on
from lossmith.studies.tuning import is_tuning, open_tuning, tune
from lossmith.studies.tuning_config import make_tuning_config
from lossmith.studies.tuning_folds import inner_folds, inner_setting

JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "films.jsonl", count=300)


@pytest.fixture
def tuned_settings(settings, films):
    return settings | {"task": str(films), "trials": 5, "space": {"epochs": None}}


@pytest.fixture
def fake(monkeypatch):
    runs = FakeRuns()
    monkeypatch.setattr(tuning, "run_block", runs)
    return runs


@pytest.fixture
def tuning_listener(listener):
    listener.trials = []
    listener.trial_began = lambda number, trials: None
    listener.trial_ended = lambda number, trial: listener.trials.append((listener.began[-1], number, trial.state))
    return listener


def rows(study):
    return [
        {name: value for name, value in record.to_dict().items() if name not in VOLATILE_FIELDS}
        for record in study.records
    ]


def without_times(record):
    found = record["config"].pop("tuned")
    found.pop("seconds")
    for trial in found["trials"]:
        trial.pop("seconds")
    return record | {"tuned": found}


def test_no_row_but_the_drawn_ones_of_a_block_enters_its_search(tuned_settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(tuned_settings | {"seeds": 1})
    tune(config, tmp_path / "out", listener=tuning_listener)
    setting = open_setting(config.study)
    drawn, test = trained_on(setting, 0), setting.task.test
    assert len(drawn) == 16
    inner = [run["setting"] for run in fake.seen if run["setting"].task.test != test]
    outer = [run for run in fake.seen if run["setting"].task.test == test]
    assert len(inner) >= 2 * (5 * 3 - 2 * 2)
    for study in inner:
        held_out, train = study.task.test, trained_on(study, 0)
        assert sorted(map(str, [*train, *held_out])) == sorted(map(str, drawn))
        assert study.task.validation == ()
        assert study.config.calibration_examples == study.config.curve_examples == 0
    # Two tests of each loss: as written, and with the best.
    assert [run["text"] for run in outer].count("cross_entropy") >= 1
    assert len(outer) <= 4


def test_poisoned_test_and_undrawn_rows_change_no_trial(settings, tiny_data, tuning_listener, tmp_path, monkeypatch):
    config = make_tuning_config(
        settings | {"losses": ["cross_entropy"], "seeds": 1, "shots": 4, "trials": 2, "inner_folds": 2}
    )

    def poisoned(study_config):
        setting = open_setting(study_config)
        drawn = set(trained_on(setting, 0))
        poison = dataclasses.replace(setting.task.test[0], text="good bad", label=0)
        train = tuple(row if row in drawn else dataclasses.replace(row, text="grim") for row in setting.task.train)
        task = dataclasses.replace(setting.task, train=train, test=(poison,) * 7, validation=(poison,) * 5)
        return dataclasses.replace(setting, task=task)

    clean = tune(config, tmp_path / "clean", listener=tuning_listener)
    monkeypatch.setattr(tuning, "open_setting", poisoned)
    dirty = tune(config, tmp_path / "dirty", listener=tuning_listener)
    [one], [other] = rows(clean.study), rows(dirty.study)
    assert len(one["labels"]) > len(other["labels"]) == 7
    one, other = without_times(one)["tuned"], without_times(other)["tuned"]
    assert one == other
    assert [len(trial["folds"]) for trial in one["trials"]] == [2, 2]


def test_every_loss_gets_the_same_trials_the_first_as_written(tuned_settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(tuned_settings | {"trials": 7})
    study = tune(config, tmp_path / "out", listener=tuning_listener).study
    assert [(record.loss, record.seed) for record in study.records] == [
        (loss, seed) for loss in (JOINT, "cross_entropy") for seed in (0, 1)
    ]
    for record in study.records:
        trials = record.config["tuned"]["trials"]
        assert len(trials) == 7
        assert trials[0]["values"]["learning_rate"] == 1e-3
        assert trials[0]["values"] == {part.name: part.untuned for part in config.spaces[record.loss]}
    assert [number for run, number, _ in tuning_listener.trials if run == (JOINT, 1)] == list(range(7))
    first = next(run for run in fake.seen if run["text"] == JOINT)
    assert first["setting"].config.learning_rate == 1e-3


def test_the_best_trial_is_trained_on_all_rows_and_tested_under_the_name_of_its_loss(
    tuned_settings, fake, tuning_listener, tmp_path
):
    config = make_tuning_config(tuned_settings | {"trials": 8})
    result = tune(config, tmp_path / "out", listener=tuning_listener)
    changed = 0
    for record in result.study.records:
        found = record.config["tuned"]
        finished = {place: sum(t["folds"]) for place, t in enumerate(found["trials"]) if t["state"] == "finished"}
        assert finished[found["trial"]] == max(finished.values())
        assert found["values"] == found["trials"][found["trial"]]["values"]
        if found["trial"]:
            changed += 1
            assert record.config["learning_rate"] == float(f"{found['values']['learning_rate']:.4g}")
            last = [run for run in fake.seen if run["text"] == found["loss"] and run["seed"] == record.seed][-1]
            assert trained_on(last["setting"], record.seed) == trained_on(open_setting(config.study), record.seed)
            expected = quality(last["setting"].config, found["loss"], record.seed)
            assert record.metrics["accuracy"] == round(60 * expected) / 60
    assert changed >= 3
    assert result.study.summary.finished == result.untuned.summary.finished == 4
    assert [record.config["learning_rate"] for record in result.untuned.records] == [1e-3] * 4


def test_where_nothing_beats_the_written_setting_its_own_run_is_the_result(
    tuned_settings, fake, tuning_listener, tmp_path
):
    settings = tuned_settings | {"learning_rate": 3e-3, "losses": ["dft"], "baseline": "dft", "seeds": 1}
    space = {"learning_rate": [1e-5, 1e-6], "epochs": None}
    result = tune(make_tuning_config(settings | {"space": space}), tmp_path / "out", listener=tuning_listener)
    [record], [plain] = result.study.records, result.untuned.records
    assert record.config.pop("tuned")["trial"] == 0
    assert record == plain
    outer = [run for run in fake.seen if len(run["setting"].task.test) == 60]
    assert len(outer) == 1


def test_a_stopped_tuning_goes_on_to_the_same_records(tuned_settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(tuned_settings)
    calm = tune(config, tmp_path / "calm", listener=tuning_listener)
    whole, stops = len(fake.seen), 0
    while True:
        fake.seen.clear()
        # A third of all runs each: one in the middle of a trial among them.
        fake.stop_after = whole // 3
        try:
            again = tune(config, tmp_path / "stopped", listener=tuning_listener)
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    assert stops >= 2
    assert list(map(without_times, rows(again.study))) == list(map(without_times, rows(calm.study)))
    assert rows(again.untuned) == rows(calm.untuned)
    fake.seen.clear()
    tune(config, tmp_path / "stopped", listener=tuning_listener)
    assert fake.seen == []
    assert not list((tmp_path / "stopped").glob("**/inner"))


def test_losses_and_seeds_may_be_added_but_another_budget_is_another_study(
    tuned_settings, fake, tuning_listener, tmp_path
):
    settings = tuned_settings | {"trials": 2, "seeds": 1, "losses": ["cross_entropy"]}
    tune(make_tuning_config(settings), tmp_path / "out", listener=tuning_listener)
    more = make_tuning_config(settings | {"losses": ["cross_entropy", "focal"], "seeds": 2})
    assert len(tune(more, tmp_path / "out", listener=tuning_listener).study.records) == 4
    for changed in ({"trials": 3}, {"inner_folds": 2}, {"inner_metric": "nll"}, {"space": {}}):
        with pytest.raises(EvidenceError, match=r"`tuning\..*choose another --out"):
            tune(make_tuning_config(settings | changed), tmp_path / "out", listener=tuning_listener)
    with pytest.raises(EvidenceError, match="holds a study with other settings"):
        compare(more.study, tmp_path / "out", listener=tuning_listener)


def test_a_folder_of_a_comparison_is_refused(tuned_settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(tuned_settings | {"seeds": 1, "losses": ["cross_entropy"]})
    compare(config.study, tmp_path / "out", listener=tuning_listener)
    with pytest.raises(EvidenceError, match="holds a study with other settings"):
        tune(config, tmp_path / "out", listener=tuning_listener)
    assert not is_tuning(tmp_path / "out")
    with pytest.raises(EvidenceError, match="holds no tuning"):
        open_tuning(tmp_path / "out")


def test_a_results_folder_is_read_without_training(tuned_settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(tuned_settings | {"trials": 2})
    made = tune(config, tmp_path / "out", listener=tuning_listener)
    read = open_tuning(tmp_path / "out")
    assert read.config == config
    assert read.study == made.study
    assert read.untuned == made.untuned
    # Each is a comparison like any other, too.
    assert open_results(tmp_path / "out").summary == made.study.summary
    assert open_results(tmp_path / "out" / "untuned").summary == made.untuned.summary


def test_a_loss_that_never_trains_is_a_failed_run_and_the_others_go_on(tuned_settings, fake, tuning_listener, tmp_path):
    fake.fails = "focal"
    config = make_tuning_config(tuned_settings | {"trials": 2, "seeds": 1, "losses": ["focal", "cross_entropy"]})
    result = tune(config, tmp_path / "out", listener=tuning_listener)
    failed = next(record for record in result.study.records if record.loss == "focal")
    assert failed.status == "failed"
    assert failed.error == "None of 2 trials finished: training was not finite in any of them."
    assert [trial["state"] for trial in failed.config["tuned"]["trials"]] == ["failed", "failed"]
    assert (result.study.summary.finished, result.study.summary.failed) == (1, 1)
    fake.fails = ""
    fake.seen.clear()
    retried = tune(config, tmp_path / "out", listener=tuning_listener, retry_failed=True)
    assert retried.untuned.summary.failed == 0
    assert [run["text"] for run in fake.seen] == ["focal"]


def test_a_held_run_is_left_to_its_process(tuned_settings, fake, tuning_listener, tmp_path, monkeypatch):
    config = make_tuning_config(tuned_settings | {"trials": 2, "seeds": 1, "losses": ["cross_entropy"]})
    done = tune(config, tmp_path / "done", listener=tuning_listener)
    monkeypatch.setattr("lossmith.studies.comparison.POLL_SECONDS", 0.01)
    holder = EvidenceStore(tmp_path / "out")
    claim = holder.claim("cross_entropy", 0)

    def finish_elsewhere(*pair):
        holder.begin("cross_entropy", 0)
        holder.finish(done.study.records[0])
        claim.release()

    tuning_listener.waiting = finish_elsewhere
    fake.seen.clear()
    assert tune(config, tmp_path / "out", listener=tuning_listener).study.records == done.study.records
    assert fake.seen == []


def test_folds_are_even_and_stratified_and_differ_by_block(settings, films):
    config = make_tuning_config(settings | {"task": str(films), "shots": 7}).study
    setting = open_setting(config)
    for folds in (2, 3, 4):
        parts = inner_folds(setting, 0, folds)
        assert max(len(held) for _, held in parts) - min(len(held) for _, held in parts) <= 1
        for _, held in parts:
            counts = [sum(row.label == label for row in held) for label in (0, 1)]
            assert set(counts) <= {7 // folds, -(-7 // folds)}
        assert sorted(str(row) for _, held in parts for row in held) == sorted(map(str, trained_on(setting, 0)))
    assert inner_folds(setting, 0, 3) == inner_folds(setting, 0, 3)
    assert inner_folds(setting, 0, 3) != inner_folds(setting, 1, 3)


def test_a_class_with_too_few_rows_for_the_folds_is_one_sentence(settings, fake, tuning_listener, tmp_path):
    config = make_tuning_config(settings | {"shots": 3, "inner_folds": 4})
    expected = (
        r"Class 'negative' has 3 of the 6 training rows of seed 0, and each of `inner_folds` = 4 needs one: lower"
    )
    with pytest.raises(DataError, match=expected):
        tune(config, tmp_path / "out", listener=tuning_listener)
    with pytest.raises(DataError, match="needs one: draw more shots"):
        tune(make_tuning_config(settings | {"shots": 1}), tmp_path / "out", listener=tuning_listener)
    assert fake.seen == []


def test_equal_texts_stay_on_one_side_of_an_inner_fold(settings, films):
    setting = open_setting(make_tuning_config(settings | {"task": str(films)}).study)
    doubled = dataclasses.replace(setting.task, train=tuple(row for row in setting.task.train for _ in range(2)))
    whole = setting.config.model_copy(update={"shots": None, "shots_total": None})
    for train, held_out in inner_folds(dataclasses.replace(setting, config=whole, task=doubled), 0, 3):
        assert not {row.text for row in train} & {row.text for row in held_out}
        assert len(train) + len(held_out) == len(doubled.train)


def test_inner_folds_that_cannot_be_balanced_are_refused_before_any_trial(settings, films):
    setting = open_setting(make_tuning_config(settings | {"task": str(films)}).study)
    config = setting.config.model_copy(update={"shots": 2, "sampling": "balanced"})
    with pytest.raises(ConfigurationError, match=r"`sampling` balanced needs at least two classes"):
        inner_folds(dataclasses.replace(setting, config=config), 0, 2)


def test_with_folds_a_block_tunes_on_its_own_folds_rows(settings, films):
    config = make_tuning_config(settings | {"task": str(films), "shots": None, "shots_total": 20, "folds": 4}).study
    setting = open_setting(config)
    for seed in (0, 1):
        held_out = set(setting.task_of(seed).test)
        for fold in inner_folds(setting, seed, 3):
            study = inner_setting(setting, fold)
            assert not held_out & {*study.task.train, *study.task.test}
            assert set(trained_on(study, seed)) == set(fold[0])
            assert study.task_of(seed) is study.task


def test_loggers_and_checkpoints_are_for_outer_runs(settings):
    setting = open_setting(make_tuning_config(settings).study)
    trainer = {"report_to": "tensorboard", "save_strategy": "epoch", "optim": "sgd"}
    setting = dataclasses.replace(setting, config=setting.config.model_copy(update={"trainer": trainer}))
    assert inner_setting(setting, inner_folds(setting, 0, 2)[0]).config.trainer == {"optim": "sgd"}


def test_without_optuna_the_extra_is_named(tuned_settings, tuning_listener, tmp_path, monkeypatch):
    import sys

    from lossmith.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"`optuna` is needed to tune losses .* 'lossmith\[tune\]'"):
        tune(make_tuning_config(tuned_settings), tmp_path / "out", listener=tuning_listener)
