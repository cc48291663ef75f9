"""SIGKILL at ten random moments: the store ends up equal to that of an undisturbed study, row for row."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_compare import command_words

from lossmith.errors import EvidenceError
from lossmith.evidence import VOLATILE_FIELDS, EvidenceStore

KILLS = 10


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


def test_ten_kills_change_no_row(settings, tmp_path):
    words = [sys.executable, "-m", "lossmith", "compare", *command_words(settings | {"seeds": 6, "epochs": 12})]
    calm_run = subprocess.Popen([*words, "--out", str(tmp_path / "calm")], stdout=subprocess.PIPE, text=True)
    assert calm_run.stdout is not None
    assert calm_run.stdout.readline().startswith("[ 1/12]")
    began = time.monotonic()
    calm_run.communicate(timeout=600)
    one_run = (time.monotonic() - began) / 11
    assert calm_run.returncode == 0

    draw = random.Random(20)
    disturbed = [*words, "--out", str(tmp_path / "killed")]
    finished_before_kill = []
    for _ in range(KILLS):
        before = finished(tmp_path / "killed")
        process = subprocess.Popen(disturbed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Once one more run is finished, at a random moment of the next one or two: however slow the machine is, the
        # kill hits a run, and ten kills leave work to do for those that come later.
        while process.poll() is None and finished(tmp_path / "killed") == before:
            time.sleep(0.02)
        time.sleep(one_run * draw.uniform(0.0, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        finished_before_kill.append(finished(tmp_path / "killed"))
    subprocess.run(disturbed, check=True, capture_output=True, timeout=600)

    calm, killed = rows(tmp_path / "calm"), rows(tmp_path / "killed")
    assert len(calm) == 12
    assert finished_before_kill == sorted(finished_before_kill)
    # The kills did hit runs, and work was left for those that came later.
    assert attempts(tmp_path / "killed") > len(calm)
    assert finished_before_kill[2] < len(calm)
    assert calm == killed
    results = [sorted((tmp_path / name).glob("runs/*/*/result.json")) for name in ("calm", "killed")]
    assert len(results[0]) == len(results[1]) == 12
