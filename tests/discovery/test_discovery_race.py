"""From rows to decisions, against numbers computed by hand or by another road."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from lossmith.discovery.ending import shown_at_last
from lossmith.discovery.race.audit import audit_rungs
from lossmith.discovery.race.blocks import RungData, jobs_of_blocks, make_blocks, table
from lossmith.discovery.race.canaries import Canary, inspect
from lossmith.discovery.race.confirmation import Ground, confirm, still_open
from lossmith.discovery.race.estimates import Crowd, _shared_parts, _table_of, estimate
from lossmith.discovery.race.halving import Decision, choose_retested, cut, promising, ranked
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import CANARIES, CONTROL, SimulatedProgram, World, simulated_ladder
from lossmith.discovery.rungs.base import Block
from lossmith.discovery.store.jobs import Evaluation
from lossmith.errors import ConfigurationError


def rung_data(programs: dict[str, list[float]], *, control: list[float], twin: list[float] | None = None) -> RungData:
    return RungData(
        control=dict(enumerate(control)),
        twin=dict(enumerate(twin or [])),
        fitness={key: dict(enumerate(values)) for key, values in programs.items()},
    )


def noise_of(variance: float, degrees: int) -> Crowd:
    return Crowd(noise_variance=variance, degrees=degrees, own_variance=variance, shared_variance=0.0, mean=0.0, sd=1.0)


# ---- blocks


def test_a_block_is_the_same_whenever_it_is_asked_for_and_different_elsewhere():
    first = make_blocks(3, "toy", "search", 0, 4)
    assert make_blocks(3, "toy", "search", 2, 2) == first[2:]
    others = [make_blocks(4, "toy", "search", 0, 4), make_blocks(3, "tiny", "search", 0, 4)]
    others.append(make_blocks(3, "toy", "confirmation", 0, 4))
    seeds = [block.seed for blocks in (first, *others) for block in blocks]
    assert len(set(seeds)) == len(seeds) == 16
    assert {block.split for block in others[-1]} == {"confirmation"}


def test_each_block_has_control_twin_and_a_canary_in_turn_before_its_programs():
    blocks = make_blocks(0, "toy", "search", 4, 3)
    jobs = jobs_of_blocks("toy", "e", blocks, control="c", canaries=["k0", "k1", "k2"], programs=["a", "b"])
    told = [(job.program, job.block.index, job.block.twin) for job in jobs]
    for place, index in enumerate((4, 5, 6)):
        canary = f"k{index % 3}"
        expected = [("c", False), ("c", True), (canary, False), ("a", False), ("b", False)]
        assert told[5 * place : 5 * place + 5] == [(program, index, twin) for program, twin in expected]
    twin = jobs[1].block
    assert twin.seed == jobs[0].block.seed
    assert twin.training_seed != jobs[0].block.training_seed
    assert 0 <= twin.training_seed < 2**31
    assert jobs[3].block == jobs[0].block


def test_a_table_pairs_by_block_and_counts_only_the_programs_own_failures():
    rows = [
        ("c", 0, False, "ok", 1.0),
        ("c", 0, True, "ok", 1.25),
        ("c", 2, False, "ok", 4.0),
        ("a", 2, False, "ok", 4.5),
        ("a", 0, False, "ok", 3.0),
        ("a", 1, False, "ok", 9.0),
        ("b", 0, False, "ok", 2.0),
        ("b", 2, False, "candidate_error", None),
        ("f", 0, False, "infrastructure_error", None),
    ]
    names = ("program", "block", "twin", "status", "fitness")
    data = table([Evaluation(**dict(zip(names, row, strict=True))) for row in rows], "c")
    assert data.differences("a") == [2.0, 0.5]  # block 1 has no control
    assert data.pairs("a") == ([1.0, 4.0], [3.0, 4.5])
    assert data.twin_differences() == [0.25]
    assert data.failed == {"b": "candidate_error"}
    assert "f" not in data.fitness


# ---- estimates


def test_noise_is_pooled_from_twins_and_from_each_programs_own_spread():
    data = rung_data({"a": [1.0, 3.0], "b": [0.0, 1.0, 5.0]}, control=[0.0, 0.0, 0.0], twin=[0.5, -1.0])
    crowd, _ = estimate(data, ["a", "b"])
    # Twins 0.25 + 1 with 2 degrees, a: 2 with 1, b: 4 + 1 + 9 with 2.
    assert crowd.noise_variance == pytest.approx((1.25 + 2 + 14) / 5)
    assert crowd.degrees == 5


def brute_posterior(means: list[float], errors: list[float], noise: float, which: int) -> tuple[float, float]:
    """Mean and sd of one true difference, by sums over a fine grid of spread and crowd mean; shares no code."""
    total = first = second = 0.0
    steps = 150
    for i in range(steps):
        spread = math.sqrt(noise) * math.tan(math.pi / 2 * (i + 0.5) / steps)
        centre, reach = sum(means) / len(means), 12 * math.sqrt(spread**2 + max(errors)) / math.sqrt(len(means))
        for j in range(61):
            mu = centre + reach * (j / 30 - 1)
            log_weight = math.log(reach)
            for mean, error in zip(means, errors, strict=True):
                variance = spread**2 + error
                log_weight -= 0.5 * math.log(variance) + (mean - mu) ** 2 / (2 * variance)
            weight = math.exp(log_weight)
            pull = errors[which] / (errors[which] + spread**2)
            theta = pull * mu + (1 - pull) * means[which]
            total += weight
            first += weight * theta
            second += weight * (theta**2 + (1 - pull) * errors[which])
    mean = first / total
    return mean, math.sqrt(second / total - mean**2)


@pytest.mark.parametrize(
    "values",
    [
        {"a": [2.2, 1.4], "b": [0.3, -0.5, 0.4, 0.6], "c": [-1.1, 0.1], "d": [-0.2, -0.8, 0.1]},
        {"a": [0.4, -1.2], "b": [-0.1, 0.3], "c": [0.9, -0.6]},  # nothing but noise: most of the sd is the crowd's mean
    ],
)
def test_posteriors_agree_with_sums_over_a_fine_grid(values):
    data = rung_data(values, control=[0.0] * 4)
    crowd, found = estimate(data, list(values))
    means = [sum(v) / len(v) for v in values.values()]
    errors = [crowd.noise_variance / len(v) for v in values.values()]
    for place, key in enumerate(values):
        mean, sd = brute_posterior(means, errors, crowd.noise_variance, place)
        assert found[key].mean == pytest.approx(mean, abs=0.01)
        assert found[key].sd == pytest.approx(sd, abs=0.01)
        assert found[key].raw == pytest.approx(means[place])
        assert found[key].blocks == len(values[key])


def rounds_of(draw: random.Random, worths: dict[str, float], *, size: int, shared: float, own: float) -> RungData:
    """Programs in rounds of `size`, two blocks each; the first four are in every block."""
    data, names = RungData(), list(worths)
    late = names[4:]
    for start in range(0, len(late), size):
        for block in (start, start + 1):
            control = draw.gauss(0, shared)
            data.control[block], data.twin[block] = control, draw.gauss(0, own)
            for key in [*names[:4], *late[start : start + size]]:
                data.fitness.setdefault(key, {})[block] = worths[key] + draw.gauss(0, own)
    return data


def test_what_a_block_shares_is_taken_off():
    draw = random.Random(1)
    worths = {f"p{place}": draw.gauss(0, 0.5) for place in range(84)}
    data = rounds_of(draw, worths, size=8, shared=1.0, own=0.3)
    crowd, found = estimate(data, list(worths))
    assert crowd.own_variance == pytest.approx(0.09, rel=0.3)
    assert crowd.shared_variance == pytest.approx(1.09, rel=0.7)  # the control's own noise of 0 is in none, ten rounds
    errors = {key: found[key].mean - worths[key] for key in worths}
    raws = {key: found[key].raw - worths[key] for key in worths}
    late = list(worths)[4:]
    # All errors share the mean of the blocks' parts, which the twins alone tell; what orders programs is the rest.
    spread = [math.sqrt(sum((e[key] - sum(e[k] for k in late) / 80) ** 2 for key in late) / 80) for e in (errors, raws)]
    assert spread[0] < 0.35
    assert spread[1] > 0.6
    covered = sum(abs(errors[key]) < 2 * found[key].sd for key in worths)
    assert covered >= 78


def test_shared_parts_agree_with_a_dense_gaussian():
    draw = random.Random(2)
    worths = {f"p{place}": 0.0 for place in range(7)}
    data = rounds_of(draw, worths, size=3, shared=0.8, own=0.5)
    table = _table_of({key: dict(enumerate_differences(data, key)) for key in worths}, data)
    found, covariance = _shared_parts(table, 0.25, 0.64)
    # Worths with a prior so wide that it says nothing, twins with worth 0: one joint Gaussian, conditioned.
    rows = [(r, c) for r in range(7) for c in range(found.size) if not math.isnan(table.values[r, c])]
    design = np.zeros((len(rows) + found.size, found.size))
    prior = 0.25 * np.eye(len(design))
    seen = np.zeros(len(design))
    for place, (r, c) in enumerate(rows):
        design[place, c], seen[place] = 1, table.values[r, c]
        prior[place, [k for k, (other, _) in enumerate(rows) if other == r]] += 1e6
    for c in range(found.size):
        design[len(rows) + c, c], seen[len(rows) + c] = 1, table.twins[c]
    gain = 0.64 * design.T @ np.linalg.inv(0.64 * design @ design.T + prior)
    np.testing.assert_allclose(found, gain @ seen, atol=1e-4)
    np.testing.assert_allclose(covariance, 0.64 * (np.eye(found.size) - gain @ design), atol=1e-4)


def enumerate_differences(data: RungData, key: str) -> list[tuple[int, float]]:
    return [(block, value - data.control[block]) for block, value in data.fitness[key].items()]


def test_a_better_half_that_does_not_vary_has_estimates():
    draw = random.Random(1)
    best = {f"best{place}": dict.fromkeys(range(2), 1.0) for place in range(6)}
    rest = {f"rest{place}": {block: 1 - draw.random() for block in range(2)} for place in range(5)}
    same = dict.fromkeys(range(2), 1.0)
    data = RungData(control=same, twin=same, fitness=best | rest)
    _, found = estimate(data, list(data.fitness))
    assert all(math.isfinite(each.mean) and each.sd > 0 for each in found.values())
    assert [each.key[:4] for each in ranked(found, caution=1.0)] == ["best"] * 6 + ["rest"] * 5


def test_the_hopeless_say_nothing_of_the_good():
    draw = random.Random(3)
    worths = {f"p{place}": 0.6 if place < 4 else draw.gauss(0, 0.2) for place in range(64)}
    data = rounds_of(draw, worths, size=10, shared=0.3, own=0.3)
    crowd, found = estimate(data, list(worths))
    for place in range(50):
        data.fitness[f"bad{place}"] = {block: draw.gauss(-20, 15) for block in data.control}
    crowded, among = estimate(data, list(data.fitness))
    assert crowded.noise_variance > 50 * crowd.noise_variance
    assert crowded.own_variance == pytest.approx(crowd.own_variance, rel=0.3)
    for key in sorted(worths, key=lambda key: -found[key].mean)[:16]:
        assert among[key].mean == pytest.approx(found[key].mean, abs=0.1)
        assert among[key].sd == pytest.approx(found[key].sd, rel=0.3)


def test_a_lucky_program_with_one_block_ranks_behind_a_proven_one():
    draw = random.Random(4)
    values = {f"x{i}": [draw.gauss(0, 1) for _ in range(2)] for i in range(20)}
    values |= {"proven": [1.5 + draw.gauss(0, 1) for _ in range(20)], "lucky": [2.6]}
    data = rung_data(values, control=[0.0] * 20)
    _, found = estimate(data, list(values))
    assert found["lucky"].raw > found["proven"].raw
    assert found["lucky"].lower(1.0) < found["proven"].lower(1.0)
    best = choose_retested(0, "toy", data, list(values), RaceSettings(blocks=(1,), elites=1))
    assert [(each.kind, each.program) for each in best][:2] == [("elite", "proven"), ("challenger", "lucky")]
    without = choose_retested(0, "toy", data, list(values), RaceSettings(blocks=(1,), elites=1, challengers=0))
    assert [each.program for each in without] == ["proven"]


def test_the_order_survives_where_the_spread_seems_to_be_zero():
    values = {"a": [0.4, -1.2], "b": [-0.1, 0.3], "c": [0.9, -0.6], "d": [1.0, -0.9]}
    _, found = estimate(rung_data(values, control=[0.0, 0.0], twin=[1.5, -1.5]), list(values))
    assert len({each.mean for each in found.values()}) == 4
    order = sorted(found, key=lambda key: found[key].mean)
    assert order == sorted(found, key=lambda key: found[key].raw)


def test_exact_measurements_are_believed():
    data = rung_data({"a": [1.5], "b": [0.5]}, control=[1.0], twin=[1.0])
    crowd, found = estimate(data, ["a", "b"])
    assert crowd.noise_variance == 0
    assert (found["a"].mean, found["a"].sd, found["b"].mean) == (0.5, 0.0, -0.5)


def test_two_programs_are_drawn_to_the_control():
    _, found = estimate(rung_data({"a": [1.0], "b": [1.0]}, control=[0.0], twin=[1.0]), ["a", "b"])
    assert 0 < found["a"].mean < 1


def test_failed_and_unmeasured_programs_have_no_estimate():
    data = rung_data({"a": [1.0, 2.0], "b": [3.0, 3.5]}, control=[0.0, 0.0])
    data.failed["b"] = "candidate_error"
    assert set(estimate(data, ["a", "b", "z"])[1]) == {"a"}
    assert estimate(RungData(), [])[1] == {}


# ---- halving


def seven_programs() -> RungData:
    values = {key: [worth + 0.1, worth - 0.1] for key, worth in zip("gfedcba", range(7), strict=True)}
    return rung_data(values, control=[0.0, 0.0], twin=[0.1, -0.1])


def test_the_best_third_goes_on_and_the_failed_come_last():
    data = seven_programs()
    data.failed["g"] = "candidate_error"
    settings = RaceSettings(blocks=(2,), audit_share=0.0)
    found = cut(3, "toy", data, [*"abcdefgz"], [*"abcdefg"], settings, seed=1)
    told = [(each.program, each.kind, each.rank) for each in found]
    assert told == [
        ("a", "promoted", 0),
        ("b", "promoted", 1),
        ("c", "rejected", 2),
        ("d", "rejected", 3),
        ("e", "rejected", 4),
        ("f", "rejected", 5),
        ("g", "failed", 6),
        ("z", "unmeasured", 7),
    ]
    assert found[0].step == 3
    assert found[0].lower == pytest.approx(found[0].mean - found[0].sd)


def test_caution_can_change_who_is_first():
    draw = random.Random(0)
    worths = [draw.gauss(0, 2) for _ in range(12)]
    values = {f"x{i}": [worth + draw.gauss(0, 1) for _ in range(8)] for i, worth in enumerate(worths)}
    values |= {"sure": [5.0 + draw.gauss(0, 1) for _ in range(30)], "bold": [6.3, 6.1]}
    data = rung_data(values, control=[0.0] * 30)
    first = {
        caution: choose_retested(0, "toy", data, list(values), RaceSettings(blocks=(1,), caution=caution))[0].program
        for caution in (0.0, 2.0)
    }
    assert first == {0.0: "bold", 2.0: "sure"}


def test_a_twentieth_of_the_rejects_goes_on_by_lot_and_none_from_the_last_rung():
    data = seven_programs()
    settings = RaceSettings(blocks=(2,), audit_share=0.05)
    kinds = [
        each.kind
        for step in range(1500)
        for each in cut(step, "toy", data, [*"abcdefg"], [*"abcdefg"], settings, seed=9)
    ]
    rejects = kinds.count("audited") + kinds.count("rejected")
    assert rejects == 1500 * 4
    assert abs(kinds.count("audited") - 300) < 4 * math.sqrt(6000 * 0.05 * 0.95)
    last = cut(
        0, "toy", data, [*"abcdefg"], [*"abcdefg"], RaceSettings(blocks=(2,), audit_share=1.0), seed=9, last=True
    )
    assert [each.kind for each in last] == ["promoted"] * 3 + ["rejected"] * 4


def test_the_lot_of_one_program_does_not_depend_on_the_others():
    data = seven_programs()
    settings = RaceSettings(blocks=(2,), audit_share=0.5)

    def lots(cohort: str, step: int) -> dict[str, str]:
        found = cut(step, "toy", data, [*cohort], [*"abcdefg"], settings, seed=9)
        return {each.program: each.kind for each in found if each.program in "fg"}

    assert all(lots("abcdefg", step) == lots("abcfg", step) for step in range(30))


# ---- audit


def decision(rung: str, program: str, kind: str, mean: float | None, step: int = 0) -> Decision:
    return Decision(
        step=step,
        rung=rung,
        program=program,
        kind=kind,
        rank=0,
        lower=mean,
        mean=mean,
        sd=0.1,
        blocks=2,  # type: ignore[arg-type]
    )


def test_what_is_hardly_above_the_control_is_not_worth_a_confirmation():
    found = [
        replace(decision("toy", key, "elite", mean), sd=sd)
        for key, mean, sd in (
            ("clear", 0.02, 0.01),
            ("odds", 0.003, 0.01),
            ("hardly", 1e-5, 0.006),
            ("below", -0.01, 0.01),
            ("exact", 0.001, 0.0),
            ("equal", 0.0, 0.0),
        )
    ]
    assert promising(found) == ["clear", "odds", "exact"]


def test_the_audit_by_hand():
    decisions = [
        decision("toy", "a", "promoted", 3.0),
        decision("toy", "b", "promoted", 2.0),
        decision("toy", "c", "audited", 1.0),
        decision("toy", "d", "rejected", 0.5),
        decision("toy", "e", "failed", None),
        decision("toy", "f", "audited", 0.2),
        decision("toy", "g", "audited", 0.1),
        decision("tiny", "a", "rejected", 0.1),
        decision("tiny", "b", "promoted", 0.9),
        decision("tiny", "c", "promoted", 0.5),
        decision("tiny", "f", "rejected", -1.0),
        # Broke there: rightly rejected, and behind all that could be measured.
        decision("tiny", "g", "failed", None),
        decision("tiny", "a", "elite", 7.0),
    ]
    (found,) = audit_rungs(decisions, ["toy", "tiny"], RaceSettings(blocks=(1, 1), audit_share=0.05))
    assert (found.rejected, found.audited, found.wrongly_rejected) == (4, 3, 1)
    # Clopper-Pearson for 1 of 3: the lower end is 1 - 0.975^(1/3).
    assert found.rate == pytest.approx(1 / 3)
    assert found.low == pytest.approx(1 - 0.975 ** (1 / 3))
    assert found.high == pytest.approx(0.9057, abs=1e-4)
    # Pairs: ab -, ac -, af +, ag +, bc +, bf +, bg +, cf +, cg +, fg +; c, f and g stand for twenty rejects each.
    assert found.survivors_only == -1.0
    assert found.rank_correlation == pytest.approx((-1 - 20 + 20 * 5 + 3 * 400) / (1 + 20 * 6 + 3 * 400))


def test_pairs_of_different_rounds_are_not_compared():
    decisions = [
        decision("toy", "a", "promoted", 3.0, 0),
        decision("tiny", "a", "promoted", 3.0, 0),
        decision("toy", "b", "promoted", 1.0, 1),
        decision("tiny", "b", "promoted", 9.0, 1),
    ]
    (found,) = audit_rungs(decisions, ["toy", "tiny"], RaceSettings(blocks=(1, 1)))
    assert math.isnan(found.rank_correlation)
    assert math.isnan(found.rate)


def test_the_weighted_correlation_is_that_of_all_candidates():
    """Over many rounds the audit's tau comes to the tau of all candidates; that of the survivors does not."""
    draw = random.Random(8)
    settings = RaceSettings(blocks=(1, 1), audit_share=0.2)
    decisions, agree, pairs = [], 0, 0
    for step in range(300):
        scores = [
            (worth + draw.gauss(0, 0.7), worth + draw.gauss(0, 0.7)) for worth in [draw.gauss(0, 1) for _ in range(12)]
        ]
        for i in range(12):
            for j in range(i):
                agree += math.copysign(1, (scores[i][0] - scores[j][0]) * (scores[i][1] - scores[j][1]))
                pairs += 1
        order = sorted(range(12), key=lambda i: -scores[i][0])
        for place, i in enumerate(order):
            kind = "promoted" if place < 4 else "audited" if draw.random() < 0.2 else "rejected"
            decisions.append(decision("toy", f"{step}-{i}", kind, scores[i][0], step))
            if kind != "rejected":
                decisions.append(decision("tiny", f"{step}-{i}", "rejected", scores[i][1], step))
    (found,) = audit_rungs(decisions, ["toy", "tiny"], settings)
    truth = agree / pairs
    assert found.rank_correlation == pytest.approx(truth, abs=0.06)
    assert found.survivors_only < truth - 0.1


