"""Studies of answers that are rated one by one: what is trained, what is measured, what is refused; a tiny model."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from lossmith.errors import ConfigurationError, DataError, LossmithError
from lossmith.evaluation.rated import RatedLogps, area_under_curve, rated_metrics
from lossmith.integrations.rated_rows import RatedRow
from lossmith.studies import RatedConfig, compare, compare_command, make_config, open_results
from lossmith.studies.comparison import open_setting
from lossmith.studies.preference_training import make_trainer
from lossmith.studies.run import run_block

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    r"ignore:The \d validation rows were cut:lossmith.errors.LossmithWarning",
    "ignore:The good completions lose",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rated(tmp_path_factory.mktemp("data") / "rated.jsonl")


@pytest.fixture
def settings(model: Path, rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    return {
        "task": str(rated),
        "model": str(model),
        "losses": ["kto"],
        "seeds": 1,
        "epochs": 3,
        "learning_rate": 1e-2,
        "max_length": 64,
        "curve_points": 2,
        "shown_answers": 2,
        "shown_tokens": 4,
        "device": "cpu",
    }


def test_compare_trains_and_measures_rated_answers(settings, tmp_path, listener):
    config = make_config(settings | {"losses": ["kto", "bco", "kto + 0.1*cross_entropy", "cross_entropy"]})
    assert isinstance(config, RatedConfig)
    study = compare(config, tmp_path / "out", listener=listener)
    assert (study.summary.finished, study.summary.metric, study.summary.baseline) == (4, "auc", "kto")
    for record in study.records:
        assert record.metrics["start_auc"] == 0.5
        assert record.metrics["shift_gap"] == pytest.approx(
            record.metrics["desirable_shift"] - record.metrics["undesirable_shift"]
        )
        assert record.config["kind"] == "rated"
        train, test = record.config["train_labels"], record.config["test_labels"]
        assert train["good"] + train["bad"] == record.config["train_texts"]
        assert sum(test.values()) == len(record.scores["log_ratio"]) == 12
        assert {"prompt", "answer"} < set(record.config["shown"][0])
        seen = record.config["rho"]
        assert (sum(map(sum, seen["counts"])) if seen else 0) == (
            0 if record.loss == "cross_entropy" else 3 * record.config["train_texts"]
        )
    taught = {record.loss: record for record in study.records}
    assert taught["kto"].metrics["auc"] > 0.9
    assert taught["kto"].metrics["desirable_shift"] > taught["kto"].metrics["undesirable_shift"]
    assert open_results(tmp_path / "out").summary.rows[1].values == study.summary.rows[1].values
    assert "rated.jsonl" in shlex.split(compare_command(config, tmp_path / "out"))[2]


def test_a_results_folder_of_rated_answers_is_read_without_its_data(settings, tmp_path):
    gone = make_config(settings).settings() | {"task": str(tmp_path / "gone.jsonl")}
    assert type(make_config(gone)) is RatedConfig


def test_metrics_by_hand():
    good = np.array([True, True, False, False, False])
    reference = RatedLogps(np.full(5, -10.0), np.array([2.0, 4.0, 1.0, 2.0, 5.0]), good)
    policy = RatedLogps(np.array([-9.0, -12.0, -10.5, -13.0, -9.0]), reference.lengths, good)
    # Log-ratios: good 1, -2; bad -0.5, -3, 1.
    metrics, scores = rated_metrics(policy, reference)
    assert scores["log_ratio"] == [1.0, -2.0, -0.5, -3.0, 1.0]
    assert metrics["auc"] == pytest.approx((2 + 0.5 + 1) / 6)
    # Per token: good 0.5, -0.5; bad -0.5, -1.5, 0.2.
    assert metrics["auc_per_token"] == pytest.approx((3 + 1 + 0.5) / 6)
    # Likelihood per token: good -4.5, -3; bad -10.5, -6.5, -1.8.
    assert metrics["policy_auc"] == pytest.approx((2 + 2) / 6)
    assert metrics["rated_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["desirable_shift"] == -0.5
    assert metrics["undesirable_shift"] == pytest.approx(-2.5 / 3)
    assert metrics["nll"] == pytest.approx(21 / 6)
    assert rated_metrics(reference, reference)[0]["auc"] == 0.5


def test_the_area_is_the_share_of_pairs_in_order():
    draw = np.random.default_rng(0)
    values, positive = draw.integers(0, 6, 40).astype(float), draw.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert area_under_curve(values, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_fine_tuning_sees_the_good_answers_alone_and_steps_have_the_batch_that_was_asked_for(settings, tmp_path):
    setting = open_setting(make_config(settings | {"losses": ["kto", "cross_entropy"], "batch_size": 6}))
    tuned = setting.prepare("cross_entropy", 0, tmp_path, lambda share: None)
    good = setting.drawn(0).rows
    assert len(tuned.train_dataset) == sum(row.label for row in good)
    batches = list(setting.prepare("kto", 0, tmp_path, lambda share: None).get_train_dataloader())
    assert {len(batch["label"]) for batch in batches[:-1]} == {6}
    assert sum(len(batch["label"]) for batch in batches) == len(good)


@pytest.mark.parametrize("text", ["dpo", "dpo + 0.1*cross_entropy", "orpo"])
def test_losses_of_pairs_are_refused_in_one_sentence(settings, text):
    with pytest.raises(ConfigurationError, match="compares the answers of a pair, and here answers are rated one by"):
        open_setting(make_config(settings | {"losses": [text]}))


def test_token_rows_that_are_rated_make_no_trainer_of_pairs(settings, tmp_path):
    config = make_config(settings)
    with pytest.raises(ConfigurationError, match="compares the answers of a pair"):
        make_trainer(
            config, torch.nn.Linear(1, 1), None, [RatedRow([5], [6], True)], text="dpo", seed=0, workspace=tmp_path,
            on_cpu=True, reference_cache=None, report=lambda share: None,
        )  # fmt: skip


def test_metrics_of_pairs_are_none_of_rated_answers(settings):
    with pytest.raises(ConfigurationError, match="`metric` must be one of auc, auc_per_token"):
        make_config(settings | {"metric": "preference_accuracy"})


def test_answers_of_one_kind_only_are_refused(settings, tmp_path):
    rows = [{"prompt": f"{i}?", "completion": f"a{i}", "label": i < 2} for i in range(30)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match="must be good and bad answers among the test rows, got 0 good and 6 bad ones"):
        open_setting(make_config(settings | {"task": str(tmp_path / "few.jsonl")}))
    with pytest.raises(LossmithError, match="good and bad answers among the training rows"):
        open_setting(make_config(settings | {"train_examples": 2, "seeds": 8}))


def test_the_same_run_twice_is_equal(settings, tmp_path):
    config = make_config(settings | {"train_examples": 24})
    runs = [run_block(open_setting(config), "kto", 2, tmp_path / "trainer") for _ in range(2)]
    assert runs[0].metrics == runs[1].metrics
    assert not math.isnan(runs[0].metrics["auc"])
