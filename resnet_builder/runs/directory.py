"""The run directory: the path of every file of a run, and the lock of its writer."""

import contextlib
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from resnet_builder.errors import BusyError, UsageError
from resnet_builder.runs.files import (
    TEMPORARY,
    Warn,
    append_line,
    prepare_directory,
    storage_errors,
    unheard,
    write_atomically,
)

PATIENCE = 0.25
"""Seconds to wait for a lock: another process may hold it for an instant to look at it."""

_PAUSE = 0.01
_CHECKPOINTS = "checkpoints"
_LOCK = "run.lock"
_HOLDER = "run.lock.json"
_ENV = "env.json"
_DATA = "data.json"
_LOG = "train.log"
_SETUP = frozenset({_CHECKPOINTS, _LOCK, _HOLDER, _ENV, _DATA, _LOG})


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Files of one run, by name.

    A directory is a run from the moment that ``spec.yaml`` is in it. The set-up writes that file
    last, so that a run which was killed while it was set up is set up again.

    Attributes:
        path: The directory.
    """

    path: Path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make exactly this directory, which must not exist.

        Raises:
            UsageError: It exists.
            BusyError: It exists and a process is using it.
            StorageError: The disk is full, read-only or failing.
        """
        run = cls(path)
        with storage_errors("make", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                run._refuse_existing()
            return run

    @classmethod
    def create_numbered(cls, parent: Path, name: str) -> "RunDirectory":
        """Make ``parent/name-NNN`` with the next number; processes never share one.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        with storage_errors("make a run in", parent):
            parent.mkdir(parents=True, exist_ok=True)
            number = _last_number(parent, name)
            while True:
                number += 1
                path = parent / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return a run that was set up before.

        Raises:
            UsageError: The directory is no run.
        """
        run = cls(path)
        if not run.is_published:
            reason = "it has no spec.yaml" if path.is_dir() else "there is no such directory"
            raise UsageError(f"{path} is no run: {reason}")
        return run

    @classmethod
    def open_or_create(cls, path: Path) -> "RunDirectory":
        """Return a run, or make its directory; an interrupted set-up is used again.

        Which of them it is, :attr:`is_published` tells only while the lock is held.

        Raises:
            UsageError: The directory has other files in it and is no run.
            StorageError: The disk is full, read-only or failing.
        """
        run = cls(path)
        if run.is_published:
            return run
        if path.exists() and not _is_unpublished(path):
            raise UsageError(f"{path} is no run, and something is there already: choose another")
        with storage_errors("make", path):
            path.mkdir(parents=True, exist_ok=True)
        return run

    @property
    def spec(self) -> Path:
        """Resolved spec."""
        return self.path / "spec.yaml"

    @property
    def env(self) -> Path:
        """Environment: versions, device, and the runtime configuration to be repeated."""
        return self.path / _ENV

    @property
    def data(self) -> Path:
        """Fingerprint of the images, and which of them are for validation."""
        return self.path / _DATA

    @property
    def changes(self) -> Path:
        """Changes of the spec on resume, a line of JSON each."""
        return self.path / "changes.jsonl"

    @property
    def metrics(self) -> Path:
        """Reports and evaluations, a line of JSON each."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Log of the training, in plain text."""
        return self.path / _LOG

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / _CHECKPOINTS

    @property
    def best(self) -> Path:
        """Weights of the best validation accuracy."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """Weights after the last step."""
        return self.path / "last.safetensors"

    @property
    def result(self) -> Path:
        """Result of the run; a run that has one is finished."""
        return self.path / "result.json"

    @property
    def crash_log(self) -> Path:
        """Traceback of a fault of this program."""
        return self.path / "crash.log"

    @property
    def lock(self) -> Path:
        """Lock file of the process that writes into the directory."""
        return self.path / _LOCK

    @property
    def holder(self) -> Path:
        """Name of the process that holds the lock, for messages."""
        return self.path / _HOLDER

    @property
    def is_published(self) -> bool:
        """Whether the run was set up: from then on, resuming finishes it."""
        return self.spec.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return self.result.is_file()

    @property
    def is_locked(self) -> bool:
        """Whether a process holds the run."""
        if not self.lock.is_file():  # looking must not make a lock file in someone's directory
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True

    def publish(self, spec: str) -> None:
        """Write the resolved spec, which makes the directory a run: the last step of a set-up.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        write_atomically(self.spec, [spec.encode()])

    @contextlib.contextmanager
    def locked(self, *, warn: Warn = unheard) -> Iterator[None]:
        """Hold the run for writing, and remove the temporary files of a killed process.

        The system frees the lock when its process ends, however it ends, so that none is stale.

        Args:
            warn: Told of a process that ended without freeing the run.

        Raises:
            BusyError: Another process holds it.
            UsageError: Its ``checkpoints`` is a link to another place.
            StorageError: Files cannot be made in it.
        """
        lock = FileLock(self.lock, timeout=PATIENCE, poll_interval=_PAUSE)
        with storage_errors("lock", self.lock):
            try:
                lock.acquire()
            except Timeout:
                raise self._busy() from None
        try:
            if before := _read_holder(self.holder):
                warn(f"taking over from {before}, which ended without freeing the run")
            self._write_holder()
            if self.checkpoints.is_symlink():
                raise UsageError(f"{self.checkpoints} is a link: a run keeps its files to itself")
            for directory in (self.path, self.checkpoints):
                prepare_directory(directory)
            yield
        finally:
            with contextlib.suppress(OSError):
                self.holder.unlink(missing_ok=True)
            lock.release()

    def _write_holder(self) -> None:
        with storage_errors("write", self.holder):
            self.holder.unlink(missing_ok=True)  # it may be a link: append_line follows none
        append_line(self.holder, Holder.present().model_dump_json())

    def _busy(self) -> BusyError:
        """Return the error that names the holder, which may be just writing its name."""
        deadline = time.monotonic() + PATIENCE
        while (holder := _read_holder(self.holder)) is None and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return BusyError(f"{self.path} is in use by {holder or 'another process'}")

    def _refuse_existing(self) -> None:
        """Raise the reason why the directory cannot be made.

        A directory looks unused for the instant between making and locking it, so that one which
        may be in that state is watched for a little.
        """
        deadline = time.monotonic() + PATIENCE
        while self.path.is_dir():
            with contextlib.suppress(OSError):  # a lock that may not be opened is not a run's
                if self.is_locked:
                    raise self._busy()
            if not _is_unpublished(self.path) or time.monotonic() > deadline:
                break
            time.sleep(_PAUSE)
        raise UsageError(f"{self.path} exists: choose another, or go on with it by --resume")


class Holder(BaseModel):
    """Process that holds a run, as ``run.lock.json`` names it to other processes.

    It serves messages only: the lock decides, and this file stays behind when a process is killed.

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

    @classmethod
    def present(cls) -> "Holder":
        """Return this process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            host=socket.gethostname(), pid=os.getpid(), since=now, command=shlex.join(sys.argv)
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


def _read_holder(path: Path) -> Holder | None:
    """Return the process that a file names; it may be missing, empty or half-written."""
    try:
        return Holder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _last_number(parent: Path, name: str) -> int:
    numbered = re.compile(re.escape(name) + r"-(\d{3,})")
    matches = (numbered.fullmatch(entry.name) for entry in parent.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


def _is_unpublished(path: Path) -> bool:
    """Whether a path is a directory with nothing in it but the files before ``spec.yaml``."""
    if not path.is_dir():
        return False
    with storage_errors("read", path):
        names = {entry.name for entry in path.iterdir()}
        checkpoints = path / _CHECKPOINTS
        saved = {entry.name for entry in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    return all(name in _SETUP or name.startswith(TEMPORARY) for name in names) and all(
        name.startswith(TEMPORARY) for name in saved
    )