# ---- canaries


def canary_state(kind: str, differences: list[float], *, noise: float = 1.0, degrees: int = 40) -> str:
    program = SimulatedProgram((), 0.0, kind)
    canary = Canary(name=kind, kind=kind, program=program)  # type: ignore[arg-type]
    data = rung_data({program.key: differences}, control=[0.0] * len(differences))
    crowd = noise_of(noise, degrees)
    (found,) = inspect("toy", data, [canary], crowd)
    return found.state


def test_canaries_speak_when_chance_does_not_explain_them():
    shaky, up, down, flat = [0.1, -0.2, 0.3], [5.0, 6.1, 5.4], [-5.0, -6.1, -5.4], [0.1, -0.1, 0.02]
    states = {kind: [canary_state(kind, d) for d in (shaky, up, down, flat)] for kind in ("good", "bad", "disguised")}
    assert states["good"] == ["not yet known", "as expected", "off", "not yet known"]
    assert states["bad"] == ["not yet known", "off", "as expected", "not yet known"]
    assert states["disguised"] == ["as expected", "off", "off", "as expected"]


def test_one_block_never_stops_a_run():
    assert canary_state("good", [-50.0]) == "not yet known"
    assert canary_state("good", [-50.0, -50.0]) == "off"


def test_a_canary_that_is_noisier_than_the_rest_is_judged_by_its_own_noise():
    assert canary_state("bad", [9.0, -1.0, 6.0], noise=0.1) == "not yet known"


