"""What lossmith's DPO and KTO trainers rely on inside TRL (1.16) and transformers (5.23), one test each.

A test that fails here after an upgrade names what moved; `lossmith.integrations.trl` then has to follow.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from trl.trainer import dpo_trainer, kto_trainer

import trl_inputs as made
from lossmith.errors import ConfigurationError
from lossmith.integrations._versions import require_version
from lossmith.integrations.trl.settings import DPO, KTO
from reference_inputs import llama

pytestmark = pytest.mark.filterwarnings(*made.OF_OTHERS)

KINDS = {"dpo": (trl.DPOTrainer, trl.DPOConfig, made.pairs), "kto": (trl.KTOTrainer, trl.KTOConfig, made.completions)}


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def plain(kind: str, folder: Path, **settings: Any) -> Any:
    """TRL's own trainer."""
    trainer, config, data = KINDS[kind]
    args = made.configuration(config, folder, precompute_ref_log_probs=True, **settings)
    return trainer(llama(dtype=torch.float32), args=args, train_dataset=data(), processing_class=made.words())


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_the_trainers(kind):
    """Ours has the same first arguments in the same order and hands the others on by name."""
    names = parameters(KINDS[kind][0].__init__)
    assert names[:7] == [
        "model", "ref_model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class",
    ]  # fmt: skip
    assert {"compute_metrics", "callbacks", "optimizers", "quantization_config", "peft_config"} <= set(names)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_that_are_overridden(kind):
    """TRL calls these by name from its `__init__` and `evaluate`, transformers from its loops."""
    cls = KINDS[kind][0]
    assert parameters(cls._prepare_dataset) == ["dataset", "processing_class", "args", "dataset_name"]
    assert parameters(cls._precompute_ref_logps) == ["dataset", "name", "batch_size"]
    assert parameters(cls.compute_loss) == ["model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters(cls.prediction_step) == ["model", "inputs", "prediction_loss_only", "ignore_keys"]
    assert parameters(cls.log) == ["logs", "start_time"]
    trainer = transformers.Trainer
    assert parameters(trainer.get_batch_samples) == ["epoch_iterator", "num_batches", "device"]
    assert parameters(trainer.save_model) == ["output_dir", "_internal_call"]
    assert parameters(trainer._load_from_checkpoint) == ["resume_from_checkpoint", "model"]
    assert "metric_key_prefix" in parameters(trainer.evaluation_loop)


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_model_where_the_reference_is_precomputed(kind, tmp_path, monkeypatch):
    """With `precompute_ref_log_probs` and without FSDP TRL makes no reference model, and asks for every data set."""
    asked = []
    cls = KINDS[kind][0]
    monkeypatch.setattr(cls, "_precompute_ref_logps", lambda self, dataset, name, rows: asked.append(name) or dataset)
    module = dpo_trainer if kind == "dpo" else kto_trainer
    monkeypatch.setattr(module, "create_model_from_path", None)
    trainer = plain(kind, tmp_path)
    assert trainer.ref_model is None
    assert asked == ["train"]


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_is_read_only_after_on_init_end(kind):
    """`is_fsdp_enabled` is hidden between transformers' `__init__` and the end of TRL's, which would load a model."""
    source = inspect.getsource(KINDS[kind][0].__init__)
    before, after = source.split("super().__init__(", 1)
    assert "is_fsdp_enabled" not in before
    assert after.count("self.is_fsdp_enabled") == 3
    assert "on_init_end" in inspect.getsource(transformers.Trainer.__init__)


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_that_are_read(kind, tmp_path, monkeypatch):
    """The balance of experts is TRL's to switch, its own metrics stay empty, and its reference flag can be set."""
    monkeypatch.setattr(KINDS[kind][0], "_precompute_ref_logps", lambda self, dataset, name, rows: dataset)
    trainer = plain(kind, tmp_path)
    assert trainer.aux_loss_enabled is False
    assert trainer.router_aux_loss_coef == 0.0
    assert trainer.precompute_ref_logps is True
    assert trainer._metrics == {"train": {}, "eval": {}}
    assert trainer.is_fsdp_enabled is False


def test_columns_and_keys_of_pairs(tmp_path, monkeypatch):
    """A batch is the chosen rows and then the rejected ones; reference columns travel through the collator."""
    monkeypatch.setattr(trl.DPOTrainer, "_precompute_ref_logps", lambda self, dataset, name, rows: dataset)
    trainer = plain("dpo", tmp_path)
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(trainer.train_dataset.column_names)
    trainer._set_signature_columns_if_needed()
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer._signature_columns)
    rows = [
        {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]},
        {"prompt_ids": [3], "chosen_ids": [4, 4], "rejected_ids": [2]},
    ]
    for row, numbers in zip(rows, ((-1.5, -2.5), (-3.5, -4.5)), strict=True):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = numbers
    batch = trainer.data_collator(rows)
    pad = made.PAD
    assert batch["input_ids"].tolist() == [[5, 6, 7, pad], [3, 4, 4, pad], [5, 6, 8, 9], [3, 2, pad, pad]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -3.5]
    assert batch["ref_rejected_logps"].tolist() == [-2.5, -4.5]


