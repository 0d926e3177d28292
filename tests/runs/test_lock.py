"""One process at a time in a run directory."""

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.errors import BusyError, StorageError, UsageError
from resnet_builder.runs import kernel_lock as kernel_lock_module
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.kernel_lock import is_locked, kernel_lock
from resnet_builder.runs.lock import DEAD_AFTER, Owner, locked, refuse_locked
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


def left_behind(run: RunDirectory, *, seconds_ago: float = 0.0, **changes: object) -> Owner:
    """Leave a lock behind that nobody holds any more, as a process that was killed does."""
    owner = Owner.present().model_copy(update=changes)
    run.lock.write_text(owner.model_dump_json())
    touched = run.lock.stat().st_mtime - seconds_ago
    os.utime(run.lock, (touched, touched))
    return owner


ELSEWHERE: dict[str, Any] = {"host": "elsewhere", "boot": "another"}


def test_row74_lock_whose_process_number_is_another_ones_now_is_taken_over(
    run: RunDirectory,
) -> None:
    owner = left_behind(run, started="2020-01-01T00:00:00+00:00")
    assert owner.pid == os.getpid()
    told, warn = heard()
    with locked(run, warn=warn):
        assert told == [f"taking over from {owner}, which ended without freeing the run"]


def test_row74_lock_of_another_host_that_lives_is_not_taken(run: RunDirectory) -> None:
    """As on a network file system that keeps its locks to each host: the kernel says it is free."""
    owner = left_behind(run, seconds_ago=30, **ELSEWHERE)
    before = run.lock.read_bytes()
    with pytest.raises(BusyError) as error, locked(run):
        pytest.fail("two hold it")
    assert str(error.value) == (
        f"{run.path} was in use 30 s ago by {owner}; if it is gone, "
        "try again in a minute, or add --force-unlock"
    )
    assert run.lock.read_bytes() == before
    assert names(run.path) == ["checkpoints", "run.lock", "spec.yaml"]


def test_row74_lock_of_another_host_is_taken_by_force(run: RunDirectory) -> None:
    owner = left_behind(run, **ELSEWHERE)
    told, warn = heard()
    with locked(run, force=True, warn=warn):
        assert told == [f"taking over from {owner}, by force"]
        assert is_locked(run.lock)


def test_row74_lock_of_another_host_that_is_silent_is_taken_over(run: RunDirectory) -> None:
    owner = left_behind(run, seconds_ago=DEAD_AFTER + 1, **ELSEWHERE)
    told, warn = heard()
    with locked(run, warn=warn):
        assert told == [f"taking over from {owner}, which ended without freeing the run"]


@pytest.mark.parametrize("boot", [None, "this one"], ids=["row74-unknown", "row74-container"])
def test_host_is_known_by_its_kernel_or_else_by_its_name(
    boot: str | None, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers on one machine have names of their own."""
    boot_id = tmp_path / "boot_id"
    monkeypatch.setattr("resnet_builder.runs.lock._BOOT_ID", boot_id)
    if boot is not None:
        boot_id.write_text(f"{boot}\n")
    renamed: dict[str, Any] = {} if boot is None else {"host": "container"}
    left_behind(run, boot=boot, **renamed)
    with locked(run):
        assert is_locked(run.lock)
    left_behind(run, boot=None, host="elsewhere")
    with pytest.raises(BusyError), locked(run):
        pytest.fail("two hold it")


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed there")
def test_row74_lock_that_is_held_is_taken_by_force_only(run: RunDirectory) -> None:
    with start_holder(run) as holder:
        with pytest.raises(BusyError), locked(run):
            pytest.fail("two hold it")
        told, warn = heard()
        with locked(run, force=True, warn=warn):
            assert told[0].startswith(f"{run.path} is in use by process {holder.pid} on ")
            assert told[0].endswith("; taking over by force")
            holder.communicate("\n")
            assert holder.returncode == 0
            assert is_locked(run.lock)
            with pytest.raises(BusyError, match=f"by process {os.getpid()} "):
                refuse_locked(run.lock)


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed there")
def test_lock_on_a_file_that_lost_its_name_is_no_lock(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernel_lock_module._lock_soon
    taken: list[int] = []

    def lose_the_name_once(descriptor: int) -> bool:
        if not taken:
            run.lock.unlink()
        taken.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(kernel_lock_module, "_lock_soon", lose_the_name_once)
    with locked(run):
        assert len(taken) == 2
        assert is_locked(run.lock)


def test_row74_holder_gives_signs_of_life(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_builder.runs.lock.TOUCHED_EVERY", 0.01)
    before = threading.active_count()
    with locked(run):
        os.utime(run.lock, (0, 0))
        deadline = time.monotonic() + 20
        while run.lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.lock.stat().st_mtime > 0
    assert threading.active_count() == before


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


def test_row73_holder_that_is_just_writing_its_name_is_named(run: RunDirectory) -> None:
    with kernel_lock(run.lock) as descriptor:
        name = Owner.present().model_dump_json().encode()
        writing = threading.Timer(0.05, os.write, (descriptor, name))
        writing.start()
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on "), locked(run):
            pytest.fail("two hold it")
        writing.join()


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
