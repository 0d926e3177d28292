"""Lock of a run directory, and the name of the process that holds it.

The system frees the lock when its process ends, however it ends, so that none is ever stale. The
name stands in ``run.lock.json`` for messages only, and stays behind when a process is killed.
"""

import contextlib
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from resnet_builder.errors import BusyError, printable
from resnet_builder.runs.files import Warn, append_line, storage_errors
from resnet_builder.system import open_regular

LOCK, HOLDER = "run.lock", "run.lock.json"

PATIENCE = 0.25
"""Seconds to wait for a lock: another process may hold it for an instant to look at it."""

PAUSE = 0.01


class Holder(BaseModel):
    """Process that holds a run.

    Attributes:
        host: Name of the machine.
        pid: Process number on that machine.
        since: Time at which the process took the lock, in UTC.
        command: Command line of the process.
    """

    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


@contextlib.contextmanager
def hold_lock(directory: Path, warn: Warn) -> Iterator[None]:
    """Hold a run directory for writing.

    Args:
        directory: The run directory.
        warn: Told of a process that ended without freeing the run.

    Raises:
        BusyError: Another process holds it.
        StorageError: Files cannot be made in it.
    """
    lock = FileLock(directory / LOCK, timeout=PATIENCE, poll_interval=PAUSE)
    with storage_errors("lock", directory / LOCK):
        try:
            lock.acquire()
        except Timeout:
            raise busy_error(directory) from None
    holder = directory / HOLDER
    try:
        if before := _read_holder(holder):
            warn(f"taking over from {before}, which ended without freeing the run")
        with storage_errors("write", holder):
            holder.unlink(missing_ok=True)  # it may be a link: append_line follows none
        now = datetime.now(UTC).isoformat(timespec="seconds")
        present = Holder(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=now,
            command=printable(shlex.join(sys.argv)),
        )
        append_line(holder, present.model_dump_json())
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def is_locked(directory: Path) -> bool:
    """Whether a process holds a run directory."""
    if not (directory / LOCK).is_file():  # looking must not make a lock file in a user's directory
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def busy_error(directory: Path) -> BusyError:
    """Return the error that names the holder, which may be just writing its name."""
    deadline = time.monotonic() + PATIENCE
    while (holder := _read_holder(directory / HOLDER)) is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return BusyError(f"{directory} is in use by {holder or 'another process'}")


def _read_holder(path: Path) -> Holder | None:
    try:
        with open_regular(path) as file:
            return Holder.model_validate_json(file.read())
    except (OSError, ValidationError):  # missing, empty or half-written
        return None
