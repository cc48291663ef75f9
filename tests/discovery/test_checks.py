"""`check`: verdicts, flags, duplicates, and that nothing makes it raise."""

import json
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import margin, random_program

import lossmith
from lossmith.discovery import Memory, check
from lossmith.discovery.checks import CHECKS, Candidate, battery, points, slopes
from lossmith.discovery.identity import atlas
from lossmith.discovery.program import Program, const, inputs_of, make

HEAD = (
    "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):\n"
    "    z = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)\n    return "
)
Z = margin()


def verdict_of(text: str, **settings):
    return check(HEAD + text, **settings)


@pytest.mark.parametrize(
    ("text", "category", "said"),
    [
        ("z.mean()", "shape", "one number for the batch"),
        ("1.0", "shape", "one number for the batch"),
        ("z < 0", "bad-type", "a boolean per item"),
        ("(z < 0).float()", "no-grad", "No gradient reaches `chosen_logps` or `rejected_logps`"),
        ("F.softplus(-z).detach()", "no-grad", "No gradient"),
        ("ref_chosen_logps - ref_rejected_logps", "no-grad", "No gradient"),
        ("0 * z", "zero-grad", "zero at every ordinary input"),
        ("F.softplus(0.1 * z)", "wrong-sign", "+1.00"),
        ("-(chosen_logps + rejected_logps)", "wrong-sign", "whichever completion is the chosen one"),
        ("F.softplus(-z).detach() + z - z.detach()", "wrong-sign", "margins of 10 nats"),
        ("torch.exp(-5 * z)", "nonfinite", "300 nats"),
        ("torch.log(z)", "nonfinite", "value is not finite at ordinary inputs"),
        ("torch.sqrt(torch.square(z))", "nonfinite", "gradient with respect to"),
        ("F.softplus(-z / z.std())", "nonfinite", "a batch of one pair. A spread over one item is 0"),
    ],
)
def test_what_is_refused_and_why(text, category, said):
    verdict = verdict_of(text)
    assert (verdict.accepted, verdict.category) == (False, category)
    assert said in verdict.reason
    assert verdict.program is not None


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("torch.relu(1 - 0.1 * z)", ("convex", "saturating", "known:hinge")),
        ("torch.square(z - 5)", ("non-monotone", "convex", "known:ipo")),
        ("torch.sigmoid(-0.5 * z)", ("bounded", "saturating")),
        ("-0.9 * F.logsigmoid(0.1 * z) - 0.1 * F.logsigmoid(-0.1 * z)", ("non-monotone", "convex", "known:cdpo")),
        ("F.softplus(-0.1 * z) * torch.sigmoid(0.001 * z.var())", ("batch-coupled", "batch-size-dependent")),
        ("F.softplus(-0.1 * z) + 0.01 * z.mean()", ("batch-coupled",)),
        ("F.softplus(-0.1 * z) * torch.exp(0.01 * z).detach()", ("detach", "grad-mismatch")),
        ("torch.exp(-z)", ("half-nonfinite", "float32-nonfinite", "convex", "saturating")),
        ("torch.exp(-0.15 * z)", ("float32-nonfinite", "convex", "saturating")),
        ("-F.logsigmoid(0.02 * chosen_logps - 0.02 * rejected_logps - 0.7)", ("reference-free",)),
    ],
)
def test_what_is_accepted_and_how_it_is(text, flags):
    verdict = verdict_of(text)
    assert (verdict.accepted, verdict.category, verdict.line) == (True, "ok", None), str(verdict)
    assert set(flags) <= set(verdict.flags), verdict.flags


@pytest.mark.parametrize(
    ("source", "lowers"),
    [
        ("def f(token_logps): return -token_logps * torch.square(1 - torch.exp(token_logps))", False),
        ("def f(token_logps): return 1 - torch.exp(0.5 * token_logps)", False),
        ("def f(token_logps, log_normalizer): return torch.atan(0.056 * log_normalizer - 1.1 * token_logps)", True),
    ],
)
def test_a_token_loss_that_lowers_what_is_all_but_certain_is_flagged(source, lowers):
    verdict = check(source, "token")
    assert verdict.accepted
    assert ("lowers-sure-labels" in verdict.flags) == lowers


def test_flags_that_are_not_raised():
    assert not {
        "batch-coupled",
        "detach",
        "non-monotone",
        "bounded",
        "reference-free",
        "half-nonfinite",
        "float32-nonfinite",
    } & set(verdict_of("torch.relu(1 - 0.1 * z)").flags)


