"""Runs to publish, and a Hub to publish them to."""

from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny
from tests.hub_server import hub

__all__ = ["hub"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("published")
    result = call("train", write_tiny(folder), "--out", folder / "run", "--set", "run.threads=1")
    assert result.exit_code == 0, result.stderr
    return folder / "run"
