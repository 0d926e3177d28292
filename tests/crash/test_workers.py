"""Processes that decode images ahead: a training without them, and they without it."""

import os
import signal
from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import Child, Server, family, kill, parent, wait_until

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no other to read ahead"),
]

AHEAD = [("setting", "resnet_builder.data.sources:MIN_FILES_FOR_WORKERS", 0)]


def worker_of(child: Child) -> int:
    """Wait for a worker, a grandchild of the training; return its process number."""
    workers: list[int] = []

    def find() -> list[int]:
        for pid in family(child):
            above = parent(pid)
            if above is not None and parent(above) == child.pid:
                workers.append(pid)
        return workers

    wait_until(find)
    return workers[0]


def test_lost_worker_ends_the_training_and_a_lost_training_its_workers(
    server: Server, tmp_path: Path
) -> None:
    spec = write_experiment(tmp_path, "streamed")
    run, whole = RunDirectory(tmp_path / "run"), tmp_path / "whole"
    assert server.call(*train_line(spec, whole), folder=tmp_path).code == 0

    training = server.start(*train_line(spec, run.path), folder=tmp_path, faults=AHEAD)
    os.kill(worker_of(training), signal.SIGKILL)
    end = training.wait()
    assert end.code == 3
    assert ".png: a process that was to read it, or one after it, was lost: " in end.stderr
    assert "Traceback" not in end.stderr
    wait_until(lambda: not family(training), 20)
    assert not run.is_locked

    training = server.start(*train_line(spec, run.path), folder=tmp_path, faults=AHEAD)
    worker_of(training)
    kill(training)
    assert training.wait().code == -signal.SIGKILL
    wait_until(lambda: not family(training), 20)
    assert not run.is_locked

    end = server.call(*train_line(spec, run.path), folder=tmp_path)
    assert end.code == 0, end.stderr
    assert_same_outcome(run.path, outcome_of(whole))
