"""Fixtures of the run directory's tests."""

from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from tests.runs.faults import Disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return the disk that everything in the test is written to."""
    return Disk(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Return a run that is set up."""
    run = RunDirectory.create(tmp_path / "run")
    run.checkpoints.mkdir()
    run.publish("name: tiny\n")
    return run
