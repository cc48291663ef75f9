"""Curves against closed forms written out here, from the papers' formulas and plain `math`."""

import inspect
import itertools
import math

import pytest
import torch

import lossmith
import oracles_discovered
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
def test_every_loss_draws(record):
    curve = loss_curve(record.name, points=9)
    assert len(curve.x) == len(curve.loss) == len(curve.gradient) == 9
    assert all(math.isfinite(value) for value in curve.loss + curve.gradient)
    assert any(slope != 0 for slope in curve.gradient)
    assert curve.setting.endswith(".")
    assert len(curve.setting) < 150  # one line below a picture
    assert (curve.implied_target is None) == (record.family not in ("token", "region"))
    assert list(curve.x) == sorted(curve.x)
    assert curve.x[4] == pytest.approx(0.5 if curve.implied_target else 0.0, abs=1e-15)


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_the_gradient_of_every_loss_is_the_slope_of_its_curve(record):
    if ".detach()" in inspect.getsource(record.function):
        pytest.skip("holds something constant, so its gradient is no slope")
    curve = loss_curve(record.name, points=199)
    line = curve.x if curve.implied_target is None else [math.log(p / (1 - p)) for p in curve.x]
    slack = 1e-3 * max(abs(slope) for slope in curve.gradient)
    wrong = []
    for (start, end), (before, after), slopes in zip(
        itertools.pairwise(line), itertools.pairwise(curve.loss), itertools.pairwise(curve.gradient), strict=True
    ):
        # The mean slope of a step lies between those at its ends, also where the loss has a kink.
        if not min(slopes) - slack <= (after - before) / (end - start) <= max(slopes) + slack:
            wrong.append(start)
    # A loss may jump, at one place or two (padll and pfl at 0), but not lie about its slope elsewhere.
    assert len(wrong) <= 2, wrong
    if curve.implied_target is not None:
        assert curve.implied_target == pytest.approx([p - s for p, s in zip(curve.x, curve.gradient, strict=True)])


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "lovasz_softmax", "soft_triple", "supcon"])
def test_these_losses_fall_all_the_way_to_the_label(name):
    curve = loss_curve(name)
    assert list(curve.loss) == sorted(curve.loss, reverse=True)
    assert all(slope < 0 for slope in curve.gradient)


def test_dpo_runs_to_five_over_beta():
    curve = check("dpo", lambda x: softplus(-0.1 * x), lambda x: -0.1 * sigmoid(-0.1 * x))
    assert curve.x == pytest.approx([5 * (i - 10) for i in range(1, 20)])
    assert curve.implied_target is None
    assert curve.setting == "The reference gives each completion of 20 tokens a log-probability of -25."
    assert curve.x_name == "log-ratio margin of the pair in nats"
    sharp = check("dpo(beta=2)", lambda x: softplus(-2 * x), lambda x: -2 * sigmoid(-2 * x))
    assert sharp.x[-1] == pytest.approx(2.25)


def test_lrml_turns_where_it_should():
    def value(x):
        return sigmoid(-x) * softplus(-x * 0.05) + sigmoid(x) * math.exp(-x * 0.05)

    def slope(x):
        turn = sigmoid(x) * sigmoid(-x) * (math.exp(-x * 0.05) - softplus(-x * 0.05))
        return turn - 0.05 * (sigmoid(-x) * sigmoid(-x * 0.05) + sigmoid(x) * math.exp(-x * 0.05))

    curve = check("discopop", value, slope)
    assert curve.name == "lrml"
    assert curve.gradient[9] == pytest.approx(0.0392, abs=1e-4)


def test_losses_without_a_reference_work_on_the_sums():
    # Chosen at -20 + x/2 and rejected at -20 - x/2 over 20 tokens; at x = 40 the chosen one is certain.
    curve = check("simpo", lambda x: softplus(1 - 2 * x / 20), lambda x: -0.1 * sigmoid(1 - 2 * x / 20))
    assert curve.x[-1] == pytest.approx(36)
    check(
        "cpo",
        lambda x: softplus(-0.1 * x) + (20 - x / 2) / 20,
        lambda x: -0.1 * sigmoid(-0.1 * x) - 1 / 40,
    )

    def log_odds(mean):
        return mean - math.log(-math.expm1(mean))

    def odds(x):
        return (20 - x / 2) / 20 + 0.1 * softplus(log_odds(-1 - x / 40) - log_odds(-1 + x / 40))

    curve = loss_curve("orpo", points=19)
    assert curve.x == pytest.approx([4 * (i - 10) for i in range(1, 20)])
    assert curve.loss == pytest.approx([odds(x) for x in curve.x], rel=1e-9)


@pytest.mark.parametrize("name", ["orpo", "simpo", "cpo"])
def test_a_curve_without_a_reference_does_not_speak_of_one(name):
    curve = loss_curve(name, points=3)
    assert curve.setting == "At 0 the policy gives each completion of 20 tokens a log-probability of -20."
    assert curve.x_name == "chosen minus rejected log-probability in nats"
    assert curve.x[-1] == pytest.approx(20)
    assert "The reference gives" in loss_curve(f"{name} + dpo", points=3).setting


