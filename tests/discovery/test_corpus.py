"""The hostile corpus: every source gets what it must, and none leaves a trace."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lossmith.discovery import selftest
from lossmith.discovery.selftest import corpus, problems_of, run_corpus
from lossmith.discovery.selftest_watch import listening


@pytest.fixture(scope="module")
def report():
    return run_corpus()


def test_the_corpus_is_whole():
    entries = corpus()
    ids = [entry["id"] for entry in entries]
    assert len(ids) == len(set(ids))
    given = [number for number in ids if number % 2]
    own = [number for number in ids if number % 2 == 0]
    assert (len(given), len(own)) == (62, 229)
    assert {entry["static"] for entry in entries} == {"reject", "accept", "accept-inert", "accept-stripped"}
    assert all("verdict" in entry for entry in entries if entry["static"] == "reject" and entry["id"] % 2 == 0)


@pytest.mark.parametrize("entry", corpus(), ids=lambda entry: f"{entry['id']}-{entry['category']}")
def test_every_source_gets_what_it_must(entry, report):
    (outcome,) = [outcome for outcome in report.outcomes if outcome.entry["id"] == entry["id"]]
    assert outcome.problems == (), str(outcome.verdict)
    assert outcome.verdict.accepted == (entry["static"] != "reject" and entry["executed"] == "ok")
    assert outcome.verdict.category != "internal"


def test_nothing_is_touched(report):
    assert report.traces == ()
    assert report.passed
    assert report.sentences[0].startswith("291 candidates, ")


def watched(monkeypatch, during):
    """What is told of the first of two sources, which does something beside; the second is innocent."""
    entries = corpus()[:2]
    monkeypatch.setattr(selftest, "corpus", lambda: entries)
    honest = selftest._outcome

    def outcome(entry, place):
        if entry is entries[0]:
            during(place)
        return honest(entry, place)

    monkeypatch.setattr(selftest, "_outcome", outcome)
    report = run_corpus()
    assert report.passed == (not report.traces)
    head = f"{entries[0]['id']}: {entries[0]['tries']}: "
    assert all(each.startswith(head) for each in report.traces)
    return [each.removeprefix(head) for each in report.traces]


def test_the_watch_sees_nothing_where_there_is_nothing(monkeypatch):
    assert watched(monkeypatch, lambda place: None) == []


def test_the_watch_sees_files(monkeypatch, tmp_path):
    told = watched(monkeypatch, lambda place: (place.drop / "x").write_text(""))
    assert told[0] == "the folder changed."
    assert told[1].startswith("it opened the file '")
    # Anywhere, and one that is gone again.
    path = tmp_path / "y"
    assert watched(monkeypatch, lambda place: (path.write_text("x"), path.unlink())) == [
        f"it opened the file '{path}'.",
        "it caused `os.remove`.",
    ]


def test_the_watch_sees_that_the_canary_is_written_or_read(monkeypatch):
    told = watched(monkeypatch, lambda place: place.canary.write_text("x"))
    assert told[0] == "the file changed."
    told = watched(monkeypatch, lambda place: place.canary.read_bytes())
    assert told[-1].startswith("it opened the file '")


def test_the_watch_sees_visitors_and_sockets(monkeypatch):
    told = watched(monkeypatch, lambda place: socket.create_connection(("127.0.0.1", place.port), 1).close())
    assert told[0] == "the port had a visitor."
    assert "it caused `socket.connect`." in told
    # One that goes nowhere.
    assert watched(monkeypatch, lambda place: socket.socket().close()) == ["it caused `socket.__new__`."]


def test_the_watch_sees_processes_that_have_ended_and_that_live_in_a_thread(monkeypatch):
    command = [sys.executable, "-S", "-c", "pass"]
    told = watched(monkeypatch, lambda place: subprocess.run(command, check=True))
    assert "it caused `subprocess.Popen`." in told
    assert "it caused `os.system`." in watched(monkeypatch, lambda place: os.system("true"))
    living = []

    def start(place):
        sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        thread = threading.Thread(target=lambda: living.append(subprocess.Popen(sleeper)))
        thread.start()
        thread.join()

    try:
        told = watched(monkeypatch, start)
    finally:
        for each in living:
            each.kill()
            each.wait()
    assert "it caused `subprocess.Popen`." in told
    if Path("/proc/self/task").is_dir():
        assert "the processes changed." in told


def test_the_watch_sees_a_thread_that_stays(monkeypatch):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    told = watched(monkeypatch, lambda place: thread.start())
    done.set()
    thread.join()
    assert told[0] == "the threads changed."
    if sys.version_info >= (3, 12):
        assert told[1].startswith("it caused `_thread.start_")


def test_the_watch_sees_the_environment(monkeypatch):
    monkeypatch.setenv("LOSSMITH_TEST", "0")
    told = watched(monkeypatch, lambda place: os.environ.update(LOSSMITH_TEST="1"))
    assert told == ["the environment changed.", "it caused `os.putenv`."]

    def and_back(place):
        os.environ["LOSSMITH_TEST"] = "2"
        os.environ["LOSSMITH_TEST"] = "1"

    assert watched(monkeypatch, and_back) == ["it caused `os.putenv`."]


def test_the_watch_sees_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = watched(monkeypatch, lambda place: os.chdir(tmp_path.parent))
    assert told == ["the working folder changed.", "it caused `os.chdir`."]


def test_the_watch_sees_code_that_is_run(monkeypatch):
    assert watched(monkeypatch, lambda place: eval("1 + 1")) == ["it ran code."]  # noqa: S307


def test_the_watch_sees_the_secret_in_a_verdict(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "the user's own")
    honest, secret = selftest.check, []

    def leaks(source, family="preference", **words):
        secret.append(os.environ["SECRET_KEY"])
        return replace(honest(source, family, **words), reason=f"I know {secret[-1]}")

    monkeypatch.setattr(selftest, "check", leaks)
    entries = corpus()[:1]
    monkeypatch.setattr(selftest, "corpus", lambda: entries)
    (trace,) = run_corpus().traces
    assert trace.endswith(": the secret is in its verdict.")
    assert secret[-1] != "the user's own"
    assert os.environ["SECRET_KEY"] == "the user's own"


def test_the_watch_looks_only_while_a_source_is_looked_at(monkeypatch, tmp_path):
    with listening(tmp_path / "canary") as events:
        pass
    (tmp_path / "x").touch()
    assert events == []


def test_a_wrong_verdict_is_told(report):
    entry = next(entry for entry in corpus() if entry["id"] == 117)
    verdict = next(outcome.verdict for outcome in report.outcomes if outcome.entry["id"] == 117)
    assert list(problems_of(entry, verdict)) == []
    assert list(problems_of({**entry, "executed": "wrong-sign"}, verdict))
    assert list(problems_of({**entry, "static": "reject"}, verdict))
