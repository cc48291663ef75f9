"""LossTrainer over several steps: schedules, proxies, resuming, evaluation, metrics, classifiers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_cases import (
    DECODER,
    HIDDEN,
    IGNORED,
    VOCAB,
    Recorder,
    arguments,
    causal_model,
    distance,
    label_rows,
    log_entry,
    packed,
    padded,
    quick_trainers,
    ragged_rows,
    spread_out,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
)

import lossmith
import scalar_oracles
from lossmith.errors import LossmithWarning
from lossmith.integrations.pooling import pool
from lossmith.integrations.transformers import LossTrainer

ROWS = ragged_rows()
SEQUENCE = "lovasz_softmax(region='sequence')"
JOINT = "0.4*cross_entropy + 0.6*soft_triple"
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_trainers():
        yield


@pytest.fixture
def trainer_of(tmp_path: Path) -> Any:
    def make(loss: Any, model: Any = None, *, collate: Any = None, rows: Any = None, **settings: Any) -> LossTrainer:
        names = ("average", "proxy_lr_multiplier", "pooling", "impl", "eval_dataset", "callbacks", "compute_metrics")
        own = {name: settings.pop(name) for name in names if name in settings}
        folder = settings.pop("folder", tmp_path / "out")
        return LossTrainer(
            causal_model("Llama") if model is None else model,
            arguments(folder, **{"max_steps": 4, **settings}),
            train_dataset=ROWS if rows is None else rows,
            data_collator=padded() if collate is None else collate,
            loss=loss,
            **own,
        )

    return make


# Classes of texts


def classified(count: int = 8) -> list[dict[str, Any]]:
    """Texts of three classes; every class has at least two of them among any seven."""
    rows = ragged_rows([5 + 3 * (n % 4) for n in range(count)], seed=3)
    return [{**row, "labels": (0, 0, 1, 1, 0, 2, 2, 1)[n % 8]} for n, row in enumerate(rows)]


def text_batch(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows) + 1
    batch = {
        name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def bert(kind: type = BertForSequenceClassification, **settings: Any) -> Any:
    torch.manual_seed(0)
    return spread_out(kind(BertConfig(**{**BERT, **settings})), 0.1)


def texts(**settings: Any) -> dict[str, Any]:
    return {"model": bert(), "rows": classified(), "collate": text_batch, **settings}


# Schedules


@pytest.mark.parametrize(("end", "share"), [("", 0.5), (":0.5", 1.0)])
def test_a_schedule_hands_over_at_its_step(trainer_of: Any, end: str, share: float) -> None:
    """Four steps at progress 0, 1/4, 1/2 and 3/4; the hand-over begins at a half and ends with training, or at once."""
    losses = {}
    for name in (f"cross_entropy -> focal @ 0.5{end}", "cross_entropy", "focal"):
        trainer = trainer_of(name, learning_rate=1e-30)
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    scheduled, (before, *_), (after, *_) = losses.values()
    assert before != pytest.approx(after, rel=1e-3)
    third = before if end == "" else after
    assert scheduled == pytest.approx([before, before, third, (1 - share) * before + share * after], rel=1e-5)


# Proxies, checkpoints


def test_proxies_are_trained_at_a_rate_of_their_own(trainer_of: Any) -> None:
    """Regression 27."""
    trainer = trainer_of(JOINT, **texts(proxy_lr_multiplier=7.0, learning_rate=1e-3, weight_decay=0.1))
    before = [parameter.detach().clone() for parameter in trainer.loss.parameters()]
    assert [(parameter.shape[0], parameter.shape[-1]) for parameter in before] == [(3, HIDDEN)]
    trainer.create_optimizer_and_scheduler(4)
    own = {id(parameter) for parameter in trainer.loss.parameters()}
    groups = [group for group in trainer.optimizer.param_groups if any(id(p) in own for p in group["params"])]
    assert len(groups) == 1
    assert groups[0]["lr"] == pytest.approx(7e-3)
    assert groups[0]["weight_decay"] == 0
    everything = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len(own) + len(list(trainer.model.parameters()))
    trainer.train()
    for parameter, old in zip(trainer.loss.parameters(), before, strict=True):
        assert float((parameter.detach() - old).abs().max()) > 1e-3
        assert parameter.grad is None or float(parameter.grad.abs().sum()) == 0


def test_gradients_of_proxies_do_not_add_up_over_steps(trainer_of: Any) -> None:
    trainer = trainer_of("soft_triple", **texts(learning_rate=1e-30, max_steps=3))
    trainer.train()
    norms = []

    class Watched(Recorder):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            norms.append([float(p.grad.norm()) for p in self.module.parameters()])

    again = trainer_of("soft_triple", **texts(learning_rate=1e-30, max_steps=3))
    again.add_callback(Watched(again.loss))
    again.train()
    assert len(norms) == 3
    for later in norms[1:]:
        assert later == pytest.approx(norms[0], rel=1e-3)


def test_proxies_of_a_phase_to_come_have_a_gradient_of_zero(trainer_of: Any) -> None:
    """Not none: several ranks would wait for it."""
    trainer = trainer_of("cross_entropy -> soft_triple @ 0.5", **texts(max_steps=1))
    trainer.add_callback(recorder := Recorder(trainer.loss))
    trainer.train()
    assert [float(gradient.abs().sum()) for gradient in recorder.steps[0].values()] == [0.0]


CASES = {
    "language model": ("0.6*cross_entropy + 0.4*focal", {"weight_decay": 0.1}),
    "schedule": ("cross_entropy -> focal @ 0.5", {}),
    "proxies": (JOINT, None),
    "proxies and a schedule": ("cross_entropy -> 0.5*cross_entropy + 0.5*soft_triple @ 0.6", None),
    "memory": ("cross_entropy + supcon(memory_size=12)", None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*supcon.*no other row:lossmith.errors.LossmithWarning")
def test_resuming_is_bit_equal(trainer_of: Any, tmp_path: Path, name: str) -> None:
    """Regression 33: weights, and the state of the loss."""
    loss, settings = CASES[name]

    def make(**extra: Any) -> LossTrainer:
        # With dropout, in the random order of the Trainer, and a decaying learning rate.
        own = {"model": bert(hidden_dropout_prob=0.2), "rows": classified(), "collate": text_batch}
        given = own if settings is None else {"model": causal_model("Llama", attention_dropout=0.2), **settings}
        return trainer_of(
            loss,
            **given,
            max_steps=6,
            per_device_train_batch_size=3,
            train_sampling_strategy="random",
            save_strategy="steps",
            save_steps=4,
            **extra,
        )

    whole = make(folder=tmp_path / "whole")
    whole.train()
    resumed = make(folder=tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    state = whole.loss.state_dict()
    assert bool(state) == (name != "language model")
    for key, value in state.items():
        assert torch.equal(value, resumed.loss.state_dict()[key]), key
    tail = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert tail == [entry["loss"] for entry in resumed.state.log_history if "loss" in entry]
    assert not any(torch.equal(value, fresh) for value, fresh in _changed(whole, make(folder=tmp_path / "fresh")))


def _changed(trained: LossTrainer, fresh: LossTrainer) -> list[tuple[Tensor, Tensor]]:
    """Embeddings before and after, which a resumed run must not leave as they were."""
    name = next(key for key in fresh.model.state_dict() if "embed" in key and key.endswith("weight"))
    return [(trained.model.state_dict()[name], fresh.model.state_dict()[name])]


def test_what_a_saved_model_holds(trainer_of: Any, tmp_path: Path) -> None:
    trainer = trainer_of(JOINT, **texts(pooling="cls"))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "loss.safetensors")
    assert_close(saved, dict(trainer.loss.state_dict()))
    config = json.loads((tmp_path / "saved" / "lossmith.json").read_text())
    assert lossmith.loss(config["loss"], num_classes=3, embedding_dim=HIDDEN).inputs == trainer.loss.inputs
    assert config["pooling"] == "cls"
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.classifier.weight, trainer.model.classifier.weight)


def test_the_best_model_comes_back_with_its_proxies(trainer_of: Any, tmp_path: Path) -> None:
    trainer = trainer_of(
        JOINT,
        **texts(eval_dataset=classified()),
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"
    assert_close(dict(trainer.loss.state_dict()), load_file(best / "loss.safetensors"))
    last = load_file(best.parent / "checkpoint-3" / "loss.safetensors")
    assert not torch.equal(next(iter(last.values())), next(iter(trainer.loss.state_dict().values())))


@pytest.mark.filterwarnings("ignore:Moving the following")
@pytest.mark.parametrize("loss", ["focal", JOINT])
def test_a_model_that_is_made_for_each_training(tmp_path: Path, loss: str) -> None:
    """With `model_init` the Trainer makes a new model when training begins: the loss follows it, and begins anew."""
    own = {"train_dataset": ROWS, "data_collator": padded()} if loss == "focal" else {}
    own = own or {"train_dataset": classified(), "data_collator": text_batch}
    made_by = (lambda: causal_model()) if loss == "focal" else (lambda: bert())
    trainer = LossTrainer(args=arguments(tmp_path, max_steps=2), model_init=made_by, loss=loss, **own)
    runs = []
    for _ in range(2):
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    again = LossTrainer(made_by(), arguments(tmp_path, max_steps=2), loss=trainer.loss, **own)
    again.loss.load_state_dict(trainer._loss_at_start)
    again.train()
    assert runs[0] == runs[1] == [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    assert len(runs[0]) == 2


@pytest.mark.parametrize("deepspeed", [True, False])
def test_the_loss_comes_back_however_the_model_is_loaded(
    trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deepspeed: bool
) -> None:
    """DeepSpeed's branch of `Trainer` calls `_load_optimizer_and_scheduler` and no `_load_from_checkpoint`."""
    trainer, folder = trainer_of(JOINT, **texts()), tmp_path / "saved"
    trainer.save_model(str(folder))
    saved = {name: value.clone() for name, value in trainer.loss.state_dict().items()}
    with torch.no_grad():
        next(trainer.loss.parameters()).add_(1)
    trainer.create_optimizer_and_scheduler(4)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", deepspeed)
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    trainer._load_optimizer_and_scheduler(None)
    trainer._load_optimizer_and_scheduler(str(folder))
    assert all(torch.equal(value, saved[name]) for name, value in trainer.loss.state_dict().items()) is deepspeed


