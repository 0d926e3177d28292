"""Calls of the program that can be killed: in forked children, or as true command lines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of every process, so that all of them compute the same bits."""

Fault = tuple[object, ...]
"""The name of a function of :mod:`tests.crash.faults`, and its arguments."""

_ZOMBIE, _STOPPED = "Z", "T"


@dataclass(frozen=True)
class End:
    """End of a call; ``code`` is the exit code, or a negative signal."""

    code: int
    stdout: str
    stderr: str
    seconds: float


def wait_until(condition: Callable[[], object], seconds: float = 60, what: str = "") -> None:
    """Poll a condition until it is true.

    Raises:
        TimeoutError: It is not within the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or condition} is not true after {seconds:.0f} s")
        time.sleep(0.005)


def kill(started: "Child | CommandLine", number: int = signal.SIGKILL) -> None:
    """Send a signal, unless the process has ended."""
    with suppress(ProcessLookupError):
        os.kill(started.pid, number)


def family(started: "Child | CommandLine") -> list[int]:
    """List the processes of a call that are still there: it and its children began a session."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with suppress(OSError):
                state, _, _, session = _stat(int(directory.name))
                if int(session) == started.pid and state != _ZOMBIE:
                    found.append(int(directory.name))
    return found


def parent(pid: int) -> int | None:
    """Return the parent of a process, if it is still there."""
    with suppress(OSError):
        return int(_stat(pid)[1])
    return None


def _stat(pid: int) -> list[str]:
    """Return state, parent, group and session of a process."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()[:4]


@dataclass
class Child:
    """Call in a forked child."""

    pid: int
    stdout: Path
    stderr: Path
    _server: "Server"
    _began: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = 60) -> End:
        code = self._server.ask({"wait": self.pid, "seconds": seconds})
        took = time.monotonic() - self._began
        if code is None:
            kill(self)
            self._server.ask({"wait": self.pid, "seconds": seconds})
            raise TimeoutError(f"still running after {took:.0f} s: {_text(self.stderr)}")
        return End(code, _text(self.stdout), _text(self.stderr), took)

    @property
    def is_running(self) -> bool:
        return _stat(self.pid)[0] != _ZOMBIE

    def go_on(self) -> None:
        """Let it go on once it has stopped."""
        wait_until(lambda: _stat(self.pid)[0] == _STOPPED)
        os.kill(self.pid, signal.SIGCONT)

    def wait_for(self, text: str) -> None:
        """Wait until a text is in its messages."""
        wait_until(lambda: text in _text(self.stderr), what=f"'{text}' in {self.stderr}")


class Server:
    """Forks a child for each call; see :mod:`tests.crash.server`."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._calls = 0

    def start(
        self,
        *arguments: object,
        folder: Path,
        faults: Sequence[Fault] = (),
        stdout: Path | None = None,
        stderr: Path | None = None,
        at: float = 0.0,
    ) -> Child:
        """Call the program in a folder, not before an instant of the monotonic clock."""
        self._calls += 1
        out = stdout or self._scratch / f"{self._calls}.out"
        err = stderr or self._scratch / f"{self._calls}.err"
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        call = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "faults": faults,
            "streams": [(os.devnull, os.O_RDONLY), (str(out), append), (str(err), append)],
            "at": at,
        }
        return Child(self.ask({"call": call}), out, err, self)

    def call(self, *arguments: object, folder: Path, seconds: float = 60, **how: Any) -> End:
        """Call the program and wait for its end."""
        return self.start(*arguments, folder=folder, **how).wait(seconds)

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the server's answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def serving(scratch: Path) -> Iterator[Server]:
    """Start a server, and end it with all of its children."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.server"],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # not a file, or Python would ask for its place in children
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        yield Server(process, scratch)


class CommandLine:
    """Call as users make it, imports and all."""

    def __init__(
        self, *arguments: object, folder: Path, module: Sequence[object] = ("resnet_builder",)
    ) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, (*module, *arguments))],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait(self, seconds: float = 60) -> End:
        try:
            stdout, stderr = self._process.communicate(timeout=seconds)
        finally:
            self._process.kill()
        return End(self._process.returncode, stdout, stderr, time.monotonic() - self._began)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
