"""A disk that fails when it is told to, and tells what was asked of it."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs import files
from resnet_builder.runs.files import TEMPORARY

CALLS = ("open", "write", "fsync", "close", "replace", "fsync directory")
"""What writing a file asks of the system, in order."""


class Disk:
    """Stands between the package and the system while files are made.

    Attributes:
        events: What was asked, and the failpoints passed in between.
        failing: The call that fails, one of :data:`CALLS`, or a failpoint.
        error: How.
        flipped: Whether what is written differs from what was to be written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.failing: str | None = None
        self.error: BaseException = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.flipped = False
        self._ours: set[int] = set()
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync", "close")}
        self._real["replace"] = os.replace
        monkeypatch.setattr(files, "failpoint_hook", self._pass)
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))

    def _pass(self, event: str) -> None:
        self.events.append(event)
        if event == self.failing:
            raise self.error

    def _open(self, path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        made = bool(flags & os.O_CREAT) and Path(path).name.startswith(TEMPORARY)
        if made:
            self._pass("open")
        descriptor: int = self._real["open"](path, flags, mode, **rest)
        if made:
            self._ours.add(descriptor)
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        if descriptor not in self._ours:
            return int(self._real["write"](descriptor, data))
        self._pass("write")
        piece = bytes(data[:1000])  # as a system may: less than was asked
        if self.flipped:
            piece = bytes([piece[0] ^ 1]) + piece[1:]
        return int(self._real["write"](descriptor, piece))

    def _fsync(self, descriptor: int) -> None:
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self._pass("fsync directory" if directory else "fsync")
        self._real["fsync"](descriptor)

    def _close(self, descriptor: int) -> None:
        self._real["close"](descriptor)
        if descriptor in self._ours:
            self._ours.remove(descriptor)
            self._pass("close")

    def _replace(self, source: Any, target: Any) -> None:
        self._pass("replace")
        self._real["replace"](source, target)


def names(directory: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def without_repeats(events: Sequence[str]) -> list[str]:
    """Return events with each run of equal ones once."""
    return [
        event for event, before in zip(events, [None, *events], strict=False) if event != before
    ]
