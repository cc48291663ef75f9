"""One's own file: every format gives the same task, nothing is guessed, bad input gets one clear sentence."""

import json

import pytest
from own_files import error_of, write, write_text

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import load_task
from lossmith.tasks.unlabelled import read_texts

TRAPS = [
    "NA",
    "null",
    "1e5",
    "007",
    "nan",
    "True",
    "None",
    "1.0",
    '"quoted", he said',
    "two\nlines",
    "é \u2028 ü",
    "=1+1",
]


def trap_rows():
    return [{"text": text, "label": ["NA", "007", "x"][index % 3]} for index, text in enumerate(TRAPS)]


FORMATS = [
    "a.csv",
    "a.tsv",
    "a.jsonl",
    "a.ndjson",
    "a.json",
    "a.parquet",
    "a.csv.gz",
    "a.tsv.gz",
    "a.jsonl.gz",
    "a.json.gz",
]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_texts_and_labels_as_written(tmp_path, name):
    task = load_task(write(tmp_path, name, trap_rows()))
    assert task.label_names == ("007", "NA", "x")
    loaded = {(example.text, task.label_names[example.label]) for example in (*task.train, *task.test)}
    assert loaded == {(row["text"], row["label"]) for row in trap_rows()}
    assert (task.name, task.validation) == ("a", ())


def test_every_format_gives_the_same_fingerprint(tmp_path):
    assert len({load_task(write(tmp_path, name, trap_rows())).fingerprint for name in FORMATS}) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\nyes,1\r\nno,0\r\nwell,1\r\nnever,0\r\n")
    assert load_task(path).label_names == ("0", "1")


def test_line_ends_inside_a_cell_stay_as_they_are(tmp_path):
    path = write_text(tmp_path, "a.csv", 'text,label\r\n"one\r\ntwo",0\r\nb,1\r\n"c\nd",0\r\ne,1\r\n')
    task = load_task(path)
    assert {example.text for example in (*task.train, *task.test)} == {"one\r\ntwo", "b", "c\nd", "e"}


def test_a_json_array_is_read_like_json_lines(tmp_path):
    path = write_text(tmp_path, "a.json", json.dumps(trap_rows(), indent=1))
    assert load_task(path).fingerprint == load_task(write(tmp_path, "b.jsonl", trap_rows())).fingerprint


def test_a_cell_may_hold_a_whole_book(tmp_path):
    rows = [{"text": f"{index} " + "word " * 40_000, "label": index % 2} for index in range(4)]
    assert len(load_task(write(tmp_path, "a.csv", rows)).train[0].text) > 200_000


def test_other_column_names(tmp_path):
    rows = [{"review": f"film {index}", "stars": index % 5 + 1, "text": "", "label": ""} for index in range(20)]
    task = load_task(write(tmp_path, "a.csv", rows), text_column="review", label_column="stars")
    assert task.label_names == ("1", "2", "3", "4", "5")
    assert all(int(example.text.split()[1]) % 5 == example.label for example in task.train)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        ([True, False, True], ("False", "True")),
        (["b", "a", "B"], ("B", "a", "b")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["9", "010", "9"], ("010", "9")),
        ([" a", "a ", "b"], ("a", "b")),
    ],
)
def test_class_order_follows_the_labels_and_not_the_rows(tmp_path, name, labels, names):
    rows = [{"text": f"text {index}", "label": labels[index % 3]} for index in range(9)]
    assert load_task(write(tmp_path, name, rows)).label_names == names


def test_whole_floats_of_a_parquet_file_are_integers(tmp_path):
    rows = [{"text": f"text {index}", "label": float(index % 2)} for index in range(6)]
    assert load_task(write(tmp_path, "a.parquet", rows)).label_names == ("0", "1")


