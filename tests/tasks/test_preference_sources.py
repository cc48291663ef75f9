"""Preferences from a file, a folder, the hub and the package: splits by prompt, names, and the cheap question."""

import gzip
import json

import pytest
from preference_files import assistant, comparison, complaint, everything, pair, rating, responses, save, user

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import (
    is_preference_task,
    is_unpaired_task,
    list_preference_tasks,
    load_preference_task,
    load_unpaired_task,
)

SPLITS = ("train", "validation", "test")


def repeated(count):
    """Prompts three times each, once in other case and with other white space."""
    rows = [pair(n // 3, rejected=f" other {n}") for n in range(3 * count)]
    return [{**row, "prompt": f" {row['prompt'].upper()} "} if n % 3 == 2 else row for n, row in enumerate(rows)]


def test_no_prompt_is_in_two_splits(tmp_path):
    task = load_preference_task(save(tmp_path, "mine.jsonl", repeated(40)))
    sides = {split: {row.prompt.strip().lower() for row in getattr(task, split)} for split in SPLITS}
    assert {split: len(side) for split, side in sides.items()} == {"train": 29, "validation": 3, "test": 8}
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["validation"]
    assert not sides["validation"] & sides["test"]
    assert len(everything(task)) == 120
    assert (task.name, task.source) == ("mine", str(tmp_path / "mine.jsonl"))
    assert task.warnings == ("The 9 validation rows were cut from train (seed 42): the data bring none.",)


def test_the_split_follows_its_seed_and_share(tmp_path):
    path = save(tmp_path, "mine.jsonl", [pair(number) for number in range(50)])
    one, again, other = (load_preference_task(path, split_seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(load_preference_task(path, test_fraction=0.5).test) == 25
    unpaired = load_unpaired_task(path, split_seed=1)
    assert {row.prompt for row in unpaired.test} == {row.prompt for row in one.test}


def test_a_folder_brings_its_splits(tmp_path):
    save(tmp_path, "train.jsonl", [pair(number) for number in range(20)])
    save(tmp_path, "test.csv", [pair(number) for number in range(18, 22)])
    task = load_preference_task(tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 4)
    assert any(warning.endswith("of 4 test pairs have a prompt of train.") for warning in task.warnings) or any(
        "prompt of validation" in warning for warning in task.warnings
    )
    assert is_preference_task(tmp_path)


def test_train_alone_is_split_by_prompt_wherever_it_is_from(tmp_path, hub):
    rows = repeated(40)
    save(tmp_path, "train.jsonl", rows)
    hub["splits"] = {"train": rows}
    one_file = load_preference_task(save(tmp_path, "mine.jsonl", rows), split_seed=3, test_fraction=0.25)
    (tmp_path / "mine.jsonl").unlink()
    settings = {"split_seed": 3, "test_fraction": 0.25}
    said = (
        "The test rows were cut from train (`test_fraction` 0.25 of the prompts, `split_seed` 3): the data bring none."
    )
    for task in (
        load_preference_task(tmp_path, **settings),
        load_preference_task("hub:someone/pairs", **settings),
        load_preference_task("dpo_mix", data=str(tmp_path), **settings),
    ):
        assert task.fingerprint == one_file.fingerprint
        assert task.warnings[0] == said
        assert not {row.prompt.strip().lower() for row in task.test} & {
            row.prompt.strip().lower() for row in task.train
        }


def test_a_folder_is_tested_on_its_validation_rows_where_it_has_no_test(tmp_path):
    save(tmp_path, "train.jsonl", [pair(number) for number in range(20)])
    save(tmp_path, "validation.jsonl", [pair(number) for number in range(30, 35)])
    task = load_preference_task(tmp_path)
    assert len(task.test) == 5
    assert "The 5 test rows are the data's validation rows: they bring no test rows." in task.warnings
    with pytest.raises(ConfigurationError, match="brings its own splits, so `split_seed` has nothing to act on, got 1"):
        load_preference_task(tmp_path, split_seed=1)


def test_validation_rows_of_a_folder_stay(tmp_path):
    for split, numbers in (("train", range(9)), ("validation", range(20, 23)), ("test", range(30, 34))):
        save(tmp_path, f"{split}.jsonl", [pair(number) for number in numbers])
    task = load_preference_task(tmp_path)
    assert (len(task.train), len(task.validation), len(task.test), task.warnings) == (9, 3, 4, ())


def test_a_folder_of_ultrafeedback_as_the_hub_has_it(tmp_path):
    def rows(kind, count):
        talk = [[user(f"{kind}{n}"), assistant("a")] for n in range(count)]
        return [{"prompt": t[0]["content"], "chosen": t, "rejected": [t[0], assistant("b")]} for t in talk]

    for kind, count in (("train_prefs", 30), ("train_sft", 7), ("test_prefs", 5), ("test_gen", 3)):
        save(tmp_path, f"{kind}-00000-of-00001.parquet", rows(kind, count))
    task = load_preference_task("ultrafeedback", data=str(tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (27, 3, 5)
    assert all(row.prompt[0].content.startswith("train_prefs") for row in task.train)
    assert (task.name, task.licence) == ("ultrafeedback", "MIT")


def test_ultrafeedback_from_the_hub_reads_its_preference_splits(hub):
    def rows(kind, count):
        return [{"chosen": [user(f"{kind}{n}"), assistant("a")], "rejected": [user(f"{kind}{n}"), assistant("b")]} for n in range(count)]  # fmt: skip  # noqa: E501

    hub["splits"] = {
        kind: rows(kind, 12) for kind in ("train_sft", "test_sft", "train_gen", "train_prefs", "test_prefs")
    }
    task = load_preference_task("ultrafeedback", data="hub")
    assert hub["loaded"] == [("HuggingFaceH4/ultrafeedback_binarized", None, None)]
    assert task.test[0].prompt[0].content == "test_prefs0"
    assert task.source == "https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, commit 0123abc"


def test_tldr_from_the_hub_is_tested_on_its_validation_rows(hub):
    hub["splits"] = {"train": [comparison(n) for n in range(20)], "validation": [comparison(n) for n in range(50, 57)]}
    task = load_preference_task("tldr", data="hub")
    assert hub["loaded"] == [("openai/summarize_from_feedback", "comparisons", "refs/convert/parquet")]
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 7)
    assert task.warnings == (
        "The 7 test rows are the data's validation rows: they bring no test rows.",
        "The 2 validation rows were cut from train (seed 42): the data bring none.",
    )
    assert all(f"POST: My cat {row.chosen.split()[-1]}.\n\nIt sat." in row.prompt for row in everything(task))


def test_a_prompt_of_tldr_without_its_post_is_refused(hub):
    rows = [{"prompt": "example['prompt']\n\nTL;DR:", "chosen": "a", "rejected": f"b{n}"} for n in range(9)]
    hub["splits"] = {"train": rows, "test": rows}
    with pytest.raises(DataError) as caught:
        load_preference_task("tldr", data="hub:someone/summaries")
    assert str(caught.value) == (
        "The `prompt` of row 'train:0' must hold the post after 'POST:', as every prompt of 'tldr' does, got "
        "\"example['prompt']\\n\\nTL;DR:\"."
    )


def test_dpo_mix_and_imdb_preference_from_the_hub(hub):
    talk = [[user(f"Q{n}"), assistant("a"), user("more"), assistant(f"yes {n}")] for n in range(10)]
    rows = [
        {
            "dataset": "x",
            "chosen": t,
            "rejected": [*t[:3], assistant("no")],
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
        }
        for t in talk
    ]
    hub["splits"] = {"train": rows, "test": rows[:3]}
    task = load_preference_task("dpo_mix", data="hub")
    assert (task.test[2].chosen, task.test[2].rejected, task.test[2].chosen_score) == ("yes 2", "no", 5.0)
    assert len(task.test[2].prompt) == 3
    hub["splits"] = {split: [responses(n) for n in range(8)] for split in SPLITS}
    assert len(load_preference_task("imdb_preference", data="hub").validation) == 8


def test_any_data_set_of_the_hub(hub):
    hub["splits"] = {"train": [pair(n) for n in range(10)], "test": [pair(n) for n in range(10, 14)]}
    task = load_preference_task("hub:someone/wishes")
    assert (task.name, len(task.test)) == ("wishes", 4)
    assert task.source == "https://huggingface.co/datasets/someone/wishes, commit 0123abc"
    assert is_preference_task("hub:someone/wishes")


def test_a_hub_that_does_not_answer_names_another_way(hub):
    hub["splits"] = ConnectionError("no route")
    for name, settings, instead in (
        ("dpo_mix", {"data": "hub"}, "give `data=FOLDER`, a folder with train and test files"),
        ("hub:someone/wishes", {}, "give the path of a folder with train and test files"),
    ):
        with pytest.raises(DataError, match=r"cannot be had from the hub \(ConnectionError: no route\): ") as caught:
            load_preference_task(name, **settings)
        assert instead in str(caught.value)


@pytest.mark.parametrize("name", ["ultrafeedback", "dpo_mix", "tldr", "imdb_preference"])
def test_what_is_not_shipped_says_how_to_load_it(name):
    with pytest.raises(DataError) as caught:
        load_preference_task(name)
    message = str(caught.value)
    assert message.startswith(f"The rows of '{name}' are not shipped: load them with `data=hub`, or with `data=FOLDER`")
    record = next(record for record in list_preference_tasks() if record.name == name)
    assert record.layout in message
    assert record.hub


def test_settings_without_effect_and_wrong_ones_are_refused(tmp_path):
    path = save(tmp_path, "mine.jsonl", [pair(number) for number in range(10)])
    for name, settings, said in (
        (
            "pandalm",
            {"test_fraction": 0.5},
            "bring their own splits, so `test_fraction` has nothing to act on, got 0.5",
        ),
        (path, {"data": "hub"}, "is itself the data, so `data` has nothing to act on, got 'hub'"),
        (path, {"split_seed": -1}, "`split_seed` must be an integer >= 0, got -1"),
        (path, {"test_fraction": 1.0}, "`test_fraction` must be between 0 and 1, got 1.0"),
        (path, {"test_fraction": "half"}, "`test_fraction` must be between 0 and 1, got 'half'"),
        ("pandaml", {}, "No preference task named 'pandaml'. Did you mean 'pandalm'?"),
        ("", {}, "No preference task named ''."),
    ):
        with pytest.raises(ConfigurationError) as caught:
            load_preference_task(name, **settings)
        assert said in str(caught.value)
    with pytest.raises(DataError, match=r"There is no file or folder `nowhere\.jsonl`"):
        load_preference_task("nowhere.jsonl")
    with pytest.raises(DataError, match="'polite_pairs' is not on the hub in pairs: leave `data` out"):
        load_preference_task("polite_pairs", data="hub")


def test_is_preference_task_tells_by_columns(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        for kind, rows in (
            ("pair", [pair(1), pair(2)]),
            ("talk", [comparison(1), comparison(2)]),
            ("film", [responses(1), responses(2)]),
        ):
            path = save(tmp_path, f"{kind}_{name}", rows)
            assert is_preference_task(path), path
            assert not is_unpaired_task(path), path
        rated = save(tmp_path, f"rated_{name}", [rating(1), rating(2)])
        assert is_preference_task(rated)
        assert is_unpaired_task(rated)
        assert not is_preference_task(save(tmp_path, f"text_{name}", [{"text": "a", "label": "b"}]))
    assert not any(map(is_preference_task, ("mr", "gsm8k", "", "nowhere.csv", "x" * 5000, "a\0b", str(tmp_path))))


def test_is_preference_task_reads_the_beginning_only(tmp_path):
    first = json.dumps(pair(1))
    (tmp_path / "a.jsonl").write_text(first + "\n{broken\n" * 3, encoding="utf-8")
    (tmp_path / "a.json").write_text(f"[\n {first},\n {{broken", encoding="utf-8")
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\n\xff\xfe" + b"x" * 100_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(first.encode() + b"\n" + b"y" * 100_000)[:150])
    for name in ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        assert is_preference_task(tmp_path / name), name
        with pytest.raises(DataError):
            load_preference_task(tmp_path / name)
    long = json.dumps([pair(1, chosen="z" * 50_000)])
    (tmp_path / "long.json").write_text(long, encoding="utf-8")
    assert is_preference_task(tmp_path / "long.json")
    for name, text in (("n.jsonl", "\n\n"), ("n.json", "[]"), ("n.json", "[1]"), ("n.csv", ""), ("n.jsonl", "[1"), ("n.parquet", "x")):  # fmt: skip  # noqa: E501
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert not is_preference_task(tmp_path / name), (name, text)


def test_one_prompt_cannot_be_split(tmp_path):
    rows = [pair(1, rejected=f" other {number}") for number in range(5)]
    assert complaint(save(tmp_path, "rows.jsonl", rows)) == (
        "One file must have at least 2 different prompts to be split into train and test, got 1: give a folder with "
        "train and test files."
    )
