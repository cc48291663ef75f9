"""The completion tasks inside the package: files as their READMEs say, the paper's prompts to the letter."""

import functools
import gzip
import hashlib
import json
import re
import subprocess
import sys
from fractions import Fraction
from importlib.resources import files

import pytest

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import (
    completion_kind,
    draw_problems,
    is_completion_task,
    list_completion_tasks,
    load_completion_task,
)

DATA = files("lossmith.tasks") / "data"
SHIPPED = [record for record in list_completion_tasks() if record.split_sizes is not None]
SPLITS = ("train", "validation", "test")
load = functools.cache(load_completion_task)


def raw_rows(name, split):
    text = gzip.decompress((DATA / name / f"{split}.jsonl.gz").read_bytes()).decode()
    return {row["id"]: row for row in map(json.loads, text.strip("\n").split("\n"))}


def all_problems(name):
    return [(split, problem) for split in SPLITS for problem in getattr(load(name), split)]


def by_id(name, id):
    (found,) = [problem for _, problem in all_problems(name) if problem.id == id]
    return found


@pytest.mark.parametrize("record", SHIPPED, ids=str)
def test_files_are_those_of_the_readme_and_the_record(record):
    text = (DATA / record.name / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert tuple(split for split, *_ in table) == SPLITS
    assert tuple(int(rows) for _, rows, *_ in table) == record.split_sizes
    for split, rows, size, sha256 in table:
        content = (DATA / record.name / f"{split}.jsonl.gz").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size), sha256)
        assert content[4:8] == bytes(4)  # no time stamp in the gzip header
        assert gzip.decompress(content).count(b"\n") == int(rows)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "left_out"),
    [
        ("gsm8k", "math", (6973, 500, 1319), ()),
        ("svamp", "math", (799, 100, 100), ((1, 800, "train"),)),
        ("mathqa", "math", (3581, 347, 2674), ((494, 4075, "train"), (53, 400, "validation"), (311, 2985, "test"))),
        ("qasc", "choice", (648, 93, 185), ()),
        ("commonsenseqa", "choice", (8767, 974, 1221), ()),
        ("hellaswag", "choice", (1500, 300, 1000), ()),
    ],
)
def test_sizes_kinds_and_what_is_left_out_is_said(name, kind, sizes, left_out):
    task = load(name)
    assert completion_kind(name) == task.kind == kind
    assert tuple(len(getattr(task, split)) for split in SPLITS) == sizes
    assert len(task.warnings) == len(left_out)
    for (count, rows, split), warning in zip(left_out, task.warnings, strict=True):
        assert warning.startswith(f"{count} of {rows} {split} rows have ")
        assert "left out" in warning


@pytest.mark.parametrize("record", SHIPPED, ids=str)
def test_a_task_carries_what_a_report_must_cite(record):
    task = load(record.name)
    assert (task.name, task.source, task.licence) == (record.name, record.source, record.licence)
    assert task.attribution == record.citation
    assert task.licence in ("MIT", "Apache-2.0", "CC BY 4.0")
    assert task.instruction == record.instruction
    assert all((record.title, record.splits, record.hub, record.layout))


@pytest.mark.parametrize(
    ("name", "id", "prompt", "target", "answer"),
    [
        (
            "gsm8k",
            "train:0",
            "Question: Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
            "How many clips did Natalia sell altogether in April and May?\nAnswer: ",
            "<<48/2=24>> <<48+24=72>> #### 72",
            "72",
        ),
        (
            "gsm8k",
            "test:201",  # two blanks after full stops, and numbers with thousands commas beside the marks
            "Question: John wins an award at work.  The award has a 1 time monetary reward of $5000 and a 5% raise in "
            "salary.  If he makes 2000 a week, every week of the year and he got the award on the first day of the "
            "year how much money did he make that year?\nAnswer: ",
            "<<2000*52=104000>> <<.05*104000=5200>> <<104000+5200=109200>> <<109200+5000=114200>> #### 114200",
            "114200",
        ),
        (
            "svamp",
            "chal-95",
            "Question: Julia played tag with 19 kids on monday. She played tag with 18 kids on tuesday. She spent a "
            "total of 38 hours to play tag on both days. How many more kids did she play with on monday than on "
            "tuesday?\nAnswer: ",
            "<<19-18=1>> #### 1",
            "1",
        ),
        (
            "mathqa",
            "test:0",
            "Question: a shopkeeper sold an article offering a discount of 5 % and earned a profit of 31.1 % . what "
            "would have been the percentage of profit earned if no discount had been offered ?\nAnswer: ",
            "<<add(n1,const_100)>> <<subtract(const_100,n0)>> <<multiply(#0,const_100)>> <<divide(#2,#1)>> "
            "<<subtract(#3,const_100)>> #### 38.0",
            "38",
        ),
        (
            "qasc",
            "3H7Z272LX76UDNZ0QK447QVT8X0LPP",
            "Question: Collar cells have tiny hairs that trap very tiny pieces of what?\nA. matter\nB. keratin\n"
            "C. pigment\nD. allergen\nE. RNA\nF. protozoa\nG. Chemicals\nH. fish\nContext: Collar cells have tiny "
            "hairs that trap the particles. Particles A particle is simply a very tiny piece of matter.\nAnswer: ",
            "A",
            "A",
        ),
        (
            "commonsenseqa",
            "05ea49b82e8ec519e82d6633936ab8bf",
            "Question: What do animals do when an enemy is approaching?\nA. feel pleasure\nB. procreate\nC. pass water"
            "\nD. listen to each other\nE. sing\nAnswer: ",
            "D",
            "D",
        ),
        (
            "hellaswag",
            "val:88",  # the activity, "Throwing darts: ", is not in the paper's prompt
            "Question: A man is seen throwing a dart onto a board and leads into a woman speaking. the man\nA. tosses "
            "darts into the water while people measure the distance and run after them.\nB. gives her several tips and "
            "she continues creating darts.\nC. throws several more darts while taking the time to speak to the woman.\n"
            "D. holds behind him and the woman continues speaking.\nAnswer: ",
            "C",
            "C",
        ),
    ],
)
def test_prompt_target_and_answer_to_the_letter(name, id, prompt, target, answer):
    found = by_id(name, id)
    assert (found.prompt, found.target, found.answer) == (prompt, target, answer)
    assert f"Question: {found.question}\nAnswer: " == prompt


