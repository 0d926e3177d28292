"""Disks that are full, failing, read-only or gone in the middle of a training."""

import errno
import os
import select
from pathlib import Path

import pytest

from tests.crash.experiments import Trial
from tests.crash.program import Server

pytestmark = pytest.mark.ci

STEP = "resnet_builder.training.step:TrainStep.__call__"


@pytest.fixture
def trial(server: Server, tmp_path: Path) -> Trial:
    """Return a run of 21 steps, saved every third."""
    return Trial(server, tmp_path, "plain", epochs=3)


def log_of(trial: Trial) -> str:
    return trial.run.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("call", "code", "turn"),
    [
        pytest.param("write", "ENOSPC", 5, marks=pytest.mark.slow),
        ("write", "EDQUOT", 5),
        ("fsync", "EIO", 3),
    ],
)
def test_save_that_fails_costs_only_itself(call: str, code: str, turn: int, trial: Trial) -> None:
    """From the third to the fifth checkpoint the disk fails; the log says since when.

    A checkpoint is written in two pieces, unless the first one fails.
    """
    end = trial.train(faults=[("failing", call, code, "/checkpoints/.tmp-", turn, turn + 2)])
    assert end.code == 0, end.stderr
    reason = os.strerror(getattr(errno, code))
    for text in (end.stderr, log_of(trial)):
        assert "not saved at step 9, and not since step 6, " in text
        assert "not saved at step 15, and not since step 6, " in text
        assert f"step-000000015.safetensors: {reason}; the newest checkpoint is " in text
        assert "not saved at step 18" not in text
    assert trial.steps == [18, 21]
    trial.assert_ends_as_without_faults()


@pytest.mark.parametrize(
    "name",
    [
        *("/checkpoints/step-000000021", "result.json"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("last.safetensors", "best.safetensors", "predictions.npz")
        ),
    ],
)
def test_end_that_cannot_be_written_is_7_and_can_be_resumed(name: str, trial: Trial) -> None:
    end = trial.train(faults=[("failing", "replace", "ENOSPC", name, 1, 99)])
    assert end.code == 7, end.stderr
    assert "error: cannot write " in end.stderr
    again = f"resnet-build train --resume {trial.run.path} --data-dir "
    assert f": No space left on device; to resume: {again}" in end.stderr.splitlines()[-1]
    assert not trial.run.is_finished
    assert trial.steps[-1] == (18 if "step" in name else 21)
    trial.assert_ends_as_without_faults()


@pytest.mark.slow
def test_files_that_must_not_grow(trial: Trial) -> None:
    """``RLIMIT_FSIZE``: small files can be written, checkpoints cannot."""
    end = trial.train(faults=[("limit_file_size", 4096)])
    assert end.code == 7, end.stderr
    assert "not saved at step 3, and not since the beginning, " in log_of(trial)
    assert "File too large; no checkpoint was saved yet" in log_of(trial)
    assert trial.steps == []
    trial.assert_ends_as_without_faults()


def test_messages_to_a_full_disk(trial: Trial) -> None:
    """Nobody can be told, but the run and its own log are complete."""
    full = Path("/dev/full")
    assert trial.train(stderr=full).code == 0
    assert "finished after 21 steps" in log_of(trial)
    trial.assert_ends_as_without_faults()
    end = trial.train(stdout=full)
    assert end.code == 7
    assert "No space left on device" in end.stderr


def test_messages_that_nobody_reads(trial: Trial, tmp_path: Path) -> None:
    """Both streams are a pipe whose reader leaves, as of ``train 2>&1 | head -1``."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    training = trial.start(stdout=pipe, stderr=pipe)
    select.select([reader], [], [], 60)
    assert os.read(reader, 14) == b"run directory:"
    os.close(reader)
    assert training.wait().code == 0
    assert "finished after 21 steps" in log_of(trial)
    trial.assert_ends_as_without_faults()


def test_directory_that_is_read_only_at_the_start_is_7(trial: Trial) -> None:
    """Before a step is taken; tests may run as root, who may write anywhere."""
    end = trial.train(faults=[("failing", "open", "EROFS", "/run/", 1, 99)])
    assert end.code == 7
    assert end.stderr.splitlines()[-1].startswith(
        f"error: cannot lock {trial.run.path / 'run.lock'}: "
    )
    assert not trial.run.is_published


def test_directory_that_becomes_read_only_is_told_of(trial: Trial) -> None:
    """After the probe and one checkpoint."""
    end = trial.train(faults=[("failing", "open", "EROFS", "/run/checkpoints/", 3, 99)])
    assert end.code == 7
    assert "not saved at step 6, and not since step 3, " in log_of(trial)
    assert "Read-only file system; the newest checkpoint is " in log_of(trial)
    assert trial.steps == [3]
    trial.assert_ends_as_without_faults()


def test_directory_that_is_removed_is_told_of(trial: Trial) -> None:
    """As by a cleaning script: training goes on to its end, which cannot be written."""
    end = trial.train(faults=[("removing", str(trial.run.path), STEP, 8)])
    assert end.code == 7
    assert "not saved at step 9, and not since step 6, " in end.stderr
    assert "No such file or directory; the newest checkpoint is " in end.stderr
    assert "Traceback" not in end.stderr
    assert not trial.run.path.exists()
