"""The released mix: numbers that the released code itself gives, and the faults that make them."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from lossmith.errors import CompositionError, ConfigurationError, DataError
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.released import ReleasedMix

BATCH, SEQ, VOCAB = 3, 8, 11
LABELS = [[3, 4, 5, 6, 7, 8, 0, 2], [-100, -100, 9, 7, 7, 0, 10, 2], [-100, 3, 4, 8, 6, 7, 1, 2]]
"""Padded on the left; 2 ends a sequence."""
STARTS = [4, 5, 3]
SECONDS = "focal", "generalized_dice", "lovasz_softmax", "self_adjusting_dice"

GOLDEN = {
    "cross_entropy": (3.436920490114088, 0.22644435240211172, -0.045509883344388345, 0.005489781845309238),
    "cross_entropy, EOS masked": (3.4960315019196573, 0.2485762012431856, -0.05354103922869217, -0.4971698777782443),
    "focal[answer]": (3.3860006863773884, 0.29969082143296977, -0.09272334870661768, -0.44537977064993406),
    "generalized_dice[answer]": (
        -8.430149704408653e-22,
        3.7324754518374965e-22,
        -1.85930472817493e-22,
        -2.06797670421766e-21,
    ),
    "lovasz_softmax[answer]": (0.9647102704625289, 0.0166859283897838, -0.006811489506652723, -0.07071569666998023),
    "self_adjusting_dice[answer]": (
        0.466990246829254,
        0.007344753683745106,
        -0.003868427312766448,
        -0.03510515053003693,
    ),
}
"""Value, norm of the gradient, its entry [0, 3, 7] and its sum weighted by place, in float64, from the functions and
the indexing of https://github.com/DarthReca/segmentation-losses-nlp (Lovász with its float32 casts lifted)."""


