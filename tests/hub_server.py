"""Stand-in for the Hugging Face Hub on this machine: repositories, commits, downloads, refusals."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """A repository: the files of each commit, the newest last."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[digest] = dict(files)
        return digest

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


@dataclass
class Hub:
    """The stand-in: repositories by name, uploaded blobs, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and message for every request whose line matches a pattern."""

    def publish(self, name: str, folder: Path) -> str:
        """Make a repository of the files of a folder, and return its commit."""
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.repositories.setdefault(name, Repository()).commit(files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        for pattern, (status, message) in self.hub.refusals.items():
            if re.search(pattern, line):
                self._send(
                    status, json.dumps({"error": message}).encode(), {"X-Error-Message": message}
                )
                return
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, line):
                getattr(self, method)(*found.groups(), body=body)
                return
        self._send(404, b"")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return None if found is None or (found.private and not is_known) else found

    def resolve(self, name: str, revision: str, file: str, body: bytes) -> None:
        repository = self._repository(name)
        if repository is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        content = repository.commits[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **headers})
            return
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **headers})

    def create(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send_json({"error": "Invalid username or password."}, 401)
            return
        asked = json.loads(body)
        name = f"{asked.get('organization', 'somebody')}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}", "id": name, "name": name}
        if name in self.hub.repositories:
            self._send_json({"error": "You already created this model repo", **url}, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = repository = Repository(private=private)
        repository.commit({".gitattributes": b""})
        self._send_json(url)

    def info(self, name: str, body: bytes) -> None:
        found = self._repository(name)
        if found is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        files = [{"rfilename": file} for file in found.files]
        self._send_json(
            {"id": name, "private": found.private, "sha": found.head, "siblings": files}
        )

    def tree(self, name: str, _: str, body: bytes) -> None:
        files = self.hub.repositories[name].files.items()
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
            for file, content in files
        ]
        self._send_json(entries)

    def preupload(self, _: str, body: bytes) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": modes})

    def batch(self, _: str, body: bytes) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.blobs[digest] = body
        self._send(200, b"")

    def commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._send_json({"commitUrl": url, "commitOid": oid, "success": True})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        assert content.startswith("---\n")
        if "license: none-such" in content:
            self._send(400, b'"license" must be one of [mit, ...]')
            return
        self._send_json({"errors": [], "warnings": []})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"GET /api/models/{_NAME}/tree/(.+)", "tree"),
    (rf"POST /api/models/{_NAME}/preupload/main", "preupload"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/([0-9a-f]+)", "upload"),
    (rf"POST /api/models/{_NAME}/commit/main", "commit"),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """Context with the stand-in, on a port of its own."""
    hub = Hub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, in place of the Hub: with a cache of its own, and a token of its own."""
    from huggingface_hub import constants

    from resnet_builder.weights import hub as downloads

    with serve() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        downloads._download.cache_clear()
        yield found
        downloads._download.cache_clear()