# Evaluation


def token_mean(function: Any, rows: Any, model: Any) -> float:
    values = [function(logits, label) for row in label_rows(model, rows) for logits, label, _ in row]
    return sum(values) / len(values)


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_evaluation_does_not_depend_on_its_batches(trainer_of: Any, layout: str) -> None:
    """Regression 6."""
    text = f"0.6*focal + 0.4*{SEQUENCE}[answer]"
    collate = packed("answer_mask") if layout == "packed" else padded(layout, "answer_mask")
    model = causal_model("Llama")
    found = label_rows(model, ROWS)
    regions = []
    for row, places in zip(ROWS, found, strict=True):
        kept = [(logits, label) for logits, label, place in places if row["answer_mask"][place + 1]]
        if kept:
            regions.append(scalar_oracles.lovasz_softmax([a for a, _ in kept], [b for _, b in kept]))
    expected = {
        "eval_loss": 0.6 * token_mean(scalar_oracles.focal, ROWS, model) + 0.4 * sum(regions) / len(regions),
        "eval_nll": token_mean(scalar_oracles.cross_entropy, ROWS, model),
        "eval_entropy": token_mean(lambda logits, _: scalar_oracles.entropy(logits), ROWS, model),
    }
    for size in (1, 3, 8):
        trainer = trainer_of(text, collate=collate, eval_dataset=ROWS, per_device_eval_batch_size=size)
        logged = trainer.evaluate()
        assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5), size