def test_a_canary_that_breaks_is_off_unless_it_is_the_bad_one():
    crowd = noise_of(1.0, 9)
    for canary in CANARIES[:3]:
        assert canary.program is not None
        data = rung_data({}, control=[0.0])
        data.failed[canary.program.key] = "candidate_error"
        (found,) = inspect("toy", data, [canary], crowd)
        assert found.state == ("as expected" if canary.kind == "bad" else "off")


# ---- confirmation


def ground(name: str, unseen: bool, **programs: list[float]) -> Ground:
    control = [0.0, 1.0, 2.0, 3.0, 4.0]
    values = {key: [c + d for c, d in zip(control, differences, strict=True)] for key, differences in programs.items()}
    return Ground(name=name, unseen=unseen, data=rung_data(values, control=control))


STRONG, SOLID, WEAK, NEGATIVE = (
    [1.0, 1.1, 0.9, 1.05, 0.95],
    [1.0, 1.4, 0.6, 1.2, 0.8],
    [1.0, -1.0, 0.5, 0.2, 0.1],
    [-1.0, -1.1, -0.9, -1.2, -1.0],
)


def t_p_value(differences: list[float]) -> float:
    """Two-sided p with 4 degrees of freedom, from the closed form of that t distribution."""
    n = len(differences)
    mean = sum(differences) / n
    sd = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    t = abs(mean) / (sd / math.sqrt(n))
    x = t / math.sqrt(4 + t * t)
    return 1 - (1.5 * x - 0.5 * x**3)