def test_the_direction_of_known_losses():
    def share(text: str) -> list[float]:
        program = check(HEAD + text).program
        return [push for _, push in battery.DIRECTIONS["preference"](Candidate(program))]

    # At margins of 10 and 30 nats, then the same where everything else is drawn at random.
    assert share("F.softplus(-0.1 * z)") == pytest.approx([-1] * 4)
    assert all(-0.65 < push < -0.1 for push in share("torch.square(z - 5)"))
    lrml = "(1 - torch.sigmoid(z)) * F.softplus(-0.05 * z) + torch.sigmoid(z) * torch.exp(-0.05 * z)"
    assert all(-0.98 < push < -0.6 for push in share(lrml))
    cheat = "F.softplus(-0.1 * z).detach() + z - z.detach()"
    assert share(cheat) == pytest.approx([1] * 4)


def test_a_penalty_may_opt_out_of_the_direction():
    assert verdict_of("torch.square(z)").category == "wrong-sign"
    assert verdict_of("torch.square(z)", direction=False).accepted


def test_copies_of_the_control_are_duplicates_and_other_known_losses_are_named():
    copy = verdict_of("7 * torch.log(1 + torch.exp(-0.3 * z)) + 1")
    assert (copy.accepted, copy.category, copy.nearest.name) == (False, "duplicate-of-dpo", "dpo")
    assert copy.nearest.loss == "dpo(beta=0.3)"
    assert copy.nearest.scale == pytest.approx(7)
    hinge = verdict_of("torch.relu(1 - 0.1 * z)")
    assert hinge.accepted
    assert (hinge.nearest.name, hinge.nearest.distance) == ("hinge", pytest.approx(0, abs=1e-9))
    strict = verdict_of("torch.relu(1 - 0.1 * z)", against="library")
    assert (strict.accepted, strict.category) == (False, "duplicate-of-hinge")


@pytest.mark.parametrize("beta", [0.005, 0.0123456, 0.03, 0.07, 0.11, 0.12, 0.4, 0.7, 3.0, 10.0, 50.0])
def test_the_control_is_recognised_at_any_strength(beta):
    verdict = verdict_of(f"F.softplus(-{beta} * z)")
    assert (verdict.category, verdict.nearest.loss) == (
        "duplicate-of-dpo",
        f"dpo(beta={beta})",
    ), str(verdict)
    assert verdict.nearest.distance < 1e-6
    assert verdict.nearest.scale == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("beta", [0.001, 0.00107, 70.0, 80.0, 87.3, 95.0, 99.0, 100.0])
@pytest.mark.parametrize("spelling", ["F.softplus(-{} * z)", "torch.logaddexp(0 * z, -{} * z)"])
def test_the_control_is_recognised_where_the_probes_do_not_tell_its_strength(beta, spelling):
    verdict = verdict_of(spelling.format(beta))
    assert verdict.category == "duplicate-of-dpo", str(verdict)
    assert float(verdict.nearest.loss[9:-1]) == pytest.approx(beta, rel=0.02)


def test_a_step_that_is_no_strong_dpo_is_none():
    verdict = verdict_of("torch.relu(0.3 - 95 * z)")
    assert verdict.accepted, str(verdict)
    assert "beyond them it is not" in verdict.reason


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("-0.9 * F.logsigmoid(0.123 * z) - 0.1 * F.logsigmoid(-0.123 * z)", "cdpo(beta=0.123)"),
        ("torch.square(z - 1 / (2 * 0.07))", "ipo(beta=0.07)"),
        ("torch.exp(-0.15 * z)", "cell(beta=0.15)"),
    ],
)
def test_other_losses_are_named_at_their_strength(text, loss):
    verdict = verdict_of(text)
    assert verdict.accepted
    assert verdict.nearest.loss == loss


@pytest.mark.parametrize("temperature", [0.08, 0.1, 0.33])
def test_the_control_of_tables_is_recognised_at_any_strength(temperature):
    source = (
        "def f(similarities, same, different, *, t=0.1):\n s = similarities / t\n near = mean_masked(s, same)\n"
        " e = torch.exp(s)\n return torch.log(mean_masked(e, same) / 3 + mean_masked(e, different) + 1e-30) - near"
    ).replace("t=0.1", f"t={temperature}")
    verdict = check(source, "metric")
    assert (verdict.category, verdict.nearest.distance < 1e-6) == ("duplicate-of-supcon", True), str(verdict)


def test_label_smoothing_is_no_strength_of_cross_entropy():
    smooth = "def f(token_logps, mean_class_logps): return -0.9 * token_logps - 0.1 * mean_class_logps"
    verdict = check(smooth, "token")
    assert verdict.accepted
    assert verdict.flags == ("lowers-sure-labels", "known:cross_entropy")
    assert verdict.nearest.loss == "cross_entropy(label_smoothing=0.1)"


