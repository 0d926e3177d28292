"""What the operating system tells, from files that stand in for Linux's."""

import errno
from pathlib import Path

import pytest
import torch

from resnet_builder import host

MIB = 2**20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that stands in for ``/``, on a machine that has 100 MiB available."""
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", f"MemFree: 7 kB\nMemAvailable:   {100 * 1024} kB\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


def limit_group(folder: Path, names: tuple[str, str, str], limit: object, used: int) -> None:
    """Make a control group that has read 5 MiB of files."""
    limit_name, used_name, cache_name = names
    write(folder / limit_name, limit)
    write(folder / used_name, used)
    write(folder / "memory.stat", f"anon 1\n{cache_name} {5 * MIB}\nactive_file 3")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_free_memory_is_what_the_machine_has_available(system: Path) -> None:
    assert host.free_memory() == 100 * MIB


def test_free_memory_is_what_the_innermost_group_leaves(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/users/me")
    limit_group(system / "cgroup" / "users" / "me", V2, 40 * MIB, 15 * MIB)
    limit_group(system / "cgroup" / "users", V2, "max", 60 * MIB)
    assert host.free_memory() == (40 - 15 + 5) * MIB


def test_free_memory_is_what_an_outer_group_leaves(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/users/me")
    limit_group(system / "cgroup" / "users" / "me", V2, "max", 15 * MIB)
    limit_group(system / "cgroup" / "users", V2, 60 * MIB, 55 * MIB)
    assert host.free_memory() == (60 - 55 + 5) * MIB


def test_free_memory_of_a_container_is_its_group_s_though_its_path_is_the_host_s(
    system: Path,
) -> None:
    write(system / "proc" / "self" / "cgroup", "3:cpu:/docker/7f\n2:memory,pids:/docker/7f")
    limit_group(system / "cgroup" / "memory", V1, 30 * MIB, 10 * MIB)
    assert host.free_memory() == (30 - 10 + 5) * MIB


def test_a_limit_that_is_none_bounds_nothing(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "2:memory:/")
    limit_group(system / "cgroup" / "memory", V1, 9223372036854771712, 10 * MIB)
    assert host.free_memory() == 100 * MIB


def test_free_memory_is_what_the_limit_of_addresses_leaves(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (64 * MIB, 64 * MIB))
    write(system / "proc" / "self" / "statm", f"{24 * MIB // resource.getpagesize()} 7 7 7 0 7 0")
    assert host.free_memory() == 40 * MIB


def test_free_memory_is_unknown_where_nothing_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROC", "CGROUP"):
        monkeypatch.setattr(host, name, tmp_path / "missing")
    assert host.free_memory() is None


def test_free_disk_is_known_before_a_directory_is_made(tmp_path: Path) -> None:
    there = host.free_disk(tmp_path)
    assert there > 0
    assert host.free_disk(tmp_path / "runs" / "x") == pytest.approx(there, rel=0.1)


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
    assert host.is_out_of_memory(error) is is_one
