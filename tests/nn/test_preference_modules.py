"""Modules on log-probabilities: the six inputs, empty completions, running means, and inputs that cannot be meant."""

import io

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from lossmith import ObjectiveInputError
from lossmith.nn import UnpairedLoss
from lossmith.objectives import list_losses

PAIRS = [record.name for record in list_losses("preference")]
NAMES = (
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_lengths",
    "rejected_lengths",
)


def _pairs(rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logps = [(-30 - 9 * torch.randn(rows, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(4)]
    lengths = [torch.randint(5, 40, (rows,), generator=generator) for _ in range(2)]
    inputs = dict(zip(NAMES, [*logps, *lengths], strict=True))
    for name in NAMES[:2]:
        inputs[name].requires_grad_()
    return inputs


def _slopes(value: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, [inputs[n] for n in NAMES[:2]], retain_graph=True, materialize_grads=True))


@pytest.mark.parametrize("name", PAIRS)
def test_all_six_by_position_or_by_name(name: str) -> None:
    module, inputs = lossmith.loss(name).double(), _pairs(5)
    value = module(*inputs.values())
    assert torch.equal(lossmith.loss(name).double()(**inputs), value)
    assert value.item() != 0
    needed = {key: inputs[key] for key in module.required}
    assert torch.equal(lossmith.loss(name).double()(**needed), value), "what it does not read may be left out"


@pytest.mark.parametrize("name", PAIRS)
def test_a_fully_masked_completion_does_not_poison_the_batch(name: str) -> None:
    inputs = _pairs(6)
    keep = torch.tensor([True, True, False, True, False, True])
    for side, row in (("chosen", 2), ("rejected", 4)):
        inputs[f"{side}_lengths"][row] = 0
    poisoned = {key: value.detach().clone() for key, value in inputs.items()}
    poisoned["chosen_logps"][2] = torch.nan
    poisoned["ref_rejected_logps"][4] = torch.inf
    for key in NAMES[:2]:
        poisoned[key].requires_grad_()
    alone = {key: value.detach()[keep] for key, value in inputs.items()}
    for key in NAMES[:2]:
        alone[key].requires_grad_()
    wanted = lossmith.loss(name).double()(**alone)
    for given in (inputs, poisoned):
        value = lossmith.loss(name).double()(**given)
        assert_close(value, wanted, rtol=1e-14, atol=0)
        for slope, expected in zip(_slopes(value, given), _slopes(wanted, alone), strict=True):
            assert not bool(slope[~keep].any())
            assert_close(slope[keep], expected, rtol=1e-12, atol=1e-16)
    by_name = dict(poisoned)
    for side in ("chosen_lengths", "rejected_lengths"):
        by_name[side], alone[side] = inputs[side] + 1, alone[side] + 1
    module = lossmith.loss(name).double()
    assert_close(module(**by_name, valid=keep), lossmith.loss(name).double()(**alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_valid_is_a_zero_with_its_graph(name: str, rows: int) -> None:
    inputs = _pairs(rows, dtype=torch.float32)
    value = lossmith.loss(name)(**inputs, valid=torch.zeros(rows, dtype=torch.bool))
    assert value.requires_grad
    assert value.item() == 0
    assert not any(bool(slope.any()) for slope in _slopes(value, inputs))


def test_items_of_kto_pair_are_completions() -> None:
    inputs = _pairs(4)
    inputs["chosen_lengths"][1] = 0
    losses = lossmith.loss("kto_pair")(**inputs, reduction="none")
    assert losses.shape == (8,)
    assert [bool(value) for value in losses != 0] == [True, False, True, True] * 2
    assert_close(lossmith.loss("kto_pair")(**inputs), losses.sum() / 6)
    weights = torch.arange(8.0, dtype=torch.float64)
    got = lossmith.loss("kto_pair")(**inputs, weights=weights, num_items=3)
    assert_close(got, (weights * losses).sum() / 3)


@pytest.mark.parametrize("name", [name for name in PAIRS if not lossmith.loss(name).batch_coupled])
def test_micro_batches_over_one_count_are_one_batch(name: str) -> None:
    module, inputs = lossmith.loss(name).double(), _pairs(9)
    inputs["chosen_lengths"][[0, 1, 5]] = 0
    whole = module(**inputs)
    parts = [
        module(**{k: v[rows] for k, v in inputs.items()}, num_items=6)
        for rows in (slice(0, 2), slice(2, 5), slice(5, 9))
    ]
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    for got, wanted in zip(_slopes(torch.stack(parts).sum(), inputs), _slopes(whole, inputs), strict=True):
        assert_close(got, wanted, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", ["bco_pair(running_delta=True)", "bco"])
def test_the_shift_of_bco_is_a_running_mean_in_the_state(name: str) -> None:
    beta = 0.1

    def call(module: lossmith.nn.LossModule, seed: int) -> tuple[Tensor, Tensor]:
        inputs = {key: value.detach() for key, value in _pairs(5, seed=seed).items()}
        chosen = beta * (inputs["chosen_logps"] - inputs["ref_chosen_logps"])
        rejected = beta * (inputs["rejected_logps"] - inputs["ref_rejected_logps"])
        if name != "bco":
            return module(**inputs), torch.cat([chosen, rejected])
        desirable = torch.tensor([True, False, True, True, False])
        return module(inputs["chosen_logps"], inputs["ref_chosen_logps"], desirable), chosen

    module = lossmith.loss(name)
    _, first = call(module, 1)
    value, second = call(module, 2)
    seen = torch.cat([first, second])
    assert_close(module.rewards.mean(seen), seen.mean())
    assert int(module.rewards.count) == len(seen)
    frozen = lossmith.loss(name)
    frozen.load_state_dict(module.state_dict())
    frozen.eval()
    assert_close(call(frozen, 2)[0], value)
    assert int(frozen.rewards.count) == len(seen), "evaluation observes nothing"
    assert abs(call(lossmith.loss(name).eval(), 2)[0].item() - value.item()) > 1e-4, "the shift matters"
    assert module.batch_coupled
    exact = module.rewards.average.clone()
    half = module.bfloat16()
    assert half.rewards.average.dtype == torch.float32
    assert torch.equal(half.rewards.average, exact)


def test_bco_pair_keeps_nothing_unless_asked() -> None:
    module = lossmith.loss("bco_pair")
    assert not module.batch_coupled
    assert not module.state_dict()


def _completions(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _pairs(rows)
    return inputs["chosen_logps"], inputs["ref_chosen_logps"], torch.arange(rows) % 3 != 0


def test_the_kl_of_kto_is_averaged_clamped_and_constant() -> None:
    module, inputs = lossmith.loss("kto").double(), _completions(6)
    kl = torch.tensor([3.0, -1.0, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    value = module(*inputs, kl)
    assert_close(module(*inputs, kl.detach()[[2, 0, 3, 1]]), value, rtol=1e-14, atol=0)
    assert_close(module(*inputs, torch.tensor(1.0, dtype=torch.float64)), value)
    assert torch.autograd.grad(value, kl, allow_unused=True)[0] is None
    negative = module(*inputs, torch.tensor(-7.0, dtype=torch.float64))
    assert_close(negative, module(*inputs, torch.tensor(0.0, dtype=torch.float64)))
    with pytest.raises(
        ObjectiveInputError, match=r"^'kto' also needs `kl`\. Give log-ratios of policy to reference over prompts"
    ):
        module(*inputs)
    with pytest.raises(
        ObjectiveInputError, match=r"^`kl` must hold at least one floating-point number, got torch.int64"
    ):
        module(*inputs, torch.tensor(1))


def test_a_running_kl_serves_batches_of_one() -> None:
    module = lossmith.loss("kto", running_kl=True).double()
    assert isinstance(module, UnpairedLoss)
    logps, ref_logps, desirable = (value[:1] for value in _completions(3))
    with pytest.raises(ObjectiveInputError, match=r"^'kto\(running_kl=True\)' has seen no `kl` yet"):
        module(logps, ref_logps, desirable)
    for kl in (4.0, 1.0, 2.5):
        module(logps, ref_logps, desirable, torch.tensor([kl], dtype=torch.float64))
    given = lossmith.loss("kto").double()(logps, ref_logps, desirable, torch.tensor(2.5, dtype=torch.float64))
    assert_close(module(logps, ref_logps, desirable), given)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    assert module.batch_coupled
    assert not lossmith.loss("kto").batch_coupled
    fresh = lossmith.loss("kto", running_kl=True).double()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert_close(fresh(logps, ref_logps, desirable), given)


def test_a_sum_of_preference_losses_and_an_sft_term() -> None:
    inputs = _pairs(4)
    both = lossmith.loss("0.5*dpo + 0.5*simpo(gamma=0.3)").double()
    value = both(*inputs.values())
    by_hand = 0.5 * lossmith.loss("dpo")(**inputs) + 0.5 * lossmith.loss("simpo", gamma=0.3)(**inputs)
    assert_close(value, by_hand, rtol=1e-14, atol=0)
    logits, labels = torch.randn(3, 5, 7, dtype=torch.float64), torch.randint(0, 7, (3, 5))
    mixed = lossmith.loss("dpo + 0.2*cross_entropy")
    got = mixed(**inputs, logits=logits, labels=labels)
    assert_close(got, lossmith.loss("dpo")(**inputs) + 0.2 * lossmith.loss("cross_entropy")(logits, labels))
    counted = mixed(**inputs, logits=logits, labels=labels, num_items={"pair": 8, "token": 30})
    assert_close(counted, got / 2)
    with pytest.raises(ObjectiveInputError, match=r"^'dpo \+ 0.2\*cross_entropy' must be called with keywords: "):
        mixed(*inputs.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_goes_up(name: str, dtype: torch.dtype) -> None:
    half = {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in _pairs(6).items()}
    raised = {k: v.float() for k, v in half.items()}
    value = lossmith.loss(name)(**half)
    assert value.dtype == torch.float32
    assert torch.equal(value, lossmith.loss(name)(**raised))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "dpo",
            {"rejected_logps": torch.zeros(1)},
            r"^Shapes must be equal, got `chosen_logps` \(5,\), `rejected_logps` \(1,\)\.$",
        ),
        (
            "simpo",
            {"ref_chosen_logps": torch.zeros(1)},
            r"^Shapes must be equal, got `chosen_logps` \(5,\), `ref_chosen_logps` \(1,\)\.$",
        ),
        (
            "dpo",
            {"chosen_logps": torch.zeros(5, 1)},
            r"^`chosen_logps` must have one value per pair, \[pairs\], got \(5, 1\)\.$",
        ),
        ("dpo", {"chosen_logps": torch.zeros(5, dtype=torch.long)}, r"^`chosen_logps` must be floating-point log-prob"),
        ("dpo", {"ref_chosen_logps": None}, r"^'dpo' also needs `ref_chosen_logps`\.$"),
        ("simpo", {"chosen_lengths": None}, r"^'simpo' also needs `chosen_lengths`\.$"),
        (
            "simpo",
            {"chosen_lengths": torch.tensor([1, 2, -3, 4, 5])},
            r"^`chosen_lengths` must be >= 0 tokens, got -3\.$",
        ),
        (
            "simpo",
            {"chosen_lengths": torch.ones(5, dtype=torch.bool)},
            r"^`chosen_lengths` must be numbers of tokens, got",
        ),
        ("dpo", {"valid": torch.ones(5)}, r"^`valid` must be bool \(True = counts\), got torch.float32\.$"),
        ("dpo", {"chosen_logps": [1.0] * 5}, r"^`chosen_logps` must be a torch.Tensor, got list\.$"),
        ("dpo", {"chosen_logp": torch.zeros(5)}, r"^'dpo' has no input `chosen_logp`. Did you mean 'chosen_logps'\?"),
        (
            "dpo",
            {"rejected_logps": torch.zeros(5, device="meta")},
            r"^All inputs must be on one device, got `chosen_logps` on cpu",
        ),
    ],
)
def test_inputs_that_cannot_be_meant(name: str, change: dict, message: str) -> None:
    inputs = {key: value.detach() for key, value in _pairs(5).items()} | change
    with pytest.raises(ObjectiveInputError, match=message):
        lossmith.loss(name)(**inputs)


def test_too_many_inputs_and_a_wrong_kind_of_desirable() -> None:
    inputs = list(_pairs(5).values())
    with pytest.raises(ObjectiveInputError, match=r"^'dpo' takes at most 7 inputs \(`chosen_logps`, .*\), got 8\.$"):
        lossmith.loss("dpo")(*inputs, *inputs[:2])
    logps, ref_logps, desirable = _completions(5)
    with pytest.raises(
        ObjectiveInputError, match=r"^`desirable` must be bool \(True = desirable\), got torch.int64\.$"
    ):
        lossmith.loss("kto")(logps, ref_logps, desirable.long(), torch.tensor(0.0))
    with pytest.raises(ObjectiveInputError, match=r"^Shapes must be equal, got `logps` \(5,\), `desirable` \(2,\)\.$"):
        lossmith.loss("bco")(logps, ref_logps, desirable[:2])


@pytest.mark.parametrize("text", ["dpo(label_smoothing=0.1)", "dpo"])
def test_label_smoothing_on_dpo_points_to_cdpo(text: str) -> None:
    settings = {} if "(" in text else {"label_smoothing": 0.1}
    with pytest.raises(
        ObjectiveInputError, match=r"'dpo' has no hyper-parameter `label_smoothing`: use 'cdpo', which has"
    ):
        lossmith.loss(text, **settings)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_losses_that_sort_take_no_weights(name: str) -> None:
    with pytest.raises(ObjectiveInputError, match=rf"^'{name}' sorts its pairs, so no loss belongs to one of them"):
        lossmith.loss(name)(**_pairs(4), weights=torch.ones(4))
