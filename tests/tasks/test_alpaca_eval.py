"""AlpacaEval from a folder, in the normal form and in the original one; never from the package."""

import json

import pytest
from preference_files import save

from lossmith.errors import DataError
from lossmith.tasks import load_alpaca_eval

LAYOUT = [
    {
        "id": f"alpaca_eval:{n}",
        "category": "oasst" if n else "koala",
        "turns": [f"Say {n}"],
        "output_text_davinci_003": f"old {n}",
        "output_gpt4_1106_preview": f"new {n}",
    }
    for n in range(3)
]


def original(generator, word):
    rows = [
        {
            "dataset": "oasst" if n else "koala",
            "instruction": f"Say {n}",
            "output": f"{word} {n}",
            "generator": generator,
        }
        for n in range(3)
    ]
    return json.dumps(rows, indent=2)


def test_both_layouts_give_the_same_instructions(tmp_path):
    normal, there, repository = tmp_path / "normal", tmp_path / "hub", tmp_path / "results"
    for folder in (normal, there, repository):
        folder.mkdir()
    save(normal, "test.jsonl", LAYOUT)
    (there / "alpaca_eval.json").write_text(original("text_davinci_003", "old"), encoding="utf-8")
    (there / "alpaca_eval_gpt4_baseline.json").write_text(original("gpt4_1106_preview", "new"), encoding="utf-8")
    (there / "instruction_difficulty.csv").write_text(",x\n0,1.5\n", encoding="utf-8")
    for model, word in (("gpt4_1106_preview", "new"), ("text_davinci_003", "old")):
        (repository / model).mkdir()
        (repository / model / "model_outputs.json").write_text(original(model, word), encoding="utf-8")
    found = load_alpaca_eval(normal)
    assert [(row.id, row.category, row.text) for row in found] == [
        ("alpaca_eval:0", "koala", "Say 0"),
        ("alpaca_eval:1", "oasst", "Say 1"),
        ("alpaca_eval:2", "oasst", "Say 2"),
    ]
    assert dict(found[1].baselines) == {"text_davinci_003": "old 1", "gpt4_1106_preview": "new 1"}
    for folder in (there, repository):
        assert load_alpaca_eval(folder) == found
    (one,) = {tuple(row.baselines) for row in load_alpaca_eval(there / "alpaca_eval.json")}
    assert one == ("text_davinci_003",)


def test_what_is_wrong_is_named(tmp_path):
    def said(path):
        with pytest.raises(DataError) as caught:
            load_alpaca_eval(path)
        return str(caught.value).replace(f"{tmp_path}", "folder")

    assert said(tmp_path / "no").startswith("There is no file or folder `folder/no`")
    assert said(tmp_path).startswith(
        "`folder` must have the instructions of AlpacaEval, got no data file: give a folder"
    )
    save(tmp_path, "test.jsonl", [{**LAYOUT[0], "turns": ["a", "b"]}])
    assert said(tmp_path) == "`folder/test.jsonl` row 1 must have one instruction in field `turns`, got 2."
    save(tmp_path, "test.jsonl", [{**LAYOUT[0], "output_text_davinci_003": ["a"]}])
    assert said(tmp_path) == "`folder/test.jsonl` row 1 must have text in field `output_text_davinci_003`, got list."
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "a.json").write_text(original("one", "a"), encoding="utf-8")
    (tmp_path / "b.json").write_text(original("two", "b").replace("Say 2", "Tell 2"), encoding="utf-8")
    assert said(tmp_path) == "`folder/b.json` must have the instructions of `a.json`, got 2 that differ."
    (tmp_path / "b.json").write_text(original("two", "b").replace("Say 2", "Say 1"), encoding="utf-8")
    assert said(tmp_path) == "`folder/b.json` must have the instructions of `a.json`, got 1 that differ."
