"""Fixtures and helpers that many tests of the command line share."""

from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the experiment once; tests only read the run."""
    folder = tmp_path_factory.mktemp("finished")
    result = call("train", write_tiny(folder), "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the experiment once more, with another seed."""
    folder = tmp_path_factory.mktemp("other")
    result = call("train", write_tiny(folder), "--out", folder / "run", "--set", "train.seed=1")
    assert result.exit_code == 0, result.stderr
    return folder / "run"
