"""A lock on a file that the kernel holds for a process and frees when the process ends.

The file stays when the lock is freed: removing it would let two processes lock two files of one
name. Whoever removes it all the same takes the lock from its holder, by force.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 0.25
"""Seconds that a lock is waited for: another process may, for an instant, see if it is held."""

_PAUSE = 0.01

if sys.platform == "win32":
    import msvcrt

    # Windows keeps others from reading what is locked, so that is a byte beyond the contents.
    _LOCKED_BYTE = 2**30

    def _try_lock(descriptor: int, *, shared: bool) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int, *, shared: bool) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# A forked child shares its parent's lock and would keep it after the parent's death.
_held: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def kernel_lock(path: Path) -> Iterator[int]:
    """Hold the lock of a file, which is made if it is not there.

    Yields:
        A descriptor of the file, for reading and writing.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file cannot be made or opened.
    """
    descriptor = _open_locked(path)
    try:
        yield descriptor
    finally:
        _release(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; one that is not there, nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Open and lock a file; once more if another one took its name in between."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        _held.add(descriptor)
        try:
            if not _lock_soon(descriptor):
                raise BlockingIOError
            if _is_named(descriptor, path):
                return descriptor
        except BaseException:
            _release(descriptor)
            raise
        _release(descriptor)


def _release(descriptor: int) -> None:
    if descriptor in _held:  # not in a forked child, where the number may mean another file
        _held.remove(descriptor)
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_soon(descriptor: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(descriptor, shared=False):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
