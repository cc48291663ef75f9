"""The data sets inside the package: the files of their READMEs, in the normal form, found wherever it is installed."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from importlib.resources import files

import pytest

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import ClassificationTask, Example, list_tasks, load_task, rows_per_class

NAMES = [str(task) for task in list_tasks()]
DATA = files("lossmith.tasks") / "data"


def readme_table(name):
    text = (DATA / name / "README.md").read_text(encoding="utf-8")
    return {
        split: (int(rows), sha256)
        for split, rows, sha256 in re.findall(r"^\| (\w+) \| (\d+) \| \d+ \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    }


def test_the_four_tasks_are_listed_with_what_a_report_must_cite():
    assert NAMES == ["mr", "subj", "cr", "banking77"]
    for task in list_tasks():
        assert task.licence == "CC BY 4.0"
        assert all((task.title, task.citation, task.source, task.splits))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_readme(name):
    table = readme_table(name)
    assert set(table) == {"train", "validation", "test"}
    for split, (_, sha256) in table.items():
        assert hashlib.sha256((DATA / name / f"{split}.jsonl.gz").read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("record", list_tasks(), ids=str)
def test_splits_have_the_rows_that_the_readme_and_the_record_tell(record):
    task = load_task(str(record))
    sizes = (len(task.train), len(task.validation), len(task.test))
    table = readme_table(record.name)
    assert sizes == record.split_sizes == tuple(table[split][0] for split in ("train", "validation", "test"))
    assert task.attribution == record.citation
    assert task.source == record.source
    assert task.licence == record.licence
    assert task.warnings == ()


def test_rows_carry_their_published_text_and_class():
    task = load_task("mr")
    assert task.label_names == ("negative", "positive")
    assert task.train[0] == Example("simplistic , silly and tedious .", 0)
    assert rows_per_class(task.test, 2) == [533, 533]


def test_banking77_has_its_77_intents_in_id_order():
    task = load_task("banking77")
    assert task.num_classes == len(set(task.label_names)) == 77
    assert task.train[0] == Example("I am still waiting on my card?", task.label_names.index("card_arrival"))
    assert rows_per_class(task.test, 77) == [40] * 77


def test_fingerprint_is_the_sha256_of_the_rows_in_their_splits():
    task = ClassificationTask(
        name="t", label_names=("a", "b"), train=(Example("x", 0), Example("é", 1)), test=(Example("z", 1),)
    )
    written = 'train\n["x", 0]\n["\\u00e9", 1]\nvalidation\ntest\n["z", 1]\n'
    assert task.fingerprint == hashlib.sha256(written.encode()).hexdigest()


def test_fingerprint_follows_text_label_and_split_but_not_names():
    task = load_task("cr")
    assert replace(task, name="other", label_names=("bad", "good"), source="s").fingerprint == task.fingerprint
    first = task.train[0]
    changed = [
        replace(task, train=(replace(first, label=1 - first.label), *task.train[1:])),
        replace(task, train=(replace(first, text=first.text + " "), *task.train[1:])),
        replace(task, train=task.train[1:], validation=(*task.validation, first)),
        replace(task, validation=(), test=(*task.validation, *task.test)),
    ]
    assert len({task.fingerprint, *(other.fingerprint for other in changed)}) == 5


def test_task_is_frozen():
    with pytest.raises(FrozenInstanceError):
        load_task("cr").name = "x"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("label_names", "labels", "message"),
    [
        (("a",), (0,), "must have at least 2 classes"),
        (("a", "a"), (0, 1), "a different name for each class"),
        (("a", "b"), (0, 2), "labels must be 0 to 1, got 2"),
        (("a", "b"), (0, -1), "labels must be 0 to 1, got -1"),
        (("a", "b"), (0, 0), "no row of class 'b' in `train`"),
    ],
)
def test_a_task_that_contradicts_itself_cannot_be_made(label_names, labels, message):
    with pytest.raises(DataError, match=message):
        ClassificationTask(name="t", label_names=label_names, train=tuple(Example("x", label) for label in labels))


def test_an_unknown_name_gets_the_nearest_the_list_and_the_other_way():
    with pytest.raises(ConfigurationError) as caught:
        load_task("bankin77")
    assert str(caught.value) == (
        "No task named 'bankin77'. Did you mean 'banking77'? Shipped tasks: mr, subj, cr, banking77; "
        "with `data=FOLDER` or `data=hub`: sst2, mrpc, trec, trec50, mpqa; or give a path to a CSV, JSONL or parquet "
        "file. With written answers: gsm8k, svamp, mathqa, qasc, openbookqa, commonsenseqa, hellaswag, or a task file."
    )


def test_a_name_too_long_for_a_path_is_an_unknown_name():
    with pytest.raises(ConfigurationError, match="No task named 'xxx"):
        load_task("x" * 5000)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(ConfigurationError, match="No task named ''"):
        load_task("")


@pytest.mark.parametrize(
    "setting",
    [{"text_column": "t"}, {"text_pair_column": "p"}, {"label_column": "l"}, {"split_seed": 1}, {"test_fraction": 0.5}],
)
def test_a_setting_with_nothing_to_act_on_is_refused(setting):
    with pytest.raises(ConfigurationError, match=f"'mr' has fixed columns and splits, so `{next(iter(setting))}`"):
        load_task("mr", **setting)


def test_a_folder_of_a_shipped_name_does_not_shadow_it(tmp_path, monkeypatch):
    (tmp_path / "cr").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load_task("cr").train) == 1360
    with pytest.raises(DataError, match=r"must have a file train\.csv"):
        load_task("./cr")


def test_tasks_load_without_the_training_packages():
    code = (
        "import json, sys; from lossmith.tasks import load_task; load_task('cr');"
        "print(json.dumps([m for m in ('transformers', 'pandas', 'sklearn', 'pyarrow') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
