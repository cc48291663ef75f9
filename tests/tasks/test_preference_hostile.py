"""Rows that cannot be used: one sentence that says which, what was expected and what came."""

import pytest
from preference_files import (
    assistant,
    comparison,
    complaint,
    everything,
    pair,
    rating,
    responses,
    save,
    system,
    user,
)

from lossmith.errors import DataError
from lossmith.tasks import load_preference_task, load_unpaired_task

GOOD = [pair(number) for number in range(4)]
CHAT = {"chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]}


def said(folder, row, **settings):
    return complaint(save(folder, "rows.jsonl", [*GOOD, row]), **settings)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (pair(9, chosen=None), "must have a value in field `chosen`, got null."),
        (pair(9, prompt=None), "must have a value in field `prompt`, got null."),
        (pair(9, prompt=" \n"), "has nothing in field `prompt`: fill it in or remove the row."),
        (pair(9, chosen=True), "must have text or messages in field `chosen`, got True (bool)."),
        (pair(9, chosen=float("nan")), "must have text or messages in field `chosen`, got nan (float)."),
        (pair(9, rejected={"text": "a"}), "must have text or messages in field `rejected`, got {'text': 'a'} (dict)."),
        (pair(9, chosen=[]), "must have messages in field `chosen`, got an empty list."),
        (
            pair(9, chosen=["a"]),
            "must have messages with `role` and `content` in field `chosen`, got str as message 1.",
        ),
        (
            {**CHAT, "prompt": "Q", "chosen": [{"from": "human", "value": "a"}]},
            "must have messages with `role` and `content` in field `chosen`, got dict with from, value as message 1.",
        ),
        (
            {**CHAT, "prompt": "Q", "chosen": [user("Q"), {"role": "tool", "content": "a"}]},
            "must have messages with `role` and `content` in field `chosen`, the role one of system, user, assistant, "
            "got 'tool' in message 2.",
        ),
        (
            {**CHAT, "prompt": "Q", "rejected": [user("Q"), assistant(None)]},
            "must have messages with `role` and `content` in field `rejected`, the content a text, got None (NoneType) "
            "in message 2.",
        ),
        (
            {**CHAT, "prompt": "Q", "rejected": [user("Q"), assistant([{"type": "image"}])]},
            "must have messages with `role` and `content` in field `rejected`, the content a text, got [{'type': "
            "'image'}] (list) in message 2.",
        ),
        (
            {"prompt": "Q", "chosen": [assistant("a"), user("Q")], "rejected": [assistant("b"), user("Q")]},
            "must have the assistant's turn last in field `chosen`, got the user's: are the roles swapped?",
        ),
        (
            {"prompt": "Q", "chosen": [user("Q")], "rejected": [user("Q")]},
            "must have the assistant's turn last in field `chosen`, got the user's: are the roles swapped?",
        ),
        (
            {"prompt": [user("Q"), assistant("A")], "chosen": "a", "rejected": "b"},
            "must have a `prompt` that ends with the user's turn, got the assistant's last.",
        ),
        (
            {"prompt": "Q", "chosen": [system("s"), assistant("a")], "rejected": [system("s"), assistant("b")]},
            "must have the user's turn before the answer in field `chosen`, got the system's.",
        ),
        (
            pair(9, chosen=[assistant("a")]),
            "must have `chosen` and `rejected` both as text or both as messages, got one of each.",
        ),
        (pair(9, chosen="a\ud800"), "must have valid Unicode in field `chosen`, got half of a surrogate pair."),
        (pair(9, score_chosen="best"), "must have a finite number in field `score_chosen`, got 'best'."),
        (
            pair(9, score_chosen=1, score_rejected=[2]),
            "must have a finite number in field `score_rejected`, got [2].",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, sentence):
    assert said(tmp_path, row) == f"`rows.jsonl` row 5 {sentence}"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (comparison(1, choice=2), "must have 0 or 1 in field `choice`, the index of the better answer, got 2."),
        (comparison(1, choice=True), "must have 0 or 1 in field `choice`, the index of the better answer, got True."),
        (comparison(1, post=None), "must have a value in field `info.post`, got null."),
        ({**comparison(1), "info": "text"}, "must have an object in field `info`, got 'text'."),
        ({**comparison(1), "summaries": [{"text": "a"}]}, "must have a list of two in field `summaries`, got [{"),
        (
            {**comparison(1), "summaries": [{"text": "a"}, {}]},
            "must have a `text` in each of its `summaries`, got {} as 1.",
        ),
        ({**responses(1), "responses": ["a", 2]}, "must have texts in field `responses`, got ['a', 2]."),
        ({**responses(1), "responses": []}, "must have a list of two in field `responses`, got []."),
        (
            {**responses(1), "chosen": "first"},
            "must have 0 or 1 in field `chosen`, the index of the better answer, got ",
        ),
        ({**responses(1), "scores": ["x", 1]}, "must have a finite number in field `scores`, got 'x'."),
    ],
)
def test_a_bad_row_of_a_published_layout_is_named(tmp_path, row, sentence):
    good = [comparison(n) if "info" in row else responses(n) for n in range(3)]
    message = complaint(save(tmp_path, "rows.jsonl", [*good, row]))
    assert message.startswith(f"`rows.jsonl` row 4 {sentence}")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**rating(1), "label": None}, "must have a value in field `label`, got null."),
        ({**rating(1), "label": "maybe"}, "must have true or false in field `label`, got 'maybe'."),
        ({**rating(1), "label": 2}, "must have true or false in field `label`, got 2."),
        ({**rating(1), "completion": None}, "must have a value in field `completion`, got null."),
    ],
)
def test_a_bad_unpaired_row_is_named(tmp_path, row, sentence):
    path = save(tmp_path, "rows.jsonl", [rating(0), rating(1), rating(2), row])
    assert complaint(path, load_unpaired_task) == f"`rows.jsonl` row 4 {sentence}"


