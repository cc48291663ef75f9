import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple

import pytest

from lossmith.errors import EvidenceError
from lossmith.evidence import EvidenceStore, RunIsTaken, check_writable, write_atomically

HOLDER = """
import sys, time
from lossmith.evidence import EvidenceStore
claim = EvidenceStore(sys.argv[1]).claim("focal", 0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(tmp_path):
    with EvidenceStore(tmp_path) as opened:
        yield opened


def test_another_process_holds_a_claim_until_it_is_killed(store):
    command = [sys.executable, "-c", HOLDER, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunIsTaken, match="Another process is running 'focal', seed 0"):
                store.claim("focal", 0)
            store.claim("focal", 1).release()
            store.claim("dice", 0).release()
        finally:
            holder.kill()
    with store.claim("focal", 0):
        pass


def test_a_claim_ends_with_its_block_even_by_an_error(store):
    def interrupted():
        with store.claim("focal", 0):
            with pytest.raises(RunIsTaken):
                store.claim("focal", 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    claim = store.claim("focal", 0)
    claim.release()
    claim.release()


def test_of_many_threads_one_gets_the_claim(tmp_path):
    held, refused, barrier = [], [], threading.Barrier(8)

    def work():
        with EvidenceStore(tmp_path) as store:
            barrier.wait()
            try:
                held.append(store.claim("focal", 0))
            except RunIsTaken:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].release()


def test_a_good_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "deep" / "out")
    assert list((tmp_path / "deep" / "out").iterdir()) == []


@pytest.mark.parametrize("inside", ["", "runs/demo"])
@pytest.mark.parametrize("opens", [check_writable, EvidenceStore])
def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path, inside, opens):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(EvidenceError, match=r"Cannot write results to `.*out.*`: a file stands where the folder"):
        opens(tmp_path / "out" / inside)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, so the refusal cannot be seen")
def test_a_read_only_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    for opens in (check_writable, EvidenceStore):
        with pytest.raises(EvidenceError, match="this user may not write there"):
            opens(tmp_path)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "this user may not write there"),
        (errno.EROFS, "read-only file system"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_each_reason_not_to_write_is_named(tmp_path, monkeypatch, number, reason):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(EvidenceError, match=rf"Cannot write results to `.*`: {reason}. Choose another --out"):
        check_writable(tmp_path)


def test_a_nearly_full_disk_is_refused_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 49 * 2**20))
    with pytest.raises(EvidenceError, match="49 MiB are free and 50 MiB are needed"):
        check_writable(tmp_path)
    check_writable(tmp_path, needed_mib=49)


def test_an_interrupted_write_keeps_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EvidenceError, match="the disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_file_is_replaced_and_never_written_over(tmp_path):
    """A reader, or a kill, must not see half of it: the old file stays as it was until the new one takes its name."""
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