def test_a_claim_needs_every_ground_and_holm():
    found = confirm(
        ["a", "b", "c", "d"],
        [
            ground("small", False, a=STRONG, b=STRONG, c=SOLID, d=STRONG),
            ground("other", True, a=SOLID, b=WEAK, c=STRONG, d=NEGATIVE),
        ],
        significance=0.05,
    )
    p = {"a": t_p_value(SOLID), "b": t_p_value(WEAK), "c": t_p_value(SOLID), "d": 1.0}
    assert {claim.program: claim.p_value for claim in found} == pytest.approx(p, abs=1e-12)
    # Holm over four: the two equal smallest times 4, then b times 2, d capped.
    assert [claim.p_holm for claim in found] == pytest.approx([4 * p["a"], 1.0, 4 * p["a"], 1.0], abs=1e-12)
    assert 4 * p["a"] < 0.05
    assert [claim.announced for claim in found] == [True, False, True, False]
    assert [claim.rank for claim in found] == [0, 1, 2, 3]


def test_the_more_finalists_the_more_each_must_show():
    shown = [1.0, 1.9, 0.2, 1.3, 0.6]
    assert 0.02 < t_p_value(shown) < 0.04
    alone, among = (dict.fromkeys(keys, shown) for keys in ("a", "abc"))
    assert [claim.announced for claim in confirm(["a"], [ground("other", True, **alone)], significance=0.05)] == [True]
    found = confirm(["a", "b", "c"], [ground("other", True, **among)], significance=0.05)
    assert [claim.announced for claim in found] == [False] * 3


