"""`lossmith.testing`: a right objective passes, and for every check there is a wrong one that it names."""

import inspect
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lossmith
from library import plain
from lossmith import LossmithError, ObjectiveInputError
from lossmith._numerics import at_least_float32, masked_logsumexp
from lossmith.objectives import _registry, dpo_loss, focal_loss, get_record, supcon_loss
from lossmith.testing import CHECKS, ObjectiveCheckError, check_objective, draw_statistics, hold_constants

TOKEN = {"family": "token", "item": "token"}
PAIR = {"family": "preference", "item": "pair"}
TABLE = {"family": "metric", "item": "anchor", "batch_coupled": True, "needs_positives": True}


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_REGISTRY", dict(_registry._REGISTRY))


def likelihood_loss(token_logps, *, power: float = 1.0):
    """Right: what the wrong ones below are made of."""
    return power * -at_least_float32(token_logps)


def reduced_loss(token_logps):
    return -at_least_float32(token_logps).mean()


def a_list_loss(token_logps):
    return [-x for x in token_logps]


def random_loss(token_logps):
    return F.dropout(-at_least_float32(token_logps))


def missing_item_loss(token_logps):
    return -at_least_float32(token_logps)[1:]


def wrong_gradient_loss(token_logps):
    """The value is right, the slope 1% too steep."""
    logps = at_least_float32(token_logps)
    with torch.no_grad():
        rest = 0.01 * logps
    return rest - 1.01 * logps


def no_grad_loss(token_logps):
    logps = at_least_float32(token_logps)
    with torch.no_grad():
        weight = logps.exp()
    return -weight * logps


def no_gradient_loss(token_logps):
    return -at_least_float32(token_logps).detach()


def cut_in_the_module_loss(token_logps):
    return -at_least_float32(token_logps if token_logps.is_leaf else token_logps.detach())


def counts_itself_loss(similarities, same, different):
    """Negatives by `~same`: the row itself and empty places of a memory are among them."""
    scores = at_least_float32(similarities)
    losses = -F.logsigmoid(masked_logsumexp(scores, same) - masked_logsumexp(scores, ~same))
    return torch.where(same.any(-1), losses, torch.zeros_like(losses))


def whole_mean_loss(similarities, same, different):
    """Looks at the other rows of the table."""
    scores = at_least_float32(similarities)
    centred = scores - scores.masked_fill(~(same | different), 0.0).sum() / (same | different).sum().clamp(min=1)
    losses = -F.logsigmoid(masked_logsumexp(centred, same) - masked_logsumexp(scores, different))
    return torch.where(same.any(-1), losses, torch.zeros_like(losses))


def largest_loss(token_logps):
    logps = at_least_float32(token_logps)
    return (-logps - logps.max().detach()).relu() - logps


def mean_of_nothing_loss(embeddings, labels):
    return at_least_float32(embeddings).square().mean()


def by_place_loss(token_logps):
    logps = at_least_float32(token_logps)
    return -logps * (1 + torch.arange(len(logps), dtype=logps.dtype))


def batch_mean_loss(token_logps):
    logps = at_least_float32(token_logps)
    return -logps * (1 - logps.mean())


def goes_half_loss(token_logps):
    return (-token_logps / 4).half() * 4 if token_logps.dtype == torch.float32 else -token_logps


def single_loss(token_logps):
    return -token_logps.float()


def single_inside_loss(token_logps):
    return (-token_logps.float()).to(torch.promote_types(token_logps.dtype, torch.float32))


def overflows_loss(chosen_logps, rejected_logps):
    return torch.exp(-0.1 * (at_least_float32(chosen_logps) - at_least_float32(rejected_logps)))


def infinite_slope_loss(token_logps):
    return -torch.expm1(at_least_float32(token_logps)).abs().sqrt() * at_least_float32(token_logps)


def silent_loss(token_logps, *, power: float = 2.0):
    return -at_least_float32(token_logps)


def silent_switch_loss(token_logps, *, squared: bool = False):
    return -at_least_float32(token_logps)