@pytest.mark.parametrize(
    "text",
    [
        "torch.where(z > 150, 100 * z, F.softplus(-0.1 * z))",
        "F.softplus(-0.1 * torch.clamp(z, -110, 110))",
        "torch.where(chosen_lengths > 500, -F.softplus(-0.1 * z), F.softplus(-0.1 * z))",
        "torch.where(chosen_lengths < 20, -F.softplus(-0.1 * z), F.softplus(-0.1 * z))",
    ],
)
def test_what_differs_beyond_the_probes_is_no_duplicate(text):
    source = HEAD.replace("ref_rejected_logps):", "ref_rejected_logps, chosen_lengths, *, unused=1.0):") + text
    verdict = check(source)
    assert verdict.accepted, str(verdict)
    assert "neighbour:dpo" in verdict.flags
    assert "beyond them it is not" in verdict.reason
    assert check(source, against="library").accepted
    memory = Memory("preference")
    memory.add("a1", check(HEAD + "F.softplus(-0.1 * z)").program)
    assert check(source, memory=memory).accepted
    memory.add("a2", verdict.program)
    # The first that is close is not it; the second is.
    respelled = source.replace("F.softplus(", "torch.log1p(torch.exp(").replace("* z)", "* z))")
    if "clamp" not in text:
        assert check(respelled, memory=memory).category == "duplicate-of-a2"


def test_a_duplicate_of_the_control_must_be_one_at_the_secret_probes_too():
    """A window that no fixed point meets: where the run's own points do, it is no copy of the control."""
    from lossmith.discovery.identity import probes

    aim = float(probes("preference", 991).inputs["ref_chosen_logps"][2, 3, 0])
    window = f"torch.where(torch.abs(ref_chosen_logps + {-aim!r}) < 1e-6, 5.0, 1.0) * F.softplus(-0.1 * z)"
    assert verdict_of(window).category == "duplicate-of-dpo"
    assert verdict_of(window, memory=Memory("preference", secret_seed=991)).accepted


def test_duplicates_of_what_a_run_knows():
    memory = Memory("preference", secret_seed=991)
    first = verdict_of("F.softplus(1 - 0.1 * z)", memory=memory)
    assert first.accepted
    memory.add("a1", first.program)
    exact = verdict_of("-F.logsigmoid(z / 10 - 1)", memory=memory)
    assert (exact.accepted, exact.category) == (False, "duplicate-of-a1")
    assert "same formula" in exact.reason
    behaves = verdict_of("torch.log(1 + math.e * torch.exp(-0.1 * z))", memory=memory)
    assert (behaves.category, "does the same" in behaves.reason) == ("duplicate-of-a1", True)
    assert verdict_of("F.softplus(1.2 - 0.1 * z)", memory=memory).accepted
    memory.add("again", first.program)
    assert len(memory) == 1
    assert memory.same_key(first.program) == "a1"


def test_a_duplicate_must_be_one_at_the_secret_probes_too(monkeypatch):
    from lossmith.discovery.checks import memory as module
    from lossmith.discovery.identity import fingerprint, fingerprint_at

    memory = Memory("preference", secret_seed=991)
    memory.add("a1", verdict_of("F.softplus(1 - 0.1 * z)").program)
    other = verdict_of("torch.log(1 + math.e * torch.exp(-0.1 * z))").program
    assert memory.same_behaviour(other, fingerprint(other))[0] == "a1"
    elsewhere = Program("preference", make("neg", Z))

    def at(program, points):
        return fingerprint_at(elsewhere if points.seed == 991 and program is other else program, points)

    monkeypatch.setattr(module, "fingerprint_at", at)
    assert memory.same_behaviour(other, fingerprint(other)) is None


@pytest.mark.parametrize("size", ["1e200", "1e-200", "1e153", "1e-150", "1e300", "1e-300"])
def test_size_is_no_failure_of_ours(size):
    verdict = verdict_of(f"{size} * F.softplus(-0.1 * z)")
    assert (verdict.category, verdict.nearest.loss) == ("duplicate-of-dpo", "dpo"), str(verdict)
    assert verdict.nearest.scale == pytest.approx(float(size), rel=1e-9)
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_what_cannot_be_compared_is_said():
    """Every loss is finite, their sum over the probe points is not."""
    verdict = verdict_of("2e306 * F.softplus(-0.1 * z)")
    assert (verdict.accepted, verdict.category) == (False, "nonfinite"), str(verdict)
    assert "sums of it overflow" in verdict.reason
    small = verdict_of("1e-305 * F.softplus(-0.1 * z)")
    assert small.category == "duplicate-of-dpo", str(small)


