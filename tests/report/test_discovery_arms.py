"""Proposers at equal cost: the clock of their proposals counts, and so does what random had by then."""

from dataclasses import replace

import pytest

from lossmith.discovery.costs import Cost
from lossmith.discovery.history import open_history
from lossmith.report.discovery_arms import (
    FEWEST,
    ArmPoint,
    against_random,
    arm_notes,
    arms_of,
    best_by_cost,
    path_of,
    proposers_table,
)


@pytest.fixture(scope="module")
def history(discovered):
    return open_history(discovered)


def climb(*steps):
    """Points from (seconds, best); every one of them reached the last rung."""
    return [ArmPoint(seconds=float(s), reached=place + 1, best=best) for place, (s, best) in enumerate(steps)]


def test_what_an_arm_takes_is_its_proposals_and_all_evaluations(history):
    assert {"random", "best-of", "gp", "human"} <= set(arms_of(history))
    for arm in arms_of(history):
        keys = [key for key in history.candidates if history.stored[key].proposer == arm]
        asked = sum(cost.wall_seconds for (_, _, name), cost in history.asked.items() if name == arm)
        path = path_of(history, arm)
        assert asked > 0
        assert path[-1].seconds == pytest.approx(asked + sum(history.device_seconds.get(key, 0.0) for key in keys))
        assert [each.seconds for each in path] == sorted(each.seconds for each in path)
        best = [each for _, each in best_by_cost(history, arm)]
        assert best == sorted(best)


def test_waiting_for_a_model_moves_an_arm_to_the_right(history):
    """An arm that waits an hour for its proposals is compared with what random has after an hour."""
    before = path_of(history, "gp")
    slow = {place: cost + Cost(wall_seconds=3600.0 * (place[2] == "gp")) for place, cost in history.asked.items()}
    calls = len([place for place in slow if place[2] == "gp"])
    after = path_of(replace(history, asked=slow), "gp")
    assert after[0].seconds == pytest.approx(before[0].seconds + 3600)
    assert after[-1].seconds == pytest.approx(before[-1].seconds + 3600 * calls)


def test_arms_are_compared_where_both_have_come(history):
    own = climb((1, 0.1), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.3), (9, 0.9))
    random = climb((1, 0.0), (2, 0.05), (3, 0.05), (4, 0.06), (5, 0.07), (6, 0.08))
    # At 6 s: the arm's 0.9 comes later and does not count.
    assert against_random(history, own, random) == "+0.3 (of 5) against +0.08 (of 6), both at 6 s"
    short = against_random(history, own, random[:2])
    assert short == f"too little to compare: by 2 s it had 2 and random had 2 on tiny, and {FEWEST} are the fewest"
    assert against_random(history, own, []) == "random has no candidate: nothing to compare"


def test_tokens_and_money_are_columns_where_there_are_any(history):
    free = proposers_table(history)
    assert not {"tokens", "money"} & set(free.headers)
    assert not any("Tokens" in each for each in arm_notes(history))
    place = next(place for place in history.asked if place[2] == "gp")
    paid = replace(history, asked={**history.asked, place: Cost(tokens=1200, money_usd=0.25, wall_seconds=2.0)})
    table = proposers_table(paid)
    rows = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert (rows["gp"]["tokens"], rows["gp"]["money"]) == ("1,200", "$0.25")
    assert rows["random"]["tokens"] == "0"
    assert any("Tokens and money come on top" in each for each in arm_notes(paid))


def test_an_older_run_says_that_it_kept_no_cost_of_proposals(history):
    older = replace(history, asked={})
    table = proposers_table(older)
    assert {row[table.headers.index("time of proposals")] for row in table.rows} == {"not kept"}
    assert any("did not keep what the proposals of each arm took" in each for each in arm_notes(older))
