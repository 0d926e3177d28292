"""An experiment that was stopped, and its outcome when it is not."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from resnet_builder.builder import load_experiment
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from tests.cli.experiments import call
from tests.crash.experiments import outcome_of, train_line, write_experiment
from tests.training.runs import after, resume_run


@dataclass(frozen=True)
class Interrupted:
    """A copy of a run of 14 steps, saved every third, that was stopped after the tenth.

    Attributes:
        run: The copy.
        spec: Its experiment.
        expected: Outcome of a run that was not stopped.
    """

    run: RunDirectory
    spec: Path
    expected: dict[str, Any]

    def resume(self, *more: object) -> Result:
        """Resume it by the command line."""
        return call(*train_line(self.spec, self.run.path, *more))

    @property
    def newest(self) -> Path:
        """Its newest checkpoint, of step 10; those of step 9 and 6 are there too."""
        return self.run.checkpoints / "step-000000010.safetensors"


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Train it twice, once to step 10 and once to the end; tests copy it."""
    folder = tmp_path_factory.mktemp("stopped")
    path = write_experiment(folder, "plain", epochs=2, keep_checkpoints=3)
    spec = load_experiment(path)
    resume_run(spec, folder / "whole")
    with pytest.raises(Stopped):
        resume_run(spec, folder / "run", should_stop=after(11))
    found = Interrupted(RunDirectory(folder / "run"), path, outcome_of(folder / "whole"))
    assert found.newest.is_file()
    return found


@pytest.fixture
def interrupted(stopped: Interrupted, tmp_path: Path) -> Interrupted:
    """Return a copy of the run that was stopped."""
    shutil.copytree(stopped.run.path, tmp_path / "run")
    return Interrupted(RunDirectory(tmp_path / "run"), stopped.spec, stopped.expected)