@pytest.mark.parametrize(
    "text",
    [
        "torch.where(ref_chosen_logps > -110.0, F.softplus(-0.1 * z), F.softplus(0.1 * z))",
        "torch.where(chosen_lengths == 80.0, F.softplus(-0.1 * z), F.softplus(0.1 * z))",
        "torch.where(torch.abs(chosen_logps - ref_chosen_logps + rejected_logps - ref_rejected_logps) < 0.01,"
        " F.softplus(-0.1 * z), F.softplus(0.1 * z))",
    ],
)
def test_the_direction_counts_where_references_lengths_and_shifts_vary(text):
    verdict = check(HEAD.replace("ref_rejected_logps):", "ref_rejected_logps, chosen_lengths):") + text)
    assert verdict.category == "wrong-sign", str(verdict)
    assert "drawn at random" in verdict.reason


@pytest.mark.parametrize(
    ("family", "text", "shares"),
    [
        ("preference", HEAD + "F.softplus(1 - 0.1 * z)", 6),
        ("token", "def f(token_logps): return -(1 - token_logps.exp()) ** 2 * token_logps", 4),
        ("metric", "def f(similarities, same): return -mean_masked(similarities, same)", 2),
    ],
)
def test_the_direction_is_looked_at_where_the_run_alone_looks(family, text, shares, monkeypatch):
    seen = []
    honest = battery.DIRECTIONS[family]
    monkeypatch.setitem(battery.DIRECTIONS, family, lambda candidate: seen.append(honest(candidate)) or seen[-1])
    assert check(text, family, memory=Memory(family, secret_seed=991)).accepted
    assert len(seen[0]) == shares
    monkeypatch.setitem(battery.DIRECTIONS, family, lambda candidate: [("there", 1.0 if candidate.seeds else -1.0)])
    assert check(text, family).accepted
    assert check(text, family, memory=Memory(family, secret_seed=991)).category == "wrong-sign"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("token", "def f(entropy): return entropy"),
        ("token", "def f(max_logps): return -max_logps"),
        ("token", "def f(log_sum_sq_probs): return -log_sum_sq_probs"),
        ("token", "def f(token_logps, entropy): return entropy + 0.0001 * token_logps"),
        ("metric", "def f(similarities): return mean_masked(similarities, similarities > 0.5)"),
        ("metric", "def f(similarities): return -mean_masked(similarities, similarities > 0.5)"),
        ("metric", "def f(similarities, same, different): return mean_masked(similarities, same | different)"),
        # Near rows are drawn together, and a little of the classes stands beside it.
        (
            "metric",
            "def f(similarities, same, different):\n every = same | different\n"
            " away = similarities - mean_masked(similarities, every).unsqueeze(-1)\n"
            " return -mean_masked(away ** 2, every) - 1e-8 * mean_masked(similarities, same)",
        ),
    ],
)
def test_labels_must_matter(family, text):
    verdict = check(text, family)
    assert verdict.category == "wrong-sign", str(verdict)
    assert "whatever the" in verdict.reason


BLIND = """def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths):
    z = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    likelier = torch.sign(ref_chosen_logps - ref_rejected_logps)
    shorter = torch.where(chosen_lengths == rejected_lengths, likelier, torch.sign(rejected_lengths - chosen_lengths))
    return """


@pytest.mark.parametrize(
    "text",
    [
        "F.softplus(-0.1 * shorter * z)",
        "-shorter * (chosen_logps - rejected_logps)",
        "-shorter * torch.atan(0.1 * z)",
        "F.softplus(-0.1 * shorter * z) + 1e-4 * F.softplus(-0.1 * z)",
        "50 * (chosen_logps + rejected_logps) + 1e-8 * F.softplus(-0.1 * z)",
    ],
)
def test_which_completion_was_chosen_must_matter(text):
    for seed in range(4):
        verdict = check(BLIND + text, memory=Memory("preference", secret_seed=seed))
        assert verdict.category == "wrong-sign", str(verdict)
        assert "whichever completion" in verdict.reason


