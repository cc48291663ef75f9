"""Composition strings: a small grammar, printed canonically, never evaluated, with a caret under each mistake."""

import math
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import lossmith
from lossmith.errors import CompositionError
from lossmith.nn import Composition, Term, parse_composition
from lossmith.objectives import ObjectiveRecord, list_losses

SIZES = {"num_classes": 3, "embedding_dim": 4}
RECORDS = list_losses()
CANONICAL = {name: record.name for record in RECORDS for name in (record.name, *record.aliases)}
NUMBER = st.floats(1e-6, 1e6).flatmap(lambda x: st.sampled_from([x, float(round(x, 2)) or 1.0, float(math.ceil(x))]))


@st.composite
def _term_parts(draw: st.DrawFn) -> tuple[ObjectiveRecord, float, dict[str, Any], str | None]:
    record = draw(st.sampled_from(RECORDS))
    values = {
        name: draw(
            st.booleans()
            if isinstance(default, bool)
            else st.integers(1, 50)
            if isinstance(default, int)
            else st.floats(-1e3, 1e3)
            if isinstance(default, float)
            else st.just(default)
        )
        for name, default in {**record.hyperparameters, **record.settings}.items()
        if draw(st.booleans())
    }
    given_values = {
        name: value for name, value in values.items() if value != {**record.hyperparameters, **record.settings}[name]
    }
    scoped = record.family not in ("preference", "unpaired")
    scope = draw(st.sampled_from([None, "answer", "reasoning_2"] if scoped else [None]))
    return record, draw(NUMBER) * draw(st.sampled_from([1, -1])), given_values, scope


@given(st.lists(_term_parts(), min_size=1, max_size=5))
def test_printing_gives_the_string_that_builds_it(parts: list[tuple[Any, ...]]) -> None:
    # Made here, not in the strategy: beartype draws from `random`, which hypothesis refuses in strategies.
    composition = Composition(tuple(Term(*part) for part in parts))
    again = parse_composition(str(composition))
    assert again == composition
    assert str(again) == str(composition)


@st.composite
def _spelled(draw: st.DrawFn, depth: int = 0) -> tuple[str, list[tuple[float, str]]]:
    """A random spelling of a sum, and its terms worked out beside it: (weight, name)."""
    kind = draw(st.sampled_from(["name", "times", "over", "sign", "sum", "group"] if depth < 4 else ["name"]))
    if kind == "name":
        name = draw(st.sampled_from(["cross_entropy", "focal", "lovasz", "lovasz_softmax"]))
        return name, [(1.0, CANONICAL[name])]
    text, terms = draw(_spelled(depth + 1))
    if kind == "sum":
        other_text, other = draw(_spelled(depth + 1))
        sign = draw(st.sampled_from("+-"))
        return f"{text} {sign} ({other_text})", [*terms, *((w if sign == "+" else -w, n) for w, n in other)]
    if kind == "sign":
        return f"-({text})", [(-w, n) for w, n in terms]
    if kind == "group":
        return f"( {text})", terms
    number = draw(st.sampled_from([0.5, 2.0, 0.25, 8.0]))
    if kind == "over":
        return f"({text})/{number}", [(w / number, n) for w, n in terms]
    first = draw(st.booleans())
    return f"{number}*({text})" if first else f"({text})*{number:g}", [(w * number, n) for w, n in terms]


@given(_spelled())
def test_the_algebra_of_a_string(spelled: tuple[str, list[tuple[float, str]]]) -> None:
    text, terms = spelled
    composition = parse_composition(text)
    assert [(term.weight, term.record.name) for term in composition.terms] == terms
    assert parse_composition(str(composition)) == composition


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("focal", "focal"),
        (" lovasz ", "lovasz_softmax"),
        ("focal()", "focal"),
        ("focal(gamma=2)", "focal"),
        ("focal(gamma=1)*0.5 + cross_entropy*0.5", "0.5*focal(gamma=1.0) + 0.5*cross_entropy"),
        ("0.6*cross_entropy+0.4*lovasz[answer]", "0.6*cross_entropy + 0.4*lovasz_softmax[answer]"),
        ("-focal - -cross_entropy", "-focal + cross_entropy"),
        ("focal/4 - 2*(cross_entropy - focal/2)", "0.25*focal - 2*cross_entropy + focal"),
        ("2*-3*focal", "-6*focal"),
        ("(1/2)*focal", "0.5*focal"),
        ("+focal", "focal"),
        ("1e-3*focal", "0.001*focal"),
        ("1e300*focal", "1e+300*focal"),
        ("focal(\n  gamma=1)", "focal(gamma=1.0)"),
        ("soft_triple(margin=.2, centers_per_class=3.0)", "soft_triple(margin=0.2, centers_per_class=3)"),
        ("soft_triple(normalize=False)", "soft_triple(normalize=False)"),
        ("lovasz_softmax(classes='present')", "lovasz_softmax"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_composition(text)) == canonical
    assert str(lossmith.loss(text, **(SIZES if "soft_triple" in text else {}))) == canonical


