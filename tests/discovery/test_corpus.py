"""The hostile corpus: every source gets what it must, and none leaves a trace."""

import os
import socket

import pytest

from lossmith.discovery import selftest
from lossmith.discovery.selftest import corpus, problems_of, run_corpus


@pytest.fixture(scope="module")
def report():
    return run_corpus()


def test_the_corpus_is_whole():
    entries = corpus()
    ids = [entry["id"] for entry in entries]
    assert len(ids) == len(set(ids))
    given = [number for number in ids if number % 2]
    own = [number for number in ids if number % 2 == 0]
    assert (len(given), len(own)) == (62, 186)
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
    assert report.sentences[0].startswith("248 candidates, ")
    assert max(outcome.milliseconds for outcome in report.outcomes) < 500


def watched(monkeypatch, during):
    """The report of a run in which one source does something."""
    entries = corpus()[:2]
    monkeypatch.setattr(selftest, "corpus", lambda: entries)
    honest = selftest._outcome

    def outcome(entry, drop, canary, port):
        during(drop, canary, port)
        return honest(entry, drop, canary, port)

    monkeypatch.setattr(selftest, "_outcome", outcome)
    return run_corpus()


def test_the_watch_sees_files(monkeypatch):
    report = watched(monkeypatch, lambda drop, canary, port: (drop / "x").touch())
    assert report.traces == ("The folder changed.",)
    assert not report.passed


def test_the_watch_sees_the_canary(monkeypatch):
    assert watched(monkeypatch, lambda drop, canary, port: canary.write_text("x")).traces == ("The file changed.",)


def test_the_watch_sees_visitors(monkeypatch):
    def visit(drop, canary, port):
        socket.create_connection(("127.0.0.1", port), 1).close()

    assert watched(monkeypatch, visit).traces == ("The port had a visitor.",)


def test_the_watch_sees_the_environment(monkeypatch):
    monkeypatch.setenv("LOSSMITH_TEST", "0")

    def write(drop, canary, port):
        os.environ["LOSSMITH_TEST"] = os.environ["LOSSMITH_TEST"] + "1"

    assert watched(monkeypatch, write).traces == ("The environment changed.",)


def test_a_wrong_verdict_is_told(report):
    entry = next(entry for entry in corpus() if entry["id"] == 117)
    verdict = next(outcome.verdict for outcome in report.outcomes if outcome.entry["id"] == 117)
    assert list(problems_of(entry, verdict)) == []
    assert list(problems_of({**entry, "executed": "wrong-sign"}, verdict))
    assert list(problems_of({**entry, "static": "reject"}, verdict))
