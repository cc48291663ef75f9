"""The order and the words of a discovery's page: rungs by cost, fates by the highest rung, and no empty claims."""

import shutil
import sqlite3
from dataclasses import replace

import pytest

from lossmith.discovery.compiler import compile_source
from lossmith.discovery.history import open_history
from lossmith.discovery.replay import replay_run
from lossmith.evidence import paired_t
from lossmith.report.discovery import answers, render_discovery, shown_programs, write_discovery
from lossmith.report.discovery_figures import discovery_figures
from lossmith.report.discovery_tables import (
    canaries_table,
    canary_notes,
    claims_table,
    evidence_table,
    fate_of,
    funnel_table,
    interval,
    lineage_table,
    negatives,
    spend_table,
)


@pytest.fixture(scope="module")
def history(discovered):
    return open_history(discovered)


def test_rungs_come_from_the_cheapest_on_and_the_confirmation_last(history):
    places = [("toy", "search"), ("tiny", "search"), ("tiny", "confirmation")]
    assert list(history.evaluations) == places
    kinds = [row[0] for row in spend_table(history).rows]
    assert kinds == ["proposer", *(f"rung/{rung}/{split}" for rung, split in places)]
    (finalist,) = (each.program for each in history.verdicts)
    assert [row[:2] for row in evidence_table(history, finalist).rows] == places
    where = list(dict.fromkeys(row[2] for row in canaries_table(history).rows))
    assert where[:2] == ["toy", "tiny"]
    assert {row[1] for row in canaries_table(history).rows[:-1]} <= {"better", "equal", "worse"}


def test_a_fate_is_that_of_the_highest_rung(history):
    assert [row[4] for row in lineage_table(history, [history.verdicts[0].program]).rows][-1] in (
        "announced",
        "confirmed, not announced",
    )
    past = replace(history, verdicts=[], decisions=[each for each in history.decisions if each.kind != "elite"])
    climbed = {each.program for each in past.decisions if each.rung == "tiny"}
    assert climbed
    for key in history.candidates:
        on = "tiny" if key in climbed else "toy"
        assert f" on {on}, " in fate_of(past, key)
    key = next(iter(climbed))
    elite = next(each for each in past.decisions if each.program == key)
    held = replace(past, decisions=[*past.decisions, replace(elite, kind="elite", step=past.rounds - 1)])
    assert fate_of(held, key) == "elite"


def test_a_confirmation_that_was_broken_off_says_nothing_of_the_control(history):
    broken_off = replace(history, verdicts=[], claims=[], confirmed=False)
    assert answers(broken_off)[0].startswith("The confirmation is not finished: nothing is claimed yet.")
    assert not any("Nothing is claimed" in each for each in negatives(broken_off))
    without = replace(broken_off, confirmed=True)
    assert answers(without)[0].startswith("Nothing was shown to beat the control: no elite of the search was better")
    assert any("by enough to be confirmed" in each for each in negatives(without))


def test_what_is_announced_has_its_relative_and_how_far_it_may_be_carried(history):
    (first,) = history.verdicts
    announced = replace(history, verdicts=[replace(first, announced=True)])
    said = answers(announced)
    assert said[0].startswith(f"{first.program[:8]} is better than the control on every fresh ground: tiny ")
    assert "Its closest known loss is " in said[0]
    assert said[1].startswith("It was trained on lossmith's own small worlds alone")
    known = compile_source(
        "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):\n"
        "    return 3 * F.relu(1 - 0.15 * (chosen_logps - rejected_logps - ref_chosen_logps + ref_rejected_logps))\n"
    )
    (same, *_) = answers(replace(announced, programs={**history.programs, first.program: known}))
    assert same.endswith(" It is hinge(beta=0.15), a known loss at that strength, but for its scale.")
    real = replace(announced, settings=announced.settings | {"ladder": ["toy", "small"]})
    assert not any("small worlds" in each for each in answers(real))


def test_claims_stand_in_the_order_of_the_finalists(history):
    (first,) = history.verdicts
    other = next(each for each in history.candidates if each != first.program)
    verdicts = [replace(first, program=other, rank=0), replace(first, rank=1)]
    claims = [*history.claims, *(replace(each, program=other) for each in history.claims)]
    rows = claims_table(replace(history, verdicts=verdicts, claims=claims)).rows
    assert [row[:2] for row in rows] == [(other[:8], "tiny"), (first.program[:8], "tiny")]


