"""`judge`, `majority`, `notice` and `pass_rate`: by hand, at the edges, and their errors."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.errors import ConfigurationError, DataError
from lossmith.evaluation import CHOICE_OUTCOMES, MATH_OUTCOMES, judge, majority, notice, pass_rate
from lossmith.evaluation.choices import chosen_letter
from lossmith.tasks.completion import Problem, letters

SUM = Problem(
    id="s1",
    prompt="Question: 48, half, all?\nAnswer: ",
    question="48, half, all?",
    target="<<48/2=24>> <<48+24=72>> #### 72",
    answer="72",
)
PROGRAM = Problem(
    id="p1", prompt="Q\nAnswer: ", question="Q", target="<<add(n0,n1)>> <<divide(#0,const_2)>> #### 38.0", answer="38"
)
CHOICE = Problem(
    id="c1",
    prompt="Question: Sky?\nA. a dog\nB. blue paint\nC. Blue paint!\nD. I\nAnswer: ",
    question="Sky?",
    target="B",
    answer="B",
    options=letters(4),
    label=1,
)
WORD = Problem(id="t1", prompt="Capital? ", question="Capital?", target="New York", answer="New York")


def test_math_by_hand():
    texts = [SUM.target, "<<48+24=72>> The answer is 72.", "<<48*2=96>> #### 1,096 <<1+1=2>>", "nothing"]
    found = judge("math", [SUM] * 4, texts, stopped=[True, True, False, True])
    assert found.scores["exact_match"] == [1.0, 0.0, 0.0, 0.0]
    assert found.scores["flexible_match"] == [1.0, 1.0, 0.0, 0.0]
    assert found.scores["answered"] == [1.0, 0.0, 1.0, 0.0]
    assert found.scores["stopped"] == [1.0, 1.0, 0.0, 1.0]
    assert found.scores["recall"] == [1.0, 0.5, 0.0, 0.0]
    assert found.scores["released_missing_steps"] == [0.0, 0.5, 1.0, 1.0]
    assert found.outcomes == ["correct", "unparsed", "wrong_operators", "unparsed"]
    assert found.answers == ["72", None, "1096", None]
    assert found.released_raises == 1
    assert found.metrics["stopped"] == 0.75
    assert found.metrics == {name: sum(scores) / 4 for name, scores in found.scores.items()}
    assert len(found.scores) == 4 + 12 + 12


def test_numbers_are_compared_by_value():
    for text in ("#### $72.00", "#### 72.", "#### 72 clips\nQuestion: #### 1", "####72", "#### 144/2", "####  +72"):
        assert judge("math", [SUM], [text], stopped=[True]).metrics["exact_match"] == 1.0, text
    for text in ("#### 72.01", "#### -72", "#### 7,2", "72", "#### seventy-two"):
        assert judge("math", [SUM], [text], stopped=[True]).metrics["exact_match"] == 0.0, text


def test_programs_have_no_wrong_results():
    found = judge("math", [PROGRAM], ["<<add(n1,n0)>> <<divide(#0,const_2)>> #### 38"], stopped=[True])
    assert "wrong_results" not in found.metrics
    assert (found.metrics["exact_match"], found.metrics["released_exact_match"]) == (1.0, 1.0)
    assert (found.metrics["iou"], found.metrics["real_iou"]) == (pytest.approx(1 / 3), 1.0)
    assert found.outcomes == ["correct"]
    assert "wrong_results" not in judge("math", [SUM, PROGRAM], ["", ""], stopped=[True, True]).scores


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\nQuestion: next", "B"),
        ("B.", "B"),
        ("B. blue", "B"),
        ("(B)", "B"),
        ("(b) because", "B"),
        ("b", "B"),
        ("**B**", "B"),
        ('"C"', "C"),
        ("B because it is", "B"),
        ("B, as it is", "B"),
        ("Answer: C", "C"),
        ("The answer is (C).", "C"),
        ("The correct answer is C. Not B.", "C"),
        ("answer is: option D", "D"),
        ("I choose option C", "C"),
        ("The answer is C. No, the answer is B.", "C"),
        ("I think so. Answer: B", "B"),
        ("a dog", "A"),
        ("A dog.", "A"),
        ("A", "A"),
        ("A.", "A"),
        ("I", "D"),
        ("blue paint", "B"),
        ("  BLUE  paint.\nmore", "B"),
        ("Blue paint!", "C"),
        ("A cat sat", None),
        ("I do not know", None),
        ("E", None),
        ("Blue", None),
        ("Because", None),
        ("b.c.", None),
        ("D'accord", None),
        ("The answer is a cat", None),
        ("The answer is Blue", None),
        ("", None),
        ("42", None),
    ],
)
def test_letters(text, letter):
    assert chosen_letter(text, CHOICE) == letter


def test_options_of_one_text_cannot_be_told_apart():
    twice = Problem(
        id="2", prompt="Q\nA. red\nB. Red.\nAnswer: ", question="Q", target="A", answer="A", options=letters(2), label=0
    )
    assert [chosen_letter(text, twice) for text in ("red", "B. red")] == [None, "B"]


def test_choice_by_hand():
    texts = ["B", "The answer is B.", "D", "no idea"]
    found = judge("choice", [CHOICE] * 4, texts, stopped=[True] * 4)
    assert found.scores["accuracy"] == [1.0, 1.0, 0.0, 0.0]
    assert found.scores["released_accuracy"] == [1.0, 0.0, 0.0, 0.0]
    assert found.outcomes == ["correct", "correct", "wrong", "unparsed"]
    assert found.answers == ["B", "B", "D", None]
    assert set(found.scores) == {"accuracy", "released_accuracy", "answered", "stopped"}
    assert set(found.outcomes) == set(CHOICE_OUTCOMES)


def test_text_by_hand():
    found = judge("text", [WORD] * 3, ["  new\n york ", "York", " \n"], stopped=[True, False, True])
    assert found.scores["exact_match"] == [1.0, 0.0, 0.0]
    assert found.outcomes == ["correct", "wrong", "unparsed"]
    assert found.answers == ["new york", "York", None]


@pytest.mark.parametrize(
    ("kind", "problem", "texts", "sentence"),
    [
        (
            "math",
            SUM,
            ["72"] * 3,
            "None of the 3 answers holds a number after ####: exact match is 0 because nothing could be read, not "
            "because answers were wrong.",
        ),
        (
            "choice",
            CHOICE,
            ["?", "B", "?"],
            "Only 1 of 3 answers holds a letter of an option: accuracy counts the other 2 as wrong.",
        ),
        (
            "text",
            WORD,
            ["", " "],
            "None of the 2 answers holds any text: exact match is 0 because nothing could be read, not because "
            "answers were wrong.",
        ),
        ("math", SUM, ["#### 1", ""], None),
        ("math", SUM, [SUM.target], None),
    ],
)
def test_a_model_that_writes_nothing_readable_is_said_so(kind, problem, texts, sentence):
    found = judge(kind, [problem] * len(texts), texts, stopped=[True] * len(texts))
    assert notice(found, kind) == sentence


def test_majority_of_numbers():
    samples = [
        ["#### 5", "so #### 7", "#### 7.0"],
        ["#### 5", "#### 7"],
        ["nothing", "nothing else", "#### 9"],
        ["it is 4", "answer is 6", "so 6."],
        ["no", "none"],
        ["so 3", "so 3", "#### 8"],
    ]
    assert majority("math", [SUM] * 6, samples) == ["so #### 7", "#### 5", "#### 9", "answer is 6", "no", "#### 8"]


def test_majority_of_letters_and_texts():
    assert majority("choice", [CHOICE], [["A", "?", "The answer is B", "(b)"]]) == ["The answer is B"]
    assert majority("text", [WORD], [["York", "", "", "new york", "New  York"]]) == ["new york"]


def test_pass_rate_by_hand():
    # Wilson: centre (k + z^2/2) / (n + z^2), half width z sqrt(k (n - k) / n + z^2/4) / (n + z^2).
    z, k, n = 1.959963984540054, 37, 150
    centre, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    assert pass_rate([1.0] * k + [0.0] * (n - k)) == pytest.approx((k / n, centre - half, centre + half), rel=1e-9)
    share, low, high = pass_rate([0.0] * 20)
    assert (share, low) == (0.0, 0.0)
    assert high == pytest.approx(z * z / (20 + z * z))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: judge("maths", [SUM], [""], stopped=[True]), ConfigurationError, "`kind` must be one of"),
        (lambda: judge("math", [], [], stopped=[]), DataError, "`problems` must hold at least one problem, got none."),
        (
            lambda: judge("math", [SUM], ["", ""], stopped=[True]),
            DataError,
            "`texts` must have one entry for each of the 1 problems, got 2.",
        ),
        (
            lambda: judge("text", [WORD], [""], stopped=[]),
            DataError,
            "`stopped` must have one entry for each of the 1 problems, got 0.",
        ),
        (
            lambda: judge("math", [WORD], [""], stopped=[True]),
            DataError,
            "Row 't1': the answer of a math problem must be a number, got 'New York'.",
        ),
        (lambda: majority("maths", [SUM], [[""]]), ConfigurationError, "got 'maths'"),
        (lambda: majority("math", [SUM], []), DataError, "`samples` must have one entry for each of the 1 problems"),
        (lambda: majority("math", [SUM], [[]]), DataError, "at least one text for each problem, got none for 's1'."),
        (lambda: pass_rate([]), DataError, "`scores` must hold at least one score, got none."),
        (lambda: pass_rate([1.0, 0.5]), DataError, "`scores` must be 0 or 1 for a pass rate, got 0.5."),
    ],
)
def test_bad_input(call, error, sentence):
    with pytest.raises(error) as raised:
        call()
    assert sentence in str(raised.value)


TEXTS = st.text(alphabet="<>#0123456789+-*/=(),.aABnswerio \n%", max_size=80)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_any_text_can_be_judged(text):
    for kind, problem, classes in (
        ("math", SUM, MATH_OUTCOMES),
        ("math", PROGRAM, MATH_OUTCOMES),
        ("choice", CHOICE, CHOICE_OUTCOMES),
        ("text", WORD, CHOICE_OUTCOMES),
    ):
        found = judge(kind, [problem], [text], stopped=[False])
        assert found.outcomes[0] in classes
        assert (found.outcomes[0] == "unparsed") == (found.answers[0] is None) == (found.scores["answered"] == [0.0])
        right = found.metrics["accuracy" if kind == "choice" else "exact_match"] == 1.0
        assert found.outcomes[0].startswith("correct") == right
        assert majority(kind, [problem], [[text, text]]) == [text]
