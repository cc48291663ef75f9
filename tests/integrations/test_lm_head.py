"""The loss at the output embedding equals the loss on logits that the model builds, whatever its head looks like."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from causal_cases import (
    DECODER,
    HIDDEN,
    TOLERANCE,
    VOCAB,
    Gradients,
    causal_model,
    distance,
    gradients,
    padded,
    ragged_rows,
    spread_out,
)
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import lossmith
from linear_cases import Probe, small_tiles
from lossmith.errors import ModelError, ObjectiveInputError
from lossmith.integrations.batches import aligned_labels
from lossmith.integrations.lm_head import HeadLoss

LOSS = "0.6*cross_entropy + 0.4*lovasz_softmax"

# peft 0.21 asks transformers 5.23 for a property that v6 renames.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
UNTIED = {"tie_word_embeddings": False}


@pytest.fixture(autouse=True)
def _tiles() -> Iterator[None]:
    with small_tiles(7, itemsize=4):
        yield


def batch_of(side: str = "right") -> dict[str, Tensor]:
    return padded(side)(ragged_rows())


def targets(batch: dict[str, Tensor]) -> Tensor:
    return aligned_labels(batch["labels"], attention_mask=batch["attention_mask"])


def dense(model: Any, batch: dict[str, Tensor], extra: Callable[[Any], Any] = lambda outputs: 0.0) -> Tensor:
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True)
    return lossmith.loss(LOSS)(outputs.logits, targets(batch)) + extra(outputs)


def fused(model: Any, batch: dict[str, Tensor], extra: Callable[[Any], Any] = lambda outputs: 0.0) -> Tensor:
    outputs = HeadLoss(model)(model, batch, lambda linear: lossmith.loss(LOSS)(linear, targets(batch)))
    assert outputs.logits is None
    return outputs.loss + extra(outputs)


def both(model: Any, batch: dict[str, Tensor] | None = None, **how: Any) -> list[tuple[float, Gradients]]:
    """Value and gradients on built logits, then at the head; under one seed, for the dropout."""
    found = []
    for run in (dense, fused):
        model.zero_grad()
        torch.manual_seed(5)
        value = run(model, batch_of() if batch is None else batch, **how)
        value.backward()
        found.append((value.item(), gradients(model)))
    return found


def assert_equal(model: Any, batch: dict[str, Tensor] | None = None, tolerance: float = TOLERANCE, **how: Any) -> None:
    (built, by_logits), (value, at_head) = both(model, batch, **how)
    assert value == pytest.approx(built, rel=1e-6)
    assert distance(at_head, by_logits) < tolerance


HEADS = {
    "plain": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "tied by default": ("GPT2", {}),
    "with normed queries": ("Qwen3", {}),
    "with bias": ("GPTJ", {}),
    "partly rotary with bias": ("Phi", {}),
    "tied, of a post-norm decoder": ("OPT", {}),
    "tied, times a scale": ("Cohere", {"logit_scale": 0.3}),
    "over a divisor": ("Granite", {"logits_scaling": 3.0}),
    "tied and soft-capped": ("Gemma2", {"final_logit_softcapping": 2.0}),
    "of experts": ("Mixtral", {"num_local_experts": 4}),
}


@pytest.mark.parametrize("name", HEADS)
def test_fused_is_dense(name: str) -> None:
    """Regressions 9 and 13."""
    kind, settings = HEADS[name]
    model = causal_model(kind, **settings)
    assert_equal(model)
    head = model.get_output_embeddings()
    assert (head.bias is not None) == ("bias" in name)
    assert (head.weight is model.get_input_embeddings().weight) == name.startswith("tied")


@pytest.mark.parametrize("name", ["tied, times a scale", "over a divisor", "tied and soft-capped"])
def test_what_the_model_does_to_its_logits_matters(name: str) -> None:
    """The settings above are not ones that change nothing."""
    kind, settings = HEADS[name]
    plain = {"logit_scale": 1.0} if kind == "Cohere" else {"logits_scaling": 1.0} if kind == "Granite" else {}
    other = causal_model(kind, **(plain or {"final_logit_softcapping": None}))
    model = causal_model(kind, **settings)
    assert abs(fused(model, batch_of()).item() - fused(other, batch_of()).item()) > 1e-2


def test_auxiliary_loss_of_experts_is_still_returned() -> None:
    model = causal_model("Mixtral", num_local_experts=4, output_router_logits=True)
    assert_equal(model, extra=lambda outputs: 0.5 * outputs.aux_loss)


def lora(model: Any, *targets: str, name: str = "default", **settings: Any) -> Any:
    known: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": list(targets), "lora_dropout": 0.0}
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(**{**known, **settings}), adapter_name=name)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


ADAPTERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "off the head": (("q_proj",), {}),
    "on the head": (("q_proj", "lm_head"), {}),
    "on the head, rank-stabilised": (("lm_head",), {"use_rslora": True}),
    "head saved whole": (("q_proj",), {"modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_lora(name: str) -> None:
    names, settings = ADAPTERS[name]
    model = lora(causal_model("Llama"), *names, **settings)
    assert_equal(model)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lm_head" in key for key in trained) == (name != "off the head")


@pytest.mark.parametrize("name", ["off the head", "on the head"])
def test_lora_dropout_in_training_mode(name: str) -> None:
    model = lora(causal_model("Llama"), *ADAPTERS[name][0], lora_dropout=0.4).train()
    assert_equal(model)
    (first, _), _ = both(model)
    assert first != pytest.approx(dense(model.eval(), batch_of()).item(), rel=1e-4)


def test_lora_over_a_scaled_head_with_bias() -> None:
    assert_equal(lora(causal_model("Cohere", logit_scale=0.3, **UNTIED), "lm_head"))
    assert_equal(lora(causal_model("Phi"), "lm_head"))
    assert_equal(lora(causal_model("Phi"), "lm_head", lora_bias=True))
    assert_equal(lora(causal_model("Gemma2", final_logit_softcapping=2.0, **UNTIED), "lm_head"))


def test_two_adapters() -> None:
    model = lora(causal_model("Llama"), "q_proj", "lm_head")
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["lm_head"], init_lora_weights=False)
    model.add_adapter("second", config)
    for active in ("second", "default"):
        model.set_adapter(active)
        assert_equal(model)
    model.base_model.set_adapter(["default", "second"])
    assert_equal(model)
    with model.disable_adapter(), torch.no_grad():
        assert fused(model, batch_of()).item() == pytest.approx(dense(model, batch_of()).item(), rel=1e-6)


def test_merged_is_unmerged() -> None:
    model = lora(causal_model("Llama"), "q_proj", "lm_head")
    for parameter in model.get_base_model().model.norm.parameters():
        parameter.requires_grad_()
    found = []
    for change in (lambda: model, model.merge_adapter, model.unmerge_adapter, model.merge_and_unload):
        change()
        value = fused(model, batch_of())
        value.backward()
        gradient = model.get_base_model().model.norm.weight.grad
        found.append((value.item(), {"norm": gradient.clone()}))
        gradient.zero_()
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-6)
        assert distance(gradient, found[0][1]) < 1e-6


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_count_no_labels(kind: str) -> None:
    config: Any = PromptTuningConfig if kind == "prompt" else PrefixTuningConfig
    torch.manual_seed(2)
    model = get_peft_model(causal_model("Llama"), config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)).eval()
    batch = batch_of()
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = outputs.logits[:, -batch["labels"].shape[1] :]
    value = lossmith.loss(LOSS)(logits, targets(batch))
    value.backward()
    expected = gradients(model)
    model.zero_grad()
    found = fused(model, batch)
    found.backward()
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    assert distance(gradients(model), expected) < TOLERANCE


def test_bf16_autocast() -> None:
    model = causal_model("Llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (built, by_logits), (value, at_head) = both(model)
    exact = both(model)[0]
    assert value == pytest.approx(built, rel=2e-2)
    assert value != exact[0]
    # As wrong as naive code in the same dtype, not more.
    assert distance(at_head, exact[1]) < 1.5 * distance(by_logits, exact[1]) + 1e-3


def test_products_round_as_the_models_own_under_autocast() -> None:
    """The loss is made behind the model's autocast region, and rounds as inside of it."""
    model, seen = causal_model("Llama"), []
    forward = model.forward

    def cast_forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = cast_forward

    def compute(linear: lossmith.LinearLogits) -> Tensor:
        seen.append(linear.operand_dtype)
        return linear.zero()

    HeadLoss(model)(model, batch_of(), compute)
    assert seen == [torch.bfloat16]


