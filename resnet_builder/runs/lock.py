"""One process at a time: who writes into a run directory holds its lock while it does.

The kernel says whether a process of this machine holds the lock. Of other machines it may not
know, as some network file systems keep locks to themselves; so whoever holds one touches its file
now and then, and one that was touched lately by another machine is not taken.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from resnet_builder.errors import BusyError, UsageError
from resnet_builder.runs.files import (
    Warn,
    file_system_time,
    prepare_directory,
    storage_errors,
    unheard,
)
from resnet_builder.runs.kernel_lock import PATIENCE, is_locked, kernel_lock

if TYPE_CHECKING:
    from resnet_builder.runs.directory import RunDirectory

_LARGEST_OWNER = 4096

TOUCHED_EVERY = 15.0
"""Seconds after which the holder of a lock touches its file again."""

DEAD_AFTER = 60.0
"""Seconds without a touch after which a holder on another machine counts as dead."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Owner(BaseModel):
    """Who holds a lock, as the lock file tells it to those who find it held.

    Attributes:
        host: Name of the machine.
        pid: Of the process there.
        started: When it took the lock, in UTC.
        boot: What the machine's kernel calls the time since it was started; Linux alone has it.
            Containers with names of their own share it.
    """

    host: str
    pid: int
    started: str
    boot: str | None = None

    @classmethod
    def present(cls) -> "Owner":
        """Return this process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=socket.gethostname(), pid=os.getpid(), started=now, boot=_boot())

    @property
    def is_here(self) -> bool:
        """Whether this machine's kernel knows what the process holds."""
        boot = _boot()
        if self.boot is None or boot is None:
            return self.host == socket.gethostname()
        return self.boot == boot

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextlib.contextmanager
def locked(run: "RunDirectory", *, force: bool = False, warn: Warn = unheard) -> Iterator[None]:
    """Hold a run directory for writing; what a killed process left half-written is removed.

    The kernel frees the lock whenever the process ends, so that no lock of this machine is stale:
    that of a process that was killed is taken over, and ``warn`` is told.

    Args:
        run: The directory.
        force: Whether to take it also from a process that seems to hold it.
        warn: Told of whom it is taken from.

    Raises:
        BusyError: Another process holds it, or may hold it on another machine.
        UsageError: Its ``checkpoints`` is a link to somewhere else.
        StorageError: Files cannot be made in it.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors("lock", run.lock):
            descriptor = _enter(stack, run.lock, force=force, warn=warn)
            _take_over(descriptor, run.lock, force=force, warn=warn)
        stack.callback(_leave, descriptor)
        stack.enter_context(_touched(run.lock))
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


def _enter(stack: contextlib.ExitStack, lock: Path, *, force: bool, warn: Warn) -> int:
    """Take a lock; by force, on a new file of its name."""
    try:
        return stack.enter_context(kernel_lock(lock))
    except BlockingIOError:
        if not force:
            raise _busy(lock) from None
    warn(f"{_busy(lock)}; taking over by force")
    lock.unlink(missing_ok=True)
    return stack.enter_context(kernel_lock(lock))


def _busy(lock: Path) -> BusyError:
    """Say who holds a lock; whoever has just taken it may still be writing that down."""
    deadline = time.monotonic() + PATIENCE
    while (owner := _parse_owner(_read_start(lock))) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return BusyError(f"{lock.parent} is in use by {owner or 'another process'}")


def _take_over(descriptor: int, lock: Path, *, force: bool, warn: Warn) -> None:
    """Note the owner before, if it did not leave properly, and write down the new one."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    before = _parse_owner(os.read(descriptor, _LARGEST_OWNER))
    if before is not None:
        unknown = not before.is_here
        if unknown and not force:
            _refuse_alive(descriptor, lock, before)
        how = "by force" if unknown and force else "which ended without freeing the run"
        warn(f"taking over from {before}, {how}")
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, Owner.present().model_dump_json().encode())


def _refuse_alive(descriptor: int, lock: Path, owner: Owner) -> None:
    """Do nothing if the holder of a lock on another machine gave no sign of life for long.

    Raises:
        BusyError: It gave one.
    """
    silence = file_system_time(lock.parent) - os.fstat(descriptor).st_mtime
    if silence < DEAD_AFTER:
        raise BusyError(
            f"{lock.parent} was in use {max(silence, 0):.0f} s ago by {owner}; if it is gone, "
            "try again in a minute, or add --force-unlock"
        )


@contextlib.contextmanager
def _touched(lock: Path) -> Iterator[None]:
    """Give a sign of life now and then, for other machines."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(TOUCHED_EVERY):
            with contextlib.suppress(OSError):
                os.utime(lock)

    thread = threading.Thread(target=touch, name="run lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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


def _boot() -> str | None:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None
