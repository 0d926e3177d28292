"""Published archives, made here in the published layouts, and a server that publishes them."""

import hashlib
import io
import os
import ssl
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from resnet_builder.data.cifar import Layout
from resnet_builder.data.download import Archive


def published(url: str, content: bytes) -> Archive:
    return Archive(url, len(content), hashlib.sha256(content).hexdigest())


def records(layout: Layout, count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Make records as the publisher lays them out: labels, then planes of red, green and blue."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = draw.integers(0, layout.num_classes, count, dtype=np.uint8)
    coarse = np.zeros((count, layout.label_bytes - 1), np.uint8)
    rows = np.concatenate([coarse, labels[:, None], images.reshape(count, -1)], axis=1)
    return rows.tobytes(), images, labels


def cifar_archive(
    layout: Layout, more: Callable[[tarfile.TarFile], None] = lambda archive: None
) -> tuple[bytes, dict[str, Any]]:
    names = "".join(f"name_{number}\n" for number in range(layout.num_classes)) + "\n"
    files, made = {layout.names: names.encode()}, {}
    for seed, name in enumerate((*layout.train, *layout.test)):
        files[name], *made[name] = records(layout, 4, seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        more(archive)
    return buffer.getvalue(), made


@contextmanager
def serving(handler: Callable[..., Any], secured: ssl.SSLContext | None = None) -> Iterator[str]:
    """Answer requests on this machine; return the server's address."""
    server = QuietServer(("127.0.0.1", 0), handler)
    if secured is not None:
        server.socket = secured.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http{'s' if secured else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)
