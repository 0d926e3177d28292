"""Downloads that somebody meddles with, and processes that are killed in the middle."""

import signal
import ssl
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.data.download import fetch
from resnet_builder.data.interfaces import never, silent
from resnet_builder.errors import DataError
from tests.data.folders import write_pets
from tests.data.publishing import QuietHandler, published, serving

CERTIFICATE = Path(__file__).parent / "localhost.pem"


def redirecting(url: str) -> type[BaseHTTPRequestHandler]:
    """Answer every request by sending the client elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", url)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def counting(content: bytes, paths: list[str]) -> type[BaseHTTPRequestHandler]:
    """Answer every request with the content, and note what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def secured() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.mark.parametrize("trusted", [True, False], ids=["row41-redirected", "row41-not-trusted"])
def test_nothing_is_fetched_over_http_instead_of_https(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    asked: list[str] = []
    content = b"the published file"
    with (
        serving(counting(content, asked)) as plain,
        serving(redirecting(f"{plain}/x.gz"), secured()) as safe,
    ):
        reason = "redirected from https" if trusted else "CERTIFICATE_VERIFY_FAILED"
        with pytest.raises(DataError, match=f"cannot download {safe}/x.gz: .*{reason}"):
            fetch(published(f"{safe}/x.gz", content), tmp_path, stop=never, report=silent)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_row41_https_is_fetched_from_who_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the refusals above are not of everything."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    asked: list[str] = []
    with serving(counting(b"the published file", asked), secured()) as safe:
        archive = published(f"{safe}/x.gz", b"the published file")
        path = fetch(archive, tmp_path, stop=never, report=silent)
    assert path.read_bytes() == b"the published file"
    assert asked == ["/x.gz"]


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from resnet_builder.data import download, kept
from resnet_builder.data.interfaces import never, LoadContext
from resnet_builder.data.download import Archive, fetch
from resnet_builder.data.image_folder import ImageFolder
from resnet_builder.data.preprocess import Preprocessing

url, size, sha256, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(place, name):
    setattr(place, name, die)

def in_a_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *sorted(map(str, (
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file()
    ))), sep="\\t")

def download_it(report=lambda *_: None):
    fetch(Archive(url, size, sha256), folder, stop=never, report=report)

def unpack_it(report=lambda *_: None):
    ImageFolder(path="pets").load(LoadContext(folder, Preprocessing(), report=report))

in_a_child(lambda: download_it(die))
in_a_child(lambda: (dying(download, "_verify"), download_it()))
in_a_child(lambda: (dying(Path, "replace"), download_it()))
in_a_child(download_it)
in_a_child(lambda: unpack_it(die))
in_a_child(lambda: (dying(Path, "replace"), unpack_it()))
in_a_child(unpack_it)
"""


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_row38_what_is_killed_at_any_point_is_done_anew(tmp_path: Path) -> None:
    """Killed in the download, before it is verified, and before it is renamed; and decoding."""
    served, folder = tmp_path / "served", tmp_path / "data"
    served.mkdir()
    content = bytes(range(256)) * 4096
    (served / "x.gz").write_bytes(content)
    write_pets(folder, ("train",))
    with serving(partial(QuietHandler, directory=served)) as url:
        archive = published(f"{url}/x.gz", content)
        line = [archive.url, archive.size, archive.sha256, folder]
        told = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, line)],
            capture_output=True,
            text=True,
            check=True,
        )
    found = [row.split("\t") for row in told.stdout.splitlines()]
    codes = [int(code) for code, *_ in found]
    killed = -signal.SIGKILL
    assert codes == [killed, killed, killed, 0, killed, killed, 0]
    whole = ["x.gz" in names for _, *names in found]
    assert whole == [False] * 3 + [True] * 4
    kept = [sum(name.endswith(".safetensors") for name in names) for _, *names in found]
    assert kept == [0] * 6 + [1]
    assert (folder / "x.gz").read_bytes() == content