def test_the_noise_floor_stands_beside_the_claim():
    other = ground("other", True, a=STRONG)
    other.data.twin = {0: 0.5, 1: 0.8, 2: 2.3, 3: 3.1, 4: 3.8, 9: 70.0}
    (claim,) = confirm(["a"], [other], significance=0.05)
    floor, comparison = claim.grounds[0].floor, claim.grounds[0].comparison
    assert floor is not None
    assert comparison is not None
    assert comparison.difference == pytest.approx(1.0)
    # Paired, over the five blocks that have both: differences 0.5, -0.2, 0.3, 0.1, -0.2; t(4) at 97.5% is 2.776.
    assert (floor.difference, floor.blocks) == (pytest.approx(0.1), 5)
    reach = 2.776 * math.sqrt((0.16 + 0.09 + 0.04 + 0.0 + 0.09) / 4 / 5)
    assert (floor.low, floor.high) == (pytest.approx(0.1 - reach, abs=1e-3), pytest.approx(0.1 + reach, abs=1e-3))


def test_there_is_no_noise_floor_without_a_twin():
    (claim,) = confirm(["a"], [ground("other", True, a=STRONG)], significance=0.05)
    assert claim.grounds[0].floor is None


def test_nothing_is_announced_without_an_unseen_ground():
    assert not confirm(["a"], [ground("small", False, a=STRONG)], significance=0.05)[0].announced
    assert confirm(["a"], [ground("small", True, a=STRONG)], significance=0.05)[0].announced
    assert confirm([], [], significance=0.05) == []


