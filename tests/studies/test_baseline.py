"""Baselines on a tiny random model: exemplars, templates, what is written when, what is continued and what refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from lossmith.errors import ConfigurationError, DataError, EvidenceError, ModelError
from lossmith.report.baseline import baseline_notices, baseline_table, write_baseline
from lossmith.studies import baseline_answers
from lossmith.studies.baseline import run_baseline
from lossmith.studies.baseline_config import make_baseline_config
from lossmith.tasks import load_completion_task

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    folder = tiny.write_causal_model(tmp_path_factory.mktemp("model") / "chat", seed=8)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    return str(tiny.write_sums(tmp_path_factory.mktemp("data") / "sums"))


@pytest.fixture(scope="module")
def choices(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "choices"
    folder.mkdir()
    rows = [{"q": f"{a}?", "x": "no", "y": "so", "z": "yes", "right": a * a % 3} for a in range(12)]
    for name, part in (("train", rows[:6]), ("test", rows[6:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    file = folder / "choices.yaml"
    keys = {
        "name": "choices", "kind": "choice", "prompt": "Q: {q}\n{options}\nA: ", "target": "{letter}",
        "choices": ["x", "y", "z"], "label": "right", "data": {"train": "train.jsonl", "test": "test.jsonl"},
    }  # fmt: skip
    file.write_text(json.dumps(keys), encoding="utf-8")
    return str(file)


@pytest.fixture
def run(model, task, tmp_path):
    def go(folder: str = "out", progress=None, **changes):
        values = {"models": [model], "task": task, "max_new_tokens": 6, "batch_size": 3, "device": "cpu"}
        return run_baseline(make_baseline_config(values | changes), tmp_path / folder, progress=progress)

    return go


def lines(folder: Path, name: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_answers_are_the_models_own(run, model, task, tmp_path):
    seen: list[tuple[str, int, int]] = []
    result = run(progress=lambda *at: seen.append(at))
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    for line, problem in zip(in_order(tmp_path / "out"), load_completion_task(task).test, strict=True):
        # The blank before the answer is the model's to write, as in running text.
        ids = tokenizer(problem.prompt.rstrip())["input_ids"]
        for _ in range(6):
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert line["samples"] == [
            {"text": tokenizer.decode(ids[-6:], skip_special_tokens=True), "tokens": 6, "stopped": False}
        ]
        assert line["id"] == problem.id
    assert seen == [(f"{model}: answers", done, 8) for done in (3, 6, 8)]
    found = result.models[0]
    assert found.rates["exact_match"] == pytest.approx((0.0, 0.0, 0.3244), abs=1e-4)
    assert set(found.rates) == {"exact_match", "flexible_match", "answered", "stopped"}
    assert (found.new_tokens, found.chat, sum(found.outcomes.values())) == (6.0, False, 8)
    assert "None of the 8 answers holds a number after ####" in found.notices[0]
    written = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert written["models"][0]["rates"]["stopped"] == list(found.rates["stopped"])
    assert written["task_fingerprint"] == load_completion_task(task).fingerprint
    assert written["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in written["versions"]["torch"]


def test_rates_have_wilson_intervals(run, task, monkeypatch):
    right = {problem.id: problem.target for problem in load_completion_task(task).test}
    real, order = baseline_answers.judge, list(right)

    def judge(kind, problems, texts, *, stopped):
        told = [right[p.id] if order.index(p.id) < 6 else text for p, text in zip(problems, texts, strict=True)]
        return real(kind, problems, told, stopped=[True, *stopped[1:]])

    monkeypatch.setattr(baseline_answers, "judge", judge)
    rates = run().models[0].rates
    assert rates["exact_match"] == pytest.approx((0.75, 0.4093, 0.9285), abs=1e-4)
    assert rates["stopped"] == pytest.approx((0.125, 0.0224, 0.4709), abs=1e-4)


def in_order(folder: Path, name: str = "answers.jsonl") -> list[dict]:
    return sorted(lines(folder, name), key=lambda line: line["row"])


def prompts_seen(monkeypatch) -> list[str]:
    seen: list[str] = []
    real = baseline_answers.generate

    def generate(network, tokenizer, prompts, **asked):
        seen.extend(tokenizer.decode(prompt) for prompt in prompts)
        return real(network, tokenizer, prompts, **asked)

    monkeypatch.setattr(baseline_answers, "generate", generate)
    return seen


def test_exemplars_come_from_train_by_seed(run, task, monkeypatch):
    seen = prompts_seen(monkeypatch)
    loaded = load_completion_task(task)
    blocks = {f"{row.prompt}{row.target}" for row in loaded.train}
    run("a", few_shot=2)
    run("b", few_shot=2, seed=1)
    assert len(seen) == 16
    tests = {row.prompt.rstrip() for row in loaded.test}
    heads = []
    for text in seen:
        *before, last = text.split("\n\n")
        assert len(set(before)) == 2
        assert set(before) <= blocks
        assert last in tests
        heads.append(tuple(before))
    assert len(set(heads[:8])) == len(set(heads[8:])) == 1
    assert set(heads[:8]) != set(heads[8:])


def test_a_model_trained_here_is_asked_as_it_was_trained(run, chat_model, task, tmp_path, monkeypatch):
    folder = tmp_path / "trained"
    shutil.copytree(chat_model, folder)
    trained = {"encoding": "exact", "prompts": "plain"}
    (folder / "result.json").write_text(json.dumps({"config": trained}), encoding="utf-8")
    seen = prompts_seen(monkeypatch)
    run("a", models=[str(folder)], prompts="auto")
    assert set(seen) == {row.prompt for row in load_completion_task(task).test}


def test_a_few_shot_answer_ends_at_the_first_empty_line(run, monkeypatch, tmp_path):
    def generate(network, tokenizer, prompts, **asked):
        texts = ["<<1+1=2>> #### 2\n\nQ: 5?\nA: 7", "#### 3\nmore", "a"]
        return [[baseline_answers.Generated(texts[row], 6, False)] for row, _ in enumerate(prompts)]

    monkeypatch.setattr(baseline_answers, "generate", generate)
    run("few", few_shot=1)
    first = [line["samples"][0] for line in lines(tmp_path / "few")][:2]
    assert first == [
        {"text": "<<1+1=2>> #### 2", "tokens": 6, "stopped": True},
        {"text": "#### 3\nmore", "tokens": 6, "stopped": False},
    ]
    run("none")
    assert lines(tmp_path / "none")[0]["samples"][0]["text"].endswith("A: 7")


def test_chat_models_get_their_template(run, model, chat_model, task, monkeypatch):
    short = Path(task).with_name("short.yaml")
    short.write_text(json.dumps(json.loads(Path(task).read_text()) | {"instruction": "Add."}), encoding="utf-8")
    seen = prompts_seen(monkeypatch)
    result = run("a", models=[chat_model, model], few_shot=1, task=str(short))
    assert [found.chat for found in result.models] == [True, False]
    for text in seen[:8]:
        assert text.startswith("[system]Add.<eos>[user]")
        assert text.endswith("<eos>[assistant]")
        assert text.count("[assistant]") == 2
        assert "A: " not in text
    assert not any("[" in text for text in seen[8:])
    run("b", models=[chat_model], prompts="plain", task=str(short))
    assert len(seen) == 24
    assert not any("[" in text for text in seen[16:])
    with pytest.raises(ConfigurationError, match="has no chat template: leave --chat out, or give an instruct model"):
        run("c", prompts="chat")


def test_what_was_stopped_is_continued_and_gives_the_same(run, tmp_path, monkeypatch):
    asked = {"votes": 2, "temperature": 1.0}
    whole = run("whole", **asked)

    def stop(what, done, total):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("parts", stop, **asked)
    folder = tmp_path / "parts"
    kept = (folder / "answers.jsonl").read_bytes()
    assert len(lines(folder)) == 3
    (folder / "answers.jsonl").write_bytes(kept + b'{"model": "x", "row": 1, "sam')
    seen = prompts_seen(monkeypatch)
    parts = run("parts", **asked)
    assert len(seen) == 5
    assert (folder / "answers.jsonl").read_bytes().startswith(kept)
    assert sorted(map(str, lines(folder))) == sorted(map(str, lines(tmp_path / "whole")))
    assert parts.models == whole.models
    run("parts", **asked)
    assert len(seen) == 5


def test_votes_are_judged_by_the_most_frequent_answer(run, monkeypatch):
    def generate(network, tokenizer, prompts, *, votes, **asked):
        assert (votes, asked["temperature"]) == (3, 0.7)
        return [
            [baseline_answers.Generated(text, 4, True) for text in ("#### 1", "#### 99", "so #### 99")] for _ in prompts
        ]

    monkeypatch.setattr(baseline_answers, "generate", generate)
    result = run(votes=3, temperature=0.7)
    assert {sample["answer"] for sample in result.models[0].samples} == {"#### 99"}


def test_choices_are_scored_by_likelihood_too(run, model, choices, tmp_path, monkeypatch):
    result = run(task=choices)
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    right = 0
    for line, problem in zip(
        in_order(tmp_path / "out", "options.jsonl"),
        load_completion_task(choices).test,
        strict=True,
    ):
        before, after = (
            torch.log_softmax(network(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1], -1)
            for text in (problem.prompt.rstrip(), problem.prompt)
        )
        blank = before[tokenizer.convert_tokens_to_ids(" ")]
        expected = blank + after[[tokenizer.convert_tokens_to_ids(letter) for letter in "ABC"]]
        assert line["logps"] == pytest.approx(expected.tolist(), abs=1e-5)
        right += int(expected.argmax()) == problem.label
    assert result.models[0].rates["likelihood_accuracy"][0] == pytest.approx(right / 6)
    assert set(result.models[0].rates) == {"accuracy", "likelihood_accuracy", "answered", "stopped"}
    monkeypatch.setattr(baseline_answers, "option_logps", lambda *a, **k: pytest.fail("scored twice"))
    assert run(task=choices).models == result.models


def test_another_model_joins_a_folder_and_other_settings_do_not(run, model, chat_model, tmp_path):
    run()
    both = run(models=[model, chat_model])
    assert [found.model for found in both.models] == [model, chat_model]
    with pytest.raises(EvidenceError, match="holds a baseline with `max_new_tokens` 6, this one has 7: choose another"):
        run(max_new_tokens=7)
    with pytest.raises(EvidenceError, match="holds a baseline with `limit` None, this one has 2"):
        run(limit=2)
    settings = tmp_path / "out" / "settings.json"
    there = json.loads(settings.read_text(encoding="utf-8"))
    there["models"][model] = "0" * 64
    settings.write_text(json.dumps(there), encoding="utf-8")
    with pytest.raises(EvidenceError, match="answers of another model named"):
        run()
    settings.write_text("[]", encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"settings\.json is no file of `lossmith baseline`"):
        run()
    settings.unlink()
    with pytest.raises(EvidenceError, match=r"answers without their settings\.json"):
        run()


def test_an_unreadable_answer_is_refused(run, tmp_path):
    run()
    file = tmp_path / "out" / "answers.jsonl"
    file.write_text("nonsense\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"Line 1 of .* is no answer of `lossmith baseline`"):
        run()


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"task": "gsm9k"}, ConfigurationError, "No completion task named 'gsm9k'"),
        (
            {"few_shot": 25},
            ConfigurationError,
            "`few_shot` is 25 and the training split of 'sums' has 24 problems: lower",
        ),
        ({"few_shot": 8}, ConfigurationError, r"With `few_shot` 8 a prompt has \d+ tokens, and .* reads 128"),
        ({"limit": 9}, ConfigurationError, "`limit` is 9 and 'sums' has 8 test problems: lower --limit"),
        ({"max_new_tokens": 128}, ConfigurationError, "`max_new_tokens` must be < 128, the most that"),
        ({"votes": 2}, ConfigurationError, "`votes` = 2 needs a `temperature` above 0"),
        ({"top_p": 0.5}, ConfigurationError, "`top_p` = 0.5 needs a `temperature` above 0"),
        ({"models": ["a", "a"]}, ConfigurationError, "`models` names a twice"),
        ({"models": ["./nowhere"]}, ModelError, r"`--model ./nowhere`: no such model folder"),
        ({"data": "nowhere"}, ConfigurationError, "names its own data"),
        ({"data": "nowhere", "task": "gsm8k"}, DataError, "`data` must be 'shipped', 'hub'"),
        ({"batch": 3}, ConfigurationError, r"there is no setting `batch`.*batch_size"),
        ({"few_shot": -1}, ConfigurationError, "`few_shot`: input should be greater than or equal to 0, got -1"),
        ({"backend": "vllm"}, ConfigurationError, "`backend` vllm needs a CUDA device, this is cpu"),
    ],
)
def test_bad_settings_are_one_sentence(run, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        run(**changes)


def test_a_tokenizer_without_an_end_is_refused(run, tmp_path):
    folder = tiny.write_causal_model(tmp_path / "endless")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["eos_token"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        run(models=[str(folder)])


def test_prompts_that_are_too_long_are_cut_and_counted(run):
    result = run(max_new_tokens=118)
    assert "of 8 prompts were cut on the left to fit the model." in result.models[0].notices[0]


def test_the_page_holds_the_table_and_no_marks_of_the_answers(run, model, tmp_path, monkeypatch):
    def generate(network, tokenizer, prompts, **asked):
        return [[baseline_answers.Generated("```\n# loud\x1b[31m <b>", 4, True)] for _ in prompts]

    monkeypatch.setattr(baseline_answers, "generate", generate)
    result = run()
    assert [cell.text for cell in baseline_table(result).columns[2].cells][-1] == "100.0 [67.6, 100.0]"
    assert any(said.startswith(f"{model}: None of the 8") for said in baseline_notices(result))
    page = write_baseline(tmp_path / "out", result, command="lossmith baseline").read_text(encoding="utf-8")
    assert "100.0 \\[67.6, 100.0\\]" in page
    assert page.count("````text") == 8
    assert "\x1b" not in page
    assert result.task_fingerprint in page


def test_the_command_makes_the_folder_again(tmp_path):
    values = {"models": ["a b", "c"], "task": "svamp", "prompts": "plain", "votes": 3, "temperature": 0.7}
    config = make_baseline_config(values)
    assert config.command(Path("out")) == (
        "lossmith baseline --task svamp --model 'a b' --model c --no-chat --votes 3 --temperature 0.7 --out out"
    )
