"""The run directory: where each file of a run lies, and how a run begins and is found again."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from resnet_builder.errors import UsageError
from resnet_builder.runs.files import TEMPORARY, storage_errors, write_atomically
from resnet_builder.runs.kernel_lock import PATIENCE
from resnet_builder.runs.lock import refuse_locked

_CHECKPOINTS = "checkpoints"
_LOCK = "run.lock"
_ENV = "env.json"
_DATA = "data.json"
_LOG = "train.log"
_SETUP = frozenset({_CHECKPOINTS, _LOCK, _ENV, _DATA, _LOG})


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The files of one run, by name.

    A directory is a run from the moment that ``spec.yaml`` is in it, which is written last when
    a run is set up.

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
        """Find a run that was set up before.

        Raises:
            UsageError: The directory is no run.
        """
        run = cls(path)
        if not run.is_published:
            what = "it has no spec.yaml" if path.is_dir() else "there is no such directory"
            raise UsageError(f"{path} is no run: {what}")
        return run

    @classmethod
    def open_or_create(cls, path: Path) -> "RunDirectory":
        """Find a run, or make its directory; one whose set-up was interrupted is used again.

        Ask :attr:`is_published` which it was only while holding the lock.

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
        """The resolved spec."""
        return self.path / "spec.yaml"

    @property
    def env(self) -> Path:
        """What the run is computed with: versions, device, and choices to be repeated."""
        return self.path / _ENV

    @property
    def data(self) -> Path:
        """What the images were, and which of them are for validation."""
        return self.path / _DATA

    @property
    def changes(self) -> Path:
        """A line of JSON for each value of the spec that was changed on the way."""
        return self.path / "changes.jsonl"

    @property
    def metrics(self) -> Path:
        """A line of JSON per report and evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was said while training."""
        return self.path / _LOG

    @property
    def checkpoints(self) -> Path:
        """The directory of what training goes on from."""
        return self.path / _CHECKPOINTS

    @property
    def best(self) -> Path:
        """The weights that validation chose."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The weights after the last step."""
        return self.path / "last.safetensors"

    @property
    def result(self) -> Path:
        """The outcome; a run that has one is finished."""
        return self.path / "result.json"

    @property
    def crash_log(self) -> Path:
        """The traceback of a bug of ours."""
        return self.path / "crash.log"

    @property
    def lock(self) -> Path:
        """Held by the process that writes into the directory."""
        return self.path / _LOCK

    @property
    def is_published(self) -> bool:
        """Whether the run was set up: from then on, resuming finishes it."""
        return self.spec.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result.is_file()

    def publish(self, spec: str) -> None:
        """Write the resolved spec, which makes the directory a run: the last thing of a set-up.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        write_atomically(self.spec, [spec.encode()])


def _last_number(parent: Path, name: str) -> int:
    numbered = re.compile(re.escape(name) + r"-(\d{3,})")
    matches = (numbered.fullmatch(entry.name) for entry in parent.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


def _is_unpublished(path: Path) -> bool:
    """Whether a path is a directory with nothing in it but what comes before ``spec.yaml``."""
    if not path.is_dir():
        return False
    with storage_errors("read", path):
        names = {entry.name for entry in path.iterdir()}
        checkpoints = path / _CHECKPOINTS
        saved = {entry.name for entry in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    return all(name in _SETUP or name.startswith(TEMPORARY) for name in names) and all(
        name.startswith(TEMPORARY) for name in saved
    )


def _refuse_existing(path: Path) -> None:
    """Say why a directory cannot be made.

    Between making a directory and locking it there is an instant in which it looks unused, so
    one that may be in that state is watched for a little.

    Raises:
        BusyError: A process is using it.
        UsageError: It is there, and nobody is using it.
    """
    deadline = time.monotonic() + PATIENCE
    while path.is_dir():
        refuse_locked(path / _LOCK)
        if not _is_unpublished(path) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    raise UsageError(f"{path} exists: choose another, or go on with it by --resume")