@pytest.mark.parametrize("collate", [padded(), packed()])
def test_evaluation_by_sequence(trainer_of: Any, collate: Any) -> None:
    by_row = [row for row in label_rows(causal_model("Llama"), ROWS) if row]
    means = [sum(scalar_oracles.focal(logits, label) for logits, label, _ in row) / len(row) for row in by_row]
    for size in (1, 3, 8):
        trainer = trainer_of(
            "focal", average="sequence", collate=collate, eval_dataset=ROWS, per_device_eval_batch_size=size
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(means) / len(means), rel=1e-5), size


def test_a_region_over_the_batch_is_one_item_of_each_batch(trainer_of: Any) -> None:
    for size in (1, 3):
        trainer = trainer_of("lovasz_softmax", eval_dataset=ROWS, per_device_eval_batch_size=size)
        values = []
        for start in range(0, len(ROWS), size):
            places = [p for row in label_rows(trainer.model, ROWS[start : start + size]) for p in row]
            if places:
                values.append(scalar_oracles.lovasz_softmax([p[0] for p in places], [p[1] for p in places]))
        assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(values) / len(values), rel=1e-5), size


def test_a_collator_may_make_more_rows_than_it_gets(trainer_of: Any) -> None:
    def twice(rows: list[Any]) -> dict[str, Tensor]:
        return padded()([*rows, *rows])

    trainer = trainer_of("focal", collate=twice, eval_dataset=ROWS[:5], per_device_eval_batch_size=3)
    expected = token_mean(scalar_oracles.focal, ROWS[:5], trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_several_sets_and_other_prefixes(trainer_of: Any) -> None:
    trainer = trainer_of("focal", eval_dataset={"a": ROWS[:3], "b": ROWS[4:]})
    logged = trainer.evaluate()
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[4:])):
        assert logged[f"eval_{name}_loss"] == pytest.approx(
            token_mean(scalar_oracles.focal, rows, trainer.model), rel=1e-5
        )
    predicted = trainer.predict(ROWS[:3])
    assert predicted.metrics["test_loss"] == pytest.approx(logged["eval_a_loss"], rel=1e-5)
    assert predicted.predictions is not None


