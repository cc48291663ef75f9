"""The split of one file, and folders that bring their own."""

import re
from collections import Counter
from pathlib import Path

import pytest
from own_files import error_of, write

from lossmith.errors import ConfigurationError
from lossmith.tasks import load_task
from lossmith.tasks._splits import text_key

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def uneven_rows():
    return [{"text": f"text {index}", "label": "a" if index % 10 else "b"} for index in range(200)]


def test_the_split_is_stratified_and_loses_no_row(tmp_path):
    task = load_task(write(tmp_path, "a.csv", uneven_rows()), test_fraction=0.25)
    assert Counter(example.label for example in task.test) == {0: 45, 1: 5}
    assert sorted(e.text for e in (*task.train, *task.test)) == sorted(row["text"] for row in uneven_rows())
    order = [int(example.text.split()[1]) for example in task.test]
    assert order == sorted(order) != list(range(order[0], order[0] + 50))


def test_the_split_follows_its_seed_alone(tmp_path):
    path = write(tmp_path, "a.csv", uneven_rows())
    assert load_task(path).fingerprint == load_task(path, split_seed=0).fingerprint
    assert len({load_task(path, split_seed=seed).fingerprint for seed in range(5)}) == 5


def test_repeated_texts_stay_on_one_side(tmp_path):
    rows = [{"text": f"text {index % 30}", "label": index % 30 % 2} for index in range(90)]
    rows += [{"text": f" TEXT  {index}", "label": index % 2} for index in range(30)]
    path = write(tmp_path, "a.csv", rows)
    for seed in range(10):
        task = load_task(path, split_seed=seed)
        train, test = ({text_key(e.text) for e in split} for split in (task.train, task.test))
        assert not train & test
        assert (len(train), len(test)) == (24, 6)
        assert (len(task.train), len(task.test)) == (96, 24)


@pytest.mark.parametrize("test_fraction", [0.01, 0.5, 0.99])
def test_both_sides_get_every_class_however_small(tmp_path, test_fraction):
    rows = [{"text": f"text {index}", "label": label} for index, label in enumerate("aaaaaaaaaaaabbcc")]
    task = load_task(write(tmp_path, "a.csv", rows), test_fraction=test_fraction)
    assert {e.label for e in task.train} == {e.label for e in task.test} == {0, 1, 2}


def test_a_class_of_one_text_cannot_be_split(tmp_path):
    rows = [*uneven_rows(), {"text": "alone", "label": "c"}, {"text": "Alone", "label": "c"}]
    assert error_of(write(tmp_path, "a.csv", rows)) == (
        "Each class must have at least 2 different texts to be split into train and test: class 'c' has 1. "
        "Add rows, remove the class, or give a folder with train and test files."
    )


def test_texts_with_two_labels_are_told(tmp_path):
    rows = [*uneven_rows(), {"text": "text 3", "label": "b"}, {"text": "text 4", "label": "b"}]
    assert load_task(write(tmp_path, "a.csv", rows)).warnings == ("2 texts occur with more than one label.",)
    assert load_task(write(tmp_path, "b.csv", uneven_rows())).warnings == ()


# Folders


def folder_of(tmp_path, **splits):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, rows in splits.items():
        write(folder, name.replace("_", ".", 1), [{"text": text, "label": label} for text, label in rows])
    (folder / "README.md").write_text("not data")
    return folder


TRAIN = [("good", 1), ("bad", 0), ("fine", 1)]


def test_a_folder_keeps_its_splits_whatever_their_formats(tmp_path):
    task = load_task(folder_of(tmp_path, train_csv=TRAIN, validation_jsonl=[("well", 1)], test_parquet=[("no", 0)]))
    assert [(e.text, e.label) for e in task.train] == TRAIN
    assert [(e.text, e.label) for e in task.validation] == [("well", 1)]
    assert [(e.text, e.label) for e in task.test] == [("no", 0)]
    assert (task.name, task.label_names, task.warnings) == ("mine", ("0", "1"), ())


def test_a_folder_without_validation_has_none(tmp_path):
    assert load_task(folder_of(tmp_path, train_csv=TRAIN, test_csv=[("no", 0)])).validation == ()


def test_test_rows_that_train_has_too_are_counted(tmp_path):
    repeats = [("Good", 1), ("new", 1), ("bad ", 0), ("ok", 1)]
    folder = folder_of(tmp_path, train_csv=TRAIN, validation_csv=[("OK", 1)], test_csv=repeats)
    assert load_task(folder).warnings == (
        "1 of 4 test rows repeat a text of validation.",
        "2 of 4 test rows repeat a text of train.",
    )


@pytest.mark.parametrize("split", ["test", "validation"])
def test_labels_that_train_lacks_are_refused(tmp_path, split):
    parts = {"train_csv": TRAIN, "test_csv": [("no", 0)], f"{split}_csv": [("no", 0), ("hm", 2), ("so", 7)]}
    message = error_of(folder_of(tmp_path, **parts))
    assert "must have only labels that occur in train, got '2', '7' in column 'label', row 2, 3" in message
    assert "Labels in train: 0, 1." in message


def test_one_class_in_train_is_refused(tmp_path):
    folder = folder_of(tmp_path, train_csv=TRAIN[:1], test_csv=[("no", 1)])
    assert "must have at least 2 classes in column 'label', got only '1'" in error_of(folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train_csv": TRAIN}, "must have a file test.csv, .tsv, .jsonl or .parquet, got train.csv."),
        ({"test_csv": TRAIN}, "must have a file train.csv, .tsv, .jsonl or .parquet, got test.csv."),
        ({}, "must have a file train.csv, .tsv, .jsonl or .parquet, got no data file."),
        ({"train_csv": TRAIN, "train_jsonl": TRAIN}, "must have one train file, got train.csv, train.jsonl."),
    ],
)
def test_a_folder_without_its_files_says_what_is_there(tmp_path, parts, message):
    assert message in error_of(folder_of(tmp_path, **parts))


@pytest.mark.parametrize("setting", [{"split_seed": 1}, {"test_fraction": 0.5}])
def test_a_folder_takes_no_split_settings(tmp_path, setting):
    folder = folder_of(tmp_path, train_csv=TRAIN, test_csv=TRAIN)
    with pytest.raises(ConfigurationError, match=f"brings its own splits, so `{next(iter(setting))}`"):
        load_task(folder, **setting)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside the project")
@pytest.mark.parametrize(
    ("name", "label_column", "num_classes", "some_names"),
    [
        ("sst2", "label", 2, {"negative", "positive"}),
        ("trec", "label", 6, {"ABBR", "DESC"}),
        ("trec", "fine", 50, {"DESC:manner"}),
    ],
)
def test_data_sets_in_the_normal_form_load_as_folders(name, label_column, num_classes, some_names):
    task = load_task(SHARED / name, label_column=label_column)
    assert task.name == name
    assert task.num_classes == num_classes
    assert some_names <= set(task.label_names)
    rows = re.findall(
        r"^\| (?:train|validation|test) \| (\d+) \|", (SHARED / name / "README.md").read_text(), re.MULTILINE
    )
    assert [len(task.train), len(task.validation), len(task.test)] == [int(count) for count in rows]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside the project")
def test_a_shipped_task_and_its_folder_are_the_same_task():
    shipped, folder = load_task("cr"), load_task(SHARED / "cr")
    assert (folder.fingerprint, folder.label_names) == (shipped.fingerprint, shipped.label_names)
