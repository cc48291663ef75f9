"""Each layout of preferences, in each kind of file, comes out as the same pairs."""

import random

import pytest
from preference_files import assistant, comparison, everything, pair, rating, responses, save, system, user

from lossmith.tasks import Message, load_preference_task, load_unpaired_task, unpaired_rows
from lossmith.tasks._fields import Fields
from lossmith.tasks.preference_layouts import common_beginning, layout_of

FILES = ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"]


def loaded(folder, name, rows):
    task = load_preference_task(save(folder, name, rows))
    return {found.id: found for found in everything(task)}


@pytest.mark.parametrize("name", FILES)
def test_texts_with_a_prompt(tmp_path, name):
    found = loaded(tmp_path, name, [pair(n, id=f"r{n}", score_chosen=n + 0.5, score_rejected=-1) for n in range(10)])
    assert len(found) == 10
    row = found["r7"]
    assert (row.prompt, row.chosen, row.rejected) == ("Q7?", " good 7", " bad 7")
    assert (row.chosen_score, row.rejected_score) == (7.5, -1.0)


@pytest.mark.parametrize("name", FILES)
def test_chats_that_hold_the_prompt(tmp_path, name):
    before = [system("Be short."), user("Hi"), assistant("Hello")]
    rows = [
        {
            "id": f"r{n}",
            "chosen": [*before, user(f"And {n}?"), assistant(f"yes {n}")],
            "rejected": [*before, user(f"And {n}?"), assistant(f"no {n}")],
        }
        for n in range(10)
    ]
    row = loaded(tmp_path, name, rows)["r3"]
    assert row.prompt == (
        Message("system", "Be short."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And 3?"),
    )  # fmt: skip
    assert (row.chosen, row.rejected) == ("yes 3", "no 3")


@pytest.mark.parametrize("name", FILES)
def test_chats_with_a_prompt_of_messages(tmp_path, name):
    rows = [
        {"id": f"r{n}", "prompt": [user(f"Q{n}")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
        for n in range(10)
    ]
    row = loaded(tmp_path, name, rows)["r4"]
    assert (row.prompt, row.chosen, row.rejected) == ((Message("user", "Q4"),), "a", "b")


@pytest.mark.parametrize("name", FILES)
def test_ultrafeedback_whose_prompt_repeats_the_first_turn(tmp_path, name):
    rows = [
        {
            "prompt": f"Q{n}",
            "prompt_id": f"x{n}",
            "chosen": [user(f"Q{n}"), assistant("a")],
            "rejected": [user(f"Q{n}"), assistant("b")],
            "messages": [user(f"Q{n}"), assistant("a")],
            "score_chosen": 8.0,
            "score_rejected": 4.0,
        }
        for n in range(10)
    ]
    task = load_preference_task(save(tmp_path, name, rows))
    assert all(row.prompt[0].content.startswith("Q") and len(row.prompt) == 1 for row in everything(task))
    assert {(row.chosen, row.rejected, row.chosen_score) for row in everything(task)} == {("a", "b", 8.0)}
    assert len(task.warnings) == 1  # the cut of validation alone: the prompt is one of the messages


def test_a_chat_needs_no_prompt_beside_it(tmp_path):
    rows = [{"id": n, "prompt": f"Q{n}", "chosen": [user(f"Q{n}"), assistant("a")], "rejected": [user(f"Q{n}"), assistant("b")]} for n in "0123"]  # fmt: skip  # noqa: E501
    rows[1]["prompt"], rows[2]["prompt"] = "", None
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert sorted(row.prompt[0].content for row in everything(task)) == ["Q0", "Q1", "Q2", "Q3"]
    assert len(task.warnings) == 1  # the cut


def test_a_prompt_of_messages_is_put_before_the_chat_unless_it_begins_with_it(tmp_path):
    asked, more = user("Q"), [assistant("What?"), user("This")]
    rows = [{"prompt": [asked], "chosen": [*more, assistant("a")], "rejected": [*more, assistant("b")]}]
    rows += [{"prompt": [asked], "chosen": [asked, assistant("a")], "rejected": [asked, assistant("b")]}]
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows), test_fraction=0.5)
    assert sorted((row.prompt for row in everything(task)), key=len) == [
        (Message("user", "Q"),),
        (Message("user", "Q"), Message("assistant", "What?"), Message("user", "This")),
    ]


def test_a_prompt_of_text_before_an_answer_alone_is_the_users_turn(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"Q{n}", "chosen": [assistant("a")], "rejected": [assistant("b")]} for n in "012"]
    assert loaded(tmp_path, "rows.jsonl", rows)["r1"].prompt == (Message("user", "Q1"),)


def test_messages_with_text_answers_as_the_shipped_sets_have_them(tmp_path):
    rows = [{"id": f"r{n}", "prompt": [user(f"Q{n}")], "chosen": "[1, 2]", "rejected": '[{"a": 1}]'} for n in "012"]
    for name in ("rows.jsonl", "rows.csv"):  # answers that look like lists stay texts
        row = loaded(tmp_path, name, rows)["r1"]
        assert (row.prompt, row.chosen, row.rejected) == ((Message("user", "Q1"),), "[1, 2]", '[{"a": 1}]')


def test_content_in_parts_of_text_is_joined(tmp_path):
    parts = {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "it"}]}
    rows = [{"prompt": [parts, assistant("?"), user(n)], "chosen": "a", "rejected": "b"} for n in "012"]
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert {row.prompt[0].content for row in everything(task)} == {"Say it"}


