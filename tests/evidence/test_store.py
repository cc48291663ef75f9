import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import EvidenceStore

HOSTILE = [
    "../../../etc/passwd",
    "..",
    "/abs",
    "a\\b",
    "CON",
    "",
    "focal(gamma=1)*0.5 + cross_entropy*0.5",
    "损失" * 200,
]
IDENTITY = {"model": "embedded:minilm-l6", "shots": {"per_class": 20}}

KILLED_WHILE_FINISHING = """
import os, signal, sys
from lossmith.evidence import EvidenceStore, RunRecord, store
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
evidence = EvidenceStore(sys.argv[1])
if sys.argv[2] == "before the commit":
    evidence._database.set_trace_callback(lambda sql: die() if sql == "COMMIT" else None)
else:
    store.write_atomically = die
evidence.finish(RunRecord(loss="focal", seed=3, status="finished", config={}, metrics={"accuracy": 0.5}))
"""


@pytest.fixture
def store(tmp_path):
    with EvidenceStore(tmp_path / "out") as opened:
        yield opened


def full_record(run):
    return run(
        "focal",
        3,
        0.625,
        config={"learning_rate": 2e-5, "steps": [1, 2]},
        curves={"train_objective": [[1.0, 0.7], [2.0, 0.1 + 0.2]]},
        predictions=[0, 1, 1],
        labels=[0, 1, 0],
        label_names=["no", "</script> yes"],
        versions={"python": "3.11"},
        hardware={"cores": 2},
        train_seconds=12.5,
        attempts=2,
    )


def test_a_record_comes_back_exactly(store, run):
    record = full_record(run)
    store.finish(record)
    assert store.get("focal", 3) == record
    with EvidenceStore(store.folder, create=False) as again:
        assert again.records() == [record]


def test_numbers_that_json_lacks_survive(store, run):
    """A diverged run must be kept, not refused, and the file must stay JSON for everyone."""
    curve = [[1.0, math.inf], [2.0, math.nan], [3.0, -math.inf]]
    store.finish(run("focal", 0, math.nan, status="failed", curves={"train_objective": curve}))
    back = store.get("focal", 0)
    assert str(back.curves["train_objective"]) == str(curve)
    assert math.isnan(back.metrics["accuracy"])
    text = store.result_path("focal", 0).read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_records_have_one_order(store, run):
    for loss, seed in [("b", 1), ("a", 10), ("b", 0), ("a", 2)]:
        store.finish(run(loss, seed))
    assert [(r.loss, r.seed) for r in store.records()] == [("a", 2), ("a", 10), ("b", 0), ("b", 1)]


def test_plain_columns_serve_people_who_write_sql(store, run):
    store.finish(full_record(run))
    with closing(sqlite3.connect(store.path)) as database:
        row = database.execute("SELECT loss, seed, status, accuracy, train_seconds FROM run").fetchone()
        mode = database.execute("PRAGMA journal_mode").fetchone()[0]
    assert row == ("focal", 3, "finished", 0.625, 12.5)
    assert mode == "wal"


def test_a_run_is_finished_once(store, run):
    store.finish(run("focal", 0, 0.5))
    with pytest.raises(EvidenceError, match="run of 'focal', seed 0, is already in"):
        store.finish(run("focal", 0, 0.9))
    with pytest.raises(EvidenceError, match="run of 'focal', seed 0, is already in"):
        store.begin("focal", 0)
    assert store.get("focal", 0).metrics == {"accuracy": 0.5}
    assert json.loads(store.result_path("focal", 0).read_text())["metrics"] == {"accuracy": 0.5}


def test_a_status_of_no_meaning_is_refused(store, run):
    record = run("focal", 0)
    object.__setattr__(record, "status", "running")
    with pytest.raises(EvidenceError, match="breaks a rule"):
        store.finish(record)
    assert store.records() == []


def test_attempts_are_counted_across_processes_and_forgetting(store, run):
    assert store.begin("focal", 0) == 1
    with EvidenceStore(store.folder) as other:
        assert other.begin("focal", 0) == 2
    assert store.begin("focal", 1) == 1
    store.finish(run("focal", 0))
    store.forget("focal", 0)
    assert store.get("focal", 0) is None
    assert not store.result_path("focal", 0).exists()
    assert store.begin("focal", 0) == 3


def test_many_threads_open_one_new_store_and_count_without_loss(tmp_path):
    attempts, errors, barrier = [], [], threading.Barrier(8)

    def work():
        barrier.wait()
        try:
            with EvidenceStore(tmp_path / "new") as store:
                attempts.append(store.begin("focal", 0))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, sorted(attempts)) == ([], list(range(1, 9)))