def test_a_span_narrows_the_line_in_units_of_beta():
    wide, narrow = loss_curve("lrml", points=399), loss_curve("lrml", points=199, span=0.5)
    assert narrow.x[0] == pytest.approx(-9.9)  # 0.5 / 0.05 = 10, of which the ends are left out
    assert narrow.loss[99] == wide.loss[199]
    ends = [x for x, (a, b) in zip(narrow.x, itertools.pairwise(narrow.gradient), strict=False) if a * b < 0]
    assert ends == pytest.approx([-2.371, 1.440], abs=0.1)  # the dent of the docstring
    assert loss_curve("dpo_length_normalized", points=3, span=1).x[-1] == pytest.approx(100)
    assert loss_curve("kto", points=3, span=1).x[-1] == pytest.approx(5)
    assert loss_curve("orpo", points=3, span=10).x[-1] == pytest.approx(5)
    assert loss_curve("cpo", points=3, span=10).x[-1] == pytest.approx(20)  # certain at 40


def test_a_loss_that_averages_over_tokens_runs_further():
    curve = check("dpo_length_normalized", lambda x: softplus(-0.005 * x), lambda x: -0.005 * sigmoid(-0.005 * x))
    assert curve.x[-1] == pytest.approx(900)
    assert "log-probability of -500" in curve.setting  # no completion above probability one
    assert loss_curve("ipo", points=3).x[-1] == pytest.approx(25)
    assert loss_curve("ipo(average=True)", points=3).x[-1] == pytest.approx(500)


def test_lopsided_losses_see_half_of_the_margin_on_each_side():
    check(
        "apo_zero", lambda x: 2 * sigmoid(-0.05 * x), lambda x: -0.1 * sigmoid(-0.05 * x) * sigmoid(0.05 * x), points=9
    )
    check("sppo_hard", lambda x: 2 * (x / 2 - 5) ** 2, lambda x: 2 * (x / 2 - 5))


@pytest.mark.parametrize("name", ["aql", "aqfl", "dbaql"])
def test_a_coupled_loss_is_that_of_the_moving_pair_beside_fixed_ones(name):
    def value(x):
        pairs = [[m / 2, -m / 2, 0.0, 0.0] for m in (x, -4.3, 1.1, 6.7)]
        return getattr(oracles_discovered, name)(pairs)[0]

    def slope(x, h=1e-4):
        return (8 * (value(x + h) - value(x - h)) - (value(x + 2 * h) - value(x - 2 * h))) / (12 * h)

    curve = loss_curve(name, points=20)
    assert curve.loss == pytest.approx([value(x) for x in curve.x], rel=1e-9)
    assert curve.gradient == pytest.approx([slope(x) for x in curve.x], rel=1e-6, abs=1e-9)
    assert curve.setting.endswith("; other pairs at margins -4.3, 1.1, 6.7.")


def test_kto_pair_is_the_mean_of_the_two_completions():
    curve = loss_curve("kto_pair", points=19)
    for x, value, slope in zip(curve.x, curve.loss, curve.gradient, strict=True):
        drift = (x + 3.5) / 8  # mean of half the margins of the four pairs; the rejected ones mirror it
        up, down = 0.1 * (x / 2 - max(0, -drift)), 0.1 * (max(0, drift) + x / 2)
        assert value == pytest.approx((sigmoid(-up) + sigmoid(-down)) / 2, rel=1e-9)
        assert slope == pytest.approx(-0.025 * (sigmoid(up) * sigmoid(-up) + sigmoid(down) * sigmoid(-down)), rel=1e-9)
    assert "other pairs at margins -4.3, 1.1, 6.7; mean over its two completions" in curve.setting


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_loss_per_quantile_is_averaged(name):
    curve = loss_curve(name, points=19)
    for x, value in zip(curve.x, curve.loss, strict=True):
        margins = [x, -4.3, 1.1, 6.7]
        if name == "aot":
            gaps = margins
        else:
            gaps = [
                c + r
                for c, r in zip(
                    sorted(m / 2 for m in margins), sorted((m / 2 for m in margins), reverse=True), strict=True
                )
            ]
        assert value == pytest.approx(sum(softplus(-0.1 * gap) for gap in gaps) / 4, rel=1e-9)
    assert curve.setting.endswith(f"margins -4.3, 1.1, 6.7; {name}: mean over the batch.")


def test_a_sum_of_preference_losses_is_the_sum_of_their_curves():
    both = loss_curve("0.5*lrml - 2*kto_pair + aot", points=7)
    assert both.x[-1] == pytest.approx(75)  # as far as the smallest beta asks
    parts = [
        loss_curve(text, points=7)
        for text in ("lrml", "kto_pair + 0.0001*lrml", "aot + 0.0001*lrml", "lrml + 0.5*aqfl - 0.5*aqfl")
    ]
    lrml, kto, aot, beside = (part.loss for part in parts)
    assert beside == pytest.approx(lrml)
    expected = [0.5 * a - 2 * (b - 1e-4 * a) + (c - 1e-4 * a) for a, b, c in zip(lrml, kto, aot, strict=True)]
    assert both.loss == pytest.approx(expected)
    assert both.setting.endswith("; aot: mean over the batch; mean over its two completions.")


