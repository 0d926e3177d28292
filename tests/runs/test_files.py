"""Files that are whole or absent, whatever the disk does."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from resnet_builder.errors import StorageError
from resnet_builder.runs.files import (
    POINTS,
    TEMPORARY,
    append_line,
    prepare_directory,
    truncate,
    write_atomically,
)
from tests.runs.faults import CALLS, Disk, names, without_repeats

needs_links = pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege there")


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_write_takes_its_steps_in_the_order_that_survives_power_loss(
    disk: Disk, tmp_path: Path
) -> None:
    write_atomically(tmp_path / "a", [b"one", b"two" * 1000])
    assert without_repeats(disk.events) == [
        *("open", "created", "write", "written", "fsync", "synced", "close", "closed"),
        *("verified", "replace", "replaced", "fsync directory", "published"),
    ]
    assert (tmp_path / "a").read_bytes() == b"one" + b"two" * 1000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_failing_write_leaves_the_old_file_and_nothing_else(
    call: str, number: int, disk: Disk, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    disk.failing, disk.error = call, error(number)
    with pytest.raises(StorageError, match=f"cannot write .*a: {os.strerror(number)}"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == (b"new" if call == "fsync directory" else b"old")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("point", [point for point in POINTS if point != "rotated"])
def test_interrupted_write_leaves_one_whole_file(point: str, disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    disk.failing, disk.error = point, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == (b"new" if point in {"replaced", "published"} else b"old")
    assert names(tmp_path) == ["a"]


def test_disk_that_writes_something_else_is_found_out(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    disk.flipped = True
    with pytest.raises(StorageError, match="reads back differently"):
        write_atomically(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_system_without_directory_sync_is_no_failure(
    number: int, disk: Disk, tmp_path: Path
) -> None:
    disk.failing, disk.error = "fsync directory", error(number)
    write_atomically(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"new"


@needs_links
def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"canary")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "a", [b"new"])
    assert (tmp_path / "elsewhere").read_bytes() == b"canary"
    assert not (tmp_path / "a").is_symlink()


@needs_links
def test_planted_temporary_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _bytes: "guessed")
    (tmp_path / "elsewhere").write_bytes(b"canary")
    (tmp_path / f"{TEMPORARY}guessed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="exists"):
        write_atomically(tmp_path / "a", [b"new"])
    assert (tmp_path / "elsewhere").read_bytes() == b"canary"


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be replaced there")
def test_reader_sees_old_or_new_never_half(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([letter]) * 20_000 for letter in b"abcd"]
    write_atomically(path, [contents[0]])
    done = threading.Event()

    def write() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            write_atomically(path, [contents[turn % 4]])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(1_000)}
        deadline = time.monotonic() + 60
        while len(seen) == 1 and time.monotonic() < deadline:  # the writer had no turn yet
            seen.add(path.read_bytes())
    finally:
        done.set()
        writer.join()
    assert seen <= set(contents)
    assert len(seen) > 1


def test_line_is_appended_or_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "zwei: ä")
    real = os.write
    room = iter([3])

    def write(descriptor: int, data: bytes) -> int:
        size = next(room, None)
        if size is None:
            raise error(errno.ENOSPC)
        return real(descriptor, data[:size])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match=r"cannot append to .*log: No space left"):
        append_line(tmp_path / "log", "another")
    assert (tmp_path / "log").read_bytes() == "one\nzwei: ä\n".encode()
    truncate(tmp_path / "log", 4)
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_only_temporaries_are_tidied_away(tmp_path: Path) -> None:
    for name in (f"{TEMPORARY}0123", "notes.txt", "step-9"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f"{TEMPORARY}directory").mkdir()
    prepare_directory(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY}directory", "notes.txt", "step-9"]
