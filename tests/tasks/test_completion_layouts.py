"""Rows as their publishers lay them out, from folders and from the hub, become the same problems."""

import gzip
import json
import time

import pytest

from lossmith.errors import DataError
from lossmith.tasks import load_completion_task

GSM8K = {"question": "How many?", "answer": "There are 2*600=<<2*600=1200>>1200.\nSo <<1200+34=1234>>.\n#### 1,234"}
GSM8K_TARGET = "<<2*600=1200>> <<1200+34=1234>> #### 1234"
MATHQA = {
    "Problem": "what is the price ?",
    "Rationale": "explained",
    "options": "a ) rs . 1,000 , b ) rs . 24,000 , c ) 3 , d ) 4 , e ) none of these",
    "correct": "b",
    "annotated_formula": "add(1, 2)",
    "linear_formula": "multiply(n0,const_2)|add(#0,n1)",
    "category": "gain",
}
TEXTS = ["ice", "steam, hot", "rain", "sand"]
LABELS = ["A", "B", "C", "D"]
OBQA_PROMPT = (
    "Question: Water boils to\nA. ice\nB. steam, hot\nC. rain\nD. sand\nContext: water becomes steam\nAnswer: "
)
HELLASWAG = {"ind": 4, "activity_label": "Sports", "ctx_a": "A man runs.", "ctx_b": "he", "ctx": "A man runs. he",
             "endings": ["stops.", "flies.", "sings.", "eats."], "source_id": "x"}  # fmt: skip
HELLASWAG_PROMPT = "Question: A man runs. he\nA. stops.\nB. flies.\nC. sings.\nD. eats.\nAnswer: "


def write(folder, splits):
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (folder / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return str(folder)


def distinct(row, field, count, start=0):
    return [{**row, field: f"{row[field]} {number}"} for number in range(start, start + count)]


def message(name, data):
    with pytest.raises(DataError) as caught:
        load_completion_task(name, data=data)
    return str(caught.value)


def test_gsm8k_as_released_loses_its_commas_and_gets_a_validation(tmp_path):
    rows = distinct(GSM8K, "question", 20)
    data = write(tmp_path / "d", {"train.jsonl": rows, "test.jsonl.gz": distinct(GSM8K, "question", 2, 20)})
    task = load_completion_task("gsm8k", data=data)
    assert task.test[0].prompt == "Question: How many? 20\nAnswer: "
    assert (task.test[0].target, task.test[0].answer, task.test[0].id) == (GSM8K_TARGET, "1234", "test:0")
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 2)
    assert {p.prompt for p in (*task.train, *task.validation)} == {f"Question: {r['question']}\nAnswer: " for r in rows}
    assert task.warnings == ("The 2 validation rows were cut from train (seed 42): the data bring none.",)
    assert task.source == data
    again = load_completion_task("gsm8k", data=data)
    assert again.fingerprint == task.fingerprint


