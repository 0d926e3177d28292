"""Disks that are full, failing, read-only or gone in the middle of a training."""

import errno
import os
import select
from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.checkpoint import load_checkpoint
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import End, Fault, Server

pytestmark = pytest.mark.ci

STEP = "resnet_builder.training.step:TrainStep.__call__"


class Disk:
    """A run of 21 steps, saved every third, on a disk with faults.

    Attributes:
        run: Directory of the run.
        line: Command line that trains it.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._spec = write_experiment(folder, "plain", epochs=3)
        self.run = RunDirectory(folder / "run")
        self.line = train_line(self._spec, self.run.path)

    def train(self, *faults: Fault) -> End:
        """Train, from where the run is, with faults of the disk."""
        return self._server.call(*self.line, folder=self._folder, faults=faults)

    def assert_same_as_without_faults(self) -> None:
        """Finish the run without faults, and compare it with one that had none."""
        assert self.train().code == 0
        whole = self._folder / "whole"
        end = self._server.call(*train_line(self._spec, whole), folder=self._folder)
        assert end.code == 0
        assert_same_outcome(self.run.path, outcome_of(whole))

    @property
    def log(self) -> str:
        """Log of the run."""
        return self.run.log.read_text(encoding="utf-8")

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, each of which must be valid."""
        return [load_checkpoint(path).step for path in sorted(self.run.checkpoints.iterdir())]


@pytest.fixture
def disk(server: Server, tmp_path: Path) -> Disk:
    return Disk(server, tmp_path)


@pytest.mark.parametrize(
    ("call", "code", "turn"), [("write", "ENOSPC", 5), ("write", "EDQUOT", 5), ("fsync", "EIO", 3)]
)
def test_save_that_fails_costs_only_itself(call: str, code: str, turn: int, disk: Disk) -> None:
    """From the third to the fifth checkpoint the disk fails; the log says since when.

    A checkpoint is written in two pieces, unless the first one fails.
    """
    end = disk.train(("failing", call, code, "/checkpoints/.tmp-", turn, turn + 2))
    assert end.code == 0, end.stderr
    reason = os.strerror(getattr(errno, code))
    for text in (end.stderr, disk.log):
        assert "not saved at step 9, and not since step 6, " in text
        assert "not saved at step 15, and not since step 6, " in text
        assert f"step-000000015.safetensors: {reason}; the newest checkpoint is " in text
        assert "not saved at step 18" not in text
    assert disk.steps == [18, 21]
    disk.assert_same_as_without_faults()


@pytest.mark.parametrize(
    "name", ["/checkpoints/step-000000021", "last.safetensors", "best.safetensors", "result.json"]
)
def test_end_that_cannot_be_written_is_7_and_can_be_resumed(name: str, disk: Disk) -> None:
    end = disk.train(("failing", "replace", "ENOSPC", name, 1, 99))
    assert end.code == 7, end.stderr
    assert "error: cannot write " in end.stderr
    assert end.stderr.endswith(": No space left on device\n")
    assert not disk.run.is_finished
    assert disk.steps[-1] == (18 if "step" in name else 21)
    disk.assert_same_as_without_faults()


def test_files_that_must_not_grow(disk: Disk) -> None:
    """``RLIMIT_FSIZE``: small files can be written, checkpoints cannot."""
    end = disk.train(("limit_file_size", 4096))
    assert end.code == 7, end.stderr
    assert "not saved at step 3, and not since the beginning, " in disk.log
    assert "File too large; no checkpoint was saved yet" in disk.log
    assert disk.steps == []
    disk.assert_same_as_without_faults()


def test_messages_to_a_full_disk(disk: Disk, server: Server, tmp_path: Path) -> None:
    """Nobody can be told, but the run and its own log are complete."""
    full = Path("/dev/full")
    assert server.call(*disk.line, folder=tmp_path, stderr=full).code == 0
    assert "finished after 21 steps" in disk.log
    disk.assert_same_as_without_faults()
    end = server.call(*disk.line, folder=tmp_path, stdout=full)
    assert end.code == 7
    assert "No space left on device" in end.stderr


def test_messages_that_nobody_reads(disk: Disk, server: Server, tmp_path: Path) -> None:
    """Both streams are a pipe whose reader leaves, as of ``train 2>&1 | head -1``."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    training = server.start(*disk.line, folder=tmp_path, stdout=pipe, stderr=pipe)
    select.select([reader], [], [], 60)
    assert os.read(reader, 14) == b"run directory:"
    os.close(reader)
    assert training.wait().code == 0
    assert "finished after 21 steps" in disk.log
    disk.assert_same_as_without_faults()


def test_directory_that_is_read_only_at_the_start_is_7(disk: Disk) -> None:
    """Before a step is taken; tests may run as root, who may write anywhere."""
    end = disk.train(("failing", "open", "EROFS", "/run/", 1, 99))
    assert end.code == 7
    assert end.stderr.splitlines()[-1].startswith(
        f"error: cannot lock {disk.run.path / 'run.lock'}: "
    )
    assert not disk.run.is_published


def test_directory_that_becomes_read_only_is_told_of(disk: Disk) -> None:
    """After the probe and one checkpoint."""
    end = disk.train(("failing", "open", "EROFS", "/run/checkpoints/", 3, 99))
    assert end.code == 7
    assert "not saved at step 6, and not since step 3, " in disk.log
    assert "Read-only file system; the newest checkpoint is " in disk.log
    assert disk.steps == [3]
    disk.assert_same_as_without_faults()


def test_directory_that_is_removed_is_told_of(disk: Disk) -> None:
    """As by a cleaning script: training goes on to its end, which cannot be written."""
    end = disk.train(("removing", str(disk.run.path), STEP, 8))
    assert end.code == 7
    assert "not saved at step 9, and not since step 6, " in end.stderr
    assert "No such file or directory; the newest checkpoint is " in end.stderr
    assert "Traceback" not in end.stderr
    assert not disk.run.path.exists()
