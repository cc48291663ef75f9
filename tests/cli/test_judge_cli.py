"""`lossmith answer` and `lossmith judge` from the command line."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import judge_server as scripted
import tiny
from lossmith.cli import main
from lossmith.evaluation.judging import read_answers


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("LOSSMITH_JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(capsys, *words) -> tuple[int, str, str]:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as found:
            main([str(word) for word in words])
    finally:
        signal.signal(signal.SIGTERM, handler)
    shown = capsys.readouterr()
    return int(found.value.code or 0), shown.out, shown.err


def answers_file(path, model: str, rows: dict[str, list[str]], turns: list[str]):
    lines = [{"id": name, "model": model, "turns": turns, "answers": own} for name, own in rows.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def longer_first(shown: dict[str, str]) -> str:
    return "A" if len(shown["answer_a"]) > len(shown["answer_b"]) else "B"


@pytest.fixture
def files(tmp_path):
    ours = answers_file(tmp_path / "ours.jsonl", "ours", {str(n): ["x" * (20 + 3 * n)] for n in range(12)}, ["Why?"])
    theirs = answers_file(tmp_path / "theirs.jsonl", "theirs", {str(n): ["y" * 35] for n in range(12)}, ["Why?"])
    return ours, theirs


def test_answer_writes_a_file_that_continues(capsys, tmp_path):
    model = tiny.write_causal_model(tmp_path / "tiny")
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "1+1?"}\n{"prompt": "2+2?"}\n')
    out = tmp_path / "answers.jsonl"
    words = ("answer", model, "--questions", questions, "--out", out, "--max-new-tokens", "4", "--device", "cpu")
    code, shown, _ = run(capsys, *words, "--name", "tiny")
    assert code == 0
    assert f"2 questions are answered in {out}, 0 of them before." in shown
    code, shown, _ = run(capsys, *words, "--name", "tiny")
    assert "2 of them before" in shown
    assert read_answers(out).model == "tiny"
    code, _, errors = run(capsys, *words, "--seed", "1")
    assert code == 2
    assert "choose another --out" in errors


def test_mt_bench_with_a_baseline_prints_and_writes_intervals(capsys, tmp_path):
    rows = {str(n): [f"worth {n % 5 + 1} points", f"worth {n % 3 + 2} points"] for n in range(81, 89)}
    ours = answers_file(tmp_path / "ours.jsonl", "ours", rows, [])
    lower = {name: ["worth 1 dots", "worth 1 dots"] for name in rows}
    theirs = answers_file(tmp_path / "theirs.jsonl", "theirs", lower, [])

    def answer(body):
        return f"Rating: [[{body['messages'][1]['content'].split('worth ')[-1].split()[0]}]]"

    with scripted.judge_server(answer) as server:
        words = ("judge", "mt_bench", ours, "--baseline", theirs, "--base-url", server.base_url, "--model", "j")
        code, shown, _ = run(capsys, *words, "--out", tmp_path / "out")
        assert code == 0
        sent = len(server.bodies)
        code, again, _ = run(capsys, *words, "--out", tmp_path / "out")
        assert len(server.bodies) == sent == 32
    first = sum(n % 5 + 1 for n in range(81, 89))
    second = sum(n % 3 + 2 for n in range(81, 89))
    assert f"ours: MT-Bench {(first + second) / 16:.2f} [" in shown
    assert "theirs: MT-Bench 1.00 [1.00, 1.00]" in shown
    assert f"ours - theirs: {(first + second) / 16 - 1:.2f} [" in shown
    assert "did not answer 72 questions of the benchmark" in shown
    assert "32 requests and 3,840 tokens now." in shown
    assert "requests" not in again
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["results"][0]["score"]["mean"] == pytest.approx((first + second) / 16)
    assert results["comparison"]["paired"]["blocks"] == 8
    table = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {row["what"] for row in table} >= {"score", "turn 1", "turn 2", "writing", "difference"}
    lines = (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()
    assert len(lines) == 32
    assert json.loads(lines[0])["reply"].startswith("Rating: [[")


def test_pairs_say_length_control_position_and_what_it_is_comparable_with(capsys, tmp_path, files):
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        words = ("judge", "pairs", files[0], "--baseline", files[1], "--base-url", server.base_url, "--model", "j")
        code, shown, _ = run(capsys, *words, "--out", tmp_path / "out")
    assert code == 0
    assert "ours against theirs, by the judge 'j': win rate 54.2% [" in shown
    assert "length-controlled win rate" in shown
    assert "Not comparable with the AlpacaEval 2 leaderboard" in shown
    assert "50% without position bias" in shown


def test_summaries(capsys, tmp_path, files):
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        words = ("judge", "tldr", files[0], "--baseline", files[1], "--base-url", server.base_url, "--model", "j")
        code, shown, _ = run(capsys, *words, "--out", tmp_path / "out")
    assert code == 0
    assert "win rate" in shown
    assert "length-controlled" not in shown


def test_a_spent_budget_is_said_and_the_same_command_continues(capsys, tmp_path, files):
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        words = ("judge", "tldr", files[0], "--baseline", files[1], "--base-url", server.base_url, "--model", "j")
        words = (*words, "--out", tmp_path / "out", "--max-calls", "9")
        code, shown, _ = run(capsys, *words)
        assert code == 1
        assert "15 questions were not asked: the budget of 9 calls is used up. The same command continues." in shown
        run(capsys, *words)
        code, shown, _ = run(capsys, *words)
        assert code == 0
        assert len(server.bodies) == 24


def test_a_judge_without_a_verdict_leaves_its_replies_and_one_sentence(capsys, tmp_path, files):
    with scripted.judge_server(lambda body: "I would rather not say.") as server:
        words = ("judge", "tldr", files[0], "--baseline", files[1], "--base-url", server.base_url, "--model", "j")
        code, _, errors = run(capsys, *words, "--concurrency", "1", "--out", tmp_path / "out")
        asked = len(server.bodies)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "no verdict in the asked format in any of 20 replies" in errors
    assert f"Read them in {tmp_path / 'out' / 'judgements.jsonl'}" in errors
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert sum(line["reply"] == "I would rather not say." for line in lines) in (20, asked)
    assert {line["problem"] for line in lines} == {"no JSON in the last line", "not asked"}
    assert {line["model"] for line in lines} == {"ours"}
    assert not (tmp_path / "out" / "results.json").exists()


def test_grades_that_were_given_before_are_kept_where_the_baseline_has_none(capsys, tmp_path):
    rows = {str(n): ["zebra", "zebra"] for n in range(81, 84)}
    ours = answers_file(tmp_path / "ours.jsonl", "ours", rows, [])
    theirs = answers_file(tmp_path / "theirs.jsonl", "theirs", {name: ["odd", "odd"] for name in rows}, [])

    def answer(body):
        return "Rating: [[5]]" if "zebra" in body["messages"][1]["content"] else "Well."

    with scripted.judge_server(answer) as server:
        words = ("judge", "mt_bench", ours, "--baseline", theirs, "--base-url", server.base_url, "--model", "j")
        assert run(capsys, *words, "--out", tmp_path / "out")[0] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert [(line["model"], line["value"]) for line in lines] == [("ours", 5.0)] * 6 + [("theirs", None)] * 6


def test_difficulties_beside_the_instructions_are_read(capsys, tmp_path):
    folder = tmp_path / "alpaca"
    folder.mkdir()
    rows = [{"instruction": f"{n}?", "output": "y" * 35, "generator": "gpt4_1106_preview"} for n in range(12)]
    (folder / "alpaca_eval.json").write_text(json.dumps(rows))
    (folder / "instruction_difficulty.csv").write_text(
        ",instruction_difficulty\n" + "".join(f"{n},{0.1 * n - 0.5}\n" for n in range(12))
    )
    own = [
        {"id": f"alpaca_eval:{n}", "model": "ours", "turns": [f"{n}?"], "answers": ["x" * (20 + 3 * n)]}
        for n in range(12)
    ]
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        words = ("judge", "pairs", tmp_path / "ours.jsonl", "--baseline", f"alpaca_eval:{folder}")
        words = (*words, "--base-url", server.base_url, "--model", "j", "--out", tmp_path / "out")
        code, shown, errors = run(capsys, *words)
    assert code == 0, errors
    assert "The leaderboard's model with its instruction difficulties and without its gamed baseline rows" in shown
    assert f"note: read {folder / 'instruction_difficulty.csv'}, which lies beside the instructions" in shown


def test_offline_judges_are_named_as_such(capsys, tmp_path, files):
    model = tiny.write_causal_model(tmp_path / "tiny")
    words = ("judge", "likelihood", files[0], "--baseline", files[1], "--model", model, "--device", "cpu")
    code, shown, _ = run(capsys, *words, "--out", tmp_path / "out")
    assert code == 0
    assert "by the likelihood per token under" in shown
    assert "(no judge)" in shown
    assert len((tmp_path / "out" / "judgements.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mt-bench", "OURS", "--base-url", "http://127.0.0.1:9/v1"), "`WHAT` must be one of mt_bench, pairs"),
        (("pairs", "OURS", "--base-url", "http://127.0.0.1:9/v1"), "give --baseline ANSWERS"),
        (("pairs", "OURS", "--baseline", "THEIRS"), "`--base-url` must say where the judge is"),
        (("pairs", "OURS", "--baseline", "nowhere.jsonl", "--base-url", "http://127.0.0.1:9/v1"), "nowhere.jsonl"),
        (
            ("pairs", "OURS", "--baseline", "THEIRS", "--base-url", "https://judge.example/v1"),
            "No key for judge.example",
        ),
        (("pairs", "OURS", "--baseline", "THEIRS", "--base-url", "http://a:b@127.0.0.1/v1"), "no user, password"),
        (
            ("tldr", "OURS", "--baseline", "THEIRS", "--base-url", "http://127.0.0.1:9/v1", "--tries", "1"),
            "no connection",
        ),
        (
            ("tldr", "OURS", "--baseline", "THEIRS", "--base-url", "http://127.0.0.1:9/v1", "--max-calls", "0"),
            "must be >= 1",
        ),
        (
            ("tldr", "OURS", "--baseline", "THEIRS", "--base-url", "http://127.0.0.1:9/v1", "--temperature", "x"),
            "default",
        ),
        (
            ("tldr", "OURS", "--baseline", "THEIRS", "--base-url", "http://127.0.0.1:9/v1", "--concurrency", "0"),
            "concurrency",
        ),
        (("mt_bench", "OURS", "--base-url", "http://127.0.0.1:9/v1"), "must be to MT-Bench questions"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, files, words, sentence):
    named = {"OURS": str(files[0]), "THEIRS": str(files[1])}
    code, _, errors = run(
        capsys, "judge", *(named.get(word, word) for word in words), "--model", "j", "--out", tmp_path / "out"
    )
    assert code == 2
    assert sentence in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1


def test_ctrl_c_exits_with_130_and_the_same_command_continues(capsys, tmp_path, files):
    with scripted.judge_server(scripted.choose(longer_first), latency_s=0.1) as server:
        words = ["judge", "tldr", str(files[0]), "--baseline", str(files[1]), "--base-url", server.base_url]
        words += ["--model", "j", "--concurrency", "2", "--out", str(tmp_path / "out")]
        clean = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        process = subprocess.Popen(
            [sys.executable, "-m", "lossmith", *words],
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 200
        while len(server.bodies) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Stopped. Replies are kept; the same command continues and repeats none." in errors
        assert "Traceback" not in errors
        asked = len(server.bodies)
        assert 6 <= asked <= 12
        assert run(capsys, *words)[0] == 0
        assert 24 <= len(server.bodies) <= 24 + 2
