"""Fields go into templates literally; numbers and options of data sets are read for what they say."""

from fractions import Fraction

import pytest

from lossmith.errors import ConfigurationError
from lossmith.tasks._fields import listed
from lossmith.tasks._numbers import read_number, write_number
from lossmith.tasks.mathqa import option_number, split_options
from lossmith.tasks.svamp import solve
from lossmith.tasks.templates import fill, options_block, placeholders, without_frame


@pytest.mark.parametrize(
    "text",
    ["{question}", "{answer} {question}", "{0.__class__}", "{question.__class__}", "{{x}}", "}{", "%s \\1 \\g<0> $x"],
)
def test_a_field_is_text_whatever_it_holds(text):
    assert fill("Question: {question}\nAnswer: ", {"question": text, "answer": "no"}) == f"Question: {text}\nAnswer: "
    assert fill("{question}{answer}", {"question": text, "answer": "{question}"}) == text + "{question}"


@pytest.mark.parametrize(
    "text",
    [
        "{{question}}",
        "{question}}",
        "{{question}",
        "{{",
        "}}",
        "{}",
        "{0}",
        "{0.__class__}",
        "{ question }",
        "\\frac{1}{2}",
    ],
)
def test_what_is_no_place_stays(text):
    assert fill(text, {"question": "no", "0": "no"}) == text
    assert placeholders(text) == ()


def test_names_with_blanks_and_other_letters_are_places():
    assert fill("{Question Text}/{größe}", {"Question Text": "a", "größe": "b"}) == "a/b"


@pytest.mark.parametrize("place", ["questoin", "question.__class__", "question!r", "question:>10", "question[0]"])
def test_a_place_without_a_field_is_named(place):
    with pytest.raises(ConfigurationError) as caught:
        fill(f"Q: {{{place}}}", {"question": "x", "answer": "y"})
    message = str(caught.value)
    assert f"has a place {{{place}}} for which there is no field." in message
    assert message.endswith("Fields: question, answer.")
    if place == "questoin":
        assert "Did you mean 'question'?" in message


def test_options_get_their_letters_in_order():
    assert options_block(["x", "B. y", "{z}"]) == "A. x\nB. B. y\nC. {z}"


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Question: a\nb\nAnswer: ", "a\nb"),
        ("Question: a\nContext: Answer: no\nAnswer:", "a\nContext: Answer: no"),
        ("translate: x =>", "translate: x =>"),
    ],
)
def test_the_frame_of_a_prompt_is_taken_off(prompt, question):
    assert without_frame(prompt) == question


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", Fraction(72)),
        (" -1,234,567.50 ", Fraction(-246913500, 200)),
        ("$7", Fraction(7)),
        ("5.", Fraction(5)),
        (".05", Fraction(1, 20)),
        ("1,00", None),
        ("12,34,567", None),
        ("1/2", None),
        ("1e3", None),
        ("", None),
        ("nan", None),
        ("٣", None),
    ],
)
def test_numbers_are_read_exactly(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (Fraction(0), "0"),
        (Fraction(-1200), "-1200"),
        (Fraction(1, 20), "0.05"),
        (Fraction(-2469, 2), "-1234.5"),
        (Fraction(10**20 + 1, 4), "25000000000000000000.25"),
        (Fraction(1, 625), "0.0016"),
        (Fraction(11, 3), "11/3"),
    ],
)
def test_numbers_are_written_plainly(number, written):
    assert write_number(number) == written


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these",
            ("38", "27.675", "30", "data inadequate", "none of these"),
        ),
        ("a)1,000,b)20,000,c)3,d)4,e)5", ("1,000", "20,000", "3", "4", "5")),
        (
            "a ) rs . 24,000 , 5 % , b ) ( a ) and ( c ) , c ) d ) 57 , d ) 2 , 3 , e ) a , b",
            ("rs . 24,000 , 5 %", "( a ) and ( c )", "d ) 57", "2 , 3", "a , b"),
        ),
        (
            "['a ) $ 8,000', 'b ) $ 10,000', \"c ) john ' s\", 'd ) 15,000', 'e ) 18,000']",
            ("$ 8,000", "$ 10,000", "john ' s", "15,000", "18,000"),
        ),
        ("a ) 7 , c ) 8 , b ) 1 , c ) 2 , d ) 3 , e ) 4", ("7 , c ) 8", "1", "2", "3", "4")),
        (" a ) x , b ) , c ) y , d ) z , e ) w ", ("x", "", "y", "z", "w")),
    ],
)
def test_mathqa_options_are_split_at_their_letters(options, expected):
    assert split_options(options) == expected


