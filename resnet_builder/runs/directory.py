"""The run directory: every file of a run."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resnet_builder.errors import UsageError
from resnet_builder.runs import lock
from resnet_builder.runs.files import (
    TEMPORARY,
    Warn,
    ignore,
    prepare_directory,
    storage_errors,
    write_atomically,
)

_CHECKPOINT = re.compile(r"step-(\d{1,18})\.safetensors")
_BEFORE_SPEC = {"checkpoints", lock.LOCK, lock.HOLDER, "env.json", "data.json", "train.log"}


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
        with storage_errors("make", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                _refuse_existing(path)
        return cls(path)

    @classmethod
    def create_numbered(cls, parent: Path, name: str) -> "RunDirectory":
        """Make ``parent/name-NNN`` with the next number; processes never share one.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        numbered = re.compile(re.escape(name) + r"-(\d{3,})")
        with storage_errors("make a run in", parent):
            parent.mkdir(parents=True, exist_ok=True)
            matches = (numbered.fullmatch(entry.name) for entry in parent.iterdir())
            number = max((int(match[1]) for match in matches if match), default=0)
            while True:
                number += 1
                path = parent / f"{name}-{number:03d}"
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return a run that was set up before.

        Raises:
            UsageError: The directory is no run.
        """
        run = cls(path)
        if not run.is_published:
            absent = "it is a file" if path.is_file() else "there is no such directory"
            reason = "it has no spec.yaml" if path.is_dir() else absent
            names = sorted(str(spec.parent) for spec in path.glob("*/spec.yaml"))
            hint = f"; a run in it is {names[0]}" if names else ""
            raise UsageError(f"{path} is no run: {reason}{hint}")
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
        return self.path / "env.json"

    @property
    def data(self) -> Path:
        """Fingerprint of the images, and which of them are for validation."""
        return self.path / "data.json"

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
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

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
    def report(self) -> Path:
        """Report of the run, one HTML page."""
        return self.path / "report.html"

    @property
    def predictions(self) -> Path:
        """Predictions of the best weights, of each test image."""
        return self.path / "predictions.npz"

    def earlier_result(self, step: int) -> Path:
        """File of the result that a finished run had before it trained on from ``step``."""
        return self.path / f"result-step-{step:09d}.json"

    @property
    def crash_log(self) -> Path:
        """Traceback of a fault of this program."""
        return self.path / "crash.log"

    @property
    def is_published(self) -> bool:
        """Whether the run was set up: from then on, resuming finishes it."""
        return self.spec.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return self.result.is_file()

    def checkpoint(self, step: int) -> Path:
        """File of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:09d}.safetensors"

    def checkpoint_files(self) -> dict[int, Path]:
        """Files of the checkpoints, valid or not, by their steps in ascending order."""
        with storage_errors("read", self.checkpoints):
            files = list(self.checkpoints.iterdir()) if self.checkpoints.exists() else []
        steps = ((checkpoint_step(path), path) for path in files)
        return dict(sorted((step, path) for step, path in steps if step is not None))

    @property
    def has_checkpoints(self) -> bool:
        """Whether the run has checkpoints, valid or not, or such as were set aside."""
        return any(self.checkpoints.glob("step-*.safetensors*"))

    @property
    def is_locked(self) -> bool:
        """Whether a process holds the run."""
        return lock.is_locked(self.path)

    def publish(self, spec: str) -> None:
        """Write the resolved spec, which makes the directory a run: the last step of a set-up.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        write_atomically(self.spec, [spec.encode()])

    @contextlib.contextmanager
    def locked(self, *, warn: Warn = ignore) -> Iterator[None]:
        """Hold the run for writing, and remove the temporary files of a killed process.

        Args:
            warn: Told of a process that ended without freeing the run.

        Raises:
            BusyError: Another process holds it.
            UsageError: Its ``checkpoints`` is a link to another place.
            StorageError: Files cannot be made in it.
        """
        with lock.hold_lock(self.path, warn):
            if self.checkpoints.is_symlink():
                raise UsageError(f"{self.checkpoints} is a link: a run keeps its files to itself")
            prepare_directory(self.path)
            prepare_directory(self.checkpoints)
            yield


def checkpoint_step(path: Path) -> int | None:
    """Return the step in the name of a checkpoint's file; ``None`` for other names."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def _refuse_existing(path: Path) -> None:
    """Raise the reason why a directory cannot be made.

    A directory looks unused for the instant between making and locking it, so that one which may
    be in that state is watched for a little.
    """
    deadline = time.monotonic() + lock.PATIENCE
    while path.is_dir():
        with contextlib.suppress(OSError):  # a lock that may not be opened is not a run's
            if lock.is_locked(path):
                raise lock.busy_error(path)
        if not _is_unpublished(path) or time.monotonic() > deadline:
            break
        time.sleep(lock.PAUSE)
    raise UsageError(f"{path} exists: choose another, or go on with it by --resume")


def _is_unpublished(path: Path) -> bool:
    """Whether a path is a directory with nothing in it but the files before ``spec.yaml``."""
    if not path.is_dir():
        return False
    with storage_errors("read", path):
        names = {entry.name for entry in path.iterdir()} - _BEFORE_SPEC
        if (path / "checkpoints").is_dir():
            names |= {entry.name for entry in (path / "checkpoints").iterdir()}
    return all(name.startswith(TEMPORARY) for name in names)
