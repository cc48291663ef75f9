"""A block fixes head, shots, order and dropout, for every loss alike; the same run twice is bit-identical."""

import pytest
import torch

from lossmith.evidence import VOLATILE_FIELDS
from lossmith.studies import run as runs

FOCAL = "focal"
JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"
REGION = "0.6*cross_entropy + 0.4*lovasz_softmax"
CONTRAST = "0.4*cross_entropy + 0.6*supcon"


@pytest.fixture
def run_block(tmp_path):
    return lambda setting, text, seed: runs.run_block(setting, text, seed, tmp_path / "trainer")


@pytest.fixture
def split_data(tmp_path, tiny_data):
    folder = tmp_path / "split"
    folder.mkdir()
    lines = tiny_data.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("train", lines[:40]), ("validation", lines[40:60]), ("test", lines[60:])):
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return folder


def lasting(record) -> dict:
    return {name: value for name, value in record.to_dict().items() if name not in VOLATILE_FIELDS}


@pytest.mark.parametrize("text", ["cross_entropy", JOINT, REGION, CONTRAST])
def test_the_same_run_twice_is_bit_identical(run_block, setting_of, text):
    setting = setting_of()
    torch.rand(5)  # whatever the global generators did before must not matter
    first = run_block(setting, text, 0)
    torch.rand(17)
    second = run_block(setting, text, 0)
    assert first.status == "finished"
    assert lasting(first) == lasting(second)


def test_blocks_differ_from_each_other(run_block, setting_of):
    setting = setting_of()
    first, second = run_block(setting, "cross_entropy", 0), run_block(setting, "cross_entropy", 1)
    assert first.curves["train_nll"] != second.curves["train_nll"]


def test_losses_of_one_block_see_the_same_batches_under_the_same_dropout(run_block, setting_of):
    # With a learning rate that moves no weight, the plain NLL of every step depends on nothing but the block.
    setting = setting_of(learning_rate=1e-30, weight_decay=0.0)
    reference = run_block(setting, "cross_entropy", 3).curves["train_nll"]
    assert len({value for _, value in reference}) == len(reference) > 2
    for text in (FOCAL, JOINT, REGION, CONTRAST):
        assert run_block(setting, text, 3).curves["train_nll"] == reference


def test_the_head_is_the_blocks_own(setting_of, tmp_path):
    setting = setting_of()

    def heads(text: str, seed: int):
        return setting.prepare(text, seed, tmp_path, lambda share: None).model.classifier.weight.detach().clone()

    assert torch.equal(heads("cross_entropy", 1), heads(JOINT, 1))
    assert not torch.equal(heads("cross_entropy", 1), heads("cross_entropy", 2))


def test_proxies_are_the_blocks_own(setting_of, tmp_path):
    setting = setting_of()

    def proxies(seed: int):
        state = setting.prepare(JOINT, seed, tmp_path, lambda share: None).loss.state_dict()
        return next(iter(state.values()))

    assert torch.equal(proxies(1), proxies(1))
    assert not torch.equal(proxies(1), proxies(2))


def test_training_learns_and_is_measured(run_block, setting_of):
    record = run_block(setting_of(shots=None, epochs=20, learning_rate=1e-2), "cross_entropy", 0)
    assert record.curves["train_nll"][-1][1] < record.curves["train_nll"][0][1]
    assert record.metrics["accuracy"] >= 0.8
    assert set(record.metrics) >= {"accuracy", "macro_f1", "weighted_f1", "nll"}
    assert len(record.predictions) == len(record.labels) == 16
    agreeing = sum(p == y for p, y in zip(record.predictions, record.labels, strict=True))
    assert record.metrics["accuracy"] == pytest.approx(agreeing / 16)
    assert record.train_seconds > 0
    assert record.peak_memory_mib > 0
    assert record.versions["torch"] == torch.__version__
    assert record.hardware["device"] == "cpu"


def test_a_diverging_run_is_a_failed_record_with_step_and_losses(run_block, setting_of):
    record = run_block(setting_of(learning_rate=1e30, epochs=4), "cross_entropy", 0)
    assert record.status == "failed"
    assert "not finite at step" in str(record.error)
    assert "the last losses were [" in str(record.error)
    assert record.metrics == {}


def test_validation_curves_draw_no_randomness(run_block, setting_of, split_data):
    watched = run_block(setting_of(task=str(split_data), curve_examples=10), JOINT, 0)
    unwatched = run_block(setting_of(task=str(split_data), curve_examples=0), JOINT, 0)
    assert len(watched.curves["validation_accuracy"]) == 2
    assert "validation_accuracy" not in unwatched.curves
    assert watched.predictions == unwatched.predictions
    assert watched.curves["train_nll"] == unwatched.curves["train_nll"]


def test_validation_curves_have_the_points_asked_for(run_block, setting_of, split_data):
    record = run_block(setting_of(task=str(split_data), epochs=7, curve_points=3), "focal", 0)
    # 16 shots in batches of 8: two steps an epoch; epochs 2, 5 and 7 of 7.
    assert [step for step, _ in record.curves["validation_accuracy"]] == [4.0, 10.0, 14.0]


def test_checkpoints_and_loggers_of_the_trainer_stay_in_the_workspace(run_block, setting_of, tmp_path):
    plain = run_block(setting_of(), JOINT, 0)
    assert not (tmp_path / "trainer").exists()
    kept = run_block(setting_of(trainer={"save_strategy": "epoch"}), JOINT, 0)
    assert len(list((tmp_path / "trainer").glob("checkpoint-*/loss.safetensors"))) == 2
    assert kept.predictions == plain.predictions


def test_proxies_are_not_the_heads_own_numbers(setting_of, tmp_path):
    trainer = setting_of().prepare(JOINT, 0, tmp_path, lambda share: None)
    head = trainer.model.classifier.weight.detach()
    proxies = trainer.loss.get_parameter("terms.1.proxies").detach().flatten(0, 1)
    similarity = torch.nn.functional.normalize(head, dim=-1) @ torch.nn.functional.normalize(proxies, dim=-1).T
    assert similarity.abs().max() < 0.9


def test_a_saved_classifiers_head_is_drawn_anew(setting_of, tmp_path, tiny_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(123)
    saved = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    saved.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "classifier")
    setting = setting_of(model=str(tmp_path / "classifier"))
    heads = [
        setting.prepare(FOCAL, seed, tmp_path / "w", lambda share: None).model.classifier.weight for seed in (0, 1)
    ]
    assert not torch.equal(heads[0], saved.classifier.weight)
    assert not torch.equal(heads[0], heads[1])
