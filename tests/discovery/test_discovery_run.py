"""A whole run from options to report and export, as a person runs it."""

import importlib.util
import re
import shutil
import sqlite3
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lossmith.cli import app
from lossmith.discovery import compile_source, ladder, start
from lossmith.discovery import export as exporting
from lossmith.discovery.card import card
from lossmith.discovery.controls import canaries_of, control_of
from lossmith.discovery.costs import Budget
from lossmith.discovery.describe import describe_candidate
from lossmith.discovery.export import export
from lossmith.discovery.history import open_history
from lossmith.discovery.program import to_python, torch_function
from lossmith.discovery.rungs.tiny import TinyPreference
from lossmith.discovery.rungs.toy import ToyPreference
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.ledger import Ledger
from lossmith.errors import ConfigurationError, EvidenceError, LossmithError
from lossmith.report import discovery
from lossmith.report.discovery import answers, write_discovery
from lossmith.report.discovery_tables import funnel_table

SMALLEST = start.Size(6, 2, 2, 0, 1, 5, each=2)
ASKS = ["--proposer", "llm", "--base-url", "http://localhost:1/v1", "--llm-model", "qwen3:8b", "--rungs", "toy"]
WORLD = {"pairs": 96, "batch": 48, "steps": 12, "test_prompts": 64}


def run(*words):
    return CliRunner().invoke(app, ["discover", *map(str, words)], catch_exceptions=True)


@pytest.fixture(scope="module")
def quick():
    """Worlds of a few milliseconds, and a race of a few candidates."""
    with pytest.MonkeyPatch.context() as patch:
        worlds = {"toy": ToyPreference(**WORLD), "tiny": TinyPreference(pairs=64, test_pairs=64, steps=6)}
        patch.setitem(ladder._OURS, "preference", worlds)
        elsewhere = {
            "toy": ToyPreference(name="toy-unseen", skewed=True, **WORLD),
            "tiny": TinyPreference(name="tiny-unseen", task="order", pairs=64, test_pairs=64, steps=6),
        }
        patch.setitem(ladder._ELSEWHERE, "preference", elsewhere)
        patch.setattr(start, "SIZES", (SMALLEST,))
        patch.setattr(start, "ALONE", SMALLEST)
        patch.setattr(discovery, "SHOWN", 2)
        yield


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    """A run of two rounds on the toy rung, by the command."""
    folder = tmp_path_factory.mktemp("discover") / "run"
    words = ["preference", "--rungs", "toy", "--rounds", 2, "--budget", "1h", "--seed", 3, "--out", folder]
    result = run(*words)
    assert result.exit_code == 0, result.output
    return folder, words, result.output


def test_the_command_says_what_it_costs_before_and_what_came_of_it(finished):
    folder, _, output = finished
    assert output.index("one round:") < output.index("Round 1:") < output.index("Finished:")
    assert f"Report: {folder / 'discovery.html'}" in output.replace("\n", "")
    assert "lossmith discover export" in output


def test_what_becomes_of_peoples_files_is_said_and_shown(quick, tmp_path):
    folder, files = tmp_path / "run", tmp_path / "files"
    files.mkdir()
    (files / "good.py").write_text(
        "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):\n"
        "    z = 0.3 * (chosen_logps - rejected_logps - ref_chosen_logps + ref_rejected_logps)\n"
        "    return torch.sigmoid(-z)\n"
    )
    (files / "upside_down.py").write_text(
        "def f(chosen_logps, rejected_logps):\n    return F.softplus(chosen_logps - rejected_logps)\n"
    )
    (files / "all_wrong.py").write_text(
        "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):\n"
        "    return -F.logsigmoid(0.1 * (rejected_logps - chosen_logps - ref_rejected_logps + ref_chosen_logps))\n"
    )
    result = run("preference", "--rungs", "toy", "--rounds", 1, "--budget", "1h", "--proposer", files, "--out", folder)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "`good.py` of people: admitted as " in said
    assert "`upside_down.py` of people: rejected, wrong-sign: " in said
    assert "`all_wrong.py` of people: duplicate, duplicate-of-known-bad: " in said
    assert "the control with all labels wrong" in said
    assert "flip the sign" in said
    page = (folder / "discovery.html").read_text()
    assert "upside_down: " in page
    people = page[page.index("Files of people") :]
    assert ">good.py</" in people
    assert "rejected: wrong-sign" in people
    assert "lossmith&#39;s own small worlds alone" in page or "nothing was shown" in page.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "FILE"], "a file stands where the folder should be"),
        (["--proposer", "./nowhere/at_all"], "names a folder of candidates that is not there: './nowhere/at_all'"),
    ],
)
def test_a_file_for_a_folder_and_a_folder_that_is_not_there(quick, tmp_path, words, said):
    file = tmp_path / "file"
    file.write_text("mine")
    words = [str(file) if word == "FILE" else word for word in words]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "run")]
    result = run("preference", "--rungs", "toy", "--rounds", 1, "--budget", "1h", *words)
    assert isinstance(result.exception, LossmithError)
    assert said in str(result.exception)
    assert file.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_same_command_goes_on_and_repeats_nothing(finished):
    folder, words, _ = finished
    before = open_history(folder)
    result = run(*words)
    assert result.exit_code == 0
    assert "Goes on with the run" in result.output
    after = open_history(folder)
    assert after.evaluations == before.evaluations
    assert after.proposals == before.proposals