def test_half_precision_model() -> None:
    model = causal_model("Llama").to(torch.bfloat16)
    (built, by_logits), (value, at_head) = both(model)
    assert value == pytest.approx(built, rel=2e-2)
    assert distance(at_head, by_logits) < 2e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = causal_model("Llama").train()
    fused(model, batch_of()).backward()
    expected = gradients(model)
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # transformers 5.23 has a new name for it, 5.0 has this one only.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    fused(model, batch_of()).backward()
    assert distance(gradients(model), expected) < TOLERANCE


def test_logits_are_never_built() -> None:
    """Regression 10; `labels` do not reach the model, which would make its own loss of logits."""
    batch = padded()(ragged_rows([14] * 8))
    model, (rows, width) = causal_model("Llama"), batch["labels"].shape
    tokens = rows * width

    def largest(run: Callable[[Any, dict[str, Tensor]], Tensor]) -> int:
        with Probe() as probe:
            run(model, batch).backward()
        return probe.largest

    # The output matrix, the widest layer and the attention of two heads are as large as they are.
    limit = max(VOCAB * HIDDEN, tokens * DECODER["intermediate_size"], rows * 2 * width * width)
    assert largest(fused) <= limit < tokens * VOCAB <= largest(dense)


def test_the_model_gets_everything_but_labels() -> None:
    model, seen = causal_model("Llama"), {}
    forward = model.forward

    def listen(**kwargs: Any) -> Any:
        seen.update(kwargs)
        return forward(**kwargs)

    model.forward = listen
    HeadLoss(model)(model, {**batch_of(), "use_cache": False}, lambda linear: linear.zero())
    assert set(seen) == {"input_ids", "attention_mask", "use_cache", "return_dict"}


