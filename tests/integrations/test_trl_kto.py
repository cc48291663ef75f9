"""TRL's KTO trainer with lossmith losses: by hand, the divergence, normalisation, batch of one, evaluation, state."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig

import trl_inputs as made
from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.trl import KTOTrainer
from lossmith.integrations.trl.kto import partners
from reference_inputs import llama

pytestmark = pytest.mark.filterwarnings(*made.OF_OTHERS, "ignore:The good completions lose")

MORE = ("reference_cache", "eval_dataset", "data_collator", "peft_config", "callbacks")


@pytest.fixture
def trainer_of(tmp_path: Path):
    def make(loss: Any = "kto", *, data: Any = None, model: Any = None, reference: Any = None, **settings: Any):
        more = {name: settings.pop(name) for name in list(settings) if name in MORE}
        torch.manual_seed(1)
        return KTOTrainer(
            model=llama() if model is None else model,
            ref_model=reference,
            args=made.configuration(KTOConfig, tmp_path, **settings),
            train_dataset=made.completions() if data is None else data,
            processing_class=made.words(),
            loss=loss,
            **{"reference_cache": tmp_path / "references", **more},
        )

    return make


def trained(trainer: Any) -> list[dict[str, torch.Tensor]]:
    trainer.add_callback(seen := made.Gradients())
    trainer.train()
    return seen.steps


def log_ratios(model: Any, reference: Any, texts: list[tuple[str, str]]) -> torch.Tensor:
    """Log-ratio of policy to reference of each completion, the reference rounded as TRL's collator does."""
    policy = torch.stack([made.token_scores(model, *text).sum() for text in texts])
    with torch.no_grad():
        frozen = torch.stack([made.token_scores(reference, *text).sum() for text in texts]).float()
    return policy - frozen


def divergence(model: Any, reference: Any, data: Dataset, seed: int = 42) -> float:
    """Mean log-ratio of each prompt with the completion of its partner, read as 0 where negative."""
    other = partners(len(data), seed).tolist()
    texts = [(row["prompt"], data[other[place]]["completion"]) for place, row in enumerate(data)]
    return max(0.0, log_ratios(model, reference, texts).mean().item())


def kto_by_hand(model: Any, reference: Any, data: Dataset, beta: float, good: float, bad: float) -> torch.Tensor:
    ratios = log_ratios(model, reference, [(row["prompt"], row["completion"]) for row in data])
    shift = divergence(model, reference, data)
    losses = [
        good * (1 - torch.sigmoid(beta * (ratio - shift)))
        if row["label"]
        else bad * (1 - torch.sigmoid(beta * (shift - ratio)))
        for ratio, row in zip(ratios, data, strict=True)
    ]
    return torch.stack(losses).mean()


def pulled_apart() -> tuple[Any, Any]:
    """Policy and reference for whose data the divergence is not 0."""
    return llama(seed=9), llama()


def test_kto_with_cross_entropy_equals_the_formula_by_hand(trainer_of):
    (model, reference), data = pulled_apart(), made.completions()
    assert divergence(model, reference, data) > 0.1
    good = [(row["prompt"], row["completion"]) for row in data if row["label"]]
    value = kto_by_hand(model, reference, data, 0.05, 1.5, 0.7) + 0.3 * made.nll_by_hand(model, good)
    wanted = made.gradients_of(model, value)
    text = "kto(beta=0.05, desirable_weight=1.5, undesirable_weight=0.7) + 0.3*cross_entropy"
    trainer = trainer_of(text, model=model, reference=reference)
    (found,) = trained(trainer)
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert logs["kl"] == pytest.approx(divergence(*pulled_apart(), data), rel=1e-5)
    made.compare(found, wanted)


def test_the_divergence_is_that_of_the_step_however_it_is_cut(trainer_of):
    def run(batch: int, accumulation: int):
        model, reference = pulled_apart()
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = trainer_of("kto + 0.2*cross_entropy", model=model, reference=reference, **settings)
        (grads,) = trained(trainer)
        return grads, trainer.state.log_history[0]

    whole, logs = run(8, 1)
    for batch, accumulation in ((1, 8), (2, 4), (3, 3)):
        parts, logged = run(batch, accumulation)
        made.compare(parts, whole)
        for name in ("loss", "kl", *(name for name in logs if "/" in name or name in ("nll", "entropy"))):
            assert logged[name] == pytest.approx(logs[name], rel=1e-6, abs=1e-9), name