def _message(text: str) -> str:
    with pytest.raises(CompositionError) as caught:
        parse_composition(text)
    return str(caught.value)


ONLY = "Only + - * / ( ), numbers, loss names and name(key=value) can stand here:"
TERM = "A term is a number times a loss, this product has"


@pytest.mark.parametrize(
    ("text", "first_line", "caret_under"),
    [
        ("0.5*focall + cross_entropy", "No objective named 'focall'. Did you mean 'focal'?", "focall"),
        ("cross_entropy + zzz", "No objective named 'zzz'.", "zzz"),
        ("cross_entropy + focal(gama=1)", "'focal' has no hyper-parameter `gama`. Did you mean 'gamma'?", "gama=1"),
        ("focal(gamma='high')", "`gamma` must be of type float, got 'high'.", "gamma="),
        ("focal(gamma=True)", "`gamma` must be of type float, got True.", "gamma="),
        ("focal(gamma=1e999)", "`gamma` must be a finite number, got inf.", "gamma="),
        ("focal(gamma=1, gamma=2)", "`gamma` is given twice:", "gamma=2"),
        ("focal(2)", "Hyper-parameters are written as name=value:", "2)"),
        ("focal(gamma=x)", "A hyper-parameter must be a number, True, False or 'text':", "x)"),
        ("focal(gamma=[1])", "A hyper-parameter must be a number, True, False or 'text':", "[1]"),
        ("focal(**{'gamma': 1})", "A hyper-parameter must be a number, True, False or 'text':", "{"),
        ("focal + 2*3", f"{TERM} no loss:", "2*3"),
        ("cross_entropy + focal*focal", f"{TERM} no number:", "focal*focal"),
        ("True*focal", f"{TERM} no number:", "True"),
        ("focal + 3", "A term needs a loss, this is only a number:", "3"),
        ("focal/0", "A loss can only be divided by a number other than 0:", "0"),
        ("1/focal", "A loss can only be divided by a number other than 0:", "focal"),
        ("focal + 0*cross_entropy", "A weight must be a finite number other than 0, this is 0.0:", "cross_entropy"),
        ("1e999*focal", "A weight must be a finite number other than 0, this is inf:", "focal"),
        ("focal[0]", "A label scope is a plain name, as in focal[answer]:", "0]"),
        ("(focal + focal)[answer]", "A loss is named by a plain word:", "focal + focal"),
        ("focal.__class__", ONLY, "focal.__class__"),
        ("focal.__class__()", "A loss is named by a plain word:", "focal.__class__"),
        ("0.5*(lambda: focal)", ONLY, "lambda"),
        ("focal + f'{focal}'", ONLY, "f'"),
        ("focal + [focal for x in y]", ONLY, "[focal"),
        ("focal if focal else focal", ONLY, "focal if"),
        ("focal**2", ONLY, "focal**2"),
        ("not focal", ONLY, "not"),
        ("focal + föcal", "A composition is plain ASCII, got 'ö':", "öcal"),
        ("focal\t", "", ""),
        ("focal +\tfocal", r"A composition is plain ASCII, got '\t':", "\t"),
        ("focal # 0.5", "A composition has no comments:", "#"),
        ("focal focal", "This composition cannot be read:", "focal focal"),
        ("focal;focal", "This composition cannot be read:", ";"),
        ("focal)", "This composition cannot be read:", ")"),
        ("x := focal", "This composition cannot be read:", ""),
        ("(yield focal)", ONLY, "yield"),
        ("await focal", ONLY, "await"),
    ],
)
def test_each_mistake_has_its_caret(text: str, first_line: str, caret_under: str) -> None:
    if not first_line:
        assert str(parse_composition(text)) == "focal", "white space around a composition does not count"
        return
    lines = _message(text).split("\n")
    assert lines[0] == first_line
    assert lines[1] == f"  {text}"
    assert lines[2].strip() == "^"
    if caret_under == "focal focal":
        caret_under = text[6:]
        assert lines[2].index("^") == 2 + 6
    if caret_under:
        assert lines[1][lines[2].index("^") :].startswith(caret_under)


