"""The released metrics against what the released functions returned for pairs made for this file."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.evaluation.released import _written_formulas, released_choice, released_math

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "released_metrics.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["math"], ids=lambda case: f"{case['predicted'][:30]}|{case['target'][:30]}")
def test_math(case):
    score = released_math(case["predicted"], case["target"])
    if isinstance(case["released"], str):  # the name of the exception
        assert score.raises
    else:
        assert not score.raises
        assert score.metrics == case["released"]


@pytest.mark.parametrize("case", GOLDEN["choice"], ids=lambda case: f"{case['prompt'][:20]}|{case['answer']}")
def test_choice(case):
    assert released_choice(case["prompt"] + case["answer"], case["prompt"] + case["right"]) == case["released"]


def test_the_file_holds_every_defect():
    cases = {(case["predicted"], case["target"]): case["released"] for case in GOLDEN["math"]}
    assert cases["#### 1250", "#### 1,250"] == "ValueError"
    assert cases["<<24-30=-6>> #### 6", "<<24-30=-6>> #### -6"]["exact_match"] == 0.0
    both = cases["<<3*3=9>> <<3*3=10>> #### 9", "<<3+3=6>> <<3-3=0>> #### 6"]
    assert both["wrong_operators"] == both["inverted_operands"] == 1.0


def test_a_step_that_stops_the_released_code_resembles_none():
    score = released_math("<<1,250*2=2500>> #### 2500", "<<1250*2=2500>> #### 2500")
    assert score.raises
    assert score.metrics["exact_match"] == 1.0
    assert (score.metrics["wrong_operators"], score.metrics["real_iou"]) == (0.0, 0.0)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="<>1\n", max_size=30))
def test_formulas_are_those_of_the_released_pattern(text):
    assert _written_formulas(text) == re.findall(r"<<([^>]+)>>", text)


@pytest.mark.parametrize("piece", ["<<", "<<1", "<<1>", "<", "<<>", ">>"])
def test_long_text_is_read_to_its_end(piece):
    # A quadratic reader takes minutes here.
    assert released_math(piece * 30_000, piece * 30_000 + ">x") is not None