def test_bco_equals_the_formula_by_hand(trainer_of):
    (model, reference), data = pulled_apart(), made.completions()
    ratios = log_ratios(model, reference, [(row["prompt"], row["completion"]) for row in data])
    shift = 0.2 * ratios.mean().item()
    losses = [
        -torch.nn.functional.logsigmoid((1 if row["label"] else -1) * (0.2 * ratio - shift))
        for ratio, row in zip(ratios, data, strict=True)
    ]
    value = torch.stack(losses).mean()
    wanted = made.gradients_of(model, value)
    trainer = trainer_of("bco(beta=0.2)", model=model, reference=reference)
    (found,) = trained(trainer)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert "kl" not in trainer.state.log_history[0]
    assert "KL_completion_ids" not in trainer.train_dataset.column_names
    made.compare(found, wanted)


def test_the_partner_of_a_row_is_its_own_whatever_the_batch_and_the_order(trainer_of):
    shuffled = {"per_device_train_batch_size": 8, "train_sampling_strategy": "random"}
    trainers = [trainer_of("kto", **own) for own in ({"per_device_train_batch_size": 2}, shuffled)]
    columns = [trainer.train_dataset["KL_completion_ids"][:] for trainer in trainers]
    assert columns[0] == columns[1]
    data = made.completions()
    other = partners(8, 42).tolist()
    assert columns[0] == [[*made.tokens_of(data[place]["completion"]), made.EOS] for place in other]
    assert all(place != partner for place, partner in enumerate(other))


def test_partners_form_one_circle():
    found = partners(50, seed=3).tolist()
    assert found != partners(50, seed=4).tolist()
    place, seen = 0, set()
    while place not in seen:
        seen.add(place)
        place = found[place]
    assert len(seen) == 50


def test_a_batch_of_one_is_refused_or_served_by_a_running_estimate(trainer_of, tmp_path):
    with pytest.raises(ConfigurationError, match=r"must be > 1 for 'kto', got 1: .* loss='kto\(running_kl=True\)'"):
        trainer_of("kto", per_device_train_batch_size=1)
    trainer = trainer_of("kto(running_kl=True)", per_device_train_batch_size=1, max_steps=5)
    trainer.train()
    assert int(trainer.loss.running_kl.count) == 5
    trainer_of("bco", per_device_train_batch_size=1, reference_cache=tmp_path / "bco")


def test_a_running_estimate_takes_each_step_in_once(trainer_of):
    model, reference = pulled_apart()
    trainer = trainer_of(
        "kto(running_kl=True)", model=model, reference=reference, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, max_steps=2, learning_rate=0.0,
    )  # fmt: skip
    with pytest.warns(LossmithWarning, match="several micro-batches are not one batch"):
        trainer.train()
    assert int(trainer.loss.running_kl.count) == 8
    kl = [entry["kl"] for entry in trainer.state.log_history[:2]]
    assert float(trainer.loss.running_kl.average) == pytest.approx(sum(kl) / 2, rel=1e-5)