def test_points_of_the_direction_hold_every_pair_with_its_sides_swapped_too():
    for where in (points.antithetic(), points.scattered(), points.scattered(991)):
        half = where.inputs["chosen_logps"].shape[1] // 2
        for name in ("logps", "lengths"):
            chosen, rejected = (where.inputs[f"{side}_{name}"] for side in ("chosen", "rejected"))
            assert np.array_equal(chosen[:, :half], rejected[:, half:])
            assert np.array_equal(rejected[:, :half], chosen[:, half:])
        chosen, rejected = (where.inputs[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
        assert np.array_equal(chosen[:, :half], rejected[:, half:])


def test_a_direction_that_is_not_finite_is_no_wrong_sign():
    text = "F.softplus(-0.1 * z) / torch.abs(chosen_lengths - rejected_lengths - 7.0)"
    verdict = check(BLIND + text)
    assert (verdict.category, "not finite" in verdict.reason) == ("nonfinite", True), str(verdict)


def test_a_penalty_needs_no_labels():
    verdict = check("def f(entropy): return -entropy", "token", direction=False)
    assert verdict.accepted
    assert "whatever the labels" in check("def f(entropy): return -entropy", "token").reason


@pytest.mark.parametrize(
    "text",
    [
        "-torch.where(token_logps >= max_logps, 0.5, 1.0) * token_logps",
        "-torch.where(token_logps == max_logps, 0.5, 1.0) * token_logps",
        "-(0.2 + (token_logps < max_logps).float()) * token_logps",
        "torch.where(token_logps < max_logps, -token_logps, 1 - torch.exp(token_logps))",
    ],
)
def test_a_token_loss_may_ask_whether_the_label_leads(text):
    verdict = check(f"def f(token_logps, max_logps): return {text}", "token")
    assert verdict.accepted, str(verdict)
    assert "grad-mismatch" not in verdict.flags


@pytest.mark.parametrize("family", ["preference", "token", "metric"])
def test_what_moves_for_the_comparison_of_slopes_moves_as_the_model_does(family):
    where = points.ordinary(family)
    moves, ahead, behind = slopes.moved(family)
    for name in where.trained:
        wanted = (ahead[name] - behind[name]) / (2 * slopes.STEP)
        assert np.allclose(moves[name], wanted, rtol=1e-5, atol=1e-6), name
    assert all(np.array_equal(ahead[name], where.inputs[name]) for name in where.inputs if name not in where.trained)
    if family == "token":
        leads = where.inputs["token_logps"] == where.inputs["max_logps"]
        assert leads.sum() > 20
        assert np.array_equal(ahead["token_logps"] == ahead["max_logps"], leads)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("token", "def f(token_logps): return -2 * token_logps + token_logps.detach()"),
        ("metric", "def f(similarities, same): return -mean_masked(2 * similarities - similarities.detach(), same)"),
        ("metric", "def f(distances, same): return mean_masked(distances ** 2 + distances.detach(), same)"),
    ],
)
def test_a_gradient_that_is_not_the_slope_is_seen_in_other_families(family, text):
    assert "grad-mismatch" in check(text, family).flags


PENALTIES = ("confidence_penalty", "z_loss", "unlikelihood")


@pytest.mark.parametrize("family", ["token", "metric"])
def test_every_published_loss_of_other_families_pulls_the_right_way(family):
    """At the settings of the library, by its gradients in the atlas."""
    found = atlas(family)
    where = points.ordinary(family)
    for name in dict.fromkeys(found.names):
        place = found.losses.index(name)
        if family == "token":
            slopes = found.vectors[place].reshape(where.labels.shape)
            own = slopes[where.labels == 1]
            behind = (where.inputs["max_logps"] > where.inputs["token_logps"] + 1e-9).ravel()
            pushes = [battery._share(own), battery._share(own[behind])]
        else:
            slopes = found.vectors[place].reshape(where.inputs["similarities"].shape)
            pushes = [battery._push(slopes, where)]
        if name not in PENALTIES:
            assert max(pushes) <= battery.DIRECTION, (name, pushes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / (1 + torch.exp(0.1 * z)) + 0.001 / (z - 1.5)", "pole at a margin of 1.5"),
        ("F.softplus(-0.1 * z) + 0.001 / torch.square(z - 77.7)", "pole at a margin of 77.7"),
        ("F.softplus(-0.1 * z) - 0.001 * torch.log(torch.abs(z - 20.3))", "pole at a margin of 20.3"),
        ("F.softplus(-0.1 * z) + 0.001 * torch.log(torch.abs(z - 20.3) - 0.01)", "finite at a margin of 20.3"),
        ("F.softplus(-0.1 * z) + 0.0001 * torch.sqrt(torch.abs(z - 65) - 2)", "value is not finite at a margin of 6"),
        ("F.softplus(-0.1 * z) + 0.001 * (z + 33.3) ** -1", "pole at a margin of -33.3"),
        ("F.softplus(-0.1 * z) * (1 + 0.001 / (z - z.mean() + 0.3))", "pole at a margin"),
    ],
)
def test_poles_and_gaps_within_the_reach(text, said):
    verdict = verdict_of(text)
    assert verdict.category == "nonfinite", str(verdict)
    assert said in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "F.softplus(-0.1 * z) / torch.where(z > 0.7, 1.0, -1.0) * torch.where(z > 0.7, 1.0, -1.0)",
        "F.softplus(-0.1 * z) + 0.001 * torch.expm1(0.01 * (z - 1.5)) / (z - 1.5)",
        "F.softplus(-0.1 * z) / (1 + 0.001 * torch.square(z - 3.3))",
        "F.softplus(-0.1 * z) + 0.01 / (torch.abs(z - 3.3) + 1e-6)",
        "F.softplus(-0.1 * z) + 0.001 * torch.log(torch.abs(z - 3.3) + 1e-6)",
        "torch.sqrt(1 + torch.square(torch.relu(5 - z)))",
        "-torch.log(torch.sigmoid(0.2 * z) + 0.01)",
        "F.softplus(-z / (z.std() + 1))",
    ],
)
def test_divisions_and_roots_that_hold_are_accepted(text):
    verdict = verdict_of(text)
    assert verdict.category in ("ok", "duplicate-of-dpo"), str(verdict)