def sorted_loss(token_logps):
    return -at_least_float32(token_logps).sort().values


def branching_loss(token_logps):
    logps = at_least_float32(token_logps)
    return -logps if bool((logps > -1e9).all()) else -logps.clamp(min=-1e9)


def checks_by_isfinite_loss(token_logps, *, power: float = 2.0):
    """Compiles for its first `power` only."""
    if not math.isfinite(power):
        raise ObjectiveInputError("`power` must be finite.")
    return -at_least_float32(token_logps) * power


def dead_in_the_compiler_loss(token_logps):
    logps = at_least_float32(token_logps)
    return -logps.detach() if torch.compiler.is_compiling() else -logps


# Function, its declaration, the checks that fail and what one of them says.
WRONG = [
    (reduced_loss, TOKEN, {"shape"}, "9 rows: expected one loss per token, shape (9,), got ()"),
    (missing_item_loss, TOKEN, {"shape"}, "expected one loss per token, shape (9,), got (8,)"),
    (a_list_loss, TOKEN, {"shape"}, "expected a floating-point tensor of losses, got list"),
    (random_loss, TOKEN, {"shape"}, "expected the same losses on a second call with the same inputs, got others"),
    (
        wrong_gradient_loss,
        TOKEN,
        {"gradient", "module_gradient"},
        "derivative by `token_logps`, entry 0: expected -0.5",
    ),
    (no_grad_loss, TOKEN, {"gradient", "module_gradient"}, "derivative by `token_logps`, entry 0: expected "),
    (
        no_gradient_loss,
        TOKEN,
        {"gradient", "module_gradient", "nothing_valid"},
        "gradient: expected a gradient for something that it reads, got 0 everywhere",
    ),
    (
        cut_in_the_module_loss,
        TOKEN,
        {"module_gradient", "nothing_valid"},
        "module_gradient: derivative by `logits`, entry 0: expected -0.08",
    ),
    (
        counts_itself_loss,
        TABLE,
        {"ignored_rows"},
        "losses with 7 as the similarity of a row to itself: expected ",
    ),
    (
        counts_itself_loss,
        TABLE | {"row_local": True},
        {"ignored_rows"},
        "losses with 7 as the similarity of a row to itself: expected ",
    ),
    (
        whole_mean_loss,
        TABLE | {"row_local": True},
        {"chunks"},
        "declared row_local, but losses of the rows in two chunks",
    ),
    (
        largest_loss,
        TOKEN | {"batch_coupled": True},
        {"nothing_valid"},
        "expected losses, got RuntimeError: max()",
    ),
    (
        mean_of_nothing_loss,
        {"family": "metric", "item": "batch", "batch_coupled": True},
        {"nothing_valid"},
        "loss of all rows ignored, reduction 'mean': expected 0, got nan",
    ),
    (by_place_loss, TOKEN, {"permutation", "engines", "accumulation"}, "loss of the items in another order: expected "),
    (
        batch_mean_loss,
        TOKEN,
        {"engines", "accumulation"},
        "not declared batch_coupled, but 2 micro-batches: expected ",
    ),
    (
        goes_half_loss,
        TOKEN,
        {"half_precision"},
        "loss of a torch.bfloat16 batch: expected torch.float32, got torch.float16",
    ),
    (
        single_loss,
        TOKEN,
        {"gradient", "module_gradient", "ignored_rows", "engines", "accumulation", "double_precision"},
        "losses of float64 inputs: expected torch.float64, got torch.float32",
    ),
    (
        single_inside_loss,
        TOKEN,
        {"gradient", "module_gradient", "double_precision"},
        "expected 16 digits to count, but the inputs in float32 give the same",
    ),
    (overflows_loss, PAIR, {"extremes"}, "loss at margins of +-1e6 in torch.float32: expected finite numbers, got inf"),
    (infinite_slope_loss, TOKEN, {"extremes"}, "gradient at logits of +-1e4, labels right in torch.float32"),
    (
        silent_loss,
        TOKEN,
        {"settings"},
        "hyper-parameter `power`: expected other losses for another value, got the same",
    ),
    (silent_switch_loss, TOKEN, {"settings"}, "hyper-parameter `squared`: expected other losses for another value"),
    (sorted_loss, TOKEN | {"batch_coupled": True}, {"permutation"}, "losses of the items in another order: expected "),
    (branching_loss, TOKEN, {"compile"}, "compile: expected one graph, got "),
    (checks_by_isfinite_loss, TOKEN, {"compile"}, "compile: expected one graph at {'power': 1.83}, got "),
    (dead_in_the_compiler_loss, TOKEN, {"compile"}, "gradient of the compiled losses: expected "),
]


