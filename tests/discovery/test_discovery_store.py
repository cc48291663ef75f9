"""The database of a run: one writer, rows that cannot be doubled, leases, money, and a dump without times."""

import sqlite3
from dataclasses import replace

import pytest

from lossmith.discovery.costs import Budget, Cost
from lossmith.discovery.draws import draw, draw_seed
from lossmith.discovery.proposers.scripted import ScriptedProposer
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import World, simulated_ladder
from lossmith.discovery.rungs.base import Block, Metrics
from lossmith.discovery.store import jobs as jobs_module
from lossmith.discovery.store.archive import Archive, StoredProposal
from lossmith.discovery.store.database import FILE_NAME, Database, storable
from lossmith.discovery.store.jobs import Job, Jobs
from lossmith.discovery.store.ledger import PROPOSER, BudgetExhausted, Ledger
from lossmith.discovery.store.preflight import Forecast, forecast
from lossmith.errors import ConfigurationError, EvidenceError

JOB = Job(program="a", rung="toy", environment="e", block=Block(index=0, seed=5))


def test_another_schema_is_refused_with_both_versions(tmp_path):
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(EvidenceError, match="schema version 7 and this lossmith reads version 1"):
        Database(tmp_path)
    with pytest.raises(EvidenceError, match="schema version 7"):
        Database(tmp_path, read_only=True)


def test_the_file_is_in_wal_mode_and_waits_for_the_disk(tmp_path):
    with Database(tmp_path) as database:
        assert database.rows("PRAGMA journal_mode") == [("wal",)]
        assert database.rows("PRAGMA synchronous") == [(2,)]


def test_a_folder_without_a_run_cannot_be_read(tmp_path):
    with pytest.raises(EvidenceError, match="holds no discovery run"):
        Database(tmp_path, read_only=True)


def test_one_process_writes_and_others_read(tmp_path):
    with Database(tmp_path) as database:
        database.open_run(identity={"seed": 1}, settings={"seed": 1})
        with pytest.raises(EvidenceError, match="Another process runs the discovery"):
            Database(tmp_path)
        with Database(tmp_path, read_only=True) as reader:
            assert reader.settings() == {"seed": 1}
            with pytest.raises(EvidenceError, match="readonly"), reader.transaction() as connection:
                connection.execute("DELETE FROM run")
    Database(tmp_path).close()


def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    with Database(tmp_path) as database:
        assert database.open_run(identity={"seed": 1, "race": {"keep": 0.5}}, settings={})
        assert not database.open_run(identity={"race": {"keep": 0.5}, "seed": 1}, settings={"budget": 3})
        assert database.settings() == {"budget": 3}
        with pytest.raises(EvidenceError, match=r"`race\.keep` is 0\.5 there, 0\.25 here"):
            database.open_run(identity={"seed": 1, "race": {"keep": 0.25}}, settings={})


def test_a_transaction_is_whole_or_nothing_also_when_nested():
    with Database(None) as database:
        jobs = Jobs(database)
        with pytest.raises(AttributeError), database.transaction():
            jobs.enqueue(0, [JOB, None])  # type: ignore[list-item]
        assert database.rows("SELECT * FROM job") == []


def test_the_same_evaluation_twice_leaves_the_first():
    with Database(None) as database:
        jobs = Jobs(database)
        jobs.enqueue(0, [JOB])
        jobs.enqueue(3, [JOB])
        assert database.rows("SELECT step FROM job") == [(0,)]
        for fitness in (1.5, 2.5):
            jobs.finish(JOB, "ok", Metrics(fitness=fitness), error=None, seconds=1)
        assert [each.fitness for each in jobs.evaluations("toy", "e", "search")] == [1.5]
        assert jobs.unfinished([JOB]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"program": "b"},
        {"rung": "tiny"},
        {"environment": "f"},
        {"block": Block(index=1, seed=5)},
        {"block": Block(index=0, seed=6)},
        {"block": Block(index=0, seed=5, split="confirmation")},
        {"block": Block(index=0, seed=5, twin=True)},
    ],
)
def test_each_part_of_the_key_makes_another_evaluation(change):
    with Database(None) as database:
        jobs, other = Jobs(database), replace(JOB, **change)
        jobs.enqueue(0, [JOB, other])
        jobs.finish(JOB, "ok", Metrics(fitness=1.0), error=None, seconds=1)
        assert jobs.unfinished([JOB, other]) == [other]
        jobs.finish(other, "ok", Metrics(fitness=2.0), error=None, seconds=1)
        assert database.rows("SELECT COUNT(*) FROM evaluation") == [(2,)]
        assert JOB.entry != other.entry or change == {"environment": "f"}


