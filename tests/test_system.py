"""The operating system: regular files, and limits from files that stand in for Linux's."""

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from resnet_builder import system
from resnet_builder.errors import StorageError

MIB = 2**20
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other files and rights")


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


@POSIX
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


@POSIX
@pytest.mark.parametrize("size", [-1, 10])
def test_regular_file_that_makes_its_reader_wait_is_refused(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``/proc/kmsg`` does; a FIFO that is taken for a regular file stands in for it."""
    os.mkfifo(tmp_path / "kmsg")
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: True)
    writer = os.open(tmp_path / "kmsg", os.O_RDWR)
    with (
        system.open_regular(tmp_path / "kmsg") as file,
        pytest.raises(OSError, match="it makes its reader wait, as a FIFO does"),
    ):
        file.read(size)
    os.close(writer)


@pytest.fixture
def umask_000() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@POSIX
@pytest.mark.usefixtures("umask_000")
def test_folder_for_code_is_made_for_the_user_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = tmp_path / ".cache" / "kernels"
    assert system.code_cache(wanted) == wanted
    assert [stat.S_IMODE(each.stat().st_mode) for each in (wanted.parent, wanted)] == 2 * [0o700]
    assert not caplog.records


@POSIX
@pytest.mark.parametrize(
    "case",
    [
        "others can write it",
        "others can write what leads to it",
        "others can write a file in it",
        "another's",
        "in another's home",
        "a link to another's",
        "made first by another in a sticky folder",
    ],
)
def test_folder_that_others_can_write_is_no_place_for_code(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "another" in case and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    top = tmp_path / "top"
    folder = real = top / "kernels"
    folder.mkdir(parents=True)
    if case == "others can write it":
        folder.chmod(0o777)
    elif case == "others can write what leads to it":
        top.chmod(0o777)
    elif case == "others can write a file in it":
        (folder / "made under umask 000").touch()
        (folder / "made under umask 000").chmod(0o666)
    elif case == "another's":
        os.chown(folder, 12345, 12345)
    elif case == "in another's home":
        os.chown(top, 12345, 12345)
    elif case == "a link to another's":
        os.chown(folder, 12345, 12345)
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    else:
        top.chmod(0o1777)
        os.chown(folder, 12345, 12345)
    found = system.code_cache(folder)
    assert not found.is_relative_to(tmp_path.resolve())
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    (record,) = caplog.records
    assert record.getMessage().startswith("compiled code is kept for this process only: ")
    assert str(real.parent) in record.getMessage()


@POSIX
def test_no_code_is_kept_where_the_temporary_folder_is_everybody_s_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        StorageError, match=r"no safe place for compiled code: .*: others can write"
    ):
        system.code_cache(tmp_path / "kernels")


@POSIX
@pytest.mark.parametrize("case", ["in a sticky folder", "readable by all", "a link to one's own"])
def test_folder_that_only_the_user_can_write_is_a_place_for_code(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "top" / "kernels"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    given = folder
    if case == "in a sticky folder":
        folder.parent.chmod(0o1777)
    elif case == "a link to one's own":
        given = tmp_path / "link"
        given.symlink_to(folder)
    assert system.code_cache(given) == folder
    assert not caplog.records


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="XDG_CACHE_HOME is for others")
@pytest.mark.parametrize(
    ("home", "xdg", "expected"),
    [
        ("/home/me", None, "/home/me/.cache/resnet-builder"),
        ("/home/me", "/var/cache/me", "/var/cache/me/resnet-builder"),
        ("/home/me", "relative", "/home/me/.cache/resnet-builder"),
        ("/home/me", "", "/home/me/.cache/resnet-builder"),
        ("relative", None, None),
        (None, None, None),
    ],
)
def test_cache_is_the_user_s_or_a_temporary_folder(
    home: str | None,
    xdg: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    if home is None:
        monkeypatch.setattr(os, "getuid", lambda: 12345)  # who has no entry in the password file
    system.temporary_cache.cache_clear()
    found = system.cache_dir()
    assert system.cache_dir() == found
    if expected is not None:
        assert found == Path(expected)
        assert not caplog.records
    else:
        assert stat.S_IMODE(found.stat().st_mode) == 0o700
        (record,) = caplog.records
        assert record.getMessage().endswith("set HOME or XDG_CACHE_HOME")


@pytest.mark.parametrize("before", [None, "", "1"])
def test_processes_start_without_the_current_folder_on_their_path(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    path = os.pathsep.join(["", ".", *os.environ["PATH"].split(os.pathsep), "bin"])
    monkeypatch.setenv("PATH", path)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    with system.safe_path():
        assert all(map(os.path.isabs, os.environ["PATH"].split(os.pathsep)))
        subprocess.run([sys.executable, "-c", "import json"], cwd=tmp_path, check=True)
    assert os.environ.get("PYTHONSAFEPATH") == before
    assert os.environ["PATH"] == path


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