@pytest.mark.parametrize("text", ["0.6*", "focal +", "0.6*cross_entropy + 0.4*"])
def test_an_early_end_is_marked(text: str) -> None:
    lines = _message(text).split("\n")
    assert lines[0] == "This composition cannot be read:"
    assert lines[2].index("^") - 2 in (len(text) - 1, len(text))


def test_the_list_of_known_names_comes_after_the_caret() -> None:
    lines = _message("0.5*cross_entropy + 0.5*qqqq").split("\n")
    assert lines[2].endswith("^")
    assert lines[3].startswith("Known: ")
    assert "cross_entropy" in "".join(lines[3:])
    assert all(len(line) <= 100 for line in lines)


def test_a_long_string_is_cut_around_the_caret() -> None:
    text = " + ".join(["0.001*cross_entropy"] * 60) + " + focall + " + " + ".join(["focal"] * 20)
    lines = _message(text).split("\n")
    assert lines[1].startswith("  ...")
    assert lines[1].endswith("...")
    assert lines[1][lines[2].index("^") :].startswith("focall + focal")
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A composition must name at least one loss, got an empty string."),
        ("  \n ", "A composition must name at least one loss, got an empty string."),
        ("focal+" * 1666 + "focal", "A composition must be at most 2000 characters long, got 10001."),
        ("x" * 10_000, "A composition must be at most 2000 characters long, got 10000."),
        ("-" * 1900 + "focal", "This composition is nested too deeply to be read."),
    ],
)
def test_strings_that_are_too_much_or_too_little(text: str, message: str) -> None:
    assert _message(text) == message


@pytest.mark.parametrize("text", ["(" * 500, "(" * 500 + "focal" + ")" * 500, "2*(" * 300 + "focal", "[" * 1999])
def test_deep_nesting_is_an_error_like_any_other(text: str) -> None:
    assert _message(text).startswith(("This composition cannot be read:", "This composition is nested too deeply"))


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@example("1" * 400 + "*focal")
@example("focal(gamma=" + "1" * 400 + ")")
@example("focal\x00")
@example("\\")
@example("focal(gamma='")
@example("2*" * 900 + "focal")
@example("focal[" * 300)
@example("focal(gamma=--1)")
@example("focal(gamma=1+2j)")
def test_any_text_is_read_or_refused_with_a_composition_error(text: str) -> None:
    try:
        composition = parse_composition(text)
    except CompositionError:
        return
    assert composition.terms


WORDS = [
    "focal",
    "cross_entropy",
    "0.5",
    "2",
    "1e9",
    "+",
    "-",
    "*",
    "/",
    "(",
    ")",
    "[",
    "]",
    "=",
    ",",
    "gamma",
    ".",
    "x",
]


@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_any_arrangement_of_the_right_words_is_read_or_refused(words: list[str]) -> None:
    try:
        composition = parse_composition(" ".join(words))
    except CompositionError:
        return
    assert str(parse_composition(str(composition))) == str(composition)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {path}')",
        "__import__('os')",
        "focal(gamma=__import__('pathlib').Path('{path}').touch())",
        "focal(gamma=open('{path}', 'w'))",
        "focal[open('{path}', 'w')]",
        "[open('{path}', 'w') for _ in 'x']",
        "(lambda: open('{path}', 'w'))()",
        'f\'{{open("{path}", "w")}}\'',
        'focal(gamma=f\'{{open("{path}", "w")}}\')',
        "open('{path}', 'w')*focal",
        "exec(\"open('{path}', 'w')\")",
        "focal.__init__.__globals__",
        "(x := open('{path}', 'w'))",
    ],
)
def test_nothing_is_ever_evaluated(text: str, tmp_path) -> None:
    path = tmp_path / "proof"
    before = set(sys.modules)
    with pytest.raises(CompositionError):
        lossmith.loss(text.format(path=path))
    assert not path.exists()
    assert set(sys.modules) == before
