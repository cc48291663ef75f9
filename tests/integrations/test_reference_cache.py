"""Values per row on disk: computed once, kept when a run is killed, refused when they belong to something else."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from lossmith.errors import ConfigurationError, ModelError, ObjectiveInputError
from lossmith.integrations import reference_cache
from lossmith.integrations.reference import Fingerprint, ReferenceCache, StaleReferenceError

PARTS = ("model", "adapter", "tokenizer", "template", "data", "settings")
FINGERPRINT = Fingerprint(**{part: f"{number}" * 64 for number, part in enumerate(PARTS)})
ROWS = 23


def value(row: int) -> float:
    return -1.5 * row - 0.25


def logging_to(asked: list[int]) -> Callable[[list[int]], dict[str, Tensor]]:
    def compute(rows: list[int]) -> dict[str, Tensor]:
        asked.extend(rows)
        assert not torch.is_grad_enabled()
        low = torch.tensor([value(row) for row in rows])
        return {"ref_chosen_logps": low, "ref_rejected_logps": low.double() - 7}

    return compute


def check(found: dict[str, Tensor], rows: int = ROWS) -> None:
    low = torch.tensor([value(row) for row in range(rows)])
    assert_close(found, {"ref_chosen_logps": low, "ref_rejected_logps": low.double() - 7}, rtol=0, atol=0)


def run(
    folder: Path, asked: list[int], rows: int = ROWS, fingerprint: Fingerprint = FINGERPRINT, **settings: float
) -> dict[str, Tensor]:
    return ReferenceCache(folder).load_or_compute("train", fingerprint, rows, logging_to(asked), **settings)


def test_computes_once_in_the_order_of_rows(tmp_path: Path) -> None:
    asked: list[int] = []
    check(run(tmp_path / "new", asked, rows_per_call=5))
    assert asked == list(range(ROWS))
    check(run(tmp_path / "new", asked))
    assert len(asked) == ROWS
    assert {file.name for file in (tmp_path / "new").iterdir()} <= {"train.safetensors", ".train.safetensors.lock"}


def test_rows_that_are_wanted_are_computed_once_and_others_not(tmp_path: Path) -> None:
    asked: list[int] = []
    found = ReferenceCache(tmp_path).load_or_compute(
        "train", FINGERPRINT, ROWS, logging_to(asked), rows=[5, 2, 9], rows_per_call=2
    )
    assert asked == [2, 5, 9]
    assert found["ref_chosen_logps"][[5, 2, 9]].tolist() == [value(5), value(2), value(9)]
    ReferenceCache(tmp_path).load_or_compute("train", FINGERPRINT, ROWS, logging_to(asked), rows=[9, 3])
    assert asked == [2, 5, 9, 3]
    check(run(tmp_path, asked))
    assert sorted(asked) == list(range(ROWS))


def test_no_rows(tmp_path: Path) -> None:
    assert run(tmp_path, [], rows=0) == {}


def test_other_names_are_other_files(tmp_path: Path) -> None:
    cache, asked = ReferenceCache(tmp_path), []
    cache.load_or_compute("train", FINGERPRINT, 3, logging_to(asked))
    cache.load_or_compute("eval.small", FINGERPRINT, 2, logging_to(asked))
    assert asked == [0, 1, 2, 0, 1]
    for name in ("../train", "a/b", "", ".hidden"):
        with pytest.raises(ConfigurationError, match="`name` must be of letters, digits"):
            cache.load_or_compute(name, FINGERPRINT, 3, logging_to(asked))


def test_without_a_folder_files_lie_under_their_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path))
    other, asked = replace(FINGERPRINT, data="f" * 64), []
    for fingerprint in (FINGERPRINT, other, FINGERPRINT):
        check(ReferenceCache().load_or_compute("train", fingerprint, 4, logging_to(asked)), 4)
    assert asked == [0, 1, 2, 3] * 2
    assert ReferenceCache().path("train", other).is_relative_to(tmp_path / "references")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("model", "another model"),
        ("adapter", "another adapter"),
        ("tokenizer", "another tokenizer"),
        ("template", "another chat template"),
        ("data", "other data"),
        ("settings", "other settings"),
    ],
)
def test_a_stale_file_is_refused_and_kept(part: str, words: str, tmp_path: Path) -> None:
    run(tmp_path, [])
    file = tmp_path / "train.safetensors"
    before = file.read_bytes()
    with pytest.raises(StaleReferenceError, match=f"were computed with {words}: delete the file to compute them again"):
        run(tmp_path, [], fingerprint=replace(FINGERPRINT, **{part: "off"}))
    assert file.read_bytes() == before


def test_a_stale_file_names_all_that_differs(tmp_path: Path) -> None:
    run(tmp_path, [])
    other = replace(FINGERPRINT, model="a", template="b", data="c")
    with pytest.raises(
        StaleReferenceError, match="another model, another chat template and other data: delete"
    ) as caught:
        run(tmp_path, [], fingerprint=other)
    assert str(tmp_path / "train.safetensors") in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_a_stale_file_that_is_not_complete_is_refused_too(tmp_path: Path) -> None:
    _interrupted(tmp_path, after=2)
    with pytest.raises(StaleReferenceError, match="another tokenizer"):
        run(tmp_path, [], fingerprint=replace(FINGERPRINT, tokenizer="a"))


def _interrupted(folder: Path, after: int) -> list[int]:
    asked: list[int] = []

    def compute(rows: list[int]) -> dict[str, Tensor]:
        if len(asked) >= 5 * after:
            raise KeyboardInterrupt
        return logging_to(asked)(rows)

    with pytest.raises(KeyboardInterrupt):
        ReferenceCache(folder).load_or_compute("train", FINGERPRINT, ROWS, compute, rows_per_call=5)
    return asked


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    assert _interrupted(tmp_path, after=2) == list(range(10))
    asked: list[int] = []
    check(run(tmp_path, asked))
    assert asked == list(range(10, ROWS))


KILLED = """
import sys, time, torch
from test_reference_cache import FINGERPRINT, ROWS, logging_to
from lossmith.integrations.reference import ReferenceCache
folder, log = sys.argv[1:]
def compute(rows):
    with open(log, "a") as file:
        file.write(f"{rows[-1]}\\n")
    if rows[0] >= 9:
        time.sleep(60)
    return logging_to([])(rows)
