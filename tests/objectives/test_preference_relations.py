"""What the docstrings of the pair preference objectives state: known values and exact relations between them."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossmith.errors import ObjectiveInputError
from lossmith.objectives import (
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    bco_pair_loss,
    cdpo_loss,
    cpo_loss,
    dpo_length_normalized_loss,
    dpo_loss,
    dpop_loss,
    exo_pair_loss,
    get_record,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    kto_loss,
    kto_pair_loss,
    nca_pair_loss,
    orpo_loss,
    preference_accuracy,
    robust_dpo_loss,
    simpo_loss,
    sppo_hard_loss,
)
from oracles_preference import Pair
from preference_inputs import make_pairs, statistics_of, tensor


def test_known_values_where_policy_and_reference_agree() -> None:
    log2, same = math.log(2), [Pair(p.chosen, p.rejected, p.chosen, p.rejected, 4.0, 9.0) for p in make_pairs(3)]
    wanted = {
        "dpo": log2,
        "cdpo": log2,
        "robust_dpo": log2,
        "hinge": 1.0,
        "ipo": 25.0,
        "exo_pair": -log2 - 0.5 * math.log(0.001 * 0.999),
        "dpop": log2,
        "dpo_length_normalized": log2,
        "nca_pair": 2 * log2,
        "bco_pair": 2 * log2,
        "sppo_hard": 50.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "aot": log2,
        "kto_pair": 0.5,
    }
    for name, value in wanted.items():
        losses = get_record(name).function(**statistics_of(name, same))
        assert_close(losses, torch.full_like(losses, value), rtol=1e-14, atol=0, msg=name)


def test_known_values_without_reference() -> None:
    a, b = tensor([-5.0, -30.0]), tensor([-10.0, -9.0])
    four, eight = tensor([4.0, 4.0]), tensor([8.0, 8.0])
    assert_close(simpo_loss(a, 2 * a - 4.0, four, eight, beta=2.0, gamma=1.0), tensor([math.log(2)] * 2))
    assert_close(orpo_loss(a, 2 * a, four, eight, coefficient=0.3), -a / 4 + 0.3 * math.log(2))
    assert_close(cpo_loss(b, b, four, nll_coefficient=0.3), math.log(2) - 0.3 * b / 4)


def test_where_the_bounded_losses_are_smallest() -> None:
    zero, e, beta = tensor([0.0]), 0.2, 0.5
    best = tensor([math.log((1 - e) / e) / beta]).requires_grad_()
    entropy = -(e * math.log(e) + (1 - e) * math.log(1 - e))
    for function, least in ((cdpo_loss, entropy), (exo_pair_loss, 0.0)):
        losses = function(best, zero, zero, zero, beta=beta, label_smoothing=e)
        assert losses.item() == pytest.approx(least, abs=1e-15)
        assert torch.autograd.grad(losses.sum(), best)[0].item() == pytest.approx(0, abs=1e-15)
    held = tensor([math.log(2) / beta]).requires_grad_()
    slope = torch.autograd.grad(nca_pair_loss(held, zero, zero, zero, beta=beta).sum(), held)[0]
    assert slope.item() == pytest.approx(0, abs=1e-15)
    far = exo_pair_loss(tensor([-1e4]), zero, zero, zero, label_smoothing=e)
    assert far.item() == pytest.approx(-math.log(e), rel=1e-12)


def test_robust_dpo_falls_without_end() -> None:
    zero = tensor([0.0])
    losses = robust_dpo_loss(tensor([1e6]), zero, zero, zero, beta=0.5, label_smoothing=0.2)
    assert losses.item() == pytest.approx(-0.2 / 0.6 * 0.5e6, rel=1e-12)


def test_kinks_have_slope_zero_on_the_flat_side() -> None:
    zero = tensor([0.0])
    at = tensor([10.0]).requires_grad_()
    assert torch.autograd.grad(hinge_loss(at, zero, zero, zero).sum(), at)[0].item() == 0
    at = tensor([0.0]).requires_grad_()
    assert torch.autograd.grad(dpop_loss(at, zero, zero, zero).sum(), at)[0].item() == pytest.approx(-0.05)


def _pairs(seed: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    columns = statistics_of("ipo", make_pairs(8, seed))
    values = [value.detach() for value in columns.values()]
    return values[:4], values[4], values[5]


def test_label_noise_of_zero_is_dpo() -> None:
    four, _, _ = _pairs()
    wanted = dpo_loss(*four, beta=0.3)
    for function in (cdpo_loss, robust_dpo_loss):
        assert_close(function(*four, beta=0.3, label_smoothing=0.0), wanted, rtol=1e-15, atol=0)
    assert_close(dpop_loss(*four, beta=0.3, coefficient=0.0), wanted, rtol=1e-15, atol=0)


def test_robust_dpo_is_dpo_on_average_over_the_flips() -> None:
    (chosen, rejected, ref_chosen, ref_rejected), _, _ = _pairs()
    e = 0.2
    kept = robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, label_smoothing=e)
    flipped = robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, label_smoothing=e)
    assert_close((1 - e) * kept + e * flipped, dpo_loss(chosen, rejected, ref_chosen, ref_rejected), rtol=1e-12, atol=0)


def test_dpop_is_dpo_where_no_chosen_log_ratio_is_negative() -> None:
    four, _, _ = _pairs()
    up = four[0] >= four[2]
    assert 0 < int(up.sum()) < len(up)
    same = dpop_loss(*four) == dpo_loss(*four)
    assert torch.equal(same, up)


def test_hinge_and_dpo_slopes_agree_on_pairs_lost_by_far() -> None:
    zero, slopes = tensor([0.0]), []
    for function in (hinge_loss, dpo_loss):
        lost = tensor([-1e3]).requires_grad_()
        slopes.append(torch.autograd.grad(function(lost, zero, zero, zero, beta=0.3).sum(), lost)[0].item())
    assert slopes == pytest.approx([-0.3, -0.3], rel=1e-12)


def test_cdpo_and_exo_have_one_minimum_but_differ() -> None:
    four, _, _ = _pairs()
    assert not torch.isclose(cdpo_loss(*four, label_smoothing=0.2), exo_pair_loss(*four, label_smoothing=0.2)).any()


def test_length_normalised_relations() -> None:
    four, chosen_lengths, rejected_lengths = _pairs()
    one, six = torch.ones_like(chosen_lengths), torch.full_like(chosen_lengths, 6.0)
    assert_close(dpo_length_normalized_loss(*four, one, one, beta=0.3), dpo_loss(*four, beta=0.3))
    assert_close(dpo_length_normalized_loss(*four, six, six, beta=0.3), dpo_loss(*four, beta=0.05))
    assert_close(ipo_loss(*four, one, one, average=True), ipo_loss(*four, one, one))
    zero = torch.zeros_like(one)
    free = four[0], four[1], chosen_lengths, rejected_lengths
    wanted = dpo_length_normalized_loss(four[0], four[1], zero, zero, *free[2:], beta=2.0)
    assert_close(simpo_loss(*free, gamma=0.0), wanted)
    summed = cpo_loss(*free[:3], beta=0.3, nll_coefficient=0.0)
    assert_close(summed, dpo_loss(four[0], four[1], zero, zero, beta=0.3))
    assert_close(summed, simpo_loss(four[0], four[1], one, one, beta=0.3, gamma=0.0))
    assert_close(orpo_loss(*free, coefficient=0.0), -four[0] / chosen_lengths)


def test_sppo_hard_is_bounded_by_ipo_and_meets_it_on_mirrored_sides() -> None:
    four, one, _ = _pairs()
    bound = ipo_loss(*four, one, one, beta=0.1) / 2
    assert (sppo_hard_loss(*four, beta=0.2) > bound).all()
    c, zero = four[0], torch.zeros_like(one)
    mirrored = c, -c, zero, zero
    assert_close(sppo_hard_loss(*mirrored, beta=0.2), ipo_loss(*mirrored, one, one, beta=0.1) / 2)


def test_sides_are_sums_of_unpaired_losses() -> None:
    four, _, _ = _pairs()
    good, bad = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    chosen, rejected = (four[0], four[2], good), (four[1], four[3], bad)
    zero, shift = tensor(0.0), tensor(0.4)
    assert_close(apo_zero_loss(*four), kto_loss(*chosen, zero) + kto_loss(*rejected, zero))
    paired = bco_pair_loss(*four, shift, running_delta=True)
    assert_close(paired, bco_loss(*chosen, shift) + bco_loss(*rejected, shift))
    means = [(four[i] - four[i + 2]).mean().clamp(min=0) for i in (0, 1)]
    assert max(means) > 0
    assert_close(kto_pair_loss(*four), torch.cat([kto_loss(*chosen, means[1]), kto_loss(*rejected, means[0])]))
    low = four[0] - 100, four[1] - 100, *four[2:]
    assert_close(kto_pair_loss(*low).unflatten(0, (2, 8)).sum(0), apo_zero_loss(*low))


def test_bco_pair_is_never_below_dpo() -> None:
    for seed in range(3):
        four, _, _ = _pairs(seed)
        for shift in (-3.0, 0.0, 1.0):
            assert (bco_pair_loss(*four, tensor(shift), running_delta=True) > dpo_loss(*four)).all()


def test_second_term_of_apo_down_is_the_bounded_dpo() -> None:
    four, _, _ = _pairs()
    first = torch.sigmoid(0.1 * (four[0] - four[2]))
    assert_close(apo_down_loss(*four) - first, -torch.expm1(-dpo_loss(*four)))


def test_sorting_relations() -> None:
    four, _, _ = _pairs()
    one_pair = [value[:1] for value in four]
    for function in (aot_loss, aot_unpaired_loss):
        assert_close(function(*one_pair, label_smoothing=0.2), cdpo_loss(*one_pair, label_smoothing=0.2))
        assert function(*four, label_smoothing=0.2).mean() < cdpo_loss(*four, label_smoothing=0.2).mean()
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        assert_close(function(*(value[order] for value in four)), function(*four), rtol=0, atol=0)
    rising = torch.arange(8.0, dtype=torch.float64)
    alike = four[1] + rising, four[1], four[3] + 0.3 * rising, four[3]
    assert_close(aot_loss(*alike), dpo_loss(*alike))
    alike = four[2] + rising, four[3] + 0.3 * rising, four[2], four[3]
    assert_close(aot_unpaired_loss(*alike), dpo_loss(*alike))


def test_constants_get_no_gradient() -> None:
    four, _, _ = _pairs()
    shift = tensor(0.4).requires_grad_()
    losses = bco_pair_loss(four[0].requires_grad_(), *four[1:], shift, running_delta=True)
    assert torch.autograd.grad(losses.sum(), shift, allow_unused=True)[0] is None


def test_logged_quantities() -> None:
    (chosen, rejected, ref_chosen, ref_rejected), _, _ = _pairs()
    rewards = implicit_rewards(chosen.requires_grad_(), ref_chosen, beta=0.3)
    assert not rewards.requires_grad
    assert_close(rewards, 0.3 * (chosen - ref_chosen).detach())
    margins = rewards - implicit_rewards(rejected, ref_rejected, beta=0.3)
    accuracy = preference_accuracy(chosen, rejected, ref_chosen, ref_rejected)
    assert not accuracy.requires_grad
    assert accuracy.item() == sum(m > 0 for m in margins.tolist()) / 8
    assert 0 < accuracy < 1
    assert accuracy != 0.5, "a swapped sign could not show"
    assert preference_accuracy(ref_chosen, ref_rejected, ref_chosen, ref_rejected).item() == 0.5
    with pytest.raises(ObjectiveInputError, match="`beta` must be > 0"):
        implicit_rewards(chosen, ref_chosen, beta=0.0)
