"""Processes that decode images ahead: a training without them, and they without it."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.crash.experiments import Trial
from tests.crash.program import Child, Server, family, kill, parent, wait_until

pytestmark = [
    pytest.mark.slow,
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
    trial = Trial(server, tmp_path, "streamed")
    training = trial.start(faults=AHEAD)
    os.kill(worker_of(training), signal.SIGKILL)
    end = trial.ended(training)
    assert end.code == 6
    assert ".png: a process that was to read it, or one after it, was killed, as " in end.stderr

    training = trial.start(faults=AHEAD)
    wait_until(lambda: trial.run.is_published)
    os.kill(worker_of(training), signal.SIGSTOP)  # as one that waits for a file server
    asked = time.monotonic()
    kill(training, signal.SIGTERM)
    end = trial.ended(training)
    assert (end.code, time.monotonic() - asked < 10) == (143, True), end.stderr

    training = trial.start(faults=AHEAD)
    worker_of(training)
    kill(training)
    assert trial.ended(training).code == -signal.SIGKILL
    trial.assert_ends_as_without_faults()
