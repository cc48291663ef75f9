"""`lossmith bench` as a person uses it."""

import json
import shlex
import sys

import pytest

from lossmith import cli
from lossmith.bench import Benchmark, Results, run
from lossmith.bench.memory import Peak

TINY = ("--tokens", "24", "--hidden", "8", "--vocab", "40", "--device", "cpu", "--repeats", "2")


def lossmith(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return int(stop.value.code or 0)


def test_bench_measures_shows_and_writes(capsys, tmp_path, monkeypatch):
    target, picture = tmp_path / "a.json", tmp_path / "a.svg"
    words = ("bench", *TINY, "--loss", "focal", "0.5*dft + poly1", "--engine", "chunked", "--against", "dense", "liger")
    assert lossmith(*words, "--ignored", "0.5", "--json", str(target), "--plot", str(picture)) == 0
    captured = capsys.readouterr()
    assert "24 tokens, 50% ignored, hidden 8, vocabulary 40" in captured.out
    assert "needs CUDA" in captured.out
    assert "x torch, dense" in captured.out
    assert "turn 2 of 2" in captured.err
    results = Results.from_json(target.read_text(encoding="utf-8"))
    assert results.complete
    assert len(results.rows) == 4
    if sys.platform == "linux":
        assert [row.peak_bytes is None for row in results.rows] == [False, False, False, True]
    assert [str(row.contestant) for row in results.rows if row.seconds][1] == "lossmith 0.5*dft + poly1, chunked"
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    # The command in the file measures the same again.
    monkeypatch.setattr(run, "measure_peak", lambda contestant, case: Peak(num_bytes=1))
    again = tmp_path / "again.json"
    assert lossmith(*shlex.split(results.command)[1:], "--json", str(again)) == 0
    other = Results.from_json(again.read_text(encoding="utf-8"))
    assert [(row.case, row.contestant) for row in other.rows] == [(row.case, row.contestant) for row in results.rows]


def test_a_stop_is_130_and_keeps_the_rest(capsys, tmp_path, monkeypatch):
    honest = Benchmark.run

    def stopped(self, listener):
        def listen(done: int, total: int, text: str) -> None:
            if text.startswith("turn 2 of"):
                raise KeyboardInterrupt

        return honest(self, listen)

    monkeypatch.setattr(Benchmark, "run", stopped)
    monkeypatch.setattr(run, "measure_peak", lambda contestant, case: Peak(num_bytes=1))
    target = tmp_path / "a.json"
    words = ("bench", *TINY, "--engine", "chunked", "--against", "dense", "--ignored", "0", "--json", str(target))
    assert lossmith(*words) == 130
    captured = capsys.readouterr()
    assert "Stopped; what was measured is kept." in captured.err
    assert "Stopped before its end" in captured.out
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written["complete"] is False
    assert [len(row["seconds"]) for row in written["rows"]] == [1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tokens", "0"), "`tokens` must be an integer >= 1, got 0."),
        (("--tokens", "many"), "Invalid value for '--tokens'"),
        (("--loss", "focl"), "Did you mean 'focal'?"),
        (("--loss", "focal[answer]"), "'focal[answer]' has a scope or a schedule. Give its terms alone."),
        (("--loss", "cross_entropy -> focal @ 0.3"), "has a scope or a schedule. Give its terms alone."),
        (("--loss",), "`--loss` names nothing: write one or more values after it."),
        (("--against", "trl", "ligger"), "Did you mean 'liger'?"),
        (("--json", "."), "`--json` needs a file, '.' is a folder."),
        (("--plot", "a.pdf"), "`--plot` writes .svg or .png files"),
    ],
)
def test_bad_input_is_one_sentence_and_2(capsys, monkeypatch, words, message):
    monkeypatch.setattr(Benchmark, "run", lambda self, listener: pytest.fail("measured all the same"))
    assert lossmith("bench", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