def named_rows(pairs):
    return [{"text": f"text {index}", "label": label, "label_name": name} for index, (label, name) in enumerate(pairs)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_label_names_come_from_their_column(tmp_path, name):
    task = load_task(write(tmp_path, name, named_rows([(1, "good"), (0, "bad")] * 4)))
    assert task.label_names == ("bad", "good")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, "bad"), (1, "good"), (0, "good")] * 3, "must give label '0' one name, got ['bad', 'good']"),
        ([(0, "bad"), (1, "bad")] * 3, "must give each label its own name, got ['bad', 'bad']"),
        ([(0, ""), (1, "good")] * 3, "must give label '0' one name, got ['']"),
    ],
)
def test_label_names_that_contradict_the_labels_are_refused(tmp_path, pairs, message):
    said = error_of(write(tmp_path, "a.csv", named_rows(pairs)))
    assert message in said
    assert "correct or remove the column 'label_name'" in said


def test_names_of_another_label_column_are_left_alone(tmp_path):
    rows = [{**row, "fine": index % 4} for index, row in enumerate(named_rows([(0, "bad"), (1, "good")] * 8))]
    assert load_task(write(tmp_path, "a.csv", rows), label_column="fine").label_names == ("0", "1", "2", "3")


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "`a.csv` must hold rows, got an empty file."),
        ("a.jsonl", " \n\n", "`a.jsonl` must hold rows, got an empty file."),
        ("a.csv", "text,label\n", "`a.csv` must hold at least one row, got none."),
        ("a.json", "[]", "`a.json` must hold at least one row, got none."),
        ("a.csv", "text,label\na,b,1\n", "line 2 must have 2 cells like the header, got 3"),
        ("a.csv", "text,label\na,0\n\nb,c,1\n", "line 4 must have 2 cells like the header, got 3"),
        ("a.csv", 'text,label\n"a\nb",0\nc\n', "line 4 must have 2 cells like the header, got 1"),
        ("a.csv", 'text,label\na,0\n"b" c,1\n', "`a.csv` is malformed in line 3: ',' expected after '\"'."),
        ("a.csv", 'text,label\na,0\n"b,1\nc,0\n', "`a.csv` is malformed in line 3: unexpected end of data."),
        ("a.csv", "text,label,text\na,0,b\n", "must have one column 'text', got 2 of that name"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b" "label": 1}\n', "not valid JSON in line 2, column 14"),
        ("a.json", '[\n{"text": "a",\n "label" 0}]', "not valid JSON in line 3, column 10"),
        ("a.jsonl", '{"text": "a", "label": 0}\n\n["b", 1]\n', "line 3 must be a JSON object, got list"),
        ("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n", "JSON from line 1 that cannot be read"),
        ("a.jsonl", '{"text": "\\ud800", "label": 0}\n', "half of a surrogate pair in row 1"),
        ("a.parquet", "PAR1", "`a.parquet` must be a parquet file"),
        ("a.csv.gz", "text,label\n", "`a.csv.gz` must be a complete gzip file"),
        ("a.xlsx", "PK", "`a.xlsx` must be CSV, TSV, JSONL (each plain or .gz) or parquet"),
    ],
)
def test_a_malformed_file_says_what_and_where(tmp_path, name, text, message):
    assert message in error_of(write_text(tmp_path, name, text))


def test_a_truncated_gzip_file_is_named(tmp_path):
    path = write(tmp_path, "a.jsonl.gz", trap_rows())
    path.write_bytes(path.read_bytes()[:-20])
    assert "must be a complete gzip file" in error_of(path)