def test_answers_of_one_kind_teach_nothing(tmp_path):
    path = save(tmp_path, "rows.jsonl", [{**rating(n), "label": True} for n in range(10)])
    assert complaint(path, load_unpaired_task) == (
        "Task 'rows' must have good and bad answers in `train`, got good ones only: nothing tells what to prefer."
    )


def test_unpaired_rows_are_not_taken_for_pairs(tmp_path):
    assert complaint(save(tmp_path, "rows.jsonl", [rating(n) for n in range(9)])) == (
        "`rows.jsonl` holds unpaired rows (`prompt`, `completion` and `label`), and pairs are needed, with `chosen` "
        "and `rejected`: `load_unpaired_task` reads unpaired rows, and kto and bco train on them."
    )


@pytest.mark.parametrize("load", [load_preference_task, load_unpaired_task])
def test_unknown_columns_are_listed_with_those_that_are_wanted(tmp_path, load):
    path = save(tmp_path, "rows.csv", [{"question": "Q", "answer_a": "a", "answer_b": "b"}])
    assert complaint(path, load) == (
        "`rows.csv` must have the columns of a preference layout: `chosen` and `rejected` (with `prompt`, or beginning "
        "with it); `prompt`, `responses` and `chosen`; `info`, `summaries` and `choice`; or, unpaired, `prompt`, "
        "`completion` and `label`; got `question`, `answer_a`, `answer_b`."
    )


def test_texts_without_a_prompt_that_begin_differently(tmp_path):
    rows = [{"chosen": f"Sky {n} is blue", "rejected": f"Sky {n} is red"} for n in range(3)]
    path = save(tmp_path, "rows.jsonl", [*rows, {"chosen": "Blue", "rejected": "Red"}])
    assert complaint(path) == (
        "`rows.jsonl` row 4 must have a `prompt`, or `chosen` and `rejected` that begin with it, got two texts that "
        "begin differently."
    )


def test_chats_with_different_prompts_are_left_out_and_counted(tmp_path):
    rows = [{"chosen": [user(f"{n}"), assistant("a")], "rejected": [user(f"{n}"), assistant("b")]} for n in range(8)]
    rows[3]["rejected"][0] = user("Another question")
    rows[5] = {
        "chosen": [user("5"), assistant("x"), user("go on"), assistant("a")],
        "rejected": [user("5"), assistant("y"), user("go on"), assistant("b")],
    }
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert len(everything(task)) == 6
    assert task.warnings[0] == (
        "2 of 8 file rows have other messages before the two answers, so that these answer different prompts, and are "
        "left out."
    )


