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
from lossmith.discovery.checks import CHECKS, Candidate, battery, points
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
        ("-(chosen_logps + rejected_logps)", "wrong-sign", "+0.00"),
        ("F.softplus(-z).detach() + z - z.detach()", "wrong-sign", "margins of 10 nats"),
        ("torch.exp(-5 * z)", "nonfinite", "300 nats"),
        ("torch.log(z)", "nonfinite", "value is not finite at ordinary inputs"),
        ("torch.sqrt(F.relu(z))", "nonfinite", "gradient with respect to"),
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
        ("torch.exp(-z)", ("half-nonfinite", "convex", "saturating")),
        ("-F.logsigmoid(0.02 * chosen_logps - 0.02 * rejected_logps - 0.7)", ("reference-free",)),
    ],
)
def test_what_is_accepted_and_how_it_is(text, flags):
    verdict = verdict_of(text)
    assert (verdict.accepted, verdict.category, verdict.line) == (True, "ok", None), str(verdict)
    assert set(flags) <= set(verdict.flags), verdict.flags


def test_flags_that_are_not_raised():
    assert not {"batch-coupled", "detach", "non-monotone", "bounded", "reference-free", "half-nonfinite"} & set(
        verdict_of("torch.relu(1 - 0.1 * z)").flags
    )


def test_the_direction_of_known_losses():
    def share(text: str) -> list[float]:
        program = check(HEAD + text).program
        return [push for _, push in battery.DIRECTIONS["preference"](Candidate(program))]

    assert share("F.softplus(-0.1 * z)") == pytest.approx([-1, -1])
    assert all(-0.65 < push < -0.1 for push in share("torch.square(z - 5)"))
    lrml = "(1 - torch.sigmoid(z)) * F.softplus(-0.05 * z) + torch.sigmoid(z) * torch.exp(-0.05 * z)"
    assert all(-0.98 < push < -0.6 for push in share(lrml))
    cheat = "F.softplus(-0.1 * z).detach() + z - z.detach()"
    assert share(cheat) == pytest.approx([1, 1])


def test_a_penalty_may_opt_out_of_the_direction():
    assert verdict_of("torch.square(z)").category == "wrong-sign"
    assert verdict_of("torch.square(z)", direction=False).accepted


def test_copies_of_the_control_are_duplicates_and_other_known_losses_are_named():
    copy = verdict_of("7 * torch.log(1 + torch.exp(-0.3 * z)) + 1")
    assert (copy.accepted, copy.category, copy.nearest.name) == (False, "duplicate-of-dpo", "dpo")
    assert copy.nearest.loss == "dpo(beta=0.3)"
    assert copy.nearest.scale == pytest.approx(7)
    assert copy.duplicate_of == "dpo"
    hinge = verdict_of("torch.relu(1 - 0.1 * z)")
    assert hinge.accepted
    assert (hinge.nearest.name, hinge.nearest.distance) == ("hinge", pytest.approx(0, abs=1e-9))
    strict = verdict_of("torch.relu(1 - 0.1 * z)", against="library")
    assert (strict.accepted, strict.category) == (False, "duplicate-of-hinge")
    # A smoothing of 0.001 is as close as the nearest beta of the grid.
    assert verdict_of("F.softplus(-0.11 * z)").flags[-1] in ("neighbour:dpo", "neighbour:cdpo")


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
    memory = Memory("preference", secret_seed=991)
    first = verdict_of("F.softplus(1 - 0.1 * z)").program
    memory.add("a1", first)
    other = verdict_of("torch.log(1 + math.e * torch.exp(-0.1 * z))").program
    from lossmith.discovery.checks import memory as module
    from lossmith.discovery.identity import fingerprint

    elsewhere = Program("preference", make("neg", Z))
    monkeypatch.setattr(
        module, "fingerprint", lambda program, seed=0: fingerprint(elsewhere if seed else program, seed=seed)
    )
    assert memory.same_behaviour(other, fingerprint(other)) is None


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
        for batch in range(2):
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
    assert battery.slopes_agree(broken)[0] == "grad-mismatch"
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
