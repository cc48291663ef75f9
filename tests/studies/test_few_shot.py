"""Few-shot classification: folds, draws, heads, adapters, balanced batches, and every way of inference in a record."""

import numpy as np
import pytest

import tiny
from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.evaluation.inference import INFERENCE_METHODS
from lossmith.evidence import METRICS
from lossmith.studies import compare, make_config
from lossmith.studies.asking import ask
from lossmith.studies.classification import open_classification
from lossmith.studies.draws import calibration_rows, task_of_block, trained_on
from lossmith.studies.run import run_block, train_and_test
from lossmith.tasks import load_task

JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Settings of a study of a second on 80 sentences in one file."""
    folder = tmp_path_factory.mktemp("few-shot")
    return {
        "task": str(tiny.write_data(folder / "films.jsonl")),
        "model": str(tiny.write_model(folder / "tiny")),
        "losses": ["cross_entropy"],
        "seeds": 1,
        "shots": 4,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "device": "cpu",
    }


def record_of(settings, loss="cross_entropy", seed=0, tmp_path=None):
    setting = open_classification(make_config(settings))
    return run_block(setting, loss, seed, tmp_path / "work")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"head": "pooled"},
        {"head": "pooled", "pooling": "cls"},
        {"lora": {"r": 2}},
        {"head": "pooled", "lora": {"r": 2}},
        {"pooling": "tokens"},
        {"head": "pooled", "pooling": "tokens"},
        {"sampling": "balanced"},
    ],
    ids=str,
)
def test_a_record_holds_every_way_of_inference(few, extra, tmp_path):
    record = record_of(few | extra, JOINT, tmp_path=tmp_path)
    assert record.status == "finished", record.error
    for method in INFERENCE_METHODS:
        prefix = "" if method == "head" else f"{method}_"
        for name in ("accuracy", "macro_f1", "weighted_f1", "nll"):
            assert np.isfinite(record.metrics[prefix + name])
    assert set(record.metrics) <= set(METRICS)
    assert set(record.config["temperatures"]) == set(INFERENCE_METHODS)
    for method in INFERENCE_METHODS[1:]:
        right = record.scores[f"{method}_accuracy"]
        assert len(right) == len(record.labels)
        assert np.mean(right) == pytest.approx(record.metrics[f"{method}_accuracy"])


def test_runs_repeat_bit_by_bit_with_a_pooled_head_and_adapters(few, tmp_path):
    settings = few | {"head": "pooled", "lora": {"r": 2}, "sampling": "balanced"}
    first, second = (record_of(settings, JOINT, tmp_path=tmp_path) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.curves == second.curves
    assert first.metrics != record_of(settings, JOINT, seed=1, tmp_path=tmp_path).metrics


def test_all_losses_of_a_block_begin_with_the_same_head(few, tmp_path):
    setting = open_classification(make_config(few | {"head": "pooled"}))
    trainers = [setting.prepare(text, 3, tmp_path / "work", lambda share: None) for text in ("cross_entropy", JOINT)]
    first, second = (dict(trainer.model.named_parameters()) for trainer in trainers)
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)
    other = dict(setting.prepare("cross_entropy", 4, tmp_path / "work", lambda share: None).model.named_parameters())
    assert not bool((first["classifier.weight"] == other["classifier.weight"]).all())


def test_adapters_train_nothing_but_themselves_and_the_head(few, tmp_path):
    for head in ("own", "pooled"):
        setting = open_classification(make_config(few | {"head": head, "lora": {"r": 2}}))
        trainer = setting.prepare("cross_entropy", 0, tmp_path / "work", lambda share: None)
        trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
        assert all("lora_" in name or ".modules_to_save." in name for name in trained)
        assert any("classifier.modules_to_save" in name for name in trained)
        assert any("query.lora_A" in name for name in trained)
        assert not any("classifier" in name and "lora_" in name for name in trained)


def test_folds_test_every_text_once_and_share_none_with_the_training(few):
    setting = open_classification(make_config(few | {"folds": 4, "seeds": 4}))
    tested = [[example.text for example in setting.task_of(seed).test] for seed in range(4)]
    assert sorted(text for fold in tested for text in fold) == sorted(
        example.text for split in (setting.task.train, setting.task.test) for example in split
    )
    for seed in range(4):
        assert not {example.text for example in trained_on(setting, seed)} & set(tested[seed])
    # Seed 4 comes back to the first fold with shots of its own.
    assert [example.text for example in setting.task_of(4).test] == tested[0]
    assert trained_on(setting, 4) != trained_on(setting, 0)


def test_a_cross_validation_does_not_warn_of_splits_that_it_gives_up(few, tmp_path):
    for split in ("train", "test"):
        tiny.write_data(tmp_path / f"{split}.jsonl")
    repeating = few | {"task": str(tmp_path)}
    with pytest.warns(LossmithWarning, match="test rows repeat a text of train"):
        setting = open_classification(make_config(repeating))
    assert any("repeat" in notice for notice in setting.described(0)["config"]["notices"])
    # A warning would be an error here.
    divided = open_classification(make_config(repeating | {"folds": 4, "seeds": 4}))
    assert not any("repeat" in notice for notice in divided.described(0)["config"]["notices"])


def test_a_record_names_its_fold_and_a_partial_validation_says_so(few, tmp_path, listener):
    study = compare(make_config(few | {"folds": 4, "seeds": [1, 2]}), tmp_path / "out", listener=listener)
    assert [record.config["fold"] for record in study.records] == [1, 2]
    assert any("Of 4 folds, 0, 3 are never tested" in notice for notice in study.notices)


def test_a_cross_validation_of_all_rows_says_that_its_interval_is_too_narrow(few, tmp_path, listener):
    everything = {name: value for name, value in few.items() if name != "shots"}
    study = compare(make_config(everything | {"folds": 2, "seeds": 2}), tmp_path / "out", listener=listener)
    assert any("interval is too narrow" in notice for notice in study.notices)


def test_temperatures_are_fitted_on_rows_that_are_neither_trained_on_nor_tested(few):
    setting = open_classification(make_config(few | {"calibration_examples": 20}))
    held_out = calibration_rows(setting, 0)
    assert len(held_out) == 20
    drawn, tested = trained_on(setting, 0), setting.task_of(0).test
    assert not {e.text for e in held_out} & ({e.text for e in drawn} | {e.text for e in tested})


def test_without_rows_to_spare_nothing_is_calibrated(few, tmp_path):
    record = record_of(few | {"calibration_examples": 0}, tmp_path=tmp_path)
    assert record.config["temperatures"] == {}
    assert "calibrated_nll" not in record.metrics
    assert "ece" in record.metrics


def test_where_no_text_is_left_to_fit_temperatures_on_a_notice_says_so(few, tmp_path, listener):
    everything = {name: value for name, value in few.items() if name != "shots"}
    study = compare(make_config(everything | {"epochs": 1}), tmp_path / "out", listener=listener)
    assert any("nothing is calibrated" in notice for notice in study.notices)
    assert study.records[0].config["temperatures"] == {}


def test_the_first_token_of_a_model_that_reads_backwards_only_is_refused(few, tmp_path, listener):
    model = str(tiny.write_causal_model(tmp_path / "llama"))
    with pytest.raises(ConfigurationError, match=r"`pooling` cls .* sees nothing of the text behind it"):
        compare(make_config(few | {"model": model, "pooling": "cls"}), tmp_path / "out", listener=listener)
    record = record_of(
        few | {"model": model, "pooling": "last", "head": "pooled", "epochs": 1}, JOINT, tmp_path=tmp_path
    )
    assert record.status == "finished"


def test_a_draw_that_cannot_be_balanced_in_a_later_block_is_found_before_the_first(few, tmp_path, listener):
    uneven = {name: value for name, value in few.items() if name != "shots"}
    uneven |= {"shots_total": 3, "draw": "random", "sampling": "balanced", "seeds": 12}
    with pytest.raises(ConfigurationError, match=r"`sampling` balanced needs at least two classes"):
        compare(make_config(uneven), tmp_path / "out", listener=listener)
    assert listener.began == []


def test_test_examples_cut_the_test_alike_for_all_blocks(few):
    setting = open_classification(make_config(few | {"test_examples": 5, "seeds": 2}))
    assert len(setting.task_of(0).test) == 5
    assert setting.task_of(0).test == setting.task_of(1).test
    assert set(setting.task_of(0).test) <= set(setting.task.test)


def test_fewer_test_texts_than_asked_for_are_told(few):
    said = "Asked for 60 test texts (`test_examples`), there are 16"
    with pytest.warns(LossmithWarning) as caught:
        setting = open_classification(make_config(few | {"test_examples": 60}))
    assert [str(one.message) for one in caught if "test texts" in str(one.message)] == [
        f"{said}: all of them are used."
    ]
    assert [notice for notice in setting.described(0)["config"]["notices"] if notice.startswith(said)]
    exact = make_config(few | {"test_examples": 16})
    assert task_of_block(setting.task, exact, 0).warnings == setting.task.warnings
    # A shipped recipe asks for as many as the largest of its tasks has.
    cr = load_task("cr")
    assert task_of_block(cr, make_config(few | {"task": "cr", "test_examples": 5000}), 0).warnings == cr.warnings


def test_a_random_draw_may_be_uneven_and_stays_the_same_for_all_losses(few):
    setting = open_classification(
        make_config({k: v for k, v in few.items() if k != "shots"} | {"shots_total": 8, "draw": "random"})
    )
    draws = [[example.label for example in trained_on(setting, seed)] for seed in range(12)]
    assert any(sum(labels) != 4 for labels in draws)
    assert trained_on(setting, 0) == trained_on(setting, 0)


def test_a_metric_loss_alone_may_be_judged_by_neighbours_and_not_by_an_untrained_head(few, tmp_path, listener):
    alone = few | {"losses": ["supcon"], "baseline": "supcon", "batch_size": 8}
    with pytest.raises(ConfigurationError, match=r"never reads the logits.*neighbours_accuracy"):
        compare(make_config(alone), tmp_path / "out", listener=listener)
    study = compare(make_config(alone | {"metric": "neighbours_accuracy"}), tmp_path / "out", listener=listener)
    assert study.summary.finished == 1


def test_a_study_decided_by_another_way_of_inference_compares_that(few, tmp_path, listener):
    config = make_config(few | {"losses": [JOINT], "seeds": 2, "metric": "mixture_accuracy"})
    study = compare(config, tmp_path / "out", listener=listener)
    row = study.summary.rows[1]
    joint = [record for record in study.records if record.loss == row.loss]
    assert row.values == {record.seed: record.metrics["mixture_accuracy"] for record in joint}
    assert len(joint) == 2
    assert row.bootstrap is not None


def test_the_proxies_of_the_loss_are_asked_and_class_means_where_it_owns_none(few, tmp_path):
    setting = open_classification(make_config(few))
    for text, own in ((JOINT, True), ("cross_entropy", False)):
        _, trainer = train_and_test(setting, text, 0, tmp_path / "work")
        before = ask(setting, trainer, 0, lambda share: None).test.proxies
        if own:
            proxies = next(value for name, value in trainer.loss.named_parameters() if name.endswith("proxies"))
            proxies.data.neg_()
        else:
            assert not any(True for _ in trainer.loss.parameters())
        after = ask(setting, trainer, 0, lambda share: None).test.proxies
        assert bool((before == after).all()) is not own


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"folds": 1}, "`folds`"),
        ({"metric": "mixture_ece"}, "`metric` must be one of accuracy, macro_f1.*got 'mixture_ece'"),
        ({"draw": "random"}, "`draw` random needs `shots_total`"),
        ({"shots": 200}, "has .* rows to train on .* 200 shots per class are wanted"),
        ({"folds": 60}, "fold"),
        (
            {"sampling": "balanced", "samples_per_class": 3},
            "`samples_per_class` must be at most half of `batch_size`, 4",
        ),
        ({"lora": {"r": 2, "target_modules": ["no_such"]}}, "`lora` settings are refused"),
        ({"mixture": 1.5}, "`mixture`"),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_sentence_before_any_training(few, extra, sentence, tmp_path, listener):
    with pytest.raises((ConfigurationError, DataError), match=sentence) as caught:
        compare(make_config(few | extra), tmp_path / "out", listener=listener)
    assert "\n" not in str(caught.value)
    assert listener.began == []