SUM = "(chosen_logps - ref_chosen_logps + rejected_logps - ref_rejected_logps - 3.3)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"F.softplus(-0.1 * z) + 1 / torch.square({SUM})", "gradient has a pole at a sum of log-ratios of 3.3 nats"),
        (f"F.softplus(-0.1 * z) - 0.1 * torch.log(torch.abs({SUM}))", "pole at a sum of log-ratios of 3.3 nats"),
        (f"F.softplus(-0.1 * z) + 0.1 * z.mean() / {SUM}", "pole at a sum of log-ratios of 3.3 nats"),
        (f"F.softplus(-0.1 * z) / (1 + torch.square({SUM}))", ""),
        (f"F.softplus(-0.1 * z) - 0.1 * torch.log(1 + torch.abs({SUM}))", ""),
        (f"F.softplus(-0.1 * z) / (1 + torch.square({SUM} / z.std().clamp(min=1)))", ""),
    ],
)
def test_poles_along_the_sum_are_seen(text, said):
    verdict = verdict_of(text)
    assert (verdict.category == "nonfinite", said in verdict.reason) == (bool(said), True), str(verdict)


@pytest.mark.parametrize(
    ("family", "text", "said"),
    [
        ("preference", BLIND + "F.softplus(-0.1 * z) / (chosen_lengths - 1)", "completions of one or two tokens"),
        (
            "preference",
            BLIND + "F.softplus(-0.1 * z / torch.log(rejected_lengths))",
            "completions of one or two tokens",
        ),
        (
            "preference",
            BLIND + "F.softplus(-0.1 * z) / torch.log(chosen_lengths - 1)",
            "completions of one or two tokens",
        ),
        ("preference", BLIND + "torch.relu(1 - 5 * (z / chosen_lengths))", ""),
        (
            "token",
            "def f(token_logps, log_normalizer): return -token_logps * torch.log(log_normalizer + 1)",
            "50 lower",
        ),
        (
            "token",
            "def f(token_logps, log_normalizer): return torch.sqrt(log_normalizer) / 2 - token_logps",
            "50 lower",
        ),
        ("token", "def f(token_logps, mean_logits): return -token_logps * torch.log(mean_logits + 3)", "50 lower"),
        ("token", "def f(token_logps, log_normalizer): return log_normalizer ** 2 / 9 - token_logps", ""),
        ("metric", "torch.log(d), same) - mean_masked(d, different)", "one text twice, under one class"),
        ("metric", "d, same) + mean_masked(1 / d, different)", "one text twice, under"),
        ("metric", "torch.relu(d - 0.1), same) + mean_masked(torch.relu(1 - d) ** 2, different)", ""),
        ("metric", "d ** 2, same) - 0.1 * mean_masked(torch.log(d + 0.01), different)", ""),
    ],
)
def test_what_ordinary_batches_do_not_hold_is_looked_at(family, text, said):
    if family == "metric":
        own = "d = distances + (~(same | different)).float()"
        text = f"def f(distances, same, different):\n {own}\n return mean_masked({text}"
    verdict = check(text, family)
    assert (verdict.category == "nonfinite", said in verdict.reason) == (bool(said), True), str(verdict)


