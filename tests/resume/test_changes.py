"""What has changed when a run is resumed: the same, or refused, or allowed by a flag and recorded.

A resume that is refused, or has nothing to do, changes no byte of the run directory.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import ResultRecord
from tests.cli.experiments import call
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.resume.runs import contents, resume, stopping_after


def changes_of(run: RunDirectory) -> dict[str, tuple[Any, Any, str]]:
    """Return what ``changes.jsonl`` says: value before and after, and kind, by place."""
    rows = [json.loads(line) for line in run.changes.read_text().splitlines()]
    return {row["path"]: (row.get("before"), row.get("after"), row["kind"]) for row in rows}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an experiment of two epochs, of seven steps each, to the end."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_experiment(folder, "plain", epochs=2, schedule={"type": "cosine"})
    assert call(*train_line(spec, folder / "run")).exit_code == 0
    return folder / "run"


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> RunDirectory:
    """Return a copy of the run that was trained to the end."""
    shutil.copytree(trained, tmp_path / "finished")
    return RunDirectory(tmp_path / "finished")


def test_finished_run_with_more_epochs_trains_on(finished: RunDirectory, tmp_path: Path) -> None:
    old = finished.result.read_bytes()
    longer = ("--set", "train.epochs=4")
    result = resume(finished, *longer)
    assert result.exit_code == 2
    assert "train.epochs: 2 in the run, 4 now\nadd --allow-spec-change" in result.stderr
    result = resume(finished, *longer, "--allow-spec-change")
    assert result.exit_code == 0, result.stderr
    assert "changed: train.epochs: 2 in the run, 4 now" in result.stderr
    assert (
        "training on from step 14 to 28, on the schedule of the recipe as it is now: the learning "
        "rate is 0.04"
    ) in result.stderr
    assert finished.earlier_result(14).read_bytes() == old
    assert ResultRecord.read(finished.result).steps == 28
    # The same line has nothing to do any more, and neither has the run's own.
    before = contents(finished)
    for line in ((), longer, (*longer, "--allow-spec-change")):
        result = resume(finished, *line)
        assert result.exit_code == 0, result.stderr
        assert "is already complete" in result.stderr
    assert contents(finished) == before


def test_finished_run_trains_on_from_its_last_weights_to_the_same_bits(
    trained: Path, tmp_path: Path
) -> None:
    """Stopped on the way or not, and as a run that had four epochs from the third on."""
    lines = ("--set", "train.epochs=4", "--allow-spec-change")
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "stopped")]
    for run in runs:
        shutil.copytree(trained, run.path)
    whole, stopped = runs
    assert resume(whole, *lines).exit_code == 0
    with stopping_after(5):
        assert resume(stopped, *lines).exit_code == 130
    assert not stopped.is_finished
    assert resume(stopped).exit_code == 0
    assert_same_outcome(stopped.path, outcome_of(whole.path))
