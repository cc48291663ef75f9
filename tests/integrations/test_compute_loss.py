"""compute_loss in a plain Trainer equals LossTrainer where both are exact, and says where it cannot be."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from causal_cases import (
    HIDDEN,
    IGNORED,
    TOLERANCE,
    VOCAB,
    Gradients,
    Recorder,
    arguments,
    causal_model,
    distance,
    gradients,
    label_rows,
    log_entry,
    padded,
    quick_trainers,
    ragged_rows,
    spread_out,
)
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, Trainer
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput, TokenClassifierOutput

import lossmith
import scalar_oracles
from lossmith.errors import ConfigurationError, LossmithWarning, ObjectiveInputError
from lossmith.integrations.transformers import LossTrainer, compute_loss

ROWS = ragged_rows()
SEQUENCE = "lovasz_softmax(region='sequence')"
BERT = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_trainers():
        yield


@pytest.fixture
def step(tmp_path: Path) -> Any:
    def run(
        size: int = 8, parts: int = 1, model: Any = None, rows: Any = None, collate: Any = None, **how: Any
    ) -> tuple[Gradients, Any]:
        model = causal_model("Llama") if model is None else model
        recorder = Recorder(model)
        trainer = (LossTrainer if "loss" in how else Trainer)(
            model,
            arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts),
            train_dataset=ROWS if rows is None else rows,
            eval_dataset=ROWS if rows is None else rows,
            data_collator=collate or padded(),
            callbacks=[recorder],
            **how,
        )
        trainer.train()
        return recorder.steps[0], trainer

    return run


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "0.6*cross_entropy(label_smoothing=0.1) + 0.4*dft"])
def test_equals_the_loss_trainer_under_accumulation(step: Any, loss: str) -> None:
    """Regressions 1 and 8."""
    expected, trainer = step(loss=loss)
    for size, parts in ((8, 1), (1, 8), (3, 3)):
        found, plain = step(size, parts, compute_loss_func=compute_loss(loss))
        assert distance(found, expected) < TOLERANCE, (size, parts)
        assert log_entry(plain)["loss"] == pytest.approx(log_entry(trainer)["loss"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_adapters_and_checkpointing(step: Any, target: str) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=3, target_modules=[target], init_lora_weights=False)
        return get_peft_model(causal_model("Llama"), config).double()

    expected, _ = step(model=adapted(), loss="focal")
    for checkpointed in (False, True):
        model = adapted()
        if checkpointed:
            model.train().gradient_checkpointing_enable()
            model.enable_input_require_grads()
        found, _ = step(2, 4, model=model, compute_loss_func=compute_loss("focal"))
        assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("loss", [SEQUENCE, f"0.6*cross_entropy + 0.4*{SEQUENCE}", "cross_entropy + lovasz_softmax"])
def test_regions_of_one_micro_batch(step: Any, loss: str) -> None:
    found, _ = step(compute_loss_func=compute_loss(loss))
    assert distance(found, step(loss=loss)[0]) < TOLERANCE


@pytest.mark.parametrize("loss", [f"0.6*cross_entropy + 0.4*{SEQUENCE}", "cross_entropy + dice"])
def test_accumulated_regions_are_refused(step: Any, loss: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        step(2, 4, compute_loss_func=compute_loss(loss))
    assert str(caught.value) == (
        f"'{lossmith.loss(loss)}' counts token and region, but a `compute_loss_func` is told the number of tokens "
        f"only, so under gradient accumulation or on several ranks it cannot be exact: use "
        f"lossmith.integrations.transformers.LossTrainer."
    )


def test_all_ignored_micro_batch(step: Any) -> None:
    """Regression 4."""
    rows = [{**row, "labels": [IGNORED] * len(row["labels"])} for row in ROWS]
    found, trainer = step(2, 4, rows=rows, compute_loss_func=compute_loss("focal"))
    assert all(float(gradient.abs().sum()) == 0 for gradient in found.values())
    assert log_entry(trainer)["loss"] == 0


def test_evaluation_of_one_batch(step: Any) -> None:
    _, trainer = step(compute_loss_func=compute_loss("focal"))
    places = [place for row in label_rows(trainer.model, ROWS) for place in row]
    expected = sum(scalar_oracles.focal(logits, label) for logits, label, _ in places) / len(places)
    trainer.args.per_device_eval_batch_size = 8
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_models_whose_labels_stand_at_their_logits(step: Any) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        return spread_out(BertForMaskedLM(BertConfig(**BERT)), 0.1)

    found, _ = step(2, 4, model=make(), compute_loss_func=compute_loss("cross_entropy"))
    batch, model = padded()(ROWS), make()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
    assert distance(found, gradients(model)) < TOLERANCE


def test_a_sequence_classifier(step: Any) -> None:
    def collate(rows: list[Any]) -> Any:
        return {**padded()(rows), "labels": torch.tensor([len(row["input_ids"]) % 3 for row in rows])}

    def make() -> Any:
        torch.manual_seed(0)
        return spread_out(BertForSequenceClassification(BertConfig(**BERT, num_labels=3)), 0.1)

    found, _ = step(3, 3, model=make(), collate=collate, compute_loss_func=compute_loss("focal"))
    assert distance(found, step(model=make(), collate=collate, loss="focal")[0]) < TOLERANCE


LOGITS = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, 2, 3, 4, 5], [0, 6, IGNORED, 3, IGNORED]])


def shifted(output: Any, **how: Any) -> bool:
    """Whether the labels were shifted, seen from the value."""
    value = compute_loss("cross_entropy", **how)(output, LABELS).item()
    moved = torch.nn.functional.cross_entropy(LOGITS[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten()).item()
    kept = torch.nn.functional.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten()).item()
    assert moved != pytest.approx(kept, rel=1e-2)
    assert value in (pytest.approx(moved), pytest.approx(kept))
    return value == pytest.approx(moved)


def test_shift_is_told_by_the_output() -> None:
    assert shifted(CausalLMOutputWithPast(logits=LOGITS))
    assert not shifted(TokenClassifierOutput(logits=LOGITS))
    assert not shifted(CausalLMOutputWithPast(logits=LOGITS), shift=False)
    assert shifted(TokenClassifierOutput(logits=LOGITS), shift=True)
    assert shifted(Seq2SeqLMOutput(logits=LOGITS), shift=True)
    for unclear in (Seq2SeqLMOutput(logits=LOGITS), SimpleNamespace(logits=LOGITS)):
        with pytest.raises(ObjectiveInputError) as caught:
            compute_loss("cross_entropy")(unclear, LABELS)
        assert str(caught.value) == (
            f"From a {type(unclear).__name__} it is not clear whether the model predicts the next token: give "
            f"compute_loss(loss, shift=True) for a causal language model, shift=False where labels stand at the place "
            f"of their logits."
        )


def test_the_number_of_items_divides() -> None:
    output = CausalLMOutputWithPast(logits=LOGITS)
    own = compute_loss("focal")(output, LABELS).item()
    for given in (12, torch.tensor(12), torch.tensor(12.0)):
        assert compute_loss("focal")(output, LABELS, num_items_in_batch=given).item() == pytest.approx(own * 6 / 12)
    nothing = torch.full_like(LABELS, IGNORED)
    for none in (0, torch.tensor(0)):
        assert compute_loss("focal")(output, nothing, num_items_in_batch=none).item() == 0


# Bad input


def test_labels_missing() -> None:
    with pytest.raises(ObjectiveInputError, match=r"`labels` must be in the batch, got none: add a column `labels`"):
        compute_loss("focal")(CausalLMOutputWithPast(logits=LOGITS), None)


def test_an_auxiliary_loss_would_be_dropped(step: Any) -> None:
    model = causal_model("Mixtral", num_local_experts=4, output_router_logits=True)
    with pytest.raises(ConfigurationError, match=r"returns an `aux_loss` .*LossTrainer, or set `output_router_logits="):
        step(model=model, compute_loss_func=compute_loss("focal"))


FAMILIES = {
    "dpo": "'dpo' is a preference loss, which a compute_loss_func cannot train: use "
    "lossmith.integrations.trl.DPOTrainer.",
    "cross_entropy + 0.1*kto": "'kto' is an unpaired loss, which a compute_loss_func cannot train: use "
    "lossmith.integrations.trl.KTOTrainer.",
    "supcon": "'supcon' is a metric loss, which a compute_loss_func cannot train: use "
    "lossmith.integrations.sentence_transformers, or a LossTrainer on a sequence classifier.",
}


@pytest.mark.parametrize("loss", FAMILIES)
def test_losses_of_other_families(loss: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compute_loss(loss)
    assert str(caught.value) == FAMILIES[loss]


def test_label_scopes_are_not_known() -> None:
    with pytest.raises(ConfigurationError, match=r"names label scopes, but a `compute_loss_func` is told the labels"):
        compute_loss("cross_entropy + focal[answer]")


def test_losses_that_are_none() -> None:
    with pytest.raises(ObjectiveInputError, match=r"No objective named 'focall'\. Did you mean 'focal'"):
        compute_loss("focall")
    with pytest.raises(ObjectiveInputError, match=r"`loss` must be a string .* got Linear"):
        compute_loss(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


def test_a_trainer_that_divides_twice_is_named(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.2.0")
    with pytest.warns(LossmithWarning, match="under gradient accumulation use LossTrainer"):
        compute_loss("focal")
