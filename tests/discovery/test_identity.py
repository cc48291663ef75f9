"""Fingerprints and the atlas: what is the same is found, and how far the rest is."""

import math

import numpy as np
import pytest
import torch
from discovered_sources import NAMES, native, paper
from programs import margin, random_program

import lossmith
from lossmith.discovery import check, compile_source
from lossmith.discovery.identity import DUPLICATE, atlas, beyond, fingerprint, probes, same_beyond
from lossmith.discovery.program import INPUTS, Program, const, inputs_of, make, torch_function
from lossmith.discovery.program.differentiate import evaluate, value_and_gradients

Z = margin()
DPO = "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta={}):\n    return {}\n"
RHO = "((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps))"


def dpo(beta=0.1, text=f"F.softplus(-beta * {RHO})") -> Program:
    return compile_source(DPO.format(beta, text))


def by_torch(program: Program, family: str) -> dict[str, np.ndarray]:
    """Gradients of each batch by autograd, through the function that would be trained."""
    where = probes(family)
    function = torch_function(program)
    wanted = [name for name in program.inputs if name in where.trained]
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in range(len(where.inputs[where.trained[0]])):
        given = {name: where.tensors(batch)[name] for name in program.inputs}
        leaves = [given[name].requires_grad_() for name in wanted]
        value = function(**given)
        flows = value.requires_grad
        slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if flows else [None] * len(leaves)
        for name, leaf, slope in zip(wanted, leaves, slopes, strict=True):
            found[name].append((torch.zeros_like(leaf) if slope is None else slope).detach().numpy())
    return {name: np.stack(parts).reshape(where.inputs[name].shape) for name, parts in found.items()}


def assert_same_gradients(program: Program) -> bool:
    where = probes(program.family)
    value, mine = value_and_gradients(program.literal_root, where.inputs, where.trained)
    if not np.isfinite(value).all():
        return False
    theirs = by_torch(program, program.family)
    if not all(np.isfinite(values).all() for values in theirs.values()):
        return False
    for name, values in theirs.items():
        got = np.broadcast_to(mine.get(name, np.zeros(values.shape)), values.shape)
        np.testing.assert_allclose(got, values, rtol=1e-8, atol=1e-11 * (1 + np.abs(values).max()))
    return True


def test_gradients_by_numpy_are_those_of_autograd():
    compared = sum(assert_same_gradients(random_program(seed)) for seed in range(60))
    assert compared > 25


@pytest.mark.parametrize("op", ["log", "log1p", "sqrt"])
def test_gradients_of_operators_with_a_domain(op):
    assert assert_same_gradients(Program("preference", make(op, make("add", make("square", Z), const(0.5)))))


def test_gradients_of_tables_are_those_of_autograd():
    x = inputs_of("metric")
    near = make("mean_masked", make("exp", make("mul", const(3), x["similarities"])), x["same"])
    far = make("mean_masked", make("exp", make("sub", x["similarities"], make("square", near))), x["different"])
    one = make("log", make("add", far, make("mean_masked", make("square", x["distances"]), x["same"])))
    assert assert_same_gradients(Program("metric", make("sub", one, make("mean_batch", near))))


def test_gradients_of_token_statistics_are_those_of_autograd():
    x = inputs_of("token")
    gate = make("detach", make("exp", x["entropy"]))
    root = make("mul", make("neg", gate), make("add", x["token_logps"], make("exp", x["complement_logps"])))
    assert assert_same_gradients(Program("token", root))


def test_a_token_gradient_is_that_of_the_logits():
    x = inputs_of("token")
    program = Program("token", make("add", make("mul", const(0.3), x["entropy"]), make("neg", x["token_logps"])))
    where = probes("token")
    _, gradients = value_and_gradients(program.literal_root, where.inputs, where.trained)
    got = where.chained(gradients).reshape(where.labels.shape)
    share = np.exp(where.inputs["token_logps"])
    # d(-log p)/dz of the label is p - 1; d H/dz = -p (log p + H).
    wanted = share - 1 - 0.3 * share * (where.inputs["token_logps"] + where.inputs["entropy"])
    np.testing.assert_allclose(got[where.labels == 1], wanted.ravel(), rtol=1e-9)


def test_rewrites_of_dpo_are_at_distance_nothing():
    one = fingerprint(dpo())
    for text in (
        f"-F.logsigmoid(beta * {RHO})",
        f"torch.log1p(torch.exp(-beta * {RHO}))",
        f"torch.log(1 + torch.exp(-beta * {RHO}))",
        f"F.softplus(-beta * {RHO}) + 0 * chosen_logps.detach()",
        f"7 * F.softplus(-beta * {RHO}) + 3",
        f"F.softplus(beta * {RHO}) - beta * {RHO}",
    ):
        assert one.distance(fingerprint(dpo(text=text))) < 3e-8, text
    assert fingerprint(dpo(text=f"7 * F.softplus(-beta * {RHO})")).scale == pytest.approx(7 * one.scale)