def test_other_settings_in_the_same_folder_are_refused(finished):
    folder, *_ = finished
    result = run("preference", "--rungs", "toy", "--rounds", 2, "--budget", "1h", "--seed", 4, "--out", folder)
    assert isinstance(result.exception, EvidenceError)
    assert "`seed` is 3 there, 4 here" in str(result.exception)


def test_a_budget_that_cannot_pay_the_baseline_is_refused(quick, tmp_path):
    result = run("preference", "--rungs", "toy", "--budget", "3jobs", "--out", tmp_path / "run")
    assert isinstance(result.exception, ConfigurationError)
    assert "cannot finish its own baseline" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--rungs", "toy,huge"], "must name some of toy,tiny,small, got 'huge'"),
        (["--budget", "soon"], "`budget` must be amounts"),
        (["--proposer", "genius"], "must name some of gp, random, best-of, "),
        (["--proposer", ","], "`--proposer` names nothing"),
        (["--proposer", "llm"], "give `--base-url`"),
        (["--proposer", "llm", "--base-url", "http://localhost:1/v1"], "give `--llm-model`"),
        (["--base-url", "http://localhost:1/v1"], "for `--proposer llm`, which is not asked for"),
        (["--proposer", "llm", "--model", "embedded:smollm2-135m"], "name the one that proposes by --llm-model"),
        (["--prices", "cheap"], "dollars per million tokens"),
        (["--prices", "1,2"], "`--prices` are for `--proposer llm`"),
        ([*ASKS, "--prices", "nan,2"], "must be two finite numbers >= 0, got nan,2"),
        ([*ASKS, "--budget", "60jobs, 0.0001usd"], "`budget` of $0.0001 needs `--prices`"),
        (["--rungs", "toy", "--budget", "1usd"], "the search would have no end"),
        (["--rungs", "toy", "--budget", "100tokens"], "the search would have no end"),
        ([*ASKS, "--budget", "1h, 30ktokens"], "give at least 37,120 tokens."),
        (["--task", "sentiment", "--rungs", "toy"], "`task` is for the rung `small`"),
        (["epochs=3", "--rungs", "toy"], "`epochs` is for the rung `small`"),
    ],
)
def test_mistakes_are_one_sentence(quick, tmp_path, words, match):
    result = run("preference", *words, "--out", tmp_path / "run")
    assert isinstance(result.exception, LossmithError)
    assert re.search(re.escape(match), str(result.exception))
    assert "\n" not in str(result.exception)
    assert not any(tmp_path.iterdir())


def test_a_budget_in_tokens_or_money_is_one_that_a_run_can_keep(quick, tmp_path):
    """The documented command, and prices that say that nothing is paid."""
    words = ["preference", "--rungs", "toy", "--proposer", "gp,llm", *ASKS[2:], "--out", tmp_path / "run"]
    for more in (["--budget", "2h, 500ktokens"], ["--budget", "2h, 1usd", "--prices", "0,0"]):
        with ExitStack() as stack:
            said, setup = opened(stack, *words, *more)
            assert said[-1].startswith("rounds that fit: 1 to " if "tokens" in more[1] else "rounds that fit: ")
            stored = setup.to_settings()
            assert stored["sources"] == {"model": "qwen3:8b"}
            assert (stored["race"]["candidates"], setup.provenance["host"]) == (6, "localhost:1")


def opened(stack, *words):
    """The forecast and the setup of a command that is not carried out."""
    found = []

    def instead(console, engine, setup, folder):
        found.extend([engine.forecast().sentences(setup.budget, setup.settings.rounds), setup])
        raise ConfigurationError("stopped by the test")

    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr("lossmith.cli.discover_run._preflight", instead)
    result = run(*words)
    assert "stopped by the test" in str(result.exception), result.exception
    shutil.rmtree(words[words.index("--out") + 1])
    return found


