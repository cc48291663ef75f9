"""The numbers of docs/metrics.md are what the code computes."""

import re
from pathlib import Path

import pytest

from lossmith.evaluation import judge
from lossmith.evaluation.outcomes import CHOICE_OUTCOMES, MATH_OUTCOMES
from lossmith.tasks.completion import Problem

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
EXAMPLES, CHOICES = PAGE.split("## Examples")[1].split("## What became")[0].split("The second has")


def rows(section):
    cells = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line
    ]
    return [row for row in cells if row[0] != "metric" and not row[0].startswith(":")]


def shown(metrics, name):
    return f"{metrics[name]:.3f}" if name in metrics else "-"


@pytest.mark.parametrize("row", rows(EXAMPLES), ids="|".join)
def test_worked_answers(row):
    name, text, target, corrected, released = row
    number = re.search(r"#### (\S+)", target)
    problem = Problem(id="1", prompt="Q", question="Q", target=target or "none", answer=number[1] if number else "1")
    metrics = judge("math", [problem], [text], stopped=[True]).metrics
    assert (shown(metrics, name), shown(metrics, f"released_{name}")) == (corrected, released)


@pytest.mark.parametrize("row", rows(CHOICES), ids="|".join)
def test_choices(row):
    name, text, corrected, released = row
    prompt = re.search(r"prompt `(.*?)`", CHOICES)[1].replace("\\n", "\n")
    problem = Problem(id="1", prompt=prompt, question="Q", target="B", answer="B", options=("A", "B"), label=1)
    metrics = judge("choice", [problem], [text], stopped=[True]).metrics
    assert (shown(metrics, name), shown(metrics, f"released_{name}")) == (corrected, released)


def test_every_metric_and_outcome_is_on_the_page():
    problem = Problem(id="1", prompt="Q", question="Q", target="<<1+1=2>> #### 2", answer="2")
    for name in judge("math", [problem], [""], stopped=[True]).metrics:
        assert f"| `{name.removeprefix('released_')}` |" in PAGE, name
    for outcome in (*MATH_OUTCOMES, *CHOICE_OUTCOMES):
        assert f"`{outcome}`" in PAGE, outcome
    assert len(rows(EXAMPLES)) == 21
    assert len(rows(CHOICES)) == 4
