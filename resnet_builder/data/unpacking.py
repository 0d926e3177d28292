"""Unpacking archives into memory, with a bound on what comes out whatever their headers say."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from resnet_builder.data.interfaces import Stop
from resnet_builder.errors import DataError, Stopped

MOST_MEMBERS = 1_000
"""A published archive has a few files; one of more is not looked through."""

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


@contextmanager
def unpacked(path: Path, most: int) -> Iterator[BinaryIO]:
    """Open a gzip file to read what it holds.

    Args:
        path: The file.
        most: How many bytes may come out.

    Raises:
        DataError: It is broken, or holds more.
    """
    try:
        with gzip.open(path) as file, io.BufferedReader(_Bounded(file, most, path)) as bounded:
            yield bounded
    except _BROKEN as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class _Bounded(io.RawIOBase):
    """A file that ends with an error rather than give more than ``most`` bytes."""

    def __init__(self, file: gzip.GzipFile, most: int, path: Path) -> None:
        self._file = file
        self._most = self._left = most
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what it is given
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than {self._most:,} bytes")
        return count


def tar_files(
    path: Path, wanted: Collection[str], most: int, stop: Stop
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of a tar.gz in its own order: going back would unpack it anew.

    Nothing is written to the disk. What is no plain file, like a link, is passed over, whatever
    its name.

    Args:
        path: The archive.
        wanted: Names of files.
        most: How many bytes may come out of it, its own headers included.
        stop: Polled at every file.

    Raises:
        DataError: It is broken, or holds more.
        Stopped: ``stop`` became true.
    """
    with unpacked(path, most) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for number, member in enumerate(archive):
            if stop():
                raise Stopped(f"stopped while reading {path.name}")
            if number == MOST_MEMBERS:
                raise DataError(f"{path} holds more than {MOST_MEMBERS:,} files")
            if member.name not in wanted or member.type not in _PLAIN:
                continue
            if member.size > most:
                raise DataError(f"{path} unpacks to more than {most:,} bytes")
            content = archive.extractfile(member)
            assert content is not None, "it is a plain file"
            yield member.name, content.read()