def test_other_rungs_in_the_same_folder_are_named(finished):
    folder, *_ = finished
    result = run("preference", "--rungs", "toy,tiny", "--rounds", 2, "--budget", "1h", "--seed", 3, "--out", folder)
    assert isinstance(result.exception, EvidenceError)
    assert "holds a run on the rungs toy, and this one is on toy,tiny" in str(result.exception)


@pytest.mark.filterwarnings("ignore:.*holds no .py file yet")
def test_another_model_or_folder_of_candidates_is_another_run(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    rungs, budget, found = ladder.make_ladder("preference", ["toy"]), Budget(jobs=500), []
    with ExitStack() as stack:
        for model, folder in (("a", folders[0]), ("b", folders[0]), ("a", folders[1])):
            address = start.ModelAddress(base_url="http://localhost:1/v1", model=model)
            setup = start.make_setup(
                "preference", rungs, seed=0, budget=budget, proposers=["llm", str(folder)], address=address,
                folder=tmp_path / "run", stack=stack,
            )  # fmt: skip
            found.append(setup.identity()["sources"])
            assert setup.provenance == {"model": model, "host": "localhost:1", "prices": None}
    assert found[0] == {"model": "a", "folders": [str(folders[0])]}
    assert found[1] == {**found[0], "model": "b"}
    assert found[2] == {**found[0], "folders": [str(folders[1])]}


def test_history_says_where_proposals_came_from_and_how_it_was_run(finished):
    history = open_history(finished[0])
    assert history.sources == {}
    assert history.sessions[0]["command"].startswith("lossmith")
    assert {"started_at", "lossmith", "commit"} <= set(history.sessions[0])
    with Database(finished[0], read_only=True) as database:
        kinds = Ledger(database, Budget()).by_kind()
    arms = [kinds[f"proposer/{arm}"].wall_seconds for arm in ("gp", "random", "best-of")]
    assert all(seconds > 0 for seconds in arms)
    assert history.spend["proposer"].wall_seconds >= sum(arms)


def test_the_model_that_proposes_may_be_named_by_model_where_no_rung_trains_one():
    from lossmith.cli.discover_run import _models

    assert _models("qwen3:8b", None, ["llm"], None, False) == (None, "qwen3:8b", ["toy", "tiny"])
    assert _models("a", "b", ["llm"], None, False) == ("a", "b", ["toy", "tiny", "small"])
    assert _models("a", None, ["gp"], None, False) == ("a", None, ["toy", "tiny", "small"])
    assert _models(None, None, ["gp"], None, True)[2] == ["toy", "tiny", "small"]
    with pytest.raises(ConfigurationError, match="--llm-model"):
        _models("qwen3:8b", None, ["llm"], "toy,tiny,small", False)


def test_history_counts_what_the_database_holds(finished):
    history = open_history(finished[0])
    assert history.rounds == 2
    assert history.closed == {"reason": "rounds", "rounds": 2}
    assert history.ended == "finished"
    admitted = [each.key for each in history.proposals if each.kind == "admitted"]
    assert history.candidates == admitted
    table = {row[0]: row[1] for row in funnel_table(history).rows}
    assert int(table["admitted"]) + int(table["duplicates"]) + int(table["refused by the checks"]) == int(
        table["proposed"]
    )
    assert int(table["announced"]) == len(history.announced())
    canaries = {each.name for each in history.canaries()}
    assert canaries <= {"known-good", "disguised-control", "known-bad"}
    assert {each.state for each in history.canaries()} <= {"as expected", "not yet known"}


def test_the_page_has_every_part_and_escapes_foreign_text(finished):
    folder, *_ = finished
    page = (folder / "discovery.html").read_text()
    for heading in (
        "claims",
        "evidence-heading",
        "lineage-heading",
        "funnel",
        "proposers-heading",
        "audit",
        "canaries",
        "spend",
        "negative",
    ):
        assert f'id="{heading}"' in page
    assert "<pre>def candidate_loss(" in page
    assert len(re.findall('<svg [^>]*class="figure"', page)) >= 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {path.name for path in folder.glob("*.png")} >= {"lineage.png", "proposers.png", "evidence.png"}
    assert answers(open_history(folder))[0] in page.replace("&#39;", "'")


def test_a_name_with_markup_stays_text(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    with sqlite3.connect(folder / "discovery.sqlite") as connection:
        connection.execute("UPDATE program SET name = '<img src=x onerror=alert(1)>' WHERE role = 'candidate'")
        connection.execute(
            "UPDATE proposal SET reason = '<script>alert(2)</script>', kind = 'rejected', category = 'x'"
        )
    connection.close()
    page = write_discovery(folder).read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(2)" in page


def test_an_export_stands_on_its_own(finished, tmp_path, monkeypatch):
    folder, *_ = finished
    exported = export(folder, "best", out=tmp_path / "mine", name="found_here")
    assert {path.name for path in exported.files} == {
        "found_here_loss.py", "test_found_here_loss.py", "card.md", "program.json",
    }  # fmt: skip
    assert all(path.is_file() for path in exported.files)
    monkeypatch.syspath_prepend(str(exported.folder))
    from lossmith.objectives import _registry

    monkeypatch.setattr(_registry, "_REGISTRY", dict(_registry._REGISTRY))
    spec = importlib.util.spec_from_file_location("test_found_here_loss", exported.folder / "test_found_here_loss.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        assert len(tests) >= 3
        for test in tests:
            test()
        import lossmith

        assert str(lossmith.loss("found_here")) == "found_here"
    finally:
        for name in ("found_here_loss", "test_found_here_loss"):
            sys.modules.pop(name, None)
    card = (exported.folder / "card.md").read_text()
    key = open_history(folder).find("best")
    assert key in card
    assert "did **not**" in card or "announced it" in card
    assert "| toy | search | reward_at_equal_kl |" in card


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            lambda text: text.replace("    return ", "    return 2 * ", 1),
            "compiles to program `[0-9a-f]+`, another one",
        ),
        (lambda text: text.replace("    return ", "    return undefined + ", 1), "does not compile: "),
    ],
)
def test_an_export_that_is_another_program_writes_nothing(finished, tmp_path, monkeypatch, changed, match):
    true = exporting.objective_source
    monkeypatch.setattr(exporting, "objective_source", lambda *words: changed(true(*words)))
    with pytest.raises(exporting.ExportError, match=f"Nothing was written: .*{match}"):
        export(finished[0], "best", out=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_other_values_of_the_same_program_are_noticed(finished, monkeypatch):
    program = control_of("preference")
    source = f"def f({', '.join(program.inputs)}):\n" + to_python(program, "f").split("\n", 1)[1]
    exporting.check_text(program, source)
    inputs, values, gradients = exporting.pinned(program)
    moved = {name: [1.001 * rows[0], *rows[1:]] for name, rows in gradients.items()}
    answers = iter([(inputs, values, moved), (inputs, values, gradients)])
    monkeypatch.setattr(exporting, "pinned", lambda program: next(answers))
    with pytest.raises(exporting.ExportError, match="has other values or gradients"):
        exporting.check_text(program, source)


def test_the_exported_test_of_the_margin_fails_for_a_loss_that_pulls_the_other_way(tmp_path):
    program = control_of("preference")
    text = exporting.tests_source(program, "x", describe_candidate(program, "preference", name="x"), [])
    path = tmp_path / "margin.py"
    path.write_text(text.replace("from x_loss import x_loss\n", "x_loss = None\n"))
    spec = importlib.util.spec_from_file_location("margin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = torch_function(program)
    module.x_loss = own
    module.test_a_larger_margin_is_never_worse()
    for factor in (-1, 0):
        module.x_loss = lambda factor=factor, **given: factor * own(**given)
        with pytest.raises(AssertionError):
            module.test_a_larger_margin_is_never_worse()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(rejected_logps):\n    return torch.exp(0.1 * rejected_logps)\n", '{"rejected_logps": 1.0}'),
        # Its gradient turns round beyond a margin of 2: there is nothing to promise.
        ("def f(chosen_logps, rejected_logps):\n    return (0.1 * (chosen_logps - rejected_logps) - 2) ** 2\n", None),
    ],
)
def test_the_test_of_the_margin_is_written_where_it_holds(source, said):
    program = compile_source(source)
    text = exporting.tests_source(program, "x", describe_candidate(program, "preference", name="x"), [])
    assert ("def test_a_larger_margin_is_never_worse" in text) == (said is not None)
    assert said is None or f"in {said}.items():" in text


