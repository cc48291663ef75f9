"""Tasks by name with rows from a folder or the hub: published files, the normal form, one sentence for the rest."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import Example, fold_task, list_tasks, load_task, rows_per_class

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside the project")
CLASS_FILES = {
    "mr": ("rt-polarity.neg", "rt-polarity.pos"),
    "cr": ("custrev.neg", "custrev.pos"),
    "mpqa": ("mpqa.neg", "mpqa.pos"),
    "subj": ("subj.objective", "subj.subjective"),
}
MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
TREC_ROWS = [("DESC:manner", "How did it end ?"), ("ENTY:animal", "What barks ?"), ("DESC:def", "What is it ?")]


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_DASH_", "-")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def write_jsonl(folder, **splits):
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return str(folder)


def class_files(folder, name, count=10):
    for label, file in enumerate(CLASS_FILES[name]):
        (folder / file).write_text("".join(f"text {label} {row} \n" for row in range(count)), encoding="utf-8")
    return str(folder)


def message(name, data, kind=DataError, **settings):
    with pytest.raises(kind) as caught:
        load_task(name, data=data, **settings)
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{data}/", "")


# The files that the authors or SentEval published


@pytest.mark.parametrize("name", CLASS_FILES)
def test_a_file_per_class_is_split_like_a_file_of_ones_own(tmp_path, name):
    data = class_files(tmp_path, name)
    task = load_task(name, data=data)
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 0, 4)
    assert rows_per_class(task.test, 2) == [2, 2]
    rows = sorted((*task.train, *task.test), key=lambda row: (row.label, row.text))
    assert rows == [Example(f"text {label} {row}", label) for label in (0, 1) for row in range(10)]
    names = ("objective", "subjective") if name == "subj" else ("negative", "positive")
    assert (task.name, task.label_names, task.source, task.warnings) == (name, names, data, ())
    assert load_task(name, data=data).fingerprint == task.fingerprint
    assert load_task(name, data=data, split_seed=1).fingerprint != task.fingerprint
    assert len(load_task(name, data=data, test_fraction=0.5).test) == 10
    assert len({row for fold in range(5) for row in fold_task(task, fold=fold, folds=5).test}) == 20


def test_texts_that_are_not_utf8_become_what_their_writer_saw(tmp_path):
    lines = ["caf\u00e9 \u2013 good", "na\u00efve \u201cart\u201d", "plain", "more"]
    write(
        tmp_path,
        rt_DASH_polarity__pos="\n".join(lines).encode("cp1252"),
        # A Latin-1 control character that an earlier hand wrote as UTF-8, and one that ends no line here.
        rt_DASH_polarity__neg="bad \x85 end\nworse\x0c still\n\n  \nworst \n",
    )
    task = load_task("mr", data=str(tmp_path))
    texts = {(row.text, row.label) for row in (*task.train, *task.test)}
    assert texts == {*((line, 1) for line in lines), ("bad \u2026 end", 0), ("worse\x0c still", 0), ("worst", 0)}


def test_a_sentence_of_both_classes_and_a_repeated_one_are_seen(tmp_path):
    class_files(tmp_path, "mpqa")
    with (tmp_path / "mpqa.pos").open("a") as file:
        file.write("Text 0 3\ntext 1 1\n")
    task = load_task("mpqa", data=str(tmp_path))
    assert task.warnings == ("1 texts occur with more than one label.",)
    assert len(task.train) + len(task.test) == 22


def test_sst2_of_senteval(tmp_path):
    write(
        tmp_path,
        sentiment_DASH_train="it 's good\t1\nit 's bad \t0\n",
        sentiment_DASH_dev="well\t1\n",
        sentiment_DASH_test="It 's  good\t1\nno\t0\n",
    )
    task = load_task("sst2", data=str(tmp_path))
    assert task.train == (Example("it 's good", 1), Example("it 's bad", 0))
    assert task.validation == (Example("well", 1),)
    assert task.test == (Example("It 's  good", 1), Example("no", 0))
    assert task.warnings == ("1 of 2 test rows repeat a text of train.",)
    (tmp_path / "sentiment-dev").unlink()
    assert load_task("sst2", data=str(tmp_path)).validation == ()


def test_mrpc_as_published_has_quotes_that_mean_nothing(tmp_path):
    train = MRPC_HEADER + '1\t7\t8\tHe said "yes.\t"Yes," he said.\r\n0\t9\t10\tOne.\tTwo "2".\r\n'
    write(tmp_path, msr_paraphrase_train__txt=train, msr_paraphrase_test__txt=MRPC_HEADER + "1\t1\t2\tA.\tB.\r\n")
    task = load_task("mrpc", data=str(tmp_path))
    assert task.label_names == ("not_paraphrase", "paraphrase")
    assert task.train == (Example('He said "yes.', 1, '"Yes," he said.'), Example("One.", 0, 'Two "2".'))
    assert task.test == (Example("A.", 1, "B."),)
    assert "non-commercial" in task.licence


def trec_files(folder, fine=None):
    rows = [(name, f"What is number {row} ?") for row, name in enumerate(fine)] if fine else []
    train = "".join(f"{name} {text}\n" for name, text in [*TREC_ROWS, *rows])
    content = {"train_5500__label": (train + "NUM:date When was \xf0 ?\n").encode("latin-1")}
    write(folder, **content, TREC_10__label="DESC:manner How come ?\n")
    return str(folder)


def test_trec_as_published_with_both_sets_of_classes(tmp_path):
    names = next(record.label_names for record in list_tasks(shipped_only=False) if record.name == "trec50")
    data = trec_files(tmp_path, fine=names)
    coarse, fine = load_task("trec", data=data), load_task("trec50", data=data)
    assert coarse.label_names == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert fine.label_names == tuple(sorted(names))
    assert coarse.train[0] == Example("How did it end ?", 1)
    assert coarse.train[-1] == Example("When was ð ?", 5)
    assert [fine.label_names[row.label] for row in fine.train[:3]] == [name for name, _ in TREC_ROWS]
    assert fine.test == (Example("How come ?", fine.label_names.index("DESC:manner")),)


def test_a_class_that_train_lacks_is_one_sentence(tmp_path):
    assert message("trec", trec_files(tmp_path)) == (
        f"The train rows of 'trec' from `{tmp_path}` must hold all its 6 classes, got none of 'ABBR', 'HUM', "
        "'LOC': add rows of them."
    )
    assert "got none of 'ABBR:abb', 'ABBR:exp', 'DESC:desc', 'DESC:reason', 'ENTY:body' and 41 more: add rows" in (
        message("trec50", str(tmp_path))
    )


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        (
            "mr",
            {"rt_DASH_polarity__neg": "bad\n"},
            "must have `rt-polarity.pos` beside `rt-polarity.neg`, got none of that name.",
        ),
        (
            "mr",
            {"rt_DASH_polarity__neg": "bad\n", "rt_DASH_polarity__pos": "\n \n"},
            "`rt-polarity.pos` must hold at least one row, got none.",
        ),
        (
            "sst2",
            {"sentiment_DASH_train": "good\t1\n\nbad 0\n", "sentiment_DASH_test": "no\t0\n"},
            "`sentiment-train` line 3 must be `sentence TAB 0 or 1`, got 'bad 0'.",
        ),
        (
            "trec",
            {"train_5500__label": "DESC How ?\n", "TREC_10__label": "NUM:date When ?\n"},
            "`train_5500.label` line 1 must be `COARSE:fine question`, got 'DESC How ?'.",
        ),
        (
            "trec",
            {"train_5500__label": "DESK:manner How ?\n", "TREC_10__label": "NUM:date When ?\n"},
            "`train_5500.label` row 1 must have a class of 'trec' in field `label_name` (ABBR, DESC, ENTY, HUM, LOC, "
            "NUM), got 'DESK'",
        ),
        (
            "mrpc",
            {"msr_paraphrase_train__txt": MRPC_HEADER + "1\t7\t8\tOnly one\n", "msr_paraphrase_test__txt": MRPC_HEADER},
            "`msr_paraphrase_train.txt` line 2 must be `Quality TAB #1 ID TAB #2 ID TAB #1 String TAB #2 String`, "
            "Quality being 0 or 1, got '1\\t7\\t8\\tOnly one'.",
        ),
        (
            "cr",
            {"custrev__neg": "same\nsame\n", "custrev__pos": "a\nb\n"},
            "Each class must have at least 2 different texts to be split into train and test: class 'negative' has 1.",
        ),
    ],
)
def test_published_files_that_cannot_be_used(tmp_path, name, files, said):
    write(tmp_path, **files)
    assert said in message(name, str(tmp_path))


# The normal form, and other layouts with named fields


def test_an_integer_counts_where_publishers_agree_on_it(tmp_path):
    rows = [{"sentence": "no", "label": 0}, {"sentence": "yes", "label": 1}]
    assert load_task("sst2", data=write_jsonl(tmp_path, train=rows, test=rows)).train[1] == Example("yes", 1)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl.gz").unlink()
        pd.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
    assert load_task("mr", data=str(tmp_path)).train[1] == Example("yes", 1)
    assert message("subj", str(tmp_path)) == (
        "`train.csv` row 1 must have a class of 'subj' in field `label` (objective, subjective), got '0' (publishers "
        "number these classes differently): give rows with `text` and `label_name` (objective, subjective), or the "
        "published `subj.objective` and `subj.subjective`."
    )


def test_a_name_counts_before_a_number(tmp_path):
    rows = [{"text": "no", "label": 1, "label_text": "negative"}, {"text": "yes", "label": 0, "label_text": "Positive"}]
    assert [row.label for row in load_task("cr", data=write_jsonl(tmp_path, train=rows, test=rows)).train] == [0, 1]


def test_categories_of_banking77_as_published(tmp_path):
    names = load_task("banking77").label_names
    frame = pd.DataFrame([{"text": f"text {name}", "category": name} for name in reversed(names)])
    for split in ("train", "test"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    task = load_task("banking77", data=str(tmp_path))
    assert task.label_names == names
    assert task.train[0] == Example(f"text {names[-1]}", 76)


def test_a_test_without_labels_gives_way_to_validation(tmp_path):
    rows = [{"sentence": "no", "label": 0}, {"sentence": "yes", "label": 1}]
    hidden = [{"sentence": "hm", "label": -1}]
    task = load_task("sst2", data=write_jsonl(tmp_path, train=rows, validation=rows[:1], test=hidden))
    assert (task.validation, task.test) == ((), (Example("no", 0),))
    assert task.warnings[0] == ("The 1 test rows are the data's validation rows: their test rows have no labels.")
    (tmp_path / "validation.jsonl.gz").unlink()
    assert "have no labels, so there must be validation rows to test on" in message("sst2", str(tmp_path))
    write_jsonl(tmp_path, validation=rows)
    assert "row 1 must have a class of 'mr' in field `label` (negative, positive), got -1" in (
        message("mr", str(tmp_path))
    )


def test_pairs_where_one_text_is_expected_and_the_other_way(tmp_path):
    pairs = [{"sentence1": f"a{label}", "sentence2": "b", "label": label} for label in (0, 1)]
    data = write_jsonl(tmp_path, train=pairs, test=pairs)
    assert load_task("mrpc", data=data).train == (Example("a0", 0, "b"), Example("a1", 1, "b"))
    assert message("mr", data) == (
        "`train.jsonl.gz` row 1 has two texts, `sentence1` and `sentence2`, but 'mr' has one a row: give rows with "
        "`text` and `label` (0 negative, 1 positive), or the published `rt-polarity.neg` and `rt-polarity.pos`."
    )
    write_jsonl(tmp_path, train=[{"text": "a", "label": 0}])
    assert "row 1 has no field `text_a` or `sentence1` or `text1`. Did you mean 'text'?" in message("mrpc", data)


@pytest.mark.parametrize("record", [task for task in list_tasks(shipped_only=False) if not task.split_sizes], ids=str)
def test_a_task_whose_rows_are_not_shipped_says_how_to_give_them(record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = message(record.name, "shipped")
    assert said.startswith(f"The rows of '{record}' are not shipped (licence: {record.licence}): load them with")
    assert f"`data=hub` ({record.hub}), or with `data=FOLDER`, a folder with train and test files, each row" in said
    assert said.endswith(f"{record.layout}.")
    (tmp_path / record.name).mkdir()
    assert message(record.name, "shipped").endswith(f"(`./{record}` is the folder of that name here.)")
    assert all((record.title, record.citation, record.source, record.splits, record.layout))


def test_a_folder_without_files_names_both_layouts(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert message("trec", str(tmp_path)) == (
        f"`{tmp_path}` must have a train file (train.jsonl, .json, .csv or .parquet; plain or .gz), got no data file. "
        "Each row with `text` and `label_name` (ABBR ...), or the published `train_5500.label` and `TREC_10.label`."
    )
    assert message("trec", "nowhere/at/all").startswith("`data` must be 'shipped', 'hub', 'hub:owner/name' or a folder")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("trec", {"label_column": "fine"}, "The task 'trec' has fixed columns, so `label_column` has nothing"),
        ("trec", {"text_pair_column": "b"}, "The task 'trec' has fixed columns, so `text_pair_column` has nothing"),
        ("sst2", {"split_seed": 3}, "bring their own splits, so `split_seed` has nothing to act on, got 3"),
        ("sst2", {"test_fraction": 0.3}, "bring their own splits, so `test_fraction` has nothing to act on, got 0.3"),
    ],
)
def test_settings_with_nothing_to_act_on(tmp_path, name, settings, said):
    rows = [{"text": "no", "label": 0}, {"text": "yes", "label": 1}]
    data = write_jsonl(tmp_path, train=rows, test=rows)
    assert said in message(name, data, ConfigurationError, **settings)


def test_ones_own_file_is_itself_the_data(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\na,0\nb,1\nc,0\nd,1\n")
    with pytest.raises(ConfigurationError, match="is itself the data, so `data` has nothing to act on, got 'hub'"):
        load_task(path, data="hub")


# The hub


class Split(list):
    """Rows with the features that the hub's client gives them."""

    def __init__(self, rows, **names):
        super().__init__(rows)
        self.features = {field: type("ClassLabel", (), {"names": found}) for field, found in names.items()}
        self.features["text"] = object()


