"""`lossmith discover check`, `explain` and `selftest` as a user types them."""

import json

import pytest
from typer.testing import CliRunner

from lossmith.cli import app
from lossmith.discovery import Verdict
from lossmith.errors import ConfigurationError

GOOD = (
    "def f(chosen_logps, rejected_logps, *, beta=0.1):\n"
    "    return torch.relu(1 - beta * (chosen_logps - rejected_logps))\n"
)
PAPER = (
    "def f(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):\n"
    "    z = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)\n"
    "    return (F.softplus(-self.beta * z) + torch.exp(-self.beta * z)) / 2\n"
)


def run(*words, **settings):
    return CliRunner().invoke(app, ["discover", *map(str, words)], **settings)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "mine.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_check_accepts_and_says_so(write):
    done = run("check", write(GOOD))
    assert done.exit_code == 0
    assert done.output.startswith("accepted: ")
    assert "reference-free" in done.output


def test_check_rejects_with_line_and_reason(write):
    done = run("check", write("def f(chosen_logps):\n    import os\n    return -chosen_logps\n"))
    assert done.exit_code == 1
    assert done.output.startswith("rejected, forbidden (line 2): Nothing is imported")


def test_check_as_json(write):
    done = run("check", write(GOOD), "--json")
    assert done.exit_code == 0
    shown = json.loads(done.output)
    assert (shown["accepted"], shown["category"], shown["line"]) == (True, "ok", None)
    refused = run("check", write("def f(chosen_logps):\n    return z\n"), "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.output)["line"] == 2


def test_check_of_the_papers_signature_and_of_families(write):
    assert run("check", write(PAPER)).exit_code == 1
    done = run("check", write(PAPER), "--signature", "discopop")
    assert (done.exit_code, "nearest: cell at distance" in done.output) == (0, True)
    assert run("check", write(PAPER), "--signature", "discopop", "--against", "library").exit_code == 1
    assert run("check", write("def f(token_logps): return -token_logps"), "--family", "token").exit_code == 1


def test_check_of_standard_input():
    done = run("check", "-", input=GOOD)
    assert done.exit_code == 0


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"x" * 1_000_000, "def f(сhosen_logps): return 1".encode()])
def test_check_of_what_is_no_text(write, content):
    done = run("check", write(content), "--json")
    assert done.exit_code == 1
    assert not json.loads(done.output)["accepted"]


def test_wrong_use_is_exit_2(write, tmp_path):
    for words in (["check"], ["check", write(GOOD), "--bogus"], ["nothing"]):
        assert run(*words).exit_code == 2
    for words in (
        ["check", tmp_path / "none.py"],
        ["check", tmp_path],
        ["check", write(GOOD), "--family", "region"],
        ["check", write(GOOD), "--against", "all"],
        ["explain", write("def f(): pass"), "--out", tmp_path / "x.png"],
    ):
        # `main` makes exit code 2 of it.
        assert isinstance(run(*words).exception, ConfigurationError), words


def test_explain_says_draws_and_names(write, tmp_path):
    done = run("explain", write(PAPER), "--signature", "discopop", "--out", tmp_path / "mine.png")
    assert done.exit_code == 0, done.output
    assert "Closest known losses: cell at" in done.output
    assert "Loss over the log-ratio margin" in done.output
    assert "def candidate_loss(chosen_logps" in done.output
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_explain_as_json(write, tmp_path):
    done = run("explain", write(PAPER), "--signature", "discopop", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["verdict"]["accepted"] is True
    assert {"formula", "python", "latex", "properties", "relatives"} < told.keys()
    assert told["relatives"][0]["distance"] <= told["relatives"][1]["distance"]
    refused = run("explain", write("def f("), "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["formula"]) == (1, None)


@pytest.mark.parametrize("name", ["x.jpg", "folder.png"])
def test_explain_draws_png_files_alone(write, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    done = run("explain", write(PAPER), "--signature", "discopop", "--out", tmp_path / name)
    assert isinstance(done.exception, ConfigurationError)
    assert "must be a file that ends in .png" in str(done.exception)
    assert not done.stdout


@pytest.mark.parametrize(
    ("family", "source", "said"),
    [
        ("token", "def f(token_logps):\n    return 1 - token_logps - token_logps.exp()\n", "Implied target"),
        ("metric", "def f(distances, same):\n    return mean_masked(distances, same)\n", "similarity to its own class"),
    ],
)
def test_explain_of_other_families(write, family, source, said):
    done = run("explain", write(source), "--family", family)
    assert done.exit_code == 0, done.output
    assert said in done.output


def test_explain_of_a_refused_candidate(write):
    done = run("explain", write("def f(chosen_logps):\n    return chosen_logps\n"))
    assert done.exit_code == 1
    assert "wrong-sign" in done.output
    assert "Loss over" in done.output
    assert run("explain", write("def f(")).exit_code == 1


def test_selftest_passes():
    done = run("selftest")
    assert done.exit_code == 0, done.output
    assert "0 wrong verdicts, 0 traces" in done.output
    assert "12 canaries, 0 off." in done.output
    for family in ("preference", "token", "metric"):
        lines = [line for line in done.output.splitlines() if line.startswith(f"{family}, ")]
        names = ["known-good", "disguised-control", "known-bad", "cheat"]
        assert [line.split(":")[0].removeprefix(f"{family}, ") for line in lines] == names


@pytest.mark.parametrize(("traces", "passed", "code"), [((), True, 0), ((), False, 1), (("A trace.",), True, 1)])
def test_selftest_fails_by_either_half(monkeypatch, traces, passed, code):
    from lossmith.discovery import selftest, selftest_canaries

    verdict = Verdict(accepted=False, category="syntax", reason="No Python.")
    outcome = selftest.Outcome(entry={"id": 1, "tries": "x"}, verdict=verdict, milliseconds=1.0, problems=())
    monkeypatch.setattr(selftest, "run_corpus", lambda: selftest.CorpusReport(outcomes=(outcome,), traces=traces))
    line = selftest_canaries.CanaryLine(sentence="token, cheat: something.", passed=passed)
    monkeypatch.setattr(selftest_canaries, "run_canaries", lambda: [line])
    done = run("selftest")
    assert done.exit_code == code, done.output
    assert f"1 canaries, {0 if passed else 1} off.\ntoken, cheat: something.\n" in done.output