@pytest.mark.parametrize(
    "options", ["", "38 , 27", "a ) 1 , b ) 2 , c ) 3 , d ) 4", "b ) 1 , a ) 2 , c ) 3 , d ) 4 , e ) 5"]
)
def test_options_without_their_letters_are_refused(options):
    with pytest.raises(ValueError, match="no option"):
        split_options(options)


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("38", "38"), ("27.675 %", "27.675"), ("rs . 1,500", "1500"), ("rs . .50", "0.5"), ("$ 30,000", "30000"),
        ("- 25", "-25"), ("− 7", "-7"), ("– 16 %", "-16"), ("$ - 5.4", "-5.4"), ("+ 20 %", "20"), ("e ) 30", "30"),
        ("104 cm 2", "104"), ("9 m ^ 3", "9"), ("60 km / hr", "60"), ("x = 9", "9"), (". 09", "0.09"), ("649 .", "649"),
        ("45 m east", "45"), ("105 °", "105"), ("increase by 5 %", "5"), ("s : 1300", "1300"),
    ],
)  # fmt: skip
def test_an_option_with_one_number_is_that_number(option, number):
    assert option_number(option) == Fraction(number)


@pytest.mark.parametrize(
    "option",
    [
        "1 / 16", "3 : 4", "2,4", "30 , 5", "994,1006", "52 π", "4 pi", "625 √ 3", "10 ^ 20", "3 1 / 5", "w − 4", "2 x",
        "1 hr 10 min", "1 billion km", "none of these", "", "sqrt ( 5 / pi )", "9 ½ days", "14 years and 30 years",
    ],
)  # fmt: skip
def test_an_option_that_is_more_or_less_than_one_number_is_none(option):
    assert option_number(option) is None


@pytest.mark.parametrize(
    ("equation", "steps", "result"),
    [
        ("( ( 692.0 + 692.0 ) - 458.0 )", ["692+692=1384", "1384-458=926"], 926),
        ("( 12.0 - ( 3.0 * 2.0 ) )", ["3*2=6", "12-6=6"], 6),
        ("( 3.0 - 13.0 ) + 0.5", ["3-13=-10", "-10+0.5=-9.5"], Fraction(-19, 2)),
        ("( 13.0 - ( 3.0 - 13.0 ) )", ["3-13=-10", "13-(-10)=23"], 23),
        ("( 60.0 * ( 55.0 / 15.0 ) )", ["55/15=11/3", "60*(11/3)=220"], 220),
        ("( 1 + 2 ) * ( 3 + 4 )", ["1+2=3", "3+4=7", "3*7=21"], 21),
        ("- 4.0 + 5", ["-4+5=1"], 1),
        ("8.0", [], 8),
    ],
)
def test_an_equation_is_worked_out_step_by_step(equation, steps, result):
    assert solve(equation) == (steps, result)


@pytest.mark.parametrize(
    ("equation", "error"),
    [
        ("__import__('os')", ValueError), ("2 ** 9", ValueError), ("x + 1", ValueError), ("True + 1", ValueError),
        ("'a' * 3", ValueError), ("1 // 2", ValueError), ("( 1 + 2", SyntaxError), ("1 / 0", ZeroDivisionError),
    ],
)  # fmt: skip
def test_an_equation_is_never_run(equation, error):
    with pytest.raises(error):
        solve(equation)


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['it''s', \"b\"]", ["its", "b"]),
        ("{'text': ['a'], 'label': ['A']}", {"text": ["a"], "label": ["A"]}),
        ("[open", "[open"),
        ("[print(1)]", "[print(1)]"),
        ("plain", "plain"),
        (["a"], ["a"]),
    ],
)
def test_lists_written_in_a_cell_are_read_and_never_run(cell, read):
    assert listed(cell) == read
