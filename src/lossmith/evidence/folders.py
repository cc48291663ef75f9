"""The results folder on disk: can it be written, what are its files called, and how is one written whole."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from lossmith.errors import EvidenceError

_SLUG_LENGTH = 60


def check_writable(folder: str | Path, *, needed_mib: int = 50) -> None:
    """Make the folder and prove that results can be written there, before any time goes into training.

    Args:
        folder: Results folder; made if it is not there.
        needed_mib: Free space that a study wants at least.

    Raises:
        EvidenceError: If the folder cannot be made or written, or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        free_mib = shutil.disk_usage(folder).free // 2**20
    except OSError as error:
        raise cannot_write(folder, error) from error
    if free_mib < needed_mib:
        raise EvidenceError(
            f"Cannot write results to `{folder}`: {free_mib} MiB are free and {needed_mib} MiB are needed. "
            "Free some space or choose another --out."
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cannot_write(path: Path, error: OSError) -> EvidenceError:
    """One sentence for an `OSError`: path, reason, what to do."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file stands where the folder should be"
    elif error.errno == errno.ENOSPC:
        reason = "the disk is full"
    elif isinstance(error, PermissionError):
        reason = "this user may not write there"
    else:
        reason = (error.strerror or str(error)).lower()
    return EvidenceError(f"Cannot write results to `{path}`: {reason}. Choose another --out.")


def run_slug(loss: str) -> str:
    """A folder name for a loss: readable, safe on every file system, and different for different losses.

    Example:
        >>> run_slug("0.4*cross_entropy + 0.6*soft_triple")
        '0.4-cross_entropy-0.6-soft_triple-50571dff'
    """
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", loss)[:_SLUG_LENGTH].strip("-.")
    return f"{readable or 'loss'}-{hashlib.sha256(loss.encode()).hexdigest()[:8]}"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or absent, also after a kill or a power cut.

    Raises:
        EvidenceError: If the file cannot be written.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """`write_atomically` for a file that is no text.

    Raises:
        EvidenceError: If the file cannot be written.
    """
    # A name of its own per writer: two processes may restore the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
