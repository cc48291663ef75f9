"""`lossmith answer` and `lossmith judge` from the command line."""

import csv
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import judge_server as scripted
import tiny
from lossmith.cli import judge, main
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
    assert {row["side"] for row in table} == {"answers", "baseline", "answers - baseline"}
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


def graded_files(tmp_path, ours: dict[str, list[str]], theirs: dict[str, list[str]], names=("ours", "theirs")):
    first = answers_file(tmp_path / "first.jsonl", names[0], ours, [])
    second = answers_file(tmp_path / "second.jsonl", names[1], theirs, [])
    return ("judge", "mt_bench", first, "--baseline", second, "--model", "j", "--out", tmp_path / "out")


def judgements(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "judgements.jsonl").read_text().splitlines()]


def test_two_files_of_one_model_lose_no_judgements(capsys, tmp_path):
    rows = {str(n): ["text", "text"] for n in range(81, 84)}
    words = graded_files(tmp_path, rows, {name: ["zebra", "zebra"] for name in rows}, names=("same", "same"))
    with scripted.judge_server(
        lambda body: f"Rating: [[{3 if 'zebra' in body['messages'][1]['content'] else 8}]]"
    ) as server:
        assert run(capsys, *words, "--base-url", server.base_url)[0] == 0
    lines = judgements(tmp_path / "out")
    assert [(line["side"], line["model"]) for line in lines] == [("answers", "same")] * 6 + [("baseline", "same")] * 6
    assert [line["value"] for line in lines] == [8] * 6 + [3] * 6


def test_a_baseline_that_cannot_be_compared_is_found_before_anything_is_asked(capsys, tmp_path):
    rows = {str(n): ["text", "text"] for n in range(81, 84)}
    with scripted.judge_server(lambda body: "Rating: [[5]]") as server:
        for baseline, sentence in [
            ({"90": ["a", "b"], "91": ["a", "b"]}, "must share at least 2 MT-Bench questions to be compared, got 0."),
            ({"81": ["a", "b"], "82": ["a"]}, "Question '82' must have 2 answers"),
        ]:
            words = graded_files(tmp_path, rows, baseline)
            code, _, errors = run(capsys, *words, "--base-url", server.base_url)
            assert code == 2
            assert sentence in errors
        assert server.bodies == []


