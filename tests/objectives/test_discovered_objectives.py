"""The seven discovered objectives: both forms, their shapes, and margins at which the released code gives NaN."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

import oracles_discovered
from library import plain
from lossmith import ObjectiveInputError
from lossmith.objectives import (
    aqfl_loss,
    aql_loss,
    cell_loss,
    dbaql_loss,
    dpo_loss,
    get_record,
    lrml_loss,
    padll_loss,
    pfl_loss,
)
from scalar_oracles import finite_difference

NAMES = ("lrml", "dbaql", "aql", "aqfl", "padll", "cell", "pfl")
COUPLED = ("dbaql", "aql", "aqfl")
FORMS = ("released", "discovered")
CASES = [
    *itertools.product(NAMES, [{"form": form, "beta": beta} for form in FORMS for beta in (0.05, 0.17)]),
    ("lrml", {"tau": 0.2}),
    ("lrml", {"beta": 0.3, "tau": 0.11}),
    ("lrml", {"beta": 0.4, "tau": 1.7}),
    ("lrml", {"beta": 1.3, "form": "discovered"}),
]
FLOATS = [torch.float32, torch.float64]
MARGINS = [-1e6, -1e5, -9e3, -1777.0, -1000.0, -900.0, -300.0, -120.0, -40.0, 40.0, 300.0, 2e3, 1e6]


def label(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def function(name):
    return get_record(name).function


def random_pairs(count=6, *, spread=6.0, seed=0):
    """Pairs whose margins have both signs, some right by the policy and wrong by the reference."""
    generator = torch.Generator().manual_seed(seed)
    return (-20 + spread * torch.randn(count, 4, generator=generator, dtype=torch.float64)).tolist()


def columns(pairs, dtype=torch.float64):
    """The four statistics, as leaves."""
    return [
        torch.tensor([pair[k] for pair in pairs], dtype=dtype).reshape(len(pairs)).requires_grad_() for k in range(4)
    ]


def at_margin(*margins, dtype=torch.float64):
    """Statistics of pairs with these margins, half of each on either side; chosen is a leaf of margin zero's place."""
    rho = torch.tensor(margins, dtype=dtype, requires_grad=True)
    reference = torch.full((len(margins),), -20.0, dtype=dtype)
    # The margin arises without rounding: 1e6 in float32 has no room beside -20.
    return rho, (rho, torch.zeros_like(reference), torch.zeros_like(reference), torch.zeros_like(reference))


def slope(name, rho, **settings):
    leaf, statistics = at_margin(rho)
    (gradient,) = torch.autograd.grad(function(name)(*statistics, **settings).sum(), leaf)
    return gradient.item()


def value(name, rho, **settings):
    return function(name)(*at_margin(rho)[1], **settings).item()


@pytest.mark.parametrize(("name", "settings"), CASES, ids=label)
def test_values_are_the_oracle_s(name, settings):
    for seed, spread in ((0, 6.0), (1, 0.4), (2, 40.0)):
        pairs = random_pairs(spread=spread, seed=seed)
        expected = getattr(oracles_discovered, name)(pairs, **settings)
        assert_close(
            function(name)(*columns(pairs), **settings),
            torch.tensor(expected, dtype=torch.float64),
            rtol=1e-12,
            atol=1e-14,
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("count", [1, 2])
def test_the_smallest_batches(name, form, count):
    """The variance divides by n - 1: by 1 for two pairs; of one pair it is 0."""
    pairs = random_pairs(count, spread=0.8, seed=4)
    expected = getattr(oracles_discovered, name)(pairs, form=form)
    losses = function(name)(*columns(pairs), form=form)
    assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=label)
def test_gradients_are_the_oracle_s_through_the_statistics_of_the_batch_too(name, settings):
    weights = [0.7, -1.3, 2.1, 0.4, 1.9, -0.6]
    for seed, spread in ((0, 6.0), (3, 0.4)):
        pairs = random_pairs(spread=spread, seed=seed)

        def total(rows):
            losses = getattr(oracles_discovered, name)(rows, **settings)
            return math.fsum(w * loss for w, loss in zip(weights, losses, strict=True))

        leaves = columns(pairs)
        loss = function(name)(*leaves, **settings) @ torch.tensor(weights, dtype=torch.float64)
        found = torch.stack(torch.autograd.grad(loss, leaves), dim=1)
        assert_close(found, torch.tensor(finite_difference(total, pairs), dtype=torch.float64), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name):
    record = get_record(name)
    assert record.hyperparameters == {"beta": 0.05, **({"tau": 0.05} if name == "lrml" else {}), "form": "released"}
    assert (record.family, record.item, record.batch_coupled) == ("preference", "pair", name in COUPLED)
    pairs = random_pairs()
    assert_close(
        function(name)(*columns(pairs)), torch.tensor(getattr(oracles_discovered, name)(pairs), dtype=torch.float64)
    )