def test_any_tensor_may_come_back() -> None:
    model, batch = causal_model("Llama"), batch_of("left")
    with torch.no_grad():
        found = HeadLoss(model)(
            model, batch, lambda linear: -lossmith.loss("cross_entropy")(linear, targets(batch), reduction="none")
        )
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = targets(batch)
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0)
    assert_close(found.loss, expected, atol=1e-5, rtol=1e-5)


def state_of(model: Any) -> list[Any]:
    return [
        (path, id(module), sorted(module.__dict__), len(module._forward_pre_hooks), len(module._forward_hooks))
        for path, module in model.named_modules()
    ]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_model_is_left_as_it_was(adapted: bool) -> None:
    model = lora(causal_model("Llama"), "lm_head") if adapted else causal_model("Llama")
    before = state_of(model)
    fused(model, batch_of())
    assert state_of(model) == before

    def broken(linear: lossmith.LinearLogits) -> Tensor:
        raise KeyError("in the loss")

    with pytest.raises(KeyError, match="in the loss"):
        HeadLoss(model)(model, batch_of(), broken)
    assert state_of(model) == before
    with pytest.raises(IndexError):
        HeadLoss(model)(model, {"input_ids": torch.full((1, 3), VOCAB + 5)}, lambda linear: linear.zero())
    assert state_of(model) == before
    assert torch.is_tensor(model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits)


def test_a_forward_of_its_own_comes_back() -> None:
    """Such as accelerate's, which wraps it for mixed precision."""
    model = causal_model("Llama")
    forward = model.forward
    model.forward = own = lambda *args, **kwargs: forward(*args, **kwargs)
    fused(model, batch_of())
    assert model.forward is own


# What the model does to its logits


class Changed(LlamaForCausalLM):
    """A language model that does something of its own to its logits."""

    change: Any = None

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        logits = type(self).change(self, hidden)
        return CausalLMOutputWithPast(loss=None, logits=logits)