def test_equal_rows_are_looked_at_within_a_class_and_across():
    inside, across = points.edges("metric")
    for edge, mask in ((inside, "same"), (across, "different")):
        twins = edge.where.inputs["similarities"][0] == 1
        np.fill_diagonal(twins, False)
        assert twins.sum() == 2
        assert edge.where.inputs[mask][0][twins].all()
        assert (edge.where.inputs["distances"][0][twins] == 0).all()


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("torch.where(z == 0, z * 0, F.softplus(-0.1 * z) + 0.01 * torch.square(0.1 * z - 1))", "zero-grad"),
        ("torch.where(torch.abs(z) < 0.5, z * 0, F.softplus(-0.1 * z))", "zero-grad"),
        ("-torch.tanh(0.1 * z) ** 3", "zero-grad"),
        ("-torch.tanh(0.1 * (chosen_logps - rejected_logps) - 0.1 * (ref_chosen_logps - ref_rejected_logps)) ** 3",
         "zero-grad"),
        ("torch.relu(-z)", "zero-grad"),
        ("torch.relu(1 - 0.1 * z)", "ok"),
        ("-torch.tanh(0.1 * z) ** 3 - 0.001 * z", "ok"),
        # What does not end at the reference moves on.
        ("-torch.tanh(0.1 * (z + 0.01 * (rejected_lengths - chosen_lengths))) ** 3", "ok"),
        ("-torch.tanh(0.1 * (chosen_logps - rejected_logps)) ** 3", "ok"),
        ("F.softplus(-z / z.std().clamp(min=1e-3))", "ok"),
    ],
)  # fmt: skip
def test_a_training_that_begins_at_the_reference_must_move(text, category):
    verdict = check(BLIND + text)
    assert verdict.category == category, str(verdict)
    if category != "ok":
        assert "never moves" in verdict.reason
        assert check(BLIND + text, direction=False).category == "ok"


def test_what_is_not_finite_at_the_reference_is_said():
    verdict = check(BLIND + "F.softplus(-z / torch.abs(z).mean())")
    assert (verdict.category, "the policy is the reference" in verdict.reason) == ("nonfinite", True), str(verdict)


def test_a_text_with_code_of_its_own_is_not_touched():
    class Loud(str):
        def __len__(self):
            raise SystemExit

        def isascii(self):
            raise SystemExit

    verdict = check(Loud("def f(chosen_logps): return -chosen_logps"))
    assert (verdict.accepted, verdict.category, "str" in verdict.reason) == (False, "usage", True)


@pytest.mark.parametrize(
    ("family", "source", "category"),
    [
        ("token", "def f(token_logps): return -token_logps", "duplicate-of-cross_entropy"),
        ("token", "def f(token_logps): return token_logps", "wrong-sign"),
        ("token", "def f(token_logps, *, g=2.0): return -(1 - token_logps.exp()) ** g * token_logps", "ok"),
        ("token", "def f(token_logps): return -torch.log(1 - torch.exp(token_logps))", "nonfinite"),
        ("token", "def f(entropy): return entropy.mean()", "shape"),
        ("token", "def f(token_logps): return 1 / (token_logps - token_logps.mean())", "nonfinite"),
        ("metric", "def f(similarities, same): return -mean_masked(similarities, same)", "ok"),
        ("metric", "def f(similarities, same): return mean_masked(similarities, same)", "wrong-sign"),
        ("metric", "def f(similarities): return -similarities", "shape"),
        (
            "metric",
            "def f(similarities, different): return torch.log(mean_masked(torch.exp(similarities), different))",
            "nonfinite",
        ),
        ("metric", "def f(same, different): return mean_masked(same.float(), different)", "no-grad"),
    ],
)
def test_other_families(family, source, category):
    assert check(source, family).category == category


def test_every_published_loss_of_pairs_passes_as_a_function():
    """The rules must not refuse what people use: the direction of every loss of the atlas that is no penalty."""
    where = points.antithetic()
    names = [name for name in where.inputs if name != "reward_shift"]
    for record in lossmith.list_losses("preference"):
        module = lossmith.loss(record.name).double().eval()
        for where, batch in ((where, batch) for where in (points.antithetic(), points.scattered()) for batch in (0, 1)):
            inputs = {name: torch.tensor(where.inputs[name][batch, :, 0]) for name in names}
            chosen, rejected = inputs["chosen_logps"].requires_grad_(), inputs["rejected_logps"].requires_grad_()
            value = module(**inputs, reduction="none").sum()
            up, down = torch.autograd.grad(value, [chosen, rejected], allow_unused=True)
            slopes = (up - (0 if down is None else down)).numpy()
            if record.name != "pfl":
                assert battery._share(slopes) <= battery.DIRECTION, record.name