def test_discopop_is_lrml():
    assert get_record("discopop").function is lrml_loss


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lrml", {}),
        ("lrml", {"beta": 0.3, "tau": 0.3}),
        ("dbaql", {}),
        ("aqfl", {}),
        ("padll", {"beta": 0.3}),
        ("cell", {"beta": 0.3}),
        ("pfl", {"beta": 1.0}),
    ],
    ids=label,
)
def test_where_both_forms_are_equal(name, settings):
    statistics = columns(random_pairs(spread=0.7))
    bare = {k: v for k, v in settings.items() if k != "tau"}
    assert_close(
        function(name)(*statistics, **settings),
        function(name)(*statistics, **bare, form="discovered"),
        rtol=1e-13,
        atol=0,
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lrml", {"beta": 0.3}), ("dbaql", {"beta": 0.3}), ("aql", {}), ("aqfl", {"beta": 0.3}), ("pfl", {})],
    ids=label,
)
def test_where_they_differ(name, settings):
    statistics = columns(random_pairs(spread=0.7))
    released, discovered = (function(name)(*statistics, **settings, form=form) for form in FORMS)
    assert (released - discovered).abs().max() > 0.01


def test_the_discovered_form_of_pfl_knows_no_beta():
    statistics = columns(random_pairs())
    one, other = (pfl_loss(*statistics, beta=beta, form="discovered") for beta in (0.05, 3.0))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lrml", (1 + math.log(2)) / 2),
        ("dbaql", (1 + math.log(2)) / 2),
        ("aql", 0.8089965992),
        ("aqfl", 0.8463818074),
        ("padll", 0.9 * math.log(2)),
        ("cell", (1 + math.log(2)) / 2),
        ("pfl", math.log(2) / 2),
    ],
)
@pytest.mark.parametrize("beta", [0.05, 0.8])
def test_values_where_policy_and_reference_agree(name, expected, beta):
    same = torch.tensor([-10.0, -3.0], dtype=torch.float64), torch.tensor([-12.0, -7.0], dtype=torch.float64)
    assert function(name)(*same, *same, beta=beta).tolist() == pytest.approx([expected] * 2, abs=1e-9)


def test_other_values_where_they_agree():
    low, high = torch.tensor([-12.0], dtype=torch.float64), torch.tensor([-10.0], dtype=torch.float64)
    assert pfl_loss(low, high, low, high).item() == pytest.approx(2.0)
    assert aql_loss(low, high, low, high, form="discovered").item() == pytest.approx(0.8446558600, abs=1e-9)


def test_lrml_pushes_a_fresh_pair_down_between_its_two_stationary_points():
    assert slope("lrml", 0.0) == pytest.approx(0.0392132, abs=1e-6)
    assert slope("lrml", -2.371) == pytest.approx(0, abs=1e-5)
    assert slope("lrml", 1.440) == pytest.approx(0, abs=1e-5)
    assert slope("lrml", -2.375) < 0 < slope("lrml", -2.367)
    assert slope("lrml", 1.436) > 0 > slope("lrml", 1.444)
    turns = [rho / 10 for rho in range(-400, 400) if slope("lrml", rho / 10) * slope("lrml", (rho + 1) / 10) < 0]
    assert turns == [-2.4, 1.4]


def test_aql_has_such_a_dent_in_its_released_form_alone():
    assert slope("aql", 0.0) == pytest.approx(0.0374928, abs=1e-6)
    assert slope("aql", -1.842) < 0 < slope("aql", -1.838)
    assert slope("aql", 1.785) > 0 > slope("aql", 1.789)
    assert all(slope("aql", rho / 4, form="discovered") < 0 for rho in range(-200, 200))


@pytest.mark.parametrize("name", ["aqfl", "padll", "cell", "pfl", "dbaql"])
def test_the_others_fall_everywhere(name):
    assert all(slope(name, rho / 4) < 0 for rho in range(-200, 200) if (name, rho) != ("pfl", 80))


def test_cell_s_slopes():
    assert slope("cell", 0.0, beta=0.3) == pytest.approx(-0.75 * 0.3)
    assert slope("cell", -20.0, beta=1.0) / slope("cell", 0.0, beta=1.0) == pytest.approx(3.2e8, rel=0.02)


