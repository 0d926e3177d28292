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
from resnet_builder.training.provenance import check_data_unchanged
from resnet_builder.training.session import Session, open_session
from tests.cli.experiments import write_tiny
from tests.training.runs import resume_run, start_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    wrong = tiny(folder, "data.dataset={type: image_folder, path: nowhere}")
    with pytest.raises(DataError):
        way(wrong, folder / "run", data_dir=folder)
    assert resume_run(tiny(folder), folder / "run").steps == 4


def test_stop_before_the_first_step_leaves_a_run_that_resumes(folder: Path) -> None:
    polls = iter([False] * 3)
    with pytest.raises(Stopped):
        resume_run(tiny(folder), folder / "run", should_stop=lambda: next(polls, True))
    assert resume_run(tiny(folder), folder / "run").steps == 4


def test_images_of_a_run_are_recorded_and_each_change_is_named(folder: Path) -> None:
    start_run(tiny(folder), folder / "run")
    run = RunDirectory(folder / "run")
    record = DataRecord.read(run.data)
    assert record.images == {"train": 128, "val": 32, "test": 40}
    assert (len(record.classes), len(set(record.validation))) == (4, 32)
    assert max(record.validation) < 160

    fewer = load_data(tiny(folder, "data.validation=16").spec)
    with pytest.raises(DataError, match=r"train: 128 images, now 144\n  val: 32 images, now 16"):
        check_data_unchanged(run, fewer)
    check_data_unchanged(run, fewer, allow_spec_change=True)
    assert DataRecord.read(run.data).images["val"] == 16

    changed = load_data(tiny(folder, "data.dataset.seed=1", "data.validation=16").spec)
    with pytest.raises(DataError, match="as many as before, but not the same"):
        check_data_unchanged(run, changed, allow_spec_change=True)


def test_run_whose_own_spec_was_broken_is_refused_where_it_is(folder: Path) -> None:
    start_run(tiny(folder), folder / "run")
    run = RunDirectory(folder / "run")
    run.result.unlink()
    run.spec.write_text(run.spec.read_text().replace("eps: 1.0e-05", "eps: 1.0e0e-05"))
    with pytest.raises(SpecError) as raised:
        resume_run(tiny(folder), folder / "run")
    [problem] = raised.value.errors
    assert (problem.code, problem.path) == ("wrong-type", "model.norm.eps")
    assert problem.file == str(run.spec)


def test_early_stop_needs_validation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are validation images is known of some datasets only once they are read."""

    def load(*arguments: Any, **options: Any) -> DataSplits:
        return replace(load_data(*arguments, **options), validation=None)

    monkeypatch.setattr("resnet_builder.training.session.load_data", load)
    with pytest.raises(SpecError, match=r"train\.early_stop: `early_stop` has no effect without"):
        start_run(tiny(folder, "train.early_stop={patience: 1}"))
    assert not Path("runs").exists()