def test_a_finalist_that_fails_or_is_missing_is_not_announced():
    grounds = [ground("small", False, a=STRONG), ground("other", True, a=STRONG)]
    grounds[1].data.failed["a"] = "candidate_error"
    found = confirm(["a", "z"], grounds, significance=0.05)
    assert [(claim.p_value, claim.announced) for claim in found] == [(1.0, False), (1.0, False)]
    assert found[0].grounds[1].comparison is None


def test_who_is_open_may_yet_be_announced():
    assert still_open(["a", "b"], [], significance=0.05) == ["a", "b"]
    first = ground("small", False, a=STRONG, b=WEAK, c=STRONG, d=NEGATIVE)
    assert still_open(["d", "c", "b", "a"], [first], significance=0.05) == ["c", "a"]
    # Holm counts those who are out too: two that show the same are both out, where one alone would be open.
    shown = [1.0, 1.9, 0.2, 1.3, 0.6]
    both = ground("small", False, a=shown, b=shown)
    assert still_open(["a"], [both], significance=0.05) == ["a"]
    assert still_open(["a", "b"], [both], significance=0.05) == []


def test_who_could_not_be_measured_where_it_was_asked_has_shown_nothing():
    # `a` was asked on both grounds and the machine lost it on the second: it must not count as shown for Holm, by which
    # `b` alone would meet the full level.
    middling = [1.0, 1.9, 0.2, 1.3, 0.6]
    assert 0.02 < t_p_value(middling) < 0.05
    grounds = [ground("small", False, a=STRONG, b=STRONG), ground("other", True, b=middling)]
    lost, other = confirm(["a", "b"], grounds, significance=0.05)
    assert (lost.p_value, lost.p_holm, lost.announced) == (1.0, 1.0, False)
    assert [each.comparison is None for each in lost.grounds] == [False, True]
    assert (other.p_holm, other.announced) == (pytest.approx(2 * t_p_value(middling)), False)