def test_the_jumps_of_padll_and_pfl():
    assert value("padll", -1e-9) == pytest.approx(0.45 * math.log(2))
    assert value("padll", 0.0) == pytest.approx(0.9 * math.log(2))
    assert value("pfl", 1e-9) == pytest.approx(0.5 * math.log(2))
    assert value("pfl", 0.0) == pytest.approx(2.0)


def test_relatives():
    chosen, rejected, ref_chosen, ref_rejected = statistics = columns(random_pairs(40))
    rho = (chosen - ref_chosen) - (rejected - ref_rejected)
    x, dpo = 0.3 * rho, dpo_loss(*statistics, beta=0.3)
    hinge, exponential = (1 - x).clamp(min=0), (-x).exp()
    exact = {"rtol": 1e-12, "atol": 1e-14}
    assert_close(padll_loss(*statistics, beta=0.3), dpo * torch.where(rho < 0, 0.45, 0.9).double(), rtol=1e-7, atol=0)
    assert_close(pfl_loss(*statistics, beta=0.3), torch.where(chosen > rejected, dpo / 2, 2 * hinge), **exact)
    assert_close(cell_loss(*statistics, beta=0.3), (dpo + exponential) / 2, **exact)
    # The margins here spread over 12 nats: Var is far beyond 50 and the exponential has no share left.
    assert_close(dbaql_loss(*statistics, beta=0.3), dpo_loss(*statistics, beta=0.3 / 0.9), **exact)
    blend = (aqfl_loss(*statistics, beta=0.3) - hinge) / (dpo - hinge)
    assert ((blend >= 0.5) & (blend < 1)).all()
    blend = (aql_loss(*statistics, beta=0.3) - hinge) / (dpo - hinge)
    assert ((blend > -1e-9) & (blend < 1 + 1e-9)).all()


def test_relatives_far_from_the_dent():
    for rho in (-3000.0, -200.0):
        _, statistics = at_margin(rho)
        assert lrml_loss(*statistics).item() == pytest.approx(dpo_loss(*statistics, beta=0.05).item(), rel=1e-12)
    for rho in (-500.0, 400.0):
        _, statistics = at_margin(rho)
        assert aqfl_loss(*statistics).item() == pytest.approx(dpo_loss(*statistics, beta=0.05).item(), rel=1e-9)


def test_dbaql_of_a_batch_without_spread_shares_evenly():
    _, statistics = at_margin(3.0, 3.0)
    x = torch.tensor(0.15, dtype=torch.float64)
    expected = (torch.log1p((-x / 0.9).exp()) + (-0.9 * x).exp()) / 2
    assert_close(dbaql_loss(*statistics), expected.expand(2), rtol=1e-12, atol=0)
    # A spread of 4 nats leaves the exponential, here 10^39 times as large, less than a millionth of the weight.
    _, wide = at_margin(-8.0, 0.0)
    assert 1 / (1 + math.exp(32)) < 1e-6
    assert_close(dbaql_loss(*wide), dpo_loss(*wide, beta=0.05 / 0.9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *itertools.product(NAMES, [{"form": form, "beta": beta} for form in FORMS for beta in (0.05, 1.0, 5.0)]),
        *[("lrml", {"beta": beta, "tau": tau}) for beta in (0.05, 1.0) for tau in (1e-3, 0.9, 1.0, 1.01, 2.0, 50.0)],
    ],
    ids=label,
)
def test_extreme_margins_are_finite_and_right_signed(name, settings, dtype):
    for margins in [(rho,) for rho in MARGINS] + [(rho, rho) for rho in MARGINS]:
        rho, statistics = at_margin(*margins, dtype=dtype)
        losses = function(name)(*statistics, **settings)
        (gradient,) = torch.autograd.grad(losses.sum(), rho)
        assert losses.isfinite().all()
        assert losses.dtype == dtype
        assert gradient.isfinite().all()
        assert (losses >= 0).all()
        if margins[0] < 0:
            assert (gradient < 0).all(), margins
        else:
            assert (gradient <= 0).all(), margins


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_batches_are_finite(name, form, dtype):
    for margins in [(-1e6, 1e6), (1e6, 1e6, -1e6, 0.0), (-1e6, -1e6, 3.0), (0.0, 1e-30), (-9e3, -9e3 + 1, 40.0)]:
        for beta in (0.05, 1.0):
            rho, statistics = at_margin(*margins, dtype=dtype)
            losses = function(name)(*statistics, beta=beta, form=form)
            (gradient,) = torch.autograd.grad(losses.sum(), rho)
            assert losses.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings", "edge"),
    [
        ("cell", {"beta": 1.0}, -50.0),
        ("dbaql", {"beta": 0.9}, -50 / 0.81),
        ("lrml", {"beta": 1.0, "tau": 2.0}, -100.0),
        ("lrml", {"beta": 3.0, "form": "discovered"}, -25.0),
    ],
    ids=label,
)
def test_the_exponential_goes_over_into_its_tangent(name, settings, edge):
    left, right = (slope(name, edge + step, **settings) for step in (-1e-7, 1e-7))
    assert left == pytest.approx(right, rel=1e-5)
    assert value(name, edge - 1e-7, **settings) == pytest.approx(value(name, edge + 1e-7, **settings), rel=1e-5)
    assert right < -1e15
    # Beyond, the slope stays what it is there, and before it the exponential is itself.
    assert slope(name, edge - 40.0, **settings) == pytest.approx(left, rel=1e-5)
    assert slope(name, edge + 5.0, **settings) > 0.7 * right