def test_grades_that_cannot_be_compared_are_written_and_said(capsys, tmp_path):
    rows = {str(n): ["text", "text"] for n in range(81, 84)}
    words = graded_files(tmp_path, rows, {**{name: ["mute", "mute"] for name in rows}, "81": ["other", "other"]})
    with scripted.judge_server(
        lambda body: "Well." if "mute" in body["messages"][1]["content"] else "Rating: [[5]]"
    ) as server:
        code, shown, errors = run(capsys, *words, "--base-url", server.base_url)
    assert code == 0, errors
    assert (
        "note: no comparison with the baseline: Models must share at least 2 questions with all verdicts, got 1."
        in shown
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["comparison"] is None
    assert [result["graded"] for result in results["results"]] == [6, 2]


def test_results_of_other_settings_are_not_written_over(capsys, tmp_path, files):
    def told() -> bytes:
        return b"".join((tmp_path / "out" / name).read_bytes() for name in ("results.json", "judgements.jsonl"))

    with scripted.judge_server(scripted.choose(longer_first)) as server:
        here = ("--base-url", server.base_url, "--out", tmp_path / "out")
        words = ("judge", "tldr", files[0], "--baseline", files[1], "--model", "j")
        assert run(capsys, *words, *here)[0] == 0
        before, sent = told(), len(server.bodies)
        for other, said in [
            (("judge", "tldr", files[0], "--baseline", files[1], "--model", "k"), '`model` is "j" there, "k" here'),
            (
                ("judge", "pairs", files[0], "--baseline", files[1], "--model", "j"),
                '`what` is "tldr" there, "pairs" here',
            ),
            (("judge", "tldr", files[1], "--baseline", files[0], "--model", "j"), "`content of the answers` is"),
            ((*words, "--reply-tokens", "99"), "`reply_tokens` is"),
        ]:
            code, _, errors = run(capsys, *other, *here)
            assert code == 2
            assert len(errors.strip().splitlines()) == 1
            assert said in errors
            assert f"choose another --out (--cache {tmp_path / 'out' / 'replies.sqlite'} keeps the replies)" in errors
        assert told() == before
        assert len(server.bodies) == sent
    # The same answers at another address, under another path, by more threads: the same results.
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(files[0].read_bytes())
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        words = ("judge", "tldr", moved, "--baseline", files[1], "--model", "j", "--concurrency", "2")
        code, _, errors = run(capsys, *words, "--base-url", server.base_url, "--out", tmp_path / "out")
        assert code == 0, errors
        assert server.bodies == []
    (tmp_path / "out" / "results.json").write_text('{"results": []}')
    code, _, errors = run(capsys, *words, "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "out")
    assert code == 2
    assert "holds no results of this `lossmith judge`: choose another --out." in errors


def test_two_folders_of_answers_with_one_name_do_not_share_the_default_folder_in_silence(
    capsys, tmp_path, files, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    other = answers_file(tmp_path / "other" / "ours.jsonl", "x", {str(n): ["x" * 9] for n in range(12)}, ["Why?"])
    with scripted.judge_server(scripted.choose(longer_first)) as server:
        here = ("--baseline", files[1], "--base-url", server.base_url, "--model", "j")
        assert run(capsys, "judge", "tldr", files[0], *here)[0] == 0
        code, _, errors = run(capsys, "judge", "tldr", other, *here)
    assert code == 2
    assert "holds results of other settings (`content of the answers` is" in errors


def test_every_option_is_read_or_refused():
    """An option of the command that the table forgets would be ignored in silence."""
    by_all = {"what", "answers", "model", "baseline", "seed", "out"}
    options = {name for name in inspect.signature(judge.judge).parameters if name != "context"}
    assert options == by_all | set(judge.READ_BY)
    assert not by_all & set(judge.READ_BY)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("tldr", "--difficulties", "x.csv"),
            "`--difficulties` is for pairs, and nothing reads it for tldr: leave it out.",
        ),
        (("tldr", "--label", "1"), "`--label` is for reward, and nothing reads it for tldr"),
        (("mt_bench", "--gamed", "x.csv"), "`--gamed` is for pairs, and nothing reads it for mt_bench"),
        (("mt_bench", "--no-logprobs"), "`--logprobs` is for pairs and tldr, and nothing reads it for mt_bench"),
        (("mt_bench", "--device", "cpu"), "`--device` is for reward and likelihood"),
        (("likelihood", "--label", "1"), "`--label` is for reward, "),
        (("likelihood", "--repeats", "1"), "`--repeats` is for mt_bench and pairs and tldr"),
        (("reward", "--max-calls", "9"), "`--max-calls` is for mt_bench and pairs and tldr"),
        (("reward", "--base-url", "http://127.0.0.1:9/v1"), "`--base-url` is for mt_bench and pairs and tldr"),
    ],
)
def test_options_that_nothing_reads_are_refused(capsys, tmp_path, files, words, sentence):
    what, *options = words
    own = ("judge", what, files[0], "--baseline", files[1], "--model", "j", "--out", tmp_path / "out")
    code, _, errors = run(capsys, *own, *options)
    assert code == 2
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_grades_with_a_check_word_are_said(capsys, tmp_path):
    rows = {"81": ["Rating: [[10]]", "text"], "82": ["text", "text"]}

    def answer(body):
        checked = '"check"' in body["messages"][1]["content"]
        return json.dumps({"check": scripted.check_word(body), "rating": 2}) if checked else "Rating: [[4]]"

    ours = answers_file(tmp_path / "ours.jsonl", "ours", rows, [])
    with scripted.judge_server(answer) as server:
        words = ("judge", "mt_bench", ours, "--base-url", server.base_url, "--model", "j", "--out", tmp_path / "out")
        code, shown, _ = run(capsys, *words)
    assert code == 0
    assert "ours: MT-Bench 3.00 [" in shown
    assert "note: 2 turns of 'ours' were asked with a check word behind the published prompt" in shown
    assert [line["checked"] for line in judgements(tmp_path / "out")] == [True, True, False, False]


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
        (
            ("tldr", "OURS", "--baseline", "THEIRS", "--base-url", "http://127.0.0.1:9/v1", "--reply-tokens", "0"),
            "`reply_tokens` must be >= 1, got 0",
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
