"""Fetching published archives: over https only, verified before they get their name."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from resnet_builder.data.contract import Report, Stop
from resnet_builder.errors import DataError, Stopped, StorageError

_BLOCK = 1 << 18
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Archive:
    """A published file.

    Attributes:
        url: Where it is.
        md5: Digest that its publisher gives.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def fetch(archive: Archive, folder: Path, *, stop: Stop, report: Report) -> Path:
    """Return the archive's path in ``folder``, downloading it if it is not there.

    A file that is not the published one is kept aside with the ending ``.bad``.

    Raises:
        DataError: It cannot be had, or what came is not it.
        StorageError: It cannot be written.
        Stopped: ``stop`` became true; nothing is left behind.
    """
    path = folder / archive.name
    if path.exists():
        _verify(path, archive, stop)
        return path
    partial = folder / f"{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(archive, partial, stop, report)
        _verify(partial, archive, stop)
        partial.replace(path)
    except Stopped:
        partial.unlink(missing_ok=True)
        raise
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise DataError(
            f"cannot download {archive.url}: {error}; you can put the file into {folder} yourself"
        ) from error
    except OSError as error:
        raise StorageError(f"{partial}: {error.strerror or error}") from error
    return path


def _download(archive: Archive, partial: Path, stop: Stop, report: Report) -> None:
    opener = urllib.request.build_opener(_SameSchemeOnly)
    with opener.open(archive.url, timeout=_TIMEOUT_SECONDS) as answer, partial.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        _copy(answer, file, archive.name, total, stop, report)


def _copy(
    answer: BinaryIO, file: BinaryIO, name: str, total: int, stop: Stop, report: Report
) -> None:
    done = 0
    while block := answer.read(_BLOCK):
        if stop():
            raise Stopped(f"stopped while downloading {name}")
        file.write(block)
        done += len(block)
        report(f"downloading {name}", done, total)


def _verify(path: Path, archive: Archive, stop: Stop) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if stop():
                raise Stopped(f"stopped while verifying {archive.name}")
            digest.update(block)
            size += len(block)
    if digest.hexdigest() != archive.md5:
        bad = path.with_name(f"{archive.name}.bad")
        path.replace(bad)
        raise DataError(
            f"{archive.name} is not the published file: {size:,} bytes with MD5 "
            f"{digest.hexdigest()}, not {archive.md5}; kept as {bad}, run again to fetch it anew"
        )


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
