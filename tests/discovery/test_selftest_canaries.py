"""The canaries of `selftest`: each one that is off is told, and by its own line."""

import pytest

from lossmith.discovery import Verdict, selftest_canaries
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.costs import Cost
from lossmith.discovery.rungs.base import CandidateError, InfrastructureError, Metrics
from lossmith.discovery.selftest_canaries import BLOCKS, canaries_on

KEYS = {each.name: each.program.key for each in canaries_of("token", synthetic=True) if each.program is not None}
WORTH = {KEYS["known-good"]: 1.0, KEYS["known-bad"]: -1.0}


class Fake:
    """A rung that gives every program its worth, and noise that is common to a block but for the twin's."""

    name, ground, environment, fitness_name, cost = "toy", ("fake", "none"), "fake", "worth", Cost(jobs=1)

    def __init__(self, change=lambda key: 0.0):
        self.change, self.asked = change, []

    def evaluate(self, program, block):
        self.asked.append((program.key, block.index, block.twin))
        noise = block.training_seed % 89 / 8900
        return Metrics(fitness=WORTH.get(program.key, 0.0) + self.change(program.key) + noise)


def off(rung):
    """Names of the canaries that are off on a rung; their sentences say so, and those of the others do not."""
    lines = canaries_on(rung, "token")
    assert [line.sentence.endswith("OFF.") for line in lines] == [not line.passed for line in lines]
    assert len(lines) == 4
    return [line.sentence.removeprefix("token, ").split(":")[0] for line in lines if not line.passed]


def moved(name, by):
    return Fake(lambda key: by if key == KEYS[name] else 0.0)


def test_a_rung_that_measures_passes():
    rung = Fake()
    assert off(rung) == []
    # The control and its twin, and every canary, in every block.
    assert len(set(rung.asked)) == len(rung.asked) == BLOCKS * (2 + len(KEYS))


@pytest.mark.parametrize("by", [-1.0, -2.0])
def test_a_good_one_that_is_not_better_is_off(by):
    assert off(moved("known-good", by)) == ["known-good"]


@pytest.mark.parametrize("by", [-0.2, 0.2])
def test_a_disguise_that_differs_is_off(by):
    assert off(moved("disguised-control", by)) == ["disguised-control"]


@pytest.mark.parametrize("by", [1.0, 2.0])
def test_a_bad_one_that_is_not_worse_is_off(by):
    assert off(moved("known-bad", by)) == ["known-bad"]


def test_a_canary_that_breaks_is_off():
    def change(key):
        if key == KEYS["known-good"]:
            raise CandidateError("Its loss is not finite.")
        return 0.0

    lines = canaries_on(Fake(change), "token")
    assert [line.sentence for line in lines if not line.passed] == [
        "token, known-good: must be better, broke in training: OFF."
    ]


@pytest.mark.parametrize("error", [CandidateError("x"), InfrastructureError("x"), ZeroDivisionError("x")])
def test_a_control_that_breaks_is_told_and_fails(error):
    def change(key):
        if key == control_of("token").key:
            raise error
        return 0.0

    (line,) = canaries_on(Fake(change), "token")
    assert not line.passed
    assert line.sentence.startswith("token: rung `toy` cannot be measured here: ")


@pytest.mark.parametrize(("accepted", "category"), [(True, "ok"), (False, "syntax")])
def test_a_cheat_that_is_admitted_or_never_looked_at_is_off(monkeypatch, accepted, category):
    verdict = Verdict(accepted=accepted, category=category, reason="x")
    monkeypatch.setattr(selftest_canaries.Admission, "check", lambda gate, proposal: verdict)
    assert off(Fake()) == ["cheat"]