def logits() -> Tensor:
    values = [
        [[2.5 * math.sin(1.7 * b + 2.3 * t + 0.9 * v * v) for v in range(VOCAB)] for t in range(SEQ)]
        for b in range(BATCH)
    ]
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def run(text: str, *, labels: Tensor | None = None, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Value and gradient of a mix on the batch."""
    scores = logits() if given is None else given.detach().requires_grad_()
    value = ReleasedMix(text)(scores, torch.tensor(LABELS) if labels is None else labels, torch.tensor(STARTS))
    return value.detach(), torch.autograd.grad(value, scores)[0]


@pytest.mark.parametrize("name", list(GOLDEN))
def test_values_and_gradients_are_those_of_the_released_code(name: str) -> None:
    labels = torch.tensor(LABELS)
    if "EOS" in name:
        labels[:, -1] = -100
    value, gradient = run(name.partition(",")[0], labels=labels)
    places = torch.arange(gradient.numel(), dtype=torch.float64).view_as(gradient)
    found = value, gradient.norm(), gradient[0, 3, 7], (gradient * places).sum()
    # The probability of absent classes is what the present ones leave, which costs generalized dice digits.
    rtol = 1e-6 if "dice[" in name and "self" not in name else 1e-11
    assert_close(torch.stack(found), torch.tensor(GOLDEN[name], dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize(("far", "expected"), [(-60.0, -0.5740447431805907), (-20.0, -1.8578386101735768e-11)])
def test_generalized_dice_of_a_region_that_covers_nearly_all_probability(far: float, expected: float) -> None:
    """Absent classes weigh 1e20: 1e-26 of the probability no longer decides, 1e-9 (which float32 rounds away) does."""
    scores = [
        [far, 0.0, 0.5, far],
        [0.2, far, 0.7, far],
        [far, 1.1, 0.9, far],
        [0.3, 0.1, far, far],
        [far, 0.4, far, 0.0],
        [far] * 4,
    ]
    found = ReleasedMix("gdice[answer]")(torch.tensor([scores]), torch.tensor([[3, 1, 2, 1, 0, 3]]), torch.tensor([2]))
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=0)


def test_a_mix_is_the_weighted_sum_of_its_terms() -> None:
    value, gradient = run("0.6*cross_entropy + 0.4*lovasz[answer] - 0.5*focal(gamma=2)[answer]")
    expected = torch.zeros(()), torch.zeros(BATCH, SEQ, VOCAB)
    for weight, term in ((0.6, "cross_entropy"), (0.4, "lovasz_softmax[answer]"), (-0.5, "focal[answer]")):
        expected = tuple(total + weight * part for total, part in zip(expected, run(term), strict=True))
    assert_close((value, gradient), expected, rtol=1e-12, atol=1e-15)
    assert str(ReleasedMix("gdice(form='released')[answer]")) == "generalized_dice(form='released')[answer]"


@pytest.mark.parametrize("name", SECONDS)
def test_the_second_loss_never_sees_the_last_token_nor_what_is_outside_its_window(name: str) -> None:
    _, gradient = run(f"{name}[answer]")
    outside = [0, 1, 6, 7]
    assert not gradient[:, outside].any()
    assert not gradient[0, 2].any()  # in the window of the batch, before the answer of row 0
    assert not gradient[1, 2:4].any()
    assert gradient[0, 3].any()
    assert gradient[2, 2].any()
    assert run("cross_entropy")[1][:, 6].any()


def test_masked_rows_count_in_the_means() -> None:
    """Focal by hand: 9 tokens of answers and 3 masked rows of probability 1/V in one mean over 12."""
    scores, terms = logits().detach().tolist(), []
    for row, start in enumerate(STARTS):
        for place in range(start, SEQ - 1):
            column = scores[row][place - 1]
            p = math.exp(column[LABELS[row][place]]) / sum(map(math.exp, column))
            terms.append(-((1 - p) ** 2) * math.log(p))
    assert len(terms) == 9
    uniform = (1 - 1 / VOCAB) ** 2 * math.log(VOCAB)
    assert float(run("focal[answer]")[0]) == pytest.approx((sum(terms) + 3 * uniform) / 12, rel=1e-12)


def test_a_near_perfect_batch_still_has_half_the_lovasz_loss_where_rows_are_masked() -> None:
    labels, starts = torch.tensor([[5, 6, 7, 8, 9, 2], [5, 6, 7, 8, 3, 2]]), torch.tensor([1, 4])
    scores = torch.zeros(2, 6, VOCAB, dtype=torch.float64)
    for row in range(2):
        for place in range(5):
            scores[row, place, labels[row, place + 1]] = 40.0
    false_class = ReleasedMix("lovasz_softmax[answer]")(scores, labels, starts)
    # Classes 6, 7, 8, 9 and 3 are perfect, the false class 0 of the three masked rows is entirely wrong.
    assert float(false_class) == pytest.approx(1 / 6, rel=1e-9)
    aligned = torch.full_like(labels, -100)
    aligned[0, :4], aligned[1, 3] = labels[0, 1:5], 3
    assert float(lossmith.loss("lovasz_softmax")(scores, aligned)) < 1e-15


@pytest.mark.parametrize("name", SECONDS)
def test_half_precision_goes_up(name: str) -> None:
    low = logits().detach().bfloat16()
    value, gradient = run(f"{name}[answer]", given=low)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    wide, _ = run(f"{name}[answer]", given=low.float())
    assert_close(value, wide, rtol=1e-6, atol=1e-30)


# Batches of the collator

ROWS = [
    {"input_ids": [3, 4, 5, 6, 7, 8, 0, 2], "answer_start": 4},
    {"input_ids": [9, 7, 7, 0, 10, 2], "answer_start": 3},
]


@pytest.mark.parametrize("train_eos", [True, False])
def test_a_batch_of_the_collator_gives_the_same(train_eos: bool) -> None:
    batch = CompletionCollator(2, side="left", eos_token_ids=[2], train_eos=train_eos)(ROWS)
    labels = torch.tensor(LABELS[:2])
    if not train_eos:
        labels[:, -1] = -100
    mix = ReleasedMix("0.6*cross_entropy + 0.4*focal[answer]")
    scores = logits()[:2]
    assert_close(mix.on_batch(scores, batch), mix(scores, labels, torch.tensor(STARTS[:2])), rtol=0, atol=0)


def test_batches_that_do_not_fit_are_refused() -> None:
    mix, scores = ReleasedMix("cross_entropy"), logits()[:2]
    with pytest.raises(DataError, match=r'padded on the left: give the collator `side="left"`\.'):
        mix.on_batch(scores, CompletionCollator(2)(ROWS))
    batch = CompletionCollator(2, side="left")([ROWS[0], {**ROWS[1], "answer_start": 6}])
    with pytest.raises(DataError, match="no token in `answer_mask`"):
        mix.on_batch(scores, batch)
    for starts, found in (([0, 3], 0), ([7, 7], 7)):
        with pytest.raises(DataError, match=rf"batch of 8 tokens must begin at 1 to 6, got {found}:"):
            mix(scores, torch.tensor(LABELS[:2]), torch.tensor(starts))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lovasz_softmax", "has no term 'lovasz_softmax', only cross_entropy without a scope and focal[answer], "),
        ("cross_entropy[answer]", "has no term 'cross_entropy[answer]'"),
        ("focal[prompt]", "has no term 'focal[prompt]'"),
        ("dice[answer]", "has no term 'dice[answer]'"),
        ("focal(gamma=1)[answer]", "fixes 'focal' to gamma=2.0, got gamma=1.0."),
        ("lovasz_softmax(region='sequence')[answer]", "fixes 'lovasz_softmax' to no settings, got region='sequence'."),
        ("cross_entropy(label_smoothing=0.1)", "fixes 'cross_entropy' to no settings, got label_smoothing=0.1."),
        ("gdice(smooth=1)[answer]", "fixes 'generalized_dice' to smooth=1e-05, form='released', got smooth=1.0."),
        ("cross_entropy -> focal[answer] @ 0.5", "has no schedule, got 'cross_entropy -> focal[answer] @ 0.5'"),
    ],
)
def test_what_the_released_code_does_not_have_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as found:
        ReleasedMix(text)
    assert sentence in str(found.value)


def test_a_composition_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(CompositionError, match="No objective named 'focall'"):
        ReleasedMix("focall[answer]")