def test_how_far_other_losses_are():
    one = fingerprint(dpo())
    assert one.distance(fingerprint(dpo(0.11))) == pytest.approx(0.02, abs=0.003)
    assert one.distance(fingerprint(dpo(text=f"-F.softplus(-beta * {RHO})"))) == pytest.approx(2)
    assert DUPLICATE < one.distance(fingerprint(dpo(0.101))) < 0.003
    assert fingerprint(dpo(text=f"F.softplus(-beta * {RHO}).detach()")) is None
    assert fingerprint(dpo(text=f"torch.log({RHO})")) is None


def test_what_is_infinite_both_ways_has_no_fingerprint_and_no_warning():
    both = make("sub", make("exp", make("mul", const(1000), Z)), make("exp", make("mul", const(-1000), Z)))
    assert fingerprint(Program("preference", both)) is None


def test_what_flows_into_the_reference_trains_nothing():
    held = dpo(
        text="F.softplus(-beta * ((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps).detach()))"
    )
    assert held.key != dpo().key
    assert fingerprint(held).distance(fingerprint(dpo())) == 0


def test_another_seed_has_other_probes():
    other = fingerprint(dpo(), seed=77)
    assert not np.array_equal(
        probes("preference", 77).inputs["chosen_logps"], probes("preference").inputs["chosen_logps"]
    )
    with pytest.raises(ValueError, match="cannot be compared"):
        other.distance(fingerprint(dpo()))
    assert other.distance(fingerprint(dpo(0.2), seed=77)) == pytest.approx(
        fingerprint(dpo()).distance(fingerprint(dpo(0.2))), rel=0.3
    )


def test_probe_points_are_fixed():
    where = probes("preference").inputs
    assert where["chosen_logps"].shape == (6, 10, 1)
    assert float(where["chosen_logps"].sum()) == pytest.approx(PROBE_SUM, abs=1e-6)
    assert all(float(values.max()) < 0 for name, values in where.items() if name.endswith("logps"))
    with pytest.raises(ValueError, match="read-only"):
        where["chosen_logps"][0] = 0


PROBE_SUM = -5737.235739943643


@pytest.mark.parametrize("form", ["released", "discovered"])
@pytest.mark.parametrize("name", NAMES)
def test_the_discovered_objectives_are_recognised(name, form):
    for verdict in (check(native(name, form)), check(paper(name, form), signature="discopop")):
        assert verdict.accepted, str(verdict)
        assert verdict.nearest.name == name
        assert verdict.nearest.distance < 1e-6
        assert f"known:{name}" in verdict.flags


@pytest.mark.parametrize("beta", [0.05, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_the_discovered_sources_compute_what_the_library_does(name, beta):
    for form in ("released", "discovered"):
        program = compile_source(native(name, form, beta))
        generator = torch.Generator().manual_seed(3)
        given = [4 * torch.randn(9, generator=generator, dtype=torch.float64) - 20 for _ in range(4)]
        names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
        inputs = dict(zip(names, given, strict=True))
        # `tau` is beta of the search in the released form; the sources above write 0.05.
        known = lossmith.loss(name, beta=beta, form=form)(**inputs, reduction="none")
        got = torch_function(program)(**{key: inputs[key] for key in program.inputs})
        torch.testing.assert_close(got, known, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "source", "name"),
    [
        ("token", "def f(token_logps): return -token_logps", "cross_entropy"),
        (
            "token",
            "def f(token_logps, mean_class_logps): return -0.9 * token_logps - 0.1 * mean_class_logps",
            "cross_entropy",
        ),
        ("token", "def f(token_logps): return -(1 - token_logps.exp()) ** 2 * token_logps", "focal"),
        ("token", "def f(token_logps): return -token_logps.exp().detach() * token_logps", "dft"),
        ("token", "def f(token_logps): return 1 - token_logps - token_logps.exp()", "poly1"),
        ("token", "def f(complement_logps): return -complement_logps", "unlikelihood"),
        ("token", "def f(log_normalizer): return 0.5 * log_normalizer ** 2", "z_loss"),
        (
            "token",
            "def f(token_logps, entropy):\n w = (1 + entropy).detach()\n return -w * token_logps / torch.mean(w)",
            "mile",
        ),
        (
            "metric",
            "def f(similarities, same, different, *, t=0.1):\n s = similarities / t\n"
            " near = mean_masked(s, same)\n e = torch.exp(s)\n"
            " return torch.log(mean_masked(e, same) / 3 + mean_masked(e, different)) - near",
            "supcon",
        ),
        (
            "metric",
            "def f(distances, same, different):\n"
            " d = -distances ** 2\n near = mean_masked(torch.exp(d), same)\n"
            " return torch.log(near + 3 * mean_masked(torch.exp(d), different)) - torch.log(near)",
            "nca",
        ),
    ],
)
def test_losses_of_other_families_are_recognised(family, source, name):
    program = compile_source(source, family)
    near = atlas(family).nearest(fingerprint(program))
    assert (near.name, near.distance < 1e-6) == (name, True), near


def test_the_atlas_holds_every_loss_that_can_be_written():
    known = {family: set(atlas(family).names) for family in INPUTS}
    assert known["preference"] == {record.name for record in lossmith.list_losses("preference")}
    assert known["token"] == {record.name for record in lossmith.list_losses("token")}
    readable = {r.name for r in lossmith.list_losses("metric") if set(r.reads) <= set(INPUTS["metric"])}
    assert known["metric"] == readable
    assert len(readable) == 8
    for family, places in known.items():
        found = atlas(family)
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)
        assert all(lossmith.loss(text) for text in found.losses[::40])
        assert all(name in found.losses for name in places)