def test_what_finalists_have_shown_stands_behind_the_verdict():
    grounds = [ground("small", False, a=STRONG, b=NEGATIVE), ground("other", True)]
    told = shown_at_last(confirm(["a", "b"], grounds, significance=0.05))
    assert told.startswith(" (a on other not measured; b on small -")
    assert told.endswith("])")
    assert shown_at_last([]) == ""


def test_rows_of_who_was_not_asked_are_not_looked_at():
    grounds = [ground("small", False, a=STRONG, b=NEGATIVE), ground("other", True, a=STRONG, b=STRONG)]
    assert [len(claim.grounds) for claim in confirm(["a", "b"], grounds, significance=0.05)] == [2, 1]


def test_who_was_not_asked_on_a_ground_is_not_announced():
    grounds = [ground("small", False, a=STRONG, b=STRONG), ground("other", True, a=STRONG)]
    assert [claim.announced for claim in confirm(["a", "b"], grounds, significance=0.05)] == [True, False]
    assert still_open(["a", "b"], grounds, significance=0.05) == ["a"]


def test_dropping_finalists_between_grounds_changes_no_verdict():
    draw = np.random.default_rng(7)
    dropped = announced = 0
    for _ in range(300):
        keys, size = ["a", "b", "c"], draw.uniform(0, 2.5)
        shown = [{key: list(size + draw.standard_normal(5)) for key in keys} for _ in range(2)]
        first, second = ground("small", False, **shown[0]), ground("other", True, **shown[1])
        left = still_open(keys, [first], significance=0.05)
        asked = [first, ground("other", True, **{key: shown[1][key] for key in left})] if left else [first]
        with_all, with_some = (
            [claim.program for claim in confirm(keys, grounds, significance=0.05) if claim.announced]
            for grounds in ([first, second], asked)
        )
        assert with_all == with_some
        dropped += len(keys) - len(left)
        announced += len(with_all)
    assert (dropped, announced) > (100, 100)