def test_a_mathqa_program_without_a_closing_bar_keeps_its_last_step():
    # The released code drops the last piece whatever it is, which loses a step of 1,840 of the 7,460 rows.
    open_ended = 0
    for split in SPLITS:
        rows = raw_rows("mathqa", split)
        open_ended += sum(not row["program"].endswith("|") for row in rows.values())
        for problem in getattr(load("mathqa"), split):
            steps = problem.target.split(" #### ")[0]
            assert steps.removeprefix("<<").removesuffix(">>").split(">> <<") == [
                piece for piece in rows[problem.id]["program"].split("|") if piece
            ]
    assert open_ended == 1840


def test_every_gsm8k_answer_and_step_is_that_of_its_row():
    for split in SPLITS:
        rows = raw_rows("gsm8k", split)
        for problem in getattr(load("gsm8k"), split):
            row, pieces = rows[problem.id], []
            rest = row["solution"]
            while "<<" in rest:  # no regular expression here: the marks one after another
                _, rest = rest.split("<<", 1)
                step, rest = rest.split(">>", 1)
                pieces.append(f"<<{step}>>")
            assert problem.answer == row["answer"]
            assert problem.target == " ".join([*pieces, "#### " + row["answer"]])


def worked_out(expression):
    """Value of + - * / and brackets by rewriting text: innermost bracket first, then * and /, then + and -."""
    while "(" in expression:
        expression = re.sub(r"\(([^()]*)\)", lambda inner: written(worked_out(inner[1])), expression)
    number = r"(-?[\d.]+(?:\|\d+)?)"
    for signs in ("*/", "+-"):
        pattern = re.compile(rf"{number}\s*([{re.escape(signs)}])\s*{number}")
        while found := pattern.match(expression.strip()) or (signs == "*/" and pattern.search(expression)):
            left, sign, right = value(found[1]), found[2], value(found[3])
            result = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}[
                sign
            ]
            expression = expression.replace(found[0], written(result), 1)
    return value(expression.strip())


def written(number):
    return f"{number.numerator}|{number.denominator}"


def value(text):
    top, _, bottom = text.partition("|")
    return Fraction(top) / Fraction(bottom or 1)


def test_every_svamp_target_works_out_to_its_answer():
    seen = 0
    for split in SPLITS:
        rows = raw_rows("svamp", split)
        for problem in getattr(load("svamp"), split):
            row = rows[problem.id]
            *steps, mark, answer = problem.target.split(" ")
            assert mark == "####"
            assert answer == problem.answer == row["answer"]
            assert worked_out(row["equation"]) == Fraction(answer)
            assert len(steps) == sum(row["equation"].count(sign) for sign in ("+ ", "- ", "* ", "/ "))
            for step in steps:
                left, right = step.removeprefix("<<").removesuffix(">>").split("=")
                assert worked_out(left) == worked_out(right), problem.target
            if steps:
                assert worked_out(steps[-1].removesuffix(">>").split("=")[1]) == Fraction(answer)
            seen += 1
    assert seen == 999  # the answer of chal-680, "1", is not the value of ( ( 4.0 - 2.0 ) + 3.0 )
    assert "chal-680" in raw_rows("svamp", "train")
    assert all(problem.id != "chal-680" for _, problem in all_problems("svamp"))