def test_a_ground_that_was_not_asked_is_named(history):
    (first,) = history.verdicts
    (said,) = (each for each in negatives(history) if each.startswith(first.program[:8]))
    assert said.endswith(" tiny-unseen could not have changed that, and was not asked.")
    (claim,) = history.claims
    both = [claim, replace(claim, ground="tiny-unseen")]
    assert not any("not asked" in each for each in negatives(replace(history, claims=both)))
    lost = [claim, replace(claim, ground="tiny-unseen", difference=None, low=None, high=None, p_value=None, blocks=0)]
    empty = replace(history, claims=lost, evaluations={**history.evaluations, ("tiny-unseen", "confirmation"): []})
    assert any("tiny-unseen the machine failed, so that it has shown nothing" in each for each in negatives(empty))


def test_a_run_without_finalists_does_not_speak_of_them(history):
    none = replace(history, verdicts=[], claims=[])
    assert "no elite of the search was better" in answers(none)[0]
    assert "no finalist is better on every fresh ground at the level of 0.05" in answers(history)[0]
    shown = shown_programs(none)
    page = render_discovery(none, discovery_figures(none, shown), [])
    assert "Nothing: no finalist has come through a whole confirmation." in page
    assert "Candidates against the control, <code>-logsigmoid(0.1 * " in page
    assert answers(history)[-1].endswith("because all rounds were done.")


def test_a_changed_difference_of_the_confirmation_is_named_by_the_replay(discovered, history, tmp_path):
    assert replay_run(discovered).mismatches == ()
    folder = shutil.copytree(discovered, tmp_path / "run")
    first = history.claims[0]
    with sqlite3.connect(folder / "discovery.sqlite") as connection:
        connection.execute(
            "UPDATE claim SET difference = difference + 0.01 WHERE program = ? AND ground = ?",
            (first.program, first.ground),
        )
    connection.close()
    found = replay_run(folder)
    (wrong,) = found.mismatches
    assert wrong.startswith(f"The difference of `{first.program[:8]}` on `{first.ground}` is ")
    assert found.sentences[0].endswith("and 1 thing is not as the rows say.")


def test_the_noise_floor_is_the_twin_in_the_same_blocks(history):
    rows = claims_table(history).rows
    for row, claim in zip(rows, history.claims, strict=True):
        data = history.data(claim.ground, "confirmation")
        by_hand = [data.twin[block] - data.control[block] for block in sorted(data.control)]
        found = paired_t([0.0] * len(by_hand), by_hand)
        assert row[6] == interval(found.difference, found.low, found.high)
        assert claim.noise_half_width == pytest.approx((found.high - found.low) / 2)


def test_the_cheating_canary_is_a_row_with_what_the_checks_said(history):
    expected = ("cheat", "refused", "the checks", "–", "refused as wrong-sign", "as expected")
    assert canaries_table(history).rows[-1] == expected
    other = replace(history, cheats={"cheat": {"category": "syntax", "reason": "x"}})
    assert canaries_table(other).rows[-1][-2:] == ("refused as syntax", "refused for another reason")
    assert any("met the checks before the first round" in each for each in canary_notes(history))
    # An older run did not keep it, and nothing may be said of it.
    older = replace(history, cheats=None)
    assert not any("cheat" in row[0] for row in canaries_table(older).rows)
    assert any("did not keep what the checks said" in each for each in canary_notes(older))


def test_a_run_without_a_known_good_canary_says_why(history):
    assert not any("no known-good" in each for each in canary_notes(history))
    without = replace(history, stored={key: each for key, each in history.stored.items() if each.name != "known-good"})
    assert any("There is no known-good canary" in each for each in canary_notes(without))
    page = render_discovery(without, discovery_figures(without, []), [])
    assert "There is no known-good canary" in page


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (None, "It is running, or was ended in its middle: then the same command goes on with it."),
        ("budget", "Its budget does not carry what comes next: the same command with more --budget goes on with it."),
        ("machine", "failed: the same command goes on with it."),
        ("harness", "until what the rung measures is mended: the message of that session says which."),
    ],
)
def test_a_run_that_is_not_finished_says_what_it_waits_for(history, ended, said):
    confirming = replace(history, verdicts=[], claims=[], confirmed=False, ended=ended)
    for run, begins in ((confirming, "The confirmation is not"), (replace(confirming, closed=None), "The run is not")):
        assert answers(run)[0].startswith(begins)
        assert answers(run)[0].endswith(said)


def test_the_funnel_says_how_many_no_rung_judged(history):
    assert "admitted, judged by no rung" not in {row[0] for row in funnel_table(history).rows}
    left = [each for each in history.decisions if each.program != history.candidates[0]]
    broken_off = {row[0]: row[1] for row in funnel_table(replace(history, decisions=left)).rows}
    assert broken_off["admitted, judged by no rung"] == "1"


def test_the_page_explains_blocks_elites_and_challengers(discovered):
    page = write_discovery(shutil.copytree(discovered, discovered.parent / "explained")).read_text()
    for said in ("A block is one draw", "the elites are the best by lower bound", "the challengers too"):
        assert said in page
