"""One process at a time in a run directory."""

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from resnet_builder.errors import BusyError, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.kernel_lock import is_locked, kernel_lock
from resnet_builder.runs.lock import locked, refuse_locked
from tests.runs.faults import Disk, heard, names
from tests.runs.racing import race

HOLDER = """
import sys
from pathlib import Path
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.lock import locked
with locked(RunDirectory(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def start_holder(run: RunDirectory) -> subprocess.Popen[str]:
    """Start a process that holds a run until it is told to go on, or killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_row73_second_process_is_told_who_holds_the_run(run: RunDirectory) -> None:
    with start_holder(run) as holder:
        with pytest.raises(BusyError) as error, locked(run):
            pytest.fail("two hold it")
        assert str(error.value).startswith(
            f"{run.path} is in use by process {holder.pid} on {socket.gethostname()}, since 20"
        )
        assert error.value.exit_code == 8
        holder.communicate("\n")
    told, warn = heard()
    with locked(run, warn=warn):
        assert told == []


@pytest.mark.skipif(os.name == "nt", reason="processes cannot be killed like this there")
def test_row74_lock_of_a_killed_process_is_taken_over_with_a_note(run: RunDirectory) -> None:
    with start_holder(run) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    told, warn = heard()
    with locked(run, warn=warn):
        assert len(told) == 1
        assert told[0].startswith(f"taking over from process {holder.pid} on ")


def test_row73_of_two_at_the_same_instant_one_wins(tmp_path: Path) -> None:
    rounds, context = 50, multiprocessing.get_context("spawn")
    start, end = context.Barrier(2), context.Barrier(2)
    with context.Manager() as manager:
        lists = [manager.list() for _ in range(2)]
        racers = [
            context.Process(target=race, args=(tmp_path, rounds, start, end, outcomes))
            for outcomes in lists
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        outcomes = [list(each) for each in lists]
    assert [len(each) for each in outcomes] == [rounds, rounds]
    for turn in range(rounds):
        lost, won = sorted((each[turn] for each in outcomes), key=lambda outcome: outcome == "won")
        assert won == "won"
        assert lost.startswith(f"{tmp_path / f'run-{turn}'} is in use by ")


def test_lock_is_free_after_an_error(run: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), locked(run):
        raise ZeroDivisionError
    told, warn = heard()
    with locked(run, warn=warn):
        assert is_locked(run.lock)
    assert told == []
    assert not is_locked(run.lock)
    refuse_locked(run.lock)


def test_file_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "run.lock")


@pytest.mark.parametrize("text", [b"", b"not json", b'{"pid": 1}', b"\xff" * 5000])
def test_lock_file_that_says_nothing_is_held_by_another_process(
    text: bytes, run: RunDirectory
) -> None:
    with kernel_lock(run.lock) as descriptor:
        os.write(descriptor, text)
        with pytest.raises(BusyError, match="in use by another process"), locked(run):
            pytest.fail("two hold it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_row74_child_does_not_keep_the_lock_of_a_dead_parent(run: RunDirectory) -> None:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        parent = os.fork()
        if parent == 0:
            with locked(run):
                child = os.fork()
                if child == 0:
                    os.close(writing)
                    os.read(reading, 1)  # until the test is over
                os._exit(0)
    os.close(reading)
    os.waitpid(parent, 0)
    with locked(run):
        pass
    os.close(writing)


def test_row67_what_a_killed_process_was_writing_is_removed(run: RunDirectory) -> None:
    for directory in (run.path, run.checkpoints):
        (directory / ".tmp-0123").write_bytes(b"half")
    with locked(run):
        assert names(run.checkpoints) == []
        assert names(run.path) == ["checkpoints", "run.lock", "spec.yaml"]


def test_row67_nothing_is_removed_without_the_lock(run: RunDirectory) -> None:
    with kernel_lock(run.lock):
        (run.path / ".tmp-0123").write_bytes(b"being written")
        with pytest.raises(BusyError), locked(run):
            pytest.fail("two hold it")
        assert (run.path / ".tmp-0123").exists()


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege there")
def test_row35_checkpoints_elsewhere_are_refused(run: RunDirectory, tmp_path: Path) -> None:
    run.checkpoints.rmdir()
    (tmp_path / "elsewhere").mkdir()
    run.checkpoints.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ".tmp-canary").write_bytes(b"")
    with pytest.raises(UsageError, match="checkpoints is a link"), locked(run):
        pytest.fail("it was locked")
    assert names(tmp_path / "elsewhere") == [".tmp-canary"]


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege there")
def test_row35_lock_file_elsewhere_is_not_written(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"canary")
    run.lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot lock"), locked(run):
        pytest.fail("it was locked")
    assert (tmp_path / "elsewhere").read_bytes() == b"canary"


def test_row59_read_only_directory_is_an_error_before_any_work(
    run: RunDirectory, disk: Disk
) -> None:
    disk.failing, disk.error = "open", OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(StorageError, match="cannot write in"), locked(run):
        pytest.fail("it was locked")
    assert not is_locked(run.lock)
