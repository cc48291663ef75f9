"""Tasks whose rows are pairs of texts: both texts count wherever one did, and tasks of one text stay what they were."""

import hashlib
from dataclasses import replace

import pytest
from own_files import error_of, write

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import ClassificationTask, Example, load_task
from lossmith.tasks._splits import row_key

# As recorded in studies before tasks had pairs.
FINGERPRINTS = {
    "mr": "73de5cccf8b77c5b19aace7fe35f3ac6b77d75d888c49ed6f45446b75798cf77",
    "subj": "4c15ae84ec709bcaa7b032568643864d6d63d9a2bd412539fdf3bc6a754f89e2",
    "cr": "928b4fd875c8410b6f098c8a3f85b196bb8175c650eb5f9232671a38143d7a62",
    "banking77": "1d8aa90a2dfc54701155867dfdf1fa4e2a2155d48c51f529696e40f4adca708a",
}
PAIRED = {"text_column": "first", "text_pair_column": "second"}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_fingerprints_of_recorded_studies_stand(name):
    task = load_task(name)
    assert task.fingerprint == FINGERPRINTS[name]
    assert not task.has_pairs


def test_the_second_text_enters_the_fingerprint():
    task = ClassificationTask(name="t", label_names=("a", "b"), train=(Example("x", 0, "é"), Example("y", 1, "z")))
    written = 'train\n["x", 0, "\\u00e9"]\n["y", 1, "z"]\nvalidation\ntest\n'
    assert task.fingerprint == hashlib.sha256(written.encode()).hexdigest()
    assert task.has_pairs
    single = replace(task, train=tuple(Example(example.text, example.label) for example in task.train))
    assert single.fingerprint != task.fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_some_pairs_among_single_texts_are_refused(split):
    rows = (Example("x", 0, "p"), Example("y", 1, "q"))
    parts = {"train": rows, "test": rows}
    parts[split] = (rows[0], Example("y", 1))
    with pytest.raises(DataError) as caught:
        ClassificationTask(name="t", label_names=("a", "b"), **parts)
    assert str(caught.value) == (
        "Task 't' must have a second text in every row or in none, got one in 3 of 4 rows: add the missing ones or "
        "remove those rows."
    )


def test_the_key_of_a_pair_keeps_the_texts_apart():
    assert row_key(" A  b", "C") == row_key("a b", "c ")
    assert len({row_key("a b", "c"), row_key("a", "b c"), row_key("c", "a b"), row_key("a b c")}) == 4


def rows_of(count):
    return [{"first": f"one {i % 7}", "second": f"two {i}", "label": "ab"[i % 2]} for i in range(count)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.parquet"])
def test_pairs_of_a_file(tmp_path, name):
    task = load_task(write(tmp_path, name, rows_of(40)), **PAIRED)
    assert {(e.text, e.pair, "ab"[e.label]) for e in (*task.train, *task.test)} == {
        (row["first"], row["second"], row["label"]) for row in rows_of(40)
    }
    assert len(task.test) == 8  # the 7 first texts alone would be 7 different ones
    assert task.warnings == ()


def test_equal_pairs_stay_on_one_side_and_contradictions_are_pairs(tmp_path):
    rows = [*rows_of(30), *({**row, "first": row["first"].upper()} for row in rows_of(30))]
    rows[30] |= {"label": "b"}
    task = load_task(write(tmp_path, "a.csv", rows), **PAIRED)
    train, test = ({row_key(e.text, e.pair) for e in split} for split in (task.train, task.test))
    assert not train & test
    assert len(train | test) == 30
    assert task.warnings == ("1 pairs of texts occur with more than one label.",)


def test_pairs_of_a_folder_repeat_only_as_pairs(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, "train.csv", rows_of(10))
    again = [{"first": "One 3", "second": "two 3", "label": "b"}, {"first": "one 3", "second": "new", "label": "a"}]
    write(folder, "test.csv", again)
    task = load_task(folder, **PAIRED)
    assert task.test[1] == Example("one 3", 0, "new")
    assert task.warnings == ("1 of 2 test rows repeat a pair of train.",)


def test_second_texts_must_be_there(tmp_path):
    rows = rows_of(6)
    rows[2]["second"] = " "
    message = error_of(write(tmp_path, "a.csv", rows), **PAIRED)
    assert "must have a text in every row of column 'second', got 1 of 6 without (row 3;" in message
    message = error_of(write(tmp_path, "b.csv", rows), text_column="first", text_pair_column="secnd")
    assert "has no column 'secnd' (`text_pair_column`). Did you mean 'second'?" in message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("text_a", "text_b"),
        ("sentence1", "sentence2"),
        ("Premise", "Hypothesis"),
        ("question1", "question2"),
        ("Question", "Answer"),
    ],
)
def test_two_columns_of_texts_where_one_is_expected(tmp_path, first, second):
    rows = [{first: f"a {i}", second: f"b {i}", "label": i % 2} for i in range(10)]
    assert error_of(write(tmp_path, "a.csv", rows)) == (
        f"`a.csv` has no column 'text' (`text_column`) but two columns of texts, '{first}' and '{second}': give "
        f"`text_column={first} text_pair_column={second}`, or one of them as `text_column`."
    )
    task = load_task(tmp_path / "a.csv", text_column=first, text_pair_column=second)
    assert task.has_pairs
    assert task.warnings == ()


@pytest.mark.parametrize("second", ["text_pair", "text2"])
def test_the_text_that_is_left_out_is_told(tmp_path, second):
    rows = [{"text": f"a {i}", second: f"b {i}", "label": i % 2} for i in range(10)]
    said = f"The column '{second}' is not read: `text_pair_column={second}` makes it the second text."
    assert load_task(write(tmp_path, "a.csv", rows)).warnings == (said,)
    folder = tmp_path / "f"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder, f"{split}.csv", [{**row, "text": f"{split} {row['text']}"} for row in rows])
    assert load_task(folder).warnings == (said,)


def test_an_answer_that_is_the_label_is_no_text_left_out(tmp_path):
    rows = [{"question": f"a {i}", "answer": i % 2} for i in range(10)]
    assert load_task(write(tmp_path, "a.csv", rows), text_column="question", label_column="answer").warnings == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text_pair_column": "text"}, "`text_column` and `text_pair_column` must differ, got 'text' for both"),
        ({"text_pair_column": "label"}, "`text_pair_column` and `label_column` must differ, got 'label' for both"),
    ],
)
def test_columns_must_differ(tmp_path, columns, message):
    with pytest.raises(ConfigurationError, match=message):
        load_task(write(tmp_path, "a.csv", rows_of(6)), **columns)