def test_every_loss_of_the_atlas_is_its_own_nearest():
    found = atlas("preference")
    twins = {
        "robust_dpo",
        "aot",
        "aot_unpaired",
        "ipo",
        "exo_pair",
        "cdpo",
        "lrml",
        "dbaql",
        "aql",
        "aqfl",
        "padll",
        "cell",
    }
    for place in range(0, len(found.names), 7):
        from lossmith.discovery.identity import Fingerprint

        near = found.nearest(Fingerprint("preference", 0, found.vectors[place], 1.0))
        assert near.distance < 1e-7
        assert near.name == found.names[place] or found.names[place] in twins


def test_values_on_arrays_are_those_of_torch():
    where = probes("preference")
    program = compile_source(native("aqfl", "released"))
    values = evaluate(program.literal_root, where.inputs)
    for batch in (0, 3):
        given = {name: where.tensors(batch)[name] for name in program.inputs}
        np.testing.assert_allclose(values[batch, :, 0], torch_function(program)(**given).numpy(), rtol=1e-10)


def test_ranked_names_each_loss_once():
    ranked = atlas("preference").ranked(fingerprint(dpo()), 5)
    assert len({entry.name for entry in ranked}) == 5
    assert ranked[0].name == "dpo"
    assert [entry.distance for entry in ranked] == sorted(entry.distance for entry in ranked)
    assert math.isclose(ranked[0].scale, 1)


def test_a_distance_and_the_similarity_behind_it_are_one_input():
    # Of unit vectors d^2 = 2 - 2 s, so these two train a model alike.
    by_distance = compile_source("def f(distances, same): return mean_masked(distances ** 2, same)", "metric")
    by_similarity = compile_source("def f(similarities, same): return mean_masked(-2 * similarities, same)", "metric")
    assert fingerprint(by_distance).distance(fingerprint(by_similarity)) < 1e-9
    assert fingerprint(by_distance).scale == pytest.approx(fingerprint(by_similarity).scale)
    assert check("def f(distances, same): return mean_masked(distances, same)", "metric").accepted


@pytest.mark.parametrize("family", list(INPUTS))
def test_every_known_loss_is_itself_beyond_the_probes(family):
    found = atlas(family)
    for name in dict.fromkeys(found.names):
        known = found.known[found.losses.index(name)]
        assert all(known.fingerprint(points) is not None for points in beyond(family)), name
        assert same_beyond(family, known.fingerprint, known.fingerprint, (77,))
        if known.strength is not None and name != "hinge":
            other = known.at(2 * known.settings[known.strength])
            assert not same_beyond(family, known.fingerprint, other.fingerprint), name


def test_what_ends_where_the_known_loss_goes_on_is_another():
    one = atlas("preference").control(fingerprint(dpo())).known
    assert not same_beyond("preference", lambda points: None, one.fingerprint)
    assert same_beyond("preference", one.fingerprint, lambda points: None)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pfl"])
def test_a_fitted_strength_is_the_true_one(name):
    """Off every grid; what is coupled over the batch is fitted too where the grid comes close."""
    found = atlas("preference")
    record = found.known[found.losses.index(name)]
    print = record.at(0.0567).fingerprint(probes("preference"))
    near = found.closest(print)
    assert near.distance < 1e-6
    assert (near.loss == record.at(0.0567).text) or near.name != name, near


def test_the_control_names_what_another_loss_is_hardly_closer_to():
    found = atlas("preference")
    print = fingerprint(dpo(0.12))
    assert found.closest(print).loss == "dpo(beta=0.12)"
    assert found.control(print).loss == "dpo(beta=0.12)"
    assert found.ranked(print, 3)[0].name == "dpo"
    # The grid alone has cdpo(beta=0.12, label_smoothing=0.001) or the like as close.
    assert found.nearest(print).distance > 1e-4