def test_a_lease_is_held_by_one_until_its_heartbeat_stops(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(jobs_module.time, "time", lambda: now[0])
    with Database(None) as database:
        jobs = Jobs(database)
        jobs.enqueue(0, [JOB])
        assert jobs.lease(JOB)
        assert not jobs.lease(JOB)
        now[0] += jobs_module.LEASE_SECONDS - 1
        jobs.heartbeat([JOB])
        now[0] += jobs_module.LEASE_SECONDS - 1
        assert not jobs.lease(JOB)
        now[0] += 2
        assert jobs.lease(JOB)
        assert database.rows("SELECT attempts, state FROM job") == [(2, "leased")]


def test_the_next_owner_frees_what_the_last_one_had_leased(tmp_path):
    with Database(tmp_path) as database:
        Jobs(database).enqueue(0, [JOB])
        assert Jobs(database).lease(JOB)
        assert Jobs(database).free_lost() == 0
    with Database(tmp_path) as database:
        assert not Jobs(database).lease(JOB)
        assert Jobs(database).free_lost() == 1
        assert Jobs(database).lease(JOB)


def test_a_failure_of_the_machine_is_counted_and_queued_again():
    with Database(None) as database:
        jobs = Jobs(database)
        jobs.enqueue(0, [JOB])
        assert jobs.lease(JOB)
        assert jobs.give_back(JOB) == 0
        assert jobs.lease(JOB)
        assert jobs.give_back(JOB, "no memory") == 1
        assert jobs.unfinished([JOB]) == [JOB]
        assert database.rows("SELECT state, attempts, failures, last_error FROM job") == [("queued", 2, 1, "no memory")]


def test_money_is_reserved_before_and_settled_after():
    with Database(None) as database:
        ledger = Ledger(database, Budget(money_usd=1.0, jobs=10))
        ledger.reserve("propose/0/0", "proposer", Cost(money_usd=0.7))
        with pytest.raises(
            BudgetExhausted, match=r"The budget of \$1\.00 does not suffice: \$0\.70 are spent and what comes"
        ):
            ledger.reserve("propose/0/1", "proposer", Cost(money_usd=0.4))
        ledger.settle("propose/0/0", Cost(money_usd=0.7), Cost(money_usd=0.2, tokens=300))
        assert ledger.spent().money_usd == pytest.approx(0.2)
        ledger.reserve("propose/0/1", "proposer", Cost(money_usd=0.4))
        again = Ledger(database, Budget())
        assert again.spent().money_usd == pytest.approx(0.6)
        assert again.spent().tokens == 300
        assert ledger.by_kind()["proposer"].money_usd == pytest.approx(0.2)


def test_what_a_kill_interrupted_counts_as_spent_but_not_as_a_job():
    with Database(None) as database:
        ledger = Ledger(database, Budget())
        price = Cost(money_usd=0.7, device_seconds=5, jobs=1)
        ledger.reserve("job", "rung/toy/search", price)
        after = Ledger(database, Budget())
        after.write_off()
        assert after.spent() == Cost(money_usd=0.7, device_seconds=5, wall_seconds=after.spent().wall_seconds)
        after.reserve("job", "rung/toy/search", price)
        after.settle("job", price, Cost(money_usd=0.5, device_seconds=3, jobs=1))
        assert after.spent().money_usd == pytest.approx(1.2)
        assert after.spent().device_seconds == pytest.approx(8)
        assert after.spent().jobs == 1
        assert Ledger(database, Budget()).spent().device_seconds == pytest.approx(8)


def test_nothing_is_lost_of_a_call_whose_replies_are_stored():
    with Database(None) as database:
        ledger = Ledger(database, Budget(tokens=1000))
        ledger.reserve("propose/0/0", PROPOSER, Cost(tokens=900, money_usd=0.5))
        after = Ledger(database, Budget(tokens=1000))
        after.write_off()
        assert after.spent().to_dict() == {}
        after.reserve("propose/0/0", PROPOSER, Cost(tokens=900))
        after.settle("propose/0/0", Cost(tokens=900), Cost(tokens=120))
        assert after.spent().tokens == Ledger(database, Budget()).spent().tokens == 120
        assert after.left(Cost(tokens=30)) == Cost(tokens=850, money_usd=float("inf"))


def test_a_call_is_divided_among_its_arms_and_costs_no_more_for_it():
    with Database(None) as database:
        ledger = Ledger(database, Budget())
        ledger.reserve("propose/0/0", PROPOSER, Cost(tokens=900))
        ledger.settle("propose/0/0", Cost(tokens=900), Cost(tokens=120, wall_seconds=4))
        ledger.divide("propose/0/0", {"llm": Cost(tokens=120, wall_seconds=3), "random": Cost(wall_seconds=0.5)})
        kinds = ledger.by_kind()
        assert kinds["proposer/llm"] == Cost(tokens=120, wall_seconds=3)
        assert kinds["proposer/random"] == Cost(wall_seconds=0.5)
        assert kinds["proposer"] == Cost(wall_seconds=0.5)
        assert ledger.spent().tokens == Ledger(database, Budget()).spent().tokens == 120


def test_a_run_on_read_only_media_is_read(tmp_path, monkeypatch):
    with Database(tmp_path) as database:
        database.open_run(identity={"seed": 1}, settings={"seed": 1})
    connect = sqlite3.connect

    class NothingBeside(sqlite3.Connection):
        """SQLite where no file can be made beside the database."""

        def execute(self, *words):
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error

    def on_media(path, **settings):
        return connect(path, **settings) if "immutable=1" in str(path) else connect(path, factory=NothingBeside)

    monkeypatch.setattr("lossmith.discovery.store.database.sqlite3.connect", on_media)
    with Database(tmp_path, read_only=True) as database:
        assert database.settings() == {"seed": 1}
    (tmp_path / f"{FILE_NAME}-wal").write_bytes(b"rows")
    with pytest.raises(EvidenceError, match="copy the folder to where it can be"):
        Database(tmp_path, read_only=True)


def test_the_first_evaluation_which_loads_is_not_what_the_next_ones_will_take():
    with Database(None) as database:
        ledger = Ledger(database, Budget())
        assert ledger.measured("small") is None
        ledger.learn("small", Cost(device_seconds=240, wall_seconds=240))
        assert ledger.measured("small") is None
        for seconds in (20, 40):
            ledger.learn("small", Cost(device_seconds=seconds, wall_seconds=seconds))
        assert ledger.measured("small") == Cost(jobs=1, device_seconds=30, wall_seconds=30)


def test_the_wall_is_counted_over_sessions(tmp_path, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr("lossmith.discovery.store.database.time.monotonic", lambda: clock[0])
    with Database(tmp_path) as database:
        database.open_session()
        clock[0] += 30
        database.touch()
        clock[0] += 5  # a kill loses what came after the last touch
    clock[0] += 1000
    with Database(tmp_path) as database:
        database.open_session()
        clock[0] += 4
        assert database.wall_seconds() == pytest.approx(34)
        ledger = Ledger(database, Budget(wall_seconds=40))
        ledger.check(Cost(wall_seconds=6))
        with pytest.raises(BudgetExhausted, match="budget of 40 s does not suffice: 34 s are spent"):
            ledger.check(Cost(wall_seconds=7))


def test_a_dump_leaves_out_times_and_attempts_and_nothing_else():
    def run(*, attempts: int, seconds: float, fitness: float) -> dict:
        with Database(None) as database:
            jobs, ledger = Jobs(database), Ledger(database, Budget())
            jobs.enqueue(0, [JOB])
            for attempt in range(attempts):
                assert jobs.lease(JOB)
                ledger.reserve(JOB.entry, "rung", Cost(device_seconds=seconds, jobs=1))
                if attempt < attempts - 1:
                    jobs.give_back(JOB, "gone")
                    ledger.write_off()
            database.open_session()
            jobs.finish(JOB, "ok", Metrics(fitness=fitness), error=None, seconds=seconds)
            ledger.settle(JOB.entry, Cost(device_seconds=seconds, jobs=1), Cost(device_seconds=seconds, jobs=1))
            return database.dump()

    calm = run(attempts=1, seconds=1.0, fitness=0.5)
    assert run(attempts=3, seconds=2.0, fitness=0.5) == calm
    other = run(attempts=1, seconds=1.0, fitness=0.5000001)
    assert [table for table in calm if calm[table] != other[table]] == ["evaluation"]


def test_no_column_holds_anything_but_numbers_and_text():
    with Database(None) as database:
        tables = [row[0] for row in database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in database.rows(f"PRAGMA table_info({table})"):
                assert column[2] in ("INTEGER", "REAL", "TEXT"), (table, column)


def test_whatever_a_model_writes_can_be_stored_and_read():
    hostile = "x" * 20_000 + "\ud800"
    proposal = StoredProposal(
        step=0,
        call=0,
        position=0,
        proposer="\udfff",
        kind="rejected",
        category="syntax",
        reason="\ud83d!",
        source=hostile,
        note="'); DROP TABLE proposal; --\x00",
    )
    with Database(None) as database:
        archive = Archive(database)
        archive.save_call(0, 0, asked=1, proposals=[proposal], cost=Cost(), state={})
        (found,) = archive.proposals()
    assert found.source == storable(hostile) == "x" * 16_000
    assert found.reason == "\\ud83d!"
    assert found.note == proposal.note


def test_the_newest_state_of_a_proposer_is_found():
    with Database(None) as database:
        archive = Archive(database)
        assert archive.last_state() is None
        for step, call in ((0, 0), (0, 1)):
            archive.save_call(step, call, asked=1, proposals=[], cost=Cost(), state={"at": [step, call]})
        assert archive.last_state() == {"at": [0, 1]}
        archive.set_stage(0, "rung/toy", {})
        archive.set_stage(0, "observed", {}, {"at": "end of 0"})
        assert archive.last_state() == {"at": "end of 0"}
        archive.save_call(1, 0, asked=1, proposals=[], cost=Cost(), state={"at": [1, 0]})
        assert archive.last_state() == {"at": [1, 0]}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("30m", {"wall_seconds": 1800.0}),
        ("1h30m", {"wall_seconds": 5400.0}),
        ("2 h, 3usd", {"wall_seconds": 7200.0, "money_usd": 3.0}),
        ("500ktokens 200jobs 10dm", {"tokens": 500_000.0, "jobs": 200.0, "device_seconds": 600.0}),
    ],
)
def test_budgets_are_read_from_words(text, limits):
    assert Budget.parse(text).limits() == limits


@pytest.mark.parametrize("text", ["", "30", "m", "30 minutes", "-3m", "0m", "3x", "1h; rm"])
def test_what_is_no_budget_is_said(text):
    with pytest.raises(ConfigurationError, match="`budget` must be amounts such as '30m'"):
        Budget.parse(text)


def test_the_forecast_is_the_sum_by_hand():
    rungs = simulated_ladder(World())  # 0.1, 1 and 10 device seconds
    settings = RaceSettings(
        candidates=9, blocks=(2, 1, 3), keep=1 / 3, elites=4, audit_share=0.5, finalists=2, confirmation_blocks=5
    )
    proposer = ScriptedProposer([], cost=Cost(tokens=70))
    found = forecast(settings, rungs, [rungs[-1], rungs[-2]], proposer)
    # Cohorts: 9, then 3 + 6/2 = 6, then 2 + 4/2 = 4; each block has 4 elites and 3 fixed runs beside it,
    # those of the last rung 2 challengers more.
    assert found.round.jobs == 2 * (9 + 7) + 1 * (6 + 7) + 3 * (4 + 9)
    assert found.round.device_seconds == pytest.approx(0.1 * 32 + 13 + 10 * 39)
    assert found.round.tokens == 70
    assert found.confirmation.device_seconds == pytest.approx(5 * 5 * (10 + 1))
    assert found.baseline.device_seconds == pytest.approx(3 * (0.1 * 2 + 1 + 30) + 5 * 3 * 11)
    seen = {"toy": Cost(device_seconds=2)}
    measured = forecast(settings, rungs, [], proposer, measured=seen.get)
    assert measured.round.device_seconds == pytest.approx(2 * 32 + 13 + 10 * 39)
    # A ground that nothing ran on yet goes at the pace of the last rung, here three times as slow as declared.
    other = replace(rungs[1], name="other")
    seen = {rungs[2].name: Cost(device_seconds=30)}
    measured = forecast(settings, rungs, [rungs[2], other], proposer, measured=seen.get)
    assert measured.confirmation.device_seconds == pytest.approx(5 * 5 * (30 + 3 * 1))


def test_rounds_that_fit_leave_room_for_the_confirmation():
    plan = Forecast(baseline=Cost(jobs=5), round=Cost(jobs=10), confirmation=Cost(jobs=20))
    # The last round begins where 1.1 times itself and the confirmation are left: 33.
    assert plan.rounds(Budget(jobs=32)) == 0
    assert plan.rounds(Budget(jobs=33)) == 1
    assert plan.rounds(Budget(jobs=52)) == 2
    assert plan.rounds(Budget(jobs=53)) == 3
    assert plan.rounds(Budget(jobs=53), Cost(jobs=11)) == 1
    assert plan.rounds(Budget(money_usd=1)) == float("inf")
    assert "rounds that fit: 2" in plan.sentences(Budget(jobs=52), None)
    assert "rounds that fit: 1" in plan.sentences(Budget(jobs=52), 1)


def test_a_search_without_an_end_is_refused():
    plan = Forecast(baseline=Cost(jobs=5), round=Cost(jobs=10, device_seconds=3), confirmation=Cost(jobs=7))
    for budget in (Budget(money_usd=1), Budget(tokens=100), Budget()):
        with pytest.raises(
            ConfigurationError, match=r"something that a round uses \(device time, jobs\), got .*no end"
        ):
            plan.check_end(budget, None)
        plan.check_end(budget, 2)
    plan.check_end(Budget(money_usd=1, jobs=100), None)


def test_proposals_that_keep_to_what_is_left_need_one_request_and_the_forecast_says_so():
    plan = Forecast(
        baseline=Cost(jobs=5), round=Cost(jobs=10, tokens=100), confirmation=Cost(jobs=20), most=Cost(tokens=900)
    )
    plan.check(Budget(tokens=100))
    with pytest.raises(ConfigurationError, match=r"needs 100 tokens: give at least 100 tokens\.$"):
        plan.check(Budget(tokens=99))
    shown = plan.sentences(Budget(tokens=3000, jobs=103), None)
    assert "proposals of one round: at most 1,000 tokens, and never more than is left" in shown
    assert shown[-1] == "rounds that fit: 3 to 8, by how much the model takes"
    assert plan.sentences(Budget(tokens=500), None)[-1] == "rounds that fit: at least 1, by how much the model takes"
    assert plan.sentences(Budget(jobs=53), None)[-1] == "rounds that fit: 3"
    plan.check_end(Budget(tokens=500), None)


def test_a_budget_below_the_baseline_is_refused_with_what_would_do():
    hours = (600.0, 3600.0, 1800.0)
    baseline, one_round, confirmation = (Cost(wall_seconds=seconds) for seconds in hours)
    plan = Forecast(baseline=baseline, round=one_round, confirmation=confirmation)
    with pytest.raises(
        ConfigurationError, match=r"5 min cannot finish its own baseline .*10 min: give at least 1.67 h"
    ):
        plan.check(Budget(wall_seconds=300))
    with pytest.raises(ConfigurationError, match="cannot finish one round and its confirmation"):
        plan.check(Budget(wall_seconds=1.1 * 5400 - 1))
    plan.check(Budget.parse("1.67h"))


@pytest.mark.parametrize("jobs", [13, 27, 41.3])
def test_what_is_said_to_do_does(jobs):
    plan = Forecast(baseline=Cost(jobs=1), round=Cost(jobs=jobs), confirmation=Cost(jobs=0.3))
    with pytest.raises(ConfigurationError) as caught:
        plan.check(Budget(jobs=2))
    plan.check(Budget.parse(str(caught.value).split("at least ")[1].split(" jobs")[0] + "jobs"))


def test_draws_depend_on_all_three_names_and_on_nothing_else():
    def first(*names) -> float:
        return float(draw(*names).random())

    assert first(1, 2, "a") == first(1, 2, "a")
    assert len({first(1, 2, "a"), first(2, 1, "a"), first(1, 2, "b"), first(12, 0, "a"), first(1, 20, "a")}) == 5
    # Pinned: another number here makes every stored run unrepeatable.
    assert draw_seed(1, 2, "a") == 774_753_621
    assert first(1, 2, "a") == pytest.approx(0.5950570286375987, abs=1e-15)