def test_evaluation_while_training_leaves_its_figures_alone(trainer_of: Any) -> None:
    plain = trainer_of("focal", max_steps=2)
    plain.train()
    watched = trainer_of("focal", max_steps=2, eval_dataset=ROWS, eval_strategy="steps", eval_steps=1)
    watched.train()
    for figure in ("nll", "entropy", "loss"):
        values = [
            [entry[figure] for entry in t.state.log_history if figure in entry and "eval_loss" not in entry]
            for t in (plain, watched)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        ({"logging_steps": 3}, [3, 6]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3, 6]),
        # 5 micro-batches make steps of 2, 2 and 1.
        ({"logging_strategy": "epoch"}, [3, 6]),
        ({"logging_strategy": "epoch", "max_steps": 5, "num_train_epochs": 7}, [3, 5]),
        ({"logging_strategy": "epoch", "gradient_accumulation_steps": 5}, [1, 2]),
        ({"logging_strategy": "no"}, []),
    ],
)
def test_entropy_is_made_on_steps_that_are_logged(trainer_of: Any, settings: dict[str, Any], logged: list[int]) -> None:
    cut = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    trainer, steps = trainer_of("focal", rows=ROWS[:5], **{**cut, **settings}), set()
    add = trainer.training_figures.add

    def seen(name: str, values: Tensor) -> None:
        if name == "entropy":
            steps.add(trainer.state.global_step + 1)
        add(name, values)

    trainer.training_figures.add = seen
    trainer.train()
    assert sorted(steps) == logged
    at = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert all("entropy" in entry for entry in trainer.state.log_history if "loss" in entry)
    assert at == logged


def test_metrics_get_the_logits_where_they_are_asked_for(trainer_of: Any) -> None:
    seen: dict[str, Any] = {}

    def compute(prediction: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"accuracy": 0.5}

    trainer = trainer_of("focal", eval_dataset=ROWS[:3], compute_metrics=compute)
    logged = trainer.evaluate()
    batch = padded()(ROWS[:3])
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    counted = batch["attention_mask"].bool().numpy()
    assert_close(torch.tensor(seen["logits"][counted]), logits[batch["attention_mask"].bool()], atol=1e-5, rtol=1e-5)
    assert (seen["labels"] == batch["labels"].numpy()).all()
    assert logged["eval_accuracy"] == 0.5
    assert logged["eval_loss"] == pytest.approx(token_mean(scalar_oracles.focal, ROWS[:3], trainer.model), rel=1e-5)