def test_a_reference_free_term_limits_the_line_of_a_sum():
    curve = check(
        "simpo + 0.5*dpo",
        lambda x: softplus(1 - 0.1 * x) + 0.5 * softplus(-0.1 * x),
        lambda x: -0.1 * sigmoid(1 - 0.1 * x) - 0.05 * sigmoid(-0.1 * x),
    )
    assert curve.x[-1] == pytest.approx(36)


def test_unpaired_losses_follow_one_desirable_completion():
    curve = check(
        "kto(desirable_weight=3)",
        lambda v: 3 * sigmoid(-0.1 * v),
        lambda v: -0.3 * sigmoid(0.1 * v) * sigmoid(-0.1 * v),
    )
    assert curve.x == pytest.approx([5 * (i - 10) for i in range(1, 20)])
    assert "an undesirable one mirrors it" in curve.setting
    assert curve.implied_target is None
    check("bco", lambda v: softplus(-0.1 * v), lambda v: -0.1 * sigmoid(-0.1 * v))
    check("kto(running_kl=True)", lambda v: sigmoid(-0.1 * v), lambda v: -0.1 * sigmoid(0.1 * v) * sigmoid(-0.1 * v))
    check(
        "2*kto + bco",
        lambda v: 2 * sigmoid(-0.1 * v) + softplus(-0.1 * v),
        lambda v: -0.2 * sigmoid(0.1 * v) * sigmoid(-0.1 * v) - 0.1 * sigmoid(-0.1 * v),
    )


def test_running_means_stay_at_zero():
    assert loss_curve("bco_pair(running_delta=True)").loss == loss_curve("bco_pair").loss


def test_an_undesirable_completion_mirrors_a_desirable_one():
    curve = loss_curve("kto", points=9)
    ratios = torch.tensor(curve.x, dtype=torch.float64)
    reference, bad = torch.full_like(ratios, -50.0), torch.zeros(9, dtype=torch.bool)
    zero = torch.zeros(1, dtype=torch.float64)
    mirrored = lossmith.loss("kto")(reference - ratios, reference, bad, zero, reduction="none")
    assert curve.loss == pytest.approx(mirrored.tolist())


def test_metric_losses_without_a_loss_per_anchor_are_averaged():
    curve = loss_curve("contrastive", points=9)
    assert "the loss is the mean over the batch" in curve.setting
    for x, value in zip(curve.x, curve.loss, strict=True):
        # Of both ordered positive pairs each, those at distance 0 do not count; negatives closer than 1 do.
        near, far = math.sqrt(2 - 2 * x), math.sqrt(2 + 2 * x)
        assert value == pytest.approx(near + (1 - far if far < 1 else 0), rel=1e-9)


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
            "reads logits and embeddings.*draw its terms. Sums of token and region",
        ),
        ("dpo + kto", {}, NoCurveError, "'dpo . kto' reads pairs of completions and single completions"),
        (
            "cross_entropy -> focal @ 0.3",
            {},
            NoCurveError,
            "changes over training.*phases, 'cross_entropy' and 'focal'",
        ),
        ("focall", {}, ObjectiveInputError, "Did you mean 'focal'"),
        ("focal(gamma=-1)", {}, ObjectiveInputError, "`gamma` must be >= 0, got -1"),
        ("0.5*focal(gamma=-1) + 0.5*supcon", {}, ObjectiveInputError, "`gamma` must be >= 0, got -1"),
        ("focal *", {}, CompositionError, "cannot be read"),
        ("focal", {"classes": 1}, ObjectiveInputError, "`classes` must be an int >= 2, got 1"),
        ("focal", {"points": 1.5}, ObjectiveInputError, "`points` must be an int >= 2, got 1.5"),
        ("dpo", {"span": 0}, ObjectiveInputError, "`span` must be > 0, got 0"),
        (
            "focal",
            {"span": 1},
            ObjectiveInputError,
            "`span` is for preference and unpaired.*'focal', which reads logits",
        ),
        ("supcon", {"span": 1}, ObjectiveInputError, "'supcon', which reads embeddings, has fixed ends"),
    ],
)
def test_what_cannot_be_drawn_says_why(text, settings, error, message):
    with pytest.raises(error, match=message):
        loss_curve(text, **settings)


def test_an_objective_of_your_own_draws(pair_loss):
    curve = check(pair_loss, lambda x: -0.1 * x, lambda x: -0.1)
    assert curve.x[-1] == pytest.approx(36)


def test_a_schedule_names_its_phases():
    with pytest.raises(NoCurveError) as caught:
        loss_curve("cross_entropy -> 2*focal(gamma=1) + dft @ 0.2:0.3 -> lovasz @ 0.5")
    assert str(caught.value).endswith(
        "draw its phases, 'cross_entropy' and '2*focal(gamma=1.0) + dft' and 'lovasz_softmax'."
    )