def test_the_card_says_how_the_run_was_made_and_how_its_decisions_are(finished):
    history = replace(open_history(finished[0]), settings={"command": "lossmith discover token --out 'a b'"} | dict(
        open_history(finished[0]).settings) | {"sessions": [{"command": "lossmith discover token --seed 3"}, {}] * 2}
    )  # fmt: skip
    key = history.find("best")
    description = describe_candidate(history.programs[key], "preference", name="x")
    text = card(history, key, "x", description, [])
    made = "```\nlossmith discover token --out 'a b' --seed 3\nlossmith discover token --seed 3\n```"
    assert made in text
    assert f"```\nlossmith discover replay {finished[0]}\nlossmith discover report {finished[0]}\n" in text
    assert discovery.commands(history)[:3] == [
        "lossmith discover token --out 'a b' --seed 3",
        "lossmith discover token --seed 3",
        f"lossmith discover replay {finished[0]}",
    ]
    older = replace(history, settings={**history.settings, "command": None, "sessions": []})
    told = card(older, key, "x", description, [])
    assert "The run did not keep the command that made it; its seed is 3, its settings are in its database." in told


def test_a_changed_constant_in_an_export_is_noticed(finished, tmp_path):
    """The pinned numbers tell a file that somebody edited from the program of the run."""
    import torch

    from lossmith.discovery.export import pinned

    program = control_of("preference")
    inputs, values, gradients = pinned(program)
    tensors = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in inputs.items()}
    same = torch_function(program)(**tensors)
    assert torch.allclose(same, torch.tensor(values, dtype=torch.float64), rtol=1e-12)
    other = torch_function(canaries_of("preference", synthetic=True)[0].program)(**tensors)
    assert not torch.allclose(other, torch.tensor(values, dtype=torch.float64), rtol=1e-3)
    assert set(gradients) == set(inputs)


