"""Fetching published archives: over https only, verified before they get their name."""

import hashlib
import http.client
import stat
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from resnet_builder.data.interfaces import Report, Stop
from resnet_builder.data.partial import partial_file
from resnet_builder.errors import DataError, Stopped, StorageError

_BLOCK = 1 << 18

# A server that says nothing keeps `stop` from being polled for so long, and no longer.
_TIMEOUT_SECONDS = 10.0

_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A published file.

    Attributes:
        url: Where it is.
        size: Its bytes.
        sha256: Its digest, in hexadecimal.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def fetch(archive: Archive, folder: Path, *, stop: Stop, report: Report) -> Path:
    """Return the archive's path in ``folder``, downloading it if it is not there.

    A file that is not the published one is kept aside with the ending ``.bad``. Processes that
    fetch the same file at once do not disturb each other.

    Raises:
        DataError: It cannot be had, or what came is not it.
        StorageError: It cannot be written or read.
        Stopped: ``stop`` became true; nothing is left behind.
    """
    path = folder / archive.name
    try:
        if path.exists():
            _verify(path, archive, stop)
        else:
            _fetch(archive, path, stop, report)
    except _NETWORK_ERRORS as error:
        raise DataError(
            f"cannot download {archive.url}: {error}; you can put the file into {folder} yourself"
        ) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    return path


def _fetch(archive: Archive, path: Path, stop: Stop, report: Report) -> None:
    """Download to a name of this process's own, which a verified file then exchanges."""
    with partial_file(path) as partial:
        _download(archive, partial, stop, report)
        _verify(partial, archive, stop)
        partial.replace(path)


def _download(archive: Archive, partial: Path, stop: Stop, report: Report) -> None:
    opener = urllib.request.build_opener(_SameSchemeOnly)
    with opener.open(archive.url, timeout=_TIMEOUT_SECONDS) as answer, partial.open("xb") as file:
        _copy(answer, file, archive, stop, report)


def _copy(answer: BinaryIO, file: BinaryIO, archive: Archive, stop: Stop, report: Report) -> None:
    """Copy until the end, or until there is more than the published file has."""
    done = 0
    while done <= archive.size and (block := answer.read(_BLOCK)):
        if stop():
            raise Stopped(f"stopped while downloading {archive.name}")
        file.write(block)
        done += len(block)
        report(f"downloading {archive.name}", done, archive.size)


def _verify(path: Path, archive: Archive, stop: Stop) -> None:
    """Compare size and digest; what differs is renamed.

    Raises:
        DataError: They differ.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if stop():
                raise Stopped(f"stopped while verifying {archive.name}")
            digest.update(block)
            size += len(block)
    if digest.hexdigest() != archive.sha256:
        bad = path.with_name(f"{archive.name}.bad")
        path.replace(bad)
        raise DataError(
            f"{archive.name} is not the published file: it has {size:,} bytes and SHA-256 "
            f"{digest.hexdigest()}, not {archive.size:,} bytes and {archive.sha256}; "
            f"it is kept as {bad}, run again to fetch it anew"
        )


def read_bytes(path: Path, most: int) -> bytes:
    """Return what a file holds.

    Raises:
        DataError: It cannot be read, is no plain file, or holds more than ``most`` bytes.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no plain file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(content) > most:
        raise DataError(f"{path} holds more than {most:,} bytes")
    return content


class _SameSchemeOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirections, but never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Refuse what changes the scheme."""
        if urllib.parse.urlsplit(newurl).scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise urllib.error.URLError(f"redirected from {req.full_url} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
