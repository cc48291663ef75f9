"""`lossmith explain` as a person uses it, on a tiny study."""

from pathlib import Path

import pytest

import tiny
from lossmith import cli

FLAGS = ("--examples", "20", "--attributed", "3", "--seeds", "1")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli-explained")
    model, data = tiny.write_model(folder / "tiny"), tiny.write_data(folder / "films.jsonl", count=120)
    lossmith(
        "compare", str(data), "epochs=1", "--losses", "cross_entropy", "focal", "--model", str(model), "--seeds", "2",
        "--shots", "6", "--device", "cpu", "--out", str(folder / "out"), "batch_size=6",
    )  # fmt: skip
    return folder / "out"


def lossmith(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == code


def test_explain_leaves_a_page_and_says_what_was_found(results, capsys):
    lossmith("explain", str(results), "--losses", "focal", *FLAGS)
    shown = capsys.readouterr().out
    assert f"Report: {results / 'explain' / 'explain.html'}" in shown
    assert "focal: with one seed nothing is known of the spread" in shown
    assert "[2/2] seed 0  focal" in shown
    page = (results / "explain" / "explain.html").read_text(encoding="utf-8")
    assert f"lossmith explain {results} --losses focal --seeds 1 --examples 20 --attributed 3" in page
    lossmith("explain", str(results), *FLAGS)
    assert "2 of 2 runs are done already" in capsys.readouterr().out


def test_the_report_of_the_study_links_to_the_page(results):
    link, page = 'href="explain/explain.html"', results / "report.html"
    (results / "explain" / "explain.html").unlink(missing_ok=True)
    lossmith("report", str(results))
    assert link not in page.read_text(encoding="utf-8")
    lossmith("explain", str(results), *FLAGS)
    assert link in page.read_text(encoding="utf-8")


def test_explain_can_write_elsewhere(results, tmp_path):
    lossmith("explain", str(results), "--losses", "cross_entropy", *FLAGS, "--out", str(tmp_path / "here"))
    assert (tmp_path / "here" / "explain.html").is_file()


def test_ctrl_c_keeps_what_was_seen(results, tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lossmith.studies.explained.train_and_test", stop)
    lossmith("explain", str(results), *FLAGS, "--out", str(tmp_path), code=130)
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--losses", "focl"), "Did you mean 'focal'?"),
        (("--losses", "poly1"), "`losses` must name losses of the study, got 'poly1'"),
        (("--losses",), "`--losses` names no loss"),
        (("--seeds", "7"), "`seeds` must be from 1 to 2"),
        (("--seeds", "0,9"), "`seeds` must be seeds of the study, 0, 1, got 9"),
        (("--seeds", "two"), "`--seeds` must be a number of seeds or a list"),
        (("--examples", "0"), "`examples` must be an int >= 20, got 0"),
        (("--attributed", "0"), "`attributed` must be an int >= 1, got 0"),
    ],
)
def test_mistakes_are_one_sentence(results, capsys, words, message):
    lossmith("explain", str(results), *words, code=2)
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_folder_without_a_study_is_one_sentence(tmp_path, capsys):
    lossmith("explain", str(tmp_path), code=2)
    assert "holds no study" in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence(results, capsys, monkeypatch):
    import lossmith.studies.explained as explained
    from lossmith.errors import MissingExtraError

    def missing(module, *, extra, purpose):
        raise MissingExtraError(
            f"`{module}` is needed to {purpose} and is not installed: pip install 'lossmith[{extra}]'."
        )

    monkeypatch.setattr(explained, "require", missing)
    lossmith("explain", str(results), code=2)
    assert "pip install 'lossmith[explain]'" in capsys.readouterr().err
