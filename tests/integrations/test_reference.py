"""Log-probabilities of completions, and the reference policy within a PEFT model."""

import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.testing import assert_close

import lossmith
from linear_cases import Probe
from lossmith.errors import ModelError, ObjectiveInputError
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.reference import adapter_off, completion_logps
from reference_inputs import WORDS, completions, llama, lora, shake


def logps(model: Any, batch: dict[str, Any] | None = None) -> torch.Tensor:
    return completion_logps(HeadLoss(model), model, batch or completions())


def by_hand(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """From logits that exist, each row alone and without padding, with math.exp and math.log."""
    found = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        ids, labels, total = ids[mask.bool()], labels[mask.bool()].tolist(), 0.0
        scores = model(ids[None]).logits[0].tolist()
        for place in range(1, len(labels)):
            if labels[place] != -100:
                row = scores[place - 1]
                total += row[labels[place]] - math.log(sum(math.exp(score) for score in row))
        found.append(total)
    return found


@pytest.mark.parametrize("left", [False, True])
def test_sums_over_completions_padded_on_either_side(left: bool) -> None:
    model, batch = llama(), completions(left=left)
    found = logps(model, batch)
    assert found.tolist() == pytest.approx(by_hand(model, batch), rel=1e-6)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    # The row without tokens, and rows that differ by far more than the tolerance.
    assert found[3] == 0
    assert found.diff().abs().min() > 1


def test_nothing_counts_anywhere() -> None:
    batch = completions()
    batch["labels"].fill_(-100)
    assert logps(llama(), batch).tolist() == [0.0] * 5


class Outer(torch.nn.Module):
    """What wraps a model; notes what it was called with."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        self.given = set(inputs)
        return self.module(**inputs)


def test_labels_under_another_name_stay_out_of_the_model() -> None:
    model, batch = llama(), completions()
    renamed = {"completion_ids" if name == "labels" else name: value for name, value in batch.items()}
    outer = Outer(model)
    found = completion_logps(HeadLoss(model), outer, renamed, labels_key="completion_ids")
    assert_close(found, logps(model, batch), rtol=0, atol=0)
    assert outer.given == {"input_ids", "attention_mask", "use_cache", "return_dict"}


def test_half_precision_sums_in_float32() -> None:
    half = llama(dtype=torch.bfloat16)
    exact = llama(dtype=torch.bfloat16).double()
    found = logps(half)
    assert found.dtype == torch.float32
    assert_close(found.double(), logps(exact), rtol=0.02, atol=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = logps(llama(dtype=torch.float32))
    assert_close(under.double(), logps(llama()), rtol=0.02, atol=0.2)
    assert not torch.equal(under.double(), logps(llama()))


def test_no_tensor_is_as_large_as_the_logits() -> None:
    model = llama(dtype=torch.float32, vocab_size=5003, hidden_size=8)
    ids = torch.randint(0, 5003, (4, 48), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    weight, logits = model.lm_head.weight.numel(), ids.numel() * 5003
    lossmith.set_chunk_budget(7 * 5003 * 4)
    try:
        with Probe() as probe:
            found = logps(model, batch)
    finally:
        lossmith.set_chunk_budget(None)
    assert probe.largest <= weight < logits / 20
    with Probe() as seeing:
        expected = by_hand(model, batch)
    assert seeing.largest >= 48 * 5003
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_dropout_and_checkpointing_change_nothing_and_come_back() -> None:
    model = lora(llama(attention_dropout=0.5), lora_dropout=0.5)
    shake(model)
    expected = logps(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    frozen = model.get_base_model().model.layers[1].eval()
    before = [module.training for module in model.modules()]
    assert_close(logps(model), expected, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == before
    assert model.training
    assert not frozen.training


def test_modes_come_back_after_an_exception() -> None:
    model = llama().train()
    with pytest.raises(IndexError):
        logps(model, {**completions(), "input_ids": completions()["input_ids"] + WORDS})
    assert all(module.training for module in model.modules())


def test_packed_rows_are_refused() -> None:
    ids = torch.arange(1, 9)[None]
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}
    with pytest.raises(ObjectiveInputError, match="must hold one sequence per row, got a packed row"):
        logps(llama(), batch)
    # A packed row in which one sequence counts has one completion.
    batch["labels"] = torch.where(torch.arange(8) < 6, -100, ids)
    assert float(logps(llama(), batch)) < -1


def test_missing_labels() -> None:
    batch = completions()
    del batch["labels"]
    with pytest.raises(ObjectiveInputError, match="must hold the tensor `labels`, got input_ids, attention_mask"):
        logps(llama(), batch)


def test_the_reference_stays_when_the_adapter_trains() -> None:
    base = logps(llama())
    model = lora(llama())
    with adapter_off(model):
        assert_close(logps(model), base, rtol=0, atol=0)
    shake(model)
    # Through the adapters, and through the copy of the output embedding.
    assert (logps(model) - base).abs()[[0, 1, 2, 4]].min() > 1e-2
    with adapter_off(model):
        assert_close(logps(model), base, rtol=0, atol=0)


@pytest.mark.parametrize("copied", [["lm_head"], ["embed_tokens", "norm"]])
def test_peft_turns_off_what_modules_to_save_copied(copied: list[str]) -> None:
    model = lora(llama(), target_modules=["q_proj"], modules_to_save=copied)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight *= 1.5
    base = logps(llama())
    assert (logps(model) - base).abs().max() > 1e-2
    with adapter_off(model):
        assert_close(logps(model), base, rtol=0, atol=0)


def test_dpo_begins_at_log_two_and_leaves_it() -> None:
    model, batch = lora(llama(dtype=torch.float32)), completions()
    head, pairs = HeadLoss(model), torch.tensor([[0, 4], [1, 2]])
    objective = lossmith.loss("dpo", beta=0.5)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)

    def policy() -> torch.Tensor:
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        wanted = batch["labels"][:, 1:]
        picked = scores[:, :-1].gather(2, wanted.clamp(min=0)[..., None]).squeeze(2)
        return (picked * (wanted != -100)).sum(1)

    losses, references = [], []
    for _ in range(6):
        with adapter_off(model):
            reference = completion_logps(head, model, batch)
        now = policy()
        value = objective(*now[pairs.T], *reference[pairs.T])
        losses.append(float(value.detach()))
        references.append(reference)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.6
    assert all(torch.equal(reference, references[0]) for reference in references)


def with_ref() -> Any:
    """A trained adapter with its copy "ref", made as TRL makes it."""
    model = lora(llama())
    shake(model)
    model.add_adapter("ref", model.peft_config["default"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).copy_(weight)
    return model


def test_a_ref_adapter_is_the_reference() -> None:
    model = with_ref()
    began = logps(model)
    shake(model, seed=6)
    with adapter_off(model):
        assert_close(logps(model), began, rtol=0, atol=0)
    assert (logps(model) - began).abs().max() > 1e-2


def test_trl_calls_its_copy_ref() -> None:
    """What `adapter_off` relies on in TRL: the name, and that the adapter off is the reference without it."""
    from trl import DPOTrainer

    assert 'add_adapter("ref"' in inspect.getsource(DPOTrainer.__init__)
    assert 'adapter_name="ref" if "ref" in' in inspect.getsource(DPOTrainer.compute_ref_log_probs)


@pytest.mark.parametrize("make", [lambda: lora(llama()), with_ref], ids=["off", "ref"])
def test_everything_comes_back_also_after_an_exception(make: Any) -> None:
    model = make()
    shake(model)
    # One adapter weight is frozen, which PEFT would forget.
    model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight").requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    value = logps(model)
    with pytest.raises(IndexError), adapter_off(model) as given:
        given(input_ids=torch.tensor([[WORDS]]))
    assert model.active_adapter == "default"
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert_close(logps(model), value, rtol=0, atol=0)


def test_adapters_that_are_on_together_come_back_together() -> None:
    model = lora(llama(), modules_to_save=None)
    for name in ("ref", "other"):
        model.add_adapter(name, model.peft_config["default"])
    shake(model, seed=8)
    model.base_model.set_adapter(["default", "other"])
    both = logps(model)
    with adapter_off(model):
        assert model.active_adapters == ["ref"]
    assert model.active_adapters == ["default", "other"]
    assert_close(logps(model), both, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_turned_off(config: Any) -> None:
    """Contract of PEFT 0.21: `disable_adapter` keeps the base's `forward` as it is at that moment."""
    base = logps(llama(dtype=torch.float32))
    model = get_peft_model(llama(dtype=torch.float32), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    before = logps(model)
    assert (before - base).abs().max() > 1e-3
    with adapter_off(model):
        assert_close(logps(model), base, rtol=0, atol=0)
    assert_close(logps(model), before, rtol=0, atol=0)


def test_a_model_without_adapters_is_its_own_reference() -> None:
    model = llama()
    with adapter_off(model) as given:
        assert given is model


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bias": "all"}, r"trains biases of the base model \(bias='all'\)"),
        ({"init_lora_weights": "pissa"}, r"out of the base model \(init_lora_weights='pissa'\)"),
    ],
)
def test_a_base_that_moves_is_no_reference(settings: dict[str, Any], sentence: str) -> None:
    model = lora(llama(dtype=torch.float32), modules_to_save=None, **settings)
    with pytest.raises(ModelError, match=sentence), adapter_off(model):
        pass


def test_merged_wrapped_and_injected_adapters_are_refused() -> None:
    model = lora(llama(), modules_to_save=None)
    wrapped = torch.nn.ModuleDict({"module": model})
    with pytest.raises(ModelError, match="must be the PEFT model itself, got it wrapped in ModuleDict"):
        adapter_off(wrapped).__enter__()
    model.merge_adapter()
    with pytest.raises(ModelError, match=r"call `unmerge_adapter\(\)` first"):
        adapter_off(model).__enter__()
    from peft import LoraConfig

    injected = llama()
    injected.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="make a PEFT model of it with peft"):
        adapter_off(injected).__enter__()