@pytest.mark.parametrize(("moment", "kept"), [("before the commit", 0), ("after the commit", 1)])
def test_a_killed_finish_leaves_a_whole_run_or_none(tmp_path, moment, kept):
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_FINISHING, str(tmp_path), moment], timeout=60)
    assert process.returncode == -signal.SIGKILL
    with EvidenceStore(tmp_path) as store:
        path = store.result_path("focal", 3)
        assert len(store.records()) == kept
        assert not path.exists()
        assert store.sync_result_files() == [path] * kept
        assert path.exists() == bool(kept)
        assert store.sync_result_files() == []


def test_result_files_follow_the_database(store, run):
    store.finish(full_record(run))
    path = store.result_path("focal", 3)
    good = path.read_text()
    assert json.loads(good) == full_record(run).to_dict()
    assert '"predictions": [0, 1, 1]' in good
    path.write_text("stale")
    assert store.sync_result_files() == [path]
    assert path.read_text() == good
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("loss", HOSTILE)
def test_no_loss_name_leaves_the_folder(store, run, loss):
    store.finish(run(loss, 0))
    with store.claim(loss, 0):
        path = store.result_path(loss, 0).resolve()
        assert path.is_file()
        assert path.relative_to(store.folder.resolve()).parts[0] == "runs"
        assert len(path.parent.parent.name) < 100
    assert sorted(os.listdir(store.folder.parent)) == ["out"]


def test_alike_losses_have_files_of_their_own(store):
    losses = [*HOSTILE, "a*b", "a b", "A*b", "focal" * 50, "focal" * 51]
    assert len({str(store.result_path(loss, 0)).lower() for loss in losses}) == len(losses)


def test_a_study_is_opened_again_with_more_losses(store):
    store.open_study(identity=IDENTITY, config={**IDENTITY, "losses": ["a"]})
    reordered = {"shots": {"per_class": 20}, "model": "embedded:minilm-l6"}
    store.open_study(identity=reordered, config={**IDENTITY, "losses": ["a", "b"], "seeds": (0, 1)})
    assert store.study() == {**IDENTITY, "losses": ["a", "b"], "seeds": [0, 1]}


def test_another_study_is_refused_with_what_differs(store):
    store.open_study(identity=IDENTITY, config={"kept": True})
    other = {"model": "embedded:minilm-l6", "shots": {"per_class": 40}, "epochs": 3}
    with pytest.raises(EvidenceError) as caught:
        store.open_study(identity=other, config={})
    assert str(caught.value) == (
        f"`{store.folder}` holds a study with other settings (`epochs` is absent there, 3 here; "
        "`shots.per_class` is 20 there, 40 here): choose another --out, or the same settings."
    )
    assert store.study() == {"kept": True}


def test_a_folder_without_a_study_says_so(store, tmp_path):
    with pytest.raises(EvidenceError, match="holds no study yet"):
        store.study()
    with pytest.raises(EvidenceError, match=r"holds no study: there is no `evidence.sqlite`"):
        EvidenceStore(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()


def test_settings_must_be_plain(store):
    with pytest.raises(EvidenceError, match="must hold plain JSON values"):
        store.open_study(identity={"model": object()}, config={})


@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_store_of_another_schema_is_left_alone(tmp_path, version):
    with closing(sqlite3.connect(tmp_path / "evidence.sqlite")) as database:
        database.execute("CREATE TABLE other (x)")
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(EvidenceError, match=f"has schema version {version} and this lossmith reads version 1"):
        EvidenceStore(tmp_path)
    with closing(sqlite3.connect(tmp_path / "evidence.sqlite")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "evidence.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EvidenceError, match=r"evidence.sqlite` cannot be used: file is not a database"):
        EvidenceStore(tmp_path)


def test_a_damaged_page_is_one_sentence(tmp_path, run):
    with EvidenceStore(tmp_path) as store:
        for seed in range(20):
            store.finish(run("focal", seed, predictions=[1] * 2000))
    size = store.path.stat().st_size
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(EvidenceError, match="cannot be used"), EvidenceStore(tmp_path) as broken:
        broken.records()


def test_a_row_of_a_newer_record_is_one_sentence(store, run):
    store.finish(run("focal", 0))
    with closing(sqlite3.connect(store.path)) as database:
        database.execute("""UPDATE run SET record = json_set(record, '$.mood', 'good')""")
        database.commit()
    with pytest.raises(EvidenceError, match=r"fields that this version does not know: \['mood'\]"):
        store.records()


def test_a_write_that_fails_leaves_no_open_transaction(store, run):
    def interrupted():
        with store._transaction() as database:
            database.execute("INSERT INTO attempt VALUES ('focal', 0, 7)")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.begin("focal", 0) == 1
