"""The Trainer adapter: pooling, exact accumulation, proxies optimised, saved and restored, predictions in order."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lossmith
import tiny
from lossmith.errors import ConfigurationError, LossmithWarning
from lossmith.integrations.arguments import training_arguments
from lossmith.integrations.classification import encode, make_trainer, predict_logits
from lossmith.integrations.pooling import pool

TRIPLE = "soft_triple(centers_per_class=2)"
JOINT = f"0.4*cross_entropy + 0.6*{TRIPLE}"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.0)


@pytest.fixture
def trainer_of(model_folder, tmp_path):
    def make(
        text: str,
        *,
        batch_size: int = 8,
        accumulation: int = 1,
        rows: int = 8,
        epochs: int = 1,
        max_grad_norm: float = 1.0,
        **extra: object,
    ):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        sentences = tiny.sentences(rows, 1)
        labels = [int(row["label"] == "positive") for row in sentences]
        sizes = {"num_classes": 2, "embedding_dim": 16} if "triple" in text else {}
        arguments = training_arguments(
            {"save_strategy": "no", "report_to": "none", **extra},
            max_grad_norm=max_grad_norm,
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            learning_rate=1e-3,
            use_cpu=True,
            seed=0,
        )
        examples = encode(tokenizer, [row["text"] for row in sentences], labels, 32)
        return make_trainer(model, tokenizer, examples, arguments, loss=lossmith.loss(text, **sizes))

    return make


def test_pooling_reads_tokens_only_on_either_padding_side():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    right, left = torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 1, 1])
    mask = torch.stack([right, left])
    assert_close(pool(hidden, mask, "mean"), torch.stack([hidden[0, :3].mean(0), hidden[1, 1:].mean(0)]))
    assert_close(pool(hidden, mask, "cls"), torch.stack([hidden[0, 0], hidden[1, 1]]))
    assert_close(pool(hidden, mask, "last"), torch.stack([hidden[0, 2], hidden[1, 3]]))


@pytest.mark.parametrize("text", ["cross_entropy", "focal", JOINT])
def test_accumulated_micro_batches_train_like_one_batch(trainer_of, text):
    # Plain SGD: AdamW's first step is a sign, which would hide a wrong scale.
    whole = trainer_of(text, rows=8, batch_size=8, optim="sgd", max_grad_norm=0.0)
    parts = trainer_of(text, rows=8, batch_size=3, accumulation=3, optim="sgd", max_grad_norm=0.0)
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.train()
    parts.train()
    moved = max((value - before[name]).abs().max() for name, value in whole.model.state_dict().items())
    assert moved > 1e-6
    for name, value in whole.model.state_dict().items():
        assert_close(parts.model.state_dict()[name], value, rtol=0, atol=float(moved) * 1e-3)
    assert parts.curves["train_nll"][0][1] == pytest.approx(whole.curves["train_nll"][0][1], rel=0.05)


def test_batch_coupled_losses_warn_once_under_accumulation(trainer_of):
    with pytest.warns(LossmithWarning, match="couples the items of a batch") as warned:
        trainer_of("cross_entropy + lovasz_softmax", batch_size=4, accumulation=2).train()
    assert len([found for found in warned if found.category is LossmithWarning]) == 1


def test_proxies_learn_at_their_own_rate_without_decay(trainer_of):
    trainer = trainer_of(JOINT)
    groups = trainer.create_optimizer().param_groups
    (own,) = [group for group in groups if any(p is q for p in group["params"] for q in trainer.loss.parameters())]
    assert own["lr"] == pytest.approx(1e-2)
    assert own["weight_decay"] == 0.0
    before = [parameter.detach().clone() for parameter in trainer.loss.parameters()]
    trainer.train()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.loss.parameters(), strict=True))


@pytest.mark.parametrize("text", [JOINT, f"cross_entropy + {TRIPLE} -> {JOINT} @ 0.2"], ids=["sum", "hand_over"])
def test_a_checkpoint_keeps_the_proxies_and_resuming_restores_them(trainer_of, tmp_path, text):
    trainer = trainer_of(text, save_strategy="epoch", epochs=2)
    trainer.train()
    checkpoints = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    stored = load_file(checkpoints[0] / "loss.safetensors")
    resumed = trainer_of(text, save_strategy="epoch", epochs=2)
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    for name, value in trainer.loss.state_dict().items():
        assert not torch.equal(value, stored[name])
        assert torch.equal(resumed.loss.state_dict()[name], value)


def test_predictions_keep_the_order_and_draw_no_randomness(trainer_of):
    trainer = trainer_of("cross_entropy", rows=12)
    examples = trainer.train_dataset
    state = torch.random.get_rng_state()
    together = predict_logits(trainer.model, trainer.processing_class, examples, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    alone = torch.cat([predict_logits(trainer.model, trainer.processing_class, [row], 1) for row in examples])
    assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_loggers_get_the_logs(trainer_of):
    from transformers import TrainerCallback

    logged = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(logs)

    trainer = trainer_of("cross_entropy", batch_size=4, logging_strategy="steps", logging_steps=1)
    trainer.add_callback(Logger())
    trainer.train()
    assert sum("loss" in logs for logs in logged) == 2


def test_gradients_of_proxies_do_not_add_up_from_step_to_step(trainer_of):
    trainer = trainer_of(JOINT, batch_size=4, rows=8, epochs=2)
    trainer.train()
    assert all(parameter.grad is None for parameter in trainer.loss.parameters())


def test_a_schedule_follows_the_training_steps(trainer_of, monkeypatch):
    seen = []
    trainer = trainer_of("cross_entropy -> focal @ 0.25", rows=8, batch_size=2, epochs=1)
    set_progress = trainer.loss.set_progress
    monkeypatch.setattr(trainer.loss, "set_progress", lambda share: (seen.append(share), set_progress(share)))
    trainer.train()
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_pairs_cannot_be_counted_over_micro_batches(trainer_of):
    with pytest.raises(ConfigurationError, match=r"^`gradient_accumulation_steps` must be 1 with 'cross"):
        trainer_of("cross_entropy + nt_xent", batch_size=4, accumulation=2)
    assert trainer_of("cross_entropy + nt_xent").loss.items == ("token", "pair")