@pytest.mark.parametrize("peft", [None, LoraConfig(r=4, target_modules=["q_proj"])])
def test_kto_starts_at_one_half_without_divergence(peft, trainer_of):
    trainer = trainer_of(
        "kto", model=llama(dtype=torch.float32), peft_config=peft, precompute_ref_batch_size=3, learning_rate=0.0,
        eval_dataset=made.completions(5, seed=2), eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer.train()
    logs = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert abs(logs["loss"] - 0.5) < 1e-5
    assert abs(logs["eval_loss"] - 0.5) < 1e-5
    assert abs(logs["kl"]) < 1e-5
    assert trainer.ref_model is None


@pytest.mark.parametrize("text", ["kto(beta=0.2) + 0.2*cross_entropy", "bco + 0.1*focal", "kto(running_kl=True)"])
def test_evaluation_does_not_depend_on_batches(text, trainer_of):
    found = []
    for rows in (1, 3, 7):
        model, reference = pulled_apart()
        settings = {"eval_dataset": made.completions(7, seed=3), "per_device_eval_batch_size": rows}
        found.append(trainer_of(text, model=model, reference=reference, **settings).evaluate())
    for metrics in found[1:]:
        for name in (name for name in found[0] if "/" in name or name in ("eval_loss", "eval_nll", "eval_kl")):
            assert metrics[name] == pytest.approx(found[0][name], rel=1e-6), name


def test_evaluation_equals_the_formula_by_hand(trainer_of):
    (model, reference), data = pulled_apart(), made.completions(7, seed=3)
    trainer = trainer_of(
        "kto(beta=0.2)", model=model, reference=reference, eval_dataset=data, per_device_eval_batch_size=2
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        value = kto_by_hand(model, reference, data, 0.2, 1.0, 1.0)
        ratios = log_ratios(model, reference, [(row["prompt"], row["completion"]) for row in data])
    good = torch.tensor([row["label"] for row in data])
    assert metrics["eval_loss"] == pytest.approx(value.item(), rel=1e-6)
    assert metrics["eval_rewards/chosen"] == pytest.approx(0.2 * ratios[good].mean().item(), rel=1e-6)
    assert metrics["eval_rewards/rejected"] == pytest.approx(0.2 * ratios[~good].mean().item(), rel=1e-6)
    margin = 0.2 * (ratios[good].mean() - ratios[~good].mean()).item()
    assert metrics["eval_rewards/margins"] == pytest.approx(margin, rel=1e-6)
    right = (ratios > 0) == good
    assert metrics["eval_rewards/accuracies"] == pytest.approx(right.double().mean().item())
    assert metrics["eval_displacement/chosen"] == pytest.approx(ratios[good].mean().item(), rel=1e-6)


def test_resume_with_a_running_estimate_is_bit_equal(trainer_of, tmp_path):
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "optim": "adamw_torch", "save_strategy": "steps",
                "save_steps": 3, "train_sampling_strategy": "random"}  # fmt: skip
    text = "kto(running_kl=True) + 0.1*cross_entropy"
    whole = trainer_of(text, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    other = trainer_of(text, output_dir=str(tmp_path / "other"), **settings)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in (*whole.model.state_dict().items(), *whole.loss.state_dict().items()):
        found = {**other.model.state_dict(), **other.loss.state_dict()}[name]
        assert torch.equal(found, value), name
    assert int(whole.loss.terms[0].running_kl.count) == 12


def test_the_best_model_comes_back_with_its_running_estimate(trainer_of):
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(
        "kto(running_kl=True)", eval_dataset=made.completions(), max_steps=3, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True, **every_step,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert int(trainer.loss.running_kl.count) == 8


def test_pairs_are_taken_apart(trainer_of):
    trainer = trainer_of("kto", data=made.pairs())
    assert len(trainer.train_dataset) == 16
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_sorted_rows_in_their_order_are_warned_of(trainer_of):
    data = made.completions(40, seed=6)
    data = data.select([*(n for n in range(40) if data[n]["label"]), *(n for n in range(40) if not data[n]["label"])])
    with pytest.warns(LossmithWarning, match=r"change 1 times where a mixed order has 18, .* 'random' works here"):
        trainer_of("kto", data=data)
    trainer_of("kto", data=data, train_sampling_strategy="random")


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("loss_type", "apo_zero_unpaired", "write loss='bco' or 'kto'"),
        ("beta", 0.3, r"write loss='kto\(beta=0\.3\)'"),
        ("desirable_weight", 1.3, r"as in loss='kto\(desirable_weight=1\.3\)'"),
        ("undesirable_weight", 0.5, r"as in loss='kto\(undesirable_weight=0\.5\)'"),
        ("sync_ref_model", True, "the reference is computed once"),
    ],
)
def test_settings_of_trls_loss_are_refused(setting, value, said, trainer_of):
    with pytest.raises(ConfigurationError, match=said):
        trainer_of("kto", **{setting: value})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("dpo", r"'dpo' is a preference loss, which a KTOTrainer cannot train: use .*DPOTrainer"),
        ("cross_entropy", r"'cross_entropy' is a token loss, which compares no completions"),
        ("kto + dpo", r"'dpo' is a preference loss"),
    ],
)
def test_losses_that_do_not_fit(loss, said, trainer_of):
    with pytest.raises(ConfigurationError, match=said):
        trainer_of(loss)


def test_data_that_do_not_fit(trainer_of):
    with pytest.raises(DataError, match=r"needs the columns `completion` and `label` or `chosen` and `rejected`"):
        trainer_of("kto", data=Dataset.from_list([{"prompt": "w5 ", "completion": "w6 "}]))
    with pytest.raises(ConfigurationError, match=r"must be a datasets\.Dataset, got IterableDataset"):
        trainer_of("kto", data=made.completions().to_iterable_dataset())
    with pytest.raises(DataError, match="two rows at least"):
        trainer_of("kto", data=made.completions(1))