@pytest.mark.parametrize("name", FILES)
def test_texts_that_begin_with_the_prompt(tmp_path, name):
    rows = [{"id": f"r{n}", "chosen": f"Sky {n} is blue.", "rejected": f"Sky {n} is green."} for n in range(10)]
    row = loaded(tmp_path, name, rows)["r5"]
    assert (row.prompt, row.chosen, row.rejected) == ("Sky 5 is", " blue.", " green.")


def test_the_common_beginning_is_that_of_trl():
    extract = pytest.importorskip("trl.data_utils").extract_prompt
    draw = random.Random(4)
    fields = Fields("`rows`", 1, "1", {})
    compared = 0
    for _ in range(3000):
        begin = "".join(draw.choices("ab ", k=draw.randint(1, 5)))
        chosen, rejected = (begin + "".join(draw.choices("ab ", k=draw.randint(0, 4))) for _ in range(2))
        if chosen == rejected or not begin.strip() or min(len(chosen), len(rejected)) < 2:
            continue
        wanted = extract({"chosen": chosen, "rejected": rejected})
        if wanted["prompt"].strip():
            assert common_beginning(fields, chosen, rejected) == (
                wanted["prompt"],
                wanted["chosen"],
                wanted["rejected"],
            )
            compared += 1
    assert compared > 1000


def test_the_common_beginning_never_leaves_an_answer_without_text():
    assert common_beginning(Fields("`rows`", 1, "1", {}), "2+2=4", "2+2=42") == ("2+2=", "4", "42")


@pytest.mark.parametrize("name", FILES)
def test_every_prompt_of_tldr_holds_the_post_and_choice_decides(tmp_path, name):
    rows = [comparison(number) for number in range(12)]
    task = load_preference_task(save(tmp_path, name, rows))
    found = everything(task)
    assert len(found) == 12
    for row in rows:
        (one,) = [pair for pair in found if row["info"]["post"] in pair.prompt]
        assert one.prompt == (
            f"SUBREDDIT: r/pets\n\nTITLE: {row['info']['title']}\n\nPOST: {row['info']['post']}\n\nTL;DR:"
        )
        assert one.chosen == row["summaries"][row["choice"]]["text"]
        assert one.rejected == row["summaries"][1 - row["choice"]]["text"]
    assert {row["choice"] for row in rows} == {0, 1}


def test_braces_in_a_post_are_text(tmp_path):
    rows = [comparison(number, post=f"{{title}} {number} {{0}}") for number in range(3)]
    assert all(
        "POST: {title} " in row.prompt for row in everything(load_preference_task(save(tmp_path, "r.jsonl", rows)))
    )


def test_rows_about_news_articles_are_left_out_and_counted(tmp_path):
    rows = [comparison(number) for number in range(6)]
    rows += [comparison(9, post=None, subreddit=None, article="News.", site="cnn") for _ in range(2)]
    task = load_preference_task(save(tmp_path, "rows.jsonl", rows))
    assert len(everything(task)) == 6
    assert task.warnings[0] == "2 of 8 file rows are about news articles, not posts, and are left out."


@pytest.mark.parametrize("name", FILES)
def test_imdb_preference_by_its_index(tmp_path, name):
    rows = [responses(number) for number in range(10)]
    task = load_preference_task(save(tmp_path, name, rows))
    for row in everything(task):
        number = row.prompt.removeprefix("This film ")
        assert (row.chosen, row.rejected) == (f" fine {number}", f" poor {number}")
        assert (row.chosen_score, row.rejected_score) == (2.5, -1.5)


@pytest.mark.parametrize("name", FILES)
def test_unpaired_rows(tmp_path, name):
    task = load_unpaired_task(save(tmp_path, name, [rating(number) for number in range(20)]))
    found = everything(task)
    assert len(found) == 20
    assert {(row.prompt, row.completion): row.label for row in found} == {
        (f"Q{n // 2}?", f" answer {n}"): n % 2 == 0 for n in range(20)
    }
    sides = [{row.prompt for row in rows} for rows in (task.train, task.validation, task.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


@pytest.mark.parametrize("bad_good", [(0, 1), ("0", "1"), ("False", "True"), ("false", " true "), (0.0, 1.0)])
def test_labels_in_other_writing(tmp_path, bad_good):
    rows = [{**rating(number), "label": bad_good[number % 2 == 0]} for number in range(8)]
    task = load_unpaired_task(save(tmp_path, "rows.jsonl", rows))
    assert {row.completion: row.label for row in everything(task)} == {f" answer {n}": n % 2 == 0 for n in range(8)}


def test_unpaired_chats(tmp_path):
    rows = [{"prompt": [user(f"Q{n}")], "completion": [assistant(f"a{n}")], "label": bool(n % 2)} for n in range(8)]
    task = load_unpaired_task(save(tmp_path, "rows.jsonl", rows))
    assert all(row.prompt == (Message("user", f"Q{row.completion[1:]}"),) for row in everything(task))
    assert sorted(unpaired_rows(everything(task)), key=str) == sorted(rows, key=str)


def test_pairs_come_unpaired_too(tmp_path):
    path = save(tmp_path, "rows.jsonl", [pair(number) for number in range(10)])
    paired, unpaired = load_preference_task(path), load_unpaired_task(path)
    assert [row.completion for row in unpaired.train] == [
        answer for row in paired.train for answer in (row.chosen, row.rejected)
    ]
    assert [row.label for row in unpaired.test] == [True, False] * len(paired.test)


def test_layouts_are_told_by_columns():
    assert layout_of(["prompt", "responses", "chosen", "scores"]) == "responses"
    assert layout_of(["prompt", "responses", "chosen", "rejected"]) == "pairs"
    assert layout_of(["info", "summaries", "choice", "chosen", "rejected"]) == "comparisons"
    assert layout_of(["prompt", "completion"]) is None
    assert layout_of([]) is None