def test_columns_and_keys_of_completions(tmp_path, monkeypatch):
    """Mismatched completions travel under `KL_` names, so that ours reach the batch."""
    monkeypatch.setattr(trl.KTOTrainer, "_precompute_ref_logps", lambda self, dataset, name, rows: dataset)
    trainer = plain("kto", tmp_path)
    assert {"prompt_ids", "completion_ids", "KL_completion_ids", "label"} <= set(trainer.train_dataset.column_names)
    trainer._set_signature_columns_if_needed()
    assert {"KL_completion_ids", "label", "ref_logps", "ref_KL_logps"} <= set(trainer._signature_columns)
    rows = [
        {"prompt_ids": [5], "completion_ids": [7], "KL_completion_ids": [8, 9], "label": True},
        {"prompt_ids": [3], "completion_ids": [4, 4], "KL_completion_ids": [2], "label": False},
    ]
    for row, numbers in zip(rows, ((-1.5, -2.5), (-3.5, -4.5)), strict=True):
        row["ref_logps"], row["ref_KL_logps"] = numbers
    batch = trainer.data_collator(rows)
    assert batch["input_ids"].tolist() == [[5, 7, made.PAD], [3, 4, 4]]
    assert batch["completion_mask"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert batch["KL_input_ids"].tolist() == [[5, 8, 9], [3, 2, made.PAD]]
    assert batch["KL_completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch["KL_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["label"].tolist() == [True, False]
    assert batch["ref_logps"].tolist() == [-1.5, -3.5]
    assert batch["ref_KL_logps"].tolist() == [-2.5, -4.5]


def test_a_loss_type_without_divergence_leaves_batch_size_and_order_free(tmp_path, monkeypatch):
    """Under `apo_zero_unpaired` TRL makes no mismatched completions of its own, which ours take the place of."""
    monkeypatch.setattr(trl.KTOTrainer, "_precompute_ref_logps", lambda self, dataset, name, rows: dataset)
    free = {"per_device_train_batch_size": 1, "train_sampling_strategy": "random"}
    trainer = plain("kto", tmp_path, loss_type="apo_zero_unpaired", **free)
    assert trainer.calculate_KL is False
    assert "KL_completion_ids" not in trainer.train_dataset.column_names
    with pytest.raises(ValueError, match="train_sampling_strategy='sequential'"):
        plain("kto", tmp_path, **free)


@pytest.mark.parametrize(("config", "table"), [(trl.DPOConfig, DPO), (trl.KTOConfig, KTO)])
def test_defaults_of_settings_that_are_refused(config, table):
    """A setting that moved its default would be refused where the user set nothing."""
    fields = config.__dataclass_fields__
    for name, setting in table.items():
        assert fields[name].default == setting.default, name
    assert fields["beta"].default == 0.1


def test_settings_of_trls_loss_are_all_known():
    """A setting that TRL adds must be served or refused, not ignored."""
    common = set(trl.SFTConfig.__dataclass_fields__) | set(transformers.TrainingArguments.__dataclass_fields__)
    served = {
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "disable_dropout", "max_length",
        "truncation_mode", "precompute_ref_log_probs", "precompute_ref_batch_size", "loss_type", "beta", "pad_token",
    }  # fmt: skip
    for config, table in ((trl.DPOConfig, DPO), (trl.KTOConfig, KTO)):
        unknown = set(config.__dataclass_fields__) - common - served - set(table)
        assert not unknown, f"{config.__name__}: {sorted(unknown)}"


def test_a_lora_on_the_head_is_refused_by_trl(tmp_path):
    """TRL's own sentence; ours would train it."""
    from peft import LoraConfig

    args = made.configuration(trl.DPOConfig, tmp_path)
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        trl.DPOTrainer(
            llama(dtype=torch.float32), args=args, train_dataset=made.pairs(), processing_class=made.words(),
            peft_config=LoraConfig(target_modules=["lm_head"]),
        )  # fmt: skip


def test_a_version_out_of_range_is_refused(monkeypatch):
    """The package checks it on import."""
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: "2.0.0")
    with pytest.raises(ConfigurationError, match=r"`trl` must be >= 1\.\d+ and < 2 for this integration, got 2\.0\.0"):
        require_version("trl", "1.10", "2", extra="train")