ReferenceCache(folder).load_or_compute("train", FINGERPRINT, ROWS, compute, rows_per_call=3, save_every_seconds=0)
"""


def test_a_killed_run_goes_on_where_it_saved(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen([sys.executable, "-c", KILLED, folder, log], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 60
    while not (log.exists() and "11\n" in log.read_text()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # As if it had been killed while it saved.
    (folder / ".train.safetensors.tmp").write_bytes(b"half")
    asked: list[int] = []
    check(run(folder, asked))
    assert asked == list(range(9, ROWS))
    assert not (folder / ".train.safetensors.tmp").exists()


def _write(folder: str, number: int, log: str) -> None:
    torch.set_num_threads(1)
    asked: list[int] = []

    def compute(rows: list[int]) -> dict[str, Tensor]:
        time.sleep(0.02)
        return logging_to(asked)(rows)

    cache = ReferenceCache(folder)
    check(cache.load_or_compute("train", FINGERPRINT, ROWS, compute, rows_per_call=2, save_every_seconds=0))
    Path(f"{log}-{number}").write_text(" ".join(map(str, asked)))


def _spawn(target: Callable[..., None], *args: object) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=target, args=(str(args[0]), number, *args[1:])) for number in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]


def test_two_processes_compute_each_row_once(tmp_path: Path) -> None:
    _spawn(_write, tmp_path, str(tmp_path / "log"))
    asked = [[int(row) for row in (tmp_path / f"log-{number}").read_text().split()] for number in (0, 1)]
    assert sorted(asked[0] + asked[1]) == list(range(ROWS))


def test_who_waited_reads_what_the_other_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one saw no file, and gets the lock after the first one is done."""
    began, waits, asked = threading.Event(), threading.Event(), [[], []]
    lock = reference_cache._lock

    def noted(*given: Any) -> None:
        if began.is_set():
            waits.set()
        lock(*given)

    def slow(rows: list[int]) -> dict[str, Tensor]:
        began.set()
        assert waits.wait(60)
        return logging_to(asked[0])(rows)

    monkeypatch.setattr(reference_cache, "_lock", noted)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ReferenceCache(tmp_path).load_or_compute, "train", FINGERPRINT, ROWS, slow)
        assert began.wait(60)
        check(run(tmp_path, asked[1]))
        check(first.result())
    assert asked == [list(range(ROWS)), []]


def test_a_complete_file_is_read_without_its_lock(tmp_path: Path) -> None:
    run(tmp_path, [])
    with filelock.FileLock(tmp_path / ".train.safetensors.lock"):
        check(run(tmp_path, []))