@pytest.mark.parametrize(
    ("name", "repo", "config", "revision"),
    [
        ("mrpc", "nyu-mll/glue", "mrpc", None),
        ("sst2", "SetFit/sst2", None, None),
        ("mr", "cornell-movie-review-data/rotten_tomatoes", None, None),
    ],
)
def test_the_hub_is_asked_for_the_data_set_of_the_task(hub, name, repo, config, revision):
    texts = {"sentence1": "a", "sentence2": "b"} if name == "mrpc" else {"text": "a"}
    rows = [{**texts, "label": 0}, {**texts, "label": 1}]
    hub["splits"] = {"train": rows, "test": rows}
    task = load_task(name, data="hub")
    assert hub["loaded"] == [(repo, config, revision)]
    assert task.source == f"https://huggingface.co/datasets/{repo}, commit 0123abc"
    assert [row.label for row in task.train] == [0, 1]
    load_task(name, data="hub:me/mine")
    assert hub["loaded"][1] == ("me/mine", None, None)


def test_the_names_that_the_hub_gives_to_its_numbers_count(hub):
    order = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    rows = [{"text": f"What {number} ?", "coarse_label": number, "fine_label": 0} for number in range(6)]
    hub["splits"] = {split: Split(rows, coarse_label=order, fine_label=["ABBR:abb"]) for split in ("train", "test")}
    task = load_task("trec", data="hub")
    assert [task.label_names[row.label] for row in task.train] == order
    assert hub["loaded"] == [("CogComp/trec", None, "refs/convert/parquet")]
    assert "must hold all its 50 classes" in message("trec50", "hub")


