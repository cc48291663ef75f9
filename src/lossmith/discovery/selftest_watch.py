"""What a candidate may not touch while it is looked at, and an eye on all of it.

Python tells an audit hook of every file that is opened, every process and socket, every change of the environment and
every piece of code that is run, in whatever thread; from 3.12 on of every thread too. (That text is compiled says
nothing: parsing does it too.) Beside it stand things that no event tells of: a folder and a file, a port, threads that
stay, and an environment variable whose value must turn up nowhere.
"""

import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

SECRET = "SECRET_KEY"
"""Environment variable that the sources of the corpus try to read."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTED = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
_CHANGED = ("os.putenv", "os.unsetenv", "os.chdir", "os.fchdir")
_FILES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime"),
    *("os.chmod", "os.chown", "os.mkfifo", "os.mknod", "shutil.", "tempfile."),
)
_LOADED = ("ctypes.dlopen", "_thread.start", "code.__new__", "sys.settrace", "sys.setprofile")
_PREFIXES = ("socket.", *_STARTED, *_CHANGED, *_FILES, *_LOADED)


@dataclass(kw_only=True)
class _Eye:
    """An audit hook cannot be taken away again: it is put in once, and looks while `open` is set."""

    installed: bool = False
    open: bool = False
    unread: str = ""
    """A file that may not even be read."""
    seen: list[str] = field(default_factory=list)


_EYE = _Eye()


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if not _EYE.open:
        return
    if event == "open":
        path, _, flags = given
        if flags & _WRITES or str(path) == _EYE.unread:
            _EYE.seen.append(f"it opened the file {path!r}")
    elif event == "exec":
        code = given[0]
        # Modules that lossmith imports on first use come from files; what a candidate brings along has none.
        if not isinstance(code, CodeType) or not os.path.isfile(code.co_filename):
            _EYE.seen.append("it ran code")
    elif event.startswith(_PREFIXES):
        _EYE.seen.append(f"it caused `{event}`")


@contextmanager
def listening(unread: Path) -> Iterator[list[str]]:
    """Events while this is open, in words, each once.

    Args:
        unread: File that may not even be read.
    """
    if not _EYE.installed:
        sys.addaudithook(_hook)
        _EYE.installed = True
    found: list[str] = []
    _EYE.seen, _EYE.unread, _EYE.open = [], str(unread), True
    try:
        yield found
    finally:
        _EYE.open = False
        found += dict.fromkeys(_EYE.seen)


@dataclass(kw_only=True)
class Place:
    """Bait: a folder that must stay empty, a file that must stay unread, a port, a secret in the environment."""

    drop: Path
    canary: Path
    port: int
    secret: str
    had_visitor: Callable[[], bool]

    def state(self) -> dict[str, Any]:
        """What must be the same before and after a candidate."""
        status = self.canary.stat()
        return {
            "the folder": sorted(path.name for path in self.drop.iterdir()),
            "the file": (status.st_mtime_ns, status.st_size, status.st_atime_ns),
            "the environment": dict(os.environ),
            "the working folder": os.getcwd(),
            "the processes": _children(),
            "the threads": sorted(str(each.ident) for each in threading.enumerate()),
        }


@contextmanager
def baited(folder: Path) -> Iterator[Place]:
    """Lay the bait in an empty folder; the environment is as before afterwards."""
    drop, canary, secret = folder / "drop", folder / "canary", secrets.token_hex(16)
    drop.mkdir()
    canary.write_bytes(b"nobody reads this")
    # So old that a system which keeps times of reading only now and then keeps this one.
    os.utime(canary, ns=(10**18, 10**18))
    before = os.environ.get(SECRET)
    os.environ[SECRET] = secret
    try:
        with _server() as (port, had_visitor):
            yield Place(drop=drop, canary=canary, port=port, secret=secret, had_visitor=had_visitor)
    finally:
        os.environ.pop(SECRET, None)
        if before is not None:
            os.environ[SECRET] = before


def _children() -> list[str]:
    """Processes that any thread of this one has started and that are there, where the system says so."""
    found = []
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            found += listing.read_text().split()
        except OSError:  # a thread that ended meanwhile, or a system that keeps no such file
            continue
    return sorted(found)


@contextmanager
def _server() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A local port, and whether anybody came since it was last asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def had_visitor() -> bool:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield server.getsockname()[1], had_visitor