def test_logits_are_not_built_where_nobody_asks(trainer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> Any:
        raise AssertionError("logits were built")

    monkeypatch.setattr(lossmith.LinearLogits, "dense", refuse)
    trainer = trainer_of(f"focal + {SEQUENCE}", eval_dataset=ROWS, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    assert "eval_loss" in log_entry(trainer, "eval_loss")


# Classifiers

METRIC = [record.name for record in lossmith.list_losses("metric")]


@pytest.mark.parametrize("text", [*METRIC, *(f"0.4*cross_entropy + 0.6*{name}" for name in METRIC)])
@pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")
def test_every_metric_loss_on_a_classifier(trainer_of: Any, text: str) -> None:
    """The loss of one batch is that of a direct call; with one text of a class, which has no positive."""
    rows = classified(6)
    trainer = trainer_of(text, **texts(rows=rows, eval_dataset=rows, max_steps=1, learning_rate=1e-30))
    batch = text_batch(rows)
    model = trainer.model.eval()
    with torch.no_grad():
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        embeddings = pool(outputs.hidden_states[-1], batch["attention_mask"], "mean")
        inputs = {"logits": outputs.logits, "embeddings": embeddings, "labels": batch["labels"]}
        expected = trainer.loss(**{name: inputs[name] for name in trainer.loss.inputs}).item()
    trainer.train()
    assert log_entry(trainer)["loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_of_a_classifier(trainer_of: Any, pooling: str) -> None:
    trainer = trainer_of("soft_triple", **texts(eval_dataset=classified(), pooling=pooling))
    batch, model = text_batch(classified()), trainer.model.eval()
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = []
    with torch.no_grad():
        for ids, length in zip(batch["input_ids"], lengths, strict=True):
            hidden = model.bert(input_ids=ids[None, :length])[0][0]
            rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
        expected = trainer.loss(torch.stack(rows), batch["labels"]).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_shares_of_the_gradient_of_a_joint_loss(trainer_of: Any) -> None:
    trainer = trainer_of(JOINT, **texts(max_steps=1, learning_rate=1e-30))
    batch, model, loss = text_batch(classified()), trainer.model.eval(), trainer.loss
    hidden = model.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    hidden = hidden.detach().requires_grad_()
    logits = model.classifier(model.bert.pooler(hidden))
    triple = next(term for term in loss.terms if "embeddings" in term.inputs)
    parts = [
        0.4 * torch.nn.functional.cross_entropy(logits, batch["labels"]),
        0.6 * triple(pool(hidden, batch["attention_mask"], "mean"), batch["labels"]),
    ]
    norms = [float(torch.autograd.grad(part, hidden, retain_graph=True)[0].norm()) for part in parts]
    trainer.train()
    log = log_entry(trainer)
    found = [log["gradient_share/cross_entropy"], log[f"gradient_share/{triple}"]]
    assert found == pytest.approx([norm / sum(norms) for norm in norms], rel=1e-3)


def test_accumulated_texts_are_one_batch(trainer_of: Any) -> None:
    """Regression 1, for losses whose items are texts."""
    found = []
    for size, parts in ((8, 1), (1, 8), (3, 3)):
        trainer = trainer_of(
            JOINT, **texts(per_device_train_batch_size=size, gradient_accumulation_steps=parts, max_steps=1)
        )
        trainer.add_callback(recorder := Recorder(trainer.model))
        trainer.train()
        found.append((recorder.steps[0], log_entry(trainer)))
    for gradient, log in found[1:]:
        assert distance(gradient, found[0][0]) < 1e-6
        assert log["loss"] == pytest.approx(found[0][1]["loss"], rel=1e-5)
        assert log["nll"] == pytest.approx(found[0][1]["nll"], rel=1e-5)


def test_in_batch_losses_accumulate_as_a_mean_over_micro_batches(trainer_of: Any) -> None:
    rows = [{**row, "labels": label} for row, label in zip(classified(8), (0, 0, 1, 1, 2, 2, 2, 2), strict=True)]
    values = []
    for part in (rows[:4], rows[4:]):
        trainer = trainer_of("supcon", **texts(rows=part, max_steps=1))
        trainer.train()
        values.append(log_entry(trainer)["loss"])
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    with pytest.warns(LossmithWarning, match="couples the items of a batch, and 2 micro-batches are not one batch"):
        both = trainer_of("supcon", **texts(rows=rows, **accumulated))
    both.train()
    assert log_entry(both)["loss"] == pytest.approx(sum(values) / 2, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*supcon.*no other row:lossmith.errors.LossmithWarning")
def test_evaluation_fills_no_memory(trainer_of: Any) -> None:
    trainer = trainer_of("supcon(memory_size=12)", **texts(eval_dataset=classified()))
    before = {name: value.clone() for name, value in trainer.loss.state_dict().items()}
    trainer.evaluate()
    assert_close(dict(trainer.loss.state_dict()), before)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in trainer.loss.state_dict().items())


def test_a_decoder_as_a_classifier(trainer_of: Any) -> None:
    torch.manual_seed(0)
    model = spread_out(LlamaForSequenceClassification(LlamaConfig(**DECODER, num_labels=3)))
    rows = classified()
    trainer = trainer_of(JOINT, model, rows=rows, collate=text_batch, eval_dataset=rows, pooling="last")
    batch = text_batch(rows)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    plain = torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
    assert trainer.evaluate()["eval_nll"] == pytest.approx(plain, rel=1e-5)
    trainer.train()
    assert "gradient_share/cross_entropy" in log_entry(trainer)


def test_classes_of_tokens_are_not_shifted(trainer_of: Any) -> None:
    rows = [{**row, "labels": [t % 3 if t != IGNORED else t for t in row["labels"]]} for row in ROWS]
    found = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = trainer_of(
            f"cross_entropy + {SEQUENCE}",
            bert(BertForTokenClassification),
            rows=rows,
            eval_dataset=rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            learning_rate=1e-30,
        )
        trainer.add_callback(recorder := Recorder(trainer.model))
        trainer.train()
        found.append((recorder.steps[0], log_entry(trainer)["loss"]))
    model = trainer.model.eval()
    values, regions = [], []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().tolist()
        places = [(a, b) for a, b in zip(logits, row["labels"], strict=True) if b != IGNORED]
        values += [scalar_oracles.cross_entropy(a, b) for a, b in places]
        if places:
            regions.append(scalar_oracles.lovasz_softmax([a for a, _ in places], [b for _, b in places]))
    expected = sum(values) / len(values) + sum(regions) / len(regions)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert [value for _, value in found] == pytest.approx([expected] * 2, rel=1e-5)
    assert distance(found[1][0], found[0][0]) < 1e-6


def test_metrics_of_a_classifier_get_its_logits_alone(trainer_of: Any) -> None:
    """Hidden states that the loss asked for are no predictions."""
    seen = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {}

    trainer_of(JOINT, **texts(eval_dataset=classified(), compute_metrics=compute)).evaluate()
    assert seen[0].shape == (8, 3)


# Columns and models


def test_columns_of_scopes_reach_the_collator(trainer_of: Any) -> None:
    """The Trainer removes columns that the model does not take; the model does not get them either."""
    from datasets import Dataset

    data = Dataset.from_list([{**row, "other": 1} for row in ROWS])
    trainer = trainer_of("cross_entropy + focal[answer]", rows=data, collate=padded("right", "answer_mask"))
    assert trainer.args.remove_unused_columns
    trainer.train()
    assert trainer.state.global_step == 4


class Renamed(LlamaForCausalLM):
    """A language model under a name of its own."""


def test_a_subclass_of_a_language_model_is_one(trainer_of: Any) -> None:
    torch.manual_seed(0)
    model = spread_out(Renamed(LlamaConfig(**DECODER)))
    trainer = trainer_of("cross_entropy", model, eval_dataset=ROWS)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        token_mean(scalar_oracles.cross_entropy, ROWS, trainer.model), rel=1e-5
    )


def test_training_lowers_the_loss(trainer_of: Any) -> None:
    trainer = trainer_of(f"0.6*cross_entropy + 0.4*{SEQUENCE}", max_steps=12, learning_rate=3e-2)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert all(math.isfinite(value) for value in losses)
