"""Evaluations in a process of their own: the same numbers, and one that hangs or dies ends alone."""

import os
import shutil
import sqlite3
import threading
import time
from dataclasses import replace

import pytest
from slow_rungs import Slow

from lossmith.discovery import attempts
from lossmith.discovery.attempts import Apart, Attempt, attempt
from lossmith.discovery.engine import Engine
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.race.simulation import CONTROL, World, simulated_setup
from lossmith.discovery.rungs.base import Block
from lossmith.discovery.store.jobs import Job
from lossmith.evidence import check_writable

WORLD = World(seed=5, scale=4.0)
SETTINGS = RaceSettings(candidates=4, blocks=(1, 2), elites=2, rounds=1, finalists=1, confirmation_blocks=5)
LIMIT = 2.0


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(attempts, "AT_LEAST_SECONDS", LIMIT)


def job_of(index):
    return Job(program=CONTROL.key, rung="slow", environment="x", block=Block(index=index, seed=index))


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_that_hangs_or_dies_ends_alone_and_the_others_are_what_they_were(tmp_path):
    rung = Slow(name="slow", world=WORLD, folder=tmp_path, hangs=1, dies=2, always=True)
    apart = Apart({"slow": rung})
    found = [apart.attempt(rung, CONTROL, job_of(index), 0.01) for index in (0, 3, 1, 0, 2)]
    first, second, hanging, again, dead = rung.processes()
    assert os.getpid() != first == second == hanging != again == dead
    assert [each.status for each in found] == ["ok", "ok", "infrastructure_error", "ok", "infrastructure_error"]
    assert [each.metrics for each in found[:2]] == [attempt(rung, CONTROL, job_of(index)).metrics for index in (0, 3)]
    assert found[3].metrics == found[0].metrics
    assert found[2].error is not None
    assert found[2].error.startswith("timeout: the evaluation was ended after 2 s")
    assert found[2].seconds >= LIMIT
    assert found[4].error == "The process of the evaluation died (exit status 9)."
    assert not is_there(hanging)
    apart.close()
    assert not is_there(again)


def test_an_interrupt_need_not_wait_for_one_that_hangs(tmp_path):
    rung = Slow(name="slow", world=WORLD, folder=tmp_path, hangs=1)
    apart, found = Apart({"slow": rung}), []
    waiting = threading.Thread(target=lambda: found.append(apart.attempt(rung, CONTROL, job_of(1), None)))
    waiting.start()
    while not (tmp_path / "hangs").exists():
        time.sleep(0.05)
    apart.close()
    waiting.join(30)
    assert [each.status for each in found] == ["infrastructure_error"]
    assert not is_there(rung.processes()[0])
    # What the pool still holds begins nothing new.
    assert apart.attempt(rung, CONTROL, job_of(0), None).status == "infrastructure_error"
    assert len(rung.processes()) == 1


def test_rungs_of_milliseconds_stay_here(tmp_path):
    rung = Slow(name="slow", world=WORLD, folder=tmp_path, apart=False)
    assert Apart({"slow": rung}).attempt(rung, CONTROL, job_of(0), 0.01).status == "ok"
    assert rung.processes() == [os.getpid()]


def test_the_process_that_trains_has_no_key(tmp_path, monkeypatch):
    keys = ("OPENAI_API_KEY", "LOSSMITH_DISCOVER_API_KEY", "LOSSMITH_JUDGE_API_KEY")
    for name in (*keys, "LOSSMITH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    rung = Slow(name="slow", world=WORLD, folder=tmp_path)
    apart = Apart({"slow": rung})
    assert apart.attempt(rung, CONTROL, job_of(0), 0.01).status == "ok"
    apart.close()
    assert rung.processes() != [os.getpid()]
    names = (tmp_path / "environment").read_text().split()
    assert {"LOSSMITH_CACHE", "PATH"} <= set(names)
    assert not set(keys) & set(names)
    assert os.environ["OPENAI_API_KEY"] == str(tmp_path)  # whoever proposes still has it


def raising(error):
    def evaluate(program, block):
        raise error

    return evaluate


def statement(text):
    def evaluate(program, block):
        sqlite3.connect(":memory:").execute(text)

    return evaluate


def full_disk(program, block):
    """A cache on a disk with 1 MiB left, as a study asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2**20}))
        check_writable(os.environ["LOSSMITH_CACHE"], needed_mib=5)


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (raising(OSError(28, "No space left on device")), "infrastructure_error"),
        (raising(PermissionError(13, "Permission denied")), "infrastructure_error"),
        (raising(ConnectionResetError("gone")), "infrastructure_error"),
        (raising(TimeoutError("no answer")), "infrastructure_error"),
        (raising(MemoryError()), "infrastructure_error"),
        (raising(sqlite3.OperationalError("disk I/O error")), "infrastructure_error"),
        (full_disk, "infrastructure_error"),
        (statement("SELECT * FROM nowhere"), "harness"),
        (raising(FileNotFoundError(2, "No such file or directory")), "harness"),
        (raising(NotADirectoryError(20, "Not a directory")), "harness"),
        (raising(OSError("x/y is not a valid model identifier")), "harness"),
        (raising(KeyError("x")), "harness"),
    ],
)
def test_whose_fault_a_failure_is(trouble, status, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path))
    rung = Slow(name="slow", world=WORLD, folder=tmp_path)
    monkeypatch.setattr(Slow, "evaluate", lambda rung, program, block: trouble(program, block))
    found = attempt(rung, CONTROL, job_of(0))
    assert (found.status, found.metrics) == (status, None)
    assert found.error


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_hands_every_evaluation_over_and_is_the_same_after_some_were_ended(monkeypatch, workers):
    given: list[tuple[str, int, float | None]] = []

    def ended_once(apart, rung, program, job, mean_seconds):
        given.append((rung.name, job.block.index, mean_seconds))
        if job.block.index == 1 and not any(each[1] == 1 for each in given[:-1]):
            return Attempt(status="infrastructure_error", metrics=None, error="timeout: x", seconds=0.1)
        return attempt(rung, program, job)

    def run():
        setup = replace(simulated_setup(3, settings=SETTINGS, world=WORLD), workers=workers)
        with Engine(None, setup) as engine:
            assert engine.run().status == "finished"
            (failed,) = engine.database.rows("SELECT SUM(failures) FROM job")[0]
            return engine.database.dump(), failed

    undisturbed, none = run()
    closed = []
    with monkeypatch.context() as patch:
        patch.setattr(Apart, "attempt", ended_once)
        patch.setattr(Apart, "close", lambda apart: closed.append(apart))
        found, failed = run()
    assert (none, failed) == (0, 1)
    assert found == undisturbed
    assert closed
    # The first of a rung has no deadline; those after it have the mean of what was measured.
    means = {name: [mean for rung, _, mean in given if rung == name] for name, *_ in given}
    assert len(given) > 20
    for each in means.values():
        assert each[0] is None
        assert isinstance(each[-1], float)
