"""TRL's SFT trainer with lossmith losses: by hand, however texts are batched; figures, experts, what TRL relies on."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, TrainingArguments
from trl import SFTConfig

import lossmith
import trl_inputs as made
from lossmith.errors import ConfigurationError, DataError
from lossmith.integrations.transformers.setup import balance_weight
from lossmith.integrations.trl import SFTTrainer
from reference_inputs import llama

pytestmark = [pytest.mark.filterwarnings(line) for line in made.OF_OTHERS]

LOSS = "0.6*cross_entropy + 0.4*focal(gamma=2)"


def texts(count: int = 8) -> Dataset:
    """Prompts and completions of uneven lengths."""
    return made.pairs(count).rename_column("chosen", "completion").remove_columns("rejected")


@pytest.fixture
def trainer_of(tmp_path: Path):
    def make(loss: Any = LOSS, *, model: Any = None, data: Any = None, **settings: Any):
        more = {name: settings.pop(name) for name in ("average", "eval_dataset") if name in settings}
        return SFTTrainer(
            llama() if model is None else model,
            made.configuration(SFTConfig, tmp_path, **{"max_length": None, **settings}),
            train_dataset=texts() if data is None else data,
            processing_class=made.words(),
            loss=loss,
            **more,
        )

    return make


def token_nlls(model: Any, data: Dataset) -> list[torch.Tensor]:
    """Negative log-probabilities of the tokens of each completion, each row alone."""
    return [-made.token_scores(model, row["prompt"], row["completion"]) for row in data]


def by_hand(model: Any, data: Dataset, *, average: str = "token") -> torch.Tensor:
    nlls = token_nlls(model, data)
    losses = [0.6 * nll + 0.4 * (1 - torch.exp(-nll)) ** 2 * nll for nll in nlls]
    return torch.cat(losses).mean() if average == "token" else torch.stack([row.mean() for row in losses]).mean()


CUTS = {
    "one batch": {},
    "eight of one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "uneven": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    "padding-free": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "padding_free": True},
    # 3 rows of 32 tokens.
    "packed": {"packing": True, "max_length": 32},
    "checkpointed": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradients_and_figures_are_those_by_hand(cut, average, trainer_of):
    """However texts are padded, packed and cut into micro-batches: no token is predicted from another text."""
    model, data = llama(), texts()
    value = by_hand(model, data, average=average)
    wanted = made.gradients_of(model, value)
    plain = torch.cat(token_nlls(model, data)).mean().item()
    trainer = trainer_of(model=model, average=average, **CUTS[cut])
    trainer.add_callback(seen := made.Gradients())
    trainer.train()
    made.compare(seen.steps[0], wanted)
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert logs["nll"] == pytest.approx(plain, rel=1e-5)
    prompts = sum(len(made.tokens_of(row["prompt"])) for row in data)
    assert logs["num_tokens"] == prompts + sum(len(nll) for nll in token_nlls(model, data))


@pytest.mark.parametrize("rows", [3, 8])
def test_evaluation_does_not_depend_on_batches(rows, trainer_of):
    metrics = trainer_of(eval_dataset=texts(), per_device_eval_batch_size=rows).evaluate()
    assert metrics["eval_loss"] == pytest.approx(by_hand(llama(), texts()).item(), rel=1e-6)
    assert metrics["eval_nll"] == pytest.approx(torch.cat(token_nlls(llama(), texts())).mean().item(), rel=1e-6)


@pytest.mark.parametrize("coefficient", [None, 5.0, 0.0])
def test_experts_are_balanced_as_trl_is_told(coefficient, trainer_of):
    """TRL writes its own `router_aux_loss_coef` into the model's configuration, which `balance_weight` reads."""
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, decoder_sparse_step=1, router_aux_loss_coef=0.5,
        )
    )  # fmt: skip
    trainer = trainer_of("cross_entropy", model=model, router_aux_loss_coef=coefficient)
    weight = 0.5 if coefficient is None else coefficient
    assert balance_weight(model) == weight
    batch = {name: value for name, value in next(iter(trainer.get_train_dataloader())).items() if name != "labels"}
    with torch.no_grad():
        balance = float(model(**batch, output_router_logits=True).aux_loss)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert balance > 0.1
    assert logs["loss"] - logs["nll"] == pytest.approx(weight * balance, rel=1e-4, abs=1e-5)


def test_plain_training_arguments(tmp_path):
    """As with TRL, which makes an SFTConfig of them."""
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=1, logging_steps=1, save_strategy="no",
        gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(llama(), args, train_dataset=texts(), processing_class=made.words(), loss=LOSS)
    trainer.train()
    assert isinstance(trainer.args, SFTConfig)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(by_hand(llama(), texts()).item(), rel=1e-5)


def test_what_does_not_fit_is_refused(trainer_of):
    with pytest.raises(ConfigurationError, match=r"`loss_type` of SFTConfig .* got 'dft': write loss='dft'\."):
        trainer_of(loss_type="dft")
    with pytest.raises(ConfigurationError, match=r"'lrml' is a preference loss, .*DPOTrainer"):
        trainer_of("lrml")
    with pytest.raises(ConfigurationError, match=r"'soft_triple' is a metric loss"):
        trainer_of(lossmith.loss("soft_triple", num_classes=3, embedding_dim=16))
    with pytest.raises(ConfigurationError, match=r"TRL's collator drops the column `answer_mask`: give a `data_coll"):
        trainer_of("cross_entropy + focal[answer]")
    with pytest.raises(DataError, match="needs the columns `text` or"):
        trainer_of(data=Dataset.from_dict({"question": ["w1 w2 "]}))


def test_contract_with_trl(trainer_of):
    """Relied on: what TRL logs comes from `_metrics`, its count of tokens is `_total_train_tokens`, and its loss is
    made in `compute_loss` alone, which `prediction_step` calls with and without outputs."""
    trainer = trainer_of()
    assert trainer._metrics == {"train": {}, "eval": {}}
    assert trainer._total_train_tokens == 0
    assert list(inspect.signature(trl.SFTTrainer.compute_loss).parameters) == [
        "self", "model", "inputs", "return_outputs", "num_items_in_batch",
    ]  # fmt: skip
    assert "self._metrics[mode]" in inspect.getsource(trl.SFTTrainer.log)
    assert "self.compute_loss(model, inputs, return_outputs=" in inspect.getsource(trl.SFTTrainer.prediction_step)
    assert trl.SFTTrainer.get_batch_samples is not SFTTrainer.get_batch_samples
    assert not {"get_batch_samples", "evaluation_loop", "create_optimizer"} & set(vars(trl.SFTTrainer))


def test_settings_of_trls_loss_are_all_known():
    """A setting that TRL adds must be served or refused, not ignored."""
    served = {
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "chat_template_path", "dataset_text_field",
        "dataset_kwargs", "dataset_num_proc", "eos_token", "max_length", "truncation_mode", "shuffle_dataset",
        "packing", "packing_strategy", "padding_free", "pad_to_multiple_of", "eval_packing", "completion_only_loss",
        "assistant_only_loss", "loss_type", "activation_offloading", "pad_token",
    }  # fmt: skip
    unknown = set(SFTConfig.__dataclass_fields__) - set(TrainingArguments.__dataclass_fields__) - served
    assert not unknown, sorted(unknown)
