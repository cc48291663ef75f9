"""Numbers of final answers, by hand; bounds against hostile text."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.evaluation.numbers import decimal, flexible_answer, parse_number, strict_answer
from lossmith.tasks import load_completion_task

READ = {
    "18": 18,
    " 18 dollars": 18,
    "1,234": 1234,
    "1,234,567.50": "1234567.5",
    "1,00,000": 100_000,
    "12,34": 12,
    "3, 4": 3,
    "-5": -5,
    "- 5": -5,
    "−5": -5,
    "–5": -5,
    "+5": 5,
    "$-5": -5,
    "-$5": -5,
    "\\$1,000": 1000,
    "€2.50": "2.5",
    "£ 7": 7,
    "5€": 5,
    "rs . 1,200": 1200,
    "50%": 50,
    ".5": "0.5",
    "-.25": "-0.25",
    "5.": 5,
    "18. That is all": 18,
    "38.0": 38,
    "2e3": 2000,
    "2.5E-1": "0.25",
    "5eggs": 5,
    "3/4": "3/4",
    "3 / 4": "3/4",
    "-6/4 cup": "-3/2",
    "1 1/2": "3/2",
    "-1 1/2": "-3/2",
    "20 10/5": 20,
    "10:30": 10,
    "0012": 12,
}


@pytest.mark.parametrize(("text", "expected"), READ.items())
def test_a_number_at_the_start_of_a_text(text, expected):
    assert parse_number(text) == Fraction(expected)


@pytest.mark.parametrize(
    "text", ["", "five", "#5", "x=5", "$", "-", ".", "1/0", "1e401", "9" * 401, "1e999999999", ","]
)
def test_no_number(text):
    assert parse_number(text) is None


def test_numbers_are_exact():
    assert parse_number("0.1") + parse_number("0.2") == parse_number("0.3")
    assert parse_number("33.33") != parse_number("33.333")
    assert parse_number("100000000000000001") != parse_number("100000000000000000")
    assert decimal("1e400") == 10**400
    assert decimal("1" * 400) == (10**400 - 1) // 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<<2*9=18>> #### 18", 18),
        ("#### 18\n\nQuestion: more?\nAnswer: #### 7", 18),
        ("#### ?\n#### 1,250.", 1250),
        ("####18", 18),
        ("##### 18", 18),
        ("#### $-18.50 each", "-18.5"),
        ("####\n18", 18),
        ("#### \r\n**18**", 18),
        ("####\n\n18", None),
        ("#### none\n18", None),
        ("#### **18**", 18),
        ("#### **$18.50** (9 + 9.50)", "18.5"),
        ("#### *18*", 18),
        ("#### (-5)", -5),
        ("#### [1,250]", 1250),
        ("#### `18`", 18),
        ("#### \\frac{1}{2}", "1/2"),
        ("#### 1\\frac{1}{2}", "3/2"),
        ("#### 1 1/2", "3/2"),
        ("#### 18 (= 2*9)", 18),
        ("#### 18 - that is all", 18),
        ("#### 18 + tax", 18),
        ("#### 20% of 90", 20),
        ("#### 2*9=18", None),
        ("#### **2*9=18**", None),
        ("#### (2)*9=18", None),
        ("#### 24-6=18", None),
        ("#### $24 - $6 = $18", None),
        ("#### 24/6=4", None),
        ("#### 2 x 9", None),
        ("#### 2×(4+5)", None),
        ("#### 2 \\times 9 = 18", None),
        ("#### 2**3", None),
        ("#### 18 = 9*2", None),
        ("#### 1/0", None),
        ("#### eighteen", None),
        ("### 18", None),
        ("The answer is 18.", None),
        ("", None),
    ],
)
def test_the_number_after_the_hashes(text, expected):
    assert strict_answer(text) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 #### 6 and 7", 6),
        (r"first \boxed{5}, then \boxed{6}, so 7", 6),
        (r"\boxed{\$1,000} or 3", 1000),
        (r"\boxed{x} but the answer is 4 of 9", 4),
        ("The answer is 3. The answer is: 4. Of 9.", 4),
        ("answer = 16 - 3 = 13. Then 5", 13),
        ("Answer: **12** of 20", 12),
        ("We get 10-5", 5),
        ("It falls to -5", -5),
        ("between 3-5 of 1,200", 1200),
        ("he pays $1,250.75.", "1250.75"),
        ("2,3", 3),
        ("none", None),
        ("#### 2*9=18", 18),
        ("#### 24-6=18. Or 7?", 18),
        ("#### x = **18** of 20", 18),
        (r"\boxed{\frac{1}{2}} of 7", "1/2"),
        (r"\boxed{-\dfrac{3}{4}} of 7", "-3/4"),
        (r"\boxed{2\frac{1}{2}} of 7", "5/2"),
        (r"\boxed{2*9=18} of 20", 18),
        ("half is 1/2", "1/2"),
        ("that is 1 1/2", "3/2"),
        ("16/2=8", 8),
        ("#### 1/0", None),
        ("it is 5/0", None),
    ],
)
def test_the_number_in_any_usual_form(text, expected):
    assert flexible_answer(text) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "mathqa"])
def test_every_shipped_target_reads_as_its_answer(name):
    task = load_completion_task(name)
    for problem in (*task.train, *task.validation, *task.test):
        assert strict_answer(problem.target) == flexible_answer(problem.target) == Fraction(problem.answer), problem.id


HOSTILE = [
    "9",
    "1,",
    "1,00,",
    ".",
    "-",
    " ",
    "#### ",
    "\\boxed{",
    "answer is ",
    "answer is \n",
    "1/",
    "1 ",
    "$",
    "rs ",
    "####\n",
    "\\frac{",
    "\\frac{1}{",
    "#### 2*",
    "#### **",
    "=",
    "#### 1=",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_text_is_read_to_its_end(piece):
    # Quadratic readers take minutes here.
    text = piece * (60_000 // len(piece))
    for read in (parse_number, strict_answer, flexible_answer):
        assert all(found is None or isinstance(found, Fraction) for found in (read(text), read(text + "x")))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="0123456789,.-+$ #/eE%\\boxed{}answeris\n", max_size=60))
def test_any_text_can_be_read(text):
    for read in (parse_number, strict_answer, flexible_answer):
        assert read(text) is None or isinstance(read(text), Fraction)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_thousands_commas_change_nothing(number):
    assert parse_number(f"{number:,}") == parse_number(str(number)) == number
    assert flexible_answer(f"so {number:,} in all") == number