def test_polarity_and_paraphrase_under_other_names(hub):
    rows = [{"text": "no", "label": 0}, {"text": "yes", "label": 1}]
    hub["splits"] = {split: Split(rows, label=["neg", "pos"]) for split in ("train", "test")}
    assert [row.label for row in load_task("mr", data="hub").train] == [0, 1]
    pairs = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0, 1)]
    hub["splits"] = {split: Split(pairs, label=["not_equivalent", "equivalent"]) for split in ("train", "test")}
    assert [row.label for row in load_task("mrpc", data="hub").train] == [0, 1]


def test_a_hub_that_has_no_such_rows_says_what_to_do(hub):
    hub["splits"] = RuntimeError("no such data set")
    said = message("mpqa", "hub")
    assert said.startswith("`rahulsikder223/SentEval-MPQA` cannot be had from the hub (RuntimeError: no such data set)")
    assert said.endswith("or SentEval's `mpqa.neg` and `mpqa.pos`.")
    hub["splits"] = {"train": [{"text": "a", "label": 0}]}
    assert message("trec", "hub") == "`CogComp/trec` on the hub must have rows in `test`, got train."


# Real data


@needs_shared
@pytest.mark.parametrize("name", ["mr", "subj", "cr", "banking77"])
def test_the_folder_of_a_shipped_task_is_the_shipped_task(name):
    task = load_task(name, data=str(SHARED / name))
    shipped = load_task(name)
    assert (task.fingerprint, task.label_names, task.warnings) == (shipped.fingerprint, shipped.label_names, ())


