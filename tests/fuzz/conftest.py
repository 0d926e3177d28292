"""What the fuzz tests of files share: a run, which they only copy from."""

from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny experiment to its end."""
    folder = tmp_path_factory.mktemp("sound")
    result = call("train", write_tiny(folder), "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run"
