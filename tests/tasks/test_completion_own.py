"""A task of one's own is a YAML file with templates: fields go in literally, and what is wrong is named."""

import csv
import json

import pytest

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import completion_kind, is_completion_task, load_completion_task

MATH = """
kind: math
prompt: "Question: {question}\\nAnswer: "
target: "{steps} #### {answer}"
data: rows.jsonl
"""
CHOICE = """
name: colours
kind: choice
prompt: "Pick for {what}:\\n{options}\\n=> "
choices: options_list
label: right
instruction: Say a letter.
data: {train: a/train.jsonl, test: a/test.jsonl}
"""


def rows(count, **extra):
    return [{"question": f"{n}+1?", "steps": f"<<{n}+1={n + 1}>>", "answer": n + 1, **extra} for n in range(count)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def task_file(folder, text, **files):
    for name, content in files.items():
        write(folder / name.replace("__", "/").replace("_jsonl", ".jsonl"), content)
    return write(folder / "sums.yaml", text)


def said(path, error):
    with pytest.raises(error) as caught:
        load_completion_task(path)
    return str(caught.value)


def test_one_file_is_split_by_a_seed_with_equal_prompts_on_one_side(tmp_path):
    path = task_file(
        tmp_path, MATH, rows_jsonl=rows(20) + [{**row, "question": row["question"].upper()} for row in rows(20)]
    )
    task = load_completion_task(path)
    assert (task.name, task.kind, task.source) == ("sums", "math", str(path))
    assert (len(task.train), len(task.validation), len(task.test)) == (28, 4, 8)
    sides = [{p.prompt.lower() for p in rows} for rows in (task.train, task.validation, task.test)]
    assert [len(side) for side in sides] == [14, 2, 4]
    assert len(set.union(*sides)) == 20
    assert task.warnings == ("The 4 validation rows were cut from train (seed 42): the data bring none.",)
    for problem in (*task.train, *task.validation, *task.test):
        n = int(problem.answer) - 1
        assert problem.prompt == f"Question: {n}+1?\nAnswer: "
        assert problem.target == f"<<{n}+1={n + 1}>> #### {n + 1}"
        assert problem.question == f"{n}+1?"
    assert "<<expression=result>>" in task.instruction
    assert load_completion_task(path).fingerprint == task.fingerprint
    halves = load_completion_task(task_file(tmp_path, MATH + "test_fraction: 0.5\n"))
    assert len(halves.test) == 20
    other = load_completion_task(task_file(tmp_path, MATH + "split_seed: 1\n"))
    assert len(other.test) == 8
    assert {p.prompt for p in other.test} != {p.prompt for p in task.test}


def test_fields_and_the_text_in_them_are_literal(tmp_path):
    nasty = "{answer} {0.__class__} {{x}} {question.__class__} \\1 %s"
    text = (
        'kind: text\nprompt: "{{raw}} {question}|"\ntarget: " {answer}"\nquestion: "Q {question}"\ndata: rows.jsonl\n'
    )
    made = [{"question": f"{nasty}{n}", "answer": "{question}"} for n in range(4)]
    task = load_completion_task(task_file(tmp_path, text, rows_jsonl=made))
    problem = next(p for p in (*task.train, *task.test) if p.prompt.endswith("0|"))
    assert problem.prompt == f"{{{{raw}}}} {nasty}0|"
    assert (problem.target, problem.answer, problem.question) == (" {question}", " {question}", f"Q {nasty}0")
    assert (task.instruction, problem.options, problem.label) == ("", (), None)


@pytest.mark.parametrize("right", [2, 2.0, "C", "green {x}"])
def test_a_choice_takes_index_letter_or_text_and_makes_the_block(tmp_path, right):
    row = {"what": "grass", "options_list": ["red", "blue, dark", "green {x}"], "right": right, "id": 7}
    task = load_completion_task(task_file(tmp_path, CHOICE, a__train_jsonl=[row], a__test_jsonl=[row, row]))
    problem = task.test[0]
    assert problem.prompt == "Pick for grass:\nA. red\nB. blue, dark\nC. green {x}\n=> "
    assert (problem.target, problem.answer, problem.options, problem.label) == ("C", "C", ("A", "B", "C"), 2)
    assert (task.name, task.instruction, problem.id) == ("colours", "Say a letter.", "7")
    assert problem.question == problem.prompt.rstrip()


def test_a_choice_by_columns_of_a_csv_whose_texts_are_digits(tmp_path):
    text = (
        'kind: choice\nprompt: "{q}\\n{options}\\nAnswer: "\ntarget: "({letter}) {q}"\nchoices: [one, two]\n'
        "label: right\ndata: folder\n"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            made = [split, "1", "0", "B"], [split, "5", "6", "1"], [split, "5", "0", "5"], [split, "0", "1", "1"]
            csv.writer(file).writerows([["q", "one", "two", "right"], *made])
    problems = load_completion_task(task_file(tmp_path, text)).test
    assert [(p.label, p.target) for p in problems] == [
        (1, "(B) test"), (1, "(B) test"), (0, "(A) test"), (1, "(B) test"),
    ]  # fmt: skip
    assert problems[0].answer == "B"
    assert problems[0].prompt == "test\nA. 1\nB. 0\nAnswer: "


@pytest.mark.parametrize(
    ("options", "right", "fitting"),
    [
        (["1", "0", "2", "3"], "1", "A and B"),
        (["1", "0", "2", "3"], "0", "A and B"),
        (["B", "x", "A"], "A", "A and C"),
        (["x", "x", "y"], "x", "A and B"),
        (["1", "z", "1"], "1", "A and B and C"),
    ],
)
def test_a_label_that_fits_two_options_is_refused(tmp_path, options, right, fitting):
    row = {"what": "x", "options_list": options, "right": right}
    good = {**row, "right": 1}
    found = said(task_file(tmp_path, CHOICE, a__train_jsonl=[good], a__test_jsonl=[good, row]), DataError)
    assert found == (
        f"`{tmp_path / 'a' / 'test.jsonl'}` row 2 has the label '{right}', which fits the options {fitting} (by text, "
        "letter or index from 0): name the right one by a letter that is no option's text, or, in JSON, by its index "
        "as a number."
    )


@pytest.mark.parametrize("right", [1, 1.0])
def test_a_number_as_label_is_an_index_whatever_the_texts(tmp_path, right):
    row = {"what": "x", "options_list": ["1", "0", "2", "3"], "right": right}
    assert (
        load_completion_task(task_file(tmp_path, CHOICE, a__train_jsonl=[row], a__test_jsonl=[row])).test[0].label == 1
    )


def test_the_answer_of_a_math_task_is_made_canonical_or_taken_from_its_own_template(tmp_path):
    made = [{"question": str(n), "steps": "x #### 3", "answer": "$1,200.50", "other": " 7. "} for n in range(3)]
    path = task_file(tmp_path, MATH, rows_jsonl=made)
    assert {p.answer for p in load_completion_task(path).train} == {"1200.5"}
    path = task_file(tmp_path, MATH + 'answer: "{other}"\n')
    assert {p.answer for p in load_completion_task(path).train} == {"7"}


def test_files_may_be_named_split_by_split_with_validation(tmp_path):
    text = MATH.replace("rows.jsonl", "{train: t.jsonl, validation: v.jsonl, test: t2.jsonl}")
    made = rows(9)
    task = load_completion_task(task_file(tmp_path, text, t_jsonl=made[:5], v_jsonl=made[5:7], t2_jsonl=made[7:]))
    assert [len(task.train), len(task.validation), len(task.test)] == [5, 2, 2]
    assert [problem.answer for problem in task.test] == ["8", "9"]


def test_files_without_validation_give_a_tenth_of_train_as_the_known_tasks_do(tmp_path):
    text = MATH.replace("rows.jsonl", "{train: t.jsonl, test: t2.jsonl}")
    made = rows(32)
    task = load_completion_task(task_file(tmp_path, text, t_jsonl=made[:30], t2_jsonl=made[30:]))
    assert [len(task.train), len(task.validation), len(task.test)] == [27, 3, 2]
    assert task.warnings == ("The 3 validation rows were cut from train (seed 42): the data bring none.",)
    # The same rows as of a known task's folder.
    for name, some in (("train", made[:30]), ("test", made[30:])):
        normal = [{"question": row["question"], "answer": f"{row['steps']} #### {row['answer']}"} for row in some]
        write(tmp_path / "known" / f"{name}.jsonl", normal)
    known = load_completion_task("gsm8k", data=str(tmp_path / "known"))
    assert [p.answer for p in known.validation] == [p.answer for p in task.validation]
    assert [p.answer for p in known.train] == [p.answer for p in task.train]
    one = load_completion_task(task_file(tmp_path, text, t_jsonl=made[:1], t2_jsonl=made[30:]))
    assert (len(one.train), one.validation, one.warnings) == (1, (), ())


def test_kind_and_recognition_read_no_data(tmp_path):
    path = task_file(tmp_path, MATH)
    assert completion_kind(path) == "math"
    assert is_completion_task(path)
    assert is_completion_task(str(path))
    assert not is_completion_task(write(tmp_path / "recipe.yaml", "task: gsm8k\nlosses: [focal]\n"))
    assert not is_completion_task(write(tmp_path / "list.yml", "- prompt\n"))
    assert not is_completion_task(write(tmp_path / "broken.yaml", "prompt: [\n"))
    assert not is_completion_task(write(tmp_path / "task.txt", MATH))
    assert "cannot be read: No such file" in said(path, DataError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: math", "kind: maths"), "`kind` must be math, choice or text, got 'maths'."),
        (("kind: math\n", ""), "must have the key `kind`; it has prompt, target, data."),
        (("target:", "taget:"), "has an unknown key 'taget'. Did you mean 'target'? Keys: name, kind, prompt, "),
        (('target: "{steps} #### {answer}"\n', ""), "must have the key `target`; it has kind, prompt, data."),
        (("data: rows.jsonl", ""), "must have the key `data`"),
        (("data: rows.jsonl", "data: [a, b]"), "`data` must be a folder, a file, or files under `train`, `test`"),
        (("data: rows.jsonl", "data: {train: a.jsonl}"), "`data` must be a folder, a file, or files under `train`"),
        (("data: rows.jsonl", "data: {train: a, test: b, dev: c}"), "`data` must be a folder, a file, or files under"),
        (("data:", "instruction: 7\ndata:"), "`instruction` must be text, got 7: put it in quotes."),
        (("data:", "label: x\ndata:"), "`label` acts on `kind: choice` only, got `kind: math`: leave it out."),
        (("data:", "choices: [x]\ndata:"), "`choices` acts on `kind: choice` only"),
        (("data:", "test_fraction: 1\ndata:"), "`test_fraction` must be between 0 and 1, got 1."),
        (("data:", "split_seed: -1\ndata:"), "`split_seed` must be an integer >= 0, got -1."),
        (("data:", "split_seed: true\ndata:"), "`split_seed` must be an integer >= 0, got True."),
        (
            ("data: rows.jsonl", "data: {train: a.jsonl, test: b.jsonl}\nsplit_seed: 0"),
            "`split_seed` splits one file, but `data` brings its splits: leave it out.",
        ),
        (("data:", "prompt: [\ndata:"), "is not valid YAML in line 7: "),
        (("data:", "x: !!python/object/apply:os.getcwd []\ndata:"), "is not valid YAML in line 5: could not determine"),
        ((MATH, "just text"), "must be a mapping with the keys of a task, got str."),
        ((MATH, ""), "must be a mapping with the keys of a task, got NoneType."),
    ],
)
def test_a_wrong_task_file_is_named_with_its_key(tmp_path, change, message):
    assert change[0] in MATH
    path = task_file(tmp_path, MATH.replace(*change), rows_jsonl=rows(4))
    found = said(path, ConfigurationError)
    assert found.startswith(f"`{path}`")
    assert message in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("choices: options_list\n", ""), "must have the key `choices`"),
        (("label: right\n", ""), "must have the key `label`"),
        (
            ("choices: options_list", "choices: {a: b}"),
            "`choices` must be a field or a list of fields, got {'a': 'b'}.",
        ),
        (
            ("label: right", "label: right\nanswer: '{what}'"),
            "the answer of a choice is its letter: leave `answer` out.",
        ),
    ],
)
def test_a_wrong_choice_file_is_named_with_its_key(tmp_path, change, message):
    assert change[0] in CHOICE
    assert message in said(task_file(tmp_path, CHOICE.replace(*change)), ConfigurationError)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": None}, "row 3 must have a value in field `question`, got null."),
        ({"question": ""}, "row 3 has nothing in field `question`: fill it in or remove the row."),
        ({"steps": ["a"]}, "row 3 must have text in field `steps`, got ['a'] (list)."),
        ({"answer": True}, "row 3 must have text in field `answer`, got True (bool)."),
        ({"answer": "many"}, "row 3 must have a number as its answer (after `####` in the target, or by `answer` in "),
        ({"answer": "1/2"}, "got '1/2'."),
    ],
)
def test_a_bad_row_is_named_with_file_and_number(tmp_path, row, message):
    made = rows(4)
    made[2] |= row
    found = said(task_file(tmp_path, MATH, rows_jsonl=made), DataError)
    assert found.startswith(f"`{tmp_path / 'rows.jsonl'}` row 3 ")
    assert message in found