def test_the_checks_compare_what_is_trained():
    broken = Candidate(Program("preference", make("softplus", make("neg", Z))))
    broken.__dict__["function"] = lambda **inputs: next(iter(inputs.values())).cumsum(0)
    assert battery.equivariant(broken)[0] == "not-equivariant"
    calls = iter(range(100))
    broken.__dict__["function"] = lambda **inputs: next(iter(inputs.values())) * next(calls)
    assert battery.pure(broken)[0] == "impure"
    broken.__dict__["function"] = lambda **inputs: next(iter(inputs.values())).add_(1)
    assert battery.pure(broken)[0] == "impure"
    broken.__dict__["function"] = lambda **inputs: -2 * next(iter(inputs.values()))
    assert slopes.slopes_agree(broken)[0] == "grad-mismatch"
    broken.__dict__["function"] = lambda **inputs: (lambda x: x - x.mean())(next(iter(inputs.values())))
    assert battery.equivariant(broken)[0] == "not-equivariant"


def test_each_check_has_a_name_and_a_sentence():
    for name, rule in CHECKS.items():
        assert rule.__name__ == name
        assert rule.__doc__.endswith(".")


@pytest.mark.parametrize(
    "source",
    [None, 7, 3.5, b"def f(): pass", [], {}, object(), "", "\x00", "\ud800", "\ufeff", "x" * 10_000_000, "(" * 100_000,
     "def f", float("nan"), print, "def f(chosen_logps):\n return " + "chosen_logps+" * 200_000 + "1"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["preference", "token"])
def test_nothing_makes_check_raise(source, family):
    verdict = check(source, family)
    assert not verdict.accepted
    assert verdict.reason
    json.dumps(verdict.to_dict())
    assert str(verdict).startswith("rejected")


@pytest.mark.parametrize(
    "wrong", [{"family": "region"}, {"family": None}, {"family": []}, {"signature": "x"}, {"against": 1}]
)
def test_wrong_use_is_a_verdict_too(wrong):
    assert check("def f(chosen_logps): return -chosen_logps", **wrong).category == "usage"


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_no_text_makes_check_raise(text):
    check(text)


FRAGMENTS = st.sampled_from(
    [
        "z",
        "torch.exp(",
        "F.softplus(",
        ")",
        "(",
        "+",
        "-",
        "**",
        "0.1",
        "return ",
        "\n    ",
        "z=",
        "where",
        ",",
        ".mean()",
        "lambda:",
        "if ",
    ]
)


@settings(derandomize=True, max_examples=120, deadline=None)
@given(st.lists(FRAGMENTS, max_size=25))
def test_no_python_like_text_makes_check_raise(parts):
    verdict = check(HEAD + "".join(parts))
    assert verdict.category != "internal", verdict


@pytest.mark.parametrize("seed", range(120))
def test_no_random_program_makes_check_fail(seed):
    verdict = check(random_program(seed, depth=5))
    assert verdict.category != "internal", verdict
    assert verdict.accepted == (verdict.category == "ok")
    if verdict.accepted:
        assert math.isfinite(verdict.nearest.distance)


def test_a_failure_of_ours_is_a_verdict(monkeypatch):
    monkeypatch.setitem(CHECKS, "pure", lambda candidate: 1 / 0)
    verdict = verdict_of("torch.relu(1 - 0.1 * z)")
    assert (verdict.accepted, verdict.category) == (False, "internal")
    assert "ZeroDivisionError" in verdict.reason


def test_an_ordinary_check_takes_less_than_20_ms():
    texts = [f"F.softplus(-{beta} * z) + 0.01 * torch.square(z)" for beta in np.linspace(0.02, 0.3, 15).round(3)]
    verdict_of(texts[0])
    spent = []
    for text in texts[1:]:
        start = time.process_time()
        verdict_of(text)
        spent.append(time.process_time() - start)
    assert float(np.median(spent)) < 0.02


def test_a_verdict_is_plain_for_json():
    shown = json.loads(json.dumps(verdict_of("torch.relu(1 - 0.1 * z)").to_dict()))
    assert set(shown) == {"accepted", "category", "reason", "line", "flags", "nearest", "formula", "key"}
    assert shown["nearest"]["name"] == "hinge"
    refused = check("import os").to_dict()
    assert (refused["line"], refused["formula"], refused["nearest"]) == (1, None, None)


def test_state_of_torch_and_numpy_is_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    threads, before = torch.get_num_threads(), np.geterr()
    verdict_of("torch.relu(1 - 0.1 * z)")
    verdict_of("torch.log(z)")
    assert torch.equal(torch.rand(2), wanted)
    assert (torch.get_num_threads(), np.geterr()) == (threads, before)
    assert inputs_of("preference")
    assert const(1)
