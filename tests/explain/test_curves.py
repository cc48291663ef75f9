"""Curves against closed forms written out here, from the papers' formulas and plain `math`."""

import math

import pytest
import torch

import lossmith
from lossmith.errors import CompositionError, ObjectiveInputError
from lossmith.explain import NoCurveError, loss_curve


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def check(text, loss, gradient, *, classes=2, points=19):
    """The curve equals `loss` and `gradient`, functions of x alone."""
    curve = loss_curve(text, classes=classes, points=points)
    assert len(curve.x) == len(curve.loss) == len(curve.gradient) == points
    assert list(curve.x) == sorted(curve.x)
    for x, value, slope in zip(curve.x, curve.loss, curve.gradient, strict=True):
        assert value == pytest.approx(loss(x), rel=1e-9, abs=1e-12), f"loss at {x}"
        assert slope == pytest.approx(gradient(x), rel=1e-9, abs=1e-12), f"gradient at {x}"
    return curve


def test_cross_entropy_is_minus_log_p_and_always_asks_for_one():
    curve = check("cross_entropy", lambda p: -math.log(p), lambda p: p - 1)
    assert curve.implied_target == pytest.approx([1.0] * 19, abs=1e-12)
    assert curve.x == pytest.approx([i / 20 for i in range(1, 20)])


@pytest.mark.parametrize("classes", [2, 5])
def test_label_smoothing_asks_for_its_smoothed_target(classes):
    # Cross-entropy against the target 1-e+e/V on the label and e/V elsewhere has the gradient p - target.
    e = 0.2

    def loss(p):
        return -(1 - e + e / classes) * math.log(p) - e / classes * (classes - 1) * math.log((1 - p) / (classes - 1))

    target = 1 - e + e / classes
    curve = check(f"cross_entropy(label_smoothing={e})", loss, lambda p: p - target, classes=classes)
    assert curve.implied_target == pytest.approx([target] * 19, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_focal_at_gamma_2_in_closed_form(classes):
    # d/dp of -(1-p)^2 log p is 2(1-p) log p - (1-p)^2/p, and dp/dz is p(1-p).
    def slope(p):
        return (2 * (1 - p) * math.log(p) - (1 - p) ** 2 / p) * p * (1 - p)

    curve = check("focal", lambda p: -((1 - p) ** 2) * math.log(p), slope, classes=classes)
    assert curve.implied_target is not None
    assert curve.implied_target[9] == pytest.approx(0.5 - slope(0.5), abs=1e-12)  # 0.798, not 1: it underconfides
    assert min(curve.implied_target) < 0.9 < 1.1 < max(curve.implied_target)


def test_focal_at_gamma_0_is_cross_entropy():
    assert loss_curve("focal(gamma=0)").gradient == pytest.approx(loss_curve("cross_entropy").gradient, abs=1e-12)


def test_lovasz_of_a_region_of_one_token_is_one_minus_p():
    curve = check("lovasz", lambda p: 1 - p, lambda p: -p * (1 - p))
    assert curve.name == "lovasz_softmax"
    assert curve.implied_target is not None
    # The unsure half way is pulled hardest; near 0 it asks for little more than what is there.
    assert curve.implied_target[0] == pytest.approx(0.05 + 0.05 * 0.95)


def test_a_sum_of_logits_losses_is_the_sum_of_their_curves():
    check(
        "0.6*cross_entropy + 0.4*lovasz_softmax",
        lambda p: -0.6 * math.log(p) + 0.4 * (1 - p),
        lambda p: 0.6 * (p - 1) - 0.4 * p * (1 - p),
    )


def test_every_scope_counts_all_labels():
    scoped = loss_curve("0.6*cross_entropy[answer] + 0.4*focal[step]", points=5)
    assert scoped.loss == loss_curve("0.6*cross_entropy + 0.4*focal", points=5).loss


def test_soft_triple_between_opposite_centres():
    # Similarities x and -x to the two classes: -log softmax of scale*(x - margin) against scale*(-x).
    scale, margin = 20.0, 0.01
    curve = check(
        "soft_triple",
        lambda x: softplus(scale * (margin - 2 * x)),
        lambda x: -2 * scale * sigmoid(scale * (margin - 2 * x)),
    )
    assert curve.implied_target is None
    assert curve.x[9] == pytest.approx(0, abs=1e-15)
    assert curve.loss[9] == pytest.approx(0.798138869, abs=1e-8)  # log(1 + e^0.2)
    assert curve.gradient[9] == pytest.approx(-21.99336, abs=1e-4)  # -40 / (1 + e^-0.2)


def test_supcon_with_one_positive_and_two_opposite_negatives():
    # -x/T + log(e^(x/T) + 2 e^(-x/T)) = log(1 + 2 e^(-2x/T)); T = 0.5 makes the exponent -4x.
    curve = check(
        "supcon(temperature=0.5)",
        lambda x: math.log1p(2 * math.exp(-4 * x)),
        lambda x: -4 * 2 * math.exp(-4 * x) / (1 + 2 * math.exp(-4 * x)),
    )
    assert curve.loss[9] == pytest.approx(math.log(3))  # three candidates at one similarity
    assert "two of the other" in curve.setting


def test_a_sum_of_metric_losses_is_the_sum_of_their_curves():
    one, other = loss_curve("soft_triple", points=7), loss_curve("supcon", points=7)
    both = loss_curve("0.5*soft_triple - 2*supcon", points=7)
    assert both.loss == pytest.approx([0.5 * a - 2 * b for a, b in zip(one.loss, other.loss, strict=True)])
    assert both.gradient == pytest.approx([0.5 * a - 2 * b for a, b in zip(one.gradient, other.gradient, strict=True)])


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_the_gradient_of_every_loss_is_the_slope_of_its_curve(record):
    curve = loss_curve(record.name, points=399)
    assert all(math.isfinite(value) for value in curve.loss + curve.gradient)
    # By the trapezium rule the gradients add up to the fall of the loss, for any objective that joins the registry.
    line = curve.x if curve.implied_target is None else [math.log(p / (1 - p)) for p in curve.x]
    steps = zip(line, line[1:], curve.gradient, curve.gradient[1:], strict=False)
    fall = sum((end - start) * (left + right) / 2 for start, end, left, right in steps)
    assert fall == pytest.approx(curve.loss[-1] - curve.loss[0], rel=2e-3)
    if curve.implied_target is not None:
        assert curve.implied_target == pytest.approx([p - s for p, s in zip(curve.x, curve.gradient, strict=True)])


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "lovasz_softmax", "soft_triple", "supcon"])
def test_these_losses_fall_all_the_way_to_the_label(name):
    curve = loss_curve(name)
    assert list(curve.loss) == sorted(curve.loss, reverse=True)
    assert all(slope < 0 for slope in curve.gradient)


