"""Sessions: a new run directory, or one to resume, with its lock, images and network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.builder import load_experiment
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.errors import BusyError, DataError, SpecError, Stopped, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.training.session import Session, open_session
from tests.cli.experiments import write_tiny
from tests.training.runs import resume_run, start_run


def tiny(folder: Path, *overrides: str) -> Experiment:
    return load_experiment(write_tiny(folder), overrides=["train.epochs=1", *overrides])


def test_run_is_trained_from_python_and_resuming_it_returns_its_result(folder: Path) -> None:
    record = start_run(tiny(folder))
    run = RunDirectory(Path("runs/tiny-001"))
    assert record == ResultRecord.read(run.result)
    assert resume_run(tiny(folder), run.path) == record
    start_run(tiny(folder))
    assert RunDirectory(Path("runs/tiny-002")).is_finished


def test_run_is_locked_while_its_session_is_open(folder: Path) -> None:
    with open_session(tiny(folder), folder / "run") as session:
        assert isinstance(session, Session)
        assert session.run == RunDirectory(folder / "run")
        with pytest.raises(BusyError), session.run.locked():
            pass
    with session.run.locked():
        pass


def test_existing_directory_is_refused_before_data_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("resnet_builder.training.session.load_data", fail)
    (folder / "run").mkdir()
    with pytest.raises(UsageError, match="exists"):
        start_run(tiny(folder), folder / "run")


@pytest.mark.parametrize("way", [start_run, resume_run])
def test_directory_whose_set_up_failed_can_be_used_again(way: Any, folder: Path) -> None:
    dataset = "data.dataset={type: image_folder, path: nowhere}"
    wrong = tiny(folder, dataset, "model.num_classes=4")
    with pytest.raises(DataError):
        way(wrong, folder / "run", data_dir=folder)
    assert not (folder / "run").exists()
    assert resume_run(tiny(folder), folder / "run").steps == 4


@pytest.mark.parametrize("way", [start_run, resume_run])
@pytest.mark.parametrize("error", [UsageError("no such optimizer"), KeyboardInterrupt()])
def test_directory_in_which_no_training_began_is_removed(
    error: BaseException, way: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("resnet_builder.training.trainer.TrainStep", refuse)
    with pytest.raises(type(error)):
        way(tiny(folder), folder / "run")
    assert not (folder / "run").exists()


def test_stop_before_the_first_step_leaves_a_run_that_resumes(folder: Path) -> None:
    polls = iter([False] * 3)
    with pytest.raises(Stopped):
        resume_run(tiny(folder), folder / "run", should_stop=lambda: next(polls, True))
    assert resume_run(tiny(folder), folder / "run").steps == 4


def test_images_of_a_run_are_recorded(folder: Path) -> None:
    start_run(tiny(folder), folder / "run")
    record = DataRecord.read(RunDirectory(folder / "run").data)
    assert record.images == {"train": 128, "val": 32, "test": 40}
    assert (len(record.classes), len(set(record.validation))) == (4, 32)
    assert max(record.validation) < 160


def test_early_stop_needs_validation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are validation images is known of some datasets only once they are read."""

    def load(*arguments: Any, **options: Any) -> DataSplits:
        return replace(load_data(*arguments, **options), validation=None)

    monkeypatch.setattr("resnet_builder.training.session.load_data", load)
    with pytest.raises(SpecError, match=r"train\.early_stop: `early_stop` has no effect without"):
        start_run(tiny(folder, "train.early_stop={patience: 1}"))
    assert not Path("runs").exists()
