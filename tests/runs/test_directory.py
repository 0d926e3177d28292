"""How a run directory begins and is found again."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnet_builder.errors import BusyError, StorageError, UsageError
from resnet_builder.runs import directory
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.lock import locked
from tests.runs.faults import Disk, names


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "b")
    assert run.path.is_dir()
    assert not run.is_published


@pytest.mark.parametrize("what", ["file", "directory", "run"])
def test_existing_path_is_never_used_again(what: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / ("spec.yaml" if what == "run" else "notes.txt")).write_text("mine")
    with pytest.raises(UsageError, match="run exists: choose another, or go on with it by"):
        RunDirectory.create(path)
    assert "mine" in (path.read_text() if what == "file" else next(path.iterdir()).read_text())


def test_row73_directory_in_use_is_busy(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    with locked(run), pytest.raises(BusyError, match=f"by process {os.getpid()} on "):
        RunDirectory.create(run.path)


def test_row73_directory_that_is_about_to_be_locked_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PATIENCE", 20.0)
    run = RunDirectory.create(tmp_path / "run")
    taken, asked = threading.Event(), threading.Event()

    def lock_later() -> None:
        asked.wait(0.05)
        with locked(run):
            taken.wait()

    with ThreadPoolExecutor() as pool:
        holder = pool.submit(lock_later)
        try:
            with pytest.raises(BusyError):
                RunDirectory.create(run.path)
        finally:
            taken.set()
            holder.result()


def test_runs_are_numbered_from_one(tmp_path: Path) -> None:
    runs = [RunDirectory.create_numbered(tmp_path / "runs", "resnet20") for _ in range(3)]
    assert [run.path.name for run in runs] == ["resnet20-001", "resnet20-002", "resnet20-003"]


def test_number_follows_the_largest_of_the_same_name(tmp_path: Path) -> None:
    for name in ("a.b-007", "a.b-1000", "a.b-x", "axb-2000", "a.b-c-3000", "a.b-12"):
        (tmp_path / name).mkdir()
    assert RunDirectory.create_numbered(tmp_path, "a.b").path.name == "a.b-1001"


def test_row73_numbers_are_never_shared(tmp_path: Path) -> None:
    barrier = threading.Barrier(20)

    def create(_: int) -> str:
        barrier.wait()
        return RunDirectory.create_numbered(tmp_path, "run").path.name

    with ThreadPoolExecutor(20) as pool:
        made = sorted(pool.map(create, range(20)))
    assert made == [f"run-{number:03d}" for number in range(1, 21)]


def test_directory_that_cannot_be_made_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for create in (RunDirectory.create, RunDirectory.open_or_create):
        with pytest.raises(StorageError, match="cannot make"):
            create(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="cannot make a run in"):
        RunDirectory.create_numbered(tmp_path / "file", "run")


def test_row71_directory_that_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run: it has no spec\.yaml"):
        RunDirectory.open(tmp_path)
    with pytest.raises(UsageError, match="is no run: there is no such directory"):
        RunDirectory.open(tmp_path / "missing")


def test_spec_makes_it_a_run_and_result_finishes_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.publish("name: ä\n")
    assert run.is_published
    assert not run.is_finished
    assert RunDirectory.open(run.path) == run
    assert run.spec.read_text(encoding="utf-8") == "name: ä\n"
    run.result.write_text("{}")
    assert run.is_finished


@pytest.mark.parametrize("point", ["created", "written", "closed", "verified"])
def test_interrupted_set_up_makes_no_run(point: str, disk: Disk, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    disk.failing = point
    with pytest.raises(StorageError):
        run.publish("name: tiny\n")
    assert not run.is_published
    assert names(run.path) == []


def test_row71_interrupted_set_up_is_used_again(tmp_path: Path) -> None:
    run = RunDirectory.open_or_create(tmp_path / "run")
    with locked(run):
        (run.path / ".tmp-0123").write_text("half")
        (run.checkpoints / ".tmp-0123").write_text("half")
        for path in (run.env, run.data, run.log):
            path.write_text("")
    assert RunDirectory.open_or_create(run.path) == run
    assert not run.is_published


def test_run_is_found_again(run: RunDirectory) -> None:
    assert RunDirectory.open_or_create(run.path).is_published


@pytest.mark.parametrize(
    "name", ["notes.txt", "best.safetensors", "result.json", "checkpoints/step-1.safetensors"]
)
def test_directory_with_other_files_is_not_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match="is no run, and something is there already"):
        RunDirectory.open_or_create(tmp_path / "run")


def test_every_file_of_a_run_has_its_own_name(run: RunDirectory) -> None:
    paths = [
        value
        for name in dir(RunDirectory)
        if not name.startswith("_")
        and name != "path"
        and isinstance(value := getattr(run, name), Path)
    ]
    assert len(set(paths)) == len(paths) == 12
    assert {path.parent for path in paths} == {run.path}
