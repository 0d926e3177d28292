"""The operating system: regular files, and limits from files that stand in for Linux's."""

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from resnet_builder import system

MIB = 2**20


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands in for ``/``, on a machine that has 100 MiB available."""
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "CGROUP", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", f"MemFree: 7 kB\nMemAvailable:   {100 * 1024} kB\n")
    write(tmp_path / "proc" / "self" / "cgroup", "0::/users/me")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


@pytest.mark.parametrize(
    ("inner", "outer", "free"),
    [
        ((40, 15), ("max", 60), 40 - 15 + 5),
        (("max", 15), (60, 55), 60 - 55 + 5),
        (("max", 15), ("max", 60), 100),
        (None, None, 100),
    ],
    ids=["inner-group", "outer-group", "no-limit", "no-groups"],
)
def test_free_memory_is_the_least_that_the_machine_and_the_groups_leave(
    inner: tuple[object, int] | None, outer: tuple[object, int] | None, free: int, root: Path
) -> None:
    for group, name in ((inner, "users/me"), (outer, "users")):
        if group is not None:
            folder, (limit, used) = root / "cgroup" / name, group
            write(folder / "memory.max", limit * MIB if isinstance(limit, int) else limit)
            write(folder / "memory.current", used * MIB)
            write(folder / "memory.stat", f"anon 1\ninactive_file {5 * MIB}\nactive_file 3")
    assert system.free_memory() == free * MIB


def test_free_memory_is_unknown_on_other_systems(root: Path) -> None:
    (root / "proc" / "meminfo").unlink()
    assert system.free_memory() is None


def test_free_disk_is_known_before_a_directory_is_made(tmp_path: Path) -> None:
    free = system.free_disk(tmp_path)
    assert free > 0
    assert system.free_disk(tmp_path / "runs" / "x") == pytest.approx(free, rel=0.1)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes differ"), False),
        (OSError(errno.ENOMEM, "out of memory"), False),
    ],
    ids=["python", "cuda", "cpu", "mps", "c++", "other", "system"],
)
def test_errors_of_allocators_are_told_from_others(error: Exception, is_one: bool) -> None:
    assert system.is_out_of_memory(error) is is_one


def test_regular_files_and_links_to_them_are_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\r\nb\x1a")
    (tmp_path / "link").symlink_to(file)
    for path in (file, str(file), tmp_path / "link"):
        with system.open_regular(path) as opened:
            assert opened.read() == b"a\r\nb\x1a"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other kinds of files")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a FIFO", "it is a FIFO, not a regular file"),
        ("a link to a FIFO", "it is a FIFO, not a regular file"),
        ("a socket", "it is a socket, not a regular file"),
        ("a device", "it is a device, not a regular file"),
        ("a directory", "it is a directory, not a regular file"),
        ("nothing", "No such file or directory"),
        ("a NUL", "it is not the name of a file"),
    ],
)
def test_other_files_are_refused_at_once(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = "/dev/zero" if kind == "a device" else "a\0b" if kind == "a NUL" else "file"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a link to a FIFO":
        os.mkfifo("fifo")
        os.symlink("fifo", path)
    elif kind == "a directory":
        os.mkdir(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
    with pytest.raises(OSError, match=message) as error:
        system.open_regular(path)
    assert error.value.strerror == message
    assert error.value.filename == path
    assert isinstance(error.value, IsADirectoryError) == (kind == "a directory")


def test_cpu_time_is_counted_on_the_cores_of_this_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    cores = (
        "cpu  9 9 9 9 9 9 9 9 0 0",
        "cpu0 100 20 30 7000 800 4 6 90 0 0",
        "cpu1 9 9 9 9 9 9 9 9 0 0",
        "cpu2 200 0 40 7000 800 0 0 0 0 0",
        "intr 1 2 3",
    )
    write(root / "proc" / "stat", "\n".join(cores))
    found = system.cpu_seconds()
    assert found is not None
    assert found[0] == pytest.approx((100 + 20 + 30 + 4 + 6 + 200 + 40) / 100)


def test_cpu_time_is_unknown_on_other_systems(root: Path) -> None:
    assert system.cpu_seconds() is None
