"""SIGKILL at ten random moments: the store ends up equal to that of an undisturbed study, row for row."""

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

from test_compare import command_words

from lossmith.errors import EvidenceError
from lossmith.evidence import VOLATILE_FIELDS, EvidenceStore

KILLS = 10
PROCESSES = multiprocessing.get_context("forkserver")
"""The libraries are imported once, by the server; every study is a process of its own that a kill hits alone."""
PROCESSES.set_forkserver_preload(["lossmith.cli", "transformers.trainer", "lossmith.studies", "lossmith.report"])


def rows(folder: Path) -> list[dict]:
    with EvidenceStore(folder, create=False) as store:
        records = store.records()
    return [{k: v for k, v in record.to_dict().items() if k not in VOLATILE_FIELDS} for record in records]


def attempts(folder: Path) -> int:
    with EvidenceStore(folder, create=False) as store:
        return sum(record.attempts for record in store.records())


def finished(folder: Path) -> int:
    if not (folder / "evidence.sqlite").exists():
        return 0
    try:
        return len(rows(folder))
    except EvidenceError:
        return 0  # the file is there a moment before its tables


def command(words: list[str], output: str) -> None:
    """`lossmith compare` as a shell starts it, with its output in a file; the exit status is the command's."""
    from lossmith.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["lossmith", "compare", *words]
    main()


def start(words: list[str], output: Path) -> multiprocessing.process.BaseProcess:
    process = PROCESSES.Process(target=command, args=(words, str(output)))
    process.start()
    return process


def test_ten_kills_change_no_row(settings, tmp_path):
    words = command_words(settings | {"seeds": 6, "epochs": 12})
    calm_run = start([*words, "--out", str(tmp_path / "calm")], tmp_path / "calm.log")
    while finished(tmp_path / "calm") == 0 and calm_run.is_alive():
        time.sleep(0.02)
    began = time.monotonic()
    calm_run.join(timeout=600)
    one_run = (time.monotonic() - began) / 11
    assert calm_run.exitcode == 0, (tmp_path / "calm.log").read_text()

    draw = random.Random(20)
    disturbed, log = [*words, "--out", str(tmp_path / "killed")], tmp_path / "killed.log"
    finished_before_kill = []
    for _ in range(KILLS):
        before = finished(tmp_path / "killed")
        process = start(disturbed, log)
        # Once one more run is finished, at a random moment of the next one or two: however slow the machine is, the
        # kill hits a run, and ten kills leave work to do for those that come later.
        while process.is_alive() and finished(tmp_path / "killed") == before:
            time.sleep(0.02)
        time.sleep(one_run * draw.uniform(0.0, 1.2))
        process.kill()
        process.join(timeout=60)
        finished_before_kill.append(finished(tmp_path / "killed"))
    last = start(disturbed, log)
    last.join(timeout=600)
    assert last.exitcode == 0, log.read_text()

    calm, killed = rows(tmp_path / "calm"), rows(tmp_path / "killed")
    assert len(calm) == 12
    assert finished_before_kill == sorted(finished_before_kill)
    # The kills did hit runs, and work was left for those that came later.
    assert attempts(tmp_path / "killed") > len(calm)
    assert finished_before_kill[2] < len(calm)
    assert calm == killed
    results = [sorted((tmp_path / name).glob("runs/*/*/result.json")) for name in ("calm", "killed")]
    assert len(results[0]) == len(results[1]) == 12