def test_identical_answers_are_left_out_and_counted(tmp_path):
    rows = [pair(n) for n in range(8)]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows.append({"prompt": "Q?", "chosen": "", "rejected": ""})
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert len(everything(task)) == 7
    assert task.warnings[0] == "2 of 9 file rows have identical answers, which prefer nothing, and are left out."


def test_nothing_but_identical_answers_is_refused(tmp_path):
    path = save(tmp_path, "rows.jsonl", [pair(n, rejected=f" good {n}") for n in range(5)])
    assert complaint(path) == (
        "`rows.jsonl` must have a row that can be used, got none: 5 of 5 file rows have identical answers, which "
        "prefer nothing, and are left out."
    )


def test_empty_answers_stay_and_are_counted(tmp_path):
    rows = [pair(n) for n in range(10)]
    rows[0]["chosen"] = ""
    rows[1]["rejected"] = " \n"
    for split in ("train", "validation", "test"):
        save(tmp_path, f"{split}.jsonl", rows if split == "train" else [pair(split), pair(split * 2)])
    task = load_preference_task(tmp_path)
    assert len(task.train) == 10
    assert task.warnings == (
        "1 of 10 train pairs have an empty chosen answer.",
        "1 of 10 train pairs have an empty rejected answer.",
    )


def test_swapped_columns_are_suspected_when_most_scores_say_so(tmp_path):
    rows = [pair(n, score_chosen=1.0, score_rejected=2.0 if n < 6 else 0.0) for n in range(10)]
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert task.warnings[-1] == "The chosen answer has the lower score in 6 of 10 pairs: are the columns swapped?"
    rows = [pair(n, score_chosen=1.0, score_rejected=2.0 if n < 5 else 0.0) for n in range(10)]
    assert "swapped" not in " ".join(load_preference_task(save(tmp_path, "rows.jsonl", rows)).warnings)


def test_a_prompt_that_is_none_of_the_messages_is_counted(tmp_path):
    rows = [{"prompt": f"P{n}", "chosen": [user(f"Q{n}"), assistant("a")], "rejected": [user(f"Q{n}"), assistant("b")]} for n in range(5)]  # fmt: skip  # noqa: E501
    rows[0]["prompt"] = " Q0\n"
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert task.warnings[0] == ("4 of 5 file rows have a `prompt` that is none of their messages; the messages count.")
    assert {row.prompt[0].content for row in everything(task)} == {f"Q{n}" for n in range(5)}


def test_answers_that_repeat_the_prompt_are_counted(tmp_path):
    rows = [pair(n, chosen=f"Q{n}? yes", rejected=f"Q{n}? no") for n in range(5)]
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert task.warnings[0] == (
        "5 of 5 file rows have answers that begin with the prompt, which are read as they stand."
    )


def test_huge_answers_and_odd_characters_come_through(tmp_path):
    long = "word\u2028 \N{GRINNING FACE}\t" * 100_000
    rows = [pair(n, chosen=long, rejected="\x00\x1b[31m") for n in range(3)]
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        task = load_preference_task(save(tmp_path, name, rows))
        assert {(row.chosen, row.rejected) for row in everything(task)} == {(long, "\x00\x1b[31m")}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "rows.jsonl",
            b'{"prompt": "\xff"}\n',
            "`rows.jsonl` must be UTF-8, got byte 0xff in line 1: save it as UTF-8.",
        ),
        ("rows.jsonl", b"[]", "`rows.jsonl` must hold at least one row, got none."),
        ("rows.jsonl", b'"text"\n', "`rows.jsonl` line 1 must be a JSON object, got str."),
        ("rows.json", b'[{"prompt": 1}, 2]', "`rows.json` row 2 must be a JSON object, got int."),
        ("rows.csv", b"prompt,chosen,rejected\n", "`rows.csv` must hold at least one row, got none."),
        ("rows.csv", b"", "`rows.csv` must hold rows, got an empty file."),
        (
            "rows.txt",
            b"x",
            "`rows.txt` must be CSV, TSV, JSONL (each plain or .gz) or parquet, got a file of another kind",
        ),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert complaint(tmp_path / name).startswith(sentence)


def test_a_folder_without_a_train_file_is_named(tmp_path):
    save(tmp_path, "test.jsonl", GOOD)
    with pytest.raises(
        DataError, match=r"must have a train file \(train\.jsonl, .*got test\.jsonl\. Each row with `prompt`"
    ):
        load_preference_task(tmp_path)
