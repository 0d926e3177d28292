"""One process at a time: who writes into a run directory holds its lock while it does."""

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from resnet_builder.errors import BusyError, UsageError
from resnet_builder.runs.files import Warn, prepare_directory, storage_errors, unheard
from resnet_builder.runs.kernel_lock import is_locked, kernel_lock

if TYPE_CHECKING:
    from resnet_builder.runs.directory import RunDirectory

_LARGEST_OWNER = 4096


class Owner(BaseModel):
    """Who holds a lock, as the lock file tells it to those who find it held."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextlib.contextmanager
def locked(run: "RunDirectory", *, warn: Warn = unheard) -> Iterator[None]:
    """Hold a run directory for writing; what a killed process left half-written is removed.

    The kernel holds the lock and frees it whenever the process ends, so that there are no stale
    ones: the lock of a process that was killed is taken over, and ``warn`` is told.

    Raises:
        BusyError: Another process holds it.
        UsageError: Its ``checkpoints`` is a link to somewhere else.
        StorageError: Files cannot be made in it.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors("lock", run.lock):
            try:
                descriptor = stack.enter_context(kernel_lock(run.lock))
            except BlockingIOError:
                raise _busy(run.lock) from None
            _take_over(descriptor, warn)
        stack.callback(_leave, descriptor)
        if run.checkpoints.is_symlink():
            raise UsageError(f"{run.checkpoints} is a link: a run keeps its files to itself")
        for directory in (run.path, run.checkpoints):
            prepare_directory(directory)
        yield


def refuse_locked(lock: Path) -> None:
    """Do nothing if nobody holds a lock file.

    Raises:
        BusyError: A process does.
        StorageError: The file cannot be opened.
    """
    with storage_errors("look at", lock):
        if is_locked(lock):
            raise _busy(lock)


def _busy(lock: Path) -> BusyError:
    owner = _parse_owner(_read_start(lock))
    return BusyError(f"{lock.parent} is in use by {owner or 'another process'}")


def _take_over(descriptor: int, warn: Warn) -> None:
    """Note the owner before, if it did not leave properly, and write down the new one."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    before = _parse_owner(os.read(descriptor, _LARGEST_OWNER))
    if before is not None:
        warn(f"taking over from {before}, which ended without freeing the run")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    owner = Owner(host=socket.gethostname(), pid=os.getpid(), started=now)
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, owner.model_dump_json().encode())


def _leave(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the lock is freed all the same
        os.ftruncate(descriptor, 0)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_OWNER)
    except OSError:
        return b""


def _parse_owner(text: bytes) -> Owner | None:
    try:
        return Owner.model_validate_json(text)
    except ValidationError:
        return None
