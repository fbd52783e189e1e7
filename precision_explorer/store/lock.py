"""A run's folder taken for writing: its lock, and what must hold of its own folders before."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import stat
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from precision_explorer.errors import StoreError

LOCK = ".lock"
# What a killed sweep has started may hold its lock until it sees that it is alone.
_ORPHANS_S = 5.0
_LOOK_S = 0.05
# As `atomic.write_bytes` names what it writes.
_TEMPORARY = re.compile(r"(?P<file>.+)\.tmp(?P<pid>\d{1,9})")
_HOLDER = re.compile(r"process (?P<pid>\d{1,9}) on (?P<node>\S+) since")
# Of what this program writes into a run's own folders.
_SUFFIXES = (".json", ".arrow", ".parquet")


class Held(Exception):
    """Another process has the lock; the message is what the lock says of it."""


def take_lock(folder: Path) -> IO[str]:
    """The lock of a run's folder, held until it is closed or the process ends. Held where another
    process has it, StoreError where what stands there is no plain file: to write who holds it
    would empty the file that a link leads to. OSError as `os.open` raises it."""
    path = folder / LOCK
    if path.is_symlink():
        raise not_plain(path)
    # A link that came since is an OSError (ELOOP); a pipe is not waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise not_plain(path)
    # Whatever it holds: only who has it open counts.
    lock = os.fdopen(handle, "r+", encoding="utf8", errors="replace")
    try:
        _lock(lock)
    except BlockingIOError as error:
        with lock:
            raise Held(_holder(lock)) from error
    except OSError:
        lock.close()
        raise
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    with contextlib.suppress(OSError):  # On a full disk the lock still holds.
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()} since {now}")
        lock.flush()
    return lock


def _lock(lock: IO[str]) -> None:
    """Lock the file; BlockingIOError where a running process has it. Where the one that it names
    has ended on this machine, its children are waited for, up to `_ORPHANS_S`."""
    until = time.monotonic() + _ORPHANS_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until or not _has_ended(_holder(lock)):
                raise
        time.sleep(_LOOK_S)


def _has_ended(holder: str) -> bool:
    """Whether the process that a lock names was one of this machine and runs no more."""
    found = _HOLDER.match(holder)
    if found is None or found["node"] != platform.node():
        return False
    return not _is_running(int(found["pid"]))


def is_locked(folder: Path) -> bool:
    """Whether a process, this one or another, holds the folder's lock."""
    path = folder / LOCK
    if not path.is_file():
        return False
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _holder(lock: IO[str]) -> str:
    """What the lock says of the sweep that holds it, in one line."""
    lock.seek(0)
    text = " ".join(lock.read(1000).split())
    return "".join(c for c in text if c.isprintable())[:150] or "which it does not say"


def check_plain(folder: Path, own: Iterable[str]) -> None:
    """StoreError where one of a run's `own` folders, or anything in these, is a link, through which
    a file that is not the run's would be changed, or a device or a pipe, which has no end."""
    for name in own:
        for path in _entries(folder / name):
            with contextlib.suppress(FileNotFoundError):
                kind = path.lstat().st_mode
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise not_plain(path)


def _entries(folder: Path) -> Iterator[Path]:
    """A folder and all below it; no link is followed."""
    yield folder
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent) / name for name in (*folders, *names))


def not_plain(path: Path) -> StoreError:
    """Of what a run's folder does not hold."""
    return StoreError(
        f"{path} is a link or a device, not what a run holds; remove it or choose another --out"
    )


def remove_temporary(folder: Path, own: Iterable[str], top: Iterable[str]) -> None:
    """Remove what was being written when a process was killed, of the names that this program
    gives: in the `own` folders of a run, and at its top those of the files `top`. Only for who
    holds the lock. The tables are written without it: theirs stay while their process runs."""
    names = set(top)
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["file"] in names and not _is_running(int(found["pid"])):
            _remove(path)
    for path in (path for name in own for path in _entries(folder / name)):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["file"].endswith(_SUFFIXES):
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # A folder among them.
        path.unlink()


def _is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits to be asked after is none."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