def test_a_field_that_no_row_has_is_near_another(tmp_path):
    found = said(task_file(tmp_path, MATH.replace("{question}", "{qustion}"), rows_jsonl=rows(3)), DataError)
    assert "row 1 has no field `qustion`. Did you mean 'question'? Its fields: question, steps, answer." in found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options_list": ["a"]}, "must have 2 to 26 options with text, got ['a']."),
        ({"options_list": "a, b"}, "must have a list of texts in field `options_list`, got 'a, b'."),
        ({"options_list": ["a", 3]}, "must have a list of texts in field `options_list`, got ['a', 3]."),
        ({"right": "D"}, "must name its right option by one of A, B, C or by 0 to 2, got 'D'."),
        ({"right": -1}, "by 0 to 2, got -1."),
        ({"right": None}, "must have a value in field `right`, got null."),
    ],
)
def test_a_bad_row_of_a_choice_is_named(tmp_path, row, message):
    good = {"what": "x", "options_list": ["a", "b", "c"], "right": 0}
    path = task_file(tmp_path, CHOICE, a__train_jsonl=[good, {**good, **row}], a__test_jsonl=[good])
    assert f"{tmp_path / 'a' / 'train.jsonl'}` row 2 " in said(path, DataError)
    assert message in said(path, DataError)