def test_drawing_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.random.get_rng_state(), torch.get_num_threads()
    loss_curve("0.5*soft_triple + 0.5*supcon", points=3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


@pytest.mark.parametrize(
    ("text", "settings", "error", "message"),
    [
        (
            "0.4*cross_entropy + 0.6*supcon",
            {},
            NoCurveError,
            "reads logits and embeddings.*draw its terms.*Curves exist",
        ),
        ("focall", {}, ObjectiveInputError, "Did you mean 'focal'"),
        ("focal(gamma=-1)", {}, ObjectiveInputError, "`gamma` must be >= 0, got -1"),
        ("0.5*focal(gamma=-1) + 0.5*supcon", {}, ObjectiveInputError, "`gamma` must be >= 0, got -1"),
        ("focal *", {}, CompositionError, "cannot be read"),
        ("focal", {"classes": 1}, ObjectiveInputError, "`classes` must be an int >= 2, got 1"),
        ("focal", {"points": 1.5}, ObjectiveInputError, "`points` must be an int >= 2, got 1.5"),
    ],
)
def test_what_cannot_be_drawn_says_why(text, settings, error, message):
    with pytest.raises(error, match=message):
        loss_curve(text, **settings)


def test_a_family_without_a_line_says_what_can_be_drawn(pair_loss):
    with pytest.raises(
        NoCurveError, match=r"'only_here' is of family 'preference', which has no curve. Curves exist for"
    ):
        loss_curve(pair_loss)
