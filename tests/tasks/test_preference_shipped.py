"""The sets of preferences and questions inside the package: files as their READMEs say, notices, and what they hold."""

import functools
import gzip
import hashlib
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from lossmith.tasks import (
    Message,
    is_preference_task,
    list_preference_tasks,
    load_mt_bench,
    load_preference_task,
    load_unpaired_task,
    preference_facts,
)

DATA = files("lossmith.tasks") / "data"
SHIPPED = [record for record in list_preference_tasks() if record.split_sizes is not None]
SPLITS = ("train", "validation", "test")
load = functools.cache(load_preference_task)


def raw_rows(name, split):
    text = gzip.decompress((DATA / name / f"{split}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.strip("\n").split("\n")]


@pytest.mark.parametrize("name", [*map(str, SHIPPED), "mt_bench"])
def test_files_are_those_of_the_readme(name):
    text = (DATA / name / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert len(table) == (1 if name == "mt_bench" else 3)
    for split, rows, size, sha256 in table:
        content = (DATA / name / f"{split}.jsonl.gz").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size), sha256)
        assert gzip.decompress(content).count(b"\n") == int(rows)


@pytest.mark.parametrize("record", SHIPPED, ids=str)
def test_every_row_is_the_one_of_its_file(record):
    task = load(record.name)
    assert tuple(len(getattr(task, split)) for split in SPLITS) == record.split_sizes
    for split in SPLITS:
        for pair, row in zip(getattr(task, split), raw_rows(record.name, split), strict=True):
            assert pair.prompt == tuple(Message(**message) for message in row["prompt"])
            assert (pair.id, pair.chosen, pair.rejected) == (row["id"], row["chosen"], row["rejected"])
            assert pair.chosen.strip()
            assert pair.rejected.strip()


@pytest.mark.parametrize("record", SHIPPED, ids=str)
def test_a_task_carries_what_a_report_must_cite(record):
    task = load(record.name)
    assert (task.name, task.source, task.licence) == (record.name, record.source, record.licence)
    assert task.attribution == record.citation
    assert all((record.title, record.splits, record.layout))
    assert is_preference_task(record.name)


def test_what_llama_wrote_says_so():
    sentence = 'distributed models that were trained on them carry "Llama" in their name'
    assert sentence in load("polite_pairs").attribution
    assert sentence in load_unpaired_task("polite_pairs").attribution
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^- polite_pairs: polite(?:.|\n  )+", notice, re.MULTILINE)
    said = " ".join(entry.split())
    assert (
        "Llama 3.1 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved. Built with Llama." in said
    )
    assert 'carry "Llama" in their name' in said
    assert all(f"- {name}: " in notice for name in ("pandalm", "persona_pairs", "mt_bench"))


def test_what_may_not_be_shipped_is_not():
    assert not (DATA / "alpaca_eval").is_dir()
    assert not (DATA / "qa_feedback").is_dir()


def test_fingerprints_are_these():
    # They enter the fingerprints of cached reference log-probabilities: a change makes all of those stale.
    assert {record.name: load(record.name).fingerprint[:12] for record in SHIPPED} == {
        "polite_pairs": "05fa2ba63906", "pandalm": "aef6b562d933", "persona_pairs": "5f1ea215a489",
    }  # fmt: skip


def test_no_prompt_of_polite_pairs_and_pandalm_is_in_two_splits():
    assert load("polite_pairs").warnings == ()
    assert load("pandalm").warnings == ()


def test_persona_pairs_contradict_across_behaviours_and_say_so():
    # One behaviour wants Yes where another wants No; two statements are in train and in test.
    assert load("persona_pairs").warnings == (
        "4 of 12,785 train pairs contradict another: the same two answers, preferred otherwise.",
        "2 of 1,600 test pairs have a prompt of train.",
    )


def test_pandalm_prefers_the_longer_answer_and_persona_pairs_say_yes_or_no():
    rows = {row.split: row for row in preference_facts(load("pandalm")).rows}
    assert {split: round(row.chosen_longer, 2) for split, row in rows.items()} == {
        "train": 0.65, "validation": 0.66, "test": 0.64,
    }  # fmt: skip
    assert (round(rows["train"].chosen_words, 1), round(rows["train"].rejected_words, 1)) == (45.0, 35.5)
    assert 0.5 < preference_facts(load("polite_pairs")).rows[0].chosen_longer < 0.52
    facts = preference_facts(load("persona_pairs"))
    assert "All answers are one of 2: 'No', 'Yes'." in facts.sentences
    assert all(row.chosen_words == row.rejected_words == 1.0 for row in facts.rows)


def test_mt_bench_is_the_published_one():
    questions = load_mt_bench()
    assert [question.id for question in questions] == [str(number) for number in range(81, 161)]
    categories = [question.category for question in questions]
    assert {category: categories.count(category) for category in categories} == {
        "writing": 10, "roleplay": 10, "reasoning": 10, "math": 10, "coding": 10, "extraction": 10, "stem": 10,
        "humanities": 10,
    }  # fmt: skip
    assert all(len(question.turns) == 2 for question in questions)
    for question in questions:
        wanted = 2 if question.category in ("math", "reasoning", "coding") else 0
        assert len(question.references) == wanted, question.id
    assert questions[0].turns[1] == "Rewrite your previous response. Start every sentence with the letter A."


def test_shipped_preferences_load_without_the_training_packages():
    code = (
        "import json, sys; from lossmith.tasks import load_preference_task, load_mt_bench;"
        "load_preference_task('polite_pairs'); load_mt_bench();"
        "heavy = ('transformers', 'datasets', 'huggingface_hub', 'pandas', 'pyarrow', 'yaml', 'trl');"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