def test_an_svamp_equation_that_is_a_number_alone_has_no_step():
    assert raw_rows("svamp", "train")["chal-555"]["equation"] == "8.0"
    assert by_id("svamp", "chal-555").target == "#### 8"


@pytest.mark.parametrize("name", ["qasc", "commonsenseqa", "hellaswag"])
def test_every_letter_points_at_the_option_of_its_row(name):
    for split in SPLITS:
        rows = raw_rows(name, split)
        for problem in getattr(load(name), split):
            row = rows[problem.id]
            assert problem.options == tuple("ABCDEFGH"[: len(row["choices"])])
            assert problem.target == problem.answer == problem.options[problem.label]
            assert f"\n{problem.target}. {row['choices'][row['label']]}\n" in problem.prompt


def test_mathqa_numbers_of_all_rows_agree_with_a_plain_reading():
    # Where an option is digits alone, with or without thousands commas, there is nothing to interpret.
    plain = 0
    for split in SPLITS:
        rows = raw_rows("mathqa", split)
        for problem in getattr(load("mathqa"), split):
            option = rows[problem.id]["choices"][rows[problem.id]["label"]].strip()
            target = problem.target.rsplit("#### ", 1)[1]
            assert Fraction(target) == Fraction(problem.answer)
            assert "." in target
            if set(option) <= set("0123456789."):
                plain += 1
                assert Fraction(option.rstrip(".")) == Fraction(problem.answer)
    assert plain > 4000


def test_no_activity_of_hellaswag_is_in_two_splits():
    found = [{row["activity"] for row in raw_rows("hellaswag", split).values()} for split in SPLITS]
    assert not found[0] & found[2]
    assert not found[1] & found[2]
    assert not found[0] & found[1]


def test_known_names_are_completion_tasks_and_classification_names_are_not():
    assert [str(record) for record in list_completion_tasks()] == [
        "gsm8k", "svamp", "mathqa", "qasc", "openbookqa", "commonsenseqa", "hellaswag",
    ]  # fmt: skip
    assert all(is_completion_task(str(record)) for record in list_completion_tasks())
    assert not any(map(is_completion_task, ("mr", "", "GSM8K ", "gsm8k.yaml", "x" * 5000 + ".yaml")))


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(ConfigurationError) as caught:
        load_completion_task("gsm9k")
    assert str(caught.value) == (
        "No completion task named 'gsm9k'. Did you mean 'gsm8k'? Known: gsm8k, svamp, mathqa, qasc, openbookqa, "
        "commonsenseqa, hellaswag; or give a path to a task file (.yaml with `prompt`, `target` and `data`)."
    )
    with pytest.raises(ConfigurationError, match="No completion task named 'gsm9k'"):
        completion_kind("gsm9k")


def test_openbookqa_says_why_it_is_not_there_and_how_to_load_it():
    assert completion_kind("openbookqa") == "choice"
    with pytest.raises(DataError) as caught:
        load_completion_task("openbookqa")
    assert str(caught.value) == (
        "The rows of 'openbookqa' are not shipped, since their licence is not clear: load them with `data=hub`, or "
        "with `data=FOLDER`, a folder with train, validation and test files, each row with `question_stem`, `choices` "
        "(`text` and `label`), `answerKey` and `fact1` (as in train_complete.jsonl)."
    )
    assert not (DATA / "openbookqa").is_dir()


def test_draws_are_seeded_nested_and_without_replacement():
    problems = load("qasc").test
    ten, forty = draw_problems(problems, 10, seed=3), draw_problems(problems, 40, seed=3)
    assert forty[:10] == ten
    assert len({problem.id for problem in forty}) == 40
    assert ten != tuple(problems[:10])
    assert draw_problems(problems, 10, seed=4) != ten
    assert draw_problems(problems, None, seed=3) == problems
    assert sorted(p.id for p in draw_problems(problems, 185, seed=0)) == sorted(p.id for p in problems)


def test_a_draw_out_of_range_is_refused():
    problems = load("qasc").test
    with pytest.raises(DataError, match="There are 185 problems, `count` wants 186: ask for at most 185"):
        draw_problems(problems, 186, seed=0)
    with pytest.raises(ConfigurationError, match="`count` must be an integer >= 1, got 0"):
        draw_problems(problems, 0, seed=0)
    with pytest.raises(ConfigurationError, match="`seed` must be an integer >= 0, got -1"):
        draw_problems(problems, 1, seed=-1)


def test_shipped_completion_tasks_load_without_the_training_packages():
    code = (
        "import json, sys; from lossmith.tasks import load_completion_task; load_completion_task('svamp');"
        "heavy = ('transformers', 'datasets', 'huggingface_hub', 'pandas', 'pyarrow', 'yaml');"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