def test_the_normal_form_of_a_folder_is_that_of_the_package(tmp_path):
    row = {"id": "a", "question": "1+1?", "answer": "-2.50", "solution": "x <<1+1=2>> y\n<<2=2>>"}
    data = write(
        tmp_path / "d", {f"{split}.jsonl.gz": [{**row, "question": split}] for split in ("train", "validation", "test")}
    )
    task = load_completion_task("gsm8k", data=data)
    assert (task.test[0].target, task.test[0].answer) == ("<<1+1=2>> <<2=2>> #### -2.5", "-2.5")
    assert (task.train[0].question, task.validation[0].question, task.warnings) == ("train", "validation", ())


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_mathqa_as_released_from_every_format(tmp_path, suffix):
    import pandas as pd

    frame = pd.DataFrame([*distinct(MATHQA, "Problem", 3), {**MATHQA, "correct": "e"}])
    for split in ("train", "dev", "test"):
        path = tmp_path / f"{split}.{suffix}"
        {
            "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
            "json": lambda p: frame.to_json(p, orient="records"),
            "csv": lambda p: frame.to_csv(p, index=False),
            "parquet": frame.to_parquet,
        }[suffix](path)
    (tmp_path / "challenge_test.json").write_text("[]")
    task = load_completion_task("mathqa", data=str(tmp_path))
    assert task.train[1].prompt == "Question: what is the price ? 1\nAnswer: "
    assert task.train[1].target == "<<multiply(n0,const_2)>> <<add(#0,n1)>> #### 24000.0"
    assert task.train[1].answer == "24000"
    assert len(task.train) == len(task.validation) == len(task.test) == 3
    assert task.warnings[0] == (
        "1 of 4 train rows have a right option that is not one number and are left out, as in the paper."
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question_stem": "Water boils to", "choices": {"text": TEXTS, "label": LABELS}, "answerKey": "B"},
        {
            "question": {
                "stem": "Water boils to",
                "choices": [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
            },
            "answerKey": "B",
        },
        {"question": "Water boils to", "choices": TEXTS, "label": 1},
        {"question": "Water boils to", "choices": {"text": TEXTS, "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
    ],
    ids=["hub", "released", "normal", "numbered"],
)
def test_openbookqa_in_its_layouts(tmp_path, row):
    row = {"id": "7-1", "fact1": "water becomes steam", **row}
    data = write(
        tmp_path / "d", {name: [row] for name in ("train_complete.jsonl", "dev_complete.jsonl", "test_complete.jsonl")}
    )
    task = load_completion_task("openbookqa", data=data)
    assert task.test[0].prompt == OBQA_PROMPT
    assert (task.test[0].target, task.test[0].label, task.test[0].options) == ("B", 1, ("A", "B", "C", "D"))
    assert task.test[0].question == OBQA_PROMPT.removeprefix("Question: ").removesuffix("\nAnswer: ")
    assert task.test[0].id == "7-1"
    # Only the repeated prompts of this made-up data are remarked on.
    assert all("repeat a prompt" in warning for warning in task.warnings)


def test_openbookqa_without_its_facts_has_no_context_line_and_says_so(tmp_path):
    row = {
        "question_stem": "Water boils to",
        "choices": {"text": TEXTS, "label": LABELS},
        "answerKey": "B",
        "fact1": None,
    }
    data = write(tmp_path / "d", {f"{split}.jsonl": [row, row] for split in ("train", "validation", "test")})
    task = load_completion_task("openbookqa", data=data)
    assert task.test[0].prompt == OBQA_PROMPT.replace("Context: water becomes steam\n", "")
    assert (
        "2 of 2 test rows have no `fact1`: their prompts have no `Context:` line, unlike the paper's." in task.warnings
    )


@pytest.mark.parametrize("label", [2, "2", 2.0])
@pytest.mark.parametrize("hidden", [{}, {"label": ""}, {"label": -1}, {"label": None}])
def test_hellaswag_without_test_answers_is_tested_on_validation_rows_and_on_no_other(tmp_path, label, hidden):
    splits = {
        "hellaswag_train.jsonl": distinct({**HELLASWAG, "label": label}, "ctx", 30),
        "hellaswag_val.jsonl": [{**HELLASWAG, "label": label}],
        "hellaswag_test.jsonl": distinct({**HELLASWAG, **hidden}, "ctx", 3, 40),
    }
    task = load_completion_task("hellaswag", data=write(tmp_path / "d", splits))
    assert [(p.prompt, p.target, p.id) for p in task.test] == [(HELLASWAG_PROMPT, "C", "4")]
    assert (len(task.train), len(task.validation)) == (27, 3)
    prompts = {problem.prompt for problem in (*task.train, *task.validation)}
    assert len(prompts) == 30
    assert HELLASWAG_PROMPT not in prompts
    assert task.warnings == (
        "The 1 test rows are the data's validation rows: their test rows have no answers.",
        "The 3 validation rows were cut from train (seed 42): the data bring none.",
    )


def test_hellaswag_without_a_test_file_at_all(tmp_path):
    rows = {"train.jsonl": distinct({**HELLASWAG, "label": 0}, "ctx", 10), "val.jsonl": [{**HELLASWAG, "label": 3}]}
    task = load_completion_task("hellaswag", data=write(tmp_path / "d", rows))
    assert [p.target for p in task.test] == ["D"]


def test_a_hidden_test_without_validation_rows_cannot_be_scored(tmp_path):
    rows = {"train.jsonl": [{**HELLASWAG, "label": 0}], "test.jsonl": [HELLASWAG]}
    said = message("hellaswag", write(tmp_path / "d", rows))
    assert said.endswith("have no answers, so there must be validation rows to test on: add a validation file.")
    assert "test.jsonl" in said


def test_one_test_row_without_an_answer_is_an_error_and_no_reason_to_swap(tmp_path):
    labelled = {**HELLASWAG, "label": 1}
    rows = {"train.jsonl": [labelled], "validation.jsonl": [labelled], "test.jsonl": [labelled, HELLASWAG]}
    assert "test.jsonl` row 2 must have a value in field `label`, got null." in message(
        "hellaswag", write(tmp_path / "d", rows)
    )


def test_svamp_as_released(tmp_path):
    row = {
        "ID": "chal-7",
        "Body": "He had 4 apples",
        "Question": "How many now?",
        "Equation": "( 4.0 - 1.5 )",
        "Answer": 2.5,
    }
    dotted = {**row, "ID": "chal-8", "Body": "He had 4.", "Answer": "2.50"}
    data = write(
        tmp_path / "d", {"train.jsonl": [row, {**row, "Answer": 3}], "validation.jsonl": [row], "test.jsonl": [dotted]}
    )
    task = load_completion_task("svamp", data=data)
    assert (task.train[0].id, task.train[0].question) == ("chal-7", "He had 4 apples. How many now?")
    assert (task.train[0].target, task.train[0].answer) == ("<<4-1.5=2.5>> #### 2.5", "2.5")
    assert task.test[0].question == "He had 4. How many now?"
    assert task.warnings[0].startswith("1 of 2 train rows have an answer that is not the value of their equation")


@pytest.mark.parametrize("flat", [True, False])
def test_qasc_reads_choices_or_the_formatted_question(tmp_path, flat):
    texts = [f"option {number} (B)" for number in range(8)]
    row = {"id": "q", "fact1": "F one.", "fact2": "F two.", "combinedfact": "no", "answerKey": "H"}
    if flat:
        row["formatted_question"] = "What (of all)? " + " ".join(
            f"({x}) {t}" for x, t in zip("ABCDEFGH", texts, strict=True)
        )
        texts = [text.removesuffix(" (B)") for text in texts]
        row["formatted_question"] = row["formatted_question"].replace(" (B) (", " (").removesuffix(" (B)")
    else:
        row |= {"question": "What (of all)?", "choices": {"text": texts, "label": list("ABCDEFGH")}}
    data = write(tmp_path / "d", {f"{split}.jsonl": [row] for split in ("train", "validation", "test")})
    block = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGH", texts, strict=True))
    problem = load_completion_task("qasc", data=data).test[0]
    assert problem.prompt == f"Question: What (of all)?\n{block}\nContext: F one. F two.\nAnswer: "
    assert problem.target == "H"


def test_commonsenseqa_as_released_and_from_a_csv_with_lists_in_its_cells(tmp_path):
    nested = [{"label": label, "text": text} for label, text in zip("ABCDE", ["a", "b, c", "d", "e", "f"], strict=True)]
    released = {"answerKey": "E", "id": "1", "question": {"question_concept": "x", "stem": "Why?", "choices": nested}}
    hidden = {"id": "2", "question": released["question"]}
    data = write(
        tmp_path / "d",
        {
            "train_rand_split.jsonl": [released, {**released, "id": "3"}],
            "dev_rand_split.jsonl": [released],
            "test_rand_split_no_answers.jsonl": [hidden],
        },
    )
    prompt = "Question: Why?\nA. a\nB. b, c\nC. d\nD. e\nE. f\nAnswer: "
    assert load_completion_task("commonsenseqa", data=data).test[0].prompt == prompt
    header = "question,choices,answerKey\n"
    cells = "Why?,\"{'label': ['A', 'B', 'C', 'D', 'E'], 'text': ['a', 'b, c', 'd', 'e', 'f']}\",E\n"
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(header + cells)
    task = load_completion_task("commonsenseqa", data=str(tmp_path))
    assert (task.test[0].prompt, task.test[0].target) == (prompt, "E")


def test_parts_of_a_split_are_joined_in_order(tmp_path):
    import pandas as pd

    for part in (1, 0, 2):
        rows = distinct(GSM8K, "question", 2, 2 * part)
        pd.DataFrame(rows).to_parquet(tmp_path / f"train-0000{part}-of-00003.parquet")
    pd.DataFrame([GSM8K]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    pd.DataFrame([GSM8K]).to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    task = load_completion_task("gsm8k", data=str(tmp_path))
    assert [p.question for p in task.train] == [f"How many? {number}" for number in range(6)]


def test_json_is_read_before_a_csv_of_the_same_name(tmp_path):
    data = write(tmp_path / "d", {f"{split}.jsonl": [GSM8K] for split in ("train", "validation", "test")})
    (tmp_path / "d" / "train.tsv").write_text("question\tanswer\nno\tno\n")
    assert load_completion_task("gsm8k", data=data).train[0].question == "How many?"


def test_two_files_for_one_split_are_named(tmp_path):
    data = write(tmp_path / "d", {"gsm_test.jsonl": [GSM8K], "other_test.jsonl": [GSM8K], "train.jsonl": [GSM8K]})
    assert message("gsm8k", data) == (
        f"`{data}` must have one test file, got gsm_test.jsonl, other_test.jsonl: keep one of them there."
    )


def test_a_folder_without_a_split_says_what_it_must_hold(tmp_path):
    data = write(tmp_path / "d", {"train.jsonl": [GSM8K]})
    assert message("gsm8k", data) == (
        f"`{data}` must have a test file (test.jsonl, .json, .csv or .parquet; plain or .gz), got train.jsonl. Each "
        "row with `question` and `answer` (steps with <<48/2=24>>, then `#### 72`)."
    )
    assert "must have a train file" in message("hellaswag", write(tmp_path / "e", {}))


@pytest.mark.parametrize("data", ["", "  ", "nowhere", "shiped", "Hub", "x" * 5000])
def test_data_that_is_nothing_known_is_refused(data):
    assert message("gsm8k", data).startswith("`data` must be 'shipped', 'hub', 'hub:owner/name' or a folder, got ")


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}")
    assert message("gsm8k", str(path)).startswith(f"There is no folder `{path}`")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gsm8k", {"answer": None}, "row 2 must have a value in field `answer`, got null."),
        ("gsm8k", {"question": "  "}, "row 2 has nothing in field `question`: fill it in or remove the row."),
        ("gsm8k", {"question": ["x"]}, "row 2 must have text in field `question`, got ['x'] (list)."),
        ("gsm8k", {"question": "\ud800"}, "row 2 must have valid Unicode in field `question`"),
        ("gsm8k", {"answer": "72"}, "row 2 must have an `answer` that ends in `#### number`, got '72'."),
        ("gsm8k", {"answer": "#### many"}, "row 2 must have a number as its answer, got 'many'."),
        ("mathqa", {"options": "1, 2"}, "row 2 must have options `a ) ... , b ) ...` to e, got '1, 2' (no option a)."),
        ("mathqa", {"correct": "f"}, "row 2 must name its right option by one of a, b, c, d, e or by 0 to 4, got 'f'."),
        ("mathqa", {"linear_formula": None}, "row 2 must have a value in field `linear_formula`, got null."),
        ("hellaswag", {"label": 4}, "row 2 must name its right option by one of A, B, C, D or by 0 to 3, got 4."),
        ("hellaswag", {"label": True}, "by 0 to 3, got True."),
        ("hellaswag", {"endings": ["x"]}, "row 2 must have 2 to 26 options with text, got ['x']."),
        ("hellaswag", {"endings": ["x", " "]}, "row 2 must have 2 to 26 options with text, got ['x', ' ']."),
        (
            "hellaswag",
            {"endings": "x"},
            "row 2 must have options as a list of texts or as `text` and `label`, got 'x'.",
        ),
        ("hellaswag", {"ctx": None}, "row 2 must have a value in field `ctx`, got null."),
        ("svamp", {"Equation": "4 ^ 2"}, "row 2 must have an equation of + - * / and numbers, got '4 ^ 2'."),
        ("qasc", {"fact2": None}, "row 2 must have a value in field `fact2`, got null."),
        ("qasc", {"choices": {"text": TEXTS, "label": ["A"]}}, "one label per option, got 1 for 4 options."),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path, name, change, said):
    good = {
        "gsm8k": GSM8K,
        "mathqa": MATHQA,
        "hellaswag": {**HELLASWAG, "label": 1},
        "svamp": {"Body": "b", "Question": "q", "Equation": "1.0 + 1.0", "Answer": 2.0},
        "qasc": {"question": "q", "choices": TEXTS, "label": 1, "fact1": "f", "fact2": "g"},
    }[name]
    folder = tmp_path / "d"
    rows = [good, {**good, **change}]
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = message(name, str(folder))
    assert found.startswith(f"`{folder / 'train.jsonl'}` {said[:6] if said.startswith('row') else 'row 2 '}")
    assert said in found


def test_a_test_file_whose_rows_are_all_left_out_is_an_empty_split(tmp_path):
    bad = {**MATHQA, "correct": "e"}
    data = write(tmp_path / "d", {"train.json": [MATHQA], "dev.json": [MATHQA], "test.json": [bad]})
    assert message("mathqa", data) == "Task 'mathqa' has no row in `test`: give it at least one."
    (tmp_path / "d" / "test.json").write_text("")
    assert "must hold rows, got an empty file" in message("mathqa", data)


@pytest.mark.parametrize(
    ("name", "repo", "config", "revision", "row"),
    [
        ("gsm8k", "openai/gsm8k", "main", None, GSM8K),
        ("mathqa", "allenai/math_qa", None, "refs/convert/parquet", MATHQA),
        ("hellaswag", "Rowan/hellaswag", None, None, {**HELLASWAG, "label": "1"}),
    ],
)
def test_the_hub_is_asked_once_and_its_rows_are_those_of_the_task(hub, name, repo, config, revision, row):
    field = "question" if name == "gsm8k" else "Problem" if name == "mathqa" else "ctx"
    hub["splits"] = {"train": distinct(row, field, 10), "test": distinct(row, field, 2, 10), "extra": [row]}
    task = load_completion_task(name, data="hub")
    assert hub["asked"] == [(repo, revision, 15)]
    assert hub["loaded"] == [(repo, config, revision)]
    assert task.source == f"https://huggingface.co/datasets/{repo}, commit 0123abc"
    assert (len(task.train), len(task.validation), len(task.test)) == (9, 1, 2)


def test_another_data_set_of_the_hub_may_lack_the_configuration(hub):
    hub["splits"] = {"train": distinct(GSM8K, "question", 4), "test": [GSM8K]}
    load_completion_task("gsm8k", data="hub:me/mine")
    hub["configs"] = ["main", "socratic"]
    load_completion_task("gsm8k", data="hub:me/mine")
    assert hub["loaded"] == [("me/mine", None, None), ("me/mine", "main", None)]


def test_a_bad_row_of_the_hub_is_named(hub):
    hub["splits"] = {"train": [GSM8K, {**GSM8K, "answer": "none"}], "test": [GSM8K], "validation": [GSM8K]}
    assert message("gsm8k", "hub").startswith(
        "`openai/gsm8k` train row 2 must have an `answer` that ends in `#### number`"
    )
    hub["splits"] = {"train": [GSM8K]}
    assert message("gsm8k", "hub") == "`openai/gsm8k` on the hub must have rows in `test`, got train."


def test_a_hub_that_cannot_be_reached_says_within_seconds_how_to_use_local_files(monkeypatch):
    pytest.importorskip("datasets")
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("[Errno -2] Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    started = time.monotonic()
    assert message("openbookqa", "hub") == (
        "`allenai/openbookqa` cannot be had from the hub (ConnectionError: [Errno -2] Name or service not known): give "
        "`data=FOLDER`, a folder with train and test files (perhaps validation; .jsonl, .json, .csv or .parquet, plain "
        "or .gz), each row with `question_stem`, `choices` (`text` and `label`), `answerKey` and `fact1` (as in "
        "train_complete.jsonl)."
    )
    assert time.monotonic() - started < 5


def test_what_the_client_raises_after_that_is_one_sentence_too(hub):
    hub["splits"] = RuntimeError("Dataset scripts are no longer supported, but found x.py\nmore")
    said = message("gsm8k", "hub:me/mine")
    assert said.startswith(
        "`me/mine` cannot be had from the hub (RuntimeError: Dataset scripts are no longer supported"
    )
    assert "\n" not in said
