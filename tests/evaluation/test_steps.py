"""Step metrics counted by hand, laws of them on random answers."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.evaluation.outcomes import MATH_OUTCOMES, math_outcome
from lossmith.evaluation.steps import find_steps, parse_step, step_metrics

TARGET = "<<48/2=24>> <<48+24=72>> <<72-10-5=57>>"


def metrics(predicted, target=TARGET):
    return step_metrics(find_steps(predicted), find_steps(target))


PERFECT = dict.fromkeys(("iou", "overlap", "dice", "recall", "precision", "real_iou"), 1.0) | dict.fromkeys(
    ("wrong_operators", "inverted_operands", "missing_steps", "extra_steps", "repetitions", "wrong_results"), 0.0
)


@pytest.mark.parametrize("text", [TARGET, "", "<<2+2=4>> <<2+2=4>> <<3+3=6>>", "<<1+1=2>>"])
def test_identity_is_perfect(text):
    assert metrics(text, text) == PERFECT


def test_spelling_changes_nothing():
    assert metrics("<<$48 / 2 = 24.0>> <<48+24=$72>> <<72 − 10 - 5 = 57>>") == PERFECT


def test_a_mixed_answer_by_hand():
    # One equal step, one commuted, one with a wrong operator, one of nothing known with a wrong result.
    found = metrics("<<48/2=24>> <<24+48=72>> <<72+10-5=77>> <<9*9=80>>")
    assert found == pytest.approx(
        {
            "iou": 1 / 6,
            "overlap": 1 / 3,
            "dice": 2 / 7,
            "recall": 1 / 3,
            "precision": 1 / 4,
            "real_iou": 2 / 5,
            "wrong_operators": 1 / 2,
            "inverted_operands": 0.0,
            "missing_steps": 2 / 3,
            "extra_steps": 1.0,
            "repetitions": 0.0,
            "wrong_results": 1 / 4,
        }
    )


@pytest.mark.parametrize(
    ("step", "operators", "inverted"),
    [
        ("48*2=96", 1.0, 0.0),
        ("48-2=46", 1.0, 0.0),
        ("2/48=0.04", 0.0, 1.0),
        ("48/2=23", 0.0, 0.0),
        ("47/2=23.5", 0.0, 0.0),
        ("72-(10-5)=67", 1.0, 0.0),
        ("10-72-5=-67", 0.0, 1.0),
        ("5-10-72=-77", 0.0, 1.0),
        ("no step", 0.0, 0.0),
    ],
)
def test_kinds_of_wrong_steps(step, operators, inverted):
    found = metrics(f"<<{step}>>")
    assert (found["wrong_operators"], found["inverted_operands"]) == (operators, inverted)


def test_inverted_operands_are_counted_with_their_repetitions():
    assert metrics("<<72-72-10=-10>>", "<<72-10-10=52>>")["inverted_operands"] == 0.0
    assert metrics("<<10-72-10=-72>>", "<<72-10-10=52>>")["inverted_operands"] == 1.0


def test_a_negative_result_has_no_operator():
    # Read flat, `24-30=-6` has two minus signs, and `24+30=54` would then differ from it in more than its operator.
    found = metrics("<<24+30=54>>", "<<24-30=-6>>")
    assert (found["wrong_operators"], found["inverted_operands"]) == (1.0, 0.0)
    assert metrics("<<30-24=6>>", "<<24-30=-6>>")["inverted_operands"] == 1.0


def test_a_result_is_part_of_a_step():
    found = metrics("<<48/2=25>>", "<<48/2=24>>")
    assert (found["iou"], found["real_iou"], found["wrong_results"]) == (0.0, 0.0, 1.0)


def test_one_meaning_is_matched_once():
    assert metrics("<<2*3=6>> <<3*2=6>>", "<<2*3=6>>")["real_iou"] == 0.5
    assert metrics("<<2*3=6>> <<3*2=6>>", "<<3*2=6>> <<2*3=6>>")["real_iou"] == 1.0


def test_repetitions_beyond_the_targets():
    assert metrics("<<1+1=2>> <<1+1=2>> <<1+1=2>> <<2+2=4>>", "<<1+1=2>> <<2+2=4>>")["repetitions"] == 0.5
    assert metrics("<<1+1=2>> <<1+1=2>> <<1+1=2>> <<2+2=4>>", "<<1+1=2>> <<1+1=2>>")["repetitions"] == 0.25


def test_one_side_empty():
    nothing, too_much = metrics(""), metrics("<<1+1=2>> <<2+2=5>>", "")
    assert [nothing[name] for name in ("iou", "overlap", "dice", "recall", "precision", "real_iou")] == [0.0] * 6
    assert (nothing["missing_steps"], nothing["extra_steps"], nothing["wrong_results"]) == (1.0, 0.0, 0.0)
    assert (too_much["iou"], too_much["real_iou"], too_much["missing_steps"]) == (0.0, 0.0, 0.0)
    assert (too_much["extra_steps"], too_much["wrong_results"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("10/3=3.33", True),
        ("10/3=3.3", True),
        ("10/3=3.34", False),
        ("10/3=3", False),
        ("2/3=0.67", True),
        ("2/3=$0.67", True),
        ("2/3=0.66", False),
        ("0.2*50=10", True),
        ("20%*50=10", True),
        ("1,000*3=3000", True),
        ("2+2=4=4", True),
        ("2+2=4=5", False),
        ("2*6=3*4", True),
        ("5-10=-5", True),
        ("5-10=5", False),
        ("5/0=0", False),
        ("2+=2", False),
        ("2+2", True),
    ],
)
def test_results(text, holds):
    assert parse_step(text).holds is holds


def test_programs_state_no_results():
    target = "<<add(n0,n1)>> <<divide(#0,const_2)>>"
    found = metrics("<<add(n1,n0)>> <<divide(const_2,#0)>>", target)
    assert "wrong_results" not in found
    assert (found["iou"], found["real_iou"], found["inverted_operands"]) == (0.0, pytest.approx(1 / 3), 1.0)
    assert metrics("<<add(n0,n1)>> <<multiply(#0,const_2)>>", target)["wrong_operators"] == 1.0


STEPS = st.sampled_from(
    [
        "2*3=6",
        "3*2=6",
        "2+3=5",
        "6/2=3",
        "2/6=0.33",
        "6-2=4",
        "2-6=-4",
        "6-2=5",
        "6 - 2 = 4",
        "?",
        "add(n0,n1)",
        "2+3-1=4",
    ]
)
ANSWERS = st.lists(STEPS, max_size=5).map(lambda steps: " ".join(f"<<{step}>>" for step in steps))


@settings(max_examples=100, deadline=None)
@given(ANSWERS, ANSWERS)
def test_laws(predicted, target):
    found, turned = metrics(predicted, target), metrics(target, predicted)
    for name in ("iou", "overlap", "dice", "real_iou"):
        assert found[name] == turned[name], name
    assert found["recall"] == turned["precision"]
    assert all(0.0 <= score <= 1.0 for name, score in found.items() if name != "extra_steps")
    assert found["iou"] <= found["real_iou"]
    assert found["wrong_operators"] + found["inverted_operands"] <= 1.0
    assert metrics(predicted, predicted)["iou"] == metrics(predicted, predicted)["real_iou"] == 1.0
    for number, right in ((None, 1), (1, 1), (2, 1)):
        answer = None if number is None else Fraction(number)
        outcome = math_outcome(answer, Fraction(right), find_steps(predicted), find_steps(target))
        assert outcome in MATH_OUTCOMES
        assert outcome.startswith("correct") == (number == right)


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="<>0123456789+-*/=(),.ax# %^", max_size=60))
def test_any_text_has_steps(text):
    found = step_metrics(find_steps(text), find_steps("<<" + text + ">>"))
    assert all(0 <= value <= 1 for name, value in found.items() if name != "extra_steps")
    assert found["extra_steps"] >= 0


@pytest.mark.parametrize(
    ("answer", "steps", "outcome"),
    [
        (None, TARGET, "unparsed"),
        (57, TARGET, "correct"),
        (57, "<<48+24=72>> <<48/2=24>> <<72-5-10=57>>", "correct"),
        (57, "<<48*1.5=72>> <<72-15=57>>", "correct_other_steps"),
        (57, "", "correct_other_steps"),
        (56, TARGET, "wrong_final_answer"),
        (56, TARGET + " <<57-1=56>>", "extra_steps"),
        (72, "<<48/2=24>> <<48+24=72>>", "missing_steps"),
        (0, "", "missing_steps"),
        (56, "<<48/2=23>> <<48+23=71>> <<71-10-5=56>>", "wrong_result"),
        (81, "<<48*2=96>> <<48+96=144>> <<144-10-5=129>>", "wrong_operators"),
        (33, "<<2/48=0.04>> <<48+0.04=48.04>> <<48.04-10-5=33.04>>", "inverted_operands"),
        (46, "<<48/3=16>> <<48+16=64>> <<64-10-5=49>>", "wrong_operands"),
        (9, "<<3*3=9>>", "missing_steps"),
        (9, "<<3*3=9>> <<1*9=9>> <<9*1=9>>", "wrong_operands"),
        (9, "<<3*3=9>> <<1*9=9>> <<9*1=9>> <<9*1*1=9>>", "extra_steps"),
    ],
)
def test_outcomes(answer, steps, outcome):
    number = None if answer is None else Fraction(answer)
    assert math_outcome(number, Fraction(57), find_steps(steps), find_steps(TARGET)) == outcome


def test_a_target_without_steps_asks_for_none():
    some = find_steps("<<2+2=4>>")
    assert math_outcome(Fraction(4), Fraction(4), some, []) == "correct"
    assert math_outcome(Fraction(5), Fraction(4), some, []) == "wrong_final_answer"
