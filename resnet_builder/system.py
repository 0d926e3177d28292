"""The operating system: regular files, free memory, free disk, busy cores, processes, the cache."""

import atexit
import errno
import logging
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from resnet_builder.errors import StorageError

_log = logging.getLogger(__name__)

T = TypeVar("T")

PARENT = "RESNET_BUILDER_PARENT"
"""Environment variable with the id of the process that started this one, and waits for it."""

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

_PARENT_SECONDS = 0.5

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


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
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
            raise _not_regular(name, file_kind(mode))
        return BufferedReader(_Ready(descriptor, name))
    except BaseException:
        os.close(descriptor)
        raise


class _Ready(FileIO):
    """File that is an error where it would make its reader wait, as some of ``/proc`` do."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor)
        self._path = name

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        return self._there(super().readinto(buffer))

    def readall(self) -> bytes:
        """Read to the end."""
        return self._there(super().readall())

    def _there(self, found: T | None) -> T:
        if found is None:
            raise OSError(errno.EINVAL, "it makes its reader wait, as a FIFO does", self._path)
        return found


def file_kind(mode: int) -> str:
    """Name the kind of a file that is not a regular one, by its mode."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


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


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process held; ``None`` where nobody counts it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", _read(PROC / "self" / "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


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


@contextmanager
def safe_path() -> Iterator[None]:
    """Context in which nothing is looked up in the current folder: no module and no program.

    Worker processes start as ``python -c ...``, which puts that folder first on ``sys.path``. An
    empty or relative entry of ``PATH`` stands for it, or for a folder in it.
    """
    changes = {"PYTHONSAFEPATH": "1"}
    if path := os.environ.get("PATH"):
        changes["PATH"] = os.pathsep.join(filter(os.path.isabs, path.split(os.pathsep)))
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- cache ---------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Return the package's folder in the user's cache directory, which may not exist yet.

    Where the user has no home, it is a temporary folder that lasts as long as the process.
    """
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in the password file
        home = Path()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # to be ignored then, says the XDG specification
            base = home / ".cache"
    if not base.is_absolute():
        return temporary_cache(
            "the home directory is not known, so that nothing is cached beyond this process; set "
            "HOME or XDG_CACHE_HOME"
        )
    return base / "resnet-builder"


@cache
def code_cache(folder: Path) -> Path:
    """Return a folder to load compiled code from: one that only this user can write.

    Args:
        folder: The folder, which is made if it does not exist. Where another user can write in it,
            or replace it, a temporary folder takes its place.

    Raises:
        StorageError: Another user can replace the temporary folder, too.
    """
    try:
        return _make_private(folder)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    temporary = temporary_cache(f"compiled code is kept for this process only: {reason}")
    try:
        return _make_private(temporary)
    except OSError as error:
        raise StorageError(
            f"there is no safe place for compiled code: {error.filename}: {error.strerror}; set "
            "XDG_CACHE_HOME or TMPDIR to a folder that only you can write"
        ) from error


@cache
def temporary_cache(notice: str) -> Path:
    """Return a private folder that lasts as long as the process, and log why there is one."""
    _log.warning("%s", notice)
    folder = Path(tempfile.mkdtemp(prefix="resnet-builder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _make_private(folder: Path) -> Path:
    """Make a folder and those that lead to it, and return its real path.

    Raises:
        OSError: A folder cannot be made, or another user can write in it.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    real = existing.resolve() / folder.relative_to(existing)
    for each in (*reversed(real.parents), real):
        each.mkdir(0o700, exist_ok=True)
        _refuse_others(each, leads_to_it=each != real)
    is_closed = not real.stat().st_mode & 0o077  # nobody else can reach what is in it
    for each in () if is_closed else real.rglob("*"):
        _refuse_others(each)
    return real


def _refuse_others(path: Path, *, leads_to_it: bool = False) -> None:
    """Raise :class:`PermissionError` if other users than root can write a path."""
    if sys.platform == "win32":  # what belongs to a profile is protected by the system
        return
    info, user = path.lstat(), os.geteuid()
    if info.st_uid != user and not (leads_to_it and info.st_uid == 0):
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    if stat.S_ISLNK(info.st_mode) or (leads_to_it and info.st_mode & stat.S_ISVTX):
        return  # in a sticky folder, as /tmp is one, nobody can replace what is another's
    by_group = info.st_mode & stat.S_IWGRP and not _is_private_group(info.st_gid)
    if by_group or info.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, "others can write it", str(path))


def _is_private_group(number: int) -> bool:
    """Whether a group is this user's alone; systems with such groups let them write everything."""
    import grp
    import pwd

    with suppress(KeyError):
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
        alone = set(group.gr_mem) <= {user.pw_name}
        return alone and (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name)
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's; torch's have no class of their own, only words."""
    words = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory")
    of_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or of_torch


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def end_with_parent() -> bool:
    """Stop as by SIGTERM once the process that :data:`PARENT` names has ended.

    The kernel tells nobody that a parent was killed. A run that trained on alone would be locked
    for the command line that is to continue it.

    Returns:
        Whether the variable names a process.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit():
        return False

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return True
