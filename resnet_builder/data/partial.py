"""Files on their way to a name: nobody takes half of one for a whole one."""

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path

_ENDING = ".part"

ABANDONED_SECONDS = 3_600.0
"""A partial file that was not written to for so long belongs to a process that was killed."""


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Give this process a name beside ``path`` to write to; whole, the file is to be renamed.

    What is left of it at the end is removed, and so is what processes that were killed have left.
    Processes that write the same file at once do not disturb each other.

    Raises:
        OSError: The folder cannot be made or read, or the file cannot be removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{_ENDING}")
    partial.unlink(missing_ok=True)  # or what is there, a link for example, would be written to
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _tidy(path: Path) -> None:
    """Remove what nobody is writing to any more; another process may be doing so too."""
    written_since = time.time() - ABANDONED_SECONDS
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{_ENDING}"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < written_since:
                left.unlink()
