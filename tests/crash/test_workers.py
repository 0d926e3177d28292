"""Processes that read pictures ahead: what becomes of the training without them, and of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from tests.crash.experiments import left, train_line, write_experiment
from tests.crash.killing import assert_equal
from tests.crash.program import Child, Server, family, kill, parent

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no other to read ahead"),
]

AHEAD = [("setting", "resnet_builder.data.sources:MIN_FILES_FOR_WORKERS", 0)]


def reader(child: Child) -> int:
    """Wait for a process that reads ahead: a grandchild of the training; return its number."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in family(child):
            above = parent(pid)
            if above is not None and parent(above) == child.pid:
                return pid
        time.sleep(0.02)
    raise TimeoutError("nobody reads ahead")


def wait_until_gone(child: Child, seconds: float = 20) -> None:
    """Wait until no process of a call is left.

    Raises:
        AssertionError: One stays.
    """
    deadline = time.monotonic() + seconds
    while family(child):
        assert time.monotonic() < deadline, f"{len(family(child))} processes stay"
        time.sleep(0.02)


def test_row61_row64_lost_processes(server: Server, tmp_path: Path) -> None:
    """A reader that is killed ends the training, and a training that is killed its readers."""
    spec = write_experiment(tmp_path, "streamed")
    line = train_line(spec, tmp_path / "run")
    whole = server.call(*train_line(spec, tmp_path / "whole"), folder=tmp_path)
    assert whole.code == 0, whole.stderr

    training = server.start(*line, folder=tmp_path, faults=AHEAD)
    os.kill(reader(training), signal.SIGKILL)
    end = training.wait()
    assert end.code == 3
    assert ".png: a process that was to read it, or one after it, was lost: " in end.stderr
    assert "Traceback" not in end.stderr
    wait_until_gone(training)
    assert not RunDirectory(tmp_path / "run").is_locked

    training = server.start(*line, folder=tmp_path, faults=AHEAD)
    reader(training)
    kill(training)
    assert training.wait().code == -signal.SIGKILL
    wait_until_gone(training)
    assert not RunDirectory(tmp_path / "run").is_locked

    end = server.call(*line, folder=tmp_path)
    assert end.code == 0, end.stderr
    assert_equal(left(tmp_path / "run"), left(tmp_path / "whole"))