# ---- settings and simulation


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0},
        {"blocks": ()},
        {"blocks": (1, 0)},
        {"keep": 0.0},
        {"audit_share": 1.5},
        {"confirmation_blocks": 4},
        {"caution": -1.0},
        {"rounds": 0},
        {"significance": 1.0},
        {"finalists": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=f"`{next(iter(wrong))}`"):
        RaceSettings(**wrong)


def test_a_simulated_rung_is_paired_repeatable_and_right_on_average():
    world = World(seed=2, scale=2.0)
    rung = simulated_ladder(world)[-1]
    best = world.best()
    assert world.worth(best) == 2.0
    differences, fitness = [], []
    for block in make_blocks(0, "small", "search", 0, 400):
        control, own = rung.evaluate(CONTROL, block), rung.evaluate(best, block)
        assert rung.evaluate(best, block) == own
        differences.append(own.fitness - control.fitness)
        fitness.append(own.fitness)
    mean = sum(differences) / 400
    assert mean == pytest.approx(2.0, abs=4 * math.sqrt(2 / 400))
    sd = math.sqrt(sum((d - mean) ** 2 for d in differences) / 399)
    assert sd == pytest.approx(math.sqrt(2), rel=0.15)  # the block's own effect, of sd 3, is gone
    twin = rung.evaluate(CONTROL, Block(index=0, seed=1, twin=True))
    assert twin.fitness != rung.evaluate(CONTROL, Block(index=0, seed=1)).fitness
    assert twin.values == rung.evaluate(CONTROL, Block(index=0, seed=1)).values