@needs_shared
@pytest.mark.parametrize(
    ("name", "sizes", "rarest"),
    [("sst2", (6909, 872, 1821), 909), ("mrpc", (3669, 407, 1725), 578), ("trec", (4832, 537, 500), 9)],
)
def test_real_rows_under_their_names(name, sizes, rarest):
    task = load_task(name, data=str(SHARED / name))
    assert (len(task.train), len(task.validation), len(task.test)) == sizes
    assert min(rows_per_class(task.test, task.num_classes)) == rarest
    assert task.warnings == ()
    assert task.has_pairs == (name == "mrpc")
    for fold in range(4):
        part = fold_task(task, fold=fold, folds=4)
        assert abs(len(part.test) - sum(sizes) / 4) < 2


@needs_shared
def test_all_fifty_classes_of_trec_occur_in_train_and_the_rarest_allows_three_folds():
    task = load_task("trec50", data=str(SHARED / "trec"))
    assert min(rows_per_class(task.train, 50)) == 3
    own = load_task(SHARED / "trec", label_column="fine")
    assert (task.fingerprint, task.label_names) == (own.fingerprint, own.label_names)
    assert min(rows_per_class(fold_task(task, fold=2, folds=3).test, 50)) == 1
    with pytest.raises(DataError, match="'NUM:ord' has 3: take at most 3 folds"):
        fold_task(task, fold=0, folds=4)


@needs_shared
def test_rows_written_as_published_are_the_rows(tmp_path):
    for name in CLASS_FILES.keys() - {"mpqa"}:
        folder = tmp_path / name
        folder.mkdir()
        task = load_task(name)
        rows = (*task.train, *task.validation, *task.test)
        for label, file in enumerate(CLASS_FILES[name]):
            text = "".join(f"{row.text} \r\n" for row in rows if row.label == label)
            # As the authors wrote it where that can be.
            content = text.encode("cp1252") if name == "cr" else text.encode()
            (folder / file).write_bytes(content)
        read = load_task(name, data=str(folder))
        assert sorted((row.text, row.label) for row in (*read.train, *read.test)) == (
            sorted((row.text, row.label) for row in rows)
        )