def _rank(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sizes, asked = [], []

    def compute(rows: list[int]) -> dict[str, Tensor]:
        sizes.append(len(rows))
        dist.barrier()  # as a sharded model: every rank takes part in every forward
        return logging_to(asked)(rows)

    # Its own view of the disk, as on a machine that does not share rank 0's.
    cache = ReferenceCache(Path(folder) / f"cache-{rank}")
    check(cache.load_or_compute("train", FINGERPRINT, ROWS, compute, rows_per_call=4, save_every_seconds=0))
    shares = {0: [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], 1: [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 22]}
    assert asked == shares[rank]
    assert sizes == [4, 4, 4]
    check(cache.load_or_compute("train", FINGERPRINT, ROWS, compute))
    assert len(asked) == 12
    with pytest.raises(StaleReferenceError, match="other data"):
        cache.load_or_compute("train", replace(FINGERPRINT, data="b"), ROWS, compute)
    dist.destroy_process_group()


def test_ranks_share_the_work_and_the_first_one_writes(tmp_path: Path) -> None:
    _spawn(_rank, tmp_path)
    assert (tmp_path / "cache-0" / "train.safetensors").exists()
    assert not (tmp_path / "cache-1").exists()


def _damage(file: Path, how: str) -> None:
    tensors = load_file(file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "text":
        file.write_text("not safetensors")
    elif how == "foreign":
        save_file({"weight": torch.zeros(3)}, file)
    elif how == "garbled":
        save_file(tensors, file, metadata={"kind": "lossmith reference log-probabilities", "fingerprint": "{"})
    elif how == "unmarked":
        with safe_open(file, framework="pt") as opened:
            described = opened.metadata()
        save_file({"logps": tensors["ref_chosen_logps"]}, file, metadata=described)
    else:
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("how", ["cut", "text", "foreign", "garbled", "unmarked", "folder"])
def test_a_broken_or_foreign_file_is_refused_and_kept(how: str, tmp_path: Path) -> None:
    run(tmp_path, [])
    file = tmp_path / "train.safetensors"
    _damage(file, how)
    before = file.stat()
    with pytest.raises(
        ConfigurationError, match="move it away to compute the reference log-probabilities again"
    ) as caught:
        run(tmp_path, [])
    assert not isinstance(caught.value, StaleReferenceError)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_another_number_of_rows(tmp_path: Path) -> None:
    run(tmp_path, [])
    with pytest.raises(ConfigurationError, match="holds 23 rows where 24 were asked for"):
        run(tmp_path, [], rows=24)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"cannot be saved in .*file/below .*: give another folder, or set LOSSMITH"
    ):
        run(tmp_path / "file" / "below", [])


def test_a_save_that_fails_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(tmp_path, after=2)
    before = (tmp_path / "train.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match=r"cannot be saved in .* \(No space left on device\)"):
            run(tmp_path, [])
    assert (tmp_path / "train.safetensors").read_bytes() == before


def _returning(found: Callable[[list[int]], dict[str, Tensor]], folder: Path) -> None:
    ReferenceCache(folder).load_or_compute("train", FINGERPRINT, 6, found, rows_per_call=4)


def test_what_compute_returns_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveInputError, match=r"tensors of 4 rows by name, got logps: torch\.float32 \(2,\)"):
        _returning(lambda rows: {"logps": torch.zeros(2)}, tmp_path / "a")
    with pytest.raises(ObjectiveInputError, match=r"`compute` must return tensors by name, got logps: list"):
        _returning(lambda rows: {"logps": [0.0] * len(rows)}, tmp_path / "d")
    with pytest.raises(ObjectiveInputError, match=r"tensors of 4 rows by name, got \{\}"):
        _returning(lambda rows: {}, tmp_path / "b")
    with pytest.raises(
        ObjectiveInputError, match=r"must return logps: torch.float32 \(2,\) here, got logps: torch.float64"
    ):
        _returning(
            lambda rows: {"logps": torch.zeros(len(rows), dtype=[torch.float64, torch.float32][rows[0] == 0])}, tmp_path
        )
    with pytest.raises(ConfigurationError, match="`rows_per_call` must be >= 1, got 0"):
        run(tmp_path / "c", [], rows_per_call=0)


def test_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    bad = torch.tensor([0.0, -1.0, float("nan"), -2.0, -3.0, -4.0])
    with pytest.raises(ModelError, match="`logps` of row 2 is not a finite number"):
        _returning(lambda rows: {"logps": bad[rows]}, tmp_path)


def test_quiet_where_stderr_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run(tmp_path, [])
    assert capfd.readouterr() == ("", "")


def test_a_bar_where_it_is(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(tmp_path, [])
    shown = capfd.readouterr()
    assert "reference: train" in shown.err
    assert shown.out == ""
    run(tmp_path / "other", [], progress=False)
    assert capfd.readouterr().err == ""
