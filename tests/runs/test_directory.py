"""Run directories: how they are made and found again, and that one process writes at a time."""

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnet_builder.errors import BusyError, StorageError, UsageError
from resnet_builder.runs import lock
from resnet_builder.runs.directory import RunDirectory
from tests.runs.faults import Disk, names

HOLDING = """
import sys
from pathlib import Path
from resnet_builder.runs.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def start_holder(run: RunDirectory) -> subprocess.Popen[str]:
    """Start a process that holds a run until it is told to go on, or killed."""
    command = [sys.executable, "-c", HOLDING, str(run.path)]
    pipe = subprocess.PIPE
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


@pytest.mark.parametrize("what", ["file", "directory", "run"])
def test_existing_path_is_never_used_again(what: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    mine = {"file": path, "directory": path / "notes.txt", "run": path / "spec.yaml"}[what]
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="run exists: choose another, or go on with it by"):
        RunDirectory.create(path)
    assert mine.read_text() == "mine"
    assert what == "file" or list(path.iterdir()) == [mine]


def test_runs_are_numbered_from_one_above_the_largest_of_their_name(tmp_path: Path) -> None:
    for name in ("a.b-007", "a.b-1000", "a.b-x", "axb-2000", "a.b-c-3000", "a.b-12"):
        (tmp_path / name).mkdir()
    assert RunDirectory.create_numbered(tmp_path, "a.b").path.name == "a.b-1001"


def test_numbers_are_never_shared(tmp_path: Path) -> None:
    barrier = threading.Barrier(20)

    def create(_: int) -> str:
        barrier.wait()
        return RunDirectory.create_numbered(tmp_path / "runs", "run").path.name

    with ThreadPoolExecutor(20) as pool:
        made = sorted(pool.map(create, range(20)))
    assert made == [f"run-{number:03d}" for number in range(1, 21)]


def test_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for create in (RunDirectory.create, RunDirectory.open_or_create):
        with pytest.raises(StorageError, match="cannot make"):
            create(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="cannot make a run in"):
        RunDirectory.create_numbered(tmp_path / "file", "run")


def test_spec_makes_a_directory_a_run_and_its_result_finishes_it(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "run"
    with pytest.raises(UsageError, match="is no run: there is no such directory"):
        RunDirectory.open(path)
    run = RunDirectory.create(path)
    with pytest.raises(UsageError, match=r"is no run: it has no spec\.yaml"):
        RunDirectory.open(path)
    run.publish("name: ä\n")
    assert run.spec.read_text(encoding="utf-8") == "name: ä\n"
    assert RunDirectory.open(path) == RunDirectory.open_or_create(path) == run
    with pytest.raises(UsageError, match=f"no spec.yaml; a run in it is {re.escape(str(path))}"):
        RunDirectory.open(path.parent)
    assert not run.is_finished
    run.result.write_text("{}")
    assert run.is_finished


def test_interrupted_set_up_is_used_again(tmp_path: Path) -> None:
    run = RunDirectory.open_or_create(tmp_path / "run")
    with run.locked():
        (run.path / ".tmp-0123").write_text("half")
        (run.checkpoints / ".tmp-0123").write_text("half")
        for path in (run.env, run.data, run.log):
            path.write_text("")
        assert RunDirectory.open_or_create(run.path) == run
    assert not run.is_published


@pytest.mark.parametrize(
    "name", ["notes.txt", "best.safetensors", "result.json", "checkpoints/step-1.safetensors"]
)
def test_directory_with_other_files_is_not_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match="is no run, and something is there already"):
        RunDirectory.open_or_create(tmp_path / "run")


def test_second_process_is_told_who_holds_the_run(run: RunDirectory) -> None:
    with start_holder(run) as holder:
        for attempt in (run.locked().__enter__, lambda: RunDirectory.create(run.path)):
            with pytest.raises(BusyError) as error:
                attempt()
            assert str(error.value).startswith(
                f"{run.path} is in use by process {holder.pid} on {socket.gethostname()}, since 20"
            )
            assert error.value.exit_code == 8
        holder.communicate("\n")
    told: list[str] = []
    with run.locked(warn=told.append):
        assert run.is_locked
    assert told == []
    assert not run.is_locked


@pytest.mark.skipif(os.name == "nt", reason="processes cannot be killed like this there")
def test_lock_of_a_killed_process_is_taken_over_with_a_note(run: RunDirectory) -> None:
    with start_holder(run) as holder:
        holder.kill()
        holder.wait()
    told: list[str] = []
    with run.locked(warn=told.append):
        pass
    assert len(told) == 1
    assert told[0].startswith(f"taking over from process {holder.pid} on ")


@pytest.mark.parametrize("text", [b"", b"not json", b'{"pid": 1}', b"\xff" * 5000])
def test_name_that_cannot_be_read_neither_blocks_nor_hides_the_holder(
    text: bytes, run: RunDirectory
) -> None:
    name = run.path / "run.lock.json"
    name.write_bytes(text)
    with run.locked():
        name.write_bytes(text)
        with pytest.raises(BusyError, match="in use by another process"), run.locked():
            pytest.fail("two hold it")


def test_directory_that_is_about_to_be_locked_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 20.0)
    run = RunDirectory.create(tmp_path / "run")
    done = threading.Event()

    def lock_later() -> None:
        done.wait(0.05)
        with run.locked():
            done.wait()

    with ThreadPoolExecutor() as pool:
        holder = pool.submit(lock_later)
        try:
            with pytest.raises(BusyError):
                RunDirectory.create(run.path)
        finally:
            done.set()
            holder.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_child_does_not_keep_the_lock_of_a_dead_parent(run: RunDirectory) -> None:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        parent = os.fork()
        if parent == 0:
            with run.locked():
                child = os.fork()
                if child == 0:
                    os.close(writing)
                    os.read(reading, 1)  # until the test is over
                os._exit(0)
    os.close(reading)
    os.waitpid(parent, 0)
    with run.locked():
        pass
    os.close(writing)


def test_temporary_files_are_removed_under_the_lock_only(run: RunDirectory) -> None:
    halves = [directory / ".tmp-0123" for directory in (run.path, run.checkpoints)]
    with run.locked():
        for half in halves:
            half.write_bytes(b"being written")
        with pytest.raises(BusyError), run.locked():
            pytest.fail("two hold it")
        assert all(half.exists() for half in halves)
    with run.locked():
        assert names(run.path) == ["checkpoints", "run.lock", "run.lock.json", "spec.yaml"]
        assert names(run.checkpoints) == []


def test_read_only_directory_is_an_error_before_any_work(run: RunDirectory, disk: Disk) -> None:
    disk.failing, disk.error = "open", OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(StorageError, match="cannot write in"), run.locked():
        pytest.fail("it was locked")
    assert not run.is_locked
