"""TRL's DPO trainer with lossmith losses: values and gradients by hand, normalisation, reference, logs, state."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import TrainingArguments
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

import lossmith
import trl_inputs as made
from lossmith.errors import (
    CompositionError,
    ConfigurationError,
    DataError,
    LossmithWarning,
    ModelError,
    ObjectiveInputError,
)
from lossmith.integrations.trl import DPOTrainer
from lossmith.integrations.trl.logbook import Logbook
from lossmith.integrations.trl.meters import Reward, finished, pair_sums
from reference_inputs import llama

pytestmark = pytest.mark.filterwarnings(*made.OF_OTHERS, "ignore:The good completions lose")

COUPLED = ["aot", "aot_unpaired", "aqfl", "aql", "dbaql", "kto_pair", "bco_pair(running_delta=True)"]


@pytest.fixture
def trainer_of(tmp_path: Path):
    def make(loss: Any = "dpo", *, data: Any = None, model: Any = None, reference: Any = None, **settings: Any):
        more = {name: settings.pop(name) for name in list(settings) if name in MORE}
        if isinstance(loss, str) and reference is not None and "ref_chosen_logps" not in lossmith.loss(loss).required:
            reference = None
        torch.manual_seed(1)
        return DPOTrainer(
            model=llama() if model is None else model,
            ref_model=reference,
            args=made.configuration(DPOConfig, tmp_path, **settings),
            train_dataset=made.pairs() if data is None else data,
            processing_class=made.words(),
            loss=loss,
            **{"reference_cache": tmp_path / "references", **more},
        )

    return make


MORE = ("reference_cache", "eval_dataset", "data_collator", "peft_config", "callbacks", "compute_metrics")


def trained(trainer: Any) -> list[dict[str, torch.Tensor]]:
    trainer.add_callback(seen := made.Gradients())
    trainer.train()
    return seen.steps


def test_dpo_with_cross_entropy_equals_the_formula_by_hand(trainer_of):
    model, reference, data = llama(), llama(seed=9), made.pairs()
    trainer = trainer_of("dpo(beta=0.3) + 0.2*cross_entropy", model=model, reference=reference)
    texts = [(row["prompt"], row["chosen"]) for row in data]
    value = made.dpo_by_hand(model, reference, data, beta=0.3) + 0.2 * made.nll_by_hand(model, texts)
    wanted = made.gradients_of(model, value)
    (found,) = trained(trainer)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value.item(), rel=1e-6)
    made.compare(found, wanted)


EVERY = [record.name for record in lossmith.list_losses("preference")]
MORE_LOSSES = [
    "lrml(beta=0.05) + 0.1*focal",
    "cpo + 0.1*lovasz_softmax",
    "ipo(average=True) - 0.3*z_loss",
    "dpo(beta=0.2) + 0.5*simpo + 0.1*cross_entropy",
    "kto_pair + 0.2*dft",
]


@pytest.mark.parametrize("text", EVERY + MORE_LOSSES)
def test_every_preference_loss_trains_as_on_dense_logits(text, trainer_of):
    model, reference, data = llama(), llama(seed=9), made.pairs()
    loss = lossmith.loss(text)
    given = made.pair_inputs(model, reference, data)
    given = {name: value for name, value in given.items() if name in loss.inputs}
    if "logits" in loss.inputs:
        logits, labels = made.good_logits(model, [(row["prompt"], row["chosen"]) for row in data])
        given |= {"logits": logits, "labels": labels}
    value = loss(**given)
    wanted = made.gradients_of(model, value)
    trainer = trainer_of(text, model=model, reference=reference)
    (found,) = trained(trainer)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value.item(), rel=1e-5, abs=1e-7)
    made.compare(found, wanted, tolerance=2e-6)


@pytest.mark.parametrize("text", ["dpo + 0.2*cross_entropy", "simpo", "orpo + 0.1*dice(region='sequence')"])
def test_one_batch_of_eight_is_eight_of_one_is_four_of_two(text, trainer_of):
    def run(batch: int, accumulation: int):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = trainer_of(text, reference=llama(seed=9), **settings)
        (grads,) = trained(trainer)
        return grads, trainer.state.log_history[0]

    whole, logs = run(8, 1)
    for batch, accumulation in ((1, 8), (2, 4), (3, 3)):
        parts, logged = run(batch, accumulation)
        made.compare(parts, whole)
        for name in ("loss", *(name for name in logs if "/" in name or name in ("nll", "entropy"))):
            assert logged[name] == pytest.approx(logs[name], rel=1e-6, abs=1e-9), name


class Emptied(DataCollatorForPreference):
    """The rejected completion of the pair whose prompt is `prompt` has no token that counts."""

    prompt: list[int] = []  # noqa: RUF012

    def torch_call(self, examples: Any) -> Any:
        batch = super().torch_call(examples)
        for row, example in enumerate(examples):
            if example["prompt_ids"] == self.prompt:
                batch["completion_mask"][len(examples) + row] = 0
        return batch


@pytest.mark.parametrize("text", ["dpo + 0.2*cross_entropy", "simpo", "aot + 0.1*lovasz_softmax"])
def test_a_pair_with_an_empty_completion_does_not_count(text, trainer_of):
    data = made.pairs()
    collator = Emptied(pad_token_id=made.PAD)
    collator.prompt = made.tokens_of(data[3]["prompt"])
    with_empty = trainer_of(text, reference=llama(seed=9), data_collator=collator)
    without = trainer_of(
        text, data=data.select([0, 1, 2, 4, 5, 6, 7]), reference=llama(seed=9), reference_cache=None,
        per_device_train_batch_size=7,
    )  # fmt: skip
    (found,), (wanted,) = trained(with_empty), trained(without)
    made.compare(found, wanted)
    for name in ("loss", "nll", "entropy", "rewards/chosen", "rewards/accuracies", "logps/rejected"):
        logs = with_empty.state.log_history[0], without.state.log_history[0]
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-6), name


def test_a_step_without_any_completion_has_zero_gradients(trainer_of):
    data = made.pairs()
    collator = Emptied(pad_token_id=made.PAD)
    collator.prompt = made.tokens_of(data[0]["prompt"])
    trainer = trainer_of("dpo + 0.2*cross_entropy", data=data.select([0]), data_collator=collator)
    (found,) = trained(trainer)
    assert trainer.state.log_history[0]["loss"] == 0
    assert len(found) > 10
    assert all(not grad.any() for grad in found.values())


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("peft", [None, LORA])
@pytest.mark.parametrize("rows_of_reference", [1, 3])
def test_dpo_starts_at_log_two_whatever_the_batch_of_the_reference(peft, rows_of_reference, trainer_of):
    trainer = trainer_of(
        "dpo", model=llama(dtype=torch.float32), peft_config=peft, precompute_ref_batch_size=rows_of_reference,
        eval_dataset=made.pairs(5, seed=4), eval_strategy="steps", eval_steps=1, eval_on_start=True, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    logs = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert abs(logs["loss"] - math.log(2)) < 1e-5
    assert abs(logs["eval_loss"] - math.log(2)) < 1e-5
    assert trainer.ref_model is None


def test_lora_on_a_trained_adapter_compares_with_a_copy_of_it(trainer_of):
    from reference_inputs import lora, shake

    model = lora(llama(dtype=torch.float32), modules_to_save=None)
    shake(model)
    trainer = trainer_of("dpo", model=model)
    trainer.train()
    assert abs(trainer.state.log_history[0]["loss"] - math.log(2)) < 1e-5
    assert "ref" in model.peft_config


@pytest.mark.parametrize("text", ["simpo", "orpo", "cpo + 0.1*cross_entropy"])
def test_a_loss_without_reference_computes_none(text, trainer_of, monkeypatch, tmp_path):
    monkeypatch.setattr("lossmith.integrations.trl.references.completion_logps", None)
    trainer = trainer_of(text)
    assert trainer.ref_model is None
    trainer.train()
    assert not (tmp_path / "references").exists()
    assert not {"ref_chosen_logps", "ref_rejected_logps"} & set(trainer.train_dataset.column_names)
    assert "displacement/chosen" not in trainer.state.log_history[0]


def test_the_reference_is_computed_once_and_kept(trainer_of, monkeypatch):
    import lossmith.integrations.trl.references as references

    calls, before = [], references.completion_logps
    monkeypatch.setattr(references, "completion_logps", lambda *args: calls.append(1) or before(*args))
    first = trainer_of("dpo", precompute_ref_batch_size=3)
    assert len(calls) == 3
    second = trainer_of("lrml", precompute_ref_batch_size=4)
    assert len(calls) == 3
    assert first.train_dataset["ref_chosen_logps"][:] == second.train_dataset["ref_chosen_logps"][:]
    with pytest.raises(ConfigurationError, match=r"were computed with another model: delete the file"):
        trainer_of("dpo", model=llama(seed=4))


def test_evaluation_does_not_depend_on_batches_and_equals_the_formula(trainer_of):
    data = made.pairs(7, seed=3)
    found = []
    for rows in (1, 2, 7):
        model, reference = llama(), llama(seed=9)
        trainer = trainer_of(
            "dpo(beta=0.3) + 0.2*cross_entropy", model=model, reference=reference, eval_dataset=data,
            per_device_eval_batch_size=rows,
        )  # fmt: skip
        found.append(trainer.evaluate())
    texts = [(row["prompt"], row["chosen"]) for row in data]
    with torch.no_grad():
        nll = float(made.nll_by_hand(model, texts))
        value = float(made.dpo_by_hand(model, reference, data, beta=0.3)) + 0.2 * nll
        given = made.pair_inputs(model, reference, data)
    chosen = 0.3 * (given["chosen_logps"] - given["ref_chosen_logps"])
    rejected = 0.3 * (given["rejected_logps"] - given["ref_rejected_logps"])
    wanted = {
        "eval_loss": value,
        "eval_nll": nll,
        "eval_logps/chosen": float(given["chosen_logps"].mean()),
        "eval_logps/rejected": float(given["rejected_logps"].mean()),
        "eval_rewards/chosen": float(chosen.mean()),
        "eval_rewards/rejected": float(rejected.mean()),
        "eval_rewards/margins": float((chosen - rejected).mean()),
        "eval_rewards/accuracies": float((chosen > rejected).float().mean()),
        "eval_displacement/chosen": float(chosen.mean() / 0.3),
    }
    for metrics in found:
        for name, number in wanted.items():
            assert metrics[name] == pytest.approx(number, rel=1e-6), name
        assert metrics["eval_entropy"] == pytest.approx(found[0]["eval_entropy"], rel=1e-9)
    assert wanted["eval_rewards/accuracies"] not in (0, 1)


@pytest.mark.parametrize("text", [*COUPLED, "dpo + 0.3*dice(region='sequence')"])
def test_evaluation_of_coupled_losses_sees_the_whole_set(text, trainer_of):
    data = made.pairs(7, seed=3)
    values = []
    for rows in (1, 3, 7):
        settings = {"eval_dataset": data, "per_device_eval_batch_size": rows}
        values.append(trainer_of(text, reference=llama(seed=9), **settings).evaluate()["eval_loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] == pytest.approx(values[2], rel=1e-6)


def test_logged_entropy_is_that_of_all_completion_tokens(trainer_of):
    model, data = llama(), made.pairs()
    entropies = []
    for row in data:
        for side in ("chosen", "rejected"):
            logits, _ = made.good_logits(model, [(row["prompt"], row[side])])
            entropies.append(torch.distributions.Categorical(logits=logits).entropy().detach())
    trainer = trainer_of("dpo", model=model)
    trainer.train()
    assert trainer.state.log_history[0]["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("simpo(beta=3.0)", Reward(beta=3.0, per_token=True, relative=False)),
        ("orpo", Reward(beta=1.0, per_token=True, relative=False)),
        ("cpo(beta=0.2)", Reward(beta=0.2, per_token=False, relative=False)),
        ("lrml", Reward(beta=0.05, per_token=False, relative=True)),
        ("dpo_length_normalized(beta=2.0)", Reward(beta=2.0, per_token=True, relative=True)),
        ("ipo", Reward(beta=0.1, per_token=False, relative=True)),
    ],
)
def test_rewards_are_those_of_the_loss(text, reward, trainer_of):
    assert trainer_of(text).reward == reward


def test_shares_of_the_gradient_norm_by_hand_on_logged_steps_only(trainer_of):
    model, reference, data = llama(), llama(seed=9), made.pairs()
    norms = []
    for term in ("dpo", "cross_entropy"):
        states = []
        hook = model.lm_head.register_forward_pre_hook(lambda _, given, kept=states: kept.append(given[0]))
        texts = [(row["prompt"], row["chosen"]) for row in data]
        part = made.dpo_by_hand(model, reference, data) if term == "dpo" else 0.2 * made.nll_by_hand(model, texts)
        hook.remove()
        grads = torch.autograd.grad(part, states)
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
    trainer = trainer_of(
        "dpo + 0.2*cross_entropy", model=model, reference=reference, max_steps=3, logging_steps=3, learning_rate=0.0,
        per_device_train_batch_size=3, gradient_accumulation_steps=3,
    )  # fmt: skip
    seen = []
    before = trainer._logbook.note_shares
    trainer._logbook.note_shares = lambda *args: seen.append(trainer.state.global_step) or before(*args)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert seen == [2, 2, 2]
    assert logs["gradient_share/dpo"] == pytest.approx(norms[0] / sum(norms), rel=1e-5)
    assert logs["gradient_share/cross_entropy"] == pytest.approx(norms[1] / sum(norms), rel=1e-5)


def test_the_displacement_alarm_rings_below_one_nat_while_margins_grow_and_warns_once():
    def rows(chosen: float, rejected: float):
        full = {
            "chosen_logps": chosen, "rejected_logps": rejected, "ref_chosen_logps": -10.0, "ref_rejected_logps": -12.0,
            "chosen_lengths": 4.0, "rejected_lengths": 5.0, "entropy": 3.0,
        }  # fmt: skip
        return {name: torch.tensor([value]) for name, value in full.items()}

    reward = Reward(beta=0.5, per_token=False, relative=True)
    book = Logbook()

    def read(chosen: float, rejected: float) -> dict[str, float]:
        book.add(pair_sums(rows(chosen, rejected), reward))
        return book.read(lambda values: values)

    assert read(-10.9, -30.0)["displacement/alarm"] == 0
    assert read(-12.0, -13.0)["displacement/alarm"] == 0
    with pytest.warns(
        LossmithWarning, match=r"log-ratio to the reference is -1\.50 nats .*as in 'dpo \+ 0\.1\*cross_entropy'"
    ):
        logs = read(-11.5, -13.6)
    assert logs["displacement/alarm"] == 1
    assert logs["rewards/margins"] == pytest.approx(0.5 * (-1.5 + 1.6), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(-19.0, -40.0)["displacement/alarm"] == 1


def test_a_tie_counts_one_half():
    same = torch.tensor([-3.0, -4.0, -4.0])
    rows = {"chosen_logps": same, "rejected_logps": torch.tensor([-3.0, -5.0, -2.0]), "entropy": same,
            "chosen_lengths": torch.ones(3), "rejected_lengths": torch.ones(3)}  # fmt: skip
    total, count = pair_sums(rows, Reward(beta=1.0, per_token=False, relative=False))["rewards/accuracies"]
    assert float(total / count) == pytest.approx(0.5)
    assert "rewards/margins" in finished({"rewards/chosen": 1.0, "rewards/rejected": 0.5})


STATEFUL = "bco_pair(running_delta=True) -> dpo + 0.1*cross_entropy @ 0.4:0.9"


def test_resume_is_bit_equal(trainer_of, tmp_path):
    def settings(**more: Any) -> dict[str, Any]:
        return {"max_steps": 6, "per_device_train_batch_size": 3, "optim": "adamw_torch", "save_strategy": "steps",
                "save_steps": 3, "train_sampling_strategy": "random", **more}  # fmt: skip

    whole = trainer_of(STATEFUL, **settings(output_dir=str(tmp_path / "whole")))
    whole.train()
    other = trainer_of(STATEFUL, **settings(output_dir=str(tmp_path / "other")))
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(other.loss.state_dict()[name], value), name
    assert int(whole.loss.terms[0].rewards.count) > 0
    one, two = whole.state.log_history[-2], other.state.log_history[-2]
    assert {n: v for n, v in one.items() if n != "num_tokens"} == {n: v for n, v in two.items() if n != "num_tokens"}


def test_another_loss_does_not_resume(trainer_of, tmp_path):
    settings = {"output_dir": str(tmp_path / "first"), "save_strategy": "steps", "save_steps": 1}
    trainer_of("dpo", **settings).train()
    with pytest.raises(ConfigurationError, match=r"was trained with 'dpo', this trainer has 'lrml'"):
        trainer_of("lrml", max_steps=2, **settings).train(resume_from_checkpoint=str(tmp_path / "first/checkpoint-1"))


def test_gradient_checkpointing_changes_nothing(trainer_of):
    found = [
        trained(trainer_of("dpo + 0.2*cross_entropy", reference=llama(seed=9), gradient_checkpointing=on))[0]
        for on in (False, True)
    ]
    made.compare(found[1], found[0])


def test_a_lora_run_is_saved_and_loaded_by_plain_peft(trainer_of, tmp_path):
    from peft import PeftModel

    trainer = trainer_of("dpo + 0.1*cross_entropy", model=llama(dtype=torch.float32), peft_config=LORA, max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(llama(dtype=torch.float32), tmp_path / "saved").eval()
    ids = torch.tensor([[5, 6, 7]])
    assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
    assert (tmp_path / "saved" / "lossmith.json").is_file()


def test_a_mixture_of_experts_keeps_its_balance(trainer_of):
    from transformers import MixtralConfig, MixtralForCausalLM

    def experts():
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=59, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=3, output_router_logits=True, router_aux_loss_coef=0.5,
        )  # fmt: skip
        return MixtralForCausalLM(config)

    model = experts().eval()
    plain = trainer_of("simpo", model=experts(), router_aux_loss_coef=0.0)
    balanced = trainer_of("simpo", model=experts(), router_aux_loss_coef=0.5)
    batch = plain.data_collator([{"prompt_ids": [5, 6], "chosen_ids": [7, 8, 58], "rejected_ids": [9, 58]}])
    balance = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).aux_loss
    values = [trainer.compute_loss(trainer.model.eval(), batch).item() for trainer in (plain, balanced)]
    assert balance > 1
    assert values[1] - values[0] == pytest.approx(0.5 * balance.item(), rel=1e-6)


def test_evaluation_of_a_further_set_after_training(trainer_of):
    data = made.pairs(5, seed=5)
    trainer = trainer_of(
        "dpo(beta=2.0)", model=llama(dtype=torch.float32), peft_config=LORA, max_steps=4, eval_dataset=data
    )
    trainer.train()
    known, further = trainer.evaluate(), trainer.evaluate(data)
    assert abs(known["eval_rewards/margins"]) > 1e-3
    for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
        assert further[name] == pytest.approx(known[name], rel=1e-5), name


def test_streaming_data_serve_losses_without_reference_only(trainer_of):
    data = made.pairs().to_iterable_dataset()
    trainer = trainer_of("simpo", data=data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    with pytest.raises(ConfigurationError, match=r"must be a datasets\.Dataset, got IterableDataset: 'dpo' needs"):
        trainer_of("dpo", data=data)


def test_a_reference_model_that_cannot_serve_is_refused(tmp_path):
    data = {"train_dataset": made.pairs(), "processing_class": made.words()}
    args = made.configuration(DPOConfig, tmp_path)
    with pytest.raises(ConfigurationError, match=r"'simpo' reads no reference: leave `ref_model` out"):
        DPOTrainer(llama(), llama(), args, loss="simpo", **data)
    args.fsdp = True
    with pytest.raises(ConfigurationError, match=r"`ref_model` must be None under FSDP and DeepSpeed"):
        DPOTrainer(llama(), llama(), args, loss="dpo", **data)


def test_the_users_configuration_stays_as_it_was(tmp_path):
    args = made.configuration(DPOConfig, tmp_path)
    trainer = DPOTrainer(llama(), args=args, train_dataset=made.pairs(), processing_class=made.words(),
                         loss="simpo", reference_cache=tmp_path)  # fmt: skip
    assert args.precompute_ref_log_probs is False
    assert trainer.args.precompute_ref_log_probs is False
    assert trainer.args is not args


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("loss_type", ["hinge"], "write loss='hinge'"),
        ("loss_type", ["sigmoid", "sft"], r"write loss='dpo \+ cross_entropy'"),
        (
            "beta",
            0.3,
            r"`beta` of DPOConfig would do nothing here, got 0\.3 where 'dpo' has 0\.1: write loss='dpo\(beta",
        ),
        ("label_smoothing", 0.2, r"got 0\.2: write it into the loss, as in loss='cdpo\(label_smoothing=0\.2\)'"),
        ("f_divergence_type", "js_divergence", "lossmith has no such loss, leave it at 'reverse_kl'"),
        ("ld_alpha", 0.5, "lossmith has no such loss, leave it at None"),
        ("use_weighting", True, "lossmith has no such loss, leave it at False"),
        ("discopop_tau", 0.1, r"as in loss='lrml\(tau=0\.1\)'"),
        ("sync_ref_model", True, "the reference is computed once, before training"),
        ("label_smoothing_factor", 0.1, "choose a loss that smooths"),
    ],
)
def test_settings_of_trls_losses_are_refused(setting, value, said, trainer_of):
    with pytest.raises(ConfigurationError, match=said):
        trainer_of("dpo", **{setting: value})


def test_a_beta_that_is_the_losss_own_is_fine(trainer_of):
    assert trainer_of("dpo(beta=0.3)", beta=0.3).reward.beta == 0.3
    with pytest.raises(ConfigurationError, match=r"where 'orpo' has none: leave it at its default"):
        trainer_of("orpo", beta=0.3)


@pytest.mark.parametrize(
    ("loss", "kind", "said"),
    [
        ("focal", ConfigurationError, r"'focal' is a token loss, which compares no completions.*SFTTrainer"),
        ("kto", ConfigurationError, r"'kto' is an unpaired loss, which a DPOTrainer cannot train: use .*KTOTrainer"),
        ("supcon", ConfigurationError, r"'supcon' is a metric loss, which a DPOTrainer cannot train"),
        ("dpo + 0.1*focal[answer]", ConfigurationError, r"names the scope \[answer\]"),
        ("dpo +", CompositionError, "This composition cannot be read"),
        ("dppo", CompositionError, "Did you mean 'dpo'"),
        (torch.nn.Linear(2, 2), ObjectiveInputError, "got Linear"),
    ],
)
def test_losses_that_do_not_fit(loss, kind, said, trainer_of):
    with pytest.raises(kind, match=said):
        trainer_of(loss)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            ["prompt", "completion", "label"],
            r"needs the columns `chosen` and `rejected`.*It is unpaired: use KTOTrainer",
        ),
        (["text"], "It holds no preferences: use SFTTrainer"),
        (["prompt", "chosen"], r"got `chosen`, `prompt`"),
        (["prompt", "chosen", "rejected", "images"], "has images"),
    ],
)
def test_data_that_do_not_fit(columns, said, trainer_of):
    from datasets import Dataset

    rows = Dataset.from_list([dict.fromkeys(columns, "w5 ")])
    with pytest.raises(DataError, match=said):
        trainer_of("dpo", data=rows)
    with pytest.raises(DataError, match=said):
        trainer_of("dpo", eval_dataset=rows)


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    args = made.configuration(DPOConfig, tmp_path)
    args._n_gpu = 2
    with pytest.raises(ConfigurationError, match=r"2 GPUs are visible to one process.*torchrun"):
        DPOTrainer(llama(), args=args, train_dataset=made.pairs(), processing_class=made.words())


def test_what_needs_logits_or_a_linear_head_is_refused(trainer_of):
    with pytest.raises(ConfigurationError, match="`compute_metrics` reads logits"):
        trainer_of("dpo", compute_metrics=lambda prediction: {})
    model = llama()
    model.lm_head = torch.nn.Sequential(torch.nn.Tanh())
    with pytest.raises(ModelError, match=r"must be a linear map"):
        trainer_of("dpo", model=model)


def test_plain_training_arguments_are_refused(tmp_path):
    """TRL's own trainer fails on an attribute that they lack."""
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigurationError, match=r"`args` must be .*\(DPOConfig, KTOConfig\), got TrainingArguments\."):
        DPOTrainer(llama(), args=args, train_dataset=made.pairs(), processing_class=made.words())


def test_a_frozen_model_is_refused(tmp_path):
    model = llama(dtype=torch.float32).requires_grad_(False)
    args = made.configuration(DPOConfig, tmp_path)
    with pytest.raises(ConfigurationError, match="No parameter of LlamaForCausalLM asks for a gradient: unfreeze some"):
        DPOTrainer(
            model, args=args, train_dataset=made.pairs(), processing_class=made.words(), reference_cache=tmp_path
        )