def copy_of(folder, into, change):
    """A copy of a run of which somebody changed rows."""
    shutil.copytree(folder, into)
    with sqlite3.connect(into / "discovery.sqlite") as connection:
        assert connection.execute(change).rowcount > 0
    connection.close()
    return into


def test_the_replay_command_makes_every_decision_again(finished, tmp_path):
    folder, *_ = finished
    history, before = open_history(folder), (folder / "discovery.sqlite").read_bytes()
    done = run("replay", folder)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{len(history.decisions)} decisions and {len(history.verdicts)} verdicts")
    assert (folder / "discovery.sqlite").read_bytes() == before
    first = next(each for each in history.decisions if each.kind == "promoted" and each.step == 1)
    wrong = copy_of(folder, tmp_path / "run", "UPDATE decision SET kind = 'rejected', mean = mean + 0.001 WHERE "
                    f"step = 1 AND program = '{first.program}' AND kind = 'promoted'")  # fmt: skip
    done = run("replay", wrong)
    assert done.exit_code == 1
    heads = [line.split(", place")[0] for line in done.output.splitlines()[1:]]
    assert sorted(heads) == sorted([
        f"Round 2, rung `toy`: `{first.program[:8]}` is rejected in the database",
        f"Round 2, rung `toy`: `{first.program[:8]}` is not promoted in the database and replayed it is",
    ])  # fmt: skip


def test_a_replay_of_what_is_no_run_is_one_sentence(tmp_path):
    from lossmith.discovery.store.database import Database

    for said in ("holds no discovery run", "has not begun"):
        error = run("replay", tmp_path).exception
        assert isinstance(error, EvidenceError)
        assert said in str(error)
        Database(tmp_path).close()


def test_words_that_name_no_program(finished, tmp_path):
    folder, *_ = finished
    history = open_history(folder)
    with pytest.raises(ConfigurationError, match="is none of them"):
        export(folder, "zzzz", out=tmp_path)
    with pytest.raises(ConfigurationError, match="must be a name in Python"):
        export(folder, "best", out=tmp_path, name="2 losses")
    if not history.announced():
        with pytest.raises(ConfigurationError, match="announced no winner"):
            export(folder, "winner", out=tmp_path)
    with pytest.raises(EvidenceError, match="holds no discovery run"):
        open_history(tmp_path)
    assert isinstance(run("report", tmp_path / "none").exception, EvidenceError)


@pytest.mark.filterwarnings("ignore:.*holds no .py file yet")
def test_draws_do_not_depend_on_where_a_folder_of_candidates_lies(tmp_path):
    names = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        budget, rungs = Budget(jobs=500), ladder.make_ladder("preference", ["toy"])
        setup = start.make_setup("preference", rungs, seed=0, budget=budget, proposers=["gp", str(folder)], rounds=1)
        names.add(setup.proposer.name)
    assert names == {"gp+human"}