def changed(change: Callable[[Any, Tensor], Any]) -> Any:
    kind = type("Changed", (Changed,), {"change": staticmethod(change)})
    torch.manual_seed(0)
    return spread_out(kind(Changed.config_class(**DECODER))).eval()


RECORDED = {
    "sliced": lambda self, hidden: self.lm_head(hidden)[:, -13:, :],
    "sliced by an ellipsis": lambda self, hidden: self.lm_head(hidden)[..., :, :],
    "cast": lambda self, hidden: self.lm_head(hidden).float().contiguous().to(torch.float32),
    "negated": lambda self, hidden: -(2 * -self.lm_head(hidden)),
    "by torch functions": lambda self, hidden: torch.mul(torch.tanh(torch.div(self.lm_head(hidden), 2.5)), 2.5),
    "soft-cap then scale": lambda self, hidden: 3 * (self.lm_head(hidden) * 0.5).tanh() / 2.0,
    "by a number in a tensor": lambda self, hidden: self.lm_head(hidden) * torch.tensor(0.5),
    "reshaped": lambda self, hidden: self.lm_head(hidden).view(-1, VOCAB).reshape(*hidden.shape[:2], VOCAB),
    "by its weight's dtype": lambda self, hidden: self.lm_head(hidden.to(self.lm_head.weight.dtype)),
    "of what it asked of the shape": lambda self, hidden: self.lm_head(hidden) / (self.lm_head(hidden).size(-1) / 40),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    assert_equal(changed(RECORDED[name]))


REFUSED = {
    "a slice of the vocabulary": lambda self, hidden: self.lm_head(hidden)[..., :50],
    "a slice of the vocabulary ": lambda self, hidden: self.lm_head(hidden)[:, :, 1:],
    "a product with a tensor (61,)": lambda self, hidden: self.lm_head(hidden) * torch.ones(VOCAB),
    "a product with a tensor (1,)": lambda self, hidden: nn.Parameter(torch.ones(1)) * self.lm_head(hidden),
    "a quotient with a tensor (61,)": lambda self, hidden: self.lm_head(hidden) / torch.ones(VOCAB),
    "a sum with Tensor": lambda self, hidden: self.lm_head(hidden) + torch.ones(VOCAB),
    "a sum of two calls of its output embedding": lambda self, hidden: self.lm_head(hidden) + self.lm_head(-hidden),
    "a second tanh": lambda self, hidden: self.lm_head(hidden).tanh().tanh(),
    "torch's `log_softmax`": lambda self, hidden: torch.log_softmax(self.lm_head(hidden), -1),
    "torch's `relu`": lambda self, hidden: nn.functional.relu(self.lm_head(hidden)),
    "`.masked_fill`": lambda self, hidden: self.lm_head(hidden).masked_fill(torch.ones(VOCAB).bool(), 0),
    "`.mul_`": lambda self, hidden: self.lm_head(hidden).mul_(2),
    "`.div_`": lambda self, hidden: self.lm_head(hidden).div_(2),
    "a shape without the vocabulary as its last axis": lambda self, hidden: self.lm_head(hidden).view(-1),
    "a shape without the vocabulary as its last axis ": lambda self, hidden: self.lm_head(hidden).view(4, -1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what: str) -> None:
    model = changed(REFUSED[what])
    with pytest.raises(ModelError) as caught:
        fused(model, batch_of())
    assert str(caught.value).startswith(f"Changed computes {what.strip()} on its logits, which cannot be recorded")
    assert "compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)" in str(caught.value)


def test_logits_made_elsewhere_are_refused() -> None:
    model = changed(lambda self, hidden: hidden @ self.lm_head.weight.T)
    with pytest.raises(ModelError, match="makes logits in another way than by its output embedding 'lm_head'"):
        fused(model, batch_of())


def test_logits_to_keep() -> None:
    model, batch, keep = causal_model("Llama"), batch_of("left"), 5
    labels = targets(batch)[:, -keep:]
    given = {**batch, "logits_to_keep": keep}
    asked = {name: value for name, value in given.items() if name != "labels"}
    expected = lossmith.loss(LOSS)(model(**asked).logits, labels)
    found = HeadLoss(model)(model, given, lambda linear: lossmith.loss(LOSS)(linear, labels)).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ObjectiveInputError, match="`labels` must have one entry per row of `logits`"):
        HeadLoss(model)(model, given, lambda linear: lossmith.loss(LOSS)(linear, targets(batch)))


# Heads


def with_head(head: nn.Module | None) -> Any:
    model = causal_model("Llama")
    model.lm_head = head
    return model


def test_a_head_that_is_a_sequence_of_one_linear_map() -> None:
    assert_equal(with_head(spread_out(nn.Sequential(nn.Dropout(0.0), nn.Linear(HIDDEN, VOCAB)))))


class _Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def quantised() -> nn.Linear:
    head = nn.Linear(HIDDEN, VOCAB, bias=False)
    head.weight = nn.Parameter(torch.ones(VOCAB, HIDDEN, dtype=torch.int8), requires_grad=False)
    return head


WRONG_HEADS = {
    "is quantised (Linear, torch.int8): keep it in floating point": quantised,
    "must be a linear map (torch.nn.Linear), got Embedding": lambda: nn.Embedding(VOCAB, HIDDEN),
    "is a _Twice with a forward of its own": lambda: _Twice(HIDDEN, VOCAB),
}


@pytest.mark.parametrize("sentence", WRONG_HEADS)
def test_heads_that_are_no_linear_map_are_refused_at_once(sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        HeadLoss(with_head(WRONG_HEADS[sentence]()))
    assert f"The output embedding of LlamaForCausalLM {sentence}" in str(caught.value)


NONLINEAR = {
    "a tanh behind": lambda: nn.Sequential(nn.Linear(HIDDEN, VOCAB), nn.Tanh()),
    "a softplus behind": lambda: nn.Sequential(nn.Linear(HIDDEN, VOCAB), nn.Softplus()),
    "two layers": lambda: nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, VOCAB)),
    "two layers of one size": lambda: nn.Sequential(nn.Linear(HIDDEN, VOCAB), nn.Tanh(), nn.Linear(VOCAB, VOCAB)),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_heads_that_do_more_are_refused_when_run(name: str) -> None:
    model = with_head(NONLINEAR[name]())
    before = state_of(model)
    with pytest.raises(ModelError, match=r"train it on dense logits, with `compute_loss_func="):
        fused(model, batch_of())
    assert state_of(model) == before


def test_no_head() -> None:
    with pytest.raises(ModelError, match=r"LlamaModel has no output embedding, so no loss can be computed there\."):
        HeadLoss(causal_model("Llama").model)
    with pytest.raises(ModelError, match="Linear has no output embedding"):
        HeadLoss(nn.Linear(2, 2))


def test_dora_on_the_head_is_refused_in_one_sentence() -> None:
    model = lora(causal_model("Llama"), "lm_head", use_dora=True)
    with pytest.raises(ModelError, match="cannot be recorded") as caught:
        fused(model, batch_of())
    assert str(caught.value).count(". ") == 0
    assert_equal(lora(causal_model("Llama"), "q_proj", use_dora=True))


def test_contract_with_peft() -> None:
    """Relied on: a LoRA layer calls `base_layer` and `lora_B(lora_A(x))` as modules and adds `* scaling`."""
    head = lora(causal_model("Llama"), "lm_head").get_output_embeddings()
    assert isinstance(head, LoraLayer)
    assert isinstance(head.get_submodule("base_layer"), nn.Linear)
    assert isinstance(head.get_submodule("lora_B.default"), nn.Linear)
    hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(0))
    by_hand = head.base_layer(hidden) + head.lora_B["default"](head.lora_A["default"](hidden)) * head.scaling["default"]
    assert_close(head(hidden), by_hand)


def test_a_wrapper_that_keeps_an_older_forward() -> None:
    """It would build the logits and leave the loss out."""

    class Keeper(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.kept = model.forward

        def forward(self, **inputs: torch.Tensor):
            return self.kept(**inputs)

    model = causal_model("Llama")
    with pytest.raises(ModelError, match="Keeper did not call the forward of LlamaForCausalLM"):
        HeadLoss(model)(Keeper(model), {"input_ids": torch.tensor([[1, 2, 3]])}, lambda linear: linear.zero())