def test_other_encodings_are_named_with_byte_and_line(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("text,label\nwell,0\ncafé,1\n".encode("latin-1"))
    assert error_of(path) == "`latin.csv` must be UTF-8, got byte 0xe9 in line 3: save it as UTF-8."


def test_a_missing_file_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("reviews.csv", "data/reviews", str(tmp_path / "no")):
        with pytest.raises(DataError, match=f"There is no file or folder `{name}`"):
            load_task(name)


def test_a_missing_column_names_those_there_are_and_the_nearest(tmp_path):
    path = write_text(tmp_path, "a.csv", "texts,label,id\na,0,1\n")
    assert error_of(path, text_column="text_s") == (
        "`a.csv` has no column 'text_s' (`text_column`). Did you mean 'texts'? Its columns: 'texts', 'label', 'id'."
    )
    assert "no column 'lable' (`label_column`). Did you mean 'label'?" in error_of(
        path, text_column="texts", label_column="lable"
    )


def test_a_missing_column_that_nobody_named_is_no_spelling_mistake(tmp_path):
    path = write_text(tmp_path, "a.csv", "ticket,labels\na,0\n")
    assert error_of(path) == (
        "`a.csv` has no column 'text', which is read where none is named: give `text_column=NAME` "
        "(`--text-column NAME`). Its columns: 'ticket', 'labels'."
    )
    assert error_of(path, text_column="ticket") == (
        "`a.csv` has no column 'label', which is read where none is named: give `label_column=NAME` "
        "(`--label-column NAME`). Its columns: 'ticket', 'labels'."
    )


def test_texts_to_be_asked_about_name_their_column(tmp_path):
    path = write_text(tmp_path, "new.csv", "ticket,id\na,0\n")

    def said(**named: str) -> str:
        with pytest.raises(DataError) as caught:
            read_texts(path, **named)
        return str(caught.value).replace(str(path), "new.csv")

    assert said() == (
        "`new.csv` has no column 'text', which is read where none is named: give `--text-column NAME`. "
        "Its columns: 'ticket', 'id'."
    )
    assert "no column 'tickets' (`--text-column`). Did you mean 'ticket'?" in said(text_column="tickets")


def test_a_file_without_a_header_gets_a_short_sentence(tmp_path):
    path = write_text(
        tmp_path, "a.csv", f'"first\nsecond {"word " * 500}",1' + ",x" * 50 + "\n" + "a" + ",y" * 51 + "\n"
    )
    message = error_of(path)
    assert "Its columns: 'first\\nsecon...rd word word ', '1', 'x'" in message
    assert message.endswith("'x' and 32 more.")


@pytest.mark.parametrize(
    ("name", "missing"),
    [("a.csv", ""), ("a.csv", "  "), ("a.jsonl", None), ("a.jsonl", float("nan")), ("a.parquet", None)],
)
@pytest.mark.parametrize("column", ["text", "label"])
def test_missing_cells_are_counted_and_placed(tmp_path, name, missing, column):
    rows = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(20)]
    for index in (1, 4, 5, 9, 12, 13, 19):
        rows[index][column] = missing
    message = error_of(write(tmp_path, name, rows))
    assert f"must have a {column} in every row of column '{column}', got 7 of 20 without" in message
    assert "(row 2, 5, 6, 10, 13 and 2 more; row 1 is the first after a header)" in message


def test_a_key_left_out_of_a_json_object_is_a_missing_cell(tmp_path):
    path = write_text(tmp_path, "a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n')
    assert "must have a label in every row of column 'label', got 1 of 2 without (row 2;" in error_of(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0), (5, 1)], "column 'text' must hold strings, got int in row 2"),
        ([("a", 0.5), ("b", 1)], "must hold strings, integers or booleans, got 0.5 (float) in row 1"),
        ([("a", [0]), ("b", [1])], "must hold strings, integers or booleans, got [0] (list) in row 1"),
        ([("a", 0), ("b", "1")], "must hold labels of one type, got int (row 1), str (row 2)"),
        ([("a", 0), ("b", 1), ("c", True)], "must hold labels of one type, got int (row 1), bool (row 3)"),
        ([("a", 3), ("b", 3)], "must have at least 2 classes in column 'label', got only '3' in all 2 rows"),
    ],
)
def test_cells_of_the_wrong_kind_are_refused(tmp_path, rows, message):
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    assert message in error_of(write_text(tmp_path, "a.jsonl", lines))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0.0}, "`test_fraction` must be between 0 and 1, got 0.0"),
        ({"test_fraction": float("nan")}, "`test_fraction` must be between 0 and 1, got nan"),
        ({"split_seed": -1}, "`split_seed` must be an integer >= 0, got -1"),
        ({"label_column": "text"}, "`text_column` and `label_column` must differ, got 'text' for both"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        load_task(write(tmp_path, "a.csv", trap_rows()), **settings)
