"""The operating system: regular files, free memory, free disk, busy cores, the cache directory."""

import errno
import os
import re
import shutil
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# Neither a FIFO nor a terminal lets the opening wait, or takes this process over. Windows lacks
# these flags, but would change line ends without O_BINARY.
_READING = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
    _READING |= getattr(os, _name, 0)

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, or fail at once.

    A file that a user or a run names may be a FIFO, which waits for a writer, or a device, which
    never ends. Links are followed.

    Raises:
        OSError: The file cannot be opened, or is not a regular file; ``strerror`` says so in a few
            words, and ``filename`` is the path.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, _READING)
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, "it is not the name of a file", name) from error
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.EOPNOTSUPP}:  # of a socket
            raise _not_regular(name, "a socket") from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _not_regular(name, _KINDS.get(stat.S_IFMT(mode), "something else"))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _not_regular(name: str, kind: str) -> OSError:
    number = errno.EISDIR if kind == "a directory" else errno.EINVAL
    return OSError(number, f"it is {kind}, not a regular file", name)


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate, or ``None`` where they are unknown.

    That is the memory which Linux has available, or less if a control group limits the process
    (containers and batch systems do).
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    left = [int(available[1]) * 1024] if available else []
    own_group = re.search(r"^0::(/.*)$", _read(PROC / "self" / "cgroup"), re.MULTILINE)
    if own_group:
        group = PurePosixPath(own_group[1])
        for each in (group, *group.parents):  # a limit of an outer group holds for the inner ones
            folder = CGROUP / each.relative_to("/")
            with suppress(ValueError):  # "max" is no limit; a container does not see outer groups
                limit, used = (int(_read(folder / f"memory.{name}")) for name in ("max", "current"))
                cache = re.search(r"^inactive_file (\d+)", _read(folder / "memory.stat"), re.M)
                # Pages of files that were read are given up before memory runs out.
                left.append(limit - used + (int(cache[1]) if cache else 0))
    return min(left, default=None)


def cpu_seconds() -> tuple[float, float] | None:
    """Return the CPU time of all processes and of this one, on the cores of this process.

    Returns:
        Seconds since some time in the past, or ``None`` where they are unknown. The difference of
        two calls tells how busy other processes keep the cores.
    """
    lines = [line.split() for line in _read(PROC / "stat").splitlines()]
    times = {line[0]: [int(number) for number in line[1:8]] for line in lines if line[0] > "cpu"}
    try:
        cores = [times[f"cpu{core}"] for core in os.sched_getaffinity(0)]
        ticks = os.sysconf("SC_CLK_TCK")
    except (AttributeError, KeyError):  # not Linux
        return None
    # Columns: user, nice, system, idle, waiting for disks, interrupts (twice).
    used = sum(sum(times) - times[3] - times[4] for times in cores)
    return used / ticks, time.process_time()


def free_disk(path: Path) -> int:
    """Return the free bytes of the file system that a path lies in, or would be made in.

    Raises:
        OSError: The disk is failing.
    """
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def cache_dir() -> Path:
    """Return the package's folder in the user's cache directory, which may not exist yet."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "resnet-builder"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's; torch's have no class of their own, only words."""
    words = ("out of memory", "DefaultCPUAllocator", "bad_alloc")
    of_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or of_torch


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