def test_the_right_one_passes_every_check() -> None:
    report = check_objective(likelihood_loss, **TOKEN)
    assert report.passed
    assert [check.name for check in report.checks] == list(CHECKS)
    assert {check.outcome for check in report.checks} == {"passed", "skipped"}
    assert report["chunks"].outcome == "skipped"
    assert "likelihood" not in _registry._REGISTRY


def test_every_check_has_an_objective_that_fails_it() -> None:
    assert set().union(*(failing for _, _, failing, _ in WRONG)) == set(CHECKS)


@pytest.mark.parametrize(
    ("function", "declaration", "failing", "sentence"), WRONG, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_wrong_objective_is_named_with_what_fails(function, declaration, failing, sentence) -> None:
    report = check_objective(function, raise_failures=False, **declaration)
    assert {check.name for check in report.failed} == failing, str(report)
    assert not report.passed
    with pytest.raises(ObjectiveCheckError) as caught:
        check_objective(function, **declaration)
    message = str(caught.value)
    name = function.__name__.removesuffix("_loss")
    assert message.startswith(f"'{name}' fails {len(failing)} of {len(CHECKS)} checks:\n")
    assert sentence in message
    for check in report.failed:
        assert f"\n  {check.name}: {check.detail}." in message
    assert isinstance(caught.value, LossmithError)
    assert isinstance(caught.value, AssertionError)


def test_a_wrong_shape_leaves_nothing_else_to_check() -> None:
    report = check_objective(reduced_loss, raise_failures=False, **TOKEN)
    assert {(check.outcome, check.detail) for check in report.checks[1:]} == {("skipped", "the shape is wrong")}


def test_the_default_way_to_trace_works_where_nothing_is_wrapped() -> None:
    code = (
        "import torch, lossmith\n"
        "from lossmith.testing import check_objective\n"
        "from lossmith.objectives import dpo_loss, focal_loss\n"
        "for function in (dpo_loss, focal_loss):\n"
        "    print(check_objective(function)['compile'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["compile: passed", "compile: passed"]


def test_coupling_declared_in_vain_is_a_remark_and_no_failure() -> None:
    report = check_objective(likelihood_loss, **TOKEN, batch_coupled=True)
    assert report["accumulation"].outcome == "passed"
    assert report["accumulation"].detail == "declared batch_coupled, but micro-batches add up to the batch"
    honest = check_objective(batch_mean_loss, **TOKEN, batch_coupled=True)
    assert honest["accumulation"].detail == ""


@pytest.mark.usefixtures("clean_registry")
def test_a_decorated_function_needs_no_declaration() -> None:
    def my_square_loss(token_logps: Tensor, *, power: float = 2.0) -> Tensor:
        return (-at_least_float32(token_logps)).pow(power)

    lossmith.objective(**TOKEN, source="https://example.org")(my_square_loss)
    assert check_objective(my_square_loss).name == "my_square"
    with pytest.raises(
        ObjectiveInputError, match=r"^`family` of my_square_loss comes from its decorator: leave it out"
    ):
        check_objective(my_square_loss, family="token")
    with pytest.raises(
        ObjectiveInputError, match=r"^likelihood_loss is not recorded: decorate it with `@lossmith.obje"
    ):
        check_objective(likelihood_loss)
    with pytest.raises(ObjectiveInputError, match=r"reads `logp`, which family 'token' does not have. Did you mean"):
        check_objective(lambda logp: -logp, **TOKEN)
    with pytest.raises(
        ObjectiveInputError, match=r"^`lossmith.objective` has no keyword `famly`. Did you mean 'family'"
    ):
        check_objective(likelihood_loss, famly="token")
    with pytest.raises(
        ObjectiveInputError, match=r"^likelihood_loss is not recorded, so its `item` must be given here"
    ):
        check_objective(likelihood_loss, family="token")


def test_checks_can_be_left_out_and_settings_changed() -> None:
    report = check_objective(goes_half_loss, skip=["half_precision"], **TOKEN)
    assert report["half_precision"].outcome == "skipped"
    with pytest.raises(ObjectiveInputError, match=r"^No check named 'half_prec'. Did you mean 'half_precision'"):
        check_objective(likelihood_loss, skip=["half_prec"], **TOKEN)
    assert check_objective(focal_loss, hyperparameters={"gamma": 0.5}, traceable=plain).passed
    refused = check_objective(focal_loss, hyperparameters={"gamma": -1.0}, raise_failures=False)
    assert refused["shape"].detail == "expected losses, got ObjectiveInputError: `gamma` must be >= 0, got -1.0."


def test_a_setting_that_is_refused_is_not_silent() -> None:
    def fixed_loss(token_logps, *, power: float = 2.0, form: str = "plain"):
        if form == "plain" and power != 2.0:
            raise ObjectiveInputError("`power` is not in form 'plain'.")
        return (-at_least_float32(token_logps)).pow(power)

    assert check_objective(fixed_loss, traceable=plain, **TOKEN).passed
    assert check_objective(fixed_loss, traceable=plain, hyperparameters={"form": "free"}, **TOKEN).passed


def test_the_report_is_one_line_per_check() -> None:
    lines = str(check_objective(silent_loss, raise_failures=False, **TOKEN)).splitlines()
    assert lines[0] == "'silent'"
    assert len(lines) == 1 + len(CHECKS)
    assert lines[1] == "  shape: passed"
    assert "  settings: failed (hyper-parameter `power`: expected other losses" in lines[13]


def test_the_global_random_state_stays_and_runs_repeat() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = check_objective(overflows_loss, raise_failures=False, **PAIR)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert check_objective(overflows_loss, raise_failures=False, **PAIR) == first


def test_inputs_tell_objectives_apart() -> None:
    for record in lossmith.list_losses():
        made = draw_statistics(record)
        assert tuple(made) == record.reads
        again, other = draw_statistics(record), draw_statistics(record, seed=1)
        for name, value in made.items():
            assert torch.equal(value, again[name])
            if value.is_floating_point() and value.ndim:
                assert len(value.flatten().unique()) > 1
                assert not torch.equal(value, other[name]) or name.startswith("ref_lengths")


def test_constants_are_held_at_their_first_value() -> None:
    held = hold_constants(lambda x: x.detach() * x + torch.detach(x) + x.data)
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert held(one).item() == 3.0
    assert held(two).item() == 4.0
    assert held(one).item() == 3.0
    one += 5.0
    assert held(two).item() == 4.0, "a detached view does not move with its tensor"


def test_constants_that_change_in_number_are_refused() -> None:
    held = hold_constants(lambda x: sum(x.detach() for _ in range(int(x))))
    held(torch.tensor(1.0))
    with pytest.raises(
        ObjectiveInputError, match=r"^The function detached 1 tensors when it was first called and more"
    ):
        held(torch.tensor(2.0))


def test_holding_leaves_the_function_as_it_is() -> None:
    statistics = draw_statistics(get_record("dpo"))
    held = hold_constants(dpo_loss)
    assert torch.equal(held(**statistics), dpo_loss(**statistics))
    assert inspect.unwrap(get_record("supcon").function) is inspect.unwrap(supcon_loss)
