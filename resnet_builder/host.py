"""What the operating system has for this process: memory, disk, a folder to keep things in."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

if sys.platform != "win32":
    import resource

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Return the bytes that this process may still take, or ``None`` where nothing tells.

    That is the least of what the machine has available, what each control group that the process
    is in leaves of its limit, and what the process's own limit of addresses leaves.
    """
    return min((*_available(), *_left_in_groups(), *_left_of_addresses()), default=None)


def free_disk(path: Path) -> int:
    """Return the bytes that are free where a file or directory is, or would be made.

    Raises:
        OSError: The disk is failing.
    """
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def cache_dir() -> Path:
    """Return this program's folder in the user's cache, which need not be there yet."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "resnet-builder"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error of any allocator; torch's are errors like others, but for their words."""
    words = ("out of memory", "DefaultCPUAllocator", "bad_alloc")
    is_torch_s = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or is_torch_s


def _available() -> Iterator[int]:
    """Yield what Linux could give away without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    if found:
        yield int(found[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """Yield what is left of each limit, from the process's own group up to the outermost."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _left_above(CGROUP, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left_above(CGROUP / "memory", path, *names)


def _left_above(root: Path, path: str, limit: str, used: str, cache: str) -> Iterator[int]:
    """Yield what is left in a group and in those that it is inside of.

    A container may not see the groups outside of it: they are passed over.
    """
    for inner in (PurePosixPath(path), *PurePosixPath(path).parents):
        folder = root / inner.relative_to("/")
        with suppress(ValueError):  # no such group, or "max": no limit
            left = int(_read(folder / limit)) - int(_read(folder / used))
            found = re.search(rf"^{cache} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
            yield left + (int(found[1]) if found else 0)  # files read before are given up first


def _left_of_addresses() -> Iterator[int]:
    """Yield what is left of the limit that ``ulimit -v`` sets, if it is set."""
    if sys.platform == "win32":
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(PROC / "self" / "statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0]) * resource.getpagesize()


def _read(path: Path) -> str:
    """Return a file's text, or none where it is missing or may not be read."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
