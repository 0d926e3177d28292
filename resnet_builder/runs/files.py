"""Atomic writes: files that are whole or absent, appended lines, and errors that name a file.

Every failure of the disk leaves this module as a :class:`StorageError` that names the file.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resnet_builder.errors import StorageError, UsageError

if sys.platform == "darwin":
    import fcntl

Buffer = bytes | memoryview

Warn = Callable[[str], None]
"""Callback for a warning of one line."""

TEMPORARY = ".tmp-"
"""Prefix of the names of files that are being written."""

POINTS = (
    *("created", "written", "synced", "closed"),
    *("verified", "replaced", "published", "rotated"),
)
"""Failpoints, in the order in which saving a checkpoint passes them."""

_CHUNK = 8 * 2**20

# No link is followed and no child inherits a file. Windows lacks these flags, but would change
# line ends without O_BINARY.
_COMMON = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def ignore(message: str) -> None:
    """Drop a message."""


failpoint_hook: Callable[[str], None] = ignore
"""Called at each failpoint; a test replaces it, to fail or to kill the process there."""


def failpoint(point: str) -> None:
    """Pass one of :data:`POINTS`."""
    failpoint_hook(point)


@contextlib.contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Context that turns an :class:`OSError` into a :class:`StorageError` that names the file.

    Args:
        action: Verb of the message "cannot ACTION PATH".
        path: The file that the user knows.

    Raises:
        StorageError: Anything inside raised :class:`OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {action} {path}: {error.strerror or error}") from error


def write_atomically(path: Path, parts: Sequence[Buffer]) -> None:
    """Write a file so that readers, and a run after a crash, find the old or the new contents.

    The bytes go to a new file in the same directory, reach the disk, are read back and compared,
    and only then take the name; the directory follows to the disk. The old file is never removed
    first. After any failure the old file is as it was and no temporary file remains.

    Args:
        path: The file to make or replace; a link of this name is replaced, not followed.
        parts: Contents, in order.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    with storage_errors("write", path):
        temporary, descriptor = _create_temporary(path.parent)
        try:
            _fill(descriptor, parts)
            _compare(temporary, parts)
            failpoint("verified")
            os.replace(temporary, path)
            failpoint("replaced")
            sync_directory(path.parent)
            failpoint("published")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file that a user names: no command does.

    Raises:
        UsageError: There is something of this name.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists and is not overwritten: name another file, or remove it")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is made if it does not exist.

    A line that does not fit is taken back, so that the file ends with a whole one.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    with (
        storage_errors("append to", path),
        _opened(path, os.O_APPEND | os.O_CREAT) as descriptor,
    ):
        before = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, f"{line}\n".encode())
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, before)
            raise


def truncate(path: Path, size: int) -> None:
    """Truncate a file to ``size`` bytes.

    Raises:
        StorageError: The disk is read-only or failing.
    """
    with storage_errors("shorten", path), _opened(path) as descriptor:
        os.ftruncate(descriptor, size)
        _sync(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file to the disk.

    Raises:
        StorageError: The disk is full or failing.
    """
    with storage_errors("write", path), _opened(path) as descriptor:
        _sync(descriptor)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk; Windows does that by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems have no such operation on directories.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def prepare_directory(directory: Path) -> None:
    """Make a directory, remove the temporary files of a killed process, and try to write in it.

    Only the holder of the run's lock may do so. A read-only disk is found before any work is done.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    with storage_errors("write in", directory):
        directory.mkdir(exist_ok=True)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
        probe, descriptor = _create_temporary(directory)
        os.close(descriptor)
        os.unlink(probe)


@contextlib.contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a regular file for writing; a FIFO would wait for a reader without O_NONBLOCK."""
    flags |= getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_WRONLY | flags | _COMMON, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENXIO, "it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _create_temporary(directory: Path) -> tuple[Path, int]:
    """Make a new file: O_EXCL refuses one that somebody has put there."""
    path = directory / (TEMPORARY + secrets.token_hex(8))
    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _COMMON, 0o666)


def _fill(descriptor: int, parts: Sequence[Buffer]) -> None:
    try:
        failpoint("created")
        for part in parts:
            _write_all(descriptor, part)
        failpoint("written")
        _sync(descriptor)
        failpoint("synced")
    finally:
        os.close(descriptor)  # some disks report that they are full only here
    failpoint("closed")


def _write_all(descriptor: int, data: Buffer) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left[:_CHUNK]) :]


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # there, fsync stops at the drive's own memory
        with contextlib.suppress(OSError):  # network file systems lack this call
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    os.fsync(descriptor)


def _compare(path: Path, parts: Sequence[Buffer]) -> None:
    """Read a file back and check that it holds what was written."""
    with path.open("rb") as file:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), _CHUNK):
                expected = bytes(view[start : start + _CHUNK])
                if file.read(len(expected)) != expected:
                    raise OSError(errno.EIO, "it reads back differently from what was written")
        if file.read(1):
            raise OSError(errno.EIO, "it reads back longer than what was written")