def test_too_little_to_split_and_empty_files_are_refused(tmp_path):
    same = [{**rows(1)[0], "question": text} for text in ("a B", "A  b")]
    path = task_file(tmp_path, MATH, rows_jsonl=same)
    assert said(path, DataError).endswith("must have at least 2 different prompts to be split into train and test.")
    path = task_file(tmp_path, MATH, rows_jsonl="")
    assert "must hold rows, got an empty file" in said(path, DataError)


def test_a_folder_says_which_fields_it_must_hold(tmp_path):
    (tmp_path / "folder").mkdir()
    found = said(task_file(tmp_path, MATH.replace("rows.jsonl", "folder")), DataError)
    assert found.endswith("got no data file. Each row with the fields question, steps, answer.")


def test_data_is_named_by_the_file_alone(tmp_path):
    path = task_file(tmp_path, MATH, rows_jsonl=rows(4))
    with pytest.raises(ConfigurationError, match="names its own data, got `data=hub`: leave it out"):
        load_completion_task(path, data="hub")


def test_a_file_that_is_not_there_or_not_utf8(tmp_path):
    assert (
        said(tmp_path / "no.yaml", DataError) == f"`{tmp_path / 'no.yaml'}` cannot be read: No such file or directory."
    )
    (tmp_path / "latin.yaml").write_bytes("prompt: é".encode("latin-1"))
    assert "latin.yaml` must be UTF-8" in said(tmp_path / "latin.yaml", DataError)