def test_lrml_is_exact_where_its_exponential_alone_overflows():
    """e^-x is 10^434 at x = -1000 and sigma(x/0.05) is 0: their product is 0 and the logistic part remains."""
    _, statistics = at_margin(-20000.0)
    assert lrml_loss(*statistics).item() == pytest.approx(1000.0, rel=1e-15)
    assert slope("lrml", -20000.0) == pytest.approx(-0.05, rel=1e-15)
    assert slope("lrml", -20000.0, form="discovered") == pytest.approx(-0.05, rel=1e-15)
    # At tau = 1 the product is sigma(-x), which tends to 1.
    assert value("lrml", -1000.0, beta=1.0, tau=1.0) == pytest.approx(1001.0, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_goes_up(name, dtype):
    pairs = [[-240.0, -10.0, -20.0, -30.0], [-4.0, -800.0, -20.0, -30.0], [-3.0, -5.0, -4.0, -6.5]]
    half = columns(pairs, dtype)
    losses = function(name)(*half)
    assert losses.dtype == torch.float32
    assert_close(losses, function(name)(*[column.float() for column in half]), rtol=0, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(losses.sum(), half))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COUPLED)
def test_no_spread_has_no_gradient_of_its_own(name, form):
    """One pair, and equal pairs: the gradient is that of the formula with the spread held at 0."""
    for rho, count in [(1.7, 1), (1.7, 3), (-0.3, 7)]:
        pair = [rho - 20, -20.0, -20.0, -20.0]
        leaves = columns([pair] * count)
        losses = function(name)(*leaves, form=form)
        found = torch.autograd.grad(losses.sum(), leaves[0])[0]

        # All margins move together: their spread stays 0, and each has the same part of the common slope.
        def alike(rows):
            return getattr(oracles_discovered, name)([rows[0], rows[0]], form=form)[0]

        assert found.tolist() == pytest.approx([finite_difference(alike, [pair])[0][0]] * count, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_empty(name):
    leaves = columns([])
    losses = function(name)(*leaves)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.shape == (0,) for leaf in leaves)


@pytest.mark.parametrize("name", NAMES)
def test_coupling_is_what_is_declared(name):
    pairs = random_pairs(spread=0.6)
    whole = function(name)(*columns(pairs))
    alone = torch.cat([function(name)(*columns([pair])) for pair in pairs])
    assert torch.allclose(whole, alone, rtol=1e-9) == (name not in COUPLED)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole_at_any_batch_size(name, form):
    torch._dynamo.reset()
    compiled = torch.compile(plain(function(name)), fullgraph=True, backend="aot_eager")
    for count in (6, 1, 4):
        leaves = columns(random_pairs(count, spread=0.6))
        eager = function(name)(*leaves, form=form)
        found = compiled(*leaves, form=form)
        assert_close(found, eager, rtol=1e-13, atol=0)
        slopes, expected = (torch.autograd.grad(losses.sum(), leaves) for losses in (found, eager))
        assert_close(slopes, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "`beta` must be > 0, got 0.0."),
        ({"beta": math.nan}, "`beta` must be > 0, got nan."),
        ({"form": "published"}, "`form` must be one of 'released', 'discovered', got 'published'."),
    ],
)
def test_errors(name, settings, message):
    with pytest.raises(ObjectiveInputError) as caught:
        function(name)(*columns(random_pairs()), **settings)
    assert str(caught.value) == message


def test_errors_of_tau():
    with pytest.raises(ObjectiveInputError, match=r"`tau` must be > 0, got -1\.0"):
        lrml_loss(*columns(random_pairs()), tau=-1.0)
    with pytest.raises(ObjectiveInputError, match=r"`tau` is not in form 'discovered', .*; got 0\.2"):
        lrml_loss(*columns(random_pairs()), tau=0.2, form="discovered")
