"""Proposers in a run: what the engine tells them, and how the command line names them."""

from dataclasses import replace

from lossmith.discovery.engine import Engine
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import World, simulated_setup

RACE = RaceSettings(candidates=6, blocks=(1, 2), elites=2, rounds=2, finalists=2, confirmation_blocks=5)


class Ear:
    """Hands everything to another proposer, and keeps what is said to it."""

    def __init__(self, inner):
        self._inner, self.contexts, self.events = inner, [], []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def propose(self, context, n):
        self.contexts.append(context)
        return self._inner.propose(context, n)

    def observe(self, events):
        self.events += events
        self._inner.observe(events)


def test_a_proposer_is_told_what_each_rung_measures_and_one_unit_for_all():
    setup = simulated_setup(3, settings=RACE, world=World(seed=5, scale=4.0))
    ear = Ear(setup.proposer)
    with Engine(None, replace(setup, proposer=ear)) as engine:
        engine.run()
        decided = {(each.program, each.rung, each.step): each for each in engine.decisions.all()}
    assert ear.contexts[0].metrics == {rung.name: rung.fitness_name for rung in setup.rungs}
    measured = [event for event in ear.events if event.kind == "measured"]
    assert {event.standing.rung for event in measured} == {"tiny", "small"}
    assert {event.cheapest.rung for event in measured} == {"tiny"}
    for event in measured:
        assert event.cheapest.mean == decided[event.key, "tiny", event.step].mean
        assert event.standing.mean == decided[event.key, event.standing.rung, event.step].mean
