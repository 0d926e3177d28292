"""A run around its training."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.builder import read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.errors import BusyError, DataError, SpecError, Stopped, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.spec.schema import Spec
from resnet_builder.training.own_data import check_data_unchanged
from resnet_builder.training.session import Session
from tests.cli.experiments import write_tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(folder: Path, *overrides: str) -> Spec:
    return read_spec(write_tiny(folder), overrides=["train.epochs=1", *overrides])


def test_session_trains_from_python(folder: Path) -> None:
    opened: list[RunDirectory] = []
    record = Session(tiny(folder), opened=opened.append).begin()
    [run] = opened
    assert run.path == Path("runs/tiny-001")
    assert record == ResultRecord.read(run.result)
    again: list[str] = []
    assert Session(tiny(folder), say=again.append).go_on(run.path) == record
    assert again == ["runs/tiny-001 is already complete"]


def test_run_is_locked_while_it_is_open(folder: Path) -> None:
    def refuse(run: RunDirectory) -> None:
        with pytest.raises(BusyError), run.locked():
            pass

    Session(tiny(folder), opened=refuse).begin(folder / "run")


def test_existing_directory_is_refused_before_data_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("resnet_builder.training.session.load_data", fail)
    (folder / "run").mkdir()
    with pytest.raises(UsageError, match="exists"):
        Session(tiny(folder)).begin(folder / "run")


@pytest.mark.parametrize("way", ["begin", "go_on"])
def test_directory_whose_set_up_failed_can_be_used_again(way: str, folder: Path) -> None:
    wrong = Session(
        tiny(folder, "data.dataset={type: image_folder, path: nowhere}"), data_dir=folder
    )
    with pytest.raises(DataError):
        getattr(wrong, way)(folder / "run")
    record = Session(tiny(folder)).go_on(folder / "run")
    assert record.steps == 4


def test_stop_before_the_first_step_leaves_a_run_to_go_on_with(folder: Path) -> None:
    polls = iter([False] * 3)
    spec = tiny(folder)
    with pytest.raises(Stopped):
        Session(spec, stop=lambda: next(polls, True)).go_on(folder / "run")
    assert Session(spec).go_on(folder / "run").steps == 4


def test_data_are_described(folder: Path) -> None:
    Session(tiny(folder)).begin(folder / "run")
    record = DataRecord.read(RunDirectory(folder / "run").data)
    assert record.images == {"train": 128, "val": 32, "test": 40}
    assert len(record.classes) == 4
    assert len(set(record.validation)) == 32
    assert max(record.validation) < 160


def test_each_difference_of_data_is_named(folder: Path) -> None:
    Session(tiny(folder)).begin(folder / "run")
    run = RunDirectory(folder / "run")
    other = load_data(tiny(folder, "data.validation=16"))
    with pytest.raises(DataError, match=r"train: 128 images, now 144\n  val: 32 images, now 16"):
        check_data_unchanged(run, other)
    check_data_unchanged(run, other, allow_spec_change=True)
    assert DataRecord.read(run.data).images["val"] == 16
    changed = load_data(tiny(folder, "data.dataset.seed=1", "data.validation=16"))
    with pytest.raises(DataError, match="as many as before, but not the same"):
        check_data_unchanged(run, changed, allow_spec_change=True)


def test_run_whose_own_spec_was_broken_is_refused_where_it_is(folder: Path) -> None:
    Session(tiny(folder)).begin(folder / "run")
    run = RunDirectory(folder / "run")
    run.result.unlink()
    run.spec.write_text(run.spec.read_text().replace("eps: 1.0e-05", "eps: 1.0e0e-05"))
    with pytest.raises(SpecError) as raised:
        Session(tiny(folder)).go_on(folder / "run")
    [problem] = raised.value.errors
    assert (problem.code, problem.path) == ("wrong-type", "model.norm.eps")
    assert problem.file == str(run.spec)
